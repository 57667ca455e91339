"""What can be asked of the run that a message is of; each answer is found when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from flwr.app import Context

from cloister.client.app import SiteSource
from cloister.client.gate.program import program_digest
from cloister.client.site_config import DataTable
from cloister.core.resolve import build_model
from cloister.core.spec import FederationSpec
from cloister.core.task import Task
from cloister.core.update import Layout

__all__ = ["MessageCase"]


@dataclass(frozen=True, kw_only=True)
class MessageCase:
    """A run as a message tells of it, for `cloister.client.gate.judging`.

    Attributes:
        user: who asks.
        site: this site's name.
        spec: the federation file.
        federation: the same as JSON, as ``source`` takes it.
        folder: the site's.
        table: the data set; ``None``: the policy has none for the task.
        context: Flower's, for ``source``.
        source: where model and records are found.
    """

    user: str | None
    site: str | None
    spec: FederationSpec
    federation: str
    folder: Path
    table: DataTable | None
    context: Context
    source: SiteSource

    def code(self) -> str:
        """Return the digest of the task's program."""
        return self._code

    def built(self) -> tuple[Task, torch.nn.Module, Layout]:
        """Return the task, a new model and its layout."""
        return self._built

    def records(self) -> int | None:
        """Return how many records the site trains on."""
        bench = self.source.workbench(self.federation)
        return len(self.source.site(self.context, bench).split.train)

    @cached_property
    def _code(self) -> str:
        return program_digest(self.table, self.spec.task, self.folder)

    @cached_property
    def _built(self) -> tuple[Task, torch.nn.Module, Layout]:
        trainer = self.source.workbench(self.federation).trainer
        return trainer.task, build_model(trainer.task, self.spec.federation.seed), trainer.layout
