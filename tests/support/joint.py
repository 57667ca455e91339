"""A session under a joint key, in which every site keeps a book of its own and follows the protocol unless it is told otherwise."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import RecordDict

from cloister.client import holding
from cloister.client.book import ContextShelf, Credentials, SessionBook
from cloister.core import protocol
from cloister.core.errors import SpecError
from cloister.privacy.homomorphic import ServerSum, SumRequest, commitment, seal
from cloister.privacy.manifest import Floors, Manifest
from cloister.privacy.threshold import (
    KeyShare,
    OpenRequest,
    PublicShares,
    Recounted,
    ShareCommitments,
    agreed_shares,
    engine,
    fused,
)
from parties import Parties

RUN = "run"


def has_openfhe() -> bool:
    try:
        engine().check()
    except SpecError:
        return False
    return True


needs_openfhe = pytest.mark.skipif(
    not has_openfhe(), reason="OpenFHE cannot be used here: scripts/openfhe makes an environment for it"
)


@dataclass
class JointSession:
    parties: Parties
    serial: int = 1
    changes: dict[str, object] = field(default_factory=dict)
    books: dict[str, SessionBook] = field(default_factory=dict)
    values: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    containers: dict[str, bytes] = field(default_factory=dict)
    commitments: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.states = {name: RecordDict() for name in self.parties.sites}
        for name in self.parties.sites:
            self.books.setdefault(name, self._book(name, self.states[name]))

    def _book(self, name: str, state: RecordDict) -> SessionBook:
        own = Credentials(
            identity=self.parties.sites[name], consortium=self.parties.consortium, floors=Floors()
        )
        return SessionBook(ContextShelf(state), own)

    def copied(self) -> "JointSession":
        """Return the session as it stands, with books of its own."""
        books = {name: self._book(name, RecordDict(dict(state))) for name, state in self.states.items()}
        return replace(self, books=books, values=dict(self.values), containers=dict(self.containers))

    def hold(self, name: str, serial: int | None = None) -> bytes:
        with self.books[name].turn() as turn:
            made = holding.hold({protocol.SERIAL: self.serial if serial is None else serial}, turn, RUN)
        digest = made[protocol.COMMITMENT]
        assert isinstance(digest, bytes)
        return digest

    def show(self, name: str, commitments: Mapping[str, bytes]) -> KeyShare:
        names = tuple(sorted(commitments))
        told = ShareCommitments(names=names, digests=tuple(commitments[one] for one in names))
        with self.books[name].turn() as turn:
            return KeyShare.from_fields(holding.show(told.to_fields(), turn, RUN))

    def shares(self) -> dict[str, KeyShare]:
        """Hold and show at every site."""
        self.commitments = {name: self.hold(name) for name in self.parties.names}
        return {name: self.show(name, self.commitments) for name in self.parties.names}

    def manifest(self, **changes: object) -> Manifest:
        key = agreed_shares(self.commitments, run=RUN, serial=self.serial)
        wanted = {"scheme": "threshold-bfv", "serial": self.serial, "size": 300, **self.changes, **changes}
        return self.parties.manifest(key, **wanted)

    def add(self, name: str, manifest: Manifest, shares: Mapping[str, KeyShare], *, seed: int = 0) -> bytes:
        """Have a site draw values, encrypt them, and commit."""
        with self.books[name].turn() as turn:
            turn.begin(manifest)
        codec = holding.joint_codec(manifest, PublicShares.of(shares).to_fields(), self.books[name])
        generator = np.random.default_rng([seed, self.parties.names.index(name)])
        drawn = generator.integers(-manifest.largest, manifest.largest, manifest.size, endpoint=True)
        drawn[:2] = manifest.largest, -manifest.largest
        self.values[name], self.containers[name] = drawn, codec.encrypt(drawn, manifest)
        return commitment(self.containers[name])

    def request(self, manifest: Manifest, shares: Mapping[str, KeyShare], *names: str) -> SumRequest:
        """Have ``names`` add and seal, and return what the server asks to open."""
        sums = ServerSum(manifest.signed(self.parties.server), self.parties.names, self.parties.consortium)
        for name in names or self.parties.names:
            sums.commit(name, self.add(name, manifest, shares))
        together = sums.agree()
        for name in names or self.parties.names:
            sums.take(name, seal(self.parties.sites[name], manifest, self.containers[name], together))
        return sums.total(self.parties.server)

    def open(self, name: str, request: SumRequest) -> bytes:
        fields = OpenRequest.of(request).to_fields()
        with self.books[name].turn() as turn:
            return holding.opened(holding.counted(fields, turn), turn)

    def fuse(self, request: SumRequest, names: Iterable[str]) -> npt.NDArray[np.int64]:
        found = {name: self.open(name, request) for name in names}
        return fused(Recounted.of(request, self.parties.consortium), found, engine())

    def plain(self, *names: str) -> npt.NDArray[np.int64]:
        total: npt.NDArray[np.int64] = np.sum([self.values[name] for name in names or self.values], axis=0)
        return total
