"""The transcript's writer and its strict reader: everything that arrives, as it arrived, and nothing that was in clear."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from cloister.core import protocol
from cloister.core.errors import IntegrityError, StorageError
from cloister.core.spec import parse_federation
from cloister.server.audit.transcript.reading import Received, Start, read_transcript
from cloister.server.exchange import Answer
from cloister.server.transcript import MESSAGES, VECTORS, Transcript
from cloister.server.vector_facts import facts_of

ABOUT = {"run": "r", "federation": "f", "authority": None}


def opened(folder: Path, *, limit: int | None = None, protected: bool = True) -> Transcript:
    return Transcript(folder, limit=limit, protected=protected, about=ABOUT)


def answer(content: RecordDict | None, *, error: int | None = None, position: int = 0) -> Answer:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 9
    asked = Message(RecordDict(), 1, "train")
    asked.metadata.__dict__["_message_id"] = "x"
    reply = None
    if error is not None:
        reply = Message(Error(code=error), reply_to=asked)
    elif content is not None:
        reply = Message(content, reply_to=asked)
    return Answer(position=position, reply=reply, foreign=False, seconds=0.5)


def vector_reply(vector: np.ndarray[Any, Any]) -> RecordDict:
    record = ArrayRecord()
    record[protocol.SUM] = Array(vector)
    return RecordDict({protocol.UPDATE: record})


def take(transcript: Transcript, content: RecordDict | None, site: str = "ann", **about: Any) -> None:
    transcript.received(
        "train", 1, phase="train", step=protocol.ADD, site=site, answer=answer(content, **about)
    )


def received(folder: Path) -> list[Received]:
    return [line for line in read_transcript(folder).lines if isinstance(line, Received)]


def drawn(size: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 1 << 32, size, dtype=np.uint32)


def test_a_protected_vector_is_kept_as_it_came(tmp_path: Path) -> None:
    vector = drawn(300)
    transcript = opened(tmp_path / "t")
    take(transcript, vector_reply(vector))
    record = read_transcript(tmp_path / "t")
    (line,) = received(tmp_path / "t")
    (entry,) = line.entries
    assert (line.site, entry.type, entry.shape, entry.nbytes) == ("ann", "array:uint32", (300,), 1200)
    kept = record.vector(entry)
    assert kept is not None
    assert np.array_equal(kept, vector)


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    opened(tmp_path / "t").close()
    assert [(tmp_path / "t" / name).stat().st_mode & 0o777 for name in (MESSAGES, VECTORS)] == [0o600, 0o600]


def test_nothing_that_came_in_clear_is_kept_but_its_digest(tmp_path: Path) -> None:
    update = np.arange(4, dtype=np.float32)
    record = ArrayRecord()
    record[protocol.VECTOR] = Array(update)
    report = MetricRecord({"loss": 0.123456789, "records": 777})
    for folder, protected in ((tmp_path / "a", True), (tmp_path / "b", False)):
        transcript = opened(folder, protected=protected)
        content = RecordDict(
            {protocol.UPDATE: record, protocol.REPORT: report, "note": ConfigRecord({"text": "Jane Doe"})}
        )
        take(transcript, content)
        text = (folder / MESSAGES).read_text()
        assert "0.123456789" not in text
        assert "777" not in json.dumps([vars(e)["value"] for e in received(folder)[0].entries])
        assert "Jane" not in text
        assert (folder / VECTORS).stat().st_size == 0
        assert {(e.record, e.name, e.value) for e in received(folder)[0].entries} == {
            ("update", "vector", None),
            ("report", "loss", None),
            ("report", "records", None),
            ("note", "text", None),
        }


def test_a_plain_run_keeps_no_vector(tmp_path: Path) -> None:
    take(opened(tmp_path / "t", protected=False), vector_reply(drawn(10)))
    assert (tmp_path / "t" / VECTORS).stat().st_size == 0


def test_fields_of_a_step_are_kept_whatever_they_hold(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"a": b"\x00\xff", "b": [b"", b"x"], "c": "é\ud800", "d": ["p", "q"], "e": 7}
    transcript = opened(tmp_path / "t")
    take(transcript, RecordDict({protocol.SECURE: ConfigRecord({**fields, "none": []})}))
    assert received(tmp_path / "t")[0].values(protocol.SECURE) == {**fields, "none": []}


def test_beyond_the_limit_a_vector_leaves_its_digest_and_its_facts(tmp_path: Path) -> None:
    first, second = drawn(500, 1), drawn(500, 2)
    transcript = opened(tmp_path / "t", limit=2000)
    take(transcript, vector_reply(first))
    take(transcript, vector_reply(second), "bob")
    kept, told = (line.entries[0] for line in received(tmp_path / "t"))
    assert (kept.at, kept.facts) == (0, None)
    assert (told.at, told.sha256) == (None, hashlib.sha256(second.tobytes()).hexdigest())
    wanted = facts_of(second)
    assert told.facts is not None
    facts = told.facts[""]
    assert np.array_equal(facts.counts, wanted.counts)
    assert (facts.near, facts.even, facts.lag, facts.numbers) == (
        wanted.near,
        wanted.even,
        wanted.lag,
        500,
    )
    assert np.array_equal(facts.head, second[:256])


def test_facts_of_a_long_vector_are_of_stretches_from_its_first_to_its_last_number() -> None:
    vector = drawn(100_000)
    vector[:64], vector[-64:] = 0, 0
    facts = facts_of(vector, most=1024)
    assert facts.numbers == 1024
    assert facts.even >= 128
    assert facts_of(vector).numbers == 100_000


def test_a_lost_site_is_a_line_and_a_missing_one_is_none(tmp_path: Path) -> None:
    transcript = opened(tmp_path / "t")
    take(transcript, None, error=2)
    take(transcript, None)
    (line,) = received(tmp_path / "t")
    assert (line.error, line.entries) == (2, ())


def test_a_torn_last_line_is_left_out_and_removed_at_the_next_opening(tmp_path: Path) -> None:
    transcript = opened(tmp_path / "t")
    take(transcript, vector_reply(drawn(5)))
    transcript.close()
    with (tmp_path / "t" / MESSAGES).open("ab") as file:
        file.write(b'{"seq":3,"ti')
    assert len(read_transcript(tmp_path / "t").lines) == 2
    again = opened(tmp_path / "t")
    take(again, vector_reply(drawn(5)))
    lines = read_transcript(tmp_path / "t").lines
    assert [type(line) for line in lines] == [Start, Received, Start, Received]


def test_what_was_received_stays_when_a_run_goes_on(tmp_path: Path) -> None:
    for seed in range(3):
        transcript = opened(tmp_path / "t")
        take(transcript, vector_reply(drawn(9, seed)))
        transcript.close()
    record = read_transcript(tmp_path / "t")
    vectors = [record.vector(line.entries[0]) for line in record.lines if isinstance(line, Received)]
    assert all(np.array_equal(one, drawn(9, seed)) for seed, one in enumerate(vectors) if one is not None)
    assert len(vectors) == 3


def test_a_full_disk_is_an_error_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcript = opened(tmp_path / "t")
    take(transcript, vector_reply(drawn(5)))
    before = (tmp_path / "t" / MESSAGES).read_bytes()
    write = os.write

    def full(file: int, data: Any) -> int:
        if len(data) > 40:
            return write(file, data[:40])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        take(transcript, RecordDict({protocol.SECURE: ConfigRecord({"name": "x" * 60})}))
    assert "--resume" in caught.value.remedy
    monkeypatch.undo()
    assert (tmp_path / "t" / MESSAGES).read_bytes() == before
    take(transcript, vector_reply(drawn(5)))
    assert len(read_transcript(tmp_path / "t").lines) == 3


def test_the_head_names_the_last_line(tmp_path: Path) -> None:
    transcript = opened(tmp_path / "t")
    take(transcript, vector_reply(drawn(5)))
    record = read_transcript(tmp_path / "t")
    assert transcript.head() == {"lines": 2, "head": record.hashes[-1]}


def lines_of(folder: Path) -> list[bytes]:
    return (folder / MESSAGES).read_bytes().splitlines(keepends=True)


def removed(folder: Path) -> None:
    lines = lines_of(folder)
    (folder / MESSAGES).write_bytes(b"".join([*lines[:2], *lines[3:]]))


def swapped(folder: Path) -> None:
    lines = lines_of(folder)
    (folder / MESSAGES).write_bytes(b"".join([lines[0], lines[2], lines[1], *lines[3:]]))


def renamed(folder: Path) -> None:
    path = folder / MESSAGES
    path.write_bytes(path.read_bytes().replace(b'"site":"ann"', b'"site":"bob"', 1))


def flipped(folder: Path) -> None:
    path = folder / VECTORS
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)


def cut(folder: Path) -> None:
    os.truncate(folder / VECTORS, 3)


def last_changed(folder: Path) -> None:
    lines = lines_of(folder)
    line = json.loads(lines[-1])
    line["records"][0]["fields"][0]["value"] = "YWJj"
    (folder / MESSAGES).write_bytes(b"".join([*lines[:-1], json.dumps(line).encode() + b"\n"]))


def other_key(folder: Path) -> None:
    lines = lines_of(folder)
    line = json.loads(lines[-1]) | {"more": 1}
    (folder / MESSAGES).write_bytes(b"".join([*lines[:-1], json.dumps(line).encode() + b"\n"]))


def garbage(folder: Path) -> None:
    (folder / MESSAGES).write_bytes(b"".join(lines_of(folder)[:-1]) + b"[" * 100_000 + b"\n")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (removed, "transcript-chain"),
        (swapped, "transcript-chain"),
        (renamed, "transcript-chain"),
        (flipped, "transcript-digest"),
        (cut, "transcript-digest"),
        (last_changed, "transcript-digest"),
        (other_key, "transcript"),
        (garbage, "transcript"),
    ],
)
def test_a_transcript_that_was_changed_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], code: str
) -> None:
    transcript = opened(tmp_path / "t")
    for seed, site in enumerate(("ann", "bob")):
        take(transcript, vector_reply(drawn(9, seed)), site)
    take(transcript, RecordDict({protocol.SECURE: ConfigRecord({"key": b"abcd"})}))
    transcript.close()
    read_transcript(tmp_path / "t")
    damage(tmp_path / "t")
    with pytest.raises(IntegrityError) as caught:
        read_transcript(tmp_path / "t")
    assert caught.value.code == code


def test_a_last_line_that_is_none_stops_the_next_opening(tmp_path: Path) -> None:
    opened(tmp_path / "t").close()
    with (tmp_path / "t" / MESSAGES).open("ab") as file:
        file.write(b"no line\n")
    with pytest.raises(IntegrityError, match="last line"):
        opened(tmp_path / "t")


@pytest.mark.parametrize(
    ("tables", "wanted"),
    [
        ({}, "bounded"),
        ({"aggregation": {"protection": "plain"}}, "off"),
        ({"aggregation": {"protection": "plain"}, "audit": {"transcript": "full"}}, "full"),
        ({"audit": {"transcript": "off"}}, "off"),
    ],
)
def test_a_transcript_is_kept_where_updates_are_protected_unless_the_file_says_otherwise(
    tables: dict[str, Any], wanted: str
) -> None:
    document = {"federation": {"name": "a", "rounds": 1}, "task": {"use": "heart"}, **tables}
    assert parse_federation(document, base=Path()).spec.audit.transcript == wanted
