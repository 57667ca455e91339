"""How figures and names are put into words: never more digits than mean something, never a character that could mislead.

Edge cases: a number that is not there is a dash; a name is cut at `NAME_LIMIT` characters and its control, format and
direction characters become U+FFFD, so that it cannot move a terminal's cursor or turn a line around.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

__all__ = [
    "DASH",
    "HEADLINES",
    "NAME_LIMIT",
    "bytes_text",
    "count",
    "drawable",
    "headline",
    "interval95",
    "listed",
    "metric_label",
    "metric_text",
    "number",
    "order",
    "percent",
    "plural",
    "points",
    "seconds_text",
    "shown",
]

DASH = "–"
NAME_LIMIT = 48

#: The metric that speaks for a model, the first that there is.
HEADLINES = ("accuracy", "r2", "mae", "mse")

_SHARES = frozenset(
    {
        "accuracy",
        "balanced_accuracy",
        "precision",
        "recall",
        "f1",
        "sensitivity",
        "specificity",
        "top5_accuracy",
        "attack_success",
    }
)
_UNIT_RANGE = frozenset({"auroc", "calibration_error", "ece", "r2", "mcc"})
_LABELS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "auroc": "AUROC",
    "attack_success": "Attack success",
    "calibration_error": "Calibration error",
    "ece": "Calibration error",
    "mse": "MSE",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
    "loss": "Loss",
}
_LARGEST = 1e9
_WORDS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)


def shown(text: object, limit: int = NAME_LIMIT) -> str:
    """Return a foreign text as it may be shown: one line, at most ``limit`` characters, no control or direction character."""
    clean = "".join("\ufffd" if unicodedata.category(c) in _HIDDEN else c for c in str(text)[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def percent(share: float | None) -> str:
    """Return a share as a percentage with one decimal: 0.8012 is ``80.1%``; what cannot be a share is shown as the number it is."""
    if share is None or not math.isfinite(share):
        return DASH
    return f"{100 * share:.1f}%" if 0 <= share <= 1 else number(share)


def points(difference: float) -> str:
    """Return a difference of shares in percentage points with one decimal, without its sign: 0.0042 is ``0.4 points``."""
    return f"{abs(100 * difference):.1f} points"


def number(value: float | None) -> str:
    """Return a number with three significant digits."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.2e}"
    rounded = float(f"{value:.3g}")
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{digits}f}" if digits <= 5 else f"{value:.2e}"


def count(value: float | None) -> str:
    """Return a whole number with its thousands apart."""
    return DASH if value is None else f"{value:,.0f}"


def metric_label(name: str) -> str:
    """Return a metric's name as a reader knows it."""
    return _LABELS.get(name, shown(name).replace("_", " ").capitalize())


def metric_text(name: str, value: float | None) -> str:
    """Return a metric's value: a percentage with one decimal where it is a share, else three significant digits."""
    if name in _SHARES:
        return percent(value)
    if name in _UNIT_RANGE and value is not None and math.isfinite(value):
        return f"{value:.3f}"
    return number(value)


def drawable(name: str, value: float | None) -> bool:
    """Return whether a value has a place in a plot of this metric: a site may send any number, and one must not hide the rest."""
    if value is None or not math.isfinite(value):
        return False
    return 0 <= value <= 1 if name in _SHARES | _UNIT_RANGE - {"r2", "mcc"} else abs(value) < _LARGEST


def order(names: Sequence[str]) -> list[str]:
    """Return metric names in the order in which a reader looks for them; unknown ones last, by name."""
    known = list(_LABELS)
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))


def headline(names: Sequence[str]) -> str | None:
    """Return the metric of these that speaks for the model."""
    return next((name for name in HEADLINES if name in names), None)


def bytes_text(value: float | None) -> str:
    """Return an amount of data in decimal units: 1,234,000 is ``1.23 MB``."""
    if value is None:
        return DASH
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * size:
            return f"{number(value / size)} {unit}"
    return f"{value:.0f} B"


def seconds_text(value: float | None) -> str:
    """Return a duration: ``210 ms``, ``12.3 s``, ``2 min 05 s``, ``3 h 10 min``."""
    if value is None or not math.isfinite(value):
        return DASH
    if value < 0.0005:
        return "0 s" if value <= 0 else "< 1 ms"
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 99.95:
        return f"{number(value)} s"
    whole = round(value)
    return (
        f"{whole // 60} min {whole % 60:02d} s"
        if whole < 3600
        else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def plural(amount: int, noun: str, nouns: str | None = None) -> str:
    """Return an amount with its noun, in words up to twelve: ``four sites``, ``one site``, ``100 sites``."""
    word = _WORDS[amount] if 0 <= amount < len(_WORDS) else count(amount)
    return f"{word} {noun if amount == 1 else nouns or noun + 's'}"


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Return names as a list of at most ``limit``: ``a, b, c +12``."""
    head = ", ".join(shown(name) for name in names[:limit])
    return f"{head} +{len(names) - limit}" if len(names) > limit else head


def interval95(share: float | None, records: int | None) -> tuple[float, float] | None:
    """Return the 95% interval of a share seen on ``records`` independent records (Wilson 1927; Brown et al. 2001, eq. 4).

    ``None`` where there is no record, or where ``share`` is none: a site may send any number as its accuracy.
    """
    if share is None or not records or not 0 <= share <= 1:
        return None
    z = 1.959964
    middle = (share + z * z / (2 * records)) / (1 + z * z / records)
    half = (
        z / (1 + z * z / records) * math.sqrt(share * (1 - share) / records + z * z / (4 * records * records))
    )
    return max(0.0, middle - half), min(1.0, middle + half)
