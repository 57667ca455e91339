"""``[audit]``: thresholds are read as written, and what could never bar a release is refused."""

from pathlib import Path
from typing import Any

import pytest

from cloister.core.errors import SpecError
from cloister.core.evidence import Finding
from cloister.core.spec import FederationSpec, parse_federation
from cloister.server.audit.thresholds import Measures, judged

SMALL = {"federation": {"name": "heart", "rounds": 3}, "task": {"use": "heart"}}


def spec(**audit: Any) -> FederationSpec:
    return parse_federation({**SMALL, "audit": audit}, base=Path()).spec


def finding(name: str, verdict: Any) -> Finding:
    return Finding(
        name=name, verdict=verdict, sentence="It was looked at.", power="It could have shown much."
    )


def met(require: dict[str, Any], *found: Finding, measures: Measures | None = None) -> dict[str, bool]:
    return {one.name: one.met for one in judged(spec(require=require), measures or Measures(), found)}


def test_a_file_without_thresholds_has_the_digest_that_it_had() -> None:
    loaded = parse_federation(SMALL, base=Path())
    assert "require" not in loaded.effective()["audit"]
    assert "checks" not in loaded.effective()["audit"]


def test_thresholds_are_a_part_of_the_digest() -> None:
    digests = {
        parse_federation({**SMALL, "audit": {"require": one}}, base=Path()).digest()
        for one in (
            {"epsilon_at_most": 8},
            {"epsilon_at_most": 9},
            {"backdoor": "pass"},
            {"backdoor": "warn"},
        )
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("audit", "reason"),
    [
        (
            {"require": {"accuracy_atleast": 0.75}},
            "accuracy_atleast = 0.75: .* did you mean 'accuracy_at_least'",
        ),
        ({"require": {"backdoor": "passed"}}, "backdoor"),
        ({"require": {"backdoor": 1}}, "backdoor"),
        ({"require": {"Back_door": "pass"}}, "Back_door"),
        ({"require": {"accuracy_at_least": 75}}, "accuracy_at_least"),
        ({"require": {"epsilon_at_most": -1}}, "epsilon_at_most"),
        ({"checks": ["fit", "fit"]}, "named twice"),
        ({"checks": ["../fit"]}, "checks"),
        ({"checks": ["fit"], "require": {"backdoor": "pass"}}, "a check that audit.checks leaves out"),
    ],
)
def test_what_is_no_threshold_is_refused(audit: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        spec(**audit)


@pytest.mark.parametrize(
    ("level", "admitted"),
    [
        ("pass", {"pass"}),
        ("warn", {"pass", "warn"}),
        ("not-failed", {"pass", "warn", "no power"}),
        ("any", {"pass", "warn", "no power", "fail"}),
    ],
)
def test_a_level_admits_what_it_says(level: str, admitted: set[str]) -> None:
    verdicts = ("pass", "warn", "no power", "fail")
    assert {one for one in verdicts if met({"fit": level}, finding("fit", one))["fit"]} == admitted


def test_a_check_that_is_not_named_must_not_have_failed() -> None:
    assert met({}, finding("fit", "no power")) == {"fit": True}
    assert met({}, finding("fit", "fail")) == {"fit": False}


def test_what_was_not_measured_or_made_is_not_met() -> None:
    require = {
        "epsilon_at_most": 8,
        "accuracy_at_least": 0.1,
        "auroc_at_least": 0.1,
        "worst_site_accuracy_at_least": 0.1,
        "fit": "not-failed",
    }
    assert met(require) == dict.fromkeys(require, False)
    nan = Measures(
        epsilon=float("inf"), accuracy=float("nan"), auroc=float("nan"), worst_site_accuracy=float("nan")
    )
    assert met(require, measures=nan) == dict.fromkeys(require, False)


def test_a_figure_at_its_threshold_is_met_and_one_beyond_is_not() -> None:
    require = {"epsilon_at_most": 8, "accuracy_at_least": 0.75}
    assert met(require, measures=Measures(epsilon=8.0, accuracy=0.75)) == dict.fromkeys(require, True)
    assert met(require, measures=Measures(epsilon=8.01, accuracy=0.749)) == dict.fromkeys(require, False)
