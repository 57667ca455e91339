"""The seam of protected sums: one request to a cohort, one sum back, and nothing of any one site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

from cloister.core.update import Vector
from cloister.privacy.manifest import SumKind
from cloister.server.exchange import Answer
from cloister.server.replies import CheckedUpdate, Refused

__all__ = ["Given", "Heard", "Summed", "Summing", "size_of"]


class Given(Protocol):
    """Is told of every share of a sum as it arrives; may refuse it, for example for its ledger."""

    def __call__(
        self, name: str, answer: Answer, checked: CheckedUpdate | Refused
    ) -> CheckedUpdate | Refused:
        """Return ``checked``, or why it cannot be used."""
        ...


@dataclass
class Heard:
    """Who did not answer or was refused in a session, and the bytes that went to and fro."""

    missing: list[str] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0

    def lost(self, name: str, answer: Answer, why: Refused) -> None:
        """Note a site that is not in the sum."""
        if answer.reply is None:
            self.missing.append(name)
        else:
            self.refused.append({"site": name, "reason": str(why)})


@dataclass(frozen=True, kw_only=True)
class Summed:
    """What a session came to.

    Attributes:
        values: the sums by name; empty where too few sites were left, and then nobody has unmasked anything.
        count: how many sites are in them.
        heard: who is not.
        why: why there is no sum, where there is none.
        suspects: whose secret alone could not be rebuilt, so that there is none: it has shared garbage, or those that hold its shares lie.
        tried: with whom the round is to be tried again, where there is no sum. Of whom the sites were asked to open the sum: they open no other of the
            same round, but one that leaves enough of them out. Or who was still there, where nobody was asked yet.
    """

    values: dict[str, npt.NDArray[Any]]
    count: int
    heard: Heard
    why: str = ""
    suspects: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()


class Summing(Protocol):
    """Sums one vector of each site of a cohort under a protection."""

    def sum(
        self,
        kind: SumKind,
        number: int,
        cohort: list[int],
        *,
        vectors: Mapping[str, Vector],
        clip: float | None,
        given: Given,
    ) -> Summed:
        """Run one session.

        Args:
            kind: what is summed.
            number: the round.
            cohort: positions in the directory, ascending.
            vectors: what the sites are sent.
            clip: the round's clip, where it adapts.
            given: is told of each share.
        """
        ...


def size_of(fields: Mapping[str, Any]) -> int:
    """Return about how many bytes the fields of a message take."""
    return sum(_bytes(value) for value in fields.values())


def _bytes(value: Any) -> int:
    if isinstance(value, bytes | str):
        return len(value)
    return sum(map(_bytes, value)) if isinstance(value, list) else 8
