"""What a site makes of its update before it leaves: clipped, noised, encoded as ``[privacy]`` asks.

Formal guarantee: under ``unit = "site-local"`` what is returned is `LocalPlan`'s mechanism, private against everybody. Under ``"site"`` it
is clipped and no more: the server adds the noise. Under ``"site-distributed"`` it carries one share of the noise of all. Under
``"record-distributed"`` a noisy sum, whose share of the noise is in it already, is made integers. Under ``"none"`` and ``"record"`` the update is
returned as it is: record-level noise is in it already.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cloister.client.incoming import Job
from cloister.core import protocol
from cloister.core.errors import IntegrityError
from cloister.core.randomness import Randomness
from cloister.core.spec import FederationSpec
from cloister.core.update import Vector
from cloister.privacy.noise import cipher_generator, gaussian_source
from cloister.privacy.plan import plan_from
from cloister.privacy.record_plans import DistributedRecordPlan
from cloister.privacy.site_plans import DistributedPlan, LocalPlan, SitePlan
from cloister.privacy.updates import clip_update, rotation_signs

__all__ = ["releasable"]

Arrays = dict[str, npt.NDArray[Any]]


def releasable(
    change: npt.NDArray[Any], spec: FederationSpec, job: Job, *, site: str, randomness: Randomness
) -> Arrays:
    """Return the arrays of a site's reply to ``job`` by name.

    Args:
        change: (size,) float32, finite: what local training made; float64 where that is a noisy sum.
        spec: the federation.
        job: the round, and its clip where that adapts.
        site: the site's name; with the round it keys noise and rounding.
        randomness: the operating system's in deployment.

    Raises:
        IntegrityError: the clip adapts and the job holds none.
    """
    plan = plan_from(spec, len(change))
    key = (job.round_number, site)
    if isinstance(plan, SitePlan):
        return _for_trusted_server(change, plan, job)
    if isinstance(plan, LocalPlan):
        clipped = torch.from_numpy(clip_update(change, plan.clip).vector)
        noisy = gaussian_source(randomness, "site-local", *key).perturb(
            clipped, std=plan.noise_multiplier * plan.clip
        )
        return {protocol.VECTOR: noisy.numpy().astype(np.float32)}
    if isinstance(plan, DistributedPlan):
        values = plan.code.encode(
            clip_update(change, plan.clip).vector,
            rotation_signs(plan.seed, job.round_number, plan.code.dim),
            rounding=cipher_generator(randomness, "site-rounding", *key),
            noise=cipher_generator(randomness, "site-share", *key),
        )
        return {protocol.VECTOR: values}
    if isinstance(plan, DistributedRecordPlan):
        rounding = cipher_generator(randomness, "record-rounding", *key)
        return {protocol.VECTOR: plan.code.encode(change, rounding)}
    return {protocol.VECTOR: change}


def _for_trusted_server(change: Vector, plan: SitePlan, job: Job) -> Arrays:
    if plan.adaptive is None:
        return {protocol.VECTOR: clip_update(change, plan.clip).vector}
    if job.clip is None:
        raise IntegrityError(
            "the job has no clip, and privacy.adaptive_clip makes each round's its own", code="job-malformed"
        )
    clipped = clip_update(change, job.clip)
    within = np.array([0.5 if clipped.within else -0.5], dtype=np.float32)
    return {protocol.VECTOR: clipped.vector, protocol.WITHIN: within}
