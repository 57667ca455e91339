"""A small consortium, its sessions, and what each party does in them."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.privacy.homomorphic import (
    KeyAuthority,
    PublicCodec,
    PublicKey,
    ServerSum,
    SumRequest,
    commitment,
    seal,
)
from cloister.privacy.identity import Consortium, ConsortiumAuthority, Identity, Role
from cloister.privacy.manifest import Manifest, cohort_digest

Integers = npt.NDArray[np.int64]


class Parties:
    """Sites, a server and a key authority's identity under one consortium."""

    def __init__(self, count: int = 4) -> None:
        self.authority = ConsortiumAuthority("tests", Ed25519PrivateKey.generate())
        self.consortium: Consortium = self.authority.consortium()
        self.names = [f"site-{number}" for number in range(count)]
        self.sites = {name: self.member(name, Role.SITE) for name in self.names}
        self.server = self.member("server", Role.SERVER)
        self.keeper = self.member("keeper", Role.AUTHORITY)

    def fewer(self, count: int) -> "Parties":
        """Return the first ``count`` sites, of the same consortium."""
        made = Parties.__new__(Parties)
        made.__dict__.update(self.__dict__, names=self.names[:count])
        return made

    def member(self, name: str, role: Role) -> Identity:
        return self.authority.identity(name, role, Ed25519PrivateKey.generate())

    def manifest(self, key: str, **changes: object) -> Manifest:
        bits = int(str(changes.get("modulus_bits", 26)))
        count = len(self.names)
        return Manifest(
            **{
                "run": "run",
                "round_number": 1,
                "serial": 1,
                "kind": "train",
                "scheme": "bfv",
                "federation": "1" * 64,
                "layout": "2" * 64,
                "model": "3" * 64,
                "cohort": cohort_digest(self.names),
                "cohort_size": count,
                "least": 3,
                "threshold": 3,
                "degree": count - 1,
                "size": 9000,
                "modulus_bits": bits,
                "largest": ((1 << (bits - 1)) - 1) // count,
                "key": key,
                **changes,
            }  # type: ignore[arg-type]
        )

    def session(self, keeper: KeyAuthority, **changes: object) -> "Session":
        run, serial = str(changes.get("run", "run")), int(str(changes.get("serial", 1)))
        scheme = str(changes.get("scheme", "bfv"))
        cohort = str(changes.get("cohort", cohort_digest(self.names)))
        public = keeper.public(run, serial, cohort, scheme)  # type: ignore[arg-type]
        key = PublicKey.read(public, self.consortium).key_id
        manifest = self.manifest(key, **changes)
        codec = PublicCodec(public, self.consortium)
        sums = ServerSum(manifest.signed(self.server), self.names, self.consortium)
        return Session(self, manifest, codec, sums)


@dataclass
class Session:
    """One session, in which every site follows the protocol unless it is told otherwise."""

    parties: Parties
    manifest: Manifest
    codec: PublicCodec
    sums: ServerSum
    values: dict[str, Integers] = field(default_factory=dict)
    containers: dict[str, bytes] = field(default_factory=dict)

    def encrypt(self, *, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        largest = self.manifest.largest
        for name in self.parties.names:
            drawn = generator.integers(-largest, largest, self.manifest.size, endpoint=True)
            drawn[:2] = largest, -largest
            self.put(name, drawn)

    def put(self, name: str, values: Integers) -> None:
        self.values[name] = values
        self.containers[name] = self.codec.encrypt(values, self.manifest)

    def commit(self) -> bytes:
        for name, container in self.containers.items():
            self.sums.commit(name, commitment(container))
        return self.sums.agree()

    def reveal(self, *names: str) -> None:
        together = self.sums.agree()
        for name in names or self.parties.names:
            identity = self.parties.sites[name]
            self.sums.take(name, seal(identity, self.manifest, self.containers[name], together))

    def request(self, *names: str) -> SumRequest:
        """Encrypt, commit, reveal and ask, all in order."""
        if not self.containers:
            self.encrypt()
        self.commit()
        self.reveal(*names)
        return self.sums.total(self.parties.server)

    def plain(self, *names: str) -> Integers:
        total: Integers = np.sum([self.values[name] for name in names or self.values], axis=0)
        return total
