"""Other places that a run's figures go to: TensorBoard files and an MLflow tracking server.

Both are sinks of the event bus and optional: a tracker that fails is dropped with a warning and the run goes on. Figures go
under the same names in both: ``central/accuracy``, ``sites/loss``, ``site/<name>/accuracy``, ``round/bytes_up``, ``time/train``;
the step is the round. Each site's own figures are sent only in federations of up to `SITES_TRACKED` sites.
"""

from __future__ import annotations

import hashlib
import os
import queue
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.core.errors import CloisterError, SpecError
from cloister.core.spec import Tracking

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from cloister.server.events import Sink

__all__ = ["SITES_TRACKED", "MlflowSink", "TensorBoardSink", "figures", "tracking_sinks"]

#: In larger federations a site's own figures stay in the report.
SITES_TRACKED = 100

_CLOSE_WAIT_S = 15.0
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\- /]")


def tracking_sinks(tracking: Tracking, folder: Path) -> list[Sink]:
    """Return the trackers that the federation file asks for.

    Args:
        tracking: the ``[tracking]`` table.
        folder: the run folder; TensorBoard's files go into its ``tensorboard``.

    Raises:
        SpecError: a tracker's package is not installed; the message names the extra.
    """
    sinks: list[Sink] = []
    if tracking.tensorboard:
        sinks.append(TensorBoardSink(folder / "tensorboard"))
    if tracking.mlflow is not None:
        sinks.append(MlflowSink(tracking.mlflow, run_name=folder.name))
    return sinks


def figures(event: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the figures of an event by name; one that is not a number is left out."""
    if event["kind"] == "evaluation":
        parts = event["where"].split(":", 2 if event["where"].startswith("baseline:") else 1)
        prefix = "/".join(_name(part) for part in parts)
        for name, value in {**event["metrics"], "loss": event["loss"]}.items():
            if value is not None:
                yield f"{prefix}/{_name(name)}", float(value)
    elif event["kind"] == "round":
        for name in ("cohort", "answered", "loss", "update_norm", "bytes_down", "bytes_up"):
            if event.get(name) is not None:
                yield f"round/{name}", float(event[name])
        for phase, seconds in (event.get("seconds") or {}).items():
            if seconds is not None:
                yield f"time/{_name(phase)}", float(seconds)
    elif event["kind"] == "privacy" and event["epsilon"] is not None:
        yield f"privacy/{_name(event.get('site') or 'epsilon')}", float(event["epsilon"])


class TensorBoardSink:
    """Writes TensorBoard event files into a folder; after a resume, steps that were taken back are purged.

    Raises:
        SpecError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        _need("tensorboard", "tracking.tensorboard = true", extra="tensorboard")
        self._folder = folder
        self._purge: int | None = None
        self._writer: SummaryWriter | None = None
        self._skip = _SiteFilter()

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Learn from the events before a resume which steps stand."""
        last = 0
        for event in events:
            self._skip.look(event)
            last = max(last, event["round"])
        self._purge = last + 1

    def handle(self, event: Mapping[str, Any], /) -> None:
        """Write the figures of one event."""
        self._skip.look(event)
        if self._skip.skips(event):
            return
        for name, value in figures(event):
            self._open().add_scalar(name, value, global_step=event["round"])
        if event["kind"] == "end":
            self._open().flush()

    def close(self) -> None:
        """Write what is left and close the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge)
        return self._writer


class MlflowSink:
    """Sends figures to an MLflow tracking address, from a thread of its own so that a slow server never slows a round.

    The experiment is the federation's name, the run the folder's name; a resume goes on with the same MLflow run. An address
    of a folder (``file:…``) is allowed though MLflow calls that store legacy. What the thread fails at is raised by the next
    `handle` or by `close`, so the bus drops this sink.

    Raises:
        SpecError: MLflow is not installed.
    """

    def __init__(self, address: str, *, run_name: str, wait_s: float = _CLOSE_WAIT_S) -> None:
        _need("mlflow", f"tracking.mlflow = '{address}'", extra="mlflow")
        if "://" not in address or address.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._address = address
        self._run_name = _name(run_name)
        self._wait_s = wait_s
        self._skip = _SiteFilter()
        self._queue: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Learn from the events before a resume which MLflow run to go on with."""
        for event in events:
            self._skip.look(event)
            if event["kind"] == "run":
                self._put({**event, "resumed_from": 0})

    def handle(self, event: Mapping[str, Any], /) -> None:
        """Queue one event.

        Raises:
            CloisterError: an earlier event could not be sent.
        """
        self._check()
        self._skip.look(event)
        if not self._skip.skips(event) and event["kind"] in ("run", "round", "evaluation", "privacy", "end"):
            self._put(event)

    def close(self) -> None:
        """Send what is left, for at most ``wait_s`` seconds.

        Raises:
            CloisterError: not everything could be sent.
        """
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join(self._wait_s)
        if self._thread.is_alive():
            raise CloisterError(f"MLflow did not take everything within {self._wait_s:g} s", code="tracking")
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise CloisterError(
                f"MLflow refused: {type(self._failure).__name__}",
                remedy="check tracking.mlflow and its server",
                code="tracking",
            )

    def _put(self, event: Mapping[str, Any]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="cloister-mlflow", daemon=True)
            self._thread.start()
        self._queue.put(event)

    def _work(self) -> None:
        try:
            sender = _Sender(self._address, self._run_name)
            while (event := self._queue.get()) is not None:
                sender.send(event)
            sender.finish()
        except Exception as error:  # noqa: BLE001 - told by the next handle() or close()
            self._failure = error


class _Sender:
    """Talks to MLflow; lives in the sink's thread."""

    def __init__(self, address: str, run_name: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=address)
        self._run_name = run_name
        self._run = ""
        self._batch: list[Any] = []
        self._status = "KILLED"

    def finish(self) -> None:
        """Send what is left and say how the run ended."""
        if self._run:
            self._flush()
            self._client.set_terminated(self._run, self._status)

    def send(self, event: Mapping[str, Any]) -> None:
        """Send one event; figures of a round go together."""
        from mlflow.entities import Metric

        kind = event["kind"]
        if kind == "run":
            self._begin(event)
        now = time.time_ns() // 1_000_000
        self._batch += [Metric(name, value, now, event["round"]) for name, value in figures(event)]
        if kind in ("round", "end") or len(self._batch) > 500:
            self._flush()
        if kind == "end":
            self._status = {"done": "FINISHED", "failed": "FAILED"}.get(event["status"], "KILLED")

    def _begin(self, event: Mapping[str, Any]) -> None:
        if self._run:
            return
        found = self._client.get_experiment_by_name(event["name"])
        experiment = found.experiment_id if found else self._client.create_experiment(event["name"])
        if event.get("resumed_from") is not None:
            wanted = f"tags.cloister_run = '{self._run_name}'"
            known = self._client.search_runs([experiment], filter_string=wanted, max_results=1)
            if known:
                self._run = known[0].info.run_id
                self._client.update_run(self._run, status="RUNNING")
                return
        tags = {"cloister_run": self._run_name}
        self._run = self._client.create_run(experiment, run_name=self._run_name, tags=tags).info.run_id
        for key in ("rounds", "sites", "seed", "engine", "protection", "rule", "parameters", "digest"):
            if event.get(key) is not None:
                self._client.log_param(self._run, key, event[key])

    def _flush(self) -> None:
        while self._batch:
            self._client.log_batch(self._run, metrics=self._batch[:1000])
            del self._batch[:1000]


class _SiteFilter:
    """Leaves out each site's own figures where there are many sites."""

    def __init__(self) -> None:
        self._many = False

    def look(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "run":
            self._many = event["sites"] > SITES_TRACKED

    def skips(self, event: Mapping[str, Any]) -> bool:
        own = (event["kind"] == "evaluation" and ":" in event["where"]) or (
            event["kind"] == "privacy" and event.get("site")
        )
        return bool(self._many and own)


def _need(package: str, asked: str, *, extra: str) -> None:
    try:
        there = find_spec(package) is not None
    except ValueError:  # a module without a spec stands in its place
        there = False
    if not there:
        raise SpecError(
            f"{asked} needs the package '{package}', which is not installed",
            remedy=f"install it with: pip install 'cloister[{extra}]'; or leave that key out",
            code="extra-missing",
        )


def _name(text: str) -> str:
    """Return a name that both trackers take; one that had to change keeps apart by a part of its hash."""
    safe = _UNSAFE.sub("_", text)[:120]
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
