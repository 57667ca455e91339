"""A site that shares garbage: the sum does not open, and the round goes on without it, unless that would show one site."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

from cloister.client.book import ContextShelf, Credentials, SessionBook
from cloister.core.errors import IntegrityError, PeersMissing
from cloister.core.spec import parse_federation
from cloister.privacy.identity import Identity
from cloister.privacy.ledger.inspection import inspect
from cloister.privacy.manifest import Floors, Manifest
from cloister.privacy.masking import sharing
from cloister.privacy.masking import site as masking_site
from cloister.privacy.masking.rehearsal import Stage
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import RunResult, simulate

pytestmark = pytest.mark.usefixtures("undrawn")

LIAR = "site-003"


def document(sites: int, **tables: dict[str, Any]) -> dict[str, Any]:
    base: dict[str, Any] = {
        "federation": {"name": "t", "rounds": 2},
        "task": {"use": "digits"},
        "cohort": {"sites": sites, "partition": {"by": "iid"}},
        "training": {"local_steps": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.5}},
        "evaluation": {"every": 0, "sites": False},
    }
    return {name: {**base.get(name, {}), **tables.get(name, {})} for name in base.keys() | tables.keys()}


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> None:
    """`LIAR` shares secrets that are not the ones it masks with."""
    honest = masking_site.SiteSession.share

    def share(self: Any, roster: Any) -> Any:
        if self._identity.name != LIAR:
            return honest(self, roster)
        with monkeypatch.context() as patch:
            real = sharing.shares_of
            patch.setattr(
                masking_site, "shares_of", lambda seed, key, **rest: real(bytes(32), bytes(32), **rest)
            )
            return honest(self, roster)

    monkeypatch.setattr(masking_site.SiteSession, "share", share)


def run(document: dict[str, Any], out: Path, *, ledgers: Path | None = None) -> RunResult:
    return simulate(parse_federation(document, base=Path()), out=out, engine=LocalEngine(0), ledgers=ledgers)


def events(made: Path, kind: str) -> list[dict[str, Any]]:
    lines = (made / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


@pytest.mark.usefixtures("liar")
def test_the_round_is_tried_again_without_it_and_without_enough_others(tmp_path: Path) -> None:
    made = run(document(7), tmp_path)
    first, second = events(made.run, "round")
    assert (first["answered"], second["answered"]) == (4, 6)  # 3 of 7 left out; then the liar alone
    text = next(event["text"] for event in events(made.run, "warning") if "signed" in event["text"])
    assert f"'{LIAR}'" in text
    asked = {event["site"] for event in events(made.run, "site") if event["round"] == 2}
    assert len(asked) == 6
    assert LIAR not in asked


@pytest.mark.usefixtures("liar")
def test_where_that_would_show_one_site_the_run_stops_and_names_it(tmp_path: Path) -> None:
    with pytest.raises(PeersMissing, match=LIAR):
        run(document(5), tmp_path)
    (folder,) = tmp_path.glob("t-*")
    assert not events(folder, "round")


@pytest.mark.slow
@pytest.mark.usefixtures("liar")
def test_noise_shares_are_drawn_and_charged_anew_for_the_second_sum(tmp_path: Path) -> None:
    private = document(
        7,
        federation={"rounds": 1},
        privacy={
            "unit": "record-distributed",
            "noise_multiplier": 1.0,
            "delta": 1e-5,
            "clip": 0.5,
            "sampling_rate": 0.1,
        },
    )
    made = run(private, tmp_path / "runs", ledgers=tmp_path / "ledgers")
    (event,) = events(made.run, "round")
    assert event["answered"] == 4
    asked = [one["site"] for one in events(made.run, "site") if one["phase"] == "train"]
    charged = {
        path.stem: sum(entry.kind == "RESERVE" for entry in inspect(path).chain.entries)
        for path in (tmp_path / "ledgers").rglob("*.sqlite")
    }
    assert charged == {name: asked.count(name) for name in set(asked)}
    assert sorted(charged.values()) == [1, 1, 1, 2, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.usefixtures("liar")
def test_in_groups_only_its_own_group_is_lost(tmp_path: Path) -> None:
    made = run(document(12, aggregation={"rule": "trimmed-mean", "byzantine": 1, "group_size": 3}), tmp_path)
    for event in events(made.run, "round"):
        assert event["answered"] == 9
        (lost,) = [group for group in event["groups"] if not group["answered"]]
        assert LIAR in lost["sites"]
        assert f"'{LIAR}'" in lost["reason"]


class TestWhatASiteOpensTwice:
    """Of one round and model: the same set, or a part of it that leaves out as many as the site's floor."""

    NAMES = tuple(f"site-{number}" for number in range(8))

    @pytest.fixture
    def manifest(self) -> Manifest:
        return Stage().manifest(8)

    @pytest.fixture
    def book(self) -> SessionBook:
        stage = Stage()
        identity: Identity = stage.sites(1)[0]
        own = Credentials(identity=identity, consortium=stage.consortium, floors=Floors())
        return SessionBook(ContextShelf(RecordDict()), own)

    def open(self, book: SessionBook, manifest: Manifest, names: tuple[str, ...]) -> None:
        with book.turn() as turn:
            turn.check_sites(manifest, names)
            turn.opened(manifest)

    def test_the_same_set_and_a_part_that_leaves_out_three(
        self, book: SessionBook, manifest: Manifest
    ) -> None:
        for names in (self.NAMES, self.NAMES, self.NAMES[:5], self.NAMES[:5], self.NAMES):
            self.open(book, manifest, names)

    @pytest.mark.parametrize(
        "second",
        [NAMES[:7], NAMES[:6], (*NAMES[:5], "site-9"), (*NAMES, "site-9")],
        ids=["one-less", "two-less", "another-in", "one-more"],
    )
    def test_no_other(self, book: SessionBook, manifest: Manifest, second: tuple[str, ...]) -> None:
        self.open(book, manifest, self.NAMES)
        with pytest.raises(IntegrityError) as refused:
            self.open(book, manifest, second)
        assert refused.value.code == "round-unmasked"

    def test_no_third_set(self, book: SessionBook, manifest: Manifest) -> None:
        self.open(book, manifest, self.NAMES)
        self.open(book, manifest, self.NAMES[:5])
        for third in (self.NAMES[1:6], self.NAMES[:4], self.NAMES[3:]):
            with pytest.raises(IntegrityError):
                self.open(book, manifest, third)

    def test_nor_in_another_round_with_the_same_model(self, book: SessionBook, manifest: Manifest) -> None:
        self.open(book, manifest, self.NAMES)
        with pytest.raises(IntegrityError):
            self.open(book, replace(manifest, round_number=2), self.NAMES[:5])
        self.open(book, replace(manifest, round_number=2, model="3" * 64), self.NAMES[:5])
