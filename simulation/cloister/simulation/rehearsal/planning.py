"""From a federation file to the grid of its rehearsal: every rule against every attack, each with every seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cloister.core.errors import SpecError
from cloister.core.spec import parse_federation
from cloister.core.spec.attack import ATTACKS, BACKDOORS
from cloister.core.spec.grouping import LEAST_PROTECTED
from cloister.core.spec.refusals import nearest
from cloister.simulation.sites import SimulatedSites
from cloister.simulation.sweep.grid import Grid

__all__ = ["ATTACK", "NOBODY", "RULE", "plan", "read_attacks", "read_rules"]

#: The keys that a rehearsal sweeps over.
RULE, ATTACK = "aggregation.rule", "attack.name"
#: The key that says whether liars see the others' updates.
PROTECTION = "aggregation.protection"
#: The attack that is none: what the rule costs when nobody lies.
NOBODY = "none"


def read_rules(text: str | None) -> tuple[str, ...]:
    """Read ``--rules "mean; median; arc | nnm | trimmed-mean"``; nothing: the file's own.

    Raises:
        SpecError: a rule between two semicolons is missing (code ``rules``).
    """
    if text is None:
        return ()
    rules = tuple(part.strip() for part in text.split(";"))
    if not all(rules):
        raise SpecError(
            f"--rules '{text}' lacks a rule between two semicolons",
            remedy='write for example --rules "mean; median; arc | nnm | trimmed-mean"',
            code="rules",
        )
    return rules


def read_attacks(text: str) -> tuple[str, ...]:
    """Read ``--attacks all`` or ``--attacks alie,ipm``; the run without any is always among them, and the first.

    Raises:
        SpecError: an attack that there is not (code ``attacks``).
    """
    if text.strip() == "all":
        return ATTACKS
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in ATTACKS:
            raise SpecError(
                f"--attacks: there is no attack '{name}'{nearest(name, ATTACKS)}",
                remedy="write for example --attacks alie,ipm, or --attacks all",
                code="attacks",
            )
    return (NOBODY, *(name for name in dict.fromkeys(names) if name != NOBODY))


def plan(
    document: Mapping[str, Any],
    *,
    base: Path,
    settings: Sequence[str],
    rules: Sequence[str],
    attacks: Sequence[str],
    seeds: tuple[int, ...],
) -> tuple[Grid, list[str]]:
    """Return the grid, and what must be said of it.

    The file's own ``[attack]`` says how many sites lie; what else it says belongs to its own attack and is left out. Where all attacks are
    asked for, backdoors are left out of a task without images.

    Args:
        document: the federation file as plain data.
        base: the folder that its relative paths are taken from.
        settings: ``--set`` texts.
        rules: pipelines; none: the file's own.
        attacks: names, from `read_attacks`.
        seeds: the seeds of each point; empty: the file's.

    Raises:
        SpecError: the file is refused, or nobody would measure the models (code ``rehearse``).
    """
    stated = document.get("attack")
    amount = (
        {key: one for key, one in stated.items() if key in ("fraction", "sites")}
        if isinstance(stated, dict)
        else {}
    )
    stripped = {**document, "attack": amount}
    settings, notes = _in_clear(stripped, base, settings)
    loaded = parse_federation(stripped, base=base, overrides=[*settings, f"{ATTACK}=sign-flip"])
    if not loaded.spec.evaluation.central:
        raise SpecError(
            "a rehearsal is judged on the central test records, and evaluation.central is false",
            remedy="set evaluation.central = true",
            code="rehearse",
        )
    planted = [name for name in attacks if name in BACKDOORS]
    if planted and tuple(attacks) == ATTACKS:
        tried = parse_federation(stripped, base=base, overrides=[*settings, f"{ATTACK}={planted[0]}"])
        try:
            _ = SimulatedSites(json.dumps(tried.effective()), base).trigger
        except SpecError as error:
            if error.code != "attack":
                raise
            notes.append(f"without backdoors: {error.message}")
            attacks = [name for name in attacks if name not in BACKDOORS]
    grid = Grid(
        document=stripped,
        base=base,
        settings=tuple(settings),
        over={RULE: tuple(rules) or (loaded.spec.aggregation.rule,), ATTACK: tuple(attacks)},
        seeds=seeds,
        reference=False,
    )
    return grid, notes


def _in_clear(
    document: Mapping[str, Any], base: Path, settings: Sequence[str]
) -> tuple[Sequence[str], list[str]]:
    """Return the settings under which groups are rehearsed in clear, and say so: liars there see what masks hide."""
    clear = [*settings, f"{PROTECTION}=plain"]
    size = parse_federation(
        document, base=base, overrides=[*clear, f"{ATTACK}=label-flip"]
    ).spec.aggregation.group_size
    if size is None:
        return settings, []
    note = f"in groups of {size}, rehearsed in clear: a liar makes its group's mean what it likes; masks would change nothing but the rounding"
    if size < LEAST_PROTECTED:
        note += f" (and are refused for fewer than {LEAST_PROTECTED})"
    return clear, [note]
