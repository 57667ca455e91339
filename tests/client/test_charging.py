"""A server asks for a round again and again: what it can make a site spend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.client.charging import Charge, RunBounds, SiteLedger, release
from cloister.core.errors import PolicyError
from cloister.core.spec import parse_federation
from cloister.privacy.ledger.heads import Head, sign_witness
from cloister.privacy.ledger.telling import FromSite, ToSite, Witness
from cloister.privacy.plan import Plan, plan_from

ROUNDS = 4


@pytest.fixture
def plan() -> Plan:
    tables = {
        "federation": {"name": "f", "rounds": ROUNDS},
        "task": {"use": "heart"},
        "cohort": {"min_sites": 3},
        "training": {"local_steps": 2, "batch_size": 8},
        "privacy": {
            "unit": "record",
            "noise_multiplier": 1.0,
            "delta": 1e-3,
            "clip": 1.0,
            "sampling_rate": 0.1,
        },
    }
    made = plan_from(parse_federation(tables, base=Path()).spec, 32)
    assert made is not None
    return made


@pytest.fixture
def ledger(tmp_path: Path) -> SiteLedger:
    return SiteLedger(
        path=tmp_path / "l.sqlite", key=tmp_path / "l.pem", site="a", dataset="d", durable=False
    )


def charged(
    ledger: SiteLedger,
    plan: Plan,
    number: int,
    model: str,
    *,
    run: str = "run",
    bounds: RunBounds = RunBounds(),  # noqa: B008 - frozen
    told: ToSite = ToSite(),  # noqa: B008 - frozen
) -> FromSite:
    """Ask for a round, with a model; return what the site tells of its ledger."""
    charge = Charge(
        run=run, round_number=number, given=model, plan=plan, code_hash="c", told=told, bounds=bounds
    )
    return release(ledger, charge, lambda: {"vector": np.zeros(3, np.float32)})[1]


def kinds(ledger: SiteLedger) -> list[str]:
    with ledger.open(create=False) as book:
        return [entry.kind for entry in book.entries]


def test_a_run_is_charged_again_only_as_often_as_the_site_allows(ledger: SiteLedger, plan: Plan) -> None:
    computed: list[tuple[int, str]] = []

    def ask(number: int, model: str, run: str = "run") -> None:
        charge = Charge(
            run=run,
            round_number=number,
            given=model,
            plan=plan,
            code_hash="c",
            told=ToSite(),
            bounds=RunBounds(repeats=2),
        )

        def compute() -> dict[str, np.ndarray]:
            computed.append((number, model))
            return {"vector": np.zeros(3, np.float32)}

        release(ledger, charge, compute)

    ask(1, "m1")
    ask(1, "m1")  # answered from what was kept
    ask(1, "m2")
    ask(2, "m1")
    ask(2, "m2")
    with pytest.raises(PolicyError) as refused:
        ask(2, "m3")
    assert refused.value.code == "policy-repeats"
    ask(3, "m1")  # the rounds that were agreed on go on
    ask(4, "m1")
    ask(1, "m1", run="another")  # each run has its own
    assert computed == [(1, "m1"), (1, "m2"), (2, "m1"), (2, "m2"), (3, "m1"), (4, "m1"), (1, "m1")]
    with ledger.open(create=False) as book:
        charged = [entry for entry in book.entries if entry.kind == "RESERVE" and entry.run == "run"]
        assert len(charged) == ROUNDS + 2


def test_repeated_rounds_count_against_what_a_run_may_cost(ledger: SiteLedger, plan: Plan) -> None:
    """There is room for one round more than the run has: a second repetition is refused, and the rounds to come are not."""
    bounds = RunBounds(epsilon=plan.spent(ROUNDS + 1).epsilon)
    charged(ledger, plan, 1, "m1", bounds=bounds)
    charged(ledger, plan, 1, "m2", bounds=bounds)
    with pytest.raises(PolicyError, match="once more") as refused:
        charged(ledger, plan, 1, "m3", bounds=bounds)
    assert refused.value.code == "policy-epsilon"
    for number in (2, 3, 4):
        charged(ledger, plan, number, "m1", bounds=bounds)
    with pytest.raises(PolicyError):
        charged(ledger, plan, 4, "m2", bounds=bounds)
    charged(ledger, plan, 1, "m1", run="another", bounds=bounds)
    with ledger.open(create=False) as book:
        spent = book.spent_by("run", unit=plan.unit, delta=plan.delta)
        assert spent == pytest.approx(plan.spent(ROUNDS + 1).epsilon)
        assert book.spent_by("another", unit=plan.unit, delta=plan.delta) == pytest.approx(
            plan.spent(1).epsilon
        )


def test_a_run_that_fits_exactly_ends_and_nothing_of_it_is_charged_twice(
    ledger: SiteLedger, plan: Plan
) -> None:
    bounds = RunBounds(epsilon=plan.spent(ROUNDS).epsilon)
    charged(ledger, plan, 1, "m1", bounds=bounds)
    with pytest.raises(PolicyError) as refused:
        charged(ledger, plan, 1, "m2", bounds=bounds)
    assert refused.value.code == "policy-epsilon"
    for number in (2, 3, 4):
        charged(ledger, plan, number, "m1", bounds=bounds)
    with pytest.raises(PolicyError):  # beyond the plan
        charged(ledger, plan, 5, "m1", bounds=bounds)
    assert kinds(ledger).count("RESERVE") == ROUNDS


class TestWitnesses:
    """What a server can make a ledger grow by: four signatures with each charge, and nothing else."""

    KEY = Ed25519PrivateKey.generate()

    def signed(self, head: Head, by: str = "server") -> Witness:
        return Witness(
            by=by,
            public_key=self.KEY.public_key().public_bytes_raw(),
            signature=sign_witness(head, self.KEY),
            head=head,
        )

    def test_asking_again_makes_no_line(self, ledger: SiteLedger, plan: Plan) -> None:
        head = charged(ledger, plan, 1, "m1").head
        before = kinds(ledger)
        for number in range(5):
            told = ToSite(heads=(head,), witnesses=(self.signed(head, f"server{number}"),))
            assert charged(ledger, plan, 1, "m1", told=told).head == head
        assert kinds(ledger) == before
        charged(ledger, plan, 2, "m2", told=ToSite(heads=(head,), witnesses=(self.signed(head),)))
        assert kinds(ledger).count("WITNESS") == 1, "with the next charge it is taken"

    def test_a_charge_takes_one_by_a_name_about_a_head_and_four_at_the_most(
        self, ledger: SiteLedger, plan: Plan
    ) -> None:
        head = charged(ledger, plan, 1, "m1").head
        many = ToSite(witnesses=(self.signed(head), self.signed(head)))
        charged(ledger, plan, 2, "m2", told=many)
        assert kinds(ledger).count("WITNESS") == 1
        charged(ledger, plan, 3, "m3", told=many)
        assert kinds(ledger).count("WITNESS") == 1
        many = ToSite(witnesses=tuple(self.signed(head, f"site{number}") for number in range(16)))
        charged(ledger, plan, 4, "m4", told=many)
        assert kinds(ledger).count("WITNESS") == 5

    def test_a_charge_that_is_refused_makes_no_line(self, ledger: SiteLedger, plan: Plan) -> None:
        head = charged(ledger, plan, 1, "m1").head
        with pytest.raises(PolicyError):
            charged(
                ledger,
                plan,
                1,
                "m2",
                told=ToSite(witnesses=(self.signed(head),)),
                bounds=RunBounds(repeats=0),
            )
        assert "WITNESS" not in kinds(ledger)
