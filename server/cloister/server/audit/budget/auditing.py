"""Ledgers against runs, in both directions, and both against the accountant.

===================  ==========================================================================================================
discrepancy          what it says
===================  ==========================================================================================================
``ledger-…``         the ledger does not verify: chain, signatures, an entry that is missing, an ε that its events do not cost, a head
                     that others witnessed and it does not hold (`cloister.privacy.ledger.verification`)
``charge-missing``   the run has a site's update of a round, and the site's ledger holds no committed charge for it
``charge-other``     the ledger charged another mechanism, or other figures, for a round than the run's federation file asks for
``charge-unknown``   the ledger charged a round of the run in which the run did not ask the site
``charge-delta``     the ledger charged under another δ than the run's
``total-ledger``     ε of everything charged, recomputed from the runs' own files, is above what the ledger says
``total-run``        ε that the run states for a site is below what its events cost
``head-epsilon``     what the run heard of a ledger's ε is not what the ledger says up to that entry
``run-federation``   the run's federation file is not the one of its events
``run-ledgers``      the run kept no ledgers at all
``site-ledger``      two of the ledgers are of one site and data set
===================  ==========================================================================================================

What is not a discrepancy, and told as a note: charges of runs that were not given; ledgers that were not given of sites that a run asked; a charge
for the round after the last one of a run that did not end (it was interrupted there); charges of rounds that never came to the run (a site
was asked and its message was lost).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloister.core.errors import CloisterError, IntegrityError, UsageError
from cloister.privacy.accounting import account
from cloister.privacy.events import to_json
from cloister.privacy.ledger import Head, verify
from cloister.privacy.ledger.chain import Chain, Holding
from cloister.privacy.ledger.entry import canonical_json
from cloister.privacy.ledger.inspection import inspect
from cloister.privacy.ledger.verification import TOLERANCE
from cloister.server.audit.budget.runs import ChargedRun, read_run

__all__ = ["Discrepancy", "audit_budget"]

_SEEN = "seen.json"


@dataclass(frozen=True, kw_only=True)
class Discrepancy:
    """One thing that does not fit.

    Attributes:
        code: stable.
        message: in one sentence.
        ledger: whose.
        run: which run's.
        round: which of its rounds.
    """

    code: str
    message: str
    ledger: str | None = None
    run: str | None = None
    round: int | None = None


@dataclass(kw_only=True)
class _Book:
    path: Path
    chain: Chain

    @property
    def site(self) -> str:
        return self.chain.entries[0].site if self.chain.entries else ""

    @property
    def name(self) -> str:
        return f"{self.site} ({self.path.name})" if self.site else self.path.name


def audit_budget(
    ledgers: Sequence[Path], runs: Sequence[Path], *, witnessed: Iterable[Head] = ()
) -> dict[str, Any]:
    """Return what ledgers and runs show, as data with a verdict: ``passed`` or ``failed``.

    Args:
        ledgers: the sites' ledger files. Heads in a ``seen.json`` beside one (a simulation's server keeps it) are held against it too.
        runs: folders of runs whose rounds they must hold.
        witnessed: heads that others saw.

    Raises:
        UsageError: a path is no ledger, or no run.
    """
    heads, faults, notes = list(witnessed), list[Discrepancy](), list[str]()
    books = [book for path in ledgers if (book := _open(path, heads, faults, notes)) is not None]
    told = []
    for folder in runs:
        run = read_run(folder)
        if run is None:
            notes.append(f"the run '{folder.name}' promised nothing: no ledger can hold it")
            continue
        told.append(run)
        faults += [Discrepancy(code=code, message=text, run=run.name) for code, text in run.faults.items()]
        if not run.keeps:
            text = "its sites kept no ledgers: what it spent is in no account"
            faults.append(Discrepancy(code="run-ledgers", message=text, run=run.name))
    by_site = _by_site(books, faults)
    for run in told:
        if run.keeps:
            faults += _against_run(run, by_site, notes)
    totals = [
        total for book in books for total in _totals(book, {run.name: run for run in told}, faults, notes)
    ]
    return {
        "check": "budget",
        "verdict": "failed" if faults else "passed",
        "ledgers": [
            {"path": str(book.path), "site": book.site, "entries": len(book.chain.entries)} for book in books
        ],
        "runs": [_row(run, by_site) for run in told],
        "totals": totals,
        "discrepancies": [asdict(fault) for fault in faults],
        "notes": notes,
    }


def _open(path: Path, heads: list[Head], faults: list[Discrepancy], notes: list[str]) -> _Book | None:
    if not path.is_file():
        raise UsageError(f"there is no ledger '{path}'", remedy="name the ledger's file")
    found = inspect(path)
    if found.empty:
        raise UsageError(f"'{path}' is an empty file, and no ledger", remedy="name the ledger's file")
    book = _Book(path=path, chain=found.chain)
    seen = [head for head in (*heads, *_seen(path.with_name(_SEEN))) if head.site == book.site]
    checked = verify(path, account=account, witnessed=seen)
    faults += [
        Discrepancy(code=problem.code, message=problem.message, ledger=book.name)
        for problem in checked.problems
    ]
    notes += [f"{book.name}: {warning}" for warning in checked.warnings]
    if not seen:
        notes.append(f"{book.name}: nobody's head was held against it: an older copy would not show")
    return book if book.chain.entries else None


def _seen(path: Path) -> list[Head]:
    try:
        data = json.loads(path.read_text())
        return [Head.from_dict(entry["head"]) for entry in data.values()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            f"what the server saw of the ledgers cannot be read: '{path}' ({type(error).__name__})",
            remedy="restore that file, or move it away and give heads with --witnessed",
            code="ledger-telling",
        ) from None


def _by_site(books: Sequence[_Book], faults: list[Discrepancy]) -> dict[str, list[_Book]]:
    found: defaultdict[str, list[_Book]] = defaultdict(list)
    for book in books:
        twin = next(
            (
                one
                for one in found[book.site]
                if one.chain.entries[0].dataset == book.chain.entries[0].dataset
            ),
            None,
        )
        if twin is not None:
            text = f"'{book.path}' and '{twin.path}' are both of site '{book.site}' and one data set: which is the ledger?"
            faults.append(Discrepancy(code="site-ledger", message=text, ledger=book.name))
        found[book.site].append(book)
    return found


def _against_run(
    run: ChargedRun, by_site: Mapping[str, Sequence[_Book]], notes: list[str]
) -> Iterator[Discrepancy]:
    for site in sorted(run.asked):
        books = by_site.get(site, [])
        if not books:
            notes.append(f"run {run.name}: the ledger of site '{site}', which it asked, was not given")
            continue
        holdings = [
            (book, holding)
            for book in books
            for holding in book.chain.holdings
            if holding.reserve.run == run.name
        ]
        yield from _missing(run, site, books[0], [holding for _, holding in holdings])
        for book, holding in holdings:
            yield from _other(run, site, book, holding, notes)
        yield from _stated(run, site, books)


def _missing(run: ChargedRun, site: str, book: _Book, holdings: Sequence[Holding]) -> Iterator[Discrepancy]:
    committed = {one.reserve.round for one in holdings if one.state == "committed"}
    for number in sorted(run.answered.get(site, frozenset()) - committed):
        yield Discrepancy(
            code="charge-missing",
            message=f"the run has an update of site '{site}' in round {number}, and the site's ledger holds no committed charge for it",
            ledger=book.name,
            run=run.name,
            round=number,
        )


def _other(
    run: ChargedRun, site: str, book: _Book, holding: Holding, notes: list[str]
) -> Iterator[Discrepancy]:
    reserve, plan = holding.reserve, run.plan
    number = int(reserve.round or 0)

    def fault(code: str, message: str) -> Discrepancy:
        return Discrepancy(code=code, message=message, ledger=book.name, run=run.name, round=number)

    if number not in run.asked[site]:
        if not run.done and number == run.last + 1:
            notes.append(
                f"{book.name}: round {number} of {run.name} is charged; the run was interrupted in it"
            )
        else:
            yield fault(
                "charge-unknown",
                f"entry {reserve.seq} charges round {number}, in which the run did not ask site '{site}'",
            )
    if (
        holding.charge is not None
        and number not in run.answered.get(site, frozenset())
        and number in run.asked[site]
    ):
        notes.append(f"{book.name}: round {number} of {run.name} is charged, and its update did not come")
    expected = canonical_json(to_json(plan.event()))
    if reserve.unit != plan.unit or holding.charge not in (expected, None):
        yield fault(
            "charge-other",
            f"entry {reserve.seq} charges {holding.charge} to the unit '{reserve.unit}', and the run's file asks for {expected} for '{plan.unit}'",
        )
    figures = plan.figures().as_dict()
    wrong = [name for name, value in figures.items() if getattr(reserve, name) != value]
    if wrong:
        yield fault(
            "charge-other",
            f"entry {reserve.seq} says "
            + ", ".join(f"{name} = {getattr(reserve, name)} for {figures[name]}" for name in wrong),
        )
    if reserve.delta != plan.delta:
        yield fault(
            "charge-delta",
            f"entry {reserve.seq} is charged at delta = {reserve.delta:g}, and the run's is {plan.delta:g}",
        )


def _stated(run: ChargedRun, site: str, books: Sequence[_Book]) -> Iterator[Discrepancy]:
    said = run.stated.get(site)
    if said is None:
        return
    cost, epsilon = run.spent(site), said.get("epsilon")
    if epsilon is not None and epsilon < cost * (1 - TOLERANCE):
        text = f"the run says that site '{site}' spent epsilon = {epsilon:.4g}, and its {len(run.asked[site])} rounds cost {cost:.4g}"
        yield Discrepancy(code="total-run", message=text, run=run.name)
    heard = said.get("ledger")
    if not heard:
        return
    book = next((one for one in books if len(one.chain.entries) > heard["entries"]), None)
    holds = None if book is None else _epsilon_at(book.chain, run.plan.unit, heard["entries"])
    if book is None or holds is None or abs(holds - heard["epsilon"]) > TOLERANCE * max(holds, 1e-12):
        there = "no such entry" if holds is None else f"{holds:.4g}"
        yield Discrepancy(
            code="head-epsilon",
            message=f"the run heard of epsilon = {heard['epsilon']:.4g} at entry {heard['entries']} of the ledger of site '{site}', which says {there}",
            ledger=books[0].name,
            run=run.name,
        )


def _epsilon_at(chain: Chain, unit: str, seq: int) -> float | None:
    return next(
        (
            entry.epsilon_after
            for entry in reversed(chain.entries[: seq + 1])
            if entry.unit == unit and entry.epsilon_after is not None
        ),
        None,
    )


def _totals(
    book: _Book, runs: Mapping[str, ChargedRun], faults: list[Discrepancy], notes: list[str]
) -> Iterator[dict[str, Any]]:
    """Compose everything charged once more: of runs that were given by their own files, of others by the ledger's events."""
    chain = book.chain
    for unit in chain.units:
        charged = [one for one in chain.holdings if one.reserve.unit == unit and one.charge is not None]
        last = next(
            (
                entry
                for entry in reversed(chain.entries)
                if entry.unit == unit and entry.epsilon_after is not None
            ),
            None,
        )
        if not charged or last is None or last.at_delta is None or last.epsilon_after is None:
            continue
        known = [one for one in charged if one.reserve.run in runs]
        others = sorted({str(one.reserve.run) for one in charged if one.reserve.run not in runs})
        events: list[object] = [to_json(runs[str(one.reserve.run)].plan.event()) for one in known]
        events += [json.loads(one.charge or "") for one in charged if one.reserve.run not in runs]
        if others:
            notes.append(
                f"{book.name}: {len(charged) - len(known)} charges of {len(others)} runs that were not given are taken from the ledger itself"
            )
        try:
            cost = account(events, last.at_delta)
        except CloisterError as error:
            text = f"what was charged to '{unit}' cannot be accounted for: {error.message}"
            faults.append(Discrepancy(code="total-ledger", message=text, ledger=book.name))
            continue
        if cost > last.epsilon_after * (1 + TOLERANCE):
            text = f"everything charged to '{unit}' costs epsilon = {cost:.4g} at delta = {last.at_delta:g}, and the ledger says {last.epsilon_after:.4g}"
            faults.append(Discrepancy(code="total-ledger", message=text, ledger=book.name))
        yield {
            "ledger": book.name,
            "unit": unit,
            "charges": len(charged),
            "from_runs": len(known),
            "epsilon": cost,
            "ledger_says": last.epsilon_after,
            "delta": last.at_delta,
        }


def _row(run: ChargedRun, by_site: Mapping[str, Sequence[_Book]]) -> dict[str, Any]:
    return {
        "run": run.name,
        "folder": str(run.folder),
        "unit": run.plan.unit,
        "sites": len(run.asked),
        "ledgers_given": sum(site in by_site for site in run.asked),
        "updates": sum(len(rounds) for rounds in run.answered.values()),
        "ended": run.done,
    }
