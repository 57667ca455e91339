"""``cloister ledger show | verify | export | remaining | predict``: what a privacy officer asks a site's ledger, and ``cap``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cloister.core.errors import IntegrityError, UsageError
from cloister.core.outcome import JsonOption, Outcome, outcome, visible
from cloister.privacy.ledger_cap import cap_command
from cloister.privacy.ledger_predict import predict_command

if TYPE_CHECKING:
    from cloister.privacy.ledger.budget import Composer
    from cloister.privacy.ledger.chain import Chain
    from cloister.privacy.ledger.entry import Entry
    from cloister.privacy.ledger.heads import Head
    from cloister.privacy.ledger.inspection import Inspection
    from cloister.privacy.ledger.verification import Verification

__all__ = ["read_heads", "register"]

LedgerArgument = Annotated[
    Path, typer.Argument(metavar="PATH", help="The ledger's file.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add ``ledger`` to ``app``."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Show, verify and export what a site's data set has spent.",
        rich_markup_mode="markdown",
    )
    group.command("show")(show_command)
    group.command("verify")(verify_command)
    group.command("export")(export_command)
    group.command("remaining")(remaining_command)
    group.command("predict")(predict_command)
    group.command("cap")(cap_command)
    app.add_typer(group, name="ledger")


def show_command(
    path: LedgerArgument,
    last: Annotated[
        int, typer.Option("--last", min=0, help="How many of the newest entries to show; 0 for all.")
    ] = 20,
    json_output: JsonOption = False,
) -> None:
    """Show what was spent, and on what: each unit's epsilon against its cap, and the newest entries."""
    with outcome(json_output) as out:
        found = _sound(path)
        chain, budgets = found.chain, _budgets(found.chain)
        first = chain.entries[0]
        newest = chain.entries[-last:] if last else chain.entries
        out.result = {
            "path": str(path),
            "site": first.site,
            "dataset": first.dataset,
            "public_key": chain.public_key,
            "head": _head(found),
            "length": len(chain.entries),
            "caps": [cap.as_event() for cap in chain.caps],
            "units": budgets,
            "entries": [entry.as_dict() for entry in newest],
            "warnings": found.warnings,
        }
        out.say(
            visible(
                f"ledger of '{first.site}' for '{first.dataset}', {len(chain.entries)} entries, key {chain.public_key}"
            )
        )
        _say_units(out, budgets)
        table = Table(
            "seq", "time", "kind", "run", "round", "unit", "epsilon after", "what", box=None, pad_edge=False
        )
        for entry in newest:
            table.add_row(*(visible(text) for text in _line(entry)))
        out.say("", table)
        _say_warnings(out, found.warnings)
        out.say(f"\nnext: cloister ledger verify {shlex.quote(str(path))}")


def verify_command(
    path: LedgerArgument,
    public_key: Annotated[
        str | None,
        typer.Option(
            "--public-key", metavar="HEX", help="The key that must have signed it.", show_default=False
        ),
    ] = None,
    witnessed: Annotated[
        Path | None,
        typer.Option(
            "--witnessed",
            metavar="FILE",
            help="Heads that others saw (JSON): the ledger must hold each.",
            show_default=False,
        ),
    ] = None,
    head_file: Annotated[
        bool,
        typer.Option("--head-file/--no-head-file", help="Check against the head file beside the ledger."),
    ] = True,
    json_output: JsonOption = False,
) -> None:
    """Verify, offline: chain, signatures, order, nothing missing, every epsilon recomputed. Exit 7 if anything does not hold."""
    with outcome(json_output) as out:
        from cloister.privacy.accounting import account
        from cloister.privacy.ledger.verification import verify

        _refuse_absent(path)
        heads = [] if witnessed is None else read_heads(witnessed)
        out.progress.print("recomputing every epsilon from its events", highlight=False)
        found = verify(path, account=account, public_key=public_key, witnessed=heads, anchored=head_file)
        found.require()
        out.result = _verified(path, found, len(heads))
        out.say(
            visible(
                f"the ledger of '{found.site}' for '{found.dataset}' verifies: {found.entries} entries, key {found.public_key}"
            )
        )
        out.say(
            f"{found.recomputed} epsilons recomputed from their events, {len(heads)} witnessed heads found in it"
        )
        for unit, (epsilon, delta) in found.epsilon.items():
            out.say(
                visible(f"unit '{unit}': epsilon = {epsilon:.4g} at delta = {delta:g} for everything charged")
            )
        for by, seq in found.witnesses.items():
            out.say(visible(f"witnessed by '{by}' up to entry {seq}"))
        _say_warnings(out, found.warnings)
        if public_key is None:
            out.say(
                "the key is the one that the ledger names itself: compare it with the site's, or give --public-key"
            )


def export_command(
    path: LedgerArgument,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write to this file instead of standard output.", show_default=False
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Export all entries with their hashes and signatures, and the signed head, as one JSON object."""
    with outcome(json_output) as out:
        found = _sound(path)
        first = found.chain.entries[0]
        whole = {
            "format": 1,
            "site": first.site,
            "dataset": first.dataset,
            "public_key": found.chain.public_key,
            "head": _head(found),
            "entries": [entry.as_dict() for entry in found.chain.entries],
        }
        if to is None:
            out.result = whole
            out.say(json.dumps(whole, indent=1, allow_nan=False))
            return
        from cloister.core.files import write_whole

        try:
            write_whole(to, json.dumps(whole, indent=1, allow_nan=False) + "\n", mode=0o600)
        except OSError as error:
            raise UsageError(
                f"'{to}' cannot be written: {error.strerror}", remedy="name another file"
            ) from None
        out.result = {"out": str(to), "entries": len(found.chain.entries)}
        out.say(visible(f"{len(found.chain.entries)} entries written to {to}"))


def remaining_command(path: LedgerArgument, json_output: JsonOption = False) -> None:
    """Show what may still be spent, and how many more rounds like the last one fit under the cap."""
    with outcome(json_output) as out:
        found = _sound(path)
        budgets = _budgets(found.chain, ahead=True)
        out.result = {
            "path": str(path),
            "caps": [cap.as_event() for cap in found.chain.caps],
            "units": budgets,
            "warnings": found.warnings,
        }
        _say_units(out, budgets)
        for budget in budgets:
            if budget["more"] is not None:
                number = "10,000 or more" if budget["more"] >= 10_000 else f"{budget['more']:,}"
                out.say(
                    visible(
                        f"unit '{budget['unit']}': {number} more charges like the last one fit under the cap"
                    )
                )
        if not found.chain.caps:
            out.say("no cap is set: everything is charged and nothing is refused")
        _say_warnings(out, found.warnings)


def _sound(path: Path) -> Inspection:
    """Read a ledger that must be sound: what a damaged one says is not shown as if it were so."""
    from cloister.privacy.ledger.inspection import inspect

    _refuse_absent(path)
    found = inspect(path)
    found.require()
    if found.empty:
        raise UsageError(f"'{path}' is an empty file, and no ledger", remedy="name the ledger's file")
    return found


def _refuse_absent(path: Path) -> None:
    from cloister.privacy.ledger.heads import anchor_path

    try:
        there = path.exists() or anchor_path(path).exists()
    except OSError as error:
        raise UsageError(
            f"'{path}' cannot be read: {error.strerror}", remedy="name a ledger's file that you may read"
        ) from None
    if not there:
        raise UsageError(f"there is no ledger '{path}'", remedy="name the ledger's file")


def _budgets(chain: Chain, *, ahead: bool = False) -> list[dict[str, Any]]:
    from cloister.privacy.accounting import account
    from cloister.privacy.ledger.budget import Composer
    from cloister.privacy.ledger.spending import budget_of

    composer, now = Composer(account), datetime.now(UTC)
    found = [budget_of(chain, unit, composer, now=now) for unit in chain.units]
    return [
        budget.as_dict() | ({"more": _more(chain, budget.unit, composer)} if ahead else {})
        for budget in found
        if budget is not None
    ]


def _more(chain: Chain, unit: str, composer: Composer) -> int | None:
    from cloister.privacy.ledger.spending import how_many_more

    cap = chain.cap(unit)
    last = next((holding for holding in reversed(chain.holdings) if holding.reserve.unit == unit), None)
    if cap is None or last is None:
        return None
    return how_many_more(chain, last.charge or last.reserve.event, composer, unit=unit, cap=cap)


def _head(found: Inspection) -> dict[str, Any] | None:
    return None if found.anchor is None else found.anchor.head.as_dict()


def read_heads(path: Path) -> list[Head]:
    """Read heads from JSON: a list of them, or an object with ``heads``, or one with ``head`` such as an export."""
    from cloister.privacy.ledger.heads import Head

    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the heads in '{path}' cannot be read ({type(error).__name__})", remedy="give a file of JSON"
        ) from None
    if isinstance(value, Mapping):
        value = value["heads"] if "heads" in value else [value.get("head")]
    if not isinstance(value, list) or not value:
        raise IntegrityError(
            f"'{path}' holds no heads",
            remedy="give a list of heads, or what 'ledger export' wrote",
            code="ledger-head",
        )
    return [Head.from_dict(head) for head in value]


def _verified(path: Path, found: Verification, heads: int) -> dict[str, Any]:
    return {
        "path": str(path),
        "verified": True,
        "site": found.site,
        "dataset": found.dataset,
        "public_key": found.public_key,
        "entries": found.entries,
        "head": None if found.head is None else {"seq": found.head[0], "entry_hash": found.head[1]},
        "recomputed": found.recomputed,
        "epsilon": {
            unit: {"epsilon": epsilon, "delta": delta} for unit, (epsilon, delta) in found.epsilon.items()
        },
        "witnesses": dict(found.witnesses),
        "heads_checked": heads,
        "warnings": list(found.warnings),
    }


def _say_units(out: Outcome, budgets: list[dict[str, Any]]) -> None:
    table = Table(
        "unit",
        "epsilon spent",
        "cap",
        "left",
        "delta",
        "committed",
        "open",
        "aborted",
        box=None,
        pad_edge=False,
    )
    for budget in budgets:
        numbers = [_number(budget[name]) for name in ("epsilon", "cap", "left", "delta")]
        table.add_row(
            visible(budget["unit"]),
            *numbers,
            *(str(budget[name]) for name in ("committed", "open", "aborted")),
        )
    out.say("", table)
    for budget in budgets:
        if budget["window_days"] is not None:
            out.say(
                visible(
                    f"unit '{budget['unit']}': epsilon = {budget['window_epsilon']:.4g} within the last {budget['window_days']:g} days, "
                    f"{budget['window_left']:.4g} below the rate"
                )
            )
        if budget["open"]:
            out.say(
                visible(
                    f"unit '{budget['unit']}': {budget['open']} reservations are open (a run in progress, or a crash) and charged in full"
                )
            )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _line(entry: Entry) -> list[str]:
    data = entry.data
    what = {
        "COMMIT": f"of {entry.reservation}",
        "ABORT": f"of {entry.reservation}: {data.get('reason')}",
        "WITNESS": f"by {data.get('by')}",
        "POLICY": _policy(data),
    }.get(entry.kind, str(data.get("type", "")))
    return [
        str(entry.seq),
        entry.time[:19],
        entry.kind,
        entry.run or "",
        "" if entry.round is None else str(entry.round),
        entry.unit or "",
        "" if entry.epsilon_after is None else _number(entry.epsilon_after),
        what,
    ]


def _policy(data: Mapping[str, Any]) -> str:
    if data.get("policy") != "cap":
        return str(data.get("policy"))
    rate = data["rate"]
    limit = "" if rate is None else f", {rate['epsilon']:g} within {rate['days']:g} days"
    return f"cap {data['epsilon']:g} at {data['delta']:g} for {data['unit'] or 'every unit'}{limit}"


def _say_warnings(out: Outcome, warnings: list[str] | tuple[str, ...]) -> None:
    for warning in warnings:
        out.say(visible(f"warning: {warning}"))
