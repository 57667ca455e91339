"""Which parts the sums of a federation have: a pure function of the federation file, the model's size and the round's clip.

======================================  ==========================================================================================
``privacy.unit``                        a training sum
======================================  ==========================================================================================
none                                    update, loss; under SCAFFOLD the controls; the weight where records count
record                                  update (its noise is in it)
site                                    clipped update (reach C: nothing is cut); where the clip adapts: how many were within
site-local                              noisy update (reach C and ten standard deviations)
site-distributed                        integers modulo 2^20 under noise shares
record-distributed                      integers modulo 2^32 under noise shares
======================================  ==========================================================================================

Where an update can be longer than ``aggregation.reach``, the sum also counts the sites that were cut: it is the sum of a public function of
what is in the update, and so tells nothing more than the update's own guarantee allows.
"""

from __future__ import annotations

from cloister.core import protocol
from cloister.core.metrics import METRIC_RANGES
from cloister.core.spec import FederationSpec
from cloister.privacy.manifest import SumKind
from cloister.privacy.plan import Plan, plan_from
from cloister.privacy.record_plans import DistributedRecordPlan
from cloister.privacy.site_plans import DistributedPlan, LocalPlan, SitePlan
from cloister.privacy.sums.code import SumCode
from cloister.privacy.sums.parts import Exact, Part, Reals, Residues
from cloister.privacy.updates import BITS, SHARE_BITS

__all__ = ["CUT", "LOSS", "WEIGHT", "evaluation_parts", "sum_code", "summed_metrics", "training_parts"]

#: How many sites' updates were cut to the reach; the sites' losses; their weights.
CUT, LOSS, WEIGHT = "cut", "loss", "weight"

#: Metrics that not all records define.
_NOT_ALWAYS = ("auroc", "r2")

#: Standard deviations of a site's own noise that the reach of ``site-local`` has room for.
_NOISE_SIGMAS = 10


def training_parts(
    spec: FederationSpec, plan: Plan | None, size: int, *, clip: float | None
) -> tuple[Part, ...]:
    """Return the parts of a round's sum.

    Args:
        spec: the federation.
        plan: what it promises (`plan_from`).
        size: length of the model's vector.
        clip: the round's clip, where it adapts.
    """
    reach = spec.aggregation.reach
    if isinstance(plan, DistributedPlan):
        return (Residues(name=protocol.VECTOR, size=plan.code.dim, modulus_bits=BITS),)
    if isinstance(plan, DistributedRecordPlan):
        return (Residues(name=protocol.VECTOR, size=size, modulus_bits=SHARE_BITS),)
    if isinstance(plan, SitePlan):
        vector = Reals(name=protocol.VECTOR, size=size, reach=plan.clip if clip is None else clip)
        return (vector,) if plan.adaptive is None else (vector, Exact(name=protocol.WITHIN))
    if isinstance(plan, LocalPlan):
        far = plan.clip * (1 + _NOISE_SIGMAS * plan.noise_multiplier)
        return (Reals(name=protocol.VECTOR, size=size, reach=far), Exact(name=CUT))
    parts: list[Part] = [Reals(name=protocol.VECTOR, size=size, reach=reach)]
    if spec.training.scaffold:
        parts.append(Reals(name=protocol.CONTROL, size=size, reach=reach))
    if spec.aggregation.weighting != "uniform":
        parts.append(Exact(name=WEIGHT))
    if plan is None:
        parts.append(Exact(name=LOSS))
    return (*parts, Exact(name=CUT))


def sum_code(
    spec: FederationSpec, kind: SumKind, *, size: int, classes: int, most: int, bits: int, clip: float | None
) -> SumCode:
    """Return the code of one session's sum, the same at the server and at every site.

    Args:
        spec: the federation.
        kind: what is summed.
        size: length of the model's vector.
        classes: of the task; 0 for a regression.
        most: sites in the cohort.
        bits: sums stay in [-2^(bits-1), 2^(bits-1)).
        clip: the round's clip, where it adapts.

    Raises:
        SpecError: the sums do not fit.
    """
    if kind == "train":
        parts = training_parts(spec, plan_from(spec, size), size, clip=clip)
    else:
        parts = evaluation_parts(classes)
    return SumCode(parts=parts, most=most, bits=bits)


def evaluation_parts(classes: int) -> tuple[Part, ...]:
    """Return the parts of a sum of measurements, of sites that all have test records: loss, metrics, confusion matrix.

    Args:
        classes: of the task; 0 for a regression.
    """
    counts: tuple[Part, ...] = (Exact(name=protocol.CONFUSION, size=classes**2),) if classes else ()
    metrics = [Exact(name=protocol.METRIC + name) for name in summed_metrics(classes)]
    return (Exact(name=LOSS), *metrics, *counts)


def summed_metrics(classes: int) -> tuple[str, ...]:
    """Return the metrics that are summed: those that every site with test records has.

    AUROC and R² are left out: where only one site's records define them, their sum would be that site's own.
    """
    known = METRIC_RANGES["classification" if classes else "regression"]
    return tuple(name for name in known if name not in _NOT_ALWAYS)
