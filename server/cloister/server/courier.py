"""Messages to the sites of one federation: what goes out with each, and who answered.

One courier serves all that the server asks of sites: training, measurements, leave, and the steps of secure sessions. What comes back is handed
on unread; `cloister.server.replies` reads it. Where the run keeps a transcript, each reply is written into it as it arrives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from cloister.core import protocol
from cloister.core.update import Vector
from cloister.server.directory import Directory
from cloister.server.exchange import Answer, exchange
from cloister.server.plan import RunPlan

__all__ = ["Courier"]

_NOTHING: Mapping[str, float] = MappingProxyType({})


class Courier:
    """Sends messages to sites and hands on their answers, in the cohort's order."""

    def __init__(self, plan: RunPlan, grid: Grid, directory: Directory) -> None:
        self._plan = plan
        self._grid = grid
        self._directory = directory
        self._wait_s = plan.loaded.spec.cohort.wait_s
        self.federation = json.dumps(plan.loaded.effective())

    def names(self, cohort: list[int]) -> list[str]:
        """Return the names of the sites at these positions of the directory."""
        return [self._directory.name(position) for position in cohort]

    def everyone(self) -> list[int]:
        """Return the positions of all sites."""
        return list(range(len(self._directory)))

    def ask(
        self,
        kind: str,
        number: int,
        cohort: list[int],
        *,
        vectors: Mapping[str, Vector] = MappingProxyType({}),
        told: Mapping[str, float] = _NOTHING,
        secure: Callable[[str], ConfigRecord] | None = None,
        phase: str = "",
        apart: Sequence[Sequence[str]] = (),
    ) -> Iterator[tuple[str, Answer]]:
        """Send one message to each site of the cohort and yield (name, answer) in the cohort's order.

        Args:
            kind: the message's type.
            number: the round.
            cohort: positions in the directory, ascending.
            vectors: what the sites compute with.
            told: what the job says beside.
            secure: gives each site's step of a secure session, by its name.
            phase: what a watcher is told that the sites do; ``kind`` unless given.
            apart: the cohort's names by session, where it takes part in several at once: a transcript has a line for each.
        """
        job = ConfigRecord(
            {
                "protocol": protocol.PROTOCOL,
                "run": self._plan.run,
                "round": number,
                "federation": self.federation,
                "layout": self._plan.layout.digest,
                protocol.AFFORD: kind == "query",
                **told,
            }
        )
        arrays = ArrayRecord()  # filled item by item: its constructor would copy and serialise each array
        arrays.update({name: self._plan.make_array(vector) for name, vector in vectors.items()})
        content = RecordDict({protocol.JOB: job, protocol.MODEL: arrays})
        if self._plan.request is not None:
            content[protocol.REQUEST] = ConfigRecord(dict(self._plan.request.to_fields()))
        names = self.names(cohort)
        messages = [
            Message(
                self._own(content, name, names, secure, steps_only=kind == protocol.SECURE_QUERY),
                self._directory.node(position),
                kind,
                ttl=self._wait_s,
                group_id=str(number),
            )
            for position, name in zip(cohort, names, strict=True)
        ]
        self._plan.bus.announce("asked", number, phase=phase or kind, sites=names)
        note = self._noting(kind, number, phase or kind, names, messages, apart=apart or [names])
        for answer in exchange(self._grid, messages, wait_s=self._wait_s, arrived=note):
            yield names[answer.position], answer

    def _noting(
        self,
        kind: str,
        number: int,
        phase: str,
        names: list[str],
        messages: Sequence[Message],
        *,
        apart: Sequence[Sequence[str]],
    ) -> Callable[[Answer], None]:
        """Write into the transcript what is asked, and return what writes down each answer."""
        transcript = self._plan.transcript
        if transcript is None:
            return lambda _: None
        records = {
            name: message.content.config_records.get(protocol.SECURE)
            for name, message in zip(names, messages, strict=True)
        }
        secure = [record for record in records.values() if record is not None]
        for sites in apart:
            told = [record for name in sites if (record := records[name]) is not None]
            transcript.asked(kind, number, phase=phase, sites=list(sites), secure=told)
        step = str(secure[0].get(protocol.STEP, "")) if secure else ""
        about = {"phase": phase, "step": step}
        return lambda answer: transcript.received(
            kind, number, site=names[answer.position], answer=answer, **about
        )

    def _own(
        self,
        content: RecordDict,
        name: str,
        cohort: list[str],
        secure: Callable[[str], ConfigRecord] | None,
        *,
        steps_only: bool,
    ) -> RecordDict:
        """Return the cohort's common content with what this site alone is told: of its ledger, and of a secure session."""
        own: dict[str, ConfigRecord] = {}
        if self._plan.witnesses is not None and not steps_only:
            told = self._plan.witnesses.tell(name, cohort).to_json()
            own[protocol.LEDGER] = ConfigRecord({protocol.LEDGER: told})
        if secure is not None:
            own[protocol.SECURE] = secure(name)
        return RecordDict({**content, **own}) if own else content
