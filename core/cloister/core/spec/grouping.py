"""Robust rules over groups: the arithmetic of ``aggregation.group_size``, and what is refused with it.

Under masks the server sees sums only. Where the sites are split into fixed groups it sees one sum a group, and a rule joins the G group means as
it would join single updates. One lying site spoils its group: f liars spoil at most f groups, so a rule must bear f of G rows.

==============================================  ==============================================================
n sites, groups of s                            outcome
==============================================  ==============================================================
n a multiple of s                               n / s groups of s
n no multiple of s                              ⌊n / s⌋ groups whose sizes differ by at most 1, none below s
s below `LEAST_PROTECTED`                       refused under masks: of a sum of two each knows the other's share;
                                                rehearsed in clear, with an [attack], it says what 3 cost
⌊n / s⌋ below what the rule needs for f         refused: G ≤ 2f bears f liars under no rule
==============================================  ==============================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cloister.core.spec.pipelines import Stage, fewest_rows, read_pipeline

if TYPE_CHECKING:
    from cloister.core.spec.tables import FederationSpec

__all__ = ["LEAST_PROTECTED", "group_sizes", "least_in_sum", "tolerated", "unsound_groups"]

#: The fewest sites in a sum that is called protected: of a sum of two each knows the other's share.
LEAST_PROTECTED = 3


def group_sizes(sites: int, size: int) -> tuple[int, ...]:
    """Return how many sites each group has, the larger groups first: ⌊sites / size⌋ groups, or one of all where that is 0."""
    groups = max(1, sites // size)
    each, more = divmod(sites, groups)
    return (each + 1,) * more + (each,) * (groups - more)


def least_in_sum(spec: FederationSpec) -> int:
    """Return n_min of a round's sums: the fewest sites whose sum is ever opened."""
    size = spec.aggregation.group_size
    return spec.cohort.min_sites if size is None else min(size, LEAST_PROTECTED)


def tolerated(stages: tuple[Stage, ...], rows: int) -> int:
    """Return the most lying rows of ``rows`` that every stage bears; 0 where it bears none."""
    found = 0
    while (needed := fewest_rows(stages, found + 1)) is not None and needed <= rows:
        found += 1
    return found


def unsound_groups(spec: FederationSpec) -> Iterator[str]:
    """Yield why groups cannot be had with the rest of the file; nothing where it has none."""
    size, cohort = spec.aggregation.group_size, spec.cohort
    if size is None:
        return
    asks = f"aggregation.group_size = {size}"
    yield from (f"{asks}{reason}" for reason, holds in (_unsafe(spec, size) | _unfit(spec)).items() if holds)
    if cohort.sites is not None:
        yield from _too_few(spec, cohort.sites, size)


def _unsafe(spec: FederationSpec, size: int) -> dict[str, bool]:
    """What would show more than the sums of fixed groups, by reason."""
    protection = spec.aggregation.protection
    rehearsed = protection == "plain" and spec.attack is not None
    return {
        f": the server would see sums of {size}, and a sum protects from {LEAST_PROTECTED} sites on: in a smaller one a single "
        "site that tells the server its share gives the other's away; raise it": size < LEAST_PROTECTED
        and not (rehearsed and size > 1),
        f" with protection = '{protection}': whoever holds the keys opens one sum a round, and groups need one each; use "
        "protection = 'masked'": protection in ("bfv", "ckks", "threshold-bfv"),
        " with protection = 'plain': whoever sees every update needs no groups; set protection = 'masked', or leave group_size out (a simulation "
        "with an [attack] runs groups in clear, to rehearse them)": protection == "plain" and not rehearsed,
        " with cohort.per_round: groups are fixed for the run, since the sums of two groupings that overlap could be subtracted; "
        "ask all sites each round (per_round = 'all')": spec.cohort.per_round != "all",
    }


def _unfit(spec: FederationSpec) -> dict[str, bool]:
    """What has no meaning over group means, by reason."""
    privacy = spec.privacy
    persons = privacy.unit == "record-distributed" and (privacy.max_records_per_person or 1) > 1
    return {
        ": group means weigh alike, and weighting = { records_cap } would weigh sites within them; use 'uniform'": (
            spec.aggregation.weighting != "uniform"
        ),
        ": training.scaffold sends a second array that no robust rule covers; remove it": spec.training.scaffold,
        ": privacy.adaptive_clip follows a count over all sites, and there is one a group; remove it": (
            privacy.adaptive_clip is not None
        ),
        ": with privacy.max_records_per_person a person's records may lie in several groups, and no bound over several noisy sums is "
        "known here; remove it, or use unit = 'record'": persons,
    }


def _too_few(spec: FederationSpec, sites: int, size: int) -> Iterator[str]:
    stages, f = read_pipeline(spec.aggregation.rule), spec.aggregation.byzantine
    rows, needed = sites // size, fewest_rows(stages, f)
    if sites < size:
        yield f"aggregation.group_size = {size} is more than cohort.sites = {sites}; lower it"
    elif needed is not None and rows < needed:
        most = tolerated(stages, rows)
        yield (
            f"aggregation.byzantine = {f} with group_size = {size}: cohort.sites = {sites} make {rows} groups, f liars spoil up to f of them, "
            f"and '{spec.aggregation.rule}' needs {needed} for {f}; with {rows} groups it bears {most}: lower byzantine or group_size, or "
            "have more sites"
        )
