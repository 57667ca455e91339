"""What ``aggregation.rule`` may say, and how many updates each of its stages needs for f lying sites.

A pipeline is read left to right: steps that change the updates, then one rule that makes a direction of them, as in
``"arc | nnm | trimmed-mean"``. A stage may take one number in brackets: ``bucketing(2)``. This module knows the words and the
arithmetic of (n, f); the stages themselves are `cloister.strategies.robust`.

====================  =====  ==============================  =====================================================
stage                 is a   number in brackets              needs, for f > 0 lying among n updates
====================  =====  ==============================  =====================================================
mean                  rule                                   f = 0: one lying site moves it anywhere
median                rule                                   n ≥ 2f + 1
trimmed-mean          rule                                   n ≥ 2f + 1
geometric-median      rule                                   n ≥ 2f + 1
krum, multi-krum      rule                                   n ≥ 2f + 3
bulyan                rule                                   n ≥ 4f + 3
centered-clipping     rule   radius (left out: it adapts)    n ≥ 2f + 1
norm-bound            both   bound on the norm               n ≥ 2f + 1
fltrust               rule                                   n ≥ f + 1, and an update that the server trusts
dnc                   rule                                   n ≥ 2f + 1
arc, nnm              step                                   n ≥ 2f + 1
bucketing             step   updates a bucket                what follows needs of ⌈n / s⌉ buckets, still with f
====================  =====  ==============================  =====================================================

``norm-bound`` ends a pipeline as the mean of the clipped updates, and is a step anywhere else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cloister.core.spec.refusals import nearest

__all__ = ["STAGES", "Kind", "Stage", "fewest_rows", "pipeline_text", "read_pipeline"]

_WRITTEN = re.compile(r"([a-z-]+)(?:\(\s*([0-9.eE+-]+)\s*\))?", re.ASCII)
_LARGEST = 1e12
_MOST_STAGES = 8


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the file may say of one kind of stage.

    Attributes:
        role: whether it may end a pipeline (``rule``), may not (``step``), or both.
        least: the fewest updates it needs by f, or ``None`` where no number is enough.
        number: what the number in brackets is; empty: it takes none.
        whole: whether that is a whole number.
        needed: whether it must be given.
        uses: whether what it does depends on f.
    """

    role: Literal["rule", "step", "both"]
    least: Callable[[int], int | None]
    number: str = ""
    whole: bool = False
    needed: bool = False
    uses: bool = False


def _majority(f: int) -> int:
    return 2 * f + 1


STAGES: dict[str, Kind] = {
    "mean": Kind(role="rule", least=lambda f: None if f else 1),
    "median": Kind(role="rule", least=_majority),
    "trimmed-mean": Kind(role="rule", least=_majority, uses=True),
    "geometric-median": Kind(role="rule", least=_majority),
    "krum": Kind(role="rule", least=lambda f: 2 * f + 3, uses=True),
    "multi-krum": Kind(role="rule", least=lambda f: 2 * f + 3, uses=True),
    "bulyan": Kind(role="rule", least=lambda f: 4 * f + 3, uses=True),
    "centered-clipping": Kind(role="rule", least=_majority, number="radius"),
    "norm-bound": Kind(role="both", least=_majority, number="bound on the norm", needed=True),
    "fltrust": Kind(role="rule", least=lambda f: f + 1),
    "dnc": Kind(role="rule", least=_majority, uses=True),
    "arc": Kind(role="step", least=_majority, uses=True),
    "nnm": Kind(role="step", least=_majority, uses=True),
    "bucketing": Kind(role="step", least=_majority, number="updates a bucket", whole=True, needed=True),
}


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline as it is written.

    Attributes:
        name: one of `STAGES`.
        number: what stands in brackets, or ``None``.
    """

    name: str
    number: float | None = None

    @property
    def kind(self) -> Kind:
        """What the file may say of it."""
        return STAGES[self.name]

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}({self.number:.12g})"


def read_pipeline(text: str) -> tuple[Stage, ...]:
    """Read a pipeline.

    Raises:
        ValueError: an unknown stage (the nearest is offered), a number that is missing, not wanted or out of range, a step at the end, or
            a rule before it.
    """
    parts = [part.strip() for part in text.split("|")]
    if len(parts) > _MOST_STAGES:
        raise ValueError(f"a pipeline has at most {_MOST_STAGES} stages, and this one has {len(parts)}")
    stages = tuple(_read_stage(part) for part in parts)
    *steps, last = stages
    for stage in steps:
        if stage.kind.role == "rule":
            raise ValueError(f"'{stage}' makes one update of all: nothing can come after it; put it last")
    if last.kind.role == "step":
        raise ValueError(
            f"'{last}' changes updates and does not join them: end with a rule, for example '{pipeline_text(stages)} | trimmed-mean'"
        )
    return stages


def pipeline_text(stages: tuple[Stage, ...]) -> str:
    """Write a pipeline as `read_pipeline` reads it, in one way only."""
    return " | ".join(map(str, stages))


def fewest_rows(stages: tuple[Stage, ...], f: int) -> int | None:
    """Return the fewest updates with which every stage keeps what it says of ``f`` lying sites; ``None``: no number is enough.

    With more updates than that it holds as well.
    """
    needed: int | None = 1
    for stage in reversed(stages):
        own = stage.kind.least(f)
        if needed is None or own is None:
            return None
        if stage.name == "bucketing" and stage.number is not None:
            needed = (needed - 1) * int(stage.number) + 1  # ⌈n / s⌉ ≥ needed
        needed = max(needed, own)
    return needed


def _read_stage(part: str) -> Stage:
    found = _WRITTEN.fullmatch(part)
    if found is None or found[1] not in STAGES:
        raise ValueError(
            f"'{part[:40]}' is no stage of a rule{nearest(found[1] if found else part[:40], STAGES)}"
        )
    name, written = found[1], found[2]
    kind = STAGES[name]
    if written is None:
        if kind.needed:
            raise ValueError(f"'{name}' needs its {kind.number} in brackets, for example {name}(2)")
        return Stage(name)
    if not kind.number:
        raise ValueError(f"'{name}' takes no number in brackets; write '{name}'")
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not 0 < number <= _LARGEST or (kind.whole and number != int(number)):
        raise ValueError(
            f"'{part}': the {kind.number} should be a {'whole' if kind.whole else 'positive'} number of at most {_LARGEST:g}"
        )
    return Stage(name, number)
