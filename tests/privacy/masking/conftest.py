"""What the tests of masking share: a consortium, sessions of any number of sites, and vectors to sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.privacy.identity import Consortium, ConsortiumAuthority, Identity, Role
from cloister.privacy.manifest import Floors, Manifest, SignedManifest, cohort_digest
from cloister.privacy.masking import parameters
from cloister.privacy.masking.rehearsal import Rehearsal, Step
from cloister.privacy.updates.modular import Residues


class World:
    """A consortium with as many sites as are asked for, and its server."""

    def __init__(self) -> None:
        self.authority = ConsortiumAuthority("Test", Ed25519PrivateKey.generate())
        self.consortium: Consortium = self.authority.consortium()
        self.coordinator = self.authority.identity("server", Role.SERVER, Ed25519PrivateKey.generate())
        self._sites: list[Identity] = []

    def sites(self, count: int) -> list[Identity]:
        while len(self._sites) < count:
            name = f"site-{len(self._sites):04d}"
            self._sites.append(self.authority.identity(name, Role.SITE, Ed25519PrivateKey.generate()))
        return self._sites[:count]

    def manifest(self, count: int, **changes: Any) -> Manifest:
        degree, threshold = parameters(count)
        plain = Manifest(
            run="run",
            round_number=1,
            serial=7,
            kind="train",
            federation="0" * 64,
            layout="1" * 64,
            model="2" * 64,
            cohort=cohort_digest(site.name for site in self.sites(count)),
            cohort_size=count,
            least=3,
            threshold=threshold,
            degree=degree,
            size=5,
            largest=1 << 15,
        )
        return replace(plain, **changes)

    def signed(self, count: int, **changes: Any) -> SignedManifest:
        return self.manifest(count, **changes).signed(self.coordinator)

    def rehearsal(
        self,
        count: int,
        *,
        leaves: Mapping[str, Step] | None = None,
        floors: Floors | None = None,
        stored: bool = True,
        **changes: Any,
    ) -> Rehearsal:
        return Rehearsal(
            self.signed(count, **changes),
            self.consortium,
            self.sites(count),
            leaves=leaves,
            floors=floors,
            stored=stored,
        )

    def vectors(self, count: int, size: int = 5, seed: int = 0) -> dict[str, Residues]:
        drawn = np.random.default_rng(seed).integers(0, 1 << 32, (count, size), dtype=np.uint32)
        return {site.name: row.copy() for site, row in zip(self.sites(count), drawn, strict=True)}


@pytest.fixture(scope="session")
def world() -> World:
    return World()
