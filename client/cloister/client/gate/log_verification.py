"""Is this log what its site wrote, all of it? Offline, from the files alone.

Formal guarantees (of a `LogVerification` without problems):

- No byte of the log or of its head file differs from what was written; no line is missing, in the middle or at the end, put in or moved.
- Every line is signed by one key, which the site that the consortium's authority certified vouched for (where a consortium was given).

==========================================  ==================================================================
case                                        outcome
==========================================  ==================================================================
one line more than the head file says       sound, with a warning: a crash before the head was written
a last line without its end                 sound up to there, with a warning: a crash while it was written
fewer lines than the head file says         problem ``log-rollback``
no head file                                problem ``log-head``
log and head put back together              not found here: compare the head with one that was kept elsewhere
==========================================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cloister.client.gate.log_entry import LogEntry, follow, read_entry
from cloister.client.gate.site_log import read_head, vouched_key
from cloister.core.errors import IntegrityError, UsageError
from cloister.privacy.identity import Consortium, Purpose, Role
from cloister.privacy.ledger.heads import Head

__all__ = ["LogVerification", "read_log", "verify_log"]


@dataclass(kw_only=True)
class LogVerification:
    """What a verification found.

    Attributes:
        entries: how many lines were sound, from the first on.
        site: whose log it is; empty where not even that can be read.
        public_key: the key that signed, hex.
        vouched: whether the site's certificate vouches for that key; ``None``: not asked.
        head: hash of the last sound line.
        problems: (code, message) of what does not hold; empty: verified.
        warnings: what happened and is harmless, or was not checked.
    """

    entries: int = 0
    site: str = ""
    public_key: str = ""
    vouched: bool | None = None
    head: str = ""
    problems: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that was checked holds."""
        return not self.problems

    def note(self, error: IntegrityError) -> None:
        """Take down what does not hold."""
        self.problems.append((error.code, error.message))

    def require(self) -> None:
        """Raise what does not hold.

        Raises:
            IntegrityError: with the code of the first problem.
        """
        if self.problems:
            lines = "".join(f"\n  {message}" for _, message in self.problems)
            raise IntegrityError(
                f"the site's log does not verify:{lines}",
                remedy="keep the files as they are, and find out who could write to them",
                code=self.problems[0][0],
            )


def verify_log(
    path: Path, *, public_key: str | None = None, consortium: Consortium | None = None
) -> LogVerification:
    """Verify the log in ``path``; damage is reported, not raised.

    Args:
        path: the log's file; it is not changed.
        public_key: the key that must have signed (hex); without it, the one that the log's first line names.
        consortium: whose site must vouch for that key.

    Raises:
        UsageError: there is no such file.
    """
    found = LogVerification()
    head = _head(path, found)
    try:
        for entry in read_log(path, warnings=found.warnings):
            if entry.seq == 0:
                _check_key(entry, found, public_key, consortium)
            if not entry.signed_by(found.public_key):
                raise _unsigned(entry)
            if head is not None and entry.seq == head.seq and entry.hash != head.entry_hash:
                raise _other_head(entry)
            found.entries, found.head = entry.seq + 1, entry.hash
    except IntegrityError as error:
        found.note(error)
        return found
    if head is not None:
        _check_end(head, found)
    return found


def _head(path: Path, found: LogVerification) -> Head | None:
    try:
        head = read_head(path)
    except IntegrityError as error:
        found.note(error)
        return None
    if head is None:
        found.problems.append(
            (
                "log-head",
                f"the head file beside '{path}' is missing: whether lines were cut off cannot be told",
            )
        )
    return head


def _check_end(head: Head, found: LogVerification) -> None:
    newer = found.entries - head.seq - 1
    if newer < 0:
        found.problems.append(
            (
                "log-rollback",
                f"the log has {found.entries} lines, and its head file names line {head.seq + 1}: lines were cut off",
            )
        )
    elif head.public_key != found.public_key:
        found.problems.append(("log-head", "the head file is signed by another key than the log"))
    elif newer > 1:
        found.problems.append(
            ("log-head", f"the log has {newer} lines more than its head file says: that is an older one")
        )
    elif newer:
        found.warnings.append(
            "the last line is newer than the head file: a writer was interrupted, or is writing now"
        )


def read_log(path: Path, *, warnings: list[str] | None = None) -> Iterator[LogEntry]:
    """Yield the lines of a log, each checked against the one before; signatures are not looked at.

    Args:
        path: the log's file.
        warnings: is told of a torn last line.

    Raises:
        IntegrityError: (log-line, log-chain) at the first line that does not hold.
        UsageError: there is no such file.
    """
    before: LogEntry | None = None
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    if warnings is not None:
                        warnings.append(
                            f"line {number + 1} was not written to its end: the next start removes it"
                        )
                    return
                entry = read_entry(line[:-1], number)
                follow(before, entry, number)
                yield entry
                before = entry
    except OSError as error:
        raise UsageError(
            f"the site's log '{path}' cannot be read: {error.strerror}",
            remedy="name a site's folder: its log is begun when the site first runs",
        ) from None


def _check_key(
    entry: LogEntry, found: LogVerification, public_key: str | None, consortium: Consortium | None
) -> None:
    named, certificate, signature = vouched_key(entry.said)
    found.site = entry.site
    found.public_key = named
    if public_key is not None and named != public_key.lower():
        found.problems.append(("log-key", f"the log is signed by {named}, not by {public_key.lower()}"))
    if consortium is None:
        found.warnings.append("whose key it is was not checked: no consortium was given")
        return
    try:
        member = consortium.member(certificate, role=Role.SITE, now=entry.at)
        member.check(Purpose.LOG, bytes.fromhex(named), signature)
        found.vouched = member.name == entry.site
    except IntegrityError:
        found.vouched = False
    if not found.vouched:
        found.problems.append(("log-key", f"no certificate of site '{entry.site}' vouches for the log's key"))


def _unsigned(entry: LogEntry) -> IntegrityError:
    return IntegrityError(f"line {entry.seq + 1} is not signed by the log's key", code="log-signature")


def _other_head(entry: LogEntry) -> IntegrityError:
    return IntegrityError(
        f"line {entry.seq + 1} is not the one that the head file names: this is another history",
        code="log-rollback",
    )
