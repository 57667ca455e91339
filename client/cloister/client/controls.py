"""SCAFFOLD's control variate of a site, kept from round to round (Karimireddy et al. 2020, Algorithm 1).

A real site keeps it in a file, so that it survives the site's process; a simulation in the state of Flower's context.

Formal guarantees:

- A control of one run is never used in another: the server chooses which Flower context a message comes in, and not which run it is of.
- In a file, a round that is asked for again begins with the control that it began with before: what a site keeps is that of before its newest
  round and that of after it.

==================================================  ====================================================================
case                                                outcome
==================================================  ====================================================================
nothing is kept                                     zeros: said in the site's own log, but for round 1
a round before the newest (the server went back)    zeros, said in the site's own log
a file that is damaged, or of another model         ``IntegrityError`` (control-store): nothing is trained
a run that is over                                  ``IntegrityError`` (run-over)
==================================================  ====================================================================
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Protocol

import numpy as np
from flwr.app import ArrayRecord, Context
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cloister.client.protecting import MakeArray
from cloister.client.run_files import RunFiles
from cloister.core import protocol
from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole
from cloister.core.update import Vector

__all__ = ["ContextControls", "Controls", "FileControls"]

_LOG = logging.getLogger("cloister.client.controls")


class Controls(Protocol):
    """Where the control of one run is kept."""

    def read(self, round_number: int, size: int) -> Vector:
        """Return the control that a round begins with: (size,) float32."""
        ...

    def keep(self, round_number: int, *, before: Vector, after: Vector) -> None:
        """Keep the control that a round ended with; ``before``: that which it began with."""
        ...


class ContextControls:
    """In the state of a Flower context: the newest run's.

    Args:
        context: Flower's.
        run: names the run.
        make_array: how a flat vector becomes a Flower ``Array``.
    """

    def __init__(self, context: Context, run: str, make_array: MakeArray) -> None:
        self._state, self._run, self._make_array = context.state, run, make_array

    def read(self, round_number: int, size: int) -> Vector:  # noqa: ARG002 - as the protocol has it
        """Return what was kept last; zeros where nothing was."""
        kept = self._state.array_records.get(protocol.CONTROL)
        if kept is not None and self._run in kept:
            stored: Vector = kept[self._run].numpy()
            return stored
        return np.zeros(size, dtype=np.float32)

    def keep(self, round_number: int, *, before: Vector, after: Vector) -> None:  # noqa: ARG002 - as above
        """Keep ``after``, in the place of whatever was kept."""
        kept = ArrayRecord()
        kept[self._run] = self._make_array(after)
        self._state[protocol.CONTROL] = kept


class FileControls:
    """In a file of the site's own, mode 0600, written whole.

    Args:
        beside: where the site keeps its files of runs.
        run: names the run.
        durable: whether it must survive a power cut.
    """

    def __init__(self, beside: Path, run: str, *, durable: bool = True) -> None:
        self._run = run
        self._files = RunFiles(beside, run, durable=durable)
        self._path = self._files.path("control", "safetensors")

    def read(self, round_number: int, size: int) -> Vector:
        """Return the control that a round begins with.

        Raises:
            IntegrityError: (control-store, session-store, run-over) see the table.
        """
        with self._files.alone():
            kept = self._kept(size)
        if kept is not None and kept[0] < round_number:
            return kept[2]
        if kept is not None and kept[0] == round_number:
            return kept[1]
        if kept is not None or round_number > 1:
            why = "no control is kept" if kept is None else f"that of round {kept[0]} is kept"
            _LOG.warning(
                "round %d of run %s begins with a control variate of zeros: %s", round_number, self._run, why
            )
        return np.zeros(size, dtype=np.float32)

    def keep(self, round_number: int, *, before: Vector, after: Vector) -> None:
        """Keep both, for this round and the next.

        Raises:
            StorageError: they could not be written; nothing may leave.
        """
        arrays = {"before": np.ascontiguousarray(before), "after": np.ascontiguousarray(after)}
        about = json.dumps({"run": self._run, "round": round_number})
        with self._files.alone():
            write_whole(
                self._path,
                save(arrays, metadata={"cloister": about}),
                mode=0o600,
                durable=self._files.durable,
            )

    def _kept(self, size: int) -> tuple[int, Vector, Vector] | None:
        """Return the newest round, and its control before and after it; ``None`` where nothing is kept."""
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="np") as file:
                about = json.loads(file.metadata()["cloister"])
                before, after = file.get_tensor("before"), file.get_tensor("after")
            number = about["round"]
            fits = type(number) is int and about["run"] == self._run
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            raise self._unfit() from None
        if not fits or any(one.dtype != np.float32 or one.shape != (size,) for one in (before, after)):
            raise self._unfit()
        return number, before, after

    def _unfit(self) -> IntegrityError:
        return IntegrityError(
            f"the control variate that this site keeps of the run is damaged: '{self._path}'",
            remedy="restore the file; or remove it, and the site begins with zeros",
            code="control-store",
        )
