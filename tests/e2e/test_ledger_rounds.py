"""Every site's ledger in real runs: charged before it is computed, over all runs, through crashes, and no older copy is taken."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from cloister.client import charging
from cloister.client.app import make_client_app
from cloister.client.charging import Charge, SiteLedger, release
from cloister.client.kept import kept_output
from cloister.core import protocol
from cloister.core.errors import IntegrityError, PolicyError
from cloister.core.spec import load_federation
from cloister.core.spec.reading import parse_federation
from cloister.privacy.accounting import account
from cloister.privacy.events import to_json
from cloister.privacy.ledger import (
    Head,
    Ledger,
    Reservation,
    load_key,
    load_or_create_key,
    sign_witness,
    verify,
)
from cloister.privacy.ledger.telling import FromSite, ToSite, Witness
from cloister.privacy.record_plans import (
    DistributedRecordPlan,
    RecordPlan,
    distributed_record_plan,
    record_plan,
)
from cloister.simulation.engines import LocalEngine
from cloister.simulation.ledgers import SimulatedLedgers, dataset_of, keeps_ledgers
from cloister.simulation.live_array import LiveArray
from cloister.simulation.simulate import resume, simulate
from cloister.simulation.sites import SimulatedSites

pytestmark = pytest.mark.usefixtures("undrawn")

TABLES: dict[str, dict[str, Any]] = {
    "training": {"local_steps": 3},
    "privacy": {"unit": "record", "noise_multiplier": 1.1, "delta": 1e-4, "clip": 0.5, "sampling_rate": 0.2},
    "cohort": {"sites": 3, "partition": {"by": "iid"}, "per_round": "all"},
}
SITES = 3


def run(path: Path, home: Path, *overrides: str, sinks: Any = ()) -> Any:
    return simulate(
        load_federation(path, list(overrides)),
        out=home / "runs",
        engine=LocalEngine(0),
        sinks=sinks,
        ledgers=home / "ledgers",
    )


def ledgers(home: Path) -> list[Path]:
    return sorted((home / "ledgers").glob("*/*.sqlite"))


def kinds(path: Path) -> Counter[str]:
    with opened(path) as ledger:
        return Counter(entry.kind for entry in ledger.entries)


def opened(path: Path) -> Ledger:
    key = load_key(path.with_suffix(".pem"))
    return Ledger.open(
        path, site=path.stem, dataset="rings.py:Rings", key=key, account=account, durable=False
    )


def plan_of(path: Path) -> RecordPlan:
    plan = record_plan(load_federation(path).spec)
    assert plan is not None
    return plan


def test_a_run_leaves_a_ledger_at_every_site_that_verifies_and_says_what_the_report_says(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    made = run(make_file(**TABLES), tmp_path)
    assert len(ledgers(tmp_path)) == SITES
    for path in ledgers(tmp_path):
        found = verify(path, account=account)
        found.require()
        epsilon, delta = found.epsilon["record"]
        assert delta == 1e-4
        assert epsilon == pytest.approx(plan_of(make_file(**TABLES)).spent(4).epsilon)
        assert kinds(path)["RESERVE"] == kinds(path)["COMMIT"] == 4
        assert set(found.witnesses) == {"server", *found.witnesses.keys()}
        assert len(found.witnesses) == 2, "the server and one other site"
    told = [
        json.loads(line)
        for line in (made.run / "events.jsonl").read_text().splitlines()
        if '"privacy"' in line
    ]
    by_site = {event["site"]: event for event in told if event["kind"] == "privacy" and event["site"]}
    assert len(by_site) == SITES
    assert all(event["ledger"]["epsilon"] == pytest.approx(event["epsilon"]) for event in by_site.values())


@pytest.mark.slow
def test_ledgers_change_nothing_of_the_result(make_file: Callable[..., Path], tmp_path: Path) -> None:
    path = make_file(**TABLES)
    kept = run(path, tmp_path)
    bare = simulate(load_federation(path), out=tmp_path / "bare", engine=LocalEngine(2))
    pooled = simulate(
        load_federation(path), out=tmp_path / "pooled", engine=LocalEngine(2), ledgers=tmp_path / "others"
    )
    assert kept.model.read_bytes() == bare.model.read_bytes() == pooled.model.read_bytes()


def test_two_runs_share_a_cap_and_the_second_is_refused_before_any_training(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_file(**TABLES)
    plan = plan_of(path)
    run(path, tmp_path)
    with opened(ledgers(tmp_path)[1]) as ledger:
        ledger.set_cap(plan.spent(7).epsilon, 1e-4)
    before = [kinds(one) for one in ledgers(tmp_path)]
    with pytest.raises(PolicyError, match="do not allow 4 more rounds") as refused:
        run(path, tmp_path)
    assert (refused.value.code, refused.value.exit_code) == ("budget", 5)
    assert "site-002" in refused.value.message
    assert [kinds(one) for one in ledgers(tmp_path)] == before
    run(path, tmp_path, "federation.rounds=3")
    with opened(ledgers(tmp_path)[1]) as ledger:
        assert ledger.spent("record") == pytest.approx(plan.spent(7).epsilon, rel=1e-3)


class Meanwhile:
    """Another run spends at one site, after round 2, what was left for this one."""

    def __init__(self, home: Path, plan: RecordPlan) -> None:
        self.home, self.plan = home, plan

    def handle(self, event: Any) -> None:
        if event["kind"] == "round" and event["round"] == 2:
            with opened(ledgers(self.home)[1]) as ledger:
                ledger.set_cap(self.plan.spent(4).epsilon, 1e-4)
                two = to_json(self.plan.event(2))
                ledger.reserve("other", 1, two, unit="record", relation="zero-out", delta=1e-4, code_hash="x")

    def close(self) -> None:
        pass


def test_a_run_that_a_cap_leaves_without_enough_sites_ends_with_the_best_model(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_file(**TABLES)
    with pytest.raises(PolicyError, match=r"the model of round [12] is released") as ended:
        run(path, tmp_path, "cohort.min_sites=3", sinks=(Meanwhile(tmp_path, plan_of(path)),))
    assert (ended.value.code, ended.value.exit_code) == ("budget", 5)
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "model.safetensors").exists()
    report = json.loads((folder / "report.json").read_text())
    assert (report["status"], report["rounds"]["done"] if isinstance(report["rounds"], dict) else 2) == (
        "failed",
        2,
    )
    assert kinds(ledgers(tmp_path)[0])["RESERVE"] == 3, "nobody was asked again and again"


def test_a_run_goes_on_without_a_site_whose_cap_is_reached(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_file(**TABLES)
    made = run(
        path,
        tmp_path,
        "aggregation.protection=plain",
        "cohort.min_sites=2",
        sinks=(Meanwhile(tmp_path, plan_of(path)),),
    )
    lines = (made.run / "events.jsonl").read_text().splitlines()
    rounds = [event for event in map(json.loads, lines) if event["kind"] == "round"]
    assert [event["answered"] for event in rounds] == [3, 3, 2, 2]
    assert "budget" in rounds[2]["refused"][0]["reason"]
    assert kinds(ledgers(tmp_path)[1])["COMMIT"] == 2


def test_an_older_copy_of_a_ledger_is_refused_though_it_verifies(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_file(**TABLES)
    run(path, tmp_path, "federation.rounds=2")
    victim = ledgers(tmp_path)[0]
    copies = {one: one.read_bytes() for one in (victim, victim.with_name(victim.name + ".head"))}
    run(path, tmp_path, "federation.rounds=2")
    for one, content in copies.items():
        one.write_bytes(content)
    verify(victim, account=account).require()
    with pytest.raises(IntegrityError, match="ledger-rollback") as refused:
        run(path, tmp_path, "federation.rounds=2")
    assert (refused.value.exit_code, "site-001" in refused.value.message) == (7, True)


def test_a_new_ledger_in_the_place_of_a_lost_one_is_refused(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_file(**TABLES)
    run(path, tmp_path, "federation.rounds=1")
    victim = ledgers(tmp_path)[2]
    for one in victim.parent.glob(victim.stem + "*"):
        one.unlink()
    with pytest.raises(IntegrityError, match="ledger-"):
        run(path, tmp_path, "federation.rounds=1")


@pytest.mark.slow
def test_a_resumed_run_comes_to_the_same_model_and_never_under_counts(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_file(**TABLES)
    unbroken = run(path, tmp_path / "unbroken")

    class Stop:
        def handle(self, event: Any) -> None:
            if event["kind"] == "site" and event["round"] == 3:
                raise KeyboardInterrupt

        def close(self) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path, sinks=(Stop(),))
    (folder,) = (tmp_path / "runs").iterdir()
    made = resume(folder, engine=LocalEngine(2))
    assert made.model.read_bytes() == unbroken.model.read_bytes()
    for one in ledgers(tmp_path):
        verify(one, account=account).require()
        assert kinds(one)["RESERVE"] == 4, "what was kept was sent again, under the same charge"


def killed(work: Callable[[], object]) -> None:
    """Run ``work`` in a child that kills itself in the middle of it."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child came through"


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def new_site(tmp_path: Path) -> SiteLedger:
    return SiteLedger(
        path=tmp_path / "a.sqlite", key=tmp_path / "a.pem", site="a", dataset="d", durable=False, wait_s=5
    )


def shared(path: Path, *, in_clear: bool) -> DistributedRecordPlan:
    overrides = [
        "privacy.unit='record-distributed'",
        "cohort.per_round='all'",
        "cohort.min_sites=3",
        "training={local_steps=1, batch_size=16}",
    ]
    return replace(distributed_record_plan(load_federation(path, overrides).spec), in_clear=in_clear)


def charge(path: Path, **changes: Any) -> Charge:
    given: dict[str, Any] = {
        "run": "r",
        "round_number": 1,
        "given": "model",
        "code_hash": "c",
        "told": ToSite(),
        "plan": plan_of(path),
    } | changes
    return Charge(**given)


def arrays(value: float = 1.0) -> dict[str, Any]:
    return {"vector": np.full(5, value, np.float32)}


def charged(site: SiteLedger) -> int:
    found = verify(site.path, account=account)
    found.require()
    with site.open() as ledger:
        return sum(entry.kind == "RESERVE" for entry in ledger.entries)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork in a process with threads
@pytest.mark.parametrize(
    ("moment", "kept", "charges"),
    [("before", False, 0), ("compute", False, 1), ("keep", False, 1), ("commit", True, 1), ("send", True, 1)],
)
def test_killed_at_any_moment_a_round_is_charged_and_its_noise_never_drawn_twice(
    make_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    kept: bool,
    charges: int,
) -> None:
    path, site = make_file(**TABLES), new_site(tmp_path)
    with site.open():
        pass

    def work() -> None:
        if moment == "before":
            monkeypatch.setattr(charging, "_reserve", die)
        if moment == "keep":
            monkeypatch.setattr(charging, "keep", die)
        if moment == "commit":
            monkeypatch.setattr(Reservation, "commit", die)
        release(site, charge(path), die if moment == "compute" else arrays)
        die()

    killed(work)
    assert charged(site) == charges
    drawn: list[int] = []

    def again() -> dict[str, Any]:
        drawn.append(1)
        return arrays(2.0)

    answer, told = release(site, charge(path), again)
    assert answer["vector"][0] == (1.0 if kept else 2.0)
    assert len(drawn) == (0 if kept else 1)
    assert charged(site) == (charges if kept else charges + 1)
    assert told.epsilon == pytest.approx(plan_of(path).spent(charged(site)).epsilon)


def test_a_round_asked_for_again_is_answered_with_what_was_kept_and_another_model_costs_anew(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path, site = make_file(**TABLES), new_site(tmp_path)
    first, _ = release(site, charge(path), arrays)
    again, _ = release(site, charge(path), lambda: pytest.fail("noise was drawn twice"))
    assert np.array_equal(first["vector"], again["vector"])
    assert charged(site) == 1
    other, _ = release(site, charge(path, given="another model"), lambda: arrays(3.0))
    assert (other["vector"][0], charged(site)) == (3.0, 2)


@pytest.mark.parametrize("in_clear", [True, False])
def test_a_message_under_a_share_of_the_noise_goes_into_one_sum(
    make_file: Callable[..., Path], tmp_path: Path, in_clear: bool
) -> None:
    """Seen by itself anyway, it may be sent again; where only sums are seen, a round asked for again costs anew."""
    path, site = make_file(**TABLES), new_site(tmp_path)
    one = charge(path, plan=shared(path, in_clear=in_clear))
    first, _ = release(site, one, arrays)
    again, _ = release(site, one, lambda: arrays(2.0))
    assert np.array_equal(first["vector"], again["vector"]) == in_clear
    assert charged(site) == (1 if in_clear else 2)


def test_a_kept_update_that_was_changed_is_not_sent(make_file: Callable[..., Path], tmp_path: Path) -> None:
    path, site = make_file(**TABLES), new_site(tmp_path)
    release(site, charge(path), arrays)
    (file,) = tmp_path.glob("*.kept-*")
    assert file.stat().st_mode & 0o777 == 0o600
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert kept_output(site.path, "r", 1, 1, "model") is None
    answer, _ = release(site, charge(path), lambda: arrays(2.0))
    assert (answer["vector"][0], charged(site)) == (2.0, 2)


def test_only_the_newest_runs_updates_stay_on_disk(make_file: Callable[..., Path], tmp_path: Path) -> None:
    path, site = make_file(**TABLES), new_site(tmp_path)
    for number in range(6):
        release(site, charge(path, run=f"run-{number}"), arrays)
    assert len(list(tmp_path.glob("*.kept-*"))) == 4


def test_a_site_without_budget_computes_nothing(make_file: Callable[..., Path], tmp_path: Path) -> None:
    path, site = make_file(**TABLES), new_site(tmp_path)
    with site.open() as ledger:
        ledger.set_cap(0.0, 1e-4)
    with pytest.raises(PolicyError) as refused:
        release(site, charge(path), lambda: pytest.fail("it computed"))
    assert refused.value.code == "budget"
    assert charged(site) == 0


def test_what_a_site_tells_is_read_whole_or_not_at_all(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path, site = make_file(**TABLES), new_site(tmp_path)
    _, told = release(site, charge(path), arrays)
    assert FromSite.from_json(told.to_json()) == told
    plain = json.loads(told.to_json())
    changes: list[dict[str, Any]] = [
        {"epsilon": float("nan")},
        {"epsilon": -1.0},
        {"epsilon": "1"},
        {"cap": True},
        {"signed": {}},
        {"signed": [1] * 17},
        {"head": {**plain["head"], "seq": 999}},
        {"extra": 1},
        {"epsilon": 10**400},
        {"cap": 10**400},
        {"delta": 5.0},
        {"head": {**plain["head"], "seq": 10**400}},
        {"head": {**plain["head"], "dataset": "é" * 30_000}},
    ]
    for change in changes:
        with pytest.raises(IntegrityError):
            FromSite.from_json(json.dumps(plain | change))
    for text in (None, 7, "no json", "[]", "[" * 100_000, " " * 70_000):
        with pytest.raises(IntegrityError):
            FromSite.from_json(text)


def test_the_server_takes_no_older_head_and_nobody_elses(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path, site = make_file(**TABLES), new_site(tmp_path)
    other = SiteLedger(
        path=tmp_path / "b.sqlite", key=tmp_path / "b.pem", site="b", dataset="d", durable=False
    )
    _, first = release(site, charge(path), arrays)
    _, second = release(site, charge(path, round_number=2), arrays)
    _, foreign = release(other, charge(path), arrays)
    spec = load_federation(path).spec
    seen = SimulatedLedgers(tmp_path / "l").witnesses(spec)
    assert seen.take("a", second) is None
    assert seen.take("a", second) is None, "the same head again: what was kept was sent again"
    assert str(seen.take("a", first)).startswith("ledger-rollback")
    assert str(seen.take("a", foreign)).startswith("ledger-other")
    seen.save()
    later = SimulatedLedgers(tmp_path / "l").witnesses(spec)
    assert later.tell("a", ["a"]).heads == (second.head,)
    assert later.tell("a", ["a"]).witnesses[0].by == "server"
    assert str(later.take("a", first)).startswith("ledger-rollback")
    next((tmp_path / "l").glob("*/seen.json")).write_text("{}x")
    with pytest.raises(IntegrityError, match="seen"):
        SimulatedLedgers(tmp_path / "l").witnesses(spec)


def test_a_head_with_names_that_no_ledger_has_is_refused_though_it_is_signed(tmp_path: Path) -> None:
    """One that is stored, and shown to others, would lock them out."""
    site = SiteLedger(
        path=tmp_path / "a.sqlite", key=tmp_path / "a.pem", site="a", dataset="d", durable=False
    )
    with site.open() as ledger:
        head = ledger.head()
    key = load_key(site.key)
    for change in ({"dataset": "é" * 30_000}, {"site": ""}, {"seq": -5}, {"seq": 10**400}):
        bare = replace(head, **change)
        signed = replace(bare, signature=key.sign(b"cloister ledger head 1\n" + bare.message()).hex())
        with pytest.raises(IntegrityError, match="that none has"):
            Head.from_dict(signed.as_dict())
    assert Head.from_dict(head.as_dict()) == head


def test_two_runs_at_once_do_not_lose_what_the_server_saw(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path, site = make_file(**TABLES), new_site(tmp_path)
    spec, folder = load_federation(path).spec, SimulatedLedgers(tmp_path / "l")
    slow, quick = folder.witnesses(spec), folder.witnesses(spec)
    _, first = release(site, charge(path), arrays)
    _, second = release(site, charge(path, round_number=2), arrays)
    assert slow.take("a", first) is None
    assert quick.take("a", second) is None
    quick.save()
    slow.save()
    assert folder.witnesses(spec).tell("a", ["a"]).heads == (second.head,)


def test_two_data_sets_of_one_site_are_witnessed_apart(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_file(**TABLES)
    run(path, tmp_path, "federation.rounds=1")
    (tmp_path / "others.py").write_text((tmp_path / "rings.py").read_text())
    run(path, tmp_path, "federation.rounds=1", 'task.use="others.py:Rings"')
    assert len(ledgers(tmp_path)) == 2 * SITES


def test_a_signature_under_another_key_of_a_known_name_is_not_taken(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path, site = make_file(**TABLES), new_site(tmp_path)
    _, told = release(site, charge(path), arrays)

    def signed(name: str) -> Witness:
        key = load_or_create_key(tmp_path / name)
        public = key.public_key().public_bytes_raw()
        return Witness(by="b", public_key=public, signature=sign_witness(told.head, key), head=told.head)

    honest, forged = signed("b.pem"), signed("c.pem")
    for number, witnesses in enumerate([(honest,), (forged,), (honest, honest, forged)], start=2):
        release(site, charge(path, round_number=number, told=ToSite(witnesses=witnesses)), arrays)
    with site.open() as ledger:
        assert [entry.kind for entry in ledger.entries].count("WITNESS") == 1


@pytest.mark.parametrize("number", [0, 5, 99])
def test_a_round_that_the_federation_does_not_have_is_refused_uncharged(
    make_file: Callable[..., Path], tmp_path: Path, number: int
) -> None:
    reply = asked(make_file(**TABLES), tmp_path, number)
    assert reply["code"] == "job-malformed"
    assert not list(tmp_path.glob("l/*/*.sqlite"))


def test_a_site_that_keeps_a_ledger_does_not_train_without_privacy(
    make_file: Callable[..., Path], tmp_path: Path, cloister: Any
) -> None:
    path = make_file()
    for kind in ("train", "evaluate"):
        assert asked(path, tmp_path, 1, kind)["code"] == "budget"
    refused = cloister("simulate", path, "--ledgers", tmp_path / "l", "--json")
    assert (refused.returncode, "no differential privacy" in refused.stdout) == (2, True)


def asked(path: Path, home: Path, number: int, kind: str = "train") -> Any:
    """Send one message to the ClientApp of a site that keeps a ledger; return its refusal."""
    loaded = load_federation(path)
    sites = SimulatedSites(json.dumps(loaded.effective()), loaded.base, SimulatedLedgers(home / "l"))
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 9
    layout = sites.bench.trainer.layout
    job: dict[str, Any] = {
        "protocol": protocol.PROTOCOL,
        "run": "r",
        "round": number,
        "federation": sites.federation,
        "layout": layout.digest,
    }
    record = ArrayRecord()
    record[protocol.VECTOR] = LiveArray(layout.read(sites.bench.trainer.model))
    content = RecordDict({protocol.JOB: ConfigRecord(job), protocol.MODEL: record})
    context = Context(run_id=1, node_id=1, node_config={"partition-id": 0}, state=RecordDict(), run_config={})
    reply = make_client_app(sites)(Message(content, 1, kind), context)
    return reply.content.config_records[protocol.REFUSAL]


def test_a_lost_key_is_not_replaced_by_a_new_one(make_file: Callable[..., Path], tmp_path: Path) -> None:
    path, site = make_file(**TABLES), new_site(tmp_path)
    release(site, charge(path), arrays)
    site.key.unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        release(site, charge(path, round_number=2), arrays)
    assert not site.key.exists()


@pytest.mark.slow
def test_a_private_report_counts_no_records_of_a_site(make_file: Callable[..., Path], tmp_path: Path) -> None:
    made = run(make_file(**TABLES), tmp_path)
    bare = simulate(
        load_federation(make_file(privacy={}, cohort=TABLES["cohort"])),
        out=tmp_path / "bare",
        engine=LocalEngine(0),
    )
    told = [json.loads((one.run / "report.json").read_text())["partition"] for one in (made, bare)]
    assert not told[0]
    assert told[1]["sites"]


def test_a_run_without_its_ledgers_note_is_not_resumed_uncharged(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    made = run(make_file(**TABLES), tmp_path)
    (made.run / "ledgers.txt").unlink()
    with pytest.raises(IntegrityError, match="ledgers"):
        resume(made.run, engine=LocalEngine(0))


def test_a_paid_round_is_released_when_a_cap_ends_the_run(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    """No checkpoint between, nothing measured: the last model is there all the same."""
    path = make_file(**TABLES, evaluation={"every": 0, "central": False})
    with pytest.raises(PolicyError, match="round 2 is released"):
        run(
            path,
            tmp_path,
            "cohort.min_sites=3",
            "federation.checkpoint_every=10",
            sinks=(Meanwhile(tmp_path, plan_of(path)),),
        )


def test_sites_that_own_their_data_keep_ledgers_and_virtual_ones_do_not(
    make_file: Callable[..., Path],
) -> None:
    virtual = load_federation(make_file(**TABLES)).spec
    assert not keeps_ledgers(virtual)
    base = {"federation": {"name": "x", "rounds": 1}, "training": TABLES["training"]}
    heart = parse_federation(
        {**base, "task": {"use": "heart"}, "privacy": TABLES["privacy"]}, base=Path()
    ).spec
    assert keeps_ledgers(heart)
    assert dataset_of(heart) == "heart"
    table = {"use": "tabular", "data": "data/loans.csv", "target": "x"}
    assert dataset_of(parse_federation({**base, "task": table}, base=Path()).spec) == "tabular loans.csv"


@pytest.mark.slow
def test_the_command_caps_and_refuses(make_file: Callable[..., Path], tmp_path: Path, cloister: Any) -> None:
    path = make_file(**TABLES)
    ledger = tmp_path / "ledgers" / "rings.py:Rings" / "x.sqlite"
    missing = cloister("ledger", "cap", ledger, "--epsilon", 1, "--delta", 1e-4, "--json")
    assert (missing.returncode, "--site" in json.loads(missing.stdout)["error"]["remedy"]) == (2, True)
    arguments = ("simulate", path, "--out", "runs", "--ledgers", tmp_path / "ledgers", "--workers", 0)
    assert cloister(*arguments).returncode == 0
    one = ledgers(tmp_path)[0]
    capped = cloister("ledger", "cap", one, "--epsilon", 0.5, "--delta", 1e-4, "--json")
    assert json.loads(capped.stdout)["cap"]["epsilon"] == 0.5
    foretold = cloister("ledger", "predict", one, path, "--json")
    assert (foretold.returncode, json.loads(foretold.stdout)["error"]["code"]) == (5, "budget")
    plan = plan_of(path)
    ok = json.loads(cloister("ledger", "predict", ledgers(tmp_path)[1], path, "--json").stdout)
    assert ok["run"]["epsilon"] == pytest.approx(plan.spent(4).epsilon)
    assert ok["ledger"]["before"] == pytest.approx(plan.spent(4).epsilon)
    assert ok["ledger"]["after"] == pytest.approx(plan.spent(8).epsilon)
    open_file = make_file(privacy={})
    nothing = cloister("ledger", "predict", one, open_file, "--json")
    assert nothing.returncode == 2
    path = make_file(**TABLES)
    refused = cloister(*arguments, "--json")
    assert (refused.returncode, json.loads(refused.stdout)["error"]["code"]) == (5, "budget")
    shutil.copy(one.with_suffix(".pem"), tmp_path / "copy.pem")
    (tmp_path / "copy.pem").chmod(0o644)
    unsafe = cloister("ledger", "cap", one, "--epsilon", 9, "--delta", 1e-4, "--key", tmp_path / "copy.pem")
    assert unsafe.returncode == 7
