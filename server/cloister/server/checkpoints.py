"""Checkpoints: all that a run needs to go on, in one file that is written whole or not at all.

A checkpoint is a safetensors file: the flat model, the server optimiser's arrays, SCAFFOLD's control and, in a simulation, what
the sites keep between rounds; the rest is JSON in its metadata. Randomness is keyed by the round and needs no state. The newest
two are kept, and the best.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole

#: What a part of the fingerprint stands for, in words.
_PARTS = {"data": "the data", "code": "the task's code", "versions": "the versions of Cloister and torch"}

__all__ = ["Best", "Checkpoint", "CheckpointStore"]

Arrays = dict[str, npt.NDArray[Any]]
_KEPT = 2
_NAME = re.compile(r"round-(\d{6,})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best round so far and what it was judged by (larger is better)."""

    round_number: int
    by: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run after ``round_number`` rounds.

    Attributes:
        round_number: rounds done (0: the model as it was built).
        digest: the federation file's digest; a checkpoint of another federation is refused.
        layout: the model layout's digest.
        events_offset: length of ``events.jsonl`` at this point; what was written after it is dropped on resume.
        arrays: flat arrays by name; ``model`` is (size,) float32.
        best: the best round so far.
        fingerprint: what the run computes with beside the two digests, as ``name=value`` parts with spaces between them
            (``data``, ``code``, ``versions``); empty: not known.
    """

    round_number: int
    digest: str
    layout: str
    events_offset: int
    arrays: Arrays
    best: Best | None = field(default=None)
    fingerprint: str = ""


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint`` whole and remove those that are neither among the newest two nor the best.

        Raises:
            StorageError: the disk is full or refuses; the checkpoints before it stand.
        """
        state = {key: value for key, value in asdict(_without_arrays(checkpoint)).items() if key != "arrays"}
        arrays = {name: np.ascontiguousarray(array) for name, array in checkpoint.arrays.items()}
        write_whole(
            self._path(checkpoint.round_number), save(arrays, metadata={"cloister": json.dumps(state)})
        )
        keep = set(sorted(self._rounds())[-_KEPT:]) | (
            {checkpoint.best.round_number} if checkpoint.best else set()
        )
        for number in self._rounds():
            if number not in keep:
                self._path(number).unlink(missing_ok=True)

    def newest(
        self, *, digest: str, layout: str, size: int | None = None, fingerprint: str = ""
    ) -> Checkpoint | None:
        """Return the newest checkpoint, or ``None`` when there is none.

        Args:
            digest: the federation file's.
            layout: the model layout's.
            size: length of the model's vector, checked where it is given.
            fingerprint: what this run computes with; compared where both sides know it.

        Raises:
            IntegrityError: it cannot be read, holds no such model, or belongs to another federation file, model, data, task
                code or version: it would go on to another result without a word.
        """
        rounds = sorted(self._rounds())
        if not rounds:
            return None
        found = self.load(rounds[-1])
        for name, have, want in (
            ("federation file", found.digest, digest),
            ("model layout", found.layout, layout),
        ):
            if have != want:
                raise IntegrityError(
                    f"checkpoint {self._path(rounds[-1]).name} belongs to another {name}",
                    remedy="resume with the folder's own federation.toml and the same task, or start a new run",
                    code="checkpoint-differs",
                )
        model = found.arrays.get("model")
        if (
            model is None
            or model.dtype != np.float32
            or model.shape != (model.size if size is None else size,)
        ):
            raise IntegrityError(
                f"checkpoint '{self._path(rounds[-1]).name}' does not hold the model",
                remedy="remove that file: the one before it is used then",
                code="checkpoint-unreadable",
            )
        if changed := _changed(found.fingerprint, fingerprint):
            raise IntegrityError(
                f"{' and '.join(changed)} changed since round {found.round_number} of this run",
                remedy="bring back what it was and resume, or start a new run",
                code="checkpoint-differs",
            )
        return found

    def load(self, round_number: int) -> Checkpoint:
        """Return the checkpoint of one round.

        Raises:
            IntegrityError: it cannot be read.
        """
        path = self._path(round_number)
        try:
            with safe_open(path, framework="np") as file:
                state: Mapping[str, Any] = json.loads(file.metadata()["cloister"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            best = Best(**state["best"]) if state["best"] else None
            return _checked(Checkpoint(**{**state, "best": best}, arrays=arrays), round_number)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"checkpoint '{path.name}' cannot be read ({type(error).__name__})",
                remedy="remove that file: the one before it is used then",
                code="checkpoint-unreadable",
            ) from None

    def best(self) -> Checkpoint | None:
        """Return the checkpoint of the best round, or the newest where none was judged; ``None`` when there is none.

        Raises:
            IntegrityError: it cannot be read.
        """
        rounds = sorted(self._rounds())
        if not rounds:
            return None
        newest = self.load(rounds[-1])
        return newest if newest.best is None else self.load(newest.best.round_number)

    def _path(self, round_number: int) -> Path:
        return self._folder / f"round-{round_number:06d}.safetensors"

    def _rounds(self) -> list[int]:
        try:
            return [int(match[1]) for path in self._folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        except OSError as error:
            raise IntegrityError(
                f"cannot read the checkpoints' folder '{self._folder}': {error.strerror}",
                remedy="restore the folder, or start a new run",
                code="run-folder",
            ) from None


def _checked(found: Checkpoint, round_number: int) -> Checkpoint:
    if found.round_number != round_number:
        raise ValueError("round_number")
    if not isinstance(found.events_offset, int) or not isinstance(found.fingerprint, str):
        raise TypeError("events_offset or fingerprint")
    return found


def _changed(then: str, now: str) -> list[str]:
    """Return in words the parts that differ between two fingerprints, where both are known."""
    if not then or not now or then == now:
        return []
    old, new = (dict(part.partition("=")[::2] for part in text.split()) for text in (then, now))
    return [_PARTS.get(name, name) for name in sorted(old.keys() | new) if old.get(name) != new.get(name)]


def _without_arrays(checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint(**{**checkpoint.__dict__, "arrays": {}})
