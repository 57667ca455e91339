"""What one run needs, before any grid is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Array

from cloister.core.metrics import Measurement
from cloister.core.randomness import Randomness
from cloister.core.spec import Loaded
from cloister.core.update import Layout, Vector
from cloister.privacy.homomorphic import SumRequest
from cloister.privacy.identity import Consortium, Identity
from cloister.privacy.request import SignedRequest
from cloister.server.audit.canaries.watching import Watch
from cloister.server.checkpoints import Arrays, Checkpoint, CheckpointStore
from cloister.server.events import EventBus
from cloister.server.transcript import Transcript
from cloister.server.witnessing import Witnesses

__all__ = ["Opener", "RunPlan", "SecureSeat", "SiteMemory"]


class Opener(Protocol):
    """A key authority, in process or over a network."""

    def public(self, run: str, serial: int, cohort: str, scheme: Literal["bfv", "ckks"] = "bfv") -> bytes:
        """Return the public key of a session over the sites of that digest, signed by the authority."""
        ...

    def decrypt(self, request: SumRequest) -> npt.NDArray[np.int64]:
        """Return the sums of a session, once."""
        ...


@dataclass(frozen=True, kw_only=True)
class SecureSeat:
    """Who the server is to a consortium.

    Attributes:
        identity: its own key and certificate.
        consortium: whose authority it trusts.
        authority: opens sums under encryption; ``None`` where nothing is encrypted.
    """

    identity: Identity
    consortium: Consortium
    authority: Opener | None = None


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
        request: who asked for the run, in a deployment: it goes with every message.
        fingerprint: what the run computes with, kept in every checkpoint and compared on a resume.
        watch: what is seen of the run's canaries, where it plants some.
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
    request: SignedRequest | None = None
    fingerprint: str = ""
    watch: Watch | None = None
