"""What the server knows of the sites' ledgers: the newest head of each, signed by it and by another site, shown again next time.

One JSON file, written whole after each round, that outlives runs: a ledger that was put back to an older copy between two runs is
found by the site itself when the server shows what it saw, and by the server when the head that comes back is not newer.

==========================================  ==================================================
case                                        outcome
==========================================  ==================================================
a head that is older than the last          refused (ledger-rollback)
another head with the number of the last    refused (ledger-rollback)
a head of another key, data set or site     refused (ledger-other)
a signature of something it was not sent    left out
==========================================  ==================================================
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole
from cloister.privacy.ledger import Head, sign_witness
from cloister.privacy.ledger.telling import MOST, FromSite, ToSite, Witness

__all__ = ["Witnesses"]

#: How many other sites sign a site's head each round.
_PEERS = 1
_SERVER = "server"


class Witnesses:
    """The newest heads of all sites' ledgers, and who signed them.

    Args:
        path: the file that keeps them.
        key: the server's, which signs them.
        durable: whether the file must survive a power cut.

    Raises:
        IntegrityError: the file cannot be read.
    """

    def __init__(self, path: Path, key: Ed25519PrivateKey, *, durable: bool = True) -> None:
        self._path = path
        self._key = key
        self._durable = durable
        self._heads: dict[str, Head] = {}
        self._shown: dict[str, Head] = {}
        self._signed: dict[str, list[Witness]] = {}
        self._told: dict[str, list[Witness]] = {}
        self._newest: dict[str, FromSite] = {}
        for site, (head, signed) in self._stored().items():
            self._heads[site], self._signed[site] = head, signed

    def tell(self, site: str, cohort: list[str]) -> ToSite:
        """Return what ``site`` is told: what others saw of its ledger, and the head of the next site of the cohort to sign."""
        own = self._heads.get(site)
        others = [name for name in cohort if name in self._heads and name != site]
        turn = sum(name < site for name in others)
        peers = [*others[turn:], *others[:turn]][:_PEERS]
        self._shown |= {name: self._heads[name] for name in peers}
        self._told[site] = self._signed.get(site, [])[:MOST]
        return ToSite(
            heads=() if own is None else (own,),
            witnesses=tuple(self._told[site]),
            peers=tuple(self._heads[name] for name in peers),
        )

    def take(self, site: str, told: FromSite) -> str | None:
        """Take what a site told with its update; return why it cannot be so, or ``None``."""
        before, head = self._heads.get(site), told.head
        if head.site != site:
            return "ledger-other: the head is of another site's ledger"
        if before is not None and (head.public_key, head.dataset) != (before.public_key, before.dataset):
            return "ledger-other: the head is of another ledger than before"
        if before is not None and (
            head.seq < before.seq or (head.seq == before.seq and head.entry_hash != before.entry_hash)
        ):
            return f"ledger-rollback: entry {head.seq}, after entry {before.seq} was seen"
        self._heads[site], self._newest[site] = head, told
        written = self._told.pop(site, [])
        mine = Witness(
            by=_SERVER,
            public_key=self._key.public_key().public_bytes_raw(),
            signature=sign_witness(head, self._key),
            head=head,
        )
        self._signed[site] = [*(one for one in self._signed.get(site, []) if one not in written), mine]
        for one in told.signed:
            own = one.by == site and one.public_key.hex() == head.public_key
            if own and one.head == self._shown.get(one.head.site):
                self._signed.setdefault(one.head.site, []).append(one)
        return None

    def newest(self, site: str) -> FromSite | None:
        """Return what a site told last in this run."""
        return self._newest.get(site)

    def save(self) -> None:
        """Keep what is known; what another run saw meanwhile, and is newer, stays.

        Raises:
            StorageError: it could not be written.
            IntegrityError: the file was damaged meanwhile.
        """
        with self._path.with_name(self._path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for site, (head, signed) in self._stored().items():
                if site not in self._heads or head.seq > self._heads[site].seq:
                    self._heads[site], self._signed[site] = head, signed
            self._write()

    def _write(self) -> None:
        data = {
            site: {"head": head.as_dict(), "signed": [one.as_dict() for one in self._signed.get(site, [])]}
            for site, head in self._heads.items()
        }
        write_whole(self._path, json.dumps(data, indent=1, sort_keys=True), durable=self._durable)

    def _stored(self) -> dict[str, tuple[Head, list[Witness]]]:
        try:
            data = json.loads(self._path.read_text())
            return {
                str(site): (
                    Head.from_dict(entry["head"]),
                    [Witness.from_dict(one) for one in entry["signed"]],
                )
                for site, entry in data.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, IntegrityError):
            raise IntegrityError(
                f"what the server saw of the sites' ledgers cannot be read: '{self._path}'",
                remedy="restore that file; without it a ledger that was put back to an older copy is not noticed",
                code="ledger-telling",
            ) from None
