"""What the coordinator makes of canaries: what it takes from their site, and what it adds up of what it sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cloister.core.errors import IntegrityError
from cloister.core.randomness import SeededRandomness
from cloister.privacy.audit.coins import Coins
from cloister.server.audit.canaries.watching import Watch
from cloister.server.replies import opening_in, seal_in

COINS = Coins.draw(20, SeededRandomness(1))
SEAL: dict[str, Any] = {"seal": COINS.seal, "canaries": 20}
OPENING: dict[str, Any] = COINS.opening()


def test_a_seal_and_an_opening_are_just_that() -> None:
    assert seal_in(SEAL) is not None
    assert opening_in(OPENING) is not None
    assert seal_in(OPENING) is None
    assert opening_in(SEAL) is None


@pytest.mark.parametrize(
    "change",
    [
        {"seal": COINS.seal[:-1]},
        {"seal": COINS.seal.upper()},
        {"seal": 7},
        {"canaries": True},
        {"canaries": "20"},
        {"coins": "00"},
        {"age": 71},
    ],
)
def test_a_seal_with_anything_beside_is_none(change: dict[str, Any]) -> None:
    assert seal_in({**SEAL, **change}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"salt": OPENING["salt"][:-2]},
        {"salt": b"0" * 32},
        {"coins": OPENING["coins"] + "00"},
        {"coins": "zz" + OPENING["coins"][2:]},
        {"canaries": 40},
        {"canaries": 20.0},
        {"seal": COINS.seal},
    ],
)
def test_an_opening_of_another_form_is_none(change: dict[str, Any]) -> None:
    assert opening_in({**OPENING, **change}) is None


def vector(*values: float) -> Any:
    return np.array([9.0, *values, 9.0], dtype=np.float32)  # weights of the task before, the blank after


def test_updates_of_the_sites_that_plant_are_added_and_no_others() -> None:
    watch = Watch(place=1, canaries=3, columns={"a": [0, 2], "b": [1]})
    watch.begin()
    watch.update("a", vector(1, 50, 2))
    watch.begin()  # the round is tried again
    watch.update("a", vector(3, 50, 4))
    watch.update("b", vector(70, 5, 70))
    watch.update("c", vector(90, 90, 90))
    watch.end(vector(0, 0, 0), answered=3, away=())
    assert (watch.rounds, watch.scores.tolist()) == (1, [-3, -5, -4])
    watch.begin()
    watch.update("b", vector(0, 1, 0))
    watch.end(vector(0, 0, 0), answered=1, away=("a",))
    assert (watch.rounds, watch.scores.tolist()) == (1, [-3, -6, -4]), (
        "not all were seen: that round is not whole"
    )


def test_of_sums_the_directions_are_added_as_sums() -> None:
    mean = Watch(place=1, canaries=2, site="a", counted=True)
    public = Watch(place=1, canaries=2, site="a")
    for watch in (mean, public):
        watch.end(vector(1, 2), answered=3, away=())
        watch.end(vector(1, 2), answered=2, away=("a",))
    assert mean.scores.tolist() == [-5, -10]
    assert public.scores.tolist() == [-2, -4]
    assert mean.rounds == 1


def test_what_was_seen_comes_back_from_a_checkpoint_and_nothing_else_does() -> None:
    watch = Watch(place=1, canaries=2, site="a")
    watch.seal = COINS.seal
    watch.end(vector(1, 2), answered=3, away=())
    again = Watch(place=1, canaries=2, site="a")
    again.restore(watch.arrays())
    assert (again.rounds, again.scores.tolist(), again.seal) == (1, [-1, -2], COINS.seal)
    other = Watch(place=1, canaries=3, site="a")
    for arrays in (watch.arrays(), {}):
        with pytest.raises(IntegrityError) as refused:
            other.restore(arrays)
        assert refused.value.code == "checkpoint-unreadable"
