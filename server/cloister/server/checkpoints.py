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
    """

    round_number: int
    digest: str
    layout: str
    events_offset: int
    arrays: Arrays
    best: Best | None = field(default=None)


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint`` whole and remove those that are neither among the newest two nor the best."""
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

    def newest(self, *, digest: str, layout: str) -> Checkpoint | None:
        """Return the newest checkpoint, or ``None`` when there is none.

        Raises:
            IntegrityError: it cannot be read, or belongs to another federation file or model.
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
            return Checkpoint(**{**state, "best": best}, arrays=arrays)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"checkpoint '{path.name}' cannot be read ({type(error).__name__})",
                remedy="remove that file: the one before it is used then",
                code="checkpoint-unreadable",
            ) from None

    def _path(self, round_number: int) -> Path:
        return self._folder / f"round-{round_number:06d}.safetensors"

    def _rounds(self) -> list[int]:
        return [int(match[1]) for path in self._folder.iterdir() if (match := _NAME.fullmatch(path.name))]


def _without_arrays(checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint(**{**checkpoint.__dict__, "arrays": {}})
