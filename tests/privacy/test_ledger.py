"""The ledger: reserve before computing, commit before anything leaves, one cap over all runs, and what a resume is told."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.core.errors import IntegrityError, PolicyError, SpecError
from cloister.privacy.ledger import Entry, Figures, Ledger, Rate, Reservation, sign_witness, verify

KEY = Ed25519PrivateKey.generate()
PEER = Ed25519PrivateKey.generate()
DELTA = 1e-5
EVENT = {"rho": 0.01}


def account(events: Sequence[Mapping[str, Any]], delta: float) -> float:
    """Compose zCDP: ρ's add up, ε = ρ + 2 √(ρ ln 1/δ) (Bun and Steinke 2016, Prop. 1.3)."""
    for event in events:
        if set(event) != {"rho"}:
            raise SpecError(f"unknown event {sorted(event)}", code="privacy-event")
    rho = math.fsum(event["rho"] for event in events)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def epsilon(rho: float, delta: float = DELTA) -> float:
    return account([{"rho": rho}], delta)


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "heart.sqlite"


def opened(path: Path, **options: Any) -> Ledger:
    settings = {
        "site": "north",
        "dataset": "heart",
        "key": KEY,
        "account": account,
        "wait_s": 0.0,
        "durable": False,
    }
    return Ledger.open(path, **{**settings, **options})


@pytest.fixture
def ledger(path: Path, clock: Clock) -> Iterator[Ledger]:
    with opened(path, clock=clock) as ledger:
        yield ledger


def reserve(
    ledger: Ledger, round_number: int = 1, event: Mapping[str, Any] = EVENT, **options: Any
) -> Reservation:
    settings = {"run": "a", "unit": "record", "relation": "zero-out", "delta": DELTA, "code_hash": "code"}
    return ledger.reserve(round_number=round_number, event=event, **{**settings, **options})


def kinds(entries: Sequence[Entry]) -> list[str]:
    return [entry.kind for entry in entries]


class TestCharging:
    def test_a_reservation_is_charged_before_anything_is_computed(self, ledger: Ledger, path: Path) -> None:
        reservation = reserve(
            ledger, figures=Figures(steps=3, noise_multiplier=1.1, clip=0.1, sampling_rate=0.02, survivors=4)
        )
        assert ledger.spent("record") == pytest.approx(epsilon(0.01))
        on_disk = verify(path, account=account)
        assert on_disk.ok
        assert on_disk.epsilon["record"] == pytest.approx((epsilon(0.01), DELTA))
        entry = reservation.entry
        assert (entry.steps, entry.noise_multiplier, entry.clip, entry.sampling_rate, entry.survivors) == (
            3,
            1.1,
            0.1,
            0.02,
            4,
        )
        assert (entry.site, entry.dataset, entry.run, entry.round, entry.attempt) == (
            "north",
            "heart",
            "a",
            1,
            1,
        )
        assert (entry.data, entry.delta, entry.code_hash, entry.relation) == (
            EVENT,
            DELTA,
            "code",
            "zero-out",
        )

    def test_epsilon_is_of_the_composition_and_never_a_sum(self, ledger: Ledger) -> None:
        for round_number in range(5):
            reserve(ledger, round_number).commit()
        assert ledger.spent("record") == pytest.approx(epsilon(0.05))
        assert ledger.spent("record") < 5 * epsilon(0.01) * 0.6
        assert ledger.spent("record", delta=1e-9) == pytest.approx(epsilon(0.05, 1e-9))
        assert [entry.epsilon_after for entry in ledger.entries[2::2]] == pytest.approx(
            [epsilon(0.01 * n) for n in range(1, 6)]
        )

    def test_an_abort_gives_back_and_a_commit_does_not(self, ledger: Ledger) -> None:
        kept, given = reserve(ledger, 1), reserve(ledger, 2)
        given.abort("the site left the round")
        kept.commit(output="digest")
        assert ledger.spent("record") == pytest.approx(epsilon(0.01))
        assert (kept.state, kept.output, given.state, given.output) == (
            "committed",
            "digest",
            "aborted",
            None,
        )
        assert [(b.committed, b.open, b.aborted) for b in ledger.budgets()] == [(1, 0, 1)]

    def test_units_are_kept_apart(self, ledger: Ledger) -> None:
        reserve(ledger, unit="record")
        reserve(ledger, event={"rho": 0.5}, unit="site")
        assert ledger.spent("record") == pytest.approx(epsilon(0.01))
        assert ledger.spent("site") == pytest.approx(epsilon(0.5))
        assert ledger.spent("none-such") == 0.0

    def test_a_commit_may_cost_less_than_was_reserved_and_is_then_charged_at_that(
        self, ledger: Ledger
    ) -> None:
        reservation = reserve(ledger, event={"rho": 0.04})
        reservation.noise_drawn()
        entry = reservation.commit(event={"rho": 0.01}, figures=Figures(steps=1))
        assert [ledger.spent("record"), entry.epsilon_after] == pytest.approx([epsilon(0.01)] * 2)
        assert entry.steps == 1
        assert ledger.verify().ok

    def test_a_commit_that_costs_more_is_refused_and_the_reservation_stays_charged(
        self, ledger: Ledger
    ) -> None:
        reservation = reserve(ledger)
        with pytest.raises(PolicyError) as caught:
            reservation.commit(event={"rho": 0.02})
        assert caught.value.code == "over-commit"
        assert reservation.state == "open"
        assert ledger.spent("record") == pytest.approx(epsilon(0.01))
        reservation.commit()
        assert ledger.verify().ok

    def test_an_event_without_privacy_is_charged_as_what_it_is(self, path: Path) -> None:
        with opened(path, account=lambda events, _: math.inf if events else 0.0) as ledger:
            assert reserve(ledger).entry.epsilon_after == math.inf
            ledger.set_cap(1e9, DELTA)
            with pytest.raises(PolicyError, match="from inf to inf"):
                reserve(ledger, 2)
            assert ledger.verify().ok

    def test_an_event_that_cannot_be_accounted_for_is_not_recorded(self, ledger: Ledger) -> None:
        with pytest.raises(SpecError, match="unknown event"):
            reserve(ledger, event={"sigma": 1.0})
        assert kinds(ledger.entries) == ["POLICY"]

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"run": ""}, "run = ''"),
            ({"run": "a\nb"}, "run = "),
            ({"round_number": -1}, "round = -1"),
            ({"round_number": 1.5}, "round = 1.5"),
            ({"attempt": 0}, "attempt = 0"),
            ({"delta": 0.0}, "delta = 0"),
            ({"delta": 1.0}, "delta = 1"),
            ({"delta": math.nan}, "delta = nan"),
            ({"unit": None}, "unit = None"),
            ({"code_hash": 7}, "code_hash = 7"),
            ({"event": {"rho": math.nan}}, "the number nan"),
        ],
    )
    def test_bad_input_is_refused_by_name_and_value_and_nothing_is_recorded(
        self, ledger: Ledger, wrong: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(PolicyError) as caught:
            reserve(ledger, **wrong)
        assert caught.value.code == "ledger-input"
        assert says in caught.value.message
        assert kinds(ledger.entries) == ["POLICY"]


class TestCap:
    def test_a_charge_that_would_pass_the_cap_is_refused_before_anything_happens(
        self, ledger: Ledger, path: Path
    ) -> None:
        ledger.set_cap(epsilon(0.02), DELTA)
        reserve(ledger, 1).commit()
        before = path.read_bytes()
        with pytest.raises(PolicyError) as caught:
            reserve(ledger, 2, {"rho": 0.0101})
        assert (caught.value.exit_code, caught.value.code) == (5, "budget")
        assert f"{epsilon(0.02):.4g}" in caught.value.message
        assert path.read_bytes() == before
        reserve(ledger, 2, {"rho": 0.01}).commit()  # to the cap exactly
        assert ledger.remaining("record") == pytest.approx(0.0)
        assert ledger.verify().ok

    def test_a_reservation_that_a_crash_left_open_counts_in_full(self, path: Path) -> None:
        with opened(path) as ledger:
            ledger.set_cap(epsilon(0.02), DELTA)
            reserve(ledger, 1)
        with opened(path) as ledger:
            with pytest.raises(PolicyError, match="above its cap"):
                reserve(ledger, 2, {"rho": 0.0101})
            assert [(b.committed, b.open, b.aborted) for b in ledger.budgets()] == [(0, 1, 0)]

    def test_two_runs_on_one_dataset_share_a_cap(self, path: Path) -> None:
        with opened(path) as ledger:
            ledger.set_cap(epsilon(0.03), DELTA)
            for round_number in range(2):
                reserve(ledger, round_number, run="first").commit()
        with opened(path) as ledger:
            reserve(ledger, 0, run="second").commit()
            with pytest.raises(PolicyError, match="above its cap"):
                reserve(ledger, 1, run="second")
            assert ledger.spent("record") == pytest.approx(epsilon(0.03))

    def test_a_whole_run_is_refused_before_its_first_round(self, ledger: Ledger, path: Path) -> None:
        ledger.set_cap(epsilon(0.03), DELTA)
        reserve(ledger).commit()
        before = path.read_bytes()
        settings: dict[str, Any] = {"unit": "record", "relation": "zero-out", "delta": DELTA}
        assert ledger.afford([EVENT] * 2, **settings) == pytest.approx(epsilon(0.03))
        with pytest.raises(PolicyError, match="above its cap"):
            ledger.afford([EVENT] * 3, **settings)
        assert path.read_bytes() == before

    def test_a_cap_without_a_unit_holds_for_each_unit_and_a_units_own_goes_first(
        self, ledger: Ledger
    ) -> None:
        ledger.set_cap(epsilon(0.01), DELTA)
        ledger.set_cap(epsilon(0.05), DELTA, unit="site")
        reserve(ledger, unit="record")
        reserve(ledger, unit="site-local")
        reserve(ledger, event={"rho": 0.05}, unit="site")
        for unit in ("record", "site", "site-local"):
            with pytest.raises(PolicyError, match=f"'{unit}'"):
                reserve(ledger, 2, {"rho": 0.001}, unit=unit)

    def test_a_cap_of_zero_allows_nothing_and_a_lowered_one_nothing_more(self, ledger: Ledger) -> None:
        reserve(ledger).commit()
        ledger.set_cap(epsilon(0.005), DELTA)
        assert ledger.remaining("record") == 0.0
        with pytest.raises(PolicyError, match="above its cap"):
            reserve(ledger, 2, {"rho": 1e-9})
        ledger.set_cap(0, DELTA, unit="site")
        with pytest.raises(PolicyError, match="above its cap"):
            reserve(ledger, unit="site", event={"rho": 1e-9})

    def test_only_the_site_raises_its_cap_and_the_ledger_remembers_each(self, ledger: Ledger) -> None:
        ledger.set_cap(epsilon(0.01), DELTA)
        reserve(ledger).commit()
        ledger.set_cap(epsilon(0.02), DELTA)
        reserve(ledger, 2).commit()
        assert kinds(ledger.entries) == [
            "POLICY",
            "POLICY",
            "RESERVE",
            "COMMIT",
            "POLICY",
            "RESERVE",
            "COMMIT",
        ]
        assert ledger.verify().ok

    def test_the_caps_delta_is_the_one_that_epsilon_is_stated_at(self, ledger: Ledger) -> None:
        ledger.set_cap(10, 1e-4)
        entry = reserve(ledger, delta=1e-6).entry
        assert (entry.delta, entry.at_delta) == (1e-6, 1e-4)
        assert entry.epsilon_after == pytest.approx(epsilon(0.01, 1e-4))
        with pytest.raises(PolicyError) as caught:
            reserve(ledger, 2, delta=2e-4)
        assert caught.value.code == "delta"

    def test_another_relation_is_refused(self, ledger: Ledger) -> None:
        with pytest.raises(PolicyError) as caught:
            reserve(ledger, relation="replace-one")
        assert caught.value.code == "relation"

    def test_the_rate_limits_what_is_charged_within_its_days(self, ledger: Ledger, clock: Clock) -> None:
        ledger.set_cap(epsilon(0.05), DELTA, rate=Rate(epsilon=epsilon(0.02), days=7))
        reserve(ledger, 1).commit()
        clock.now += timedelta(days=3)
        reserve(ledger, 2).commit()
        with pytest.raises(PolicyError, match="within 7 days") as caught:
            reserve(ledger, 3, {"rho": 0.001})
        assert caught.value.code == "budget"
        assert ledger.remaining("record") == pytest.approx(0.0)
        clock.now += timedelta(days=4, seconds=1)  # the first charge has left the window
        reserve(ledger, 3).commit()
        (budget,) = ledger.budgets()
        assert budget.window_epsilon == pytest.approx(epsilon(0.02))
        assert budget.epsilon == pytest.approx(epsilon(0.03))
        clock.now += timedelta(days=365)
        reserve(ledger, 4, {"rho": 0.02}).commit()
        clock.now += timedelta(days=365)
        with pytest.raises(PolicyError, match="above its cap"):  # which no time gives back
            reserve(ledger, 5, {"rho": 0.001})
        assert ledger.verify().ok

    def test_a_clock_that_is_set_back_opens_no_window(self, ledger: Ledger, clock: Clock) -> None:
        ledger.set_cap(10, DELTA, rate=Rate(epsilon=epsilon(0.01), days=7))
        reserve(ledger).commit()
        clock.now -= timedelta(days=30)
        with pytest.raises(PolicyError, match="within 7 days"):
            reserve(ledger, 2)
        ledger.audit({"note": "x"})
        assert sorted(entry.time for entry in ledger.entries) == [entry.time for entry in ledger.entries]
        assert ledger.verify().ok

    def test_how_often_an_event_still_fits(self, ledger: Ledger) -> None:
        assert ledger.more(EVENT, unit="record") is None
        assert ledger.remaining("record") is None
        ledger.set_cap(epsilon(0.105), DELTA)
        assert ledger.more(EVENT, unit="record") == 10
        for round_number in range(3):
            reserve(ledger, round_number).commit()
        assert ledger.more(EVENT, unit="record") == 7
        assert ledger.more({"rho": 1.0}, unit="record") == 0
        assert ledger.more({"rho": 1e-12}, unit="record") == 10_000
        assert ledger.more(EVENT, unit="site") == 10


class TestReservation:
    def test_it_is_committed_once_and_with_one_output(self, ledger: Ledger) -> None:
        reservation = reserve(ledger)
        first = reservation.commit(output="d")
        assert reservation.commit(output="d") == first
        for output in ("other", None):
            with pytest.raises(PolicyError) as caught:
                reservation.commit(output=output)
            assert caught.value.code == "already-committed"
        assert kinds(ledger.entries) == ["POLICY", "RESERVE", "COMMIT"]

    def test_it_is_given_back_only_before_noise_is_drawn(self, ledger: Ledger) -> None:
        reservation = reserve(ledger)
        reservation.noise_drawn()
        assert not reservation.may_compute
        with pytest.raises(PolicyError) as caught:
            reservation.abort("too late")
        assert caught.value.code == "already-drawn"
        with pytest.raises(PolicyError):
            reservation.noise_drawn()  # a second draw under one charge
        reservation.commit()
        with pytest.raises(PolicyError) as caught:
            reservation.abort("much too late")
        assert caught.value.code == "already-committed"
        assert ledger.spent("record") == pytest.approx(epsilon(0.01))

    def test_it_is_given_back_only_by_the_process_that_made_it(self, path: Path) -> None:
        with opened(path) as ledger:
            reserve(ledger)
        with opened(path) as ledger:
            found = ledger.find("a", 1, unit="record")
            assert found is not None
            with pytest.raises(PolicyError) as caught:
                found.abort("who knows whether noise was drawn?")
            assert caught.value.code == "already-drawn"

    def test_what_was_given_back_is_over(self, ledger: Ledger) -> None:
        reservation = reserve(ledger)
        reservation.abort("not needed")
        assert not reservation.may_reuse
        late: list[Callable[[], Entry]] = [reservation.commit, lambda: reservation.abort("again")]
        for act in late:
            with pytest.raises(PolicyError) as caught:
                act()
            assert caught.value.code == "already-aborted"

    def test_a_resume_is_told_whether_it_may_reuse_and_may_never_compute(self, path: Path) -> None:
        with opened(path) as ledger:
            assert ledger.find("a", 1, unit="record") is None
            reserve(ledger, 1).noise_drawn()
            reserve(ledger, 2).commit(output="kept")
            reserve(ledger, 3).abort("not needed")
        with opened(path) as ledger:
            found = [ledger.find("a", n, unit="record") for n in (1, 2, 3)]
            assert [(f.state, f.may_reuse, f.may_compute) for f in found if f] == [
                ("open", True, False),
                ("committed", True, False),
                ("aborted", False, False),
            ]
            assert found[0] is not None
            found[0].commit(output="kept through the crash")
            assert found[1] is not None
            found[1].commit(output="kept")
            assert kinds(ledger.entries).count("COMMIT") == 2
            assert ledger.find("a", 1, unit="site") is None
            assert ledger.find("b", 1, unit="record") is None

    def test_the_same_round_is_reserved_once_and_a_new_attempt_is_charged_anew(self, ledger: Ledger) -> None:
        reserve(ledger).commit()
        with pytest.raises(PolicyError) as caught:
            reserve(ledger)
        assert caught.value.code == "already-reserved"
        reserve(ledger, attempt=2).commit()
        assert ledger.spent("record") == pytest.approx(epsilon(0.02))
        newest = ledger.find("a", 1, unit="record")
        first = ledger.find("a", 1, unit="record", attempt=1)
        assert newest is not None
        assert first is not None
        assert (newest.entry.attempt, first.entry.attempt) == (2, 1)


class TestWitnesses:
    def test_a_witnessed_head_is_kept_and_verifies(self, ledger: Ledger, path: Path) -> None:
        reserve(ledger).commit()
        head = ledger.head()
        entry = ledger.witness(
            sign_witness(head, PEER), by="south", public_key=PEER.public_key().public_bytes_raw(), head=head
        )
        assert (entry.kind, entry.data["by"]) == ("WITNESS", "south")
        found = verify(path, account=account, witnessed=[head])
        assert (found.ok, found.witnesses) == (True, {"south": 2})

    def test_a_witness_that_does_not_hold_is_not_kept(self, ledger: Ledger, tmp_path: Path) -> None:
        head, public = ledger.head(), PEER.public_key().public_bytes_raw()
        with pytest.raises(IntegrityError) as caught:
            ledger.witness(sign_witness(head, KEY), by="south", public_key=public, head=head)
        assert caught.value.code == "ledger-witness"
        with opened(tmp_path / "other.sqlite", dataset="lung") as other:
            strange = other.head()
        with pytest.raises(IntegrityError) as caught:
            ledger.witness(sign_witness(strange, PEER), by="south", public_key=public, head=strange)
        assert caught.value.code == "ledger-head"
        assert kinds(ledger.entries) == ["POLICY"]

    def test_an_older_copy_of_all_files_is_refused_by_what_others_saw(
        self, path: Path, tmp_path: Path
    ) -> None:
        files = [path, path.with_name(path.name + ".head")]
        with opened(path) as ledger:
            reserve(ledger, 1).commit()
            old_head = ledger.head()
        kept = [file.read_bytes() for file in files]
        with opened(path) as ledger:
            reserve(ledger, 2).commit()
            head = ledger.head()
        for file, content in zip(files, kept, strict=True):
            file.write_bytes(content)
        with opened(path) as ledger:  # by itself an older copy is a sound ledger
            ledger.check_witnessed([old_head])
            with pytest.raises(IntegrityError) as caught:
                ledger.check_witnessed([old_head, head])
            assert (caught.value.code, caught.value.exit_code) == ("ledger-rollback", 7)
            reserve(ledger, 3).commit()  # another history, as long as the lost one
            with pytest.raises(IntegrityError) as caught:
                ledger.check_witnessed([head])
            assert caught.value.code == "ledger-rollback"
        assert [p.code for p in verify(path, account=account, witnessed=[head]).problems] == [
            "ledger-rollback"
        ]

    def test_a_forged_head_accuses_nobody(self, ledger: Ledger) -> None:
        head = ledger.head()
        forged = type(head)(**{**head.as_dict(), "seq": 7})
        with pytest.raises(IntegrityError) as caught:
            ledger.check_witnessed([forged])
        assert caught.value.code == "ledger-head"


class TestOpening:
    def test_an_audit_is_noted_and_charges_nothing(self, ledger: Ledger) -> None:
        ledger.set_cap(0, DELTA)
        entry = ledger.audit({"coins": "sealed"}, run="a")
        assert (entry.kind, entry.run, entry.data) == ("AUDIT", "a", {"coins": "sealed"})
        assert ledger.spent("record") == 0.0

    def test_another_site_dataset_or_key_is_refused(self, path: Path) -> None:
        opened(path).close()
        for options, code in (
            ({"site": "south"}, "ledger-other"),
            ({"dataset": "lung"}, "ledger-other"),
            ({"key": Ed25519PrivateKey.generate()}, "ledger-key"),
        ):
            with pytest.raises((PolicyError, IntegrityError)) as caught:
                opened(path, **options)
            assert caught.value.code == code
        opened(path).close()

    def test_a_lost_ledger_is_not_begun_anew_where_one_must_be(self, path: Path) -> None:
        with pytest.raises(IntegrityError) as caught:
            opened(path, create=False)
        assert caught.value.code == "ledger-absent"
        opened(path).close()
        path.unlink()
        with pytest.raises(IntegrityError) as caught:
            opened(path)  # its head file says that there was one
        assert caught.value.code == "ledger-rollback"

    def test_the_files_are_their_owners_alone(self, ledger: Ledger, path: Path) -> None:
        reserve(ledger).commit()
        files = sorted(path.parent.glob(path.name + "*"))
        assert {file.name.removeprefix(path.name) for file in files} == {"", ".head", ".lock", "-journal"}
        assert {file.stat().st_mode & 0o077 for file in files} == {0}

    def test_a_closed_ledger_takes_nothing(self, ledger: Ledger) -> None:
        ledger.close()
        with pytest.raises(PolicyError) as caught:
            reserve(ledger)
        assert caught.value.code == "ledger-closed"

    def test_a_file_that_was_replaced_while_open_takes_nothing(self, ledger: Ledger, path: Path) -> None:
        older = path.read_bytes()
        reserve(ledger).commit()
        path.unlink()
        path.write_bytes(older)
        with pytest.raises(IntegrityError) as caught:
            reserve(ledger, 2)
        assert caught.value.code == "ledger-changed"

    def test_a_file_that_was_overwritten_in_place_while_open_takes_nothing(
        self, ledger: Ledger, path: Path
    ) -> None:
        older = path.read_bytes()
        reserve(ledger).commit()
        path.write_bytes(older)
        with pytest.raises(IntegrityError) as caught:
            reserve(ledger, 2)
        assert caught.value.code == "ledger-changed"
        with pytest.raises(IntegrityError) as caught:
            reserve(ledger, 2)
        assert caught.value.code == "ledger-rollback"
