"""Whatever is changed, removed, put back or forged in a ledger's files, `verify` finds, and the next opening refuses."""

import json
import math
import random
import re
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.core.errors import IntegrityError, SpecError
from cloister.privacy.ledger import Entry, Ledger, Rate, Verification, sign_witness, verify
from cloister.privacy.ledger.entry import COLUMNS, canonical_json, seal
from cloister.privacy.ledger.heads import Anchor, anchor_path, read_anchor, sign_head, write_anchor
from cloister.privacy.ledger.inspection import inspect
from cloister.privacy.ledger.keys import public_key_of
from cloister.privacy.ledger.store import Store

KEY = Ed25519PrivateKey.generate()
DELTA = 1e-5
#: A sample by default, far more or all of them with `pytest -m slow`.
EXTENT = pytest.mark.parametrize(
    "every", [pytest.param(False, id="sample"), pytest.param(True, id="every", marks=pytest.mark.slow)]
)


def account(events: Sequence[Mapping[str, Any]], delta: float) -> float:
    if any("rho" not in event for event in events):
        raise SpecError("unknown event")
    rho = math.fsum(event["rho"] for event in events)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def opened(path: Path, **options: Any) -> Ledger:
    settings = {"site": "north", "dataset": "heart", "key": KEY, "account": account, "durable": False}
    return Ledger.open(path, **{**settings, **options})


def fill(ledger: Ledger, *, rounds: int = 3) -> None:
    """Write entries of every kind."""
    ledger.set_cap(5, DELTA, rate=Rate(epsilon=4, days=7))
    charge: dict[str, Any] = {"unit": "record", "relation": "zero-out", "delta": DELTA, "code_hash": "code"}
    for number in range(rounds):
        ledger.reserve("run", number, {"rho": 0.001 * (number + 1)}, **charge).commit(
            output=f"digest {number}"
        )
    ledger.reserve("run", 90, {"rho": 0.1}, **charge).abort("not needed")
    ledger.reserve("run", 91, {"rho": 0.001}, **charge)
    ledger.audit({"coins": "sealed"}, run="run")
    head, peer = ledger.head(), Ed25519PrivateKey.generate()
    ledger.witness(
        sign_witness(head, peer), by="south", public_key=peer.public_key().public_bytes_raw(), head=head
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "heart.sqlite"
    with opened(path) as ledger:
        fill(ledger)
    return path


def half_of(raw: bytes) -> list[int]:
    """Return every other position of a file, and of long runs of zeros, the free space of its pages, every sixteenth."""
    free = {at for run in re.finditer(rb"\0{64,}", raw) for at in range(*run.span()) if at % 16}
    return [at for at in range(0, len(raw), 2) if at not in free]


def codes(found: Verification) -> set[str]:
    return {problem.code for problem in found.problems}


def write(path: Path, entries: Sequence[Entry]) -> None:
    """Write a ledger of these entries, with a head file, as somebody who has the key could."""
    path.unlink(missing_ok=True)
    anchor_path(path).unlink(missing_ok=True)
    store, last = Store(path, durable=False), None
    for entry in entries:
        store.append(entry, after=last)
        last = entry
    assert last is not None
    size, sha256 = store.digest()
    write_anchor(path, Anchor(head=sign_head(last, KEY), size=size, sha256=sha256), KEY, durable=False)
    store.close()


def rewritten(entries: Sequence[Entry], changes: Mapping[int, Mapping[str, Any]]) -> list[Entry]:
    """Change columns of entries and make hashes and signatures right again, as somebody who has the key could."""
    found: list[Entry] = []
    for entry in entries:
        columns = {
            name: getattr(entry, name) for name, _, _ in COLUMNS if name not in {"entry_hash", "signature"}
        }
        if found:
            columns["prev_hash"] = found[-1].entry_hash
        found.append(seal({**columns, **changes.get(entry.seq, {})}, KEY))
    return found


def entries_of(path: Path) -> list[Entry]:
    return list(inspect(path).chain.entries)


class TestBytes:
    def test_the_ledger_holds_every_kind_and_verifies(self, path: Path) -> None:
        found = verify(path, account=account, public_key=public_key_of(KEY))
        assert (found.problems, found.warnings, found.entries) == ((), (), 13)
        assert {entry.kind for entry in entries_of(path)} == {
            "POLICY",
            "RESERVE",
            "COMMIT",
            "ABORT",
            "AUDIT",
            "WITNESS",
        }

    @EXTENT
    def test_a_flipped_byte_anywhere_in_the_ledger_is_found(self, path: Path, every: bool) -> None:
        raw, rng = bytearray(path.read_bytes()), random.Random(1)
        for position in (
            range(0, len(raw), 7) if every else [*range(0, 100, 3), *rng.sample(range(len(raw)), 150)]
        ):
            mask = rng.choice([0x01, 0x04, 0x80, 0xFF])
            raw[position] ^= mask
            path.write_bytes(raw)
            assert not verify(path).ok, position
            raw[position] ^= mask
        path.write_bytes(raw)
        assert verify(path).ok

    @EXTENT
    def test_without_the_head_file_a_flip_is_found_or_changed_no_entry(self, path: Path, every: bool) -> None:
        """Some bytes of an SQLite file mean nothing (a counter, the space of pages that is free); none may be mistaken."""
        raw, rng, sound = bytearray(path.read_bytes()), random.Random(2), entries_of(path)
        found = 0
        positions = half_of(bytes(raw)) if every else [*range(0, 100, 3), *rng.sample(range(len(raw)), 200)]
        for position in positions:
            mask = rng.choice([0x01, 0x04, 0x80, 0xFF])
            raw[position] ^= mask
            path.write_bytes(raw)
            inspection = inspect(path, anchored=False)
            assert inspection.problems or list(inspection.chain.entries) == sound, position
            found += bool(inspection.problems)
            raw[position] ^= mask
        assert found > 0.3 * len(positions)  # more than half of this small file is free space of its pages

    def test_a_flipped_bit_in_any_column_of_any_row_is_found_without_the_head_file(self, path: Path) -> None:
        raw = path.read_bytes()
        for entry in entries_of(path):
            for name in ("entry_hash", "signature", "event", "prev_hash", "time"):
                at = raw.find(str(getattr(entry, name)).encode())
                assert at > 0, (entry.seq, name)
                changed = bytearray(raw)
                changed[at + 3] ^= 1
                path.write_bytes(changed)
                found = verify(path, anchored=False)
                assert codes(found) & {"ledger-chain", "ledger-signature", "ledger-entry", "ledger-file"}
                assert found.entries <= entry.seq + 1

    @EXTENT
    def test_a_flipped_byte_anywhere_in_the_head_file_is_found(self, path: Path, every: bool) -> None:
        head = anchor_path(path)
        raw = bytearray(head.read_bytes())
        for position in range(0, len(raw), 1 if every else 5):
            raw[position] ^= 1
            head.write_bytes(raw)
            with pytest.raises(IntegrityError) as caught:
                read_anchor(path, public_key=public_key_of(KEY))
            assert caught.value.code == "ledger-anchor"
            raw[position] ^= 1
        raw[40] ^= 1
        head.write_bytes(raw)
        assert codes(verify(path)) == {"ledger-anchor"}

    def test_a_change_that_no_entry_depends_on_is_told_apart(self, path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[27] ^= 1  # the file change counter: https://www.sqlite.org/fileformat2.html#file_change_counter
        path.write_bytes(raw)
        found = verify(path, account=account)
        assert (codes(found), found.entries) == ({"ledger-file"}, 13)
        assert "every entry is intact" in found.problems[0].message
        with pytest.raises(IntegrityError):
            opened(path)

    def test_a_damaged_structure_is_found_without_the_head_file(self, path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[39] ^= 1  # the number of free pages: https://www.sqlite.org/fileformat2.html#free_page_list
        path.write_bytes(raw)
        assert codes(verify(path, anchored=False)) == {"ledger-file"}

    @pytest.mark.parametrize("cut", [0, 1, 50, 100, 4095, 4096, 5000, -1])
    def test_a_file_that_was_cut_short_is_found(self, path: Path, cut: int) -> None:
        path.write_bytes(path.read_bytes()[:cut])
        for anchored in (True, False) if cut else (True,):
            assert not verify(path, anchored=anchored).ok
        with pytest.raises(IntegrityError):
            opened(path)

    @pytest.mark.parametrize("tail", [b"x", b"\0" * 4096])
    def test_a_file_that_was_made_longer_is_found(self, path: Path, tail: bytes) -> None:
        path.write_bytes(path.read_bytes() + tail)
        assert not verify(path).ok
        assert codes(verify(path, anchored=False)) == {"ledger-file"}

    @pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(84), bytes(8192)])
    def test_what_is_no_ledger_is_found_and_nothing_crashes(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        assert not verify(path).ok

    def test_verifying_changes_no_file(self, path: Path) -> None:
        def everything() -> dict[str, bytes]:
            return {file.name: file.read_bytes() for file in path.parent.iterdir()}

        before = everything()
        verify(path, account=account)
        assert everything() == before
        raw = bytearray(before[path.name])
        raw[18] = raw[19] = 2  # in WAL mode, SQLite would make files beside it
        path.write_bytes(raw)
        assert codes(verify(path)) == {"ledger-file"}
        assert everything().keys() == before.keys()


class TestRows:
    def sql(self, path: Path, *statements: str) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        for statement in statements:
            connection.execute(statement)
        connection.close()

    def test_the_database_itself_refuses_to_change_or_remove_a_row(self, path: Path) -> None:
        for statement in ("UPDATE entry SET event = '{}' WHERE seq = 2", "DELETE FROM entry WHERE seq = 12"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                self.sql(path, statement)
        assert verify(path).ok

    def test_a_removed_last_entry_is_shown_by_the_head_file(self, path: Path) -> None:
        write_back = anchor_path(path).read_bytes()
        write(path, entries_of(path)[:-1])
        assert verify(path).ok  # by itself it is a sound ledger
        anchor_path(path).write_bytes(write_back)
        assert codes(verify(path)) == {"ledger-rollback"}
        with pytest.raises(IntegrityError) as caught:
            opened(path)
        assert caught.value.code == "ledger-rollback"

    def test_a_removed_last_entry_is_shown_by_a_witnessed_head(self, path: Path) -> None:
        anchor = read_anchor(path, public_key=public_key_of(KEY))
        assert anchor is not None
        write(path, entries_of(path)[:-1])
        assert codes(verify(path, witnessed=[anchor.head])) == {"ledger-rollback"}

    @pytest.mark.parametrize("gone", [0, 1, 5])
    def test_a_removed_entry_is_a_gap(self, path: Path, gone: int) -> None:
        self.sql(path, "DROP TRIGGER no_delete", f"DELETE FROM entry WHERE seq = {gone}")
        assert codes(verify(path, anchored=False)) == {"ledger-file"}  # the schema lacks the trigger
        write_trigger = "CREATE TRIGGER no_delete BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END"
        self.sql(path, write_trigger)
        assert codes(verify(path, anchored=False)) == {"ledger-chain"}

    def test_a_missing_head_file_is_a_problem_unless_it_is_waived(self, path: Path) -> None:
        anchor_path(path).unlink()
        assert codes(verify(path)) == {"ledger-anchor"}
        waived = verify(path, anchored=False)
        assert waived.ok
        assert "missing entries at the end would not show" in waived.warnings[0]
        with pytest.raises(IntegrityError) as caught:
            opened(path)
        assert caught.value.code == "ledger-anchor"

    def test_an_older_head_file_is_refused(self, path: Path) -> None:
        old = anchor_path(path).read_bytes()
        with opened(path) as ledger:
            ledger.audit({"n": 1})
            one = anchor_path(path).read_bytes()
            ledger.audit({"n": 2})
        anchor_path(path).write_bytes(one)
        assert "entry 14 is newer than the head file" in verify(path).warnings[0]  # as a crash would leave it
        anchor_path(path).write_bytes(old)
        assert codes(verify(path)) == {"ledger-anchor"}

    def test_a_copied_back_older_file_is_refused(self, path: Path) -> None:
        older = path.read_bytes()
        with opened(path) as ledger:
            ledger.audit({"n": 1})
        path.write_bytes(older)
        with pytest.raises(IntegrityError) as caught:
            opened(path)
        assert caught.value.code == "ledger-rollback"

    def test_the_head_file_of_another_ledger_is_refused(self, path: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.sqlite"
        with opened(other, dataset="lung") as ledger:
            fill(ledger)
        anchor_path(path).write_bytes(anchor_path(other).read_bytes())
        assert codes(verify(path)) == {"ledger-head"}

    def test_a_ledger_signed_by_another_key_is_found_when_the_key_is_known(self, path: Path) -> None:
        assert codes(verify(path, public_key=public_key_of(Ed25519PrivateKey.generate()))) == {"ledger-key"}

    def test_an_entry_that_another_key_signed_is_found(self, path: Path) -> None:
        entries = entries_of(path)
        last = entries[-1]
        columns = {
            name: getattr(last, name) for name, _, _ in COLUMNS if name not in {"entry_hash", "signature"}
        }
        write(path, [*entries[:-1], seal(columns, Ed25519PrivateKey.generate())])
        assert codes(verify(path)) == {"ledger-signature"}


class TestForgery:
    """Whoever has the key can sign anything: what a sound chain says is checked as well."""

    @pytest.mark.parametrize(
        ("changes", "code", "says"),
        [
            ({2: {"epsilon_after": 0.05}}, "ledger-epsilon", "the events up to it cost"),
            ({2: {"at_delta": 1e-3}}, "ledger-epsilon", "which is not the cap's"),
            ({2: {"event": '{"rho":9.0}'}}, "ledger-epsilon", "the events up to it cost"),
            ({2: {"event": '{"sigma":9.0}'}}, "ledger-epsilon", "cannot be accounted for"),
            (
                {
                    1: {
                        "event": canonical_json(
                            {"policy": "cap", "unit": None, "epsilon": 0.1, "delta": DELTA, "rate": None}
                        )
                    }
                },
                "ledger-epsilon",
                "above the cap",
            ),
            (
                {
                    1: {
                        "event": canonical_json(
                            {
                                "policy": "cap",
                                "unit": None,
                                "epsilon": 5,
                                "delta": DELTA,
                                "rate": {"epsilon": 0.1, "days": 7},
                            }
                        )
                    }
                },
                "ledger-epsilon",
                "above the rate",
            ),
            ({1: {"event": '{"policy":"cap"}'}}, "ledger-entry", "holds no cap"),
            (
                {0: {"event": '{"format":2,"policy":"open","public_key":"00"}'}},
                "ledger-order",
                "does not open a ledger",
            ),
            ({3: {"reservation": 1}}, "ledger-order", "no open reservation"),
            ({5: {"reservation": 2}}, "ledger-order", "no open reservation"),
            ({3: {"run": "other"}}, "ledger-order", "is not about what entry 2 reserved"),
            ({3: {"event": "{}"}}, "ledger-entry", "does not say what its kind must say"),
            ({4: {"round": 0}}, "ledger-order", "reserves what was reserved before"),
            ({4: {"relation": "replace-one"}}, "ledger-order", "relation"),
            ({4: {"unit": None}}, "ledger-entry", "lacks unit"),
            ({4: {"site": "south"}}, "ledger-order", "another site"),
            ({4: {"time": "2000-01-01T00:00:00.000000+00:00"}}, "ledger-order", "is earlier"),
            ({4: {"time": "yesterday"}}, "ledger-entry", "no UTC time"),
            ({4: {"prev_hash": "00" * 32}}, "ledger-chain", "does not follow"),
            ({11: {"steps": 3}}, "ledger-entry", "must not have steps"),
            ({11: {"seq": 40}}, "ledger-chain", "stands where entry 11 belongs"),
            ({12: {"event": '{"by":"south"}'}}, "ledger-entry", "does not say what its kind must say"),
            ({12: {"prev_hash": "00" * 32}}, "ledger-chain", "does not follow"),
        ],
    )
    def test_what_is_signed_and_wrong_is_found(
        self, path: Path, changes: dict[int, Any], code: str, says: str
    ) -> None:
        write(path, rewritten(entries_of(path)[: 12 if 12 not in changes else 13], changes))
        found = verify(path, account=account)
        assert codes(found) == {code}
        assert says in " ".join(problem.message for problem in found.problems)
        with pytest.raises(IntegrityError, match="does not verify"):
            found.require()

    def test_the_forger_of_this_test_changes_nothing_else(self, path: Path) -> None:
        entries = entries_of(path)[:12]
        assert rewritten(entries, {}) == entries
        write(path, entries)
        assert verify(path, account=account).ok

    def test_a_witness_that_never_signed_is_found(self, path: Path) -> None:
        entries = entries_of(path)
        data = {**entries[12].data, "public_key": "11" * 32}
        write(path, rewritten(entries, {12: {"event": canonical_json(data)}}))
        assert codes(verify(path)) == {"ledger-witness"}

    def test_opening_trusts_no_byte_that_the_head_file_does_not_hold(self, path: Path) -> None:
        """Signatures are left out only where the signed head file holds the hash of the very file."""
        entries = entries_of(path)
        forged = Entry(**{**{n: getattr(entries[3], n) for n, _, _ in COLUMNS}, "signature": "00" * 64})
        head = anchor_path(path).read_bytes()
        write(path, [*entries[:3], forged, *entries[4:]])
        anchor_path(path).write_bytes(head)
        with pytest.raises(IntegrityError) as caught:
            opened(path)
        assert caught.value.code == "ledger-signature"

    def test_epsilon_that_was_not_recomputed_is_said(self, path: Path) -> None:
        assert "was not recomputed" in verify(path).warnings[0]

    def test_the_head_file_is_canonical_json_that_anybody_can_read(self, path: Path) -> None:
        value = json.loads(anchor_path(path).read_text())
        assert value["head"]["seq"] == 12
        assert value["size"] == path.stat().st_size
