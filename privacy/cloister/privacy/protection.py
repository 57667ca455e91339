"""What ``aggregation.protection`` will mean for a federation, before anything is trained."""

from __future__ import annotations

from typing import Any

from cloister.core.errors import SpecError
from cloister.core.spec import FederationSpec
from cloister.core.spec.grouping import group_sizes, least_in_sum, tolerated
from cloister.core.spec.pipelines import fewest_rows, read_pipeline
from cloister.privacy.homomorphic.parameters import (
    OF_AN_AUTHORITY,
    SCHEMES,
    SUM_BITS,
    THRESHOLD,
    Parameters,
    parameters_of,
)
from cloister.privacy.masking import parameters
from cloister.privacy.plan import Plan, plan_from
from cloister.privacy.record_plans import DistributedRecordPlan
from cloister.privacy.site_plans import DistributedPlan, LocalPlan, SitePlan
from cloister.privacy.sums import Reals, sum_code

__all__ = ["BITS", "colluders_borne", "group_noise", "needs_authority", "predict"]

#: Bits of the sums of each protection.
BITS = {"masked": 32, "bfv": SUM_BITS, "ckks": SUM_BITS, "threshold-bfv": SUM_BITS}

#: Most bytes of the message that asks a site to help open a sum: what a site takes unless it is told otherwise, less a page.
_MOST_OPEN = (1 << 30) - (1 << 20)


def needs_authority(protection: str) -> bool:
    """Return whether a key authority opens the sums of a protection."""
    return protection in {known.scheme for known in OF_AN_AUTHORITY}


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
        site's message and their ``bits``; of ciphertexts the bytes ``up`` and ``down`` of a site in a sum; ``unit``, by less than which rounding moves one number of one update (0: not at all). With groups also
        ``groups``: see `_groups`; the other figures are then those of one group.

    Raises:
        SpecError: what is to be summed does not fit, or there are too few sites.
    """
    protection, size_of_group = spec.aggregation.protection, spec.aggregation.group_size
    grouped = {} if size_of_group is None else {"groups": _groups(spec, size, cohort, size_of_group)}
    if protection == "plain":
        return {"protection": protection, **grouped}
    if spec.evaluation.sites:
        sum_code(spec, "evaluate", size=size, classes=classes, most=cohort, bits=BITS[protection], clip=None)
    sizes = (cohort,) if size_of_group is None else group_sizes(cohort, size_of_group)
    most, smallest = sizes[0], sizes[-1]
    bits = BITS[protection]
    clip = spec.privacy.clip if spec.privacy.adaptive_clip is not None else None
    code = sum_code(spec, "train", size=size, classes=classes, most=most, bits=bits, clip=clip)
    least = least_in_sum(spec)
    found: dict[str, Any] = {
        "protection": protection,
        "least": least,
        "numbers": code.size,
        "bits": bits,
        "unit": max((part.unit(most, bits) for part in code.parts if isinstance(part, Reals)), default=0.0),
        **grouped,
    }
    if protection != "masked":
        found |= _ciphertexts(parameters_of(protection, SCHEMES), code.size, most)
    if protection == "threshold-bfv":
        _check_joint(found["down"], most)
    if protection == "masked":
        degree, threshold = parameters(smallest)
        borne = min(map(colluders_borne, {smallest, most}))
        if (spec.privacy.colluders or 0) > borne:
            raise SpecError(
                f"privacy.colluders = {spec.privacy.colluders}: masks over {smallest} sites bear at most {borne} that side with the server",
                remedy=f"lower privacy.colluders to {borne}, ask more sites a round, or use protection = 'bfv'",
                code="protection-colluders",
            )
        found |= {
            "degree": degree,
            "threshold": threshold,
            "colluders": borne,
            "least": max(threshold, least) if degree == smallest - 1 else least,
        }
    return found


def group_noise(plan: Plan | None, members: int, least: int) -> float | None:
    """Return the standard deviation of the noise in every number of one group's mean; ``None``: there is none, or it is in the training steps.

    A group's sum is opened by itself, so it has all the noise that ε is stated for, whatever the other groups have.

    Args:
        plan: what the federation promises.
        members: public size of the group: the divisor.
        least: the fewest of them that answer.
    """
    if isinstance(plan, SitePlan):
        return plan.update_noise * plan.clip / members
    if isinstance(plan, LocalPlan):
        return float(plan.noise_multiplier * plan.clip * least**0.5 / members)
    if isinstance(plan, DistributedPlan):
        return plan.noise_multiplier * plan.clip / members
    if isinstance(plan, DistributedRecordPlan):
        return plan.noise_multiplier * plan.clip / (members * plan.expected_batch)
    return None


def _groups(spec: FederationSpec, size: int, cohort: int, size_of_group: int) -> dict[str, Any]:
    """Return what groups of ``size_of_group`` come to.

    Returns:
        ``number`` of groups; ``smallest`` and ``largest``; ``byzantine``, f; ``tolerated``, the most lying sites that the rule bears when each is in a
        group of its own; ``needed`` groups for f and ``spare``, how many may be missing from a round that counts; ``noise``: `group_noise`.
    """
    sizes, stages = group_sizes(cohort, size_of_group), read_pipeline(spec.aggregation.rule)
    needed = fewest_rows(stages, spec.aggregation.byzantine) or 1
    return {
        "number": len(sizes),
        "smallest": sizes[-1],
        "largest": sizes[0],
        "byzantine": spec.aggregation.byzantine,
        "tolerated": tolerated(stages, len(sizes)),
        "needed": needed,
        "spare": len(sizes) - needed,
        "noise": group_noise(plan_from(spec, size), sizes[-1], least_in_sum(spec)),
    }


def _ciphertexts(scheme: Parameters, numbers: int, cohort: int) -> dict[str, int]:
    """Return ``up`` and ``down``, the bytes of ciphertexts, shares of a key and partial decryptions of one site in a sum; an authority's key not counted."""
    chunks = -(-numbers // (scheme.slots * scheme.lanes(SUM_BITS)))
    container = chunks * (scheme.chunk_bytes + scheme.proof_bytes)
    if scheme is not THRESHOLD:
        return {"up": container, "down": 0}
    half = scheme.chunk_bytes // 2  # of a share, and of a partial decryption of one ciphertext
    share = half + scheme.proof_bytes
    return {"up": share + container + chunks * half, "down": cohort * (share + container)}


def _check_joint(down: int, cohort: int) -> None:
    """Refuse a sum under a joint key whose last message is too long: every site is sent every site's ciphertexts.

    Raises:
        SpecError: (protection-size) it is.
    """
    if down > _MOST_OPEN:
        raise SpecError(
            f"every site would be sent the ciphertexts of all {cohort}, {down / 2**30:.1f} GiB, and a message has at most 1 GiB",
            remedy="use protection = 'masked', a smaller model or fewer sites a round",
            code="protection-size",
        )
