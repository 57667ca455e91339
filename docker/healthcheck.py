"""Whether the service in this container answers: ``healthcheck.py URL``, http://… or tcp://HOST:PORT. Exit 0 if it does."""

import socket
import sys
import urllib.request
from urllib.parse import urlsplit

SECONDS = 4


def main(url: str) -> int:
    """Ask once, and return the exit status."""
    parts = urlsplit(url)
    try:
        if parts.scheme == "tcp":
            with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=SECONDS):
                return 0
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=SECONDS) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:
        print(type(error).__name__)  # docker keeps it
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
