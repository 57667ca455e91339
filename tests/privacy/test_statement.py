"""A privacy statement: complete, true of the best possible attacker, and readable."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cloister.core.errors import SpecError
from cloister.privacy.accounting import delta_at, spent
from cloister.privacy.events import CohortGaussian, Gaussian, NonPrivate, PoissonGaussian, Relation
from cloister.privacy.statement import (
    PrivacyStatement,
    SiteSpent,
    Unit,
    guess_rate,
    hit_rate,
    statement_for,
)

DELTA = 1e-5
SPENT = spent(PoissonGaussian(noise_multiplier=1.2, sampling_rate=0.034, steps=400), DELTA)
SAMPLING = "each step took each record with probability 0.034, in secret"
RECORD = statement_for(
    "record",
    SPENT,
    sampling=SAMPLING,
    sites={"basel": SiteSpent(epsilon=SPENT.epsilon, delta=DELTA, allowed=4.0)},
)


def test_the_report_finds_every_key_that_it_reads() -> None:
    stated = RECORD.as_dict()
    assert {"unit", "epsilon", "delta", "relation", "sampling", "sites", "statement"} <= set(stated)
    assert stated["sites"] == {"basel": {"epsilon": SPENT.epsilon, "allowed": 4.0, "delta": DELTA}}
    assert (stated["unit"], stated["relation"]) == ("record", "zero-out")
    json.dumps(stated, allow_nan=False)


@pytest.mark.parametrize("unit", ["record", "record-distributed", "site", "site-local", "site-distributed"])
def test_a_statement_names_unit_delta_relation_sampling_adversary_and_what_it_does_not_cover(
    unit: Unit,
) -> None:
    statement = statement_for(
        unit, SPENT, sampling=SAMPLING, also_not_covered=("the weights of the classes",)
    )
    text = statement.text()
    for part in (
        f"ε = {SPENT.epsilon:.3g}",
        "δ = 1e-05",
        "empty one in its place",
        SAMPLING,
        statement.adversary,
        *statement.not_covered,
        "the weights of the classes",
    ):
        assert part in text
    assert len(statement.not_covered) >= 5


def test_the_adversary_of_each_unit_is_another() -> None:
    says = {
        unit: statement_for(unit, SPENT, sampling=SAMPLING)
        for unit in ("record", "record-distributed", "site", "site-local", "site-distributed")
    }
    assert len({statement.adversary for statement in says.values()}) == 5
    assert "the server itself is trusted" in says["site"].text()
    assert "the server included" in says["site-local"].text()
    assert "conspire" in says["site-distributed"].text()
    assert "conspire" in says["record-distributed"].text()
    for unit in ("record", "record-distributed"):
        assert "a single record" not in says[unit].text()
        assert "a person with several records" in says[unit].text()


def test_a_person_counts_at_one_site_or_at_all_together() -> None:
    at = {
        unit: statement_for(unit, SPENT, sampling=SAMPLING, records_per_person=3).text()
        for unit in ("record", "record-distributed")
    }
    assert "up to 3 records at a site" in at["record"]
    assert "up to 3 records at all honest sites together" in at["record-distributed"]
    assert "a person with records at several sites" in at["record"]
    assert "a person with records at several sites" not in at["record-distributed"]


@given(st.floats(0.0, 12.0), st.floats(1e-9, 0.1), st.floats(0.0, 1.0))
def test_no_test_of_any_gaussian_mechanism_beats_the_figures(
    epsilon: float, share: float, alarms: float
) -> None:
    """The exact receiver operating curve of a Gaussian mechanism lies below what its own (ε, δ) states."""
    shift = 0.05 + 3 * share * 10
    delta = float(
        stats.norm.cdf(shift / 2 - epsilon / shift)
        - math.exp(epsilon) * stats.norm.cdf(-shift / 2 - epsilon / shift)
    )
    delta = max(delta, 0.0)
    found = float(stats.norm.cdf(stats.norm.ppf(alarms) + shift))
    assert found <= hit_rate(alarms, epsilon, delta) + 1e-9
    assert float(stats.norm.cdf(shift / 2)) <= guess_rate(epsilon, delta) + 1e-9


def test_the_figures_are_reached_by_a_mechanism_that_spends_all_of_epsilon_and_delta() -> None:
    """Randomised response that shows the truth with probability δ: its best test, computed outcome by outcome."""
    epsilon, delta = 1.5, 0.01
    member = np.array(
        [
            delta,
            (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon)),
            (1 - delta) / (1 + math.exp(epsilon)),
            0,
        ]
    )
    outsider = member[::-1]
    assert np.maximum(member, outsider).sum() / 2 == pytest.approx(guess_rate(epsilon, delta), rel=1e-12)
    alarms = float(outsider[1])  # accuse on the first two outcomes
    assert member[:2].sum() == pytest.approx(hit_rate(alarms, epsilon, delta), rel=1e-12)


def test_without_epsilon_and_delta_nothing_beats_guessing() -> None:
    assert guess_rate(0.0, 0.0) == 0.5
    for alarms in (0.0, 0.3, 1.0):
        assert hit_rate(alarms, 0.0, 0.0) == pytest.approx(alarms)
    assert guess_rate(1e4, DELTA) == 1.0
    assert hit_rate(0.01, 1e4, DELTA) == 1.0


def test_the_odds_are_told_in_figures_that_can_be_checked() -> None:
    """At ε = ln 9: from 50% to 90%, and 9% of the members at 1% false alarms."""
    statement = replace(RECORD, epsilon=math.log(9), delta=1e-9)
    assert "at most 9 times as likely" in statement.text()
    assert "right at most 90.0% of the time" in statement.text()
    assert "finds at most 9.0% of those who were in" in statement.text()
    assert "middling" in statement.text()
    assert "strong" in replace(RECORD, epsilon=0.9).text()
    assert "weak" in replace(RECORD, epsilon=46.0).text()
    assert "practically 100%" in replace(RECORD, epsilon=46.0).text()


def test_what_no_bound_covers_is_said_to_have_no_guarantee() -> None:
    statement = statement_for("record", spent(NonPrivate(what="a mean"), DELTA), sampling=SAMPLING)
    assert "no guarantee" in statement.text()
    assert "times as likely" not in statement.text()
    stated = statement.as_dict()
    assert (stated["epsilon"], stated["guess_rate"], stated["hit_rate"]) == (None, None, None)
    assert SiteSpent(epsilon=math.inf, delta=DELTA).as_dict() == {
        "epsilon": None,
        "allowed": None,
        "delta": DELTA,
    }
    assert "practically nothing" in replace(RECORD, epsilon=0.0).text()


def test_a_seeded_run_says_that_it_protects_nothing_and_persons_are_told_apart_from_records() -> None:
    assert "seed" not in RECORD.text()
    assert "protects no real data" in replace(RECORD, seeded=True).text()
    persons = statement_for("record", SPENT, sampling=SAMPLING, records_per_person=4)
    assert "each person with up to 4 records" in persons.text()
    assert "record by record" in RECORD.text()
    assert "record by record" not in persons.text()


def test_a_bound_that_needs_a_hidden_cohort_says_so() -> None:
    cohort = CohortGaussian(noise_multiplier=2.0, rate=0.1, rounds=50)
    hidden = statement_for("site", spent(cohort, DELTA, hidden_cohort=True), sampling="a secret cohort")
    known = statement_for("site", spent(cohort, DELTA), sampling="a known cohort")
    assert "the cohort's secrecy is part of the bound" in hidden.text()
    assert "secrecy" not in known.text()


@pytest.mark.parametrize("relation", list(Relation))
def test_every_relation_is_explained(relation: Relation) -> None:
    statement = statement_for(
        "site", spent(Gaussian(noise_multiplier=2.0), DELTA, relation=relation), sampling="none"
    )
    assert "compared with" in statement.text()
    assert statement.as_dict()["relation"] == str(relation)


def test_figures_that_state_nothing_are_refused() -> None:
    changes: list[dict[str, object]] = [
        {"unit": "person"},
        {"epsilon": -0.1},
        {"epsilon": math.nan},
        {"delta": 0.0},
        {"delta": 1.0},
        {"records_per_person": 0},
    ]
    for change in changes:
        with pytest.raises(SpecError, match=next(iter(change))):
            replace(RECORD, **change)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="none"):
        statement_for("none", SPENT, sampling=SAMPLING)  # type: ignore[arg-type]
    assert isinstance(RECORD, PrivacyStatement)
    assert delta_at(Gaussian(noise_multiplier=1e9), 1.0) < 1e-12
