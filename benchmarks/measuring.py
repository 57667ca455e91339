"""What the benchmarks share: contestants in fresh processes, medians and ratios, and the record of where they were measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = [
    "Noise",
    "Ratio",
    "Run",
    "cores",
    "hand_in",
    "machine",
    "median",
    "options",
    "ratio",
    "run",
    "say",
    "table",
    "target_table",
]

_HERE = Path(__file__).resolve().parent
_SAMPLE_S = 0.5
#: Other programs' share of the cores above which figures are marked as unreliable.
_QUIET = 0.1


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one contestant did, by the monotonic clock in seconds.

    Attributes:
        spawned: when its process was started.
        ends: when each of its rounds ended.
        answer: all that it answered with.
    """

    spawned: float
    ends: list[float]
    answer: dict[str, Any]

    def rounds(self, warm: int) -> list[float]:
        """Return the seconds of each round after the first ``warm``."""
        return [
            after - before for before, after in zip(self.ends[warm - 1 :], self.ends[warm:], strict=False)
        ]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of two contestants that ran in turn: its median over the repetitions, and its extremes."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


class Noise:
    """How busy other programs kept the cores before each contestant started.

    Args:
        patience: seconds to wait for them to finish, each time.
    """

    def __init__(self, patience: float) -> None:
        self.samples: list[float] = []
        self._patience = patience

    def sample(self) -> None:
        """Look for half a second, in which this program does nothing; look again while others are busy and patience lasts."""
        deadline = time.monotonic() + self._patience
        while (busy := _busy()) is not None and busy > _QUIET and time.monotonic() < deadline:
            pass
        if busy is not None:
            self.samples.append(busy)

    def report(self) -> dict[str, Any]:
        """Return the samples and whether they spoil the figures."""
        busy = median(self.samples) if self.samples else None
        return {
            "busy_before": [round(sample, 3) for sample in self.samples],
            "unreliable": busy is None or busy > _QUIET,
        }


def options(description: str | None, *, repetitions: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument(
        "--repetitions",
        type=int,
        default=repetitions,
        help=f"times that each contestant runs, in turn ({repetitions})",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of the first repetition; the next has the next (1)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=0,
        metavar="S",
        help="seconds to wait before each contestant for other programs to leave the cores (0)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object on standard output, everything else on standard error",
    )
    parser.add_argument(
        "--doc",
        type=Path,
        metavar="FILE",
        help="also put the tables into this document, between the benchmark's two markers",
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    return parser


def run(
    script: str,
    arguments: Sequence[str],
    *,
    python: Sequence[str] = (sys.executable,),
    environment: Mapping[str, str] | None = None,
    limit_s: float = 1200,
) -> Run:
    """Run a contestant in a process of its own and return what it answered.

    Args:
        script: its file beside this one; it takes ``--result FILE`` and leaves a JSON object there.
        arguments: its other arguments.
        python: what runs it.
        environment: variables to set, beside this process's own.
        limit_s: seconds after which it and its children are killed.

    Raises:
        SystemExit: it failed; the message holds the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        result, said = Path(folder) / "result.json", Path(folder) / "said"
        command = [*python, str(_HERE / script), *arguments, "--result", str(result)]
        with said.open("wb") as output:
            spawned = time.monotonic()
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
            try:
                process.wait(limit_s)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise SystemExit(
                        f"{script} {' '.join(arguments)}: no answer after {limit_s:g} s\n{_end_of(said)}"
                    ) from None
                raise
        if process.returncode or not result.exists():
            raise SystemExit(
                f"{script} {' '.join(arguments)}: exit status {process.returncode}\n{_end_of(said)}"
            )
        answer = json.loads(result.read_text())
    return Run(spawned=spawned, ends=answer.get("ends", []), answer=answer)


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(statistics.median(values))


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Return the ratio of two contestants' figures, repetition by repetition."""
    found = [one / other for one, other in zip(above, below, strict=True)]
    return Ratio(median=median(found), least=min(found), most=max(found))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Return where and with what this was measured."""
    return {
        "cores": cores(),
        "processor": _processor(),
        "platform": platform.platform(),
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {
            name: _version(name) for name in ("cloister", "flwr", "ray", "tenseal", "torch", "numpy")
        }
        | {"python": platform.python_version()},
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = (
        "|"
        + "|".join(
            "-" * (width + 2) if not column else "-" * (width + 1) + ":"
            for column, width in enumerate(widths)
        )
        + "|"
    )
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def target_table(targets: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of targets (what, target, found, met)."""
    rows = [[t["what"], t["target"], f"{t['found']:.2f}", "met" if t["met"] else "MISSED"] for t in targets]
    return table(["target", "wanted", "found", ""], rows)


def say(text: str, *, end: str = "\n") -> None:
    """Tell how far it is, on standard error."""
    print(text, file=sys.stderr, end=end, flush=True)


def hand_in(
    given: argparse.Namespace, answer: Mapping[str, Any], text: str, *, missed: Sequence[str]
) -> None:
    """Print the result, put it into a document with ``--doc``, and with ``--check`` exit with 1 when a target was missed.

    Raises:
        SystemExit: a target was missed, or the document lacks the two markers.
    """
    if given.json:
        say(text)
        print(json.dumps(answer, indent=1))
    else:
        print(text)
    if given.doc is not None:
        _write_into(given.doc, answer, text)
    if given.check and missed:
        raise SystemExit("missed: " + "; ".join(missed))


def _write_into(document: Path, answer: Mapping[str, Any], text: str) -> None:
    """Replace what stands between a benchmark's two markers."""
    begin, end = (f"<!-- {answer['benchmark']}: {side} -->" for side in ("begin", "end"))
    before, found, rest = document.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{document} has no lines '{begin}' and '{end}'")
    here = answer["machine"]
    where = f"{here['processor']}, {here['cores']} cores; commit {here['commit'][:9]}{' with changes' if here['changed'] else ''}"
    document.write_text(f"{before}{begin}\n{text}\n\n({where}; {time.strftime('%Y-%m-%d')})\n{end}{after}")


def _busy() -> float | None:
    """Return the share of the machine's processor time that is used during half a second, where the system tells."""
    before = _ticks()
    time.sleep(_SAMPLE_S)
    after = _ticks()
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def _ticks() -> tuple[int, int] | None:
    """Return the machine's (busy, all) clock ticks so far."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=_HERE, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _end_of(said: Path) -> str:
    return "\n".join(said.read_text(errors="replace").splitlines()[-40:])
