"""Groups are a random split that depends on the beacon and the names alone, and a site is summed with its own group only."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import chi2

from cloister.core.errors import IntegrityError, SpecError
from cloister.core.randomness import SeededRandomness, SystemRandomness
from cloister.core.spec import FederationSpec, parse_federation
from cloister.privacy.grouping import Groups, beacon_of
from cloister.privacy.manifest import cohort_digest
from cloister.privacy.masking import parameters
from cloister.privacy.masking.rehearsal import Stage
from cloister.privacy.plan import plan_from
from cloister.privacy.protection import group_noise, predict

NAMES = tuple(f"site-{number:02d}" for number in range(13))


def test_every_site_is_in_one_group_and_the_order_of_names_changes_nothing() -> None:
    groups = Groups.draw("run-1", NAMES, 4)
    assert groups.sizes == (5, 4, 4)
    assert sorted(name for group in groups.members for name in group) == list(NAMES)
    assert Groups.draw("run-1", reversed(NAMES), 4) == groups
    assert all(name in groups.members[number] for name, number in groups.number_of.items())


@pytest.mark.parametrize("other", [("run-2", NAMES, 4), ("run-1", NAMES[:-1], 4), ("run-1", NAMES, 3)])
def test_another_beacon_other_names_and_another_size_give_another_split(other: Any) -> None:
    assert Groups.draw(*other).members[0] != Groups.draw("run-1", NAMES, 4).members[0]


@pytest.mark.parametrize("names", [NAMES[:3], (*NAMES, NAMES[0])])
def test_too_few_names_or_a_name_twice_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="make no groups"):
        Groups.draw("run-1", names, 4)


def test_over_beacons_every_pair_meets_equally_often() -> None:
    """χ² over the 66 pairs of 12 sites in 3000 splits into fours; two-sided, false alarm 1e-4. Pairs of one split depend on each other a little."""
    draws, names = 3000, NAMES[:12]
    met: Counter[tuple[str, ...]] = Counter()
    for number in range(draws):
        for group in Groups.draw(f"run-{number}", names, 4).members:
            met.update(combinations(group, 2))
    expected = draws * 18 / 66
    variance = expected * (1 - 18 / 66)
    value = sum((met[pair] - expected) ** 2 / variance for pair in combinations(names, 2))
    assert chi2.ppf(5e-5, 54) < value < chi2.ppf(1 - 5e-5, 66) * 1.2


def test_the_beacon_is_what_a_user_signed_or_in_a_simulation_the_seed() -> None:
    assert beacon_of(SystemRandomness(), "heart-0a1b") == "heart-0a1b"
    seeded = beacon_of(SeededRandomness(3), "heart-0a1b")
    assert seeded == beacon_of(SeededRandomness(3), "another")
    assert seeded != beacon_of(SeededRandomness(4), "heart-0a1b")


class TestASiteChecks:
    """Twelve sites in groups of four."""

    @pytest.fixture
    def stage(self) -> Stage:
        return Stage()

    def check(
        self, stage: Stage, *, group: int, cohort: tuple[str, ...], kind: str, own: str, groups: Groups
    ) -> None:
        degree, threshold = parameters(len(cohort))
        manifest = stage.manifest(
            4,
            kind=kind,
            group=group,
            cohort=cohort_digest(cohort),
            cohort_size=len(cohort),
            degree=degree,
            threshold=threshold,
        )
        groups.check(manifest, own)

    def test_that_it_trains_with_its_own_group_and_measures_with_all(self, stage: Stage) -> None:
        groups = Groups.draw("run-1", NAMES[:12], 4)
        for number, members in enumerate(groups.members):
            for own in members:
                self.check(stage, group=number, cohort=members, kind="train", own=own, groups=groups)
                self.check(stage, group=0, cohort=groups.names, kind="evaluate", own=own, groups=groups)

    def test_that_nothing_else_is_summed(self, stage: Stage) -> None:
        groups = Groups.draw("run-1", NAMES[:12], 4)
        own = groups.members[1][0]
        regrouped = (own, *groups.members[0][:3])
        wrong: list[dict[str, Any]] = [
            {"group": 1, "cohort": regrouped, "kind": "train", "own": own},
            {"group": 1, "cohort": groups.members[1][:3], "kind": "train", "own": own},
            {"group": 0, "cohort": groups.members[0], "kind": "train", "own": own},
            {"group": 0, "cohort": groups.members[1], "kind": "train", "own": own},
            {"group": 0, "cohort": groups.names, "kind": "train", "own": own},
            {"group": 1, "cohort": groups.members[1], "kind": "evaluate", "own": own},
            {"group": 0, "cohort": groups.names[:11], "kind": "evaluate", "own": own},
            {"group": 1, "cohort": groups.members[1], "kind": "train", "own": "stranger"},
        ]
        for one in wrong:
            with pytest.raises(IntegrityError) as refused:
                self.check(stage, groups=groups, **one)
            assert refused.value.code == "group-differs"


def spec(unit: str, **privacy: Any) -> FederationSpec:
    document: dict[str, Any] = {
        "federation": {"name": "t", "rounds": 3},
        "task": {"use": "digits"},
        "cohort": {"sites": 25},
        "aggregation": {"rule": "median", "byzantine": 2, "group_size": 3},
        "privacy": {"unit": unit, "noise_multiplier": 2.0, "delta": 1e-5, "clip": 0.5, **privacy},
    }
    if unit == "record-distributed":
        document["training"] = {"local_steps": 1, "batch_size": 10}
    return parse_federation(document, base=Path()).spec


class TestNoise:
    """Each group's sum carries by itself the noise that ε is stated for: with 25 sites in groups of 3 what a sum over 3 sites would."""

    @pytest.mark.parametrize(
        ("unit", "more", "expected"),
        [
            ("site", {}, 2.0 * 0.5 / 3),
            ("site-local", {}, 2.0 * 0.5 * 3**0.5 / 3),
            ("site-distributed", {}, 2.0 * 0.5 / 3),
            ("record-distributed", {"sampling_rate": 0.1}, 2.0 * 0.5 / (3 * 10)),
        ],
    )
    def test_of_a_group_s_mean_is_that_of_its_own_sum(
        self, unit: str, more: dict[str, Any], expected: float
    ) -> None:
        made = spec(unit, **more)
        assert group_noise(plan_from(made, 650), 3, 3) == pytest.approx(expected)
        found = predict(made, 650, classes=10, cohort=25)["groups"]
        assert found["noise"] == pytest.approx(expected)
        assert (found["number"], found["smallest"], found["largest"], found["tolerated"]) == (8, 3, 4, 3)

    @pytest.mark.parametrize(
        ("unit", "more"), [("site-distributed", {}), ("record-distributed", {"sampling_rate": 0.1})]
    )
    def test_shares_are_calibrated_to_the_honest_of_one_group(self, unit: str, more: dict[str, Any]) -> None:
        plan = plan_from(spec(unit, colluders=1, **more), 650)
        assert plan is not None
        assert plan.facts()["survivors"] == 3
        assert plan.honest == 2  # type: ignore[attr-defined]

    def test_colluders_that_no_group_bears_are_refused(self) -> None:
        with pytest.raises(SpecError, match="bear at most 1"):
            predict(spec("site-distributed", colluders=2), 650, classes=10, cohort=25)
