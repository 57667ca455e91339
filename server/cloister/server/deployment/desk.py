"""The coordinator's side of Flower's SuperLink: nodes let in, a run begun, its task taken; its messages are `superlink_grid`'s.

The two modules of this part that use Flower's internals (flwr 1.41); `tests/server/test_desk.py` is their contract. The SuperLink runs with
``--isolation process``: it starts no code, and gives the task of a run to whoever holds its secret, which is the process that runs the job.
Flower asks for a bundle of code with every run; ours is a few lines that refuse to run, since sites run what they have installed.

A job's run at the SuperLink carries messages and nothing else: what must last is in the run folder. After a crash of anything a new run is begun. Flower removes the
messages of a run that ended when it lists the run: so runs are listed when one ends, and before one begins (those whose process died).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from cloister.core.errors import PeersMissing
from cloister.server.deployment.superlink_grid import SuperLinkGrid

__all__ = ["Desk"]

_SERVERAPP = "flwr-serverapp"
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_TAKE_S = 30.0
_PROJECT = """\
[project]
name = "cloister-job"
version = "1.0.0"
description = "A job of Cloister: sites run what they have installed, not this."
license = "Apache-2.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "cloister"

[tool.flwr.app.components]
serverapp = "cloister_job:app"
clientapp = "cloister_job:app"

[tool.flwr.app.config]
"""
_REFUSAL = b'raise SystemExit("a site of Cloister runs what it has installed: cloister site run")\n'


@dataclass(frozen=True, kw_only=True)
class Desk:
    """How the SuperLink is reached, from the machine (or network) that it runs on.

    Attributes:
        address: ``host:port``.
        root: whose certificates are accepted, PEM.
        secret: what lets its holder take a run's task.
        lock: a file that one process at a time holds while it begins a run or lets nodes in.
        app: the program of the bundle that Flower asks for with a run: one that refuses.
        stock: whether Flower's own SuperNodes answer, which look for a message's content in its parts only.
    """

    address: str
    root: bytes
    secret: bytes
    lock: Path
    app: bytes = _REFUSAL
    stock: bool = False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.lock.touch(mode=0o600)
        with self.lock.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield

    def ready(self) -> bool:
        """Whether the SuperLink answers."""
        try:
            with self._control() as control:
                control.ListNodes(ListNodesRequest())
        except (httpx.HTTPError, OSError):
            return False
        return True

    def wait_ready(self, seconds: float, *, alive: Callable[[], bool] = lambda: True) -> None:
        """Wait until it answers.

        Raises:
            PeersMissing: (superlink) it did not in time, or its process ended.
        """
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline or not alive():
                raise PeersMissing(
                    f"the SuperLink at {self.address} does not answer",
                    remedy="read its log in the server's state folder",
                    code="superlink",
                )
            time.sleep(0.1)

    def admit(self, keys: Iterable[bytes]) -> dict[bytes, int]:
        """Make the SuperLink know exactly the nodes with these public ``keys``; return their numbers."""
        wanted = set(keys)
        with self._alone(), self._control() as control:
            known = {
                bytes(node.public_key): int(node.node_id)
                for node in control.ListNodes(ListNodesRequest()).nodes_info
                if not node.unregistered_at
            }
            for key in set(known) - wanted:
                control.UnregisterNode(UnregisterNodeRequest(node_id=known.pop(key)))
            for key in sorted(wanted - set(known)):
                known[key] = int(control.RegisterNode(RegisterNodeRequest(public_key=key)).node_id)
        return known

    def nodes(self) -> dict[bytes, str]:
        """Return the state of each known node by its public key: ``online``, ``offline``, …."""
        with self._control() as control:
            found = control.ListNodes(ListNodesRequest()).nodes_info
            return {bytes(node.public_key): str(node.status) for node in found if not node.unregistered_at}

    @contextmanager
    def open_run(self, most_bytes: int) -> Iterator[SuperLinkGrid]:
        """Begin a run, take its task, and give the grid that reaches its sites; end the run when the context ends.

        Args:
            most_bytes: of one reply.

        Raises:
            PeersMissing: (superlink) the run could not be begun.
        """
        with self._alone():
            run, token = self._begin()
        grid = SuperLinkGrid(self.address, self.root, token, most_bytes=most_bytes, stock=self.stock)
        try:
            grid.begin()
            yield grid
        finally:
            grid.end()
            try:
                with self._control() as control:
                    with suppress(httpx.HTTPError):  # it has ended by itself
                        control.StopRun(StopRunRequest(run_id=run))
                    control.ListRuns(ListRunsRequest(run_id=run))
            except httpx.HTTPError:
                pass  # the SuperLink is gone

    def _begin(self) -> tuple[int, str]:
        content, _ = build_fab_from_files({"pyproject.toml": _PROJECT.encode(), "cloister_job.py": self.app})
        with self._control() as control, self._executor() as executor:
            control.ListRuns(ListRunsRequest())
            answer = control.StartRun(StartRunRequest(fab=Fab(content=content)))
            if not answer.HasField("run_id"):
                raise _no_run("it did not begin a run")
            deadline = time.monotonic() + _TAKE_S
            while time.monotonic() < deadline:
                taken = executor.AcquireTask(AcquireTaskRequest(supported_task_types=[_SERVERAPP]))
                if not taken.HasField("task"):
                    time.sleep(0.05)
                elif taken.task.run_id == answer.run_id:
                    return int(answer.run_id), str(taken.token)
                # else the task of a run whose process died before it took it: nobody will ask for it again
        raise _no_run("it gave out no task for the run")

    def _control(self) -> Any:
        return ControlHttpClient.from_server_address(
            self.address,
            insecure=False,
            root_certificates=self.root,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="cloister")],
        )

    def _executor(self) -> Any:
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=False,
            root_certificates=self.root,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(
                    master_secret=self.secret, protected_methods=frozenset({_ACQUIRE})
                ),
            ],
        )


def _no_run(why: str) -> PeersMissing:
    return PeersMissing(
        f"the SuperLink gave no run: {why}",
        remedy="read its log in the server's state folder",
        code="superlink",
    )


def make_secret(path: Path) -> bytes:
    """Return the secret in ``path``, made where there is none, mode 0600."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as file:
        secret = os.urandom(32).hex().encode()
        file.write(secret)
    return secret
