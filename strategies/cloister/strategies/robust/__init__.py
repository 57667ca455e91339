"""Rules that bear lying sites, and the steps before them, as pure functions on rows (n, dim); `Pipeline` composes them.

They look at updates (what a site changed), never at weights; every row weighs the same; a row that is not finite is refused before
anything is computed; (n, f) that a rule cannot bear is refused and never clamped. Docs: ``docs/robustness.md``.
"""

from cloister.strategies.robust.centres import centered_clipping, geometric_median
from cloister.strategies.robust.clipping import arc, norm_bound
from cloister.strategies.robust.coordinates import coordinate_median, trimmed_mean
from cloister.strategies.robust.mixing import bucketing, nnm
from cloister.strategies.robust.pipeline import Pipeline, aggregate_groups
from cloister.strategies.robust.selecting import bulyan, krum, multi_krum
from cloister.strategies.robust.spectral import dnc
from cloister.strategies.robust.trust import fltrust

__all__ = [
    "Pipeline",
    "aggregate_groups",
    "arc",
    "bucketing",
    "bulyan",
    "centered_clipping",
    "coordinate_median",
    "dnc",
    "fltrust",
    "geometric_median",
    "krum",
    "multi_krum",
    "nnm",
    "norm_bound",
    "trimmed_mean",
]
