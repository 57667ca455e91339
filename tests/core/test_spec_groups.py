"""``aggregation.group_size``: how many groups there are, what a rule bears of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.core.errors import SpecError
from cloister.core.exposure import exposure
from cloister.core.spec import FederationSpec, parse_federation
from cloister.core.spec.grouping import group_sizes, least_in_sum, tolerated
from cloister.core.spec.pipelines import fewest_rows, read_pipeline

RULE = "arc | nnm | trimmed-mean"


def parsed(**tables: dict[str, Any]) -> FederationSpec:
    document: dict[str, Any] = {
        "federation": {"name": "t", "rounds": 3},
        "task": {"use": "digits"},
        "cohort": {"sites": 24},
        "aggregation": {"rule": RULE, "byzantine": 2, "group_size": 3},
    }
    for name, table in tables.items():
        document[name] = {**document.get(name, {}), **table}
    return parse_federation(document, base=Path()).spec


@given(st.integers(3, 500), st.integers(3, 40))
def test_groups_differ_by_one_site_at_most_and_none_is_below_the_size(sites: int, size: int) -> None:
    found = group_sizes(sites, size)
    assert sum(found) == sites
    assert max(found) - min(found) <= 1
    assert list(found) == sorted(found, reverse=True)
    if sites >= size:
        assert min(found) >= size
        assert len(found) == sites // size


@pytest.mark.parametrize("rule", [RULE, "median", "krum", "bulyan", "bucketing(2) | median"])
@pytest.mark.parametrize("rows", [1, 2, 5, 8, 20])
def test_what_is_tolerated_is_the_most_that_the_rule_bears(rule: str, rows: int) -> None:
    stages = read_pipeline(rule)
    most = tolerated(stages, rows)
    assert most == max(
        (f for f in range(1, 30) if (need := fewest_rows(stages, f)) is not None and need <= rows), default=0
    )
    assert 2 * most < rows


def test_groups_are_masked_and_their_sums_have_three_sites_at_least() -> None:
    spec = parsed()
    assert spec.aggregation.protection == "masked"
    assert least_in_sum(spec) == 3
    assert spec.cohort.min_sites == 15  # five groups, as the rule needs for two liars, of three


def test_groups_of_two_are_rehearsed_in_clear_and_never_masked() -> None:
    """What the third site of a group costs can be seen; a sum of two is no protection."""
    two = {"aggregation": {"group_size": 2, "protection": "plain"}}
    spec = parsed(**two, attack={"name": "alie", "sites": 2})
    assert least_in_sum(spec) == 2
    assert spec.cohort.min_sites == 10  # five groups, as the rule needs for two liars, of two
    with pytest.raises(SpecError, match="whoever sees every update"):
        parsed(**two)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"aggregation": {"group_size": 2}}, "sums of 2"),
        ({"aggregation": {"byzantine": 4}}, "8 groups it bears 3"),
        ({"aggregation": {"group_size": 30, "byzantine": 0}}, "more than cohort.sites = 24"),
        ({"aggregation": {"protection": "bfv"}}, "opens one sum a round"),
        ({"aggregation": {"protection": "ckks"}}, "opens one sum a round"),
        ({"aggregation": {"protection": "threshold-bfv"}}, "opens one sum a round"),
        ({"aggregation": {"protection": "plain"}}, "whoever sees every update"),
        ({"cohort": {"per_round": 20}}, "fixed for the run"),
        ({"cohort": {"per_round": {"poisson": 0.9}}}, "fixed for the run"),
        ({"aggregation": {"weighting": {"records_cap": 9}}}, "use 'uniform'"),
        ({"training": {"scaffold": True}}, "second array"),
        (
            {
                "privacy": {
                    "unit": "site",
                    "noise_multiplier": 1.0,
                    "delta": 1e-5,
                    "clip": 1.0,
                    "adaptive_clip": {},
                }
            },
            "adaptive_clip",
        ),
        (
            {
                "training": {"local_steps": 1},
                "privacy": {
                    "unit": "record-distributed",
                    "noise_multiplier": 1.0,
                    "delta": 1e-5,
                    "clip": 1.0,
                    "sampling_rate": 0.1,
                    "max_records_per_person": 2,
                },
            },
            "several groups",
        ),
        (
            {
                "privacy": {
                    "unit": "site-distributed",
                    "noise_multiplier": 1.0,
                    "delta": 1e-5,
                    "clip": 1.0,
                    "colluders": 3,
                }
            },
            "the fewest sites in a group's sum = 3",
        ),
    ],
)
def test_what_would_leak_or_hold_nothing_is_refused_with_its_reason(
    tables: dict[str, dict[str, Any]], says: str
) -> None:
    with pytest.raises(SpecError) as refused:
        parsed(**tables)
    assert says in refused.value.message


def test_in_clear_only_to_rehearse_an_attack() -> None:
    spec = parsed(attack={"name": "alie"})
    assert spec.aggregation.protection == "plain"
    with pytest.raises(SpecError, match="groups too"):
        parsed(attack={"name": "alie"}, aggregation={"protection": "masked"})
    assert parsed(attack={"name": "label-flip"}, aggregation={"protection": "masked"})


def test_the_server_is_said_to_see_group_means_and_not_to_choose_the_groups() -> None:
    said = " ".join(exposure(parsed()).server)
    assert "the mean of each fixed group of at least 3 sites" in said
    assert "the server cannot choose who is summed with whom" in said
