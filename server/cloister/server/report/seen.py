"""Who could see what during a run: the sentences of `cloister.core.exposure`, and beside them what stayed hidden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.core.exposure import exposure
from cloister.core.spec import FederationSpec

__all__ = ["Seer", "who_sees"]


@dataclass(frozen=True, kw_only=True)
class Seer:
    """One party and what it could see.

    Attributes:
        who: ``server``, ``other sites`` or ``outsiders``.
        sees: what lay open to it, one sentence an entry.
        hidden: what did not.
    """

    who: str
    sees: tuple[str, ...]
    hidden: str


def who_sees(spec: Mapping[str, Any]) -> tuple[Seer, ...]:
    """Return what each party could see under the effective federation file ``spec``; the same sentences as ``cloister check``."""
    said = exposure(FederationSpec.model_validate(spec))
    return (
        Seer(who="server", sees=said.server, hidden="the training records themselves"),
        Seer(
            who="other sites",
            sees=said.site,
            hidden="any single site's records, figures or update, unless all the others put theirs together",
        ),
        Seer(who="outsiders", sees=said.outsider, hidden="the records, and every single update"),
    )
