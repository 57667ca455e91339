"""From the arrays of a round's replies to its direction: the one place that knows how they are summed, noised and divided.

A `Gatherer` lives as long as the run, a `Gathering` as long as one attempt at a round. Replies are added as they come, in the cohort's
order; `Gathering.finish` is called once, and only where the round counts: noise is drawn for what is released and for nothing else.

======================  =============================================================================================
``privacy.unit``        the direction
======================  =============================================================================================
none, record            what ``aggregation.rule`` makes of the updates
site                    (sum of clipped updates + N(0, (z·C)²)) / n; a norm above C is refused
site-local              (sum of noisy updates) / n
site-distributed        (sum modulo 2²⁰, centred, unscaled, rotated back) / n
record-distributed      -lr_t·(sum modulo 2³², centred, unscaled) / (n·B): a step of SGD along the noisy mean gradient
======================  =============================================================================================

n and n·B are the plan's public divisors, never the number of sites that answered; lr_t is the round's ``training.optimizer.lr``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from cloister.core import protocol
from cloister.core.randomness import Randomness
from cloister.core.schedule import learning_rate
from cloister.core.spec import FederationSpec
from cloister.core.spec.robustness import UNDEFENDED
from cloister.core.update import Vector
from cloister.privacy.noise import gaussian_source
from cloister.privacy.plan import Plan, plan_from
from cloister.privacy.record_plans import DistributedRecordPlan
from cloister.privacy.site_plans import DistributedPlan, LocalPlan, SitePlan
from cloister.privacy.sums import CUT, WEIGHT
from cloister.privacy.updates import MODULUS, SHARE_BITS, ModularSum, exceeds_clip, rotation_signs
from cloister.server.checkpoints import Arrays
from cloister.server.gathered import Gathered, Seen, Sums
from cloister.server.group_gathering import GroupGatherer, Keyed
from cloister.server.replies import CheckedUpdate, Refused, Wanted
from cloister.server.row_gathering import RowGatherer
from cloister.strategies.mean import Direction
from cloister.strategies.robust.rule import RobustRule
from cloister.strategies.rules import Rule, rule_from
from cloister.strategies.signals import RowSignals

__all__ = ["Gathered", "Gatherer", "Gathering", "gatherer_from", "group_gatherer_from"]


class Gathering(Protocol):
    """Takes the replies to one attempt at a round."""

    @property
    def wanted(self) -> Mapping[str, Wanted]:
        """What a reply must hold, and nothing else."""
        ...

    def add(self, checked: CheckedUpdate) -> Refused | None:
        """Take one reply; or return why it cannot be used, and leave everything as it was."""
        ...

    def add_sum(self, sums: Sums, count: int) -> None:
        """Take the sum of ``count`` sites' replies at once, where single ones cannot be seen.

        Args:
            sums: by name, what `cloister.privacy.sums` decoded.
            count: how many sites are in it.
        """
        ...

    def finish(self) -> Gathered:
        """Return the round's directions; called once, when the round counts."""
        ...


class Gatherer(Protocol):
    """How the replies of one run are gathered, and what that keeps between rounds."""

    def job(self) -> dict[str, float]:
        """Return what the sites must be told of the round that comes."""
        ...

    def start(self, number: int, names: tuple[str, ...]) -> Gathering:
        """Return an empty gathering for round ``number``, whose replies answer the arrays ``names``."""
        ...

    def arrays(self) -> Arrays:
        """Return what the next round needs, for a checkpoint."""
        ...

    def restore(self, arrays: Arrays) -> None:
        """Put it back."""
        ...


def gatherer_from(spec: FederationSpec, *, size: int, randomness: Randomness) -> Gatherer:
    """Return what gathers the replies of ``spec``, all of them together.

    Args:
        spec: the federation.
        size: length of the model's vector.
        randomness: where the server's noise comes from.
    """
    return _gatherer(spec, plan_from(spec, size), size=size, randomness=randomness)


def group_gatherer_from(
    spec: FederationSpec, *, size: int, randomness: Randomness, members: Sequence[int]
) -> GroupGatherer:
    """Return what gathers the groups of ``spec`` and joins their means.

    Args:
        spec: the federation.
        size: length of the model's vector.
        randomness: where noise and the rule's draws come from.
        members: how many sites each group has: its public divisor.
    """
    plan, table = plan_from(spec, size), spec.aggregation
    averaged = spec.model_copy(update={"aggregation": table.model_copy(update={"rule": UNDEFENDED})})

    def alone(group: int, number: int) -> Gathering:
        """Start a group's own gathering: the plan is the federation's, with the group's size for its sites."""
        own = plan
        if isinstance(plan, SitePlan | LocalPlan | DistributedPlan | DistributedRecordPlan):
            own = replace(plan, sites=float(members[group]))
        keyed = Keyed(randomness, "group", group)
        return _gatherer(averaged, own, size=size, randomness=keyed).start(number, (protocol.VECTOR,))

    return GroupGatherer(
        rule=table.rule,
        byzantine=table.byzantine,
        groups=len(members),
        size=size,
        randomness=randomness,
        alone=alone,
    )


def _gatherer(spec: FederationSpec, plan: Plan | None, *, size: int, randomness: Randomness) -> Gatherer:
    if isinstance(plan, SitePlan):
        return _TrustedServer(plan, size, randomness)
    if isinstance(plan, LocalPlan):
        return _Stateless(lambda _number, _names: _LocalSum(plan, size))
    if isinstance(plan, DistributedPlan):
        return _Stateless(lambda number, _names: _IntegerSum(plan, number))
    if isinstance(plan, DistributedRecordPlan):
        return _Stateless(lambda number, _names: _SharedStep(plan, size, learning_rate(spec, number)))
    rule, weighting = rule_from(spec.aggregation), spec.aggregation.weighting
    if isinstance(rule, RobustRule):
        return RowGatherer(rule, size=size, randomness=randomness)
    most = None if weighting == "uniform" else weighting.records_cap
    return _Averaging(rule, size, most)


class _Stateless:
    """A gatherer whose rounds know nothing of each other."""

    def __init__(self, start: Callable[[int, tuple[str, ...]], Gathering]) -> None:
        self._start = start

    def job(self) -> dict[str, float]:
        return {}

    def start(self, number: int, names: tuple[str, ...]) -> Gathering:
        return self._start(number, names)

    def arrays(self) -> Arrays:
        return {}

    def restore(self, arrays: Arrays) -> None:
        """Nothing is kept."""


class _Averaging:
    """The mean: it keeps the last direction, for the signals of the updates that come next."""

    def __init__(self, rule: Rule, size: int, records_cap: int | None) -> None:
        self._rule, self._size, self._records_cap = rule, size, records_cap
        self.last: Vector | None = None

    def job(self) -> dict[str, float]:
        return {}

    def start(self, number: int, names: tuple[str, ...]) -> Gathering:  # noqa: ARG002 - the seam's signature
        return _ByRule(self, self._rule, self._size, names, self._records_cap)

    def arrays(self) -> Arrays:
        return {} if self.last is None else {"last": self.last}

    def restore(self, arrays: Arrays) -> None:
        kept = arrays.get("last")
        if kept is not None and kept.shape == (self._size,):
            self.last = kept


class _ByRule:
    """The rule of ``[aggregation]``, one accumulator an array."""

    def __init__(
        self,
        owner: _Averaging,
        rule: Rule,
        size: int,
        names: tuple[str, ...],
        records_cap: int | None,
    ) -> None:
        self._owner = owner
        self._length = 0.0 if owner.last is None else math.sqrt(_product(owner.last, owner.last))
        # An update's norm, and its cosine to the last direction (0 without one).
        self._signals: list[tuple[float, float]] = []
        self.wanted = dict.fromkeys(names, Wanted(size=size))
        self._records_cap = records_cap
        self._accumulators = {name: rule.start(size) for name in names}
        self._sums: dict[str, Direction] = {}
        self._facts: dict[str, float] = {}

    def add(self, checked: CheckedUpdate) -> None:
        weight = 1.0 if self._records_cap is None else float(min(checked.records, self._records_cap))
        for name, vector in checked.arrays.items():
            # Control variates are averaged uniformly, as SCAFFOLD defines them.
            self._accumulators[name].add(vector, weight if name == protocol.VECTOR else 1.0)
        vector, last = checked.arrays[protocol.VECTOR], self._owner.last
        norm = math.sqrt(_product(vector, vector))
        length = norm * self._length
        self._signals.append((norm, _product(vector, last) / length if last is not None and length else 0.0))

    def add_sum(self, sums: Sums, count: int) -> None:
        for name in self._accumulators:
            self._sums[name] = sums[name] / count
        if self._records_cap is not None:  # each update was weighed as its share of the cap
            self._sums[protocol.VECTOR] = sums[protocol.VECTOR] * (self._records_cap / float(sums[WEIGHT][0]))
        self._facts = {CUT: float(sums[CUT][0])}

    def finish(self) -> Gathered:
        found = self._sums or {name: accumulator.result() for name, accumulator in self._accumulators.items()}
        last, self._owner.last = self._owner.last, found[protocol.VECTOR].astype(np.float32)
        seen = None
        if last is not None and self._signals:
            norm, cosine = np.array(self._signals).T
            seen = Seen(signals=RowSignals(norm, cosine, None), toward="last")
        return Gathered(directions=found, facts=self._facts, seen=seen)


def _product(one: Vector, other: Vector) -> float:
    """Return the inner product, in float64 and without a copy of either."""
    return float(np.einsum("i,i->", one, other, dtype=np.float64))


class _TrustedServer:
    """``unit = "site"``: keeps the clip, where it adapts."""

    def __init__(self, plan: SitePlan, size: int, randomness: Randomness) -> None:
        self.plan, self.size, self.randomness = plan, size, randomness
        self.clip = plan.clip

    def job(self) -> dict[str, float]:
        return {} if self.plan.adaptive is None else {protocol.CLIP: self.clip}

    def start(self, number: int, names: tuple[str, ...]) -> Gathering:  # noqa: ARG002 - the seam's signature
        return _ClippedSum(self, number)

    def arrays(self) -> Arrays:
        return {} if self.plan.adaptive is None else {"clip": np.array([self.clip], dtype=np.float64)}

    def restore(self, arrays: Arrays) -> None:
        if "clip" in arrays:
            self.clip = float(arrays["clip"][0])

    def noisy(self, total: npt.NDArray[Any], *, std: float, purpose: str, number: int) -> Direction:
        """Return ``total`` with this round's own noise, drawn once."""
        source = gaussian_source(self.randomness, purpose, number)
        found: Direction = source.perturb(torch.from_numpy(total), std=std).numpy()
        return found


class _ClippedSum:
    """The sum of one round of ``unit = "site"``."""

    def __init__(self, owner: _TrustedServer, number: int) -> None:
        self._owner, self._number = owner, number
        self._sum = np.zeros(owner.size, dtype=np.float64)
        self._within = 0.0
        self.wanted = {protocol.VECTOR: Wanted(size=owner.size)}
        if owner.plan.adaptive is not None:
            self.wanted[protocol.WITHIN] = Wanted(size=1)

    def add(self, checked: CheckedUpdate) -> Refused | None:
        vector, clip = checked.arrays[protocol.VECTOR], self._owner.clip
        if exceeds_clip(vector, clip):
            return Refused("norm-above-clip", f"the update's norm is above the clip of {clip:g}")
        if protocol.WITHIN in self.wanted:
            bit = float(checked.arrays[protocol.WITHIN][0])
            if abs(bit) != 0.5:
                return Refused("wrong-arrays", f"'{protocol.WITHIN}' is neither 1/2 nor -1/2")
            self._within += bit
        self._sum += vector
        return None

    def add_sum(self, sums: Sums, count: int) -> None:  # noqa: ARG002 - the divisor is public
        self._sum += sums[protocol.VECTOR]
        if protocol.WITHIN in sums:
            self._within += float(sums[protocol.WITHIN][0])

    def finish(self) -> Gathered:
        owner, number, plan = self._owner, self._number, self._owner.plan
        clip = owner.clip
        noisy = owner.noisy(self._sum, std=plan.update_noise * clip, purpose="site-sum", number=number)
        facts = {"clip": clip}
        if plan.adaptive is not None:
            count = np.array([self._within])
            noisy_count = owner.noisy(
                count, std=plan.adaptive.count_noise, purpose="site-count", number=number
            )
            share = plan.adaptive.share_within(float(noisy_count[0]))
            owner.clip = plan.adaptive.next_clip(clip, share)
            facts["within"] = share
        return Gathered(directions={protocol.VECTOR: noisy / plan.sites}, facts=facts)


class _LocalSum:
    """The sum of one round of ``unit = "site-local"``: the noise is in it already."""

    def __init__(self, plan: LocalPlan, size: int) -> None:
        self._plan = plan
        self._sum = np.zeros(size, dtype=np.float64)
        self.wanted = {protocol.VECTOR: Wanted(size=size)}

    def add(self, checked: CheckedUpdate) -> None:
        self._sum += checked.arrays[protocol.VECTOR]

    def add_sum(self, sums: Sums, count: int) -> None:  # noqa: ARG002 - the divisor is public
        self._sum += sums[protocol.VECTOR]

    def finish(self) -> Gathered:
        return Gathered(directions={protocol.VECTOR: self._sum / self._plan.sites}, facts={})


class _IntegerSum:
    """The sum of one round of ``unit = "site-distributed"``, modulo 2²⁰."""

    def __init__(self, plan: DistributedPlan, number: int) -> None:
        self._plan, self._number = plan, number
        self._sum = ModularSum(plan.code.dim)
        self.wanted = {protocol.VECTOR: Wanted(size=plan.code.dim, dtype="uint32")}

    def add(self, checked: CheckedUpdate) -> Refused | None:
        values = checked.arrays[protocol.VECTOR]
        if int(values.max()) >= MODULUS:
            return Refused("too-large", f"the update holds a value that is not below {MODULUS}")
        self._sum.add(values)
        return None

    def add_sum(self, sums: Sums, count: int) -> None:
        self._sum.add(sums[protocol.VECTOR], count)

    def finish(self) -> Gathered:
        plan = self._plan
        signs = rotation_signs(plan.seed, self._number, plan.code.dim)
        total = plan.code.decode(self._sum.result(), signs)
        facts = {"noise_std": math.sqrt(self._sum.count * plan.code.share) / plan.code.scale}
        return Gathered(directions={protocol.VECTOR: total / plan.sites}, facts=facts)


class _SharedStep:
    """The sum of one round of ``unit = "record-distributed"``, modulo 2³², and the step that it makes."""

    def __init__(self, plan: DistributedRecordPlan, size: int, rate: float) -> None:
        self._plan, self._rate = plan, rate
        self._sum = ModularSum(size, SHARE_BITS)
        self.wanted = {protocol.VECTOR: Wanted(size=size, dtype="uint32")}

    def add(self, checked: CheckedUpdate) -> None:
        self._sum.add(checked.arrays[protocol.VECTOR])

    def add_sum(self, sums: Sums, count: int) -> None:
        self._sum.add(sums[protocol.VECTOR], count)

    def finish(self) -> Gathered:
        plan = self._plan
        gradient = plan.code.decode(self._sum.result()) / plan.divisor
        facts = {"noise_std": math.sqrt(self._sum.count) * plan.share * plan.clip}
        return Gathered(directions={protocol.VECTOR: -self._rate * gradient}, facts=facts)
