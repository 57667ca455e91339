"""What one run needs, before any grid is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
from flwr.app import Array

from cloister.core.metrics import Measurement
from cloister.core.randomness import Randomness
from cloister.core.spec import Loaded
from cloister.core.update import Layout, Vector
from cloister.privacy.identity import Consortium, Identity
from cloister.server.checkpoints import Arrays, Checkpoint, CheckpointStore
from cloister.server.events import EventBus
from cloister.server.transcript import Transcript
from cloister.server.witnessing import Witnesses

__all__ = ["RunPlan", "SecureSeat", "SiteMemory"]


@dataclass(frozen=True, kw_only=True)
class SecureSeat:
    """Who the server is to a consortium.

    Attributes:
        identity: its own key and certificate.
        consortium: whose authority it trusts.
    """

    identity: Identity
    consortium: Consortium


class SiteMemory(Protocol):
    """What virtual sites keep between rounds, where an engine holds it for them."""

    def arrays(self) -> Arrays:
        """Return it as named arrays for a checkpoint."""
        ...

    def restore(self, arrays: Arrays) -> None:
        """Put it back."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """All that one run needs.

    Attributes:
        loaded: the federation file.
        layout: what lies where in the model's vector.
        initial: (size,) the model as it was built.
        classes: number of classes (0: regression).
        randomness: seeded in simulation, the operating system's in deployment.
        bus: where events go.
        store: where checkpoints go.
        central: measures a model at the server, or ``None``.
        memory: what virtual sites keep, or ``None``.
        make_array: how a flat vector becomes a Flower ``Array``.
        resume: the checkpoint to go on from.
        run: names the run in the sites' ledgers.
        witnesses: what the server knows of the sites' ledgers, where they keep any.
        secure: who the server is to the consortium, where updates are protected.
        transcript: where all that is received is written down, or ``None``.
        fingerprint: what the run computes with, kept in every checkpoint and compared on a resume.
    """

    loaded: Loaded
    layout: Layout
    initial: Vector
    classes: int
    randomness: Randomness
    bus: EventBus
    store: CheckpointStore
    central: Callable[[Vector], Measurement] | None
    memory: SiteMemory | None = None
    make_array: Callable[[npt.NDArray[Any]], Array] = Array
    resume: Checkpoint | None = None
    run: str = "run"
    witnesses: Witnesses | None = None
    secure: SecureSeat | None = None
    transcript: Transcript | None = None
    fingerprint: str = ""
