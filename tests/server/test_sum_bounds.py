"""Sums that no honest sites can make are thrown away, before a number of them is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cloister.core.errors import SpecError
from cloister.core.spec import FederationSpec
from cloister.privacy.protection import colluders_borne, predict
from cloister.server.secure.bounds import implausible


def spec(**tables: Any) -> FederationSpec:
    return FederationSpec.model_validate(
        {"federation": {"name": "t", "rounds": 2}, "task": {"use": "x"}, "cohort": {"sites": 7}, **tables}
    )


CAPPED = spec(aggregation={"weighting": {"records_cap": 50}})


@pytest.mark.parametrize(
    ("name", "values", "holds"),
    [
        ("weight", [5.0], True),
        ("weight", [250.0], True),
        ("weight", [4.9], False),
        ("weight", [0.0], False),  # what is divided by it would be infinite
        ("weight", [-200.0], False),
        ("weight", [251.0], False),
        ("within", [-2.5], True),
        ("within", [2.6], False),
        ("within", [1e9], False),
        ("cut", [5.0], True),
        ("cut", [6.0], False),
        ("cut", [-1.0], False),
        ("confusion", [3.0, 0.0], True),
        ("confusion", [3.0, -1.0], False),
        ("vector", [-1e9], True),  # an update has no such bound
    ],
)
def test_only_what_five_honest_sites_can_add_up_to_is_used(
    name: str, values: list[float], holds: bool
) -> None:
    assert (implausible(CAPPED, {name: np.array(values)}, 5) == "") is holds


@pytest.mark.parametrize(("sites", "borne"), [(3, 2), (4, 1), (7, 2), (10, 3), (50, 17)])
def test_more_colluders_than_masks_bear_are_refused(sites: int, borne: int) -> None:
    """2q - n - 1, counted by hand: q = t = floor(2n/3) + 1 in a complete graph."""
    assert colluders_borne(sites) == borne == 2 * (2 * sites // 3 + 1) - sites - 1
    privacy = {
        "unit": "record-distributed",
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "clip": 1.0,
        "sampling_rate": 0.1,
        "colluders": borne + 1,
    }
    made = spec(
        cohort={"sites": sites, "min_sites": sites if sites < 5 else borne + 2},
        privacy=privacy if borne + 1 < sites else {**privacy, "colluders": borne},
        training={"local_steps": 1},
    )
    if borne + 1 >= sites:
        return
    with pytest.raises(SpecError, match=f"bear at most {borne}"):
        predict(made, 10, classes=2, cohort=sites)
