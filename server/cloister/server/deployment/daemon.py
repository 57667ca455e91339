"""The server of a consortium: the SuperLink, the job service, and a process for each job that is under way.

Formal guarantees:

- A job that was queued is run, or ends with a reason, whatever dies: state is on the disk before it is acted on, and a job that was ``running`` when
  this process died is started again from its last checkpoint.
- Not two processes work on one job: a run folder is locked by the one that writes to it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge

from cloister.core.errors import CloisterError
from cloister.server.deployment.parent import PARENT
from cloister.server.deployment.running import Office, check_job, open_office
from cloister.server.deployment.service import JobService
from cloister.server.deployment.store import Job, JobStore
from cloister.server.deployment.superlink import SuperLink
from cloister.server.deployment.work import outcome_path

__all__ = ["Daemon"]

_LOG = logging.getLogger("cloister.server.daemon")
_TICK_S = 0.2
#: Seconds that the SuperLink is waited for to let the sites in, and until that is tried again.
_READY_S, _READY_AGAIN_S = 30.0, 2.0
#: Seconds until a job is tried again: for want of sites or of the SuperLink, and while a site holds it for approval.
_AGAIN_S, _HELD_S = 10.0, 5.0
_KILLED = (-9, -15, 137, 143)


class Daemon:
    """Works the queue off until it is told to stop.

    Args:
        office: the server's own.
        superlink: whether to run the SuperLink too; else somebody else does.
    """

    def __init__(self, office: Office, *, superlink: bool = True) -> None:
        self._office = office
        self.store = JobStore(office.state / "jobs.sqlite")
        self._link = (
            SuperLink(office.kit, office.config.server.superlink, office.state) if superlink else None
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self.registry = CollectorRegistry()
        self._jobs = Gauge("cloister_server_jobs", "jobs by state", ["state"], registry=self.registry)
        self._started = Counter(
            "cloister_server_attempts", "processes started for jobs", registry=self.registry
        )
        self.service = JobService(
            office.config,
            office.kit,
            self.store,
            folder_of=office.run_folder,
            check=lambda federation, sites: check_job(office, federation, sites),
            stop=self._stop_process,
        )

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; jobs under way are left resumable."""
        for job in self.store.jobs(states=("running",)):
            _LOG.warning("job %s was under way when the server died: it goes on", job.run)
            self.store.wait(job.run, 0.0, "server-died", "the server died; the job goes on", counted=False)
        if self._link is not None:
            self._link.ensure()
        self.service.start()
        try:
            threading.Thread(target=self._admit, args=(stop,), name="admit", daemon=True).start()
            while not stop.wait(_TICK_S):
                self.tick()
        finally:
            self.service.stop()
            with self._lock:
                for process in self._processes.values():
                    process.terminate()
                for process in self._processes.values():
                    process.wait()
            if self._link is not None:
                self._link.stop()

    def tick(self) -> None:
        """Look at what runs, and start what is next."""
        if self._link is not None and self._link.ensure():
            _LOG.info("the SuperLink was started")
        for run, process in list(self._processes.items()):
            status = process.poll()
            if status is not None:
                with self._lock:
                    del self._processes[run]
                self._ended(self.store.job(run), status)
        while len(self._processes) < self._office.config.jobs.at_once:
            job = self.store.next()
            if job is None:
                break
            self._start(job)
        for state in ("queued", "waiting", "running", "done", "failed", "stopped"):
            self._jobs.labels(state=state).set(len(self.store.jobs(states=(state,))))

    def health(self) -> dict[str, Any]:
        """Return how the server is."""
        link = self._link is None or self._link.alive
        return {"ok": link, "superlink": link, "running": sorted(self._processes)}

    def _admit(self, stop: threading.Event) -> None:
        """Let the sites in, so that they can connect before there is a job: as soon as the SuperLink answers."""
        told = False
        while not stop.is_set():
            try:
                desk = self._office.desk()
                desk.wait_ready(_READY_S, alive=lambda: not stop.is_set())
                desk.admit(open_office(self._office.folder).node_keys.values())  # who is a member now
            except (CloisterError, httpx.HTTPError, OSError) as error:
                if not told and not stop.is_set():
                    _LOG.error("%s; it is tried again, and no site is let in before", error)
                told = True
                stop.wait(_READY_AGAIN_S)
            else:
                return

    def _start(self, job: Job) -> None:
        self.store.begin(job.run)
        log = self._office.state / "logs"
        log.mkdir(mode=0o700, exist_ok=True)
        with (log / f"{job.run}.log").open("ab") as file:
            process = subprocess.Popen(  # noqa: S603 - our own arguments
                [sys.executable, "-m", "cloister.server.deployment.work", str(self._office.folder), job.run],
                env={
                    **os.environ,
                    PARENT: str(os.getpid()),
                    "FLWR_TELEMETRY_ENABLED": "0",
                    "FLWR_DISABLE_UPDATE_CHECK": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        with self._lock:
            self._processes[job.run] = process
        self._started.inc()
        _LOG.info("job %s: attempt %d", job.run, job.attempts + 1)

    def _ended(self, job: Job, status: int) -> None:
        if job.state == "stopped":
            return
        said = _said(outcome_path(self._office.state, job.run))
        code, message = said.get("code", ""), said.get("message", "")
        _LOG.info("job %s: %s", job.run, code or f"its process ended with status {status}")
        if status == 0:
            self.store.end(job.run, "done", code)
        elif code.startswith("wait-"):  # a site wants to be asked again later
            self.store.wait(job.run, _HELD_S, code, message, counted=False)
        elif status in _KILLED or said.get("kind") == "PeersMissing" or not said:
            code, message = code or "killed", message or f"its process ended with status {status}"
            if job.attempts >= self._office.config.jobs.attempts:
                self.store.end(job.run, "failed", code, message)
            else:
                self.store.wait(job.run, 0.5 if status in _KILLED else _AGAIN_S, code, message)
        else:
            self.store.end(job.run, "failed", code, message)

    def _stop_process(self, run: str) -> None:
        with self._lock:
            process = self._processes.get(run)
        if process is not None:
            process.terminate()


def _said(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
