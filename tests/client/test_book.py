"""What a site remembers of secure sessions: kept in turns, over restarts, and never two sums of one round."""

from __future__ import annotations

import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict

from cloister.client.book import ContextShelf, Credentials, SessionBook, Shelf
from cloister.client.run_files import FileShelf, forget_runs, short_name
from cloister.core.errors import IntegrityError, StorageError
from cloister.privacy.identity import ConsortiumAuthority, Role
from cloister.privacy.manifest import Floors, Manifest, cohort_digest

AUTHORITY = ConsortiumAuthority("c", Ed25519PrivateKey.generate())
OWN = Credentials(
    identity=AUTHORITY.identity("ann", Role.SITE, Ed25519PrivateKey.generate()),
    consortium=AUTHORITY.consortium(),
    floors=Floors(),
)
ALL, FEWER = ("ann", "bob", "cy", "dee"), ("ann", "bob", "cy")


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "run": "r",
        "round_number": 1,
        "serial": 1,
        "kind": "train",
        "federation": "a" * 64,
        "layout": "b" * 64,
        "model": "c" * 64,
        "cohort": cohort_digest(ALL),
        "cohort_size": 4,
        "least": 3,
        "threshold": 3,
        "degree": 3,
        "size": 10,
        "largest": 1000,
    }
    return Manifest(**{**fields, **changes})


@pytest.fixture(params=["context", "file"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    return ContextShelf(RecordDict()) if request.param == "context" else FileShelf(tmp_path / "l.sqlite", "r")


def open_sum(book: SessionBook, made: Manifest, sites: tuple[str, ...]) -> None:
    with book.turn() as turn:
        turn.check_round(made)
        turn.check_sites(made, sites)
    with book.turn() as turn:
        turn.opened(made)


def test_a_round_is_opened_for_the_same_sites_again_and_for_no_others(shelf: Shelf) -> None:
    book = SessionBook(shelf, OWN)
    open_sum(book, manifest(), ALL)
    open_sum(book, manifest(serial=2), ALL)
    with pytest.raises(IntegrityError) as refused:
        open_sum(book, manifest(serial=3), FEWER)
    assert refused.value.code == "round-unmasked"


@pytest.mark.parametrize(
    ("change", "sites", "holds"),
    [
        ({"round_number": 2, "model": "d" * 64}, FEWER, True),
        ({"round_number": 2}, ALL, True),
        ({"round_number": 2}, FEWER, False),  # the same model under another number of a round
        ({"model": "d" * 64}, ALL, False),  # the same round with another model
        ({"kind": "evaluate"}, FEWER, True),  # sums of another kind are others
    ],
)
def test_a_model_is_no_more_opened_for_other_sites_than_a_round_is(
    shelf: Shelf, change: dict[str, Any], sites: tuple[str, ...], holds: bool
) -> None:
    book = SessionBook(shelf, OWN)
    open_sum(book, manifest(), ALL)
    if holds:
        open_sum(book, manifest(serial=2, **change), sites)
        return
    with pytest.raises(IntegrityError, match="could show one site's share"):
        open_sum(book, manifest(serial=2, **change), sites)


def test_an_earlier_round_is_refused(shelf: Shelf) -> None:
    book = SessionBook(shelf, OWN)
    open_sum(book, manifest(round_number=5), ALL)
    with pytest.raises(IntegrityError, match="of a later round"), book.turn() as turn:
        turn.check_round(manifest(round_number=4, serial=9))


def test_a_round_that_was_only_agreed_to_may_go_on_without_a_site(shelf: Shelf) -> None:
    book = SessionBook(shelf, OWN)
    with book.turn() as turn:
        turn.check_sites(manifest(), ALL)  # confirmed, and never revealed
    open_sum(book, manifest(serial=2), FEWER)


def test_a_turn_that_fails_changes_nothing(shelf: Shelf) -> None:
    book = SessionBook(shelf, OWN)
    with pytest.raises(IntegrityError), book.turn() as turn:  # noqa: PT012 - the turn is what fails
        turn.begin(manifest(serial=7))
        turn.take_ciphertext()  # there is none
    with book.turn() as turn:
        assert turn.newest == 0
        turn.begin(manifest(serial=7))
    with pytest.raises(IntegrityError, match="serial 7"), book.turn() as turn:
        turn.begin(manifest(serial=7))


def test_a_ciphertext_is_handed_out_once(shelf: Shelf) -> None:
    book = SessionBook(shelf, OWN)
    with book.turn() as turn:
        turn.keep_ciphertext(manifest(), b"\0secret\xff")
    with book.turn() as turn:
        assert turn.take_ciphertext() == (manifest(), b"\0secret\xff")
    with pytest.raises(IntegrityError, match="no secure session"), book.turn() as turn:
        turn.take_ciphertext()


def test_a_file_outlives_what_a_transport_forgets_and_is_its_owners_alone(tmp_path: Path) -> None:
    open_sum(SessionBook(FileShelf(tmp_path / "l.sqlite", "r"), OWN), manifest(), ALL)
    again = SessionBook(FileShelf(tmp_path / "l.sqlite", "r"), OWN)
    with pytest.raises(IntegrityError, match="could show"):
        open_sum(again, manifest(serial=2), FEWER)
    open_sum(SessionBook(FileShelf(tmp_path / "l.sqlite", "another run"), OWN), manifest(), FEWER)
    path = min(tmp_path.glob("*.sessions-*.json"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{", '{"session": ', "\xff"])
def test_a_file_that_cannot_be_read_stops_the_site(tmp_path: Path, text: str) -> None:
    shelf = FileShelf(tmp_path / "l.sqlite", "r")
    with SessionBook(shelf, OWN).turn() as turn:
        turn.begin(manifest())
    (path,) = tmp_path.glob("*.json")
    path.write_text(text, encoding="latin-1")
    with pytest.raises(IntegrityError) as refused, SessionBook(shelf, OWN).turn():
        pass
    assert refused.value.code == "session-store"


def test_of_two_messages_that_arrive_together_one_sees_what_the_other_did(tmp_path: Path) -> None:
    """A server that asks for two sets of survivors at once: only one of them is agreed to and opened."""
    begin, outcomes = threading.Barrier(2), []

    def ask(sites: tuple[str, ...]) -> None:
        book = SessionBook(FileShelf(tmp_path / "l.sqlite", "r", durable=False), OWN)
        begin.wait()
        try:
            with book.turn() as turn:
                turn.check_sites(manifest(), sites)
                turn.opened(manifest())
            outcomes.append("opened")
        except IntegrityError as error:
            outcomes.append(error.code)

    for _ in range(20):
        threads = [threading.Thread(target=ask, args=(sites,)) for sites in (ALL, FEWER)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["opened", "round-unmasked"]
        outcomes.clear()
        for path in tmp_path.iterdir():
            path.unlink()


class TestRunsThatAreOver:
    """What is kept of them is removed, and a session of theirs that is played again is refused."""

    @staticmethod
    def names(folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))

    def test_a_run_that_is_over_leaves_a_number_and_is_refused_ever_after(self, tmp_path: Path) -> None:
        place = tmp_path / "sessions"
        for run in ("old", "new"):
            open_sum(SessionBook(FileShelf(place, run), OWN), manifest(run=run, serial=7), ALL)
        with SessionBook(FileShelf(place, "old"), OWN).turn() as turn:
            turn.begin(manifest(serial=9))
        gone = short_name("old")
        assert forget_runs(place, lambda short, _: short == gone) == 1
        assert self.names(tmp_path) == ["sessions.over.json", f"sessions.sessions-{short_name('new')}.json"]
        assert json.loads((tmp_path / "sessions.over.json").read_text()) == {gone: 9}
        assert stat.S_IMODE((tmp_path / "sessions.over.json").stat().st_mode) == 0o600
        for _ in range(2):  # the same session again, and whatever else
            with pytest.raises(IntegrityError) as refused:
                open_sum(SessionBook(FileShelf(place, "old"), OWN), manifest(run="old", serial=10**6), FEWER)
            assert refused.value.code == "run-over"
        assert gone not in "".join(path.name for path in tmp_path.iterdir()), "and nothing is begun anew"
        open_sum(SessionBook(FileShelf(place, "new"), OWN), manifest(run="new", serial=8), ALL)
        assert forget_runs(place, lambda *_: True) == 1
        assert set(json.loads((tmp_path / "sessions.over.json").read_text())) == {gone, short_name("new")}

    def test_what_is_over_is_told_by_when_it_was_last_used(self, tmp_path: Path) -> None:
        place = tmp_path / "sessions"
        for run in ("old", "new"):
            open_sum(SessionBook(FileShelf(place, run), OWN), manifest(run=run), ALL)
        old = tmp_path / f"sessions.sessions-{short_name('old')}.json"
        os.utime(old, (old.stat().st_atime, old.stat().st_mtime - 1000))
        then = datetime.now(UTC) - timedelta(seconds=500)
        assert forget_runs(place, lambda _, used: used < then) == 1
        assert not old.exists()
        (tmp_path / f"sessions.sessions-{short_name('new')}.json").write_text("{")
        assert forget_runs(place, lambda *_: True) == 1, "a damaged file of a run that is over goes too"

    def test_nothing_is_removed_before_it_is_written_down(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = tmp_path / "sessions"
        open_sum(SessionBook(FileShelf(place, "old"), OWN), manifest(), ALL)

        def full(*_: object, **__: object) -> None:
            raise StorageError("the disk is full")

        monkeypatch.setattr("cloister.client.run_files.write_whole", full)
        with pytest.raises(StorageError):
            forget_runs(place, lambda *_: True)
        assert (tmp_path / f"sessions.sessions-{short_name('old')}.json").exists()

    @pytest.mark.parametrize("text", ["{", "[]", '{"a": "b"}'])
    def test_a_list_of_them_that_cannot_be_read_stops_the_site(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "sessions.over.json").write_text(text)
        with (
            pytest.raises(IntegrityError) as refused,
            SessionBook(FileShelf(tmp_path / "sessions", "r"), OWN).turn(),
        ):
            pass
        assert refused.value.code == "session-store"
