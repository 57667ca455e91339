"""What a long-running part tells whoever watches it: logs as JSON lines, ``/health`` and Prometheus' ``/metrics``.

None of it holds data: a log line is what the code wrote, with names of runs, sites and codes; a metric is a count or a time.

Formal guarantees:

- A log line is one JSON object, whatever its message holds: a name that a stranger chose cannot begin a line of its own.
- The two pages are read-only, take no request body, and drop a client that is slower than `_SLOW_S`.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, TextIO

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from cloister.core.errors import UsageError
from cloister.core.settings import host_of, port_of

__all__ = ["Observatory", "log_to"]

_SLOW_S = 5.0
_LONGEST = 4000


def log_to(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Write the log of every part of Cloister to ``stream`` (standard error), one JSON object a line."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Lines())
    logger = logging.getLogger("cloister")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "where": record.name,
            "said": record.getMessage()[:_LONGEST],
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Observatory:
    """Serves ``/health`` and ``/metrics`` from a thread of its own; use it as a context.

    Args:
        listen: ``host:port``; port 0 takes a free one.
        registry: the metrics.
        health: says how things are; ``ok`` decides between 200 and 503.

    Raises:
        UsageError: nobody can listen there.
    """

    def __init__(
        self, listen: str, registry: CollectorRegistry, health: Callable[[], Mapping[str, Any]]
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = _SLOW_S
            server_version, sys_version = "cloister", ""

            def do_GET(self) -> None:
                if self.path == "/health":
                    found = dict(health())
                    status = HTTPStatus.OK if found.get("ok") else HTTPStatus.SERVICE_UNAVAILABLE
                    self._answer(status, "application/json", json.dumps(found).encode())
                elif self.path == "/metrics":
                    self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry))
                else:
                    self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"")

            def log_message(self, *_: Any) -> None:
                """Keep quiet."""

            def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        try:
            self._server = ThreadingHTTPServer((host_of(listen), port_of(listen)), Handler)
        except (OSError, OverflowError):
            raise UsageError(f"nobody can listen on '{listen}'", remedy="name a free address") from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="observatory", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
