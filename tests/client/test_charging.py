"""A server asks for a round again and again: what it can make a site spend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloister.client.charging import Charge, SiteLedger, release
from cloister.core.errors import PolicyError
from cloister.core.spec import parse_federation
from cloister.privacy.ledger.telling import ToSite
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


def test_a_run_is_charged_again_only_as_often_as_the_site_allows(tmp_path: Path, plan: Plan) -> None:
    ledger = SiteLedger(
        path=tmp_path / "l.sqlite", key=tmp_path / "l.pem", site="a", dataset="d", durable=False
    )
    computed: list[tuple[int, str]] = []

    def ask(number: int, model: str, run: str = "run") -> None:
        charge = Charge(
            run=run, round_number=number, given=model, plan=plan, code_hash="c", told=ToSite(), repeats=2
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
