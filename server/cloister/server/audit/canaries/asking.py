"""What the coordinator asks the site that plants canaries: the seal of its coins before the first round, and the coins after the last.

A seal is taken once: it is in the run's first checkpoint, and a site that draws other coins after a crash opens coins that do not fit.

==========================================  ======================================================================
case                                        outcome
==========================================  ======================================================================
no such site among those that are asked     `SpecError` (audit-site), before anything is trained
it gives no seal                            `PolicyError` where it does not allow it, `PeersMissing` where it is away
rounds without a seal before them           `IntegrityError` (audit-coins)
it does not open its coins                  the run ends well; its audit is ``incomplete``
it opens other coins than it sealed         the run ends well; its audit is ``void``
==========================================  ======================================================================
"""

from __future__ import annotations

from cloister.core import protocol
from cloister.core.errors import IntegrityError, PeersMissing, SpecError
from cloister.privacy.audit.coins import opened
from cloister.server.audit.canaries.claiming import CHECK, in_run_case
from cloister.server.audit.canaries.watching import Watch
from cloister.server.courier import Courier
from cloister.server.directory import Directory
from cloister.server.leave import refusal_of
from cloister.server.plan import RunPlan
from cloister.server.replies import CheckedOpening, Refused, check_canaries

__all__ = ["CanaryTalk", "talk_of"]

#: A site that is away is asked so often for its coins.
_TIMES = 3


class CanaryTalk:
    """Asks one site for seal and coins.

    Args:
        plan: the run.
        courier: reaches the site.
        directory: who is who.
        watch: what is seen of the canaries.
    """

    def __init__(self, plan: RunPlan, courier: Courier, directory: Directory, watch: Watch) -> None:
        self._plan, self._courier, self._watch = plan, courier, watch
        self._spec = plan.loaded.spec
        self._sites = watch.sites = len(directory)
        self._site = self._spec.audit.canary_site or ""
        names = {directory.name(position): position for position in range(self._sites)}
        if self._site not in names:
            raise SpecError(
                f"audit.canary_site = '{self._site}' is none of the {self._sites} sites of this run",
                remedy=f"name one of {', '.join(list(names)[:5])}",
                code="audit-site",
            )
        self._position = names[self._site]

    def seal(self, done: int) -> None:
        """Take the seal of the coins and write it into the run's events, unless it is there already.

        Args:
            done: how many rounds there were: none of them without a seal.

        Raises:
            CloisterError: see the module.
        """
        if self._watch.seal:
            return
        if done:
            raise IntegrityError(
                f"the run has {done} rounds, and no seal of its canaries' coins was taken before them",
                remedy="start a new run",
                code="audit-coins",
            )
        found = self._ask(protocol.SEAL_QUERY, 1)
        if isinstance(found, Refused):
            raise refusal_of([{"site": self._site, "reason": str(found)}], self._spec.federation.rounds)
        if found is None:
            raise PeersMissing(
                f"site '{self._site}' is to plant canaries, and did not answer",
                remedy="bring it back and resume with --resume, or remove audit.canaries",
            )
        case = in_run_case(self._spec, size=self._plan.layout.size, sites=self._sites)
        self._plan.bus.emit("audit", 0, **case.sealed(found.seal))
        self._plan.bus.sync()  # on disk before anything is trained
        self._watch.seal = found.seal

    def open(self) -> None:
        """Take the coins, check them against the seal and write them into the run's events; or why not."""
        rounds = self._spec.federation.rounds
        found = next(
            (one for _ in range(_TIMES) if (one := self._ask(protocol.OPEN_QUERY, rounds)) is not None), None
        )
        verdict, reason = "opened", ""
        opening = found.opening if isinstance(found, CheckedOpening) else {}
        if not isinstance(found, CheckedOpening):
            why = "it did not answer" if found is None else str(found)
            verdict, reason = "incomplete", f"site '{self._site}' did not open its coins: {why}"
        else:
            try:
                opened(self._watch.seal, opening)
            except IntegrityError:
                verdict, reason = "void", f"site '{self._site}' opened other coins than it had sealed"
        told = {"opening": opening} if verdict == "opened" else {"reason": reason}
        self._plan.bus.emit("audit", rounds, check=CHECK, verdict=verdict, seal=self._watch.seal, **told)
        if reason:
            self._plan.bus.emit("warning", rounds, text=f"no audit of the privacy budget: {reason}")

    def _ask(self, kind: str, number: int) -> CheckedOpening | Refused | None:
        """Return what the site said; ``None``: nothing."""
        ((_, answer),) = self._courier.ask(kind, number, [self._position])
        if answer.reply is None:
            return None
        count = self._spec.audit.canaries or 0
        return check_canaries(answer, opening=kind == protocol.OPEN_QUERY, canaries=count)


def talk_of(plan: RunPlan, courier: Courier, directory: Directory) -> CanaryTalk | None:
    """Return what asks for the canaries of ``audit.canaries``; ``None`` where the file plants none.

    Raises:
        SpecError: (audit-site) no such site is there.
    """
    if plan.watch is None or plan.loaded.spec.audit.canaries is None:
        return None
    return CanaryTalk(plan, courier, directory, plan.watch)
