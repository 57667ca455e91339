"""The update of one step on a small batch, made by the site's own code, in four forms: as it is, clipped, private, masked.

One step on a few records is the most that an update gives away; a site that takes more steps, or has more records, sends less of each. The records, the
step and the learning rate are the same in all forms, so that what differs is the protection.

===========  =======================================================================================================================
form         what the server sees
===========  =======================================================================================================================
plain        the change of the model
clipped      the change, cut to the clip: protection in name only
private      clipped for each record, with noise: what ``[privacy]`` promises where it hides records or a site's update against the server; else a nominal σ = 1, C = 1
masked       the change as integers under the masks of a real session of three sites, read back as numbers
===========  =======================================================================================================================
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cloister.client.trainer import Trainer
from cloister.core.data import Data
from cloister.core.randomness import Randomness
from cloister.core.spec import FederationSpec, parse_federation
from cloister.core.task import Task
from cloister.core.update import Layout
from cloister.privacy.masking.messages import Deliveries
from cloister.privacy.masking.rehearsal import Stage
from cloister.privacy.noise import gaussian_source
from cloister.privacy.plan import plan_from
from cloister.privacy.record_plans import DistributedRecordPlan, RecordPlan
from cloister.privacy.site_plans import LocalPlan
from cloister.privacy.updates import centred, clip_update, wrapped
from cloister.server.audit.subject import AuditSubject

__all__ = ["FORMS", "Form", "gradient_seen", "seen_by_server"]

Form = Literal["plain", "clipped", "private", "masked"]
FORMS: tuple[Form, ...] = ("plain", "clipped", "private", "masked")

_RATE = 0.1
_FIXED = float(1 << 16)
_SITE = "audited-site"
Vector = npt.NDArray[np.float32]


def seen_by_server(subject: AuditSubject) -> Form:
    """Return the form in which the server sees single updates of this federation."""
    spec = subject.spec
    if spec.aggregation.protection != "plain":
        return "masked"
    if spec.privacy.unit in {"record", "site-local"}:
        return "private"
    # Distributed noise in clear is a share of the noise; a trusted server's sites only clip.
    return "plain" if spec.privacy.unit == "none" else "clipped"


def gradient_seen(
    subject: AuditSubject, model: nn.Module, data: Data, form: Form, *, randomness: Randomness
) -> npt.NDArray[np.float64]:
    """Return what an attacker takes for the gradient: minus the update that the server sees, over the learning rate.

    Args:
        subject: whose protection it is.
        model: what the server sent.
        data: the records of the batch, all of them.
        form: how the update is protected.
        randomness: of noise and masks' inputs.
    """
    if form == "private":
        own = plan_from(subject.spec, Layout.of(model).size) if subject.spec.privacy.unit != "none" else None
        if isinstance(own, LocalPlan):
            clipped = clip_update(_change(subject, model, data, None, randomness), own.clip).vector
            source = gaussian_source(randomness, "leakage", "site")
            noisy = source.perturb(torch.from_numpy(clipped), std=own.noise_multiplier * own.clip)
            return -noisy.double().numpy() / _RATE
        sigma, clip = 1.0, 1.0
        if isinstance(own, RecordPlan | DistributedRecordPlan):
            sigma, clip = own.noise_multiplier, own.clip
        return -_change(subject, model, data, (sigma, clip), randomness).astype(np.float64) / _RATE
    change = _change(subject, model, data, None, randomness)
    if form == "clipped":
        # The largest clip that cuts something: any smaller one scales the same gradient by another number.
        change = clip_update(change, 0.5 * float(np.linalg.norm(change.astype(np.float64))) or 1.0).vector
    if form == "masked":
        return -_under_masks(change) / _RATE
    return -change.astype(np.float64) / _RATE


def _change(
    subject: AuditSubject,
    model: nn.Module,
    data: Data,
    noise: tuple[float, float] | None,
    randomness: Randomness,
) -> Vector:
    """Return the change of the model that the site's trainer makes in one step on all of ``data``."""
    layout = Layout.of(model)
    spec = _one_step(subject.spec, len(data), noise, subject)
    start = layout.read(model)
    trainer = Trainer(spec, _Borrowed(subject.task), model, layout)
    made = trainer.train(start, data, site=_SITE, round_number=1, randomness=randomness).change
    layout.write(model, start)
    return np.asarray(made, dtype=np.float32)


def _one_step(
    spec: FederationSpec, records: int, noise: tuple[float, float] | None, subject: AuditSubject
) -> FederationSpec:
    document: dict[str, Any] = {
        "federation": {"name": "leakage", "rounds": 1, "seed": spec.federation.seed},
        "task": {"use": "digits"},  # never read: the trainer is given the task
        "training": {
            "local_steps": 1,
            "batch_size": records,
            "optimizer": {"name": "sgd", "lr": _RATE},
            "device": "cpu",
        },
        "aggregation": {"protection": "plain"},
    }
    if noise is not None:
        document["privacy"] = {
            "unit": "record",
            "noise_multiplier": noise[0],
            "clip": noise[1],
            "delta": 1e-5,
            "sampling_rate": 1.0,
        }
    return parse_federation(document, base=subject.loaded.base).spec


class _Borrowed(Task):
    """A task's loss and kind, without its data and model."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.kind, self.classes = task.kind, task.classes

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self._task.loss(outputs, targets)

    def model(self) -> nn.Module:
        return self._task.model()

    def data(self) -> Any:
        return self._task.data()


def _under_masks(change: Vector) -> npt.NDArray[np.float64]:
    """Return what the server reads of one site's message in a real session of three sites."""
    residues = wrapped(np.rint(change.astype(np.float64) * _FIXED).astype(np.int64), 32)
    session = Stage().rehearsal(3, size=len(residues), largest=1)
    session.advert()
    session.share()
    name = next(iter(session.sites))
    sealed = Deliveries.from_fields(session.server.deliveries_for(name).to_fields())
    masked = session.sites[name].mask(sealed, np.ascontiguousarray(residues))
    return centred(masked, 32).astype(np.float64) / _FIXED
