"""A real PostgreSQL of a test's own: made with ``initdb``, in a temporary folder, on a free port of this machine."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

PASSWORD = "pass:word/with@marks"


@dataclass(frozen=True)
class Database:
    """Where the database listens: a socket's folder and a port of 127.0.0.1."""

    folder: Path
    port: int

    def url(self, user: str = "postgres", *, password: str | None = None) -> str:
        """Return a URL over the unix socket, or over TCP where a password is given."""
        from urllib.parse import quote

        if password is None:
            return f"postgresql://{user}@/postgres?host={quote(str(self.folder))}&port={self.port}"
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/postgres"


def installed() -> bool:
    """Whether ``initdb`` is there, and somebody other than root to run it as."""
    return shutil.which("initdb") is not None and (os.getuid() != 0 or _user() is not None)


@contextmanager
def postgres() -> Iterator[Database]:
    """Run a database; the socket trusts everybody, TCP asks for a password."""
    user = _user() if os.getuid() == 0 else None
    with TemporaryDirectory(prefix="cloister-pg-") as name, socket.socket() as found:
        folder = Path(name)
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        if user is not None:
            shutil.chown(folder, user)

        def run(*command: str) -> None:
            subprocess.run(command, user=user, cwd=folder, check=True, capture_output=True, timeout=120)

        data = str(folder / "data")
        run(
            "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--no-sync",
        )
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
        )
        run("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield Database(folder, port)
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def _user() -> str | None:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None
