"""What a site checks of a message before it uses any of it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message

from cloister.core import protocol
from cloister.core.decoding import decode_vector
from cloister.core.errors import IntegrityError
from cloister.core.update import Layout, Vector
from cloister.privacy.ledger.telling import ToSite

__all__ = ["Job", "parsed", "read_job"]

_MAX_FEDERATION = 1 << 20
_RUN = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checked job.

    Attributes:
        run: names the run.
        round_number: from 0.
        federation: the effective federation file as JSON.
        layout_digest: of the model's layout.
        arrays: what came with it.
        told: what the server says of the site's ledger.
        afford: whether the site is asked if it allows the rounds after this one.
    """

    run: str
    round_number: int
    federation: str
    layout_digest: str
    arrays: ArrayRecord | None
    told: ToSite
    afford: bool
    clip: float | None = None

    def check_layout(self, layout: Layout) -> None:
        """Refuse a job whose model is not the one that this site builds.

        Raises:
            IntegrityError: the digests differ.
        """
        if self.layout_digest != layout.digest:
            raise IntegrityError(
                "the server's model layout is not the one that this site builds from the federation file",
                remedy="install the same version of cloister and of the task at the server and at every site",
                code="layout-differs",
            )

    def array(self, name: str, size: int) -> Vector:
        """Return the array ``name``, checked: (size,) float32, finite.

        Raises:
            IntegrityError: it is missing or is something else.
        """
        if self.arrays is None or name not in self.arrays:
            raise IntegrityError(f"the job has no array '{name}'", code="job-array")
        array = self.arrays[name]
        try:
            vector = decode_vector(array.data, size) if type(array) is Array else array.numpy()
        except ValueError as error:
            raise IntegrityError(f"the job's array '{name}': {error}", code="job-array") from None
        if vector.dtype != np.float32 or vector.shape != (size,) or not np.isfinite(vector).all():
            raise IntegrityError(
                f"the job's array '{name}' is not float32 ({size},) and finite", code="job-array"
            )
        checked: Vector = vector
        return checked


def read_job(message: Message) -> Job:
    """Read and check the job of a message.

    Raises:
        IntegrityError: a missing or malformed field, or another protocol version.
    """
    record = message.content.config_records.get(protocol.JOB) if message.has_content() else None
    if record is None:
        raise IntegrityError("the message has no job", code="job-malformed")
    version, number = record.get("protocol"), record.get("round")
    federation, layout = record.get("federation"), record.get("layout")
    if version != protocol.PROTOCOL:
        raise IntegrityError(
            f"the job speaks another protocol than this site's {protocol.PROTOCOL}",
            remedy="install the same version of cloister at the server and at the site",
            code="job-protocol",
        )
    run = record.get("run")
    if not (type(number) is int and number >= 0 and isinstance(federation, str) and isinstance(layout, str)):
        raise IntegrityError("the job lacks a round, a federation or a layout", code="job-malformed")
    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise IntegrityError("the job does not name its run", code="job-malformed")
    if len(federation) > _MAX_FEDERATION:
        raise IntegrityError(
            f"the job's federation has {len(federation)} characters, more than {_MAX_FEDERATION}",
            code="job-malformed",
        )
    said = message.content.config_records.get(protocol.LEDGER)
    clip = record.get(protocol.CLIP)
    if clip is not None and not (isinstance(clip, float) and 0 < clip < math.inf):
        raise IntegrityError("the job's clip is not a positive finite number", code="job-malformed")
    return Job(
        run=run,
        round_number=number,
        federation=federation,
        layout_digest=layout,
        arrays=message.content.array_records.get(protocol.MODEL),
        told=ToSite() if said is None else ToSite.from_json(said.get(protocol.LEDGER)),
        afford=record.get(protocol.AFFORD) is True,
        clip=clip,
    )


def parsed(federation: str) -> dict[str, Any]:
    """Return a job's federation file as plain data.

    Raises:
        IntegrityError: (job-malformed) it is no JSON object.
    """
    try:
        found = json.loads(federation)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise IntegrityError("the job's federation is not JSON", code="job-malformed")
    return found
