"""What ``aggregation.protection`` will mean for a federation, before anything is trained."""

from __future__ import annotations

from typing import Any

from cloister.core.errors import SpecError
from cloister.core.spec import FederationSpec
from cloister.privacy.homomorphic.parameters import SUM_BITS
from cloister.privacy.masking import parameters
from cloister.privacy.sums import Reals, sum_code

__all__ = ["BITS", "colluders_borne", "predict"]

#: Bits of the sums of each protection.
BITS = {"masked": 32, "bfv": SUM_BITS, "ckks": SUM_BITS}


def colluders_borne(cohort: int) -> int:
    """Return how many sites of a masked session may side with a server that lies: with one more, it can have two sets of survivors confirmed.

    A set is confirmed by q sites; two sets that share fewer honest sites than one need ``2q - n`` colluders.
    """
    degree, threshold = parameters(cohort)
    holders = degree + (degree == cohort - 1)
    quorum = -(-cohort * threshold // holders)
    return max(2 * quorum - cohort - 1, 0)


def predict(spec: FederationSpec, size: int, *, classes: int, cohort: int) -> dict[str, Any]:
    """Return what ``cloister check`` prints of a protected round.

    Args:
        spec: the federation.
        size: length of the model's vector.
        classes: of the task; 0 for a regression.
        cohort: sites in a round (the mean, where they are drawn).

    Returns:
        ``protection``; ``least``, the fewest sites whose sum is ever opened; of masks ``threshold``, ``degree`` and ``colluders``; ``numbers`` of a
        site's message and their ``bits``; ``unit``, by less than which rounding moves one number of one update (0: not at all).

    Raises:
        SpecError: what is to be summed does not fit, or there are too few sites.
    """
    protection = spec.aggregation.protection
    if protection == "plain":
        return {"protection": protection}
    bits = BITS[protection]
    clip = spec.privacy.clip if spec.privacy.adaptive_clip is not None else None
    code = sum_code(spec, "train", size=size, classes=classes, most=cohort, bits=bits, clip=clip)
    if spec.evaluation.sites:
        sum_code(spec, "evaluate", size=size, classes=classes, most=cohort, bits=bits, clip=None)
    found: dict[str, Any] = {
        "protection": protection,
        "least": spec.cohort.min_sites,
        "numbers": code.size,
        "bits": bits,
        "unit": max((part.unit(cohort, bits) for part in code.parts if isinstance(part, Reals)), default=0.0),
    }
    if protection == "masked":
        degree, threshold = parameters(cohort)
        borne = colluders_borne(cohort)
        if (spec.privacy.colluders or 0) > borne:
            raise SpecError(
                f"privacy.colluders = {spec.privacy.colluders}: masks over {cohort} sites bear at most {borne} that side with the server",
                remedy=f"lower privacy.colluders to {borne}, ask more sites a round, or use protection = 'bfv'",
                code="protection-colluders",
            )
        found |= {
            "degree": degree,
            "threshold": threshold,
            "colluders": borne,
            "least": max(threshold, spec.cohort.min_sites) if degree == cohort - 1 else spec.cohort.min_sites,
        }
    return found
