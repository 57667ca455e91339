"""Rounds in groups: one sum a group, all groups at once, and their means to the rule.

A group whose sum was opened keeps it while its round is tried again: its sites opened that sum and would open no other of that round, and are not
asked twice. A group without a sum leaves the round with a row less. Measurements are sums over all sites, which are other numbers than
those of training, so no two sums of the same numbers overlap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cloister.core import protocol
from cloister.core.digests import vectors_digest
from cloister.core.spec.grouping import least_in_sum
from cloister.core.update import Vector
from cloister.privacy.sums import CUT, LOSS
from cloister.server.collecting import Collected, Collector
from cloister.server.courier import Courier
from cloister.server.group_gathering import GroupGatherer
from cloister.server.grouping import Placed
from cloister.server.plan import RunPlan
from cloister.server.replies import CheckedUpdate, Refused, check_update
from cloister.server.secure.collecting import Given, SecureCollector
from cloister.server.secure.masked import MaskedSums
from cloister.server.secure.summing import Heard, Summed

__all__ = ["ClearGroupCollector", "GroupCollector"]


class GroupCollector(SecureCollector):
    """A `Collector` that sees the sum of each group only.

    Args:
        plan: the run.
        courier: reaches the sites.
        gatherer: makes directions of group means.
        sums: the protection.
        groups: who is in which.
    """

    def __init__(
        self, plan: RunPlan, courier: Courier, gatherer: GroupGatherer, sums: MaskedSums, groups: Placed
    ) -> None:
        super().__init__(plan, courier, gatherer, sums)
        self._grouped, self._masked, self._groups = gatherer, sums, groups
        self._round: tuple[int, str] = (0, "")
        self._opened: dict[int, Summed] = {}

    def train(self, number: int, cohort: list[int], vectors: dict[str, Vector]) -> Collected:
        """Have the groups train on ``vectors``, and take the sum of each: of those that have none for this round yet."""
        about = (number, vectors_digest(vectors))
        if about != self._round:
            self._round, self._opened = about, {}
        waiting = {g: members for g, members in enumerate(self._groups) if g not in self._opened}
        found = self._masked.sums(
            "train",
            number,
            waiting,
            vectors=vectors,
            clip=None,
            given=Given(self, "train", number, sum(vector.nbytes for vector in vectors.values())),
        )
        for group, summed in found.items():
            checked = self.plausible(number, summed)
            if checked.values:
                self._opened[group] = checked
                self.tell_cut(number, checked)
            found[group] = checked
        heard = [summed.heard for summed in found.values()]
        return joined(
            self._courier,
            self._grouped,
            self._groups,
            number,
            sums=self._opened,
            lost={group: summed for group, summed in found.items() if not summed.values},
            heard=heard,
            asked=len(cohort),
        )


class ClearGroupCollector(Collector):
    """The same with updates in clear, to rehearse attacks: the server adds up each group's updates itself."""

    def __init__(self, plan: RunPlan, courier: Courier, gatherer: GroupGatherer, groups: Placed) -> None:
        super().__init__(plan, courier, gatherer)
        self._grouped, self._groups = gatherer, groups
        self._least = least_in_sum(plan.loaded.spec)

    def train(self, number: int, cohort: list[int], vectors: dict[str, Vector]) -> Collected:
        """Have the cohort train on ``vectors`` and add up each group's updates."""
        nbytes, size = sum(vector.nbytes for vector in vectors.values()), self._grouped.size
        wanted = self._grouped.start(number, tuple(vectors)).wanted
        names = {
            name: group for group, of in enumerate(self._groups) for name in self._courier.names(list(of))
        }
        heard = Heard(bytes_down=len(cohort) * (nbytes + len(self._courier.federation)))
        totals: dict[int, Any] = {}
        losses: dict[int, list[float]] = {}
        counts = dict.fromkeys(range(len(self._groups)), 0)
        for name, answer in self._courier.ask("train", number, cohort, vectors=vectors):
            checked = self.witnessed(name, check_update(answer, wanted=wanted, private=self._private))
            self.tell(number, "train", name, answer=answer, checked=checked, nbytes=nbytes)
            if isinstance(checked, Refused):
                heard.lost(name, answer, checked)
                continue
            group = names[name]
            _add(totals, group, checked, size)
            counts[group] += 1
            heard.bytes_up += checked.nbytes
            if checked.loss is not None:
                losses.setdefault(group, []).append(checked.loss)
        sums, lost = {}, {}
        for group, count in counts.items():
            if count < self._least:
                why = f"{count} sites answered, and a sum takes {self._least}"
                lost[group] = Summed(values={}, count=0, heard=heard, why=why)
                continue
            values = {protocol.VECTOR: totals[group], CUT: np.zeros(1)}
            if group in losses:
                values[LOSS] = np.array([sum(losses[group])])
            sums[group] = Summed(values=values, count=count, heard=heard)
        return joined(
            self._courier,
            self._grouped,
            self._groups,
            number,
            sums=sums,
            lost=lost,
            heard=[heard],
            asked=len(cohort),
        )


def _add(totals: dict[int, Any], group: int, checked: CheckedUpdate, size: int) -> None:
    if group not in totals:
        totals[group] = np.zeros(size, dtype=np.float64)
    totals[group] += checked.arrays[protocol.VECTOR]


def joined(
    courier: Courier,
    gatherer: GroupGatherer,
    groups: Placed,
    number: int,
    *,
    sums: dict[int, Summed],
    lost: dict[int, Summed],
    heard: list[Heard],
    asked: int,
) -> Collected:
    """Return what an attempt at a round in groups brought.

    Args:
        courier: knows the sites' names.
        gatherer: joins rows.
        groups: who is in which.
        number: the round.
        sums: of the groups that have one.
        lost: the other groups, with the reason.
        heard: who did not answer, and the bytes.
        asked: size of the cohort.
    """
    rows = gatherer.start(number, (protocol.VECTOR,))
    told, loss = [], 0.0
    for group, members in enumerate(groups):
        summed = sums.get(group)
        entry: dict[str, Any] = {"group": group, "sites": courier.names(list(members)), "answered": 0}
        if summed is None:
            entry["reason"] = lost[group].why if group in lost else ""
        else:
            rows.add_group(group, summed.values, summed.count)
            entry["answered"] = summed.count
            if LOSS in summed.values:
                loss += float(summed.values[LOSS][0])
                entry["loss"] = float(summed.values[LOSS][0]) / summed.count
        told.append(entry)
    answered = sum(summed.count for summed in sums.values())
    measured = answered and all(LOSS in summed.values for summed in sums.values())
    return Collected(
        asked=asked,
        missing=[name for one in heard for name in one.missing],
        refused=[refusal for one in heard for refusal in one.refused],
        answered=answered,
        losses=[loss / answered] if measured else [],
        gathering=rows,
        bytes_down=sum(one.bytes_down for one in heard),
        bytes_up=sum(one.bytes_up for one in heard),
        groups=told,
        short=rows.short,
        suspects=tuple(sorted({name for summed in lost.values() for name in summed.suspects})),
    )
