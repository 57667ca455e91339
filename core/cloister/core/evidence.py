"""What a check of a run returns: evidence, a verdict, and what it could have seen. The seam for checks of one's own.

A check is a function of a subject (`cloister.server.audit.subject.AuditSubject`: the run's model, its task, the records at hand) that returns a
`Finding`. A part, or a package of a user's own, names it in the entry point group ``cloister.checks``: the entry point's name is the check's, its
value the function. ``cloister audit model`` and ``cloister audit run`` find it there::

    # pyproject.toml
    [project.entry-points."cloister.checks"]
    weights = "hospital.checks:weights"

    # hospital/checks.py
    def weights(subject):
        largest = max(float(p.abs().max()) for p in subject.model.parameters())
        return Finding(
            name="weights",
            verdict="warn" if largest > 100 else "pass",
            sentence=f"The largest weight is {largest:.3g}.",
            figures={"largest": largest},
            power="It could have shown a weight above 100; it says nothing of what the model does.",
        )

    weights.title = "Size of the weights"     # optional: how a page calls it

Formal guarantees:

- A verdict is one of four, and ``no power`` is never ``pass``: where a check could not have shown a fault, it says so.
- A finding that leaves `Finding.as_dict` is strict JSON: a number that is not finite becomes ``null``; `Finding.from_dict` gives it back.
- No finding holds a record: figures, names of sites and, where a site made it for itself, places of records.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any, Literal, get_args

from cloister.core.errors import CloisterError, IntegrityError

__all__ = ["CHECKS", "Finding", "Verdict", "installed_checks", "plain_figures"]

Verdict = Literal["pass", "warn", "fail", "no power"]
#: The entry point group.
CHECKS = "cloister.checks"

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_ARTEFACT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERDICTS = get_args(Verdict)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        name: the check's name: lower-case letters, digits and hyphens.
        verdict: ``pass``: it looked, could have seen, and saw nothing; ``warn``: somebody should look; ``fail``: a fault was shown;
            ``no power``: it could not have shown one.
        sentence: what was found, for a reader who is no expert.
        figures: what an expert recomputes it from: plain data, with seeds and intervals.
        power: what the check could have shown and could not.
        seconds: how long it took.
        artefacts: names of files beside ``<name>.json``.

    Raises:
        CloisterError: a field has no such value (code ``finding``).
    """

    name: str
    verdict: Verdict
    sentence: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    power: str
    seconds: float = 0.0
    artefacts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = ""
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            wrong = "its name is none: lower-case letters, digits and hyphens"
        elif self.verdict not in _VERDICTS:
            wrong = f"its verdict is none of {', '.join(_VERDICTS)}"
        elif not all(isinstance(text, str) and text.strip() for text in (self.sentence, self.power)):
            wrong = "it has no sentence, or does not say its power"
        elif not isinstance(self.seconds, int | float) or not math.isfinite(self.seconds) or self.seconds < 0:
            wrong = "its seconds are no duration"
        elif not all(isinstance(name, str) and _ARTEFACT.fullmatch(name) for name in self.artefacts):
            wrong = "an artefact's name is no plain file name"
        elif not isinstance(self.figures, Mapping):
            wrong = "its figures are no mapping"
        if wrong:
            raise CloisterError(
                f"the finding of check '{self.name}': {wrong}", remedy="mend the check", code="finding"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "figures": plain_figures(self.figures),
            "power": self.power,
            "seconds": round(self.seconds, 3),
            "artefacts": list(self.artefacts),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Finding:
        """Return the finding that `as_dict` wrote.

        Raises:
            IntegrityError: it is none.
        """
        try:
            return cls(
                name=value["name"],
                verdict=value["verdict"],
                sentence=value["sentence"],
                figures=value["figures"],
                power=value["power"],
                seconds=value["seconds"],
                artefacts=tuple(value["artefacts"]),
            )
        except (KeyError, TypeError, CloisterError):
            raise IntegrityError(
                "this is no finding of a check",
                remedy="remove the file and audit again",
                code="finding-malformed",
            ) from None

    def took(self, seconds: float) -> Finding:
        """Return the same finding with its duration."""
        return replace(self, seconds=seconds)


def installed_checks() -> Iterator[tuple[str, Callable[[Any], Finding]]]:
    """Yield the installed checks by name, in order; one whose part is not installed is left out.

    Raises:
        CloisterError: two packages bring a check of one name, or a check cannot be loaded (code ``check``).
    """
    points = sorted(entry_points(group=CHECKS), key=lambda point: point.name)
    for before, point in zip([None, *points], points, strict=False):
        if before is not None and before.name == point.name and before.value != point.value:
            raise CloisterError(
                f"two installed packages bring a check '{point.name}'",
                remedy="remove one of them",
                code="check",
            )
        if before is not None and before.name == point.name:
            continue
        try:
            loaded = point.load()
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("cloister."):
                continue
            raise CloisterError(
                f"the check '{point.name}' needs '{error.name}', which is not installed",
                remedy="install it, or remove the package that brings the check",
                code="check",
            ) from None
        yield point.name, loaded


def plain_figures(value: Any) -> Any:
    """Return ``value`` as what JSON holds: arrays as lists, what is not finite as ``None``."""
    if isinstance(value, Mapping):
        return {str(key): plain_figures(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_figures(inner) for inner in value]
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if callable(convert := getattr(value, "tolist", None)):
        return plain_figures(convert())
    raise CloisterError(
        f"a finding cannot hold a {type(value).__name__}", remedy="mend the check", code="finding"
    )
