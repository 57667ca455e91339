"""``aggregation.rule``, ``aggregation.byzantine`` and ``[attack]``: what is read, what is filled in, what is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.core.checking import check_federation, check_records
from cloister.core.errors import SpecError
from cloister.core.resolve import load_task, owners
from cloister.core.spec import FederationSpec, parse_federation
from cloister.core.spec.attack import ATTACKS

DIGITS = {
    "federation": {"name": "t", "rounds": 1},
    "task": {"use": "digits"},
    "cohort": {"sites": 24, "partition": {"by": "iid"}},
}
HEART = {"federation": {"name": "t", "rounds": 1}, "task": {"use": "heart"}}
DEFAULT = "aggregation.rule='arc | nnm | trimmed-mean'"


def read(*overrides: str, document: dict[str, Any] = DIGITS) -> FederationSpec:
    return parse_federation(document, base=Path(), overrides=overrides).spec


def refused(*overrides: str, document: dict[str, Any] = DIGITS) -> str:
    with pytest.raises(SpecError) as caught:
        read(*overrides, document=document)
    return caught.value.message


class TestRule:
    def test_a_pipeline_is_read_and_written_in_one_way(self) -> None:
        one = parse_federation(DIGITS, base=Path(), overrides=["aggregation.rule=arc|nnm|trimmed-mean"])
        other = parse_federation(DIGITS, base=Path(), overrides=[DEFAULT])
        assert one.spec.aggregation.rule == "arc | nnm | trimmed-mean"
        assert one.digest() == other.digest()

    def test_an_unknown_stage_offers_the_nearest(self) -> None:
        assert "[aggregation.rule] 'krumm' is no stage of a rule; did you mean 'krum'?" in refused(
            "aggregation.rule=nnm | krumm"
        )

    @pytest.mark.parametrize(("f", "least"), [(1, 3), (5, 11)])
    def test_a_round_needs_what_the_rule_needs_unless_the_file_says_more(self, f: int, least: int) -> None:
        assert read(DEFAULT, f"aggregation.byzantine={f}").cohort.min_sites == least
        assert read(DEFAULT, f"aggregation.byzantine={f}", "cohort.min_sites=20").cohort.min_sites == 20
        assert read().cohort.min_sites == 3

    @pytest.mark.parametrize(
        ("overrides", "why"),
        [
            ((DEFAULT, "aggregation.byzantine=12"), "needs at least 25 updates a round, and there are cohort.sites = 24"),
            (("aggregation.rule=bulyan", "aggregation.byzantine=6"), "needs at least 27 updates a round"),
            (("aggregation.rule=krum", "aggregation.byzantine=5", "cohort.per_round=12"), "needs at least 13 updates a round, and cohort.per_round = 12"),
            ((DEFAULT, "aggregation.byzantine=5", "cohort.min_sites=10"), "cohort.min_sites = 10 lets a round count with fewer"),
            (("aggregation.rule=bucketing(3) | median", "aggregation.byzantine=4"), "needs at least 25 updates"),
            (("aggregation.byzantine=1",), "'mean' tolerates no lying site"),
            (("aggregation.rule=nnm | mean", "aggregation.byzantine=1", "attack.name=alie"), "'mean' tolerates no lying site"),
            ((DEFAULT, "aggregation.weighting={records_cap=5}"), "use 'uniform'"),
            ((DEFAULT, "training.scaffold=true"), "training.scaffold sends a second array"),
            (("aggregation.rule=fltrust",), "needs clean records at the server"),
            ((DEFAULT, "aggregation.byzantine=-1"), "byzantine = -1: should be at least 0"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_refused_with_the_reason(self, overrides: tuple[str, ...], why: str) -> None:
        assert why in refused(*overrides)

    @pytest.mark.parametrize("unit", ["site", "site-local", "site-distributed"])
    def test_noise_that_is_calibrated_to_a_sum_goes_with_no_robust_rule(self, unit: str) -> None:
        private = [f"privacy={{unit='{unit}', epsilon=3.0, delta=1e-3, clip=1.0}}", "training.local_steps=1"]
        assert "calibrated to a sum" in refused("aggregation.rule=median", *private)

    def test_noise_of_each_record_goes_with_one(self) -> None:
        private = "privacy={unit='record', epsilon=3.0, delta=1e-3, clip=1.0, sampling_rate=0.1}"
        assert read("aggregation.rule=median", private, "training.local_steps=1").aggregation.rule == "median"

    def test_a_number_of_sites_that_only_the_data_knows_is_refused_when_it_is_known(self) -> None:
        loaded = parse_federation(HEART, base=Path(), overrides=[DEFAULT, "aggregation.byzantine=2"])
        task = load_task(loaded.spec.task, Path())
        with pytest.raises(SpecError, match="needs at least 5 updates a round, and there are 4 sites"):
            check_records(loaded, owners(task))

    def test_a_rule_that_defends_against_nobody_is_warned_of(self) -> None:
        def warnings(*overrides: str) -> str:
            loaded = parse_federation(DIGITS, base=Path(), overrides=overrides)
            return " ".join(check_federation(loaded, load_task(loaded.spec.task, Path())))

        assert "defends against nobody" in warnings(DEFAULT)
        assert "defends against nobody" not in warnings(DEFAULT, "aggregation.byzantine=1")
        assert "defends against nobody" not in warnings("aggregation.rule=median")


class TestAttack:
    @pytest.mark.parametrize("name", ATTACKS)
    def test_every_attack_can_be_asked_for(self, name: str) -> None:
        attack = read(DEFAULT, "aggregation.byzantine=5", f"attack.name={name}").attack
        assert attack is not None
        assert attack.liars(24, 5) == (0 if name == "none" else 5)

    @pytest.mark.parametrize(("text", "liars"), [("fraction=0.21", 5), ("fraction=0.25", 6), ("sites=3", 3)])
    def test_how_many_lie_may_be_given_apart_from_f(self, text: str, liars: int) -> None:
        attack = read(f"attack={{name='ipm', {text}}}").attack
        assert attack is not None
        assert attack.liars(24, 0) == liars

    def test_the_mean_may_be_rehearsed_against_liars_that_it_does_not_tolerate(self) -> None:
        assert read("aggregation.byzantine=5", "attack.name=ipm").aggregation.rule == "mean"

    @pytest.mark.parametrize(
        ("overrides", "why"),
        [
            (("attack.name=alei",), "did you mean 'alie'"),
            (("attack.name=alie",), "does not say how many sites lie"),
            (("attack={name='ipm', sites=24}",), "at least one must not"),
            (("attack={name='ipm', fraction=0.01}",), "at least one must"),
            (("attack={name='ipm', fraction=0.2, sites=5}",), "not both"),
            (("attack={name='ipm', sites=5, z=1.0}",), "'z' does not go with name = 'ipm'"),
            (("attack={name='ipm', sites=5}", "training.scaffold=true"), "does not go with training.scaffold"),
            (("attack={name='ipm', sites=5}", "privacy={unit='site', epsilon=3.0, delta=1e-3, clip=1.0}"), "does not go with privacy.unit"),
        ],
    )  # fmt: skip
    def test_an_attack_that_cannot_be_is_refused(self, overrides: tuple[str, ...], why: str) -> None:
        assert why in refused(*overrides)
