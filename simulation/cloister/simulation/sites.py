"""The virtual sites of a simulation, as the ClientApp sees them.

A copy that crosses a process boundary (Ray, or a spawned worker) takes only the federation file with it and builds task, data and
partition anew; a forked worker shares them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from flwr.app import Context

from cloister.client.app import Site, Workbench
from cloister.client.book import Credentials
from cloister.client.canaries import SeededCoins
from cloister.client.trainer import Trainer
from cloister.core._version import __version__
from cloister.core.data import Split
from cloister.core.errors import IntegrityError
from cloister.core.randomness import SeededRandomness
from cloister.core.resolve import build_model, load_task, owners
from cloister.core.source import source_digest
from cloister.core.spec import FederationSpec, parse_federation
from cloister.core.task import Task
from cloister.core.update import Layout
from cloister.privacy.audit.canaries import bare, with_canaries
from cloister.simulation.attacks.data import Trigger, flipped, poisoned, trigger_of
from cloister.simulation.attacks.knowing import draw_liars
from cloister.simulation.consortium import SimulatedConsortium
from cloister.simulation.fingerprint import data_digest
from cloister.simulation.ledgers import SimulatedLedgers
from cloister.simulation.partition import Roster, make_roster

__all__ = ["POSITION", "SimulatedSites"]

#: Most sites whose keys are kept in memory.
_MOST_KEPT = 4096
#: Key of a site's position in its node's configuration (Flower's own name for it).
POSITION = "partition-id"


@dataclass(frozen=True)
class SimulatedSites:
    """Task, partition and workbench of a simulation; built when first used.

    Attributes:
        federation: the effective federation file as JSON, exactly as the server sends it.
        base: the folder that the file's relative paths are taken from.
        ledgers: where the sites keep their ledgers; ``None``: they keep none.
    """

    federation: str
    base: Path
    ledgers: SimulatedLedgers | None = None

    @cached_property
    def spec(self) -> FederationSpec:
        """The checked federation file."""
        return parse_federation(json.loads(self.federation), base=self.base).spec

    @cached_property
    def randomness(self) -> SeededRandomness:
        """Everything random in a simulation."""
        return SeededRandomness(self.spec.federation.seed)

    @cached_property
    def task(self) -> Task:
        """The task; with canaries, where the file plants some."""
        return with_canaries(load_task(self.spec.task, self.base), self.spec)

    @cached_property
    def owners(self) -> dict[str, Split]:
        """The records as the task hands them over, by owner."""
        return owners(self.task)

    @cached_property
    def roster(self) -> Roster:
        """Who holds what."""
        return make_roster(self.spec.cohort, self.owners, self.task, self.randomness)

    @cached_property
    def liars(self) -> frozenset[int]:
        """The positions of the sites that lie, where the file has an ``[attack]``."""
        return draw_liars(self.spec, len(self.roster), self.randomness)

    @cached_property
    def trigger(self) -> Trigger | None:
        """The trigger that liars plant, where their attack is a backdoor."""
        attack = self.spec.attack
        return (
            trigger_of(attack, self.task, self.roster.pooled_train)
            if attack is not None and attack.backdoor
            else None
        )

    @cached_property
    def fingerprint(self) -> str:
        """What a run computes with, beside the federation file and the model's layout: ``data=… code=… versions=…``.

        ``data`` is a SHA-256 over every owner's name, counts, targets and those tensors that its data holds in memory (of
        `LazyData`, whose inputs lie elsewhere, only counts and targets); ``code`` one over the source files of the task's class
        and its bases and the file that ``task.use`` names, but not what they import; ``versions`` names Cloister and torch.
        """
        code = source_digest(type(bare(self.task)), self.spec.task.use, self.base)
        return f"data={data_digest(self.owners)} code={code} versions=cloister-{__version__},torch-{torch.__version__}"

    @cached_property
    def bench(self) -> Workbench:
        """The workbench of this process."""
        model = build_model(self.task, self.spec.federation.seed)
        trainer = Trainer(self.spec, self.task, model, Layout.of(model))
        code = source_digest(type(bare(self.task)), self.spec.task.use, self.base)
        return Workbench(
            spec=self.spec,
            trainer=trainer,
            randomness=self.randomness,
            code_hash=hashlib.sha256(f"cloister-{__version__} {code} {self.federation}".encode()).hexdigest(),
        )

    @cached_property
    def consortium(self) -> SimulatedConsortium:
        """Who is who, where updates are protected."""
        return SimulatedConsortium(self.spec.federation.name, self.randomness)

    def workbench(self, federation: str) -> Workbench:
        """Return the workbench, if the server speaks of this federation.

        Raises:
            IntegrityError: it speaks of another.
        """
        if federation != self.federation:
            raise IntegrityError(
                "the job's federation is not the one that this simulation runs", code="federation-differs"
            )
        return self.bench

    def site(self, context: Context, bench: Workbench) -> Site:  # noqa: ARG002 - the seam's signature
        """Return the site at the context's position."""
        position = int(context.node_config[POSITION])
        name = self.roster.name(position)
        ledger = None if self.ledgers is None else self.ledgers.of(name, self.spec)
        protected = self.spec.aggregation.protection != "plain"
        return Site(
            name=name,
            split=self.records(position),
            ledger=ledger,
            credentials=self._credentials(name) if protected else None,
            peers=self._peers if protected and self.spec.aggregation.group_size is not None else (),
            coins=SeededCoins(self.randomness),
        )

    @cached_property
    def _peers(self) -> tuple[str, ...]:
        return tuple(self.roster.name(position) for position in range(len(self.roster)))

    def _credentials(self, name: str) -> Credentials:
        found = self._made.get(name)
        if found is None:
            found = self.consortium.credentials(name)
            if len(self._made) < _MOST_KEPT:
                self._made[name] = found
        return found

    @cached_property
    def _made(self) -> dict[str, Credentials]:
        return {}

    def records(self, position: int) -> Split:
        """Return a site's records, or what a liar makes of its own."""
        split, attack = self.roster.split(position), self.spec.attack
        if attack is None or position not in self.liars:
            return split
        if attack.name == "label-flip":
            return flipped(split, self.task)
        if self.trigger is None:
            return split
        order = sorted(self.liars).index(position)
        trigger = self.trigger.part(order, len(self.liars)) if attack.name == "dba" else self.trigger
        return poisoned(split, trigger, attack.poison or 0.5, self.randomness, position)

    def __reduce__(
        self,
    ) -> tuple[
        Callable[[str, Path, SimulatedLedgers | None], SimulatedSites],
        tuple[str, Path, SimulatedLedgers | None],
    ]:
        """Leave what was built behind: the other process builds its own, once, however often a copy reaches it."""
        return _built_here, (self.federation, self.base, self.ledgers)


@lru_cache(maxsize=2)
def _built_here(federation: str, base: Path, ledgers: SimulatedLedgers | None) -> SimulatedSites:
    """Return this process's own sites of a federation: Flower's Ray engine sends a copy with every message."""
    return SimulatedSites(federation, base, ledgers)
