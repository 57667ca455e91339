"""Which lines of a transcript are of which secure session.

A session begins where the server sends a manifest, and every message of a step after that, to or from one of its sites, belongs to it, until a manifest
goes to that site again. Groups have sessions side by side, each with sites of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TypeVar

from cloister.core import protocol
from cloister.core.errors import CloisterError, IntegrityError
from cloister.privacy.homomorphic.container import Form
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.manifest import Manifest, SignedManifest
from cloister.server.audit.transcript.reading import Asked, Entry, Received, Record, Start
from cloister.server.protected import CONTAINER, MASKED

__all__ = ["Session", "sessions_of"]

_T = TypeVar("_T")


@dataclass(kw_only=True)
class Session:
    """What a transcript holds of one session.

    Attributes:
        manifest: what the session is, as the server wrote it; its signature is still to be checked.
        signed: the same as it was sent.
        names: whom the server asked.
        time: when.
        replies: in the order in which they came.
        named: the sets of sites that the server named as those in the sum, each once: survivors, or whom it asked for ciphertexts.
        closed: the number of the line in which it first did so; 0: it never did.
        keys: the public keys that the server handed out, each once; none under masks.
        holding: what its sites sent to make a joint key, before there was a manifest, by site; empty where the key is not theirs.
        opens: of a joint key, the digests of the sums that the server asked its holders to open, each once.
        together: the digests over all commitments that it sent with the sets; empty where it did not send the same one to all.
    """

    manifest: Manifest
    signed: SignedManifest
    names: tuple[str, ...]
    time: datetime
    replies: list[Received] = field(default_factory=list)
    named: list[tuple[str, ...]] = field(default_factory=list)
    closed: int = 0
    keys: list[bytes] = field(default_factory=list)
    holding: dict[str, list[Received]] = field(default_factory=dict)
    opens: list[bytes] = field(default_factory=list)
    together: list[bytes] = field(default_factory=list)

    @property
    def title(self) -> str:
        """How a reader finds it: round and kind."""
        group = f", group {self.manifest.group}" if self.manifest.group else ""
        return f"round {self.manifest.round_number} ({self.manifest.kind}{group})"

    def of(self, step: str) -> Iterator[Received]:
        """Yield the replies to one step that came whole."""
        return (one for one in self.replies if one.step == step and one.error is None)

    def vectors(self) -> Iterator[tuple[str, Entry]]:
        """Yield site and entry of each protected vector that the manifest allows for."""
        for reply in self.of(self.vector_step):
            for entry in reply.entries:
                if self.allows(entry):
                    yield reply.site, entry

    def allows(self, entry: Entry) -> bool:
        """Return whether a field is a vector of the manifest's scheme and length."""
        wanted = (protocol.UPDATE, protocol.SUM, *self._vector)
        return (entry.record, entry.name, entry.type, entry.shape) == wanted

    def allows_partial(self, entry: Entry) -> bool:
        """Return whether a field is a site's partial decryptions, of the manifest's length."""
        if self.manifest.scheme != THRESHOLD.scheme:
            return False
        try:
            length = Form.of(self.manifest).chunks * THRESHOLD.chunk_bytes // 2
        except CloisterError:
            return False
        wanted = (protocol.UPDATE, protocol.SUM, "array:uint8", (length,))
        return (entry.record, entry.name, entry.type, entry.shape) == wanted

    @property
    def vector_step(self) -> str:
        """The step whose replies bring the protected vectors."""
        return protocol.ADD if self.manifest.scheme == "masked" else protocol.SEAL

    @cached_property
    def _vector(self) -> tuple[str, tuple[int, ...]]:
        """Type and shape of a protected vector."""
        manifest = self.manifest
        if manifest.scheme == "masked":
            return MASKED, (manifest.size,)
        try:
            return CONTAINER + manifest.scheme, (Form.of(manifest).length,)
        except CloisterError:
            return CONTAINER + manifest.scheme, ()

    @property
    def survivors(self) -> tuple[str, ...]:
        """The set that the server named first; empty where it named none."""
        return self.named[0] if self.named else ()


def sessions_of(record: Record) -> tuple[list[Session], list[Received]]:
    """Return the sessions, and the replies that belong to none.

    Raises:
        IntegrityError: (manifest) the server sent a manifest that is none.
    """
    return _split(record.lines)


def _split(lines: Iterable[Start | Asked | Received]) -> tuple[list[Session], list[Received]]:
    sessions: list[Session] = []
    outside: list[Received] = []
    current: dict[str, Session] = {}
    holding: dict[str, list[Received]] = {}
    for line in lines:
        if isinstance(line, Asked):
            if line.step == protocol.HOLD:
                holding = {}
            before = len(sessions)
            _open(sessions, current, line)
            if len(sessions) > before and sessions[-1].manifest.scheme == THRESHOLD.scheme:
                sessions[-1].holding, holding = holding, {}
        elif isinstance(line, Received) and line.step in (protocol.HOLD, protocol.SHOW):
            holding.setdefault(line.site, []).append(line)
            outside.append(line)
        elif isinstance(line, Received):
            one = current.get(line.site, sessions[-1] if sessions else None)
            (one.replies if line.step and one is not None else outside).append(line)
    return sessions, outside


def _open(sessions: list[Session], current: dict[str, Session], asked: Asked) -> None:
    """Take what the server told of a session: a manifest begins one, names close its sum; keys and digests come with them."""
    of = {id(found): found for site in asked.sites if (found := current.get(site)) is not None}
    if "manifest" in asked.said:
        signed = SignedManifest.from_fields(asked.said)
        if not any(one.signed == signed for one in of.values()):
            sessions.append(
                Session(
                    manifest=Manifest.decode(signed.encoded),
                    signed=signed,
                    names=asked.sites,
                    time=asked.time,
                )
            )
            current |= dict.fromkeys(asked.sites, sessions[-1])
        _once(current[asked.sites[0]].keys, asked.said.get(protocol.KEY))
    elif asked.step == protocol.OPEN and sessions:
        for one in of.values() or [sessions[-1]]:
            _once(one.opens, asked.said.get("digest", b""))
    elif asked.step in (protocol.CONFIRM, protocol.SEAL) and sessions:
        for one in of.values() or [sessions[-1]]:
            one.closed = one.closed or asked.seq
            if asked.step == protocol.SEAL:
                _once(one.named, asked.sites)
                _once(one.together, asked.said.get(protocol.TOGETHER, b""))
            else:
                _once(one.named, _texts(asked.said.get("names")))


def _once(known: list[_T], new: _T | None) -> None:
    if new is not None and new not in known:
        known.append(new)


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, Sequence) and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise IntegrityError(
        "the transcript does not hold: it does not say whom the server named as survivors, the same to all",
        remedy="restore the transcript as the server wrote it",
        code="transcript",
    )
