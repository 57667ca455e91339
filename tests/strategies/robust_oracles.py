"""Slow loops that say what each rule is, straight from the papers: no matrix product, no shared code with the rules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Point = npt.NDArray[np.float64]
Points = Sequence[Point]


def distance(one: Point, other: Point) -> float:
    return math.sqrt(math.fsum((float(a) - float(b)) ** 2 for a, b in zip(one, other, strict=True)))


def mean(points: Points) -> Point:
    return np.array([math.fsum(map(float, column)) / len(points) for column in zip(*points, strict=True)])


def median(points: Points) -> Point:
    found = []
    for column in zip(*points, strict=True):
        ordered = sorted(map(float, column))
        half = len(ordered) // 2
        found.append(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)
    return np.array(found)


def trimmed_mean(points: Points, f: int) -> Point:
    found = []
    for column in zip(*points, strict=True):
        kept = sorted(map(float, column))[f : len(points) - f]
        found.append(math.fsum(kept) / len(kept))
    return np.array(found)


def geometric_median(points: Points) -> Point:
    """Subgradient-free: shrink a search around the best point by coordinate, in few dimensions."""
    best = mean(points)
    step = max(distance(best, point) for point in points)
    cost = sum(distance(best, point) for point in points)
    while step > 1e-11:
        for direction in np.vstack([np.eye(len(best)), -np.eye(len(best)), *(p - best for p in points)]):
            length = math.sqrt(float(direction @ direction)) or 1.0
            tried = best + step * direction / length
            new = sum(distance(tried, point) for point in points)
            if new < cost:
                best, cost = tried, new
                break
        else:
            step /= 2
    return best


def scores(points: Points, f: int) -> list[float]:
    found = []
    for place, point in enumerate(points):
        others = sorted(distance(point, other) ** 2 for k, other in enumerate(points) if k != place)
        found.append(math.fsum(others[: len(points) - f - 1]))
    return found


def krum(points: Points, f: int) -> Point:
    found = scores(points, f)
    return np.asarray(points[found.index(min(found))])


def multi_krum(points: Points, f: int) -> Point:
    found = scores(points, f)
    order = sorted(range(len(points)), key=lambda place: (found[place], place))
    return mean([points[place] for place in order[: len(points) - f]])


def bulyan(points: Points, f: int) -> Point:
    left = list(points)
    chosen: list[Point] = []
    while len(chosen) < len(points) - 2 * f:
        found = scores(left, f)
        chosen.append(left.pop(found.index(min(found))))
    answer, middle = [], median(chosen)
    for column, centre in zip(zip(*chosen, strict=True), middle, strict=True):
        near = sorted(map(float, column), key=lambda value: (abs(value - centre), value))
        kept = near[: len(chosen) - 2 * f]
        answer.append(math.fsum(kept) / len(kept))
    return np.array(answer)


def nnm(points: Points, f: int) -> list[Point]:
    found = []
    for place, point in enumerate(points):
        order = sorted(
            range(len(points)), key=lambda other: (other != place, distance(point, points[other]), other)
        )
        found.append(mean([points[other] for other in order[: len(points) - f]]))
    return found


def clipped(point: Point, most: float) -> Point:
    length = distance(point, np.zeros(len(point)))
    return np.asarray(point, dtype=np.float64) * (most / length if length > most else 1.0)


def arc(points: Points, f: int) -> list[Point]:
    lengths = sorted((distance(point, np.zeros(len(point))) for point in points), reverse=True)
    return [clipped(point, lengths[(2 * f * (len(points) - f)) // len(points)]) for point in points]


def norm_bound(points: Points, bound: float) -> Point:
    return mean([clipped(point, bound) for point in points])


def centered_clipping(points: Points, radius: float | None, start: Point, iterations: int) -> Point:
    centre = np.asarray(start, dtype=np.float64)
    for _ in range(iterations):
        away = [np.asarray(point, dtype=np.float64) - centre for point in points]
        lengths = sorted(distance(one, np.zeros(len(one))) for one in away)
        most = lengths[len(points) // 2] if radius is None else radius
        centre = centre + mean([clipped(one, most) for one in away])
    return centre


def fltrust(points: Points, trusted: Point) -> Point:
    zero = np.zeros(len(trusted))
    own = distance(trusted, zero)
    total, weight = zero, 0.0
    for point in points:
        length = distance(point, zero)
        dot = math.fsum(float(a) * float(b) for a, b in zip(point, trusted, strict=True))
        trust = max(0.0, dot / (length * own)) if length else 0.0
        total = total + trust * own / (length or 1.0) * np.asarray(point, dtype=np.float64)
        weight += trust
    return total / weight if weight else zero


def dnc(points: Points, f: int) -> Point:
    """With all columns: the singular vector by numpy's decomposition of the rows themselves."""
    rows = np.array(points, dtype=np.float64)
    about = rows - rows.mean(axis=0)
    _, _, right = np.linalg.svd(about, full_matrices=False)
    outlying = (about @ right[0]) ** 2
    kept = sorted(range(len(points)), key=lambda place: (outlying[place], place))[: len(points) - f]
    return mean([rows[place] for place in kept])
