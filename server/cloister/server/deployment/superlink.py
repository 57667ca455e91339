"""The SuperLink as a process of the server: how it is started, watched, and started again.

It listens on the inside only, lets in the nodes whose keys the consortium knows, starts no code (``--isolation process``), and keeps its messages in
SQLite. Whoever holds the secret in the state folder may take a run's task.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from cloister.core.errors import UsageError
from cloister.core.settings import host_of, port_of
from cloister.privacy.identity.kit import Kit, read_secret
from cloister.server.deployment.desk import make_secret
from cloister.server.deployment.parent import PARENT

__all__ = ["SuperLink", "command", "environment"]

_LOG = logging.getLogger("cloister.server.superlink")
_STOP_S = 10.0
#: What the command ``flower-superlink`` does, wherever that was installed.
_PROGRAM = "from flwr.superlink.cli.flower_superlink import flower_superlink; flower_superlink()"
#: The same as a child, which ends with its parent: an orphan would keep the port.
_CHILD = "from cloister.server.deployment.parent import end_with_parent; end_with_parent(); " + _PROGRAM


def command(kit: Kit, address: str, state: Path, *, child: bool = False) -> list[str]:
    """Return the command that starts the SuperLink; it needs `environment`.

    Args:
        kit: the server's.
        address: where it listens.
        state: the server's state folder.
        child: whether it ends with the process that starts it.
    """
    read_secret(kit.key)
    make_secret(state / "superlink.secret")
    return [
        sys.executable,
        "-c",
        _CHILD if child else _PROGRAM,
        "--host",
        host_of(address),
        "--port",
        str(port_of(address)),
        "--ssl-ca-certfile",
        str(kit.root),
        "--ssl-certfile",
        str(kit.certificate),
        "--ssl-keyfile",
        str(kit.key),
        "--enable-supernode-auth",
        "--isolation",
        "process",
        "--superexec-auth-secret-file",
        str(state / "superlink.secret"),
        "--disable-runtime-dependency-installation",
        "--database",
        str(state / "superlink.db"),
    ]


def environment(state: Path) -> dict[str, str]:
    """Return the environment that it runs in: no telemetry, no question whether there is a newer Flower, a home of its own."""
    home = state / "flwr"
    home.mkdir(mode=0o700, exist_ok=True)
    return {
        **os.environ,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(home),
    }


class SuperLink:
    """A SuperLink that runs as a child of this process.

    Args:
        kit: the server's.
        address: where it listens.
        state: the server's state folder; its log goes there.
    """

    def __init__(self, kit: Kit, address: str, state: Path) -> None:
        self._command = command(kit, address, state, child=True)
        self._environment = environment(state) | {PARENT: str(os.getpid())}
        self._log = state / "superlink.log"
        self._process: subprocess.Popen[bytes] | None = None

    def ensure(self) -> bool:
        """Start it unless it runs; return whether it was started.

        Raises:
            UsageError: it cannot be started.
            IntegrityError: (kit-key) the server's TLS key cannot be used.
        """
        if self._process is not None and self._process.poll() is None:
            return False
        if self._process is not None:
            _LOG.error("the SuperLink ended with status %d and is started again", self._process.returncode)
        old = os.umask(0o077)
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                    self._command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        except OSError as error:
            raise UsageError(
                f"the SuperLink cannot be started: {error.strerror}", remedy="install flwr beside cloister"
            ) from None
        finally:
            os.umask(old)
        return True

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
