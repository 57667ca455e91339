"""One message to each site of a cohort, and what comes back: checked, told, added up as it arrives.

Updates are given to the round's `Gathering` in the cohort's order and then dropped, so memory grows with the model and not with the
cohort (under a rule that needs no rows).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloister.core import protocol
from cloister.core.update import Vector
from cloister.server.courier import Courier
from cloister.server.exchange import Answer
from cloister.server.gathering import Gatherer, Gathering
from cloister.server.plan import RunPlan
from cloister.server.replies import (
    LOST,
    CheckedEvaluation,
    CheckedUpdate,
    Refused,
    check_evaluation,
    check_introduction,
    check_update,
)

__all__ = ["Collected", "Collector"]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What one attempt at a round brought.

    Attributes:
        asked: size of the cohort.
        missing: who did not answer in time.
        refused: whose reply was not used, and why.
        answered: how many replies were used.
        losses: their mean training losses; empty in a private run, where they are withheld.
        gathering: what the replies that were used add up to.
        bytes_down: payload sent to the cohort.
        bytes_up: payload of the replies that were used.
        names: whose updates were added, in their order, where single ones were.
        groups: what became of each group, where there are groups, for the round's event.
        short: why the round does not count, however many answered; empty: it may.
        suspects: who is likely to be why it does not.
        tried: who was asked to open a sum that did not open: they open no other of this round, but one that leaves enough of them out.
    """

    asked: int
    missing: list[str]
    refused: list[dict[str, str]]
    answered: int
    losses: list[float]
    gathering: Gathering
    bytes_down: int
    bytes_up: int
    names: list[str] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    short: str = ""
    suspects: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()

    def summary(self) -> str:
        """Say who did not answer, by name, and why replies were refused; at most five of each."""
        parts = [f"{self.answered} of {self.asked} answered"]
        if self.short:
            parts.append(self.short)
        if self.missing:
            parts.append("missing: " + _some(self.missing))
        if self.refused:
            parts.append("refused: " + _some([f"{one['site']} ({one['reason']})" for one in self.refused]))
        return "; ".join(parts)


class Collector:
    """Talks to the sites of one federation."""

    def __init__(self, plan: RunPlan, courier: Courier, gatherer: Gatherer) -> None:
        self._plan = plan
        self._courier = courier
        self._gatherer = gatherer
        self._private = plan.loaded.spec.privacy.unit != "none"

    def train(self, number: int, cohort: list[int], vectors: dict[str, Vector]) -> Collected:
        """Have the cohort train on ``vectors`` and add up what it answers.

        Args:
            number: the round.
            cohort: positions in the directory, ascending.
            vectors: the model, and what goes with it; a site answers with as many arrays under the same names.
        """
        nbytes = sum(vector.nbytes for vector in vectors.values())
        gathering = self._gatherer.start(number, tuple(vectors))
        missing: list[str] = []
        refused: list[dict[str, str]] = []
        losses: list[float] = []
        names: list[str] = []
        up = 0
        watch = self._plan.watch
        if watch is not None:
            watch.begin()
        for name, answer in self._courier.ask(
            "train", number, cohort, vectors=vectors, told=self._gatherer.job()
        ):
            checked = check_update(answer, wanted=gathering.wanted, private=self._private)
            checked = self.witnessed(name, checked)
            if isinstance(checked, CheckedUpdate):
                checked = gathering.add(checked) or checked
            self.tell(number, "train", name, answer=answer, checked=checked, nbytes=nbytes)
            if isinstance(checked, CheckedUpdate):
                names.append(name)
                if watch is not None:
                    watch.update(name, checked.arrays[protocol.VECTOR])
                up += checked.nbytes
                if checked.loss is not None:
                    losses.append(checked.loss)
            elif answer.reply is None:
                missing.append(name)
            else:
                refused.append({"site": name, "reason": str(checked)})
        return Collected(
            asked=len(cohort),
            missing=missing,
            refused=refused,
            answered=len(names),
            losses=losses,
            gathering=gathering,
            bytes_down=len(cohort) * (nbytes + len(self._courier.federation)),
            bytes_up=up,
            names=names,
        )

    def allowed(self, number: int) -> list[dict[str, str]]:
        """Ask all sites whether they allow what is left of the run after round ``number``; return who does not, and why.

        A site that is away has said nothing: it is asked again with each round.
        """
        everyone = self._courier.everyone()
        return [
            {"site": name, "reason": str(refused)}
            for name, answer in self._courier.ask("query", number, everyone)
            if answer.reply is not None
            and isinstance(refused := check_introduction(answer, name), Refused)
            and refused.reason != LOST
        ]

    def measure(self, number: int, cohort: list[int], model: Vector) -> CheckedEvaluation | None:
        """Have the cohort measure ``model`` on its own test records; return the uniform mean, ``None`` if nobody could."""
        found = []
        for name, answer in self._courier.ask("evaluate", number, cohort, vectors={protocol.VECTOR: model}):
            checked = check_evaluation(answer, classes=self._plan.classes)
            self.tell(number, "evaluate", name, answer=answer, checked=checked, nbytes=model.nbytes)
            if isinstance(checked, CheckedEvaluation) and checked.records:
                self._plan.bus.emit("evaluation", number, where=f"site:{name}", **vars(checked))
                found.append(checked)
        if not found:
            return None
        names = sorted({name for one in found for name in one.metrics})
        mean = CheckedEvaluation(
            loss=float(np.mean([one.loss for one in found])),
            # Over the sites that have it: AUROC, for one, is not defined where all records are of one class.
            metrics={
                name: float(np.mean([one.metrics[name] for one in found if name in one.metrics]))
                for name in names
            },
            records=sum(one.records for one in found),
        )
        self._plan.bus.emit("evaluation", number, where="sites", **vars(mean))
        return mean

    def witnessed(self, name: str, checked: CheckedUpdate | Refused) -> CheckedUpdate | Refused:
        """Take what a site tells of its ledger; an update under a ledger that cannot be so is not used."""
        if self._plan.witnesses is None or isinstance(checked, Refused):
            return checked
        if checked.ledger is None:
            return Refused("ledger-missing", "the update came without its ledger's head")
        wrong = self._plan.witnesses.take(name, checked.ledger)
        return checked if wrong is None else Refused(*wrong.split(": ", 1))

    def tell(
        self,
        number: int,
        phase: str,
        name: str,
        *,
        answer: Answer,
        checked: CheckedUpdate | CheckedEvaluation | Refused,
        nbytes: int,
    ) -> None:
        """Emit what became of one site in one phase of a round."""
        refused = isinstance(checked, Refused)
        self._plan.bus.emit(
            "site",
            number,
            site=name,
            phase=phase,
            status="missing" if answer.reply is None else "refused" if refused else "answered",
            reason=str(checked) if refused else None,
            seconds=round(answer.seconds, 4),
            loss=None if isinstance(checked, Refused) else checked.loss,
            bytes_down=nbytes + len(self._courier.federation),
            bytes_up=checked.nbytes if isinstance(checked, CheckedUpdate) else 0,
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
