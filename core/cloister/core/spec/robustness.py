"""What a robust rule asks of the rest of the file, before anything is trained.

A round counts with `cohort.min_sites` replies, so a rule must bear f lying sites among that few: where the file names no
``min_sites``, it becomes the fewest that the rule needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cloister.core.spec.grouping import LEAST_PROTECTED
from cloister.core.spec.pipelines import fewest_rows, read_pipeline

if TYPE_CHECKING:
    from cloister.core.spec.tables import FederationSpec

__all__ = ["UNDEFENDED", "fewest_updates", "filled", "unsound_rule"]

#: The one rule that may run against lying sites without bearing any, to show what happens; in a simulation with an ``[attack]`` only.
UNDEFENDED = "mean"

#: Attacks that only change a liar's own records: they go with any protection.
_BEFORE_TRAINING = ("label-flip", "badnets", "dba")


def filled(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with ``cohort.min_sites`` set to what the rule needs, where the file leaves it out and the sites are enough."""
    aggregation, cohort = document.get("aggregation"), document.get("cohort", {})
    if not isinstance(aggregation, dict) or not isinstance(cohort, dict) or "min_sites" in cohort:
        return document
    rule, f = aggregation.get("rule", UNDEFENDED), aggregation.get("byzantine", 0)
    if not isinstance(rule, str) or not isinstance(f, int) or f < 0:
        return document
    try:
        least = fewest_rows(read_pipeline(rule), f)
    except ValueError:  # told where the key is checked
        return document
    size = aggregation.get("group_size")
    if least is not None and isinstance(size, int):
        least *= min(size, LEAST_PROTECTED)  # so many groups, none of which counts with fewer
    asked = [cohort.get(key) for key in ("sites", "per_round")]
    if least is None or any(isinstance(one, int) and one < least for one in asked):
        return document
    return {**document, "cohort": {**cohort, "min_sites": least}} if least > 1 else document


def fewest_updates(spec: FederationSpec) -> int | None:
    """Return the fewest updates with which a round's rule bears ``aggregation.byzantine`` lying sites; ``None``: no number is enough."""
    return fewest_rows(read_pipeline(spec.aggregation.rule), spec.aggregation.byzantine)


def unsound_rule(spec: FederationSpec) -> Iterator[str]:
    """Yield why ``[aggregation]`` and ``[attack]`` cannot be kept with the rest of the file."""
    yield from _unsound_bound(spec)
    if spec.aggregation.rule != UNDEFENDED:
        if spec.aggregation.weighting != "uniform":
            yield "aggregation.weighting = { records_cap } with a robust rule: a site that lies about its records would weigh more; use 'uniform'"
        if spec.training.scaffold:
            yield "training.scaffold sends a second array that no robust rule covers; remove it, or use rule = 'mean'"
        if any(stage.name == "fltrust" for stage in read_pipeline(spec.aggregation.rule)):
            yield (
                "aggregation.rule: 'fltrust' needs clean records at the server, which no federation file gives it; use it from Python "
                "(cloister.strategies.robust.fltrust), or choose another rule"
            )
        if spec.aggregation.protection != "plain" and spec.aggregation.group_size is None:
            yield (
                f"aggregation.rule = '{spec.aggregation.rule}' compares single updates, and protection = '{spec.aggregation.protection}' shows "
                "the server sums only; give aggregation.group_size (the rule then joins the means of groups), set aggregation.protection = 'plain' (the server then "
                "sees every update), or use rule = 'mean'"
            )
    if spec.attack is not None:
        yield from _unsound_attack(spec)


def _unsound_bound(spec: FederationSpec) -> Iterator[str]:
    rule, f, cohort = spec.aggregation.rule, spec.aggregation.byzantine, spec.cohort
    least = fewest_updates(spec)
    asks = f"aggregation.rule = '{rule}' with byzantine = {f}"
    if least is None:
        if rule != UNDEFENDED or spec.attack is None:
            yield f"{asks}: 'mean' tolerates no lying site; use a robust rule, for example 'arc | nnm | trimmed-mean'"
        return
    if spec.aggregation.group_size is not None:  # `cloister.core.spec.grouping`: it needs so many groups
        return
    needs = f"{asks} needs at least {least} updates a round"
    if cohort.sites is not None and cohort.sites < least:
        yield f"{needs}, and there are cohort.sites = {cohort.sites}; lower byzantine, or choose another rule"
    elif isinstance(cohort.per_round, int) and cohort.per_round < least:
        yield f"{needs}, and cohort.per_round = {cohort.per_round}; raise it, lower byzantine, or choose another rule"
    elif cohort.min_sites < least:
        yield f"{needs}, and cohort.min_sites = {cohort.min_sites} lets a round count with fewer; raise min_sites, or lower byzantine"


def _unsound_attack(spec: FederationSpec) -> Iterator[str]:
    attack, sites = spec.attack, spec.cohort.sites
    if attack is None or attack.name == "none":
        return
    if attack.fraction is None and attack.sites is None and not spec.aggregation.byzantine:
        yield "attack does not say how many sites lie; give attack.fraction, attack.sites or aggregation.byzantine"
    elif sites is not None and not 0 < attack.liars(sites, spec.aggregation.byzantine) < sites:
        liars = attack.liars(sites, spec.aggregation.byzantine)
        yield f"attack: {liars} of cohort.sites = {sites} lie; at least one must, and at least one must not"
    if spec.privacy.unit not in ("none", "record"):
        yield f"attack does not go with privacy.unit = '{spec.privacy.unit}'"
    if spec.aggregation.protection != "plain" and attack.name not in _BEFORE_TRAINING:
        yield (
            f"attack.name = '{attack.name}' is made from the others' updates, which protection = '{spec.aggregation.protection}' shows nobody; "
            "rehearse it with aggregation.protection = 'plain' (groups too: masks change nothing but the rounding)"
        )
    if spec.training.scaffold:
        yield "attack does not go with training.scaffold"
