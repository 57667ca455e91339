"""Which rounds the key authority opened, and over whom: two sums of one round over different sites differ by what those sites sent.

Formal guarantee: of a run and a kind of sum, `OpenedRounds.check` lets pass a sum over the names N, in round r, of the model m, only if

- no later round was opened: r is the newest, or newer;
- if r was opened before, it was with m, over N;
- if m was opened before, in whatever round, it was over N.

So no two sums of a run and kind that were opened are of what different sets of sites make of one model. A run is what the server names
so: the same sites in a run of another name are not seen through. A group is no way around: all groups of a
round count as one, and the second would be refused (the server makes one). A sum that was opened and not released counts: its refusal
tells something, and over many sets that is how sums could be compared.

A line of an older version's record does not say of which model and over whom: its round is opened, over nobody knows whom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cloister.core.errors import IntegrityError
from cloister.privacy.manifest import Manifest

__all__ = ["OpenedRounds", "OpenedSum"]


@dataclass(frozen=True, kw_only=True)
class OpenedSum:
    """One line of the record.

    Attributes:
        run: of the session.
        serial: of the session.
        round_number: of the session.
        kind: what was summed.
        model: SHA-256 (hex) of what the sites were sent; empty where an older version wrote the line.
        names: `cohort_digest` of the names in the sum; empty where an older version wrote the line.
    """

    run: str
    serial: int
    round_number: int
    kind: str
    model: str
    names: str

    @classmethod
    def of(cls, manifest: Manifest, names: str) -> Self:
        """Return what the record says of a sum over the names whose digest is ``names``."""
        return cls(
            run=manifest.run,
            serial=manifest.serial,
            round_number=manifest.round_number,
            kind=manifest.kind,
            model=manifest.model,
            names=names,
        )

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Self:
        """Read a line of the record.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        return cls(
            run=str(line["run"]),
            serial=int(line["serial"]),
            round_number=int(line["round"]),
            kind=str(line["kind"]),
            model=str(line.get("model", "")),
            names=str(line.get("names", "")),
        )


class OpenedRounds:
    """The rounds of every run that were opened."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], OpenedSum] = {}
        self._models: dict[tuple[str, str, str], str] = {}

    def add(self, opened: OpenedSum) -> None:
        """Remember that a sum was opened."""
        newest = self._newest.get((opened.run, opened.kind))
        if newest is None or newest.round_number <= opened.round_number:
            self._newest[opened.run, opened.kind] = opened
        if opened.model:
            self._models[opened.run, opened.kind, opened.model] = opened.names

    def check(self, asked: OpenedSum) -> None:
        """Check that a sum may be opened after those before it.

        Raises:
            IntegrityError: (decryption-round) another sum of its round or of its model was opened, or a later round was.
        """
        newest = self._newest.get((asked.run, asked.kind))
        if newest is not None and asked.round_number < newest.round_number:
            raise _refused(asked, f"round {newest.round_number} was opened already, and no earlier one is")
        if newest is not None and asked.round_number == newest.round_number:
            if not newest.names:
                raise _refused(
                    asked, "the round was opened already, by a version that did not record over whom"
                )
            if asked.model != newest.model:
                raise _refused(asked, "the round was opened already, with another model")
            if asked.names != newest.names:
                raise _refused(asked, "the round was opened already, over other sites")
        if self._models.get((asked.run, asked.kind, asked.model), asked.names) != asked.names:
            raise _refused(asked, "the same model was opened already, over other sites")


def _refused(asked: OpenedSum, why: str) -> IntegrityError:
    return IntegrityError(
        f"the sum of round {asked.round_number} ({asked.kind}) of run '{asked.run}' is not opened: {why}; "
        "two sums could show one site's share",
        remedy="run the newest round again with the same model and the same sites, or begin a new run",
        code="decryption-round",
    )
