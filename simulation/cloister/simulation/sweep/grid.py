"""The grid of a sweep: which federation each point is.

The points are the product of what the keys are swept over, in the order in which they were given (the last key changes fastest),
each once for every seed. A reference is the federation of a point with ``[privacy]`` removed; points that differ in nothing but
privacy share one.

======================================  ====================================================================
the grid                                is
======================================  ====================================================================
a key without a value, or given twice   refused (code ``over``)
a seed that is no whole number          refused (code ``seeds``)
two points that are one federation      refused (code ``grid``): the same run twice says nothing new
more than `MOST_POINTS` runs            refused (code ``grid``)
a point whose file is refused           refused with its own code, and the point's name in the message
a reference where nothing is private    refused (code ``reference``)
======================================  ====================================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.core.errors import CloisterError, SpecError
from cloister.core.spec import Loaded, Origin, parse_federation

__all__ = ["MOST_POINTS", "Grid", "Point", "about", "read_over", "read_seeds"]

#: The most runs of one sweep, references included.
MOST_POINTS = 1000

_SEED = "federation.seed"
_CLOSING = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: names its folder: ``001``, ``002``, … in the order in which they run.
        values: the swept keys with their values in the effective file.
        loaded: its federation file.
        reference: whether it is a run with ``[privacy]`` removed.
    """

    name: str
    values: Mapping[str, Any]
    loaded: Loaded
    reference: bool

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.loaded.spec.federation.seed

    @property
    def text(self) -> str:
        """The point in words: ``privacy.epsilon = 2.0, seed 7``."""
        parts = [f"{key} = {value}" for key, value in self.values.items() if key != _SEED]
        return ", ".join([*(["without privacy"] if self.reference else []), *parts, f"seed {self.seed}"])


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All that says which runs a sweep is made of.

    Attributes:
        document: the federation file as plain data, unchecked.
        base: the folder that its relative paths are taken from.
        settings: ``--set`` texts, laid over the file at every point.
        over: the swept keys with the texts of their values.
        seeds: the seeds of each point; empty: that of the file.
        reference: whether the non-private federation runs too.
    """

    document: Mapping[str, Any]
    base: Path
    settings: tuple[str, ...]
    over: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    reference: bool

    def points(self) -> list[Point]:
        """Return the points in the order in which they run: the grid, then the references.

        Raises:
            SpecError: the grid is refused; see above.
        """
        amount = (len(self.seeds) or 1) * (1 + self.reference)
        for texts in self.over.values():
            amount *= len(texts)
        if amount > MOST_POINTS:
            raise SpecError(
                f"the grid has {amount} points, and a sweep at most {MOST_POINTS}",
                remedy="sweep over fewer values, or in several sweeps",
                code="grid",
            )
        points = [
            Point(name="", values=values, loaded=loaded, reference=False) for values, loaded in self._runs()
        ]
        seen: dict[str, Point] = {}
        for point in points:
            twin = seen.setdefault(point.loaded.digest(), point)
            if twin is not point:
                raise SpecError(
                    f"two points of the grid are the same federation: {point.text}",
                    remedy="give each value and each seed once",
                    code="grid",
                )
        if self.reference:
            points += _references(points)
        return [
            Point(name=f"{index:03d}", values=point.values, loaded=point.loaded, reference=point.reference)
            for index, point in enumerate(points, start=1)
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the grid as JSON values; `from_dict` reads it again."""
        return {
            "document": dict(self.document),
            "base": str(self.base),
            "settings": list(self.settings),
            "over": {key: list(texts) for key, texts in self.over.items()},
            "seeds": list(self.seeds),
            "reference": self.reference,
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Grid:
        """Read what `as_dict` returned.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(
            document=dict(kept["document"]),
            base=Path(kept["base"]),
            settings=tuple(map(str, kept["settings"])),
            over={str(key): tuple(map(str, texts)) for key, texts in dict(kept["over"]).items()},
            seeds=tuple(map(int, kept["seeds"])),
            reference=bool(kept["reference"]),
        )

    def _runs(self) -> Iterator[tuple[dict[str, Any], Loaded]]:
        for texts in itertools.product(*self.over.values()):
            swept = [f"{key}={text}" for key, text in zip(self.over, texts, strict=True)]
            for seed in self.seeds or (None,):
                last = [] if seed is None else [f"{_SEED}={seed}"]
                with about(", ".join([*swept, *last])):
                    loaded = parse_federation(
                        self.document,
                        base=self.base,
                        overrides=[*self.settings, *swept, *last],
                        name="the federation",
                    )
                yield {key: _value(loaded, key) for key in self.over}, loaded


class about:  # noqa: N801 - reads as a sentence: with about(point)
    """Put a point's name before the message of a refusal that is raised in the block; the code stays."""

    def __init__(self, point: str) -> None:
        self._point = point

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Name the point."""
        if isinstance(error, CloisterError) and self._point:
            error.message = f"at the point {self._point}: {error.message}"
            error.args = (error.message,)


def read_over(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read ``--over key=value,value,…``; commas inside brackets, braces and quotes belong to a value.

    Raises:
        SpecError: a text that is not of this form, an empty value, or a key that is given twice or inside another (``over``).
    """
    over: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, separator, rest = text.partition("=")
        key = key.strip()
        values = tuple(part.strip() for part in _split(rest))
        if not separator or not all(key.split(".")) or not all(values):
            raise SpecError(
                f"--over '{text}' is not key=value,value,…",
                remedy="write for example --over privacy.epsilon=1,2,4,8",
                code="over",
            )
        for other in over:
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                raise SpecError(
                    f"--over '{key}' and --over '{other}' set the same key",
                    remedy="give all values of a key in one --over",
                    code="over",
                )
        over[key] = values
    return over


def read_seeds(text: str | None, over: Mapping[str, object]) -> tuple[int, ...]:
    """Read ``--seeds 7,8,9``.

    Raises:
        SpecError: a seed that is no whole number of at least 0, or the seed is swept over as well (``seeds``).
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        raise SpecError(
            f"--seeds '{text}' is not a list of whole numbers",
            remedy="write for example --seeds 7,8,9",
            code="seeds",
        )
    if any(f"{_SEED}.".startswith(f"{key}.") for key in over):
        raise SpecError(
            f"--seeds and --over both set '{_SEED}'",
            remedy="keep --seeds: the plots show the spread over seeds",
            code="seeds",
        )
    return tuple(map(int, parts))


def _references(points: Sequence[Point]) -> list[Point]:
    if all(point.loaded.spec.privacy.unit == "none" for point in points):
        raise SpecError(
            "--reference asks for a run without privacy, and no point of the sweep has any",
            remedy="leave --reference out",
            code="reference",
        )
    found: dict[str, Point] = {}
    for point in points:
        if point.loaded.spec.privacy.unit == "none":
            continue
        effective = {name: table for name, table in point.loaded.effective().items() if name != "privacy"}
        with about(point.text):
            stripped = parse_federation(effective, base=point.loaded.base)
        origins = {key: point.loaded.origins.get(key, Origin.DEFAULT) for key in stripped.origins}
        loaded = Loaded(spec=stripped.spec, base=stripped.base, origins=origins)
        values = {key: value for key, value in point.values.items() if key.split(".")[0] != "privacy"}
        found.setdefault(loaded.digest(), Point(name="", values=values, loaded=loaded, reference=True))
    return list(found.values())


def _value(loaded: Loaded, dotted: str) -> Any:
    value: Any = loaded.effective()
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _split(text: str) -> list[str]:
    """Split at the commas that stand in no bracket, brace or quote."""
    parts, start, closing, quote = [], 0, [], ""
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _CLOSING:
            closing.append(_CLOSING[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character == "," and not closing:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]
