"""A whole consortium on loopback: real nginx, SuperLink, server and site processes, as `cloister provision` sets them up."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

from cloister.core.command import run
from cloister.core.errors import PeersMissing
from cloister.privacy.identity import Role
from cloister.privacy.identity.kit import load_kit
from cloister.server.deployment.client import JobsClient

__all__ = ["POLICY", "Deployment", "deployed", "free_port", "has_nginx"]

POLICY = """
[who]
users = ["ada"]

[limits]
idle_minutes = 0.2      # a site that was away in a run's last round does not know that it ended

[data.heart]
epsilon_cap = {cap}
delta_cap = 1e-3

[[allow]]
dataset = "heart"
task = "heart"
code = "any"
protection = ["masked"]
units = ["record", "record-distributed"]
approval = "never"
"""

HEART = """
[federation]
name = "heart-private"
rounds = {rounds}
seed = 7
[task]
use = "heart"
[cohort]
min_sites = 3
wait_s = {wait_s}
partition = {{ by = "site" }}
[training]
local_steps = 4
batch_size = 16
optimizer = {{ name = "sgd", lr = 0.5 }}
[privacy]
unit = "record"
epsilon = {epsilon}
delta = 1e-3
clip = 1.0
sampling_rate = 0.1
"""


def has_nginx() -> bool:
    """Whether nginx is installed."""
    return shutil.which("nginx") is not None


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Deployment:
    """A consortium's processes and folders.

    Args:
        folder: where all of it goes.
        sites: the hospitals.
        cap: the ε that each site allows.
        door: whether nginx stands before it; where it is not installed the members reach SuperLink and job service directly.
    """

    def __init__(
        self, folder: Path, sites: Sequence[str], *, cap: float = 10.0, door: bool | None = None
    ) -> None:
        self.folder, self.sites = folder, list(sites)
        self._door = has_nginx() if door is None else door
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.door, link, jobs = free_port(), free_port(), free_port()
        self.fleet, self.jobs = (self.door, self.door) if self._door else (link, jobs)
        lines = [f'[consortium]\nname = "test"\n[server]\nhost = "127.0.0.1"\nport = {self.door}\n']
        lines += [
            f'[[sites]]\nname = "{name}"\ndata.heart = {{ task = "heart", owner = "{name}" }}\n'
            for name in sites
        ]
        lines += ['[[users]]\nname = "ada"\nroles = ["submit"]\n[[users]]\nname = "eve"\nroles = ["watch"]\n']
        file = folder / "consortium.toml"
        file.write_text("".join(lines))
        self.run("provision", str(file), "--out", str(folder / "c"))
        self.kits = folder / "c" / "kits"
        self.server = self.kits / "server"
        nginx = (self.server / "nginx.conf").read_text()
        (self.server / "nginx.conf").write_text(
            nginx.replace("127.0.0.1:9092", f"127.0.0.1:{link}").replace(
                "127.0.0.1:9095", f"127.0.0.1:{jobs}"
            )
        )
        (self.server / "server.toml").write_text(
            f'[server]\nsuperlink = "127.0.0.1:{link}"\n[jobs]\nlisten = "127.0.0.1:{jobs}"\nattempts = 20\n'
        )
        for name in sites:
            config = self.site(name) / "site.toml"
            text = config.read_text().split("[health]")[0]
            text = text.replace("[server]\n", "[server]\nmost_bytes = 33554432\n")
            config.write_text(text.replace(f":{self.door}", f":{self.fleet}"))
            (self.site(name) / "policy.toml").write_text(POLICY.format(cap=cap))
        for name in ("ada", "eve"):
            file = self.user(name) / "user.toml"
            file.write_text(file.read_text().replace(f":{self.door}", f":{self.jobs}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._processes)):
            self.stop(name)

    def site(self, name: str) -> Path:
        """Return a site's folder."""
        return self.kits / "sites" / name

    def user(self, name: str = "ada") -> Path:
        """Return a user's kit."""
        return self.kits / "users" / name

    def run(
        self, *arguments: str, status: int | None = 0, apart: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run ``cloister`` to its end: in this process, as a start takes seconds, or in one of its own."""
        if apart:
            command = [str(Path(sys.executable).parent / "cloister"), *arguments]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=300, env=_environment(), check=False
            )
        else:
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err), patch.dict(os.environ, COLUMNS="200"):
                ended = run(arguments)
            done = subprocess.CompletedProcess(arguments, ended, out.getvalue(), err.getvalue())
        assert status is None or done.returncode == status, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def start(self, *names: str) -> None:
        """Start ``server``, ``nginx`` or sites."""
        for name in names:
            cloister = str(Path(sys.executable).parent / "cloister")
            if name == "nginx":
                (self.server / "run").mkdir(exist_ok=True)
                command = [
                    "nginx",
                    "-e",
                    "stderr",
                    "-p",
                    str(self.server),
                    "-c",
                    "nginx.conf",
                    "-g",
                    "daemon off;",
                ]
            elif name == "server":
                command = [cloister, "server", "run", str(self.server)]
            elif name == "superlink":
                command = [cloister, "server", "superlink", str(self.server)]
            else:
                command = [cloister, "site", "run", str(self.site(name))]
            with (self.folder / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment()
                )

    def start_all(self) -> None:
        """Start everything, and wait until every site is connected."""
        self.start("server", *(["nginx"] if self._door else []), *self.sites)
        for name in self.sites:
            self.until(lambda name=name: self.log(name).count("connected to") > 0, 300, name)  # type: ignore[misc]

    def stop(self, name: str, *, kill: bool = False) -> None:
        """Stop a process, or kill it."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill_superlink(self) -> None:
        """Kill the SuperLink, which is the server's child."""
        for line in subprocess.run(
            ["pgrep", "-f", f"flower_superlink.*{self.server}"], capture_output=True, text=True, check=False
        ).stdout.split():
            os.kill(int(line), signal.SIGKILL)

    def log(self, name: str) -> str:
        """Return what a process wrote."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def submit(self, *more: str, status: int | None = 0, **settings: Any) -> str:
        """Submit the heart federation and return the job's name (or what was said, where it is refused)."""
        file = self.write_heart(**settings)
        done = self.run(
            "job",
            "submit",
            str(file),
            "--kit",
            str(self.user()),
            "--purpose",
            "a test",
            "--json",
            *more,
            status=status,
        )
        found = json.loads(done.stdout)
        return str(found["run"]) if status == 0 else str(found["error"]["code"])

    def write_heart(self, **settings: Any) -> Path:
        """Write the heart federation with these settings and return its file."""
        return self.write(HEART.format(**{"rounds": 3, "epsilon": 3.0, "wait_s": 30, **settings}))

    def write(self, federation: str) -> Path:
        """Write a federation file."""
        file = self.folder / "federation.toml"
        file.write_text(federation)
        return file

    def submit_file(self, federation: str) -> str:
        """Submit a federation and return the job's name."""
        file = str(self.write(federation))
        return str(
            json.loads(self.run("job", "submit", file, "--kit", str(self.user()), "--json").stdout)["run"]
        )

    def processes(self) -> Mapping[str, subprocess.Popen[bytes]]:
        """Return the processes that were started, by name."""
        return self._processes

    def job(self, run: str) -> Mapping[str, Any]:
        """Return where a job stands."""
        with JobsClient(f"127.0.0.1:{self.jobs}", load_kit(self.user(), Role.USER)) as client:
            return vars(next(one for one in client.jobs() if one.run == run))

    def ended(self, run: str, seconds: float = 900) -> Mapping[str, Any]:
        """Wait for a job's end and return how it ended."""
        end = time.monotonic() + seconds
        while True:
            with suppress(PeersMissing):  # the server may be down for a while: a test may have killed it
                if (job := self.job(run))["ended"] is not None:
                    return job
            assert time.monotonic() < end, f"{self.log('server')[-3000:]}\n{self.work_log(run)[-3000:]}"
            time.sleep(0.5)

    def events(self, run: str) -> list[dict[str, Any]]:
        """Return a run's events so far."""
        path = self.server / "runs" / run / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def server_log(self) -> str:
        """Return what the server and its jobs wrote."""
        logs = sorted((self.server / "state" / "logs").glob("*.log"))
        return self.log("server") + "".join(path.read_text(errors="replace") for path in logs)

    def work_log(self, run: str) -> str:
        """Return what a job's process wrote."""
        path = self.server / "state" / "logs" / f"{run}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"{what}: {self.log(what)[-3000:]}\n{self.log('server')[-2000:]}"
            time.sleep(0.2)


@contextmanager
def deployed(
    folder: Path, sites: Sequence[str], *, cap: float = 10.0, door: bool = True
) -> Iterator[Deployment]:
    """Give a consortium that runs."""
    with Deployment(folder, sites, cap=cap, door=door) as one:
        one.start_all()
        yield one


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
