"""A round of noisy steps: record-level differential privacy at a site (DP-SGD)."""

from __future__ import annotations

from torch import nn

from cloister.client.passes import Work
from cloister.core.errors import NotYetOffered
from cloister.core.spec import FederationSpec
from cloister.core.task import Task

__all__ = ["private_steps"]


def private_steps(spec: FederationSpec, task: Task, model: nn.Module) -> Work | None:  # noqa: ARG001
    """Return the private work that ``spec`` asks for, or ``None`` where it promises nothing."""
    if spec.privacy.unit == "none":
        return None
    raise NotYetOffered(
        "training under privacy.unit = 'record' is not offered by this version", remedy="remove [privacy]"
    )
