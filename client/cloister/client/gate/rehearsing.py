"""What a policy would say of a federation file, before anybody sends it: the same questions as at the gate, with nothing written."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from cloister.client.charging import SiteLedger
from cloister.client.gate.budget import Cost, check_budget
from cloister.client.gate.judging import Verdict, judge
from cloister.client.gate.policy import Policy
from cloister.client.gate.program import program_digest
from cloister.client.site_config import DataTable
from cloister.client.site_data import load_dataset
from cloister.core.errors import CloisterError
from cloister.core.resolve import build_model, load_task
from cloister.core.spec import FederationSpec
from cloister.core.task import Task
from cloister.core.update import Layout
from cloister.privacy.audit.canaries import with_canaries
from cloister.privacy.ledger.heads import anchor_path
from cloister.privacy.ledger.telling import ToSite
from cloister.privacy.plan import Plan

__all__ = ["FileCase", "rehearse"]


@dataclass(frozen=True, kw_only=True)
class FileCase:
    """A federation file, for `cloister.client.gate.judging`.

    Attributes:
        user: who would ask; ``None``: not to be judged.
        site: the site's name; ``None``: not known.
        spec: the federation file.
        folder: the site's, or the file's own.
        table: the site's data set; ``None``: there is no site, and its records are not looked at.
    """

    user: str | None
    spec: FederationSpec
    folder: Path
    table: DataTable | None = None
    site: str | None = None

    def code(self) -> str:
        """Return the digest of the task's program."""
        return program_digest(self.table, self.spec.task, self.folder)

    def built(self) -> tuple[Task, torch.nn.Module, Layout]:
        """Return the task, its model and the model's layout."""
        task = with_canaries(self._found[0], self.spec)
        model = build_model(task, self.spec.federation.seed)
        return task, model, Layout.of(model)

    def records(self) -> int | None:
        """Return how many records the site would train on; ``None`` without a site."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[Task, int | None]:
        if self.table is None:
            return load_task(self.spec.task, self.folder), None
        task, split = load_dataset(self.table, self.spec.task, self.folder)
        return task, len(split.train)


def rehearse(policy: Policy, case: FileCase, ledger: SiteLedger | None) -> tuple[Verdict, Cost | None]:
    """Return what ``policy`` would say of ``case``, and what it would cost.

    Args:
        policy: the policy.
        case: the file.
        ledger: of the data set; ``None``: as if nothing had been spent.
    """
    verdict = judge(policy, case)
    if verdict.reasons or verdict.rule is None or verdict.plan is None:
        return verdict, None
    try:
        return verdict, _cost(policy, verdict.rule.dataset, verdict.plan, ledger)
    except CloisterError as error:
        return replace(verdict, reasons=(error,)), None


def _cost(policy: Policy, dataset: str, plan: Plan, ledger: SiteLedger | None) -> Cost:
    """Ask a copy of the ledger, in which the policy's cap can be set."""
    with tempfile.TemporaryDirectory(prefix="cloister-policy-") as folder:
        path = Path(folder) / "ledger.sqlite"
        copy = SiteLedger(
            path=path, key=Path(folder) / "key.pem", site="site", dataset=dataset, durable=False
        )
        if ledger is not None and ledger.path.exists():
            shutil.copyfile(ledger.path, path)
            shutil.copyfile(anchor_path(ledger.path), anchor_path(path))
            copy = replace(copy, key=ledger.key, site=ledger.site)
        return check_budget(copy, plan, run="(check)", cap=policy.limits_of(dataset).cap, told=ToSite())
