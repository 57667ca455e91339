"""Is this ledger what its site wrote, all of it, and is ε what its events cost? Offline, from the files alone.

Formal guarantees (of a `Verification` without problems):

- No byte of the ledger's file or of its head file differs from what the writer left (checked through the anchor; without it, or
  when a crash fell between an entry and its anchor, no byte that means anything: every column, the schema, the header's fields).
- Every entry is signed by the ledger's key and follows the entry before it, in a legal order, without a gap; none is missing at
  the end (through the anchor and the heads that others witnessed).
- Every ``epsilon_after`` is the ε of everything charged to its unit up to that entry, recomputed, within `TOLERANCE`; and no
  reservation was made that passed the cap of its time.

=============================================  =====================================================================
case                                           outcome
=============================================  =====================================================================
one entry more than the anchor says            sound, with a warning: a crash before the anchor was written
fewer entries, or more than one more           problem ``ledger-rollback`` or ``ledger-anchor``
no head file                                   problem ``ledger-anchor``; a ledger of one entry: a warning
a changed byte that no entry depends on        problem ``ledger-file``, and it is said that the entries are intact
a witness's signature that does not hold       problem ``ledger-witness``
=============================================  =====================================================================
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cloister.core.errors import CloisterError, IntegrityError
from cloister.privacy.ledger.budget import Account, Composer
from cloister.privacy.ledger.chain import Chain, witnessed_head
from cloister.privacy.ledger.entry import Entry
from cloister.privacy.ledger.heads import Head
from cloister.privacy.ledger.inspection import Inspection, Problem, inspect
from cloister.privacy.ledger.spending import epsilon_of, stated_delta, window_epsilon

__all__ = ["TOLERANCE", "Verification", "verify"]

#: Relative: two versions of an accounting library may discretise a little differently.
TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a verification found.

    Attributes:
        entries: how many were sound, from the first on.
        site: whose ledger; empty where not even that can be read.
        dataset: which lineage.
        public_key: the key that signed, hex.
        head: number and hash of the last sound entry.
        epsilon: of each unit, the last ε recomputed and its δ.
        recomputed: how many ε's were recomputed.
        witnesses: who witnessed this ledger, and the newest entry that each saw.
        problems: what does not hold; empty: verified.
        warnings: what could not be checked, or happened and is harmless.
    """

    entries: int
    site: str
    dataset: str
    public_key: str
    head: tuple[int, str] | None
    epsilon: Mapping[str, tuple[float, float]]
    recomputed: int
    witnesses: Mapping[str, int]
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything that was checked holds."""
        return not self.problems

    def require(self) -> None:
        """Raise what does not hold.

        Raises:
            IntegrityError: with the code of the first problem.
        """
        if self.problems:
            lines = "\n  ".join(problem.message for problem in self.problems)
            raise IntegrityError(
                f"the ledger does not verify:\n  {lines}",
                remedy="keep the files as they are; train no more on this data set until it is known what happened",
                code=self.problems[0].code,
            )


def verify(
    path: Path,
    *,
    account: Account | None = None,
    public_key: str | None = None,
    witnessed: Iterable[Head] = (),
    anchored: bool = True,
) -> Verification:
    """Verify the ledger in ``path``; damage is reported, not raised.

    Args:
        path: the ledger's file; it is not changed.
        account: recomputes ε; without it, ε is not checked and a warning says so.
        public_key: the key that must have signed (hex); without it, the one that the ledger names itself.
        witnessed: heads that others saw.
        anchored: whether to check against the head file; ``False`` for a copy that came without it.

    Raises:
        IntegrityError: (``ledger-absent``) there is no such file; (``ledger-busy``) it could not be read in time.
    """
    found = inspect(path, anchored=anchored)
    if found.empty:
        raise IntegrityError(
            f"there is no ledger in '{path}'", remedy="name the ledger's file", code="ledger-absent"
        )
    chain = found.chain
    epsilon: dict[str, tuple[float, float]] = {}
    recomputed = 0
    if chain.entries:
        if public_key is not None and public_key.lower() != chain.public_key:
            found.problems.append(
                Problem(
                    code="ledger-key",
                    message=f"the ledger is signed by {chain.public_key}, not by {public_key.lower()}",
                )
            )
        for head in witnessed:
            try:
                chain.expect(head)
            except IntegrityError as error:
                found.note(error)
        if account is None:
            found.warnings.append("epsilon was not recomputed: no accounting was given")
        else:
            epsilon, recomputed = _recompute(chain, Composer(account), found)
    first, last = (chain.entries[0], chain.last) if chain.entries else (None, None)
    return Verification(
        entries=len(chain.entries),
        site=first.site if first else "",
        dataset=first.dataset if first else "",
        public_key=chain.public_key if first else "",
        head=(last.seq, last.entry_hash) if last else None,
        epsilon=epsilon,
        recomputed=recomputed,
        witnesses=_witnesses(chain),
        problems=tuple(found.problems),
        warnings=tuple(found.warnings),
    )


def _witnesses(chain: Chain) -> dict[str, int]:
    newest: dict[str, int] = {}
    for entry in chain.entries:
        if entry.kind == "WITNESS":
            by = str(entry.data["by"])
            newest[by] = max(newest.get(by, 0), witnessed_head(entry).seq)
    return newest


def _recompute(
    chain: Chain, composer: Composer, found: Inspection
) -> tuple[dict[str, tuple[float, float]], int]:
    """Follow the entries once more and compute each ε from the events alone."""
    again, latest, number = Chain(), {}, 0
    for entry in chain.entries:
        now = datetime.fromisoformat(entry.time)
        try:
            recent = _with_window(again, entry, composer, now)
            again.add(entry)
            if entry.epsilon_after is None:
                continue
            unit, at = str(entry.unit), float(entry.at_delta or 0.0)
            epsilon = epsilon_of(again, unit, at, composer)
        except CloisterError as error:
            text = f"entry {entry.seq} cannot be accounted for: {error.message}"
            found.problems.append(Problem(code="ledger-epsilon", message=text))
            break
        number += 1
        latest[unit] = (epsilon, at)
        for text in _epsilon_faults(again, entry, epsilon, recent):
            found.problems.append(Problem(code="ledger-epsilon", message=f"entry {entry.seq} {text}"))
    return latest, number


def _with_window(chain: Chain, entry: Entry, composer: Composer, now: datetime) -> float:
    """Return what ``entry`` brought the rate's window to, if it is a RESERVE under a rate, else 0."""
    if entry.kind != "RESERVE":
        return 0.0
    return window_epsilon(chain, str(entry.unit), Counter([entry.event]), composer, now=now)


def _epsilon_faults(chain: Chain, entry: Entry, epsilon: float, window: float) -> Iterator[str]:
    stated, at, unit = float(entry.epsilon_after or 0.0), float(entry.at_delta or 0.0), str(entry.unit)
    cap = chain.cap(unit)
    if at != stated_delta(chain, unit, float(entry.delta or 0.0)):
        yield f"states epsilon at delta = {at:g}, which is not the cap's"
    if not math.isclose(epsilon, stated, rel_tol=TOLERANCE):
        yield f"states epsilon = {stated:.6g}, and the events up to it cost {epsilon:.6g}"
    if entry.kind == "RESERVE" and cap is not None:
        if stated > cap.epsilon:
            yield f"reserved up to epsilon = {stated:.6g}, above the cap of {cap.epsilon:.6g}"
        if cap.rate is not None and window > cap.rate.epsilon * (1 + TOLERANCE):
            yield f"brought its window to epsilon = {window:.6g}, above the rate of {cap.rate.epsilon:.6g}"
