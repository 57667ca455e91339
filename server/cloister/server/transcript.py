"""The transcript: everything that the server received in a run, written down as it arrived, before anybody read it.

``transcript/`` in the run folder, for its owner only (files 0600), holds

- ``messages.jsonl``: one JSON object a line, each with its number ``seq``, the ``time`` and ``previous``, the SHA-256 of the line before it;
- ``vectors.bin``: protected vectors as they came: 4 bytes a number under masks, or containers of ciphertexts.

===========  =========================================================================================================
kind         keys
===========  =========================================================================================================
start        run, federation (digest), authority (certificate, base64; null: none), limit (bytes; null: none): a run begins or goes on
asked        type, step, phase, round, sites; said: what all of them were told of a secure session, where that is the same
received     type, step, phase, round, site, error (Flower's code), foreign, seconds; records: name, kind and fields of each
===========  =========================================================================================================

Every field has its name, type, number of bytes and SHA-256; an array that says it is a container of ciphertexts has the type ``array:cloister.bfv`` or
``array:cloister.ckks``. Of the small fields of a secure session, of ledgers' heads, refusals and
introductions the value is there too; of a protected vector where it lies in ``vectors.bin``, or beyond the limit the `VectorFacts` of its
parts (`cloister.server.protected`). **Of
anything else, that is of whatever came in clear, the value is not kept**: a transcript adds no copy of it.

Formal guarantees of `Transcript`:

- A line is whole, in the hands of the operating system, before the reply is handed on: a killed process loses none, and tears at most the last,
  which the next opening removes. Nothing else is ever removed, on a resume neither: what was received was received.
- A reply that cannot be written down is not used: the disk's error ends the run.

==========================================  ==========================================
case                                        outcome
==========================================  ==========================================
a full disk                                 ``StorageError``; the line is not there, its vector's bytes belong to no line
a last line that is none                    ``IntegrityError`` (transcript) at the next opening
more than `MOST_FIELDS` fields in a reply   the first are listed, the others counted
a field of a step larger than `LONGEST`     its digest only
==========================================  ==========================================
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from cloister.core import protocol
from cloister.core.decoding import decode_array
from cloister.core.errors import IntegrityError, StorageError
from cloister.privacy.updates.modular import Residues
from cloister.server.exchange import Answer
from cloister.server.protected import CONTAINER, MASKED, parts_of
from cloister.server.vector_facts import facts_of

__all__ = ["LIMITS", "LONGEST", "MESSAGES", "MOST_FIELDS", "VECTORS", "Transcript", "digest_of", "genesis"]

MESSAGES, VECTORS = "messages.jsonl", "vectors.bin"
#: Bytes of vectors that are kept as they are, by ``audit.transcript``.
LIMITS: Mapping[str, int | None] = {"full": None, "bounded": 1 << 28}
#: Most fields of one reply that are listed.
MOST_FIELDS = 512
#: Most bytes of one field whose value is kept.
LONGEST = 1 << 22

_TOLD = frozenset({protocol.SECURE, protocol.LEDGER, protocol.REFUSAL, protocol.SITE, protocol.CANARIES})
#: Large fields of a joint key's messages: the server hands on what came, and of a public share its signed commitment is kept.
_HANDED_ON = frozenset({"share", "shares", "proof", "proofs", "containers"})
_NAME = 200
_SAMPLE = 1 << 18
_CIPHERTEXTS = 16
_BLOCK = 1 << 16
#: A value as long as this is written once and then referred to by its digest: certificates come with every session.
_ONCE = 128
_MOST_KNOWN = 1 << 14


class Transcript:
    """The transcript of one run, open for writing; one process at a time (the run folder's lock).

    Args:
        folder: where it lies; made if need be.
        limit: bytes of vectors that are kept as they are; ``None``: all.
        protected: whether updates are protected: else no vector is ever kept.
        about: what the first line says of the run.

    Raises:
        StorageError: it cannot be written.
        IntegrityError: (transcript) what is there already is none.
    """

    def __init__(self, folder: Path, *, limit: int | None, protected: bool, about: Mapping[str, Any]) -> None:
        self._path, self._limit, self._protected = folder / MESSAGES, limit, protected
        self._known: set[str] = set()
        self._files: list[int] = []
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            for path in (self._path, folder / VECTORS):
                self._files.append(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            self.close()
            raise StorageError.of(folder, error) from None
        self._lines, self._vectors = self._files
        self._number, self._head = self._last()
        self._write("start", {**about, "limit": limit})

    def asked(
        self,
        kind: str,
        number: int,
        *,
        phase: str,
        sites: Sequence[str],
        secure: Sequence[ConfigRecord],
    ) -> None:
        """Write down what is asked of whom.

        Args:
            kind: the messages' type.
            number: the round.
            phase: what the sites do.
            sites: their names.
            secure: what each is told of a secure session; empty where there is none.
        """
        first = dict(secure[0]) if secure else {}
        step = str(first.pop(protocol.STEP, ""))
        same = bool(secure) and all(dict(one) == {protocol.STEP: step, **first} for one in secure[1:])
        said = [self._value(name, value, told=True) for name, value in first.items()] if same else []
        self._write(
            "asked",
            {"type": kind, "step": step, "phase": phase, "round": number, "sites": list(sites), "said": said},
        )

    def received(self, kind: str, number: int, *, phase: str, step: str, site: str, answer: Answer) -> None:
        """Write down what came back from a site.

        Raises:
            StorageError: it cannot be written.
        """
        message = answer.reply
        if message is None:
            return
        lost = message.has_error()
        self._write(
            "received",
            {
                "type": kind,
                "step": step,
                "phase": phase,
                "round": number,
                "site": site,
                "error": message.error.code if lost else None,
                "foreign": answer.foreign,
                "seconds": round(answer.seconds, 4),
                "records": [] if lost else self._records(message.content),
            },
        )

    def head(self) -> dict[str, Any]:
        """Return how many lines there are and the SHA-256 of the last: an event that holds it holds the transcript so far."""
        return {"lines": self._number, "head": self._head}

    def sync(self) -> None:
        """Make every line so far last through a power cut, the vectors first.

        Raises:
            StorageError: the disk refuses.
        """
        try:
            os.fdatasync(self._vectors)
            os.fdatasync(self._lines)
        except OSError as error:
            raise StorageError.of(self._path, error) from None

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        while self._files:
            os.close(self._files.pop())

    # ----- lines

    def _last(self) -> tuple[int, str]:
        """Remove a torn last line, and return the last whole line's number and hash."""
        end = _newline_before(self._lines, os.fstat(self._lines).st_size)
        if end != os.fstat(self._lines).st_size:
            os.ftruncate(self._lines, end)
        if not end:
            return 0, genesis()
        start = _newline_before(self._lines, end - 1)
        last = os.pread(self._lines, end - 1 - start, start)
        try:
            return int(json.loads(last)["seq"]), hashlib.sha256(last).hexdigest()
        except (ValueError, KeyError, TypeError, RecursionError):
            raise IntegrityError(
                f"the last line of the transcript '{self._path}' is none",
                remedy="restore the transcript that belongs to the run, or start a new run",
                code="transcript",
            ) from None

    def _write(self, kind: str, fields: Mapping[str, Any]) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps(
            {"seq": self._number + 1, "time": time, "kind": kind, **fields, "previous": self._head},
            separators=(",", ":"),
        ).encode()
        self._append(self._lines, line + b"\n")
        self._number += 1
        self._head = hashlib.sha256(line).hexdigest()

    def _append(self, file: int, data: bytes | memoryview) -> int:
        start = os.fstat(file).st_size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(file, start)
            raise StorageError.of(self._path, error) from None
        return start

    # ----- fields

    def _records(self, content: RecordDict) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        left = MOST_FIELDS
        for name, record in list(content.items())[:MOST_FIELDS]:
            fields = list(record.items())[:left]
            left -= len(fields)
            listed = [self._field(name, key, value) for key, value in fields]
            kind = {ArrayRecord: "array", MetricRecord: "metric", ConfigRecord: "config"}[type(record)]
            found.append(
                {"name": name[:_NAME], "kind": kind, "fields": listed, "more": len(record) - len(fields)}
            )
        return found

    def _field(self, record: str, name: str, value: Any) -> dict[str, Any]:
        if isinstance(value, Array):
            return self._array(record, name, value)
        return self._value(name, value, told=record in _TOLD)

    def _array(self, record: str, name: str, array: Array) -> dict[str, Any]:
        form, data = (
            _protected_form(array) if (record, name) == (protocol.UPDATE, protocol.SUM) else ("", b"")
        )
        parts = parts_of(form, data, most=_CIPHERTEXTS)
        data = data if parts else _data(array)
        said: dict[str, Any] = {
            "name": name[:_NAME],
            "type": form if parts else f"array:{str(array.dtype)[:32]}",
            "shape": list(array.shape)[:8],
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        if not parts or not self._protected:
            return said
        if self._limit is None or os.fstat(self._vectors).st_size + len(data) <= self._limit:
            return {**said, "at": self._append(self._vectors, data)}
        return {**said, "facts": [_facts(part, vector) for part, vector in parts.items()]}

    def _value(self, name: str, value: Any, *, told: bool) -> dict[str, Any]:
        kind, parts = _parts(value)
        size, digest = sum(map(len, parts)), digest_of(kind, parts)
        said = {"name": name[:_NAME], "type": kind, "bytes": size, "sha256": digest}
        base = kind.removesuffix("[]")
        if (
            not told
            or name in _HANDED_ON
            or size > LONGEST
            or base not in ("bytes", "str", "int")
            or digest in self._known
        ):
            return said
        if size > _ONCE and not kind.endswith("[]") and len(self._known) < _MOST_KNOWN:
            self._known.add(digest)
        texts = [base64.b64encode(part).decode() for part in parts] if base == "bytes" else value
        return {**said, "value": texts[0] if base == "bytes" and kind == base else texts}


def _facts(part: str, vector: Residues) -> dict[str, Any]:
    facts = facts_of(vector, most=_SAMPLE)
    return {
        "part": part,
        "numbers": facts.numbers,
        "counts": facts.counts.tolist(),
        "near": facts.near,
        "even": facts.even,
        "lag": facts.lag,
        "pairs": facts.pairs,
        "head": base64.b64encode(facts.head.astype("<u4").tobytes()).decode(),
    }


def genesis() -> str:
    """Return what the first line names as the hash of the line before it."""
    return "0" * 64


def digest_of(kind: str, parts: Sequence[bytes]) -> str:
    """Return the SHA-256 (hex) over a field's type and the bytes of its entries, each behind its length."""
    found = hashlib.sha256(kind.encode())
    for part in parts:
        found.update(len(part).to_bytes(8))
        found.update(part)
    return found.hexdigest()


def _newline_before(file: int, end: int) -> int:
    """Return the offset just after the last newline before ``end`` (0 where there is none)."""
    while end:
        start = max(0, end - _BLOCK)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _parts(value: Any) -> tuple[str, list[bytes]]:
    """Return a field's type and the bytes of its entries."""
    if isinstance(value, list):
        kind = type(value[0]).__name__ if value else "bytes"
        return f"{kind}[]", [_bytes(entry) for entry in value]
    return type(value).__name__, [_bytes(value)]


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else repr(value).encode()


def _protected_form(array: Array) -> tuple[str, bytes]:
    """Return the type and the bytes of a protected vector; empty where the array is none."""
    vector = _vector(array)
    if vector is not None:
        return MASKED, vector.tobytes()
    data = _data(array)
    if (str(array.dtype), tuple(array.shape)) != ("uint8", (len(data),)):
        return "", b""
    return f"{CONTAINER}{array.stype.removeprefix('cloister.')}", data


def _vector(array: Array) -> Residues | None:
    """Return the vector of 32-bit numbers that the array is, if it is one."""
    if str(array.dtype) != "uint32" or len(array.shape) != 1:
        return None
    try:
        found = decode_array(array.data, array.shape[0], "uint32") if type(array) is Array else array.numpy()
    except (ValueError, TypeError, OverflowError):
        return None
    vector: Residues = np.ascontiguousarray(found, dtype="<u4")
    return vector if found.dtype == np.uint32 and found.ndim == 1 else None


def _data(array: Array) -> bytes:
    """Return the array's bytes: as they travelled, or of an engine's own array those of its numbers."""
    return array.data if type(array) is Array else array.numpy().tobytes()
