"""A transcript, read strictly: `cloister.server.transcript` says what it holds.

Formal guarantee: `read_transcript` returns a `Record` only if every whole line is one that a `Transcript` writes, names the SHA-256 of the line
before it and its own number, and every value and every kept vector has the digest that its line says. Nothing is unpickled or evaluated.

==================================================  ==========================================
case                                                outcome
==================================================  ==========================================
a line changed, removed, put in, put elsewhere      ``IntegrityError`` (transcript-chain)
a value or a vector that was changed                ``IntegrityError`` (transcript-digest)
a line that is none                                 ``IntegrityError`` (transcript)
a torn last line (the process was killed)           left out
bytes of ``vectors.bin`` that no line speaks of     left out
==================================================  ==========================================
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cloister.core.errors import IntegrityError
from cloister.privacy.updates.modular import Residues
from cloister.server.protected import MASKED, parts_of
from cloister.server.transcript import MESSAGES, VECTORS, digest_of, genesis
from cloister.server.vector_facts import BYTES, HEAD, VectorFacts, facts_of

__all__ = ["Asked", "Entry", "Received", "Record", "Start", "read_transcript"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One field of a reply.

    Attributes:
        record: the record that it stands in, and ``kind``: array, metric or config.
        name: the field's.
        type: ``array:float32``, ``array:cloister.bfv``, ``bytes``, ``bytes[]``, ``str``, …
        shape: of an array.
        nbytes: how large it is.
        sha256: its digest.
        value: what it is, where that was kept.
        at: where a protected vector lies in ``vectors.bin``.
        facts: of the parts of a protected vector that was not kept.
    """

    record: str
    kind: str
    name: str
    type: str
    nbytes: int
    sha256: str
    shape: tuple[int, ...] = ()
    value: Any = None
    at: int | None = None
    facts: Mapping[str, VectorFacts] | None = None


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run began, or went on.

    Attributes:
        seq: the line's number.
        run: names the run.
        federation: digest of its effective federation file.
        authority: the consortium's certificate, DER; ``None``: there is none.
        limit: bytes of vectors that are kept.
    """

    seq: int
    run: str
    federation: str
    authority: bytes | None
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The server asked sites for something; ``said`` is what it told all of them of a secure session."""

    seq: int
    time: datetime
    type: str
    step: str
    phase: str
    round: int
    sites: tuple[str, ...]
    said: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Received:
    """A reply; ``unlisted`` fields were too many to be listed, ``error`` is Flower's code of a lost site."""

    seq: int
    time: datetime
    type: str
    step: str
    phase: str
    round: int
    site: str
    error: int | None
    foreign: bool
    entries: tuple[Entry, ...]
    records: frozenset[str]
    unlisted: int

    def values(self, record: str) -> dict[str, Any]:
        """Return the fields of a record that were kept, by name."""
        return {one.name: one.value for one in self.entries if one.record == record}


@dataclass(frozen=True, kw_only=True)
class Record:
    """A whole transcript.

    Attributes:
        folder: where it lies.
        lines: in the order in which they were written.
        hashes: of each line, SHA-256 in hex.
    """

    folder: Path
    lines: tuple[Start | Asked | Received, ...]
    hashes: tuple[str, ...]

    def vector(self, entry: Entry) -> Residues | None:
        """Return a vector under masks, if it was kept.

        Raises:
            IntegrityError: (transcript-digest) it is not what was received.
        """
        data = self.data(entry)
        return None if data is None else parts_of(MASKED, data)[""]

    def facts(self, entry: Entry) -> Mapping[str, VectorFacts]:
        """Return the facts of a protected vector by part.

        Raises:
            IntegrityError: (transcript-digest) it is not what was received.
        """
        data = self.data(entry)
        if data is None:
            return entry.facts or {}
        return {part: facts_of(vector) for part, vector in parts_of(entry.type, data).items()}

    def data(self, entry: Entry) -> bytes | None:
        """Return the bytes of a protected vector, if they were kept.

        Raises:
            IntegrityError: (transcript-digest) it is not what was received.
        """
        if entry.at is None:
            return None
        try:
            with (self.folder / VECTORS).open("rb") as file:
                file.seek(entry.at)
                data = file.read(entry.nbytes)
        except OSError as error:
            raise _unfit(f"'{VECTORS}' cannot be read: {error.strerror}", "transcript") from None
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise _unfit(
                f"the vector at byte {entry.at} of '{VECTORS}' is not the one that was received",
                "transcript-digest",
            )
        return data


@dataclass
class _Reader:
    """Reads line after line, each against the one before."""

    lines: list[Start | Asked | Received] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)

    def take(self, raw: bytes) -> None:
        number = len(self.lines) + 1
        line = _Line(raw, number)
        before = self.hashes[-1] if self.hashes else genesis()
        if line.get("previous", str) != before or line.get("seq", int) != number:
            raise _unfit(
                f"line {number} does not follow the line before it: a line was changed, removed or put in",
                "transcript-chain",
            )
        read: Mapping[str, Callable[[_Line], Start | Asked | Received]] = {
            "start": _start,
            "asked": partial(_asked, self.known),
            "received": partial(_received, self.known),
        }
        kind = line.get("kind", str)
        if kind not in read:
            raise line.unfit("it is of no kind that there is")
        self.lines.append(read[kind](line))
        line.all_read()
        self.hashes.append(hashlib.sha256(raw).hexdigest())


class _Line:
    """One object of JSON whose keys are taken out one by one, each of one type."""

    def __init__(self, raw: bytes | Mapping[str, Any], number: int) -> None:
        self.number = number
        try:
            data = raw if isinstance(raw, Mapping) else json.loads(raw)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, Mapping):
            raise self.unfit("it is no object of JSON")
        self._left = dict(data)

    def get(self, name: str, *kinds: type) -> Any:
        if name not in self._left:
            raise self.unfit(f"it has no '{name}'")
        value = self._left.pop(name)
        if type(value) not in kinds:
            raise self.unfit(f"'{name}' is of another type")
        return value

    def has(self, name: str) -> bool:
        return name in self._left

    def maybe(self, name: str, *kinds: type) -> Any:
        return self.get(name, *kinds) if name in self._left else None

    def time(self) -> datetime:
        try:
            found = datetime.fromisoformat(self.get("time", str))
        except ValueError:
            raise self.unfit("its time is none") from None
        if found.tzinfo is None:
            raise self.unfit("its time has no zone")
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        found = self.get(name, list)
        if not all(isinstance(entry, str) for entry in found):
            raise self.unfit(f"'{name}' holds something else than texts")
        return tuple(found)

    def objects(self, name: str) -> list[_Line]:
        return [_Line(one if isinstance(one, Mapping) else b"", self.number) for one in self.get(name, list)]

    def all_read(self) -> None:
        if self._left:
            raise self.unfit(f"it has a key too many: {min(self._left)[:40]!r}")

    def unfit(self, why: str, code: str = "transcript") -> IntegrityError:
        return _unfit(f"line {self.number} of '{MESSAGES}': {why}", code)


def read_transcript(folder: Path) -> Record:
    """Read the transcript in ``folder``, with every vector that was kept.

    Raises:
        IntegrityError: it is damaged, or was changed.
    """
    reader = _Reader()
    try:
        with (folder / MESSAGES).open("rb") as file:
            for raw in file:
                if raw.endswith(b"\n"):
                    reader.take(raw[:-1])
    except OSError as error:
        raise _unfit(f"'{folder / MESSAGES}' cannot be read: {error.strerror}", "transcript") from None
    record = Record(folder=folder, lines=tuple(reader.lines), hashes=tuple(reader.hashes))
    if not record.lines or not isinstance(record.lines[0], Start):
        raise _unfit("it does not begin with the start of a run", "transcript")
    for line in record.lines:
        for entry in line.entries if isinstance(line, Received) else ():
            record.data(entry)
    return record


def _start(line: _Line) -> Start:
    line.time()
    authority = line.get("authority", str, type(None))
    return Start(
        seq=line.number,
        run=line.get("run", str),
        federation=line.get("federation", str),
        authority=None if authority is None else _plain_bytes(line, authority),
        limit=line.get("limit", int, type(None)),
    )


def _asked(known: dict[str, Any], line: _Line) -> Asked:
    said = [_entry(one, "", "config", known) for one in line.objects("said")]
    return Asked(
        seq=line.number,
        **_common(line),
        sites=line.texts("sites"),
        said={one.name: one.value for one in said},
    )


def _received(known: dict[str, Any], line: _Line) -> Received:
    line.get("seconds", float, int)
    entries: list[Entry] = []
    names: set[str] = set()
    unlisted = 0
    for record in line.objects("records"):
        name, kind = record.get("name", str), record.get("kind", str)
        if kind not in ("array", "metric", "config"):
            raise line.unfit("a record is of no kind that there is")
        names.add(name)
        entries += [_entry(one, name, kind, known) for one in record.objects("fields")]
        unlisted += record.get("more", int)
        record.all_read()
    return Received(
        seq=line.number,
        **_common(line),
        site=line.get("site", str),
        error=line.get("error", int, type(None)),
        foreign=line.get("foreign", bool),
        entries=tuple(entries),
        records=frozenset(names),
        unlisted=unlisted,
    )


def _common(line: _Line) -> dict[str, Any]:
    found = {name: line.get(name, str) for name in ("type", "step", "phase")}
    return {"time": line.time(), "round": line.get("round", int), **found}


def _entry(one: _Line, record: str, kind: str, known: dict[str, Any]) -> Entry:
    form = one.get("type", str)
    read = Entry(
        record=record,
        kind=kind,
        name=one.get("name", str),
        type=form,
        nbytes=one.get("bytes", int),
        sha256=one.get("sha256", str),
        shape=tuple(one.maybe("shape", list) or ()),
        value=_value(one, form),
        at=one.maybe("at", int),
        facts=_facts(one) if one.has("facts") else None,
    )
    one.all_read()
    if read.value is None:
        return Entry(**{**vars(read), "value": known.get(read.sha256)})
    parts = read.value if isinstance(read.value, list) else [read.value]
    raw = [_bytes(part) for part in parts]
    if (sum(map(len, raw)), digest_of(read.type, raw)) != (read.nbytes, read.sha256):
        raise one.unfit(
            f"the value of '{read.name[:40]}' is not the one that was received", "transcript-digest"
        )
    known[read.sha256] = read.value
    return read


def _value(one: _Line, form: str) -> Any:
    value = one.maybe("value", str, int, list)
    if value is None or not form.startswith("bytes"):
        return value
    return (
        [_plain_bytes(one, part) for part in value] if isinstance(value, list) else _plain_bytes(one, value)
    )


def _bytes(part: Any) -> bytes:
    if isinstance(part, bytes):
        return part
    return part.encode("utf-8", "surrogatepass") if isinstance(part, str) else repr(part).encode()


def _plain_bytes(line: _Line, text: object) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "?", validate=True)
    except (binascii.Error, ValueError):
        raise line.unfit("something that should be base64 is none") from None


def _facts(line: _Line) -> dict[str, VectorFacts]:
    return {inner.get("part", str): _facts_of_part(inner, line) for inner in line.objects("facts")}


def _facts_of_part(inner: _Line, line: _Line) -> VectorFacts:
    counts, head = inner.get("counts", list), _plain_bytes(inner, inner.get("head", str))
    numbers, near, even, pairs = (inner.get(name, int) for name in ("numbers", "near", "even", "pairs"))
    lag = float(inner.get("lag", float, int))
    inner.all_read()
    sound = len(counts) == BYTES and all(
        isinstance(row, list)
        and len(row) == 256
        and all(type(one) is int and one >= 0 for one in row)
        and sum(row) == numbers
        for row in counts
    )
    sound = sound and all(0 <= count <= numbers for count in (near, even, pairs))
    if not sound or len(head) > BYTES * HEAD or len(head) % BYTES:
        raise line.unfit("the figures of a vector cannot be so")
    return VectorFacts(
        numbers=numbers,
        counts=np.array(counts, dtype=np.int64),
        near=near,
        even=even,
        lag=lag,
        pairs=pairs,
        head=np.frombuffer(head, dtype="<u4").astype(np.uint32),
    )


def _unfit(why: str, code: str) -> IntegrityError:
    return IntegrityError(
        f"the transcript does not hold: {why}",
        remedy="restore the transcript as the server wrote it; one that was changed proves nothing",
        code=code,
    )
