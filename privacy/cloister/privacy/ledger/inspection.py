"""Read a ledger's files as far as they are sound, and say what is not: what every opening and every verification begins with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.core.errors import CloisterError, IntegrityError
from cloister.privacy.ledger.chain import Chain, witnessed_head
from cloister.privacy.ledger.entry import Entry
from cloister.privacy.ledger.heads import Anchor, anchor_path, read_anchor, witness_holds
from cloister.privacy.ledger.store import Snapshot, snapshot

__all__ = ["Inspection", "Problem", "inspect"]

_TRIES = 20


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that does not hold: a stable code and a sentence."""

    code: str
    message: str


@dataclass(kw_only=True)
class Inspection:
    """A ledger as it was read: as far as it is sound, and what is not."""

    chain: Chain = field(default_factory=Chain)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    anchor: Anchor | None = None
    empty: bool = False

    def note(self, error: CloisterError) -> None:
        """Take down what does not hold."""
        self.problems.append(Problem(code=error.code, message=error.message))

    def require(self) -> None:
        """Raise the first thing that does not hold.

        Raises:
            IntegrityError: with its code.
        """
        if self.problems:
            raise IntegrityError(
                self.problems[0].message,
                remedy="keep the files as they are and restore the newest copy; see: cloister ledger verify",
                code=self.problems[0].code,
            )


def inspect(path: Path, *, anchored: bool = True, trusted: bool = False) -> Inspection:
    """Read the ledger in ``path`` as far as it is sound.

    Args:
        path: the ledger's file.
        anchored: whether to check against the head file.
        trusted: whether single signatures may be left out where the anchor, signed by the same key, holds the hash of these
            very bytes (the writer verified what it appended to).

    Raises:
        IntegrityError: (``ledger-busy``) it could not be read in time.
    """
    found = Inspection()
    raw, shot = _read_both(path, found)
    if shot is None:
        found.empty = not found.problems
        if found.empty and raw is not None and anchored:
            found.empty = False
            found.problems.append(
                Problem(
                    code="ledger-rollback", message="the ledger is gone, and its head file is still there"
                )
            )
        return found
    _replay(shot, found, path=path, anchored=anchored, trusted=trusted)
    return found


def _read_both(path: Path, found: Inspection) -> tuple[bytes | None, Snapshot | None]:
    """Read the ledger while its head file stands still, so that the two belong together even while somebody writes."""
    for _ in range(_TRIES):
        shot = None
        before = _bytes(anchor_path(path))
        found.problems.clear()
        try:
            shot = snapshot(path)
        except IntegrityError as error:
            if error.code != "ledger-file":
                raise
            found.note(error)
        if _bytes(anchor_path(path)) == before:
            return before, shot
    raise IntegrityError(
        f"the ledger '{path}' is being written all the time", remedy="try again", code="ledger-busy"
    )


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _replay(shot: Snapshot, found: Inspection, *, path: Path, anchored: bool, trusted: bool) -> None:
    chain = found.chain
    skip = False
    for row in shot.rows:
        try:
            entry = Entry.from_row(row)
            if chain.entries and not skip:
                _check_signatures(entry, chain.public_key)
            chain.add(entry)
            if entry.seq == 0:
                _check_signatures(entry, chain.public_key)
                found.anchor = _anchor(path, chain.public_key, found) if anchored else None
                skip = trusted and found.anchor is not None and found.anchor.sha256 == shot.sha256
        except IntegrityError as error:
            found.note(error)
            break
    else:
        if not chain.entries:
            found.problems.append(Problem(code="ledger-chain", message="the ledger has no entry at all"))
        elif anchored:
            _check_anchor(shot, found)
        else:
            found.warnings.append(
                "there is no head file to check against: missing entries at the end would not show"
            )


def _check_signatures(entry: Entry, public_key: str) -> None:
    if not entry.signature_holds(public_key):
        raise IntegrityError(f"entry {entry.seq} is not signed by the ledger's key", code="ledger-signature")
    if entry.kind == "WITNESS":
        data: dict[str, Any] = entry.data
        if not witness_holds(witnessed_head(entry), str(data["signature"]), str(data["public_key"])):
            raise IntegrityError(
                f"entry {entry.seq}: the signature of the witness '{data['by']}' does not hold",
                code="ledger-witness",
            )


def _anchor(path: Path, public_key: str, found: Inspection) -> Anchor | None:
    try:
        return read_anchor(path, public_key=public_key)
    except IntegrityError as error:
        found.note(error)
        return None


def _check_anchor(shot: Snapshot, found: Inspection) -> None:
    anchor, last = found.anchor, found.chain.entries[-1]
    if anchor is None:
        if any(problem.code == "ledger-anchor" for problem in found.problems):
            return
        if last.seq == 0:
            found.warnings.append(
                "the head file is not written yet: the ledger was interrupted when it was made"
            )
            return
        text = "the head file is missing: entries may be missing at the end of the ledger"
        found.problems.append(Problem(code="ledger-anchor", message=text))
        return
    try:
        found.chain.expect(anchor.head)
    except IntegrityError as error:
        found.problems.append(
            Problem(
                code=error.code,
                message=f"the head file says that entry {anchor.head.seq} was written: {error.message}",
            )
        )
        return
    if last.seq > anchor.head.seq + 1:
        text = f"the head file is of entry {anchor.head.seq}, and the ledger goes to {last.seq}: it is an older head file"
        found.problems.append(Problem(code="ledger-anchor", message=text))
    elif last.seq == anchor.head.seq + 1:
        found.warnings.append(
            f"entry {last.seq} is newer than the head file: its writer was interrupted, or is writing; bytes that no entry depends on were not checked"
        )
    elif (shot.size, shot.sha256) != (anchor.size, anchor.sha256):
        text = "bytes of the ledger's file were changed that no entry depends on; every entry is intact"
        found.problems.append(Problem(code="ledger-file", message=text))
