"""What a site remembers of secure sessions, read and written in turns: one turn at a time, and kept before anything is answered.

Formal guarantees:

- Of two turns of one book one sees what the other left, in whatever process they run: two messages that arrive together do not both find the
  session as it was before either.
- What a turn changed is kept when the turn ends, before its answer can leave. A turn that fails changes nothing.
- Under a `cloister.client.run_files.FileShelf` that holds over restarts, and over whatever the transport forgets or repeats. Under a `ContextShelf` (a simulation without
  ledgers) it holds as long as the engine delivers one message to a site at a time and keeps its context, as `LocalGrid` does for an honest server.

==========================================  =======================================================
case                                        outcome
==========================================  =======================================================
a session not newer than the last           ``IntegrityError`` (manifest-replayed)
an earlier round than one that was opened   ``IntegrityError`` (round-unmasked)
a round, or a model, that was opened for    ``IntegrityError`` (round-unmasked): the difference of the
other sites before                          two sums could show one site's share
the same round and model, once more, for    opened: both sums, and their difference, are of as many sites
all but as many as the floor of those       as the site demands of any sum
nothing under way                           ``IntegrityError`` (session-none)
a run that is over                          ``IntegrityError`` (run-over): `cloister.client.run_files`
a file that cannot be read                  ``IntegrityError`` (session-store): nothing is answered
==========================================  =======================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import ConfigRecord, RecordDict

from cloister.client.run_files import packed, unpacked
from cloister.core.errors import IntegrityError
from cloister.privacy.identity import Consortium, Identity
from cloister.privacy.manifest import Floors, Manifest, cohort_digest
from cloister.privacy.masking import SiteSession

__all__ = ["ContextShelf", "Credentials", "SessionBook", "Shelf", "Turn"]

_RECORD = "secure.book"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Who a site is to its consortium, whom it trusts, and what it demands.

    Attributes:
        identity: its own key and certificate.
        consortium: whose authority it trusts.
        floors: what it demands of every session.
    """

    identity: Identity
    consortium: Consortium
    floors: Floors


class Shelf(Protocol):
    """Where a book stands."""

    #: How many opened sums of each kind are remembered.
    most: int

    def turn(self) -> AbstractContextManager[dict[str, Any]]:
        """Lend what is written to one holder; keep what it became when the holder is done without an error."""
        ...


class ContextShelf:
    """In the state of a Flower context."""

    most = 4

    def __init__(self, state: RecordDict) -> None:
        self._state = state

    @contextmanager
    def turn(self) -> Iterator[dict[str, Any]]:
        """Lend the record. As one text: Flower checks every entry of a record, at every message."""
        stored = self._state.config_records.get(_RECORD)
        record = {} if stored is None else unpacked(str(stored["text"]))
        yield record
        self._state[_RECORD] = ConfigRecord({"text": packed(record)})


class SessionBook:
    """A site's book, opened in turns.

    Args:
        shelf: where it stands.
        credentials: whose it is.
    """

    def __init__(self, shelf: Shelf, credentials: Credentials) -> None:
        self._shelf = shelf
        self.credentials = credentials

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """Open the book; what is written in it is kept when the turn ends."""
        with self._shelf.turn() as record:
            yield Turn(record, self.credentials, self._shelf.most)


class Turn:
    """A book that is open."""

    def __init__(self, record: dict[str, Any], credentials: Credentials, most: int) -> None:
        self._record = record
        self._most = most
        self.credentials = credentials

    @property
    def newest(self) -> int:
        """Serial of the newest session that this site took part in; 0 for none."""
        return int(self._record.get("serial", 0))

    def session(self) -> SiteSession:
        """Return the session under way.

        Raises:
            IntegrityError: (session-none) there is none.
        """
        stored = self._record.get("session")
        if stored is None:
            raise _no_session()
        own = self.credentials
        return SiteSession.from_fields(own.identity, own.consortium, stored)

    def keep(self, session: SiteSession) -> None:
        """Keep ``session``; it takes the place of another."""
        self._record["session"] = session.to_fields()
        self._record["serial"] = max(self.newest, session.manifest.serial)

    def begin(self, manifest: Manifest) -> None:
        """Take note of a session that is not masked, and check that it is newer than all before.

        Raises:
            IntegrityError: (manifest-replayed) it is not.
        """
        self.check_newer(manifest.serial)
        self._record["serial"] = manifest.serial

    def check_newer(self, serial: int) -> None:
        """Check that a session is newer than all before.

        Raises:
            IntegrityError: (manifest-replayed) it is not.
        """
        if serial <= self.newest:
            raise IntegrityError(
                f"the session has serial {serial}, and this site has seen {self.newest}",
                remedy="let the server begin a new session",
                code="manifest-replayed",
            )

    def keep_ciphertext(self, manifest: Manifest, container: bytes) -> None:
        """Keep what this site committed to."""
        self._record["manifest"], self._record["container"] = manifest.encoded, container

    def take_ciphertext(self) -> tuple[Manifest, bytes]:
        """Return what this site committed to, once.

        Raises:
            IntegrityError: (session-none) there is none, or it was taken.
        """
        encoded, container = self._record.pop("manifest", None), self._record.pop("container", None)
        if not isinstance(encoded, bytes) or not isinstance(container, bytes):
            raise _no_session()
        return Manifest.decode(encoded), container

    def keep_share(self, share: dict[str, Any]) -> None:
        """Keep what this site holds of a joint key; it takes the place of another."""
        self._record["share"] = share

    def share(self) -> dict[str, Any]:
        """Return what this site holds of a joint key.

        Raises:
            IntegrityError: (session-none) nothing.
        """
        found = self._record.get("share")
        if not isinstance(found, dict):
            raise _no_session()
        return found

    def drop_share(self) -> None:
        """Destroy it."""
        self._record.pop("share", None)

    def check_round(self, manifest: Manifest) -> None:
        """Check that ``manifest`` is not of an earlier round than one that was opened, nor of the same with another model.

        Raises:
            IntegrityError: (round-unmasked) it is.
        """
        for number, model, _ in self._opened(manifest):
            if manifest.round_number < number or (
                manifest.round_number == number and manifest.model != model
            ):
                raise _opened_before(manifest)

    def check_sites(self, manifest: Manifest, sites: Sequence[str]) -> None:
        """Check that no sum of the same round, or of the same model, was opened for other sites, but for what `_leaves_enough` allows.

        Args:
            manifest: of the session.
            sites: who is in its sum.

        Raises:
            IntegrityError: (round-unmasked) one was.
        """
        digest = cohort_digest(sites)
        before = [
            one
            for one in self._opened(manifest)
            if one[0] == manifest.round_number or one[1] == manifest.model
        ]
        if before and digest not in {one[2] for one in before} and not self._leaves_enough(manifest, sites):
            raise _opened_before(manifest)
        self._record["agreed"] = list(sites)

    def opened(self, manifest: Manifest) -> None:
        """Remember that this site helps to open the sum that it agreed to last; after this, before it does."""
        sites = [str(name) for name in self._record.get("agreed", [])]
        self.check_sites(manifest, sites)
        entry = [manifest.round_number, manifest.model, cohort_digest(sites)]
        entries = [one for one in self._record.get(f"opened.{manifest.kind}", []) if one != entry]
        self._record[f"opened.{manifest.kind}"] = [*entries, entry][-self._most :]
        self._record[f"members.{manifest.kind}"] = sites

    def _leaves_enough(self, manifest: Manifest, sites: Sequence[str]) -> bool:
        """Whether a second sum over ``sites`` may be opened: over some of those of the first, of the same round and model, without enough others.

        So a round whose sum could not be opened, since a site had shared garbage, can be tried again without that site: the others that are left out
        with it keep the difference of the two sums a sum of as many as the floor.
        """
        of = [
            one
            for one in self._opened(manifest)
            if one[0] == manifest.round_number or one[1] == manifest.model
        ]
        first = {str(name) for name in self._record.get(f"members.{manifest.kind}", [])}
        return (
            [one[:2] for one in of] == [(manifest.round_number, manifest.model)]
            and of[0][2] == cohort_digest(first)
            and set(sites) < first
            and len(first) - len(set(sites)) >= self.credentials.floors.least
        )

    def _opened(self, manifest: Manifest) -> list[tuple[int, str, str]]:
        return [
            (int(number), str(model), str(sites))
            for number, model, sites in self._record.get(f"opened.{manifest.kind}", [])
        ]


def _no_session() -> IntegrityError:
    return IntegrityError(
        "there is no secure session under way at this site",
        remedy="let the server begin a new session",
        code="session-none",
    )


def _opened_before(manifest: Manifest) -> IntegrityError:
    return IntegrityError(
        f"this site helped to open a sum of round {manifest.round_number} ({manifest.kind}), of its model or of a later round before; "
        "another sum of it could show one site's share",
        remedy="go on with the next round",
        code="round-unmasked",
    )
