"""The findings for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from cloister.core.outcome import visible
from cloister.server.report.words import bytes_text, listed, plural

__all__ = ["decryption_text", "p_text", "rounds_of", "told"]

_MARKS = {"passed": "yes", "failed": "NO", "not tested": "not tested"}
_ROUNDS = 12


def told(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what is printed of the findings of `audit_transcript`."""
    yield visible(
        f"transcript of {found['run']}: {plural(found['messages'], 'message')} received, protection: {found['protection']}"
    )
    if found["clear_fields"]:
        yield "\nin clear:"
        yield _clear(found)
    if found.get("sessions"):
        yield ""
        yield _rounds(found)
    yield ""
    table = Table("check", "holds", "why", box=None, pad_edge=False)
    for check in found["checks"]:
        table.add_row(check["name"], _MARKS[check["verdict"]], visible(check["reason"]))
    yield table
    if found.get("uniformity", {}).get("power"):
        yield "\nwhat the tests of uniformity would have found (p, adjusted for all tests of the run):"
        yield _power(found["uniformity"])
    if found.get("decryption"):
        yield "\n" + decryption_text(found["decryption"])
    if found["authority"] and not found["authority_given"]:
        yield (
            f"signatures are checked against the authority with the public key {found['authority']},\n"
            "which the transcript names itself: compare it with your consortium's, or give --authority"
        )
    yield visible(f"\nverdict: {found['verdict']}: {found['reason']}")


def decryption_text(who: Mapping[str, Any]) -> str:
    """Say who could decrypt."""
    if who.get("holder"):
        return (
            f"who could open one site's ciphertexts: {who['holder']} alone, {who['trusted']}: with all other sites it learns what the sum tells. "
            f"This rests on {who['rests_on']}."
        )
    lying = (
        f"with {who['lying']} of them, if the server also lies"
        if who["lying"]
        else "with nobody, if the server lies"
    )
    return (
        f"who could open one site's vector ({who['session']}, {who['sites']} sites, threshold {who['threshold']}): the server together with "
        f"{who['curious']} of {who['among']}, {who['which']}; {lying} about who survived; "
        "or with the consortium's authority, if that certifies keys of the server's for the other sites. Without these, nobody."
    )


def p_text(p: float | None) -> str:
    """Return a p-value as it is read."""
    if p is None:
        return ""
    return f"{p:.2f}" if p >= 0.01 else "< 1e-300" if p == 0 else f"{p:.1e}"


def rounds_of(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row a session: round, kind, asked, vectors, in the sum, what opens, masks left, the least p of single vectors."""
    return [
        (
            str(one["round"]),
            one["kind"],
            str(one["asked"]),
            f"{one['vectors']} × {one['numbers']}",
            str(len(one["survivors"])),
            ", ".join(f"a sum of {size}" for size in one["opens"]) or "nothing",
            str(min(one["masks_left"].values(), default=0)),
            p_text(one["least_p"]),
        )
        for one in found["sessions"]
    ]


def _rounds(found: Mapping[str, Any]) -> Table:
    table = Table(
        "round",
        "sum",
        "asked",
        "vectors",
        "in the sum",
        "opens",
        "keys missing" if found["protection"] != "masked" else "masks left",
        "least p",
        box=None,
        pad_edge=False,
    )
    rows = rounds_of(found)
    shown = rows if len(rows) <= _ROUNDS else [*rows[: _ROUNDS // 2], ("…",) * 8, *rows[-_ROUNDS // 2 :]]
    for row in shown:
        table.add_row(*row)
    return table


def _clear(found: Mapping[str, Any]) -> Table:
    table = Table(
        "message", "field", "type", "size", "times", "of", "what it tells", box=None, pad_edge=False
    )
    for one in found["clear_fields"]:
        cells = (
            one["phase"],
            f"{one['record']}.{one['field']}",
            one["type"],
            bytes_text(one["bytes"]),
            str(one["times"]),
            listed(one["sites"], 4),
            one["tells"],
        )
        table.add_row(*map(visible, cells))
    return table


def _power(uniformity: Mapping[str, Any]) -> Table:
    table = Table("sum", "if a site had", "in one round", "in every round", "found", box=None, pad_edge=False)
    for one in uniformity["power"]:
        table.add_row(
            one["group"],
            one["fault"],
            p_text(one["once"]),
            p_text(one["always"]),
            "yes" if one["found"] else "no",
        )
    return table
