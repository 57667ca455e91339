"""The sum that a decryption is asked for, counted again by whoever decrypts: it believes nothing that the server says about the sites.

Formal guarantees. `Recount.total` returns residues only if

1. the consortium's server signed the manifest and asked for this decryption;
2. the sum is of **every** site of the cohort, which the key is for, and of at least ``manifest.least``; and each site signed its container for this very
   session: the server cannot have one site's ciphertext decrypted, nor a site counted twice;
3. each of these sites committed to its container before it could see another's (`sealed`): none is made of the others'. That rests on the second: the
   signature of a site that follows the protocol pins the one set of commitments that it was told, and no set that was made after its ciphertext was
   seen has that signature. In a sum that leaves the site out, the others could sign another set, with a copy of its ciphertext in it;
4. it is the sum of these containers: they were added here, and the server's digest agrees.

==========================================  ========================================================
case                                        outcome
==========================================  ========================================================
below the manifest's floor, or not all      ``PolicyError`` (decryption-floor)
one site twice, or of another cohort        ``IntegrityError`` (ciphertext-twice, ciphertext-cohort)
signed for another session, forged          ``IntegrityError`` (signature)
not what a site committed to                ``IntegrityError`` (ciphertext-commitment)
another sum than the server's digest        ``IntegrityError`` (decryption-sum)
==========================================  ========================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.homomorphic.container import Ciphertexts, Form, Residues, limits
from cloister.privacy.homomorphic.lanes import Integers, unpacked
from cloister.privacy.homomorphic.sealed import Sealed, refuse_site
from cloister.privacy.homomorphic.summation import check_cohort, request_message
from cloister.privacy.identity import Consortium, Purpose, Role
from cloister.privacy.manifest import Manifest, SignedManifest

__all__ = ["Recount", "below", "nonsense", "sums_in"]


class Recount:
    """The sum of one session, from its containers.

    Args:
        consortium: who vouches for server and sites.
        manifest: as the server signed it.
        cohort: the names that the server says were asked.
        commitments: what each site committed to, as the server says; the sites' signatures say so too.
        digest: SHA-256 of the sum, as the server computed it.
        signature: the server's, over both.

    Raises:
        IntegrityError, SpecError: there is no such request.
    """

    def __init__(
        self,
        *,
        consortium: Consortium,
        manifest: SignedManifest,
        cohort: tuple[str, ...],
        commitments: Mapping[str, bytes],
        digest: bytes,
        signature: bytes,
    ) -> None:
        self.manifest = manifest.opened(consortium)
        server = consortium.member(manifest.certificate, role=Role.SERVER)
        server.check(Purpose.DECRYPTION, request_message(self.manifest, digest), signature)
        self.form = Form.of(self.manifest)
        self._cohort = check_cohort(self.manifest, cohort)
        if not commitments.keys() <= self._cohort:
            raise refuse_site("?", "one that committed is not of the session's cohort", "cohort")
        self._commitments = commitments
        self._consortium = consortium
        self._digest = digest
        self._names: set[str] = set()
        parameters = self.form.parameters
        # Zeros are not touched until a first container is added, so a request alone costs no memory.
        self._sum = np.zeros(
            (self.form.chunks, 2, len(parameters.primes), parameters.degree), dtype=np.uint64
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The sites in the sum so far, sorted."""
        return tuple(sorted(self._names))

    def add(self, sealed: Sealed) -> tuple[str, Ciphertexts]:
        """Add a site's container; return whose it is, and what it holds.

        Raises:
            IntegrityError: it does not hold; no sum with it will be decrypted.
        """
        name, ciphertexts = sealed.opened(self.form, self.manifest, self._commitments, self._consortium)
        if name in self._names:
            raise refuse_site(name, "it is in the sum already", "twice")
        self._names.add(name)
        primes = limits(self.form.parameters)
        for number, one in enumerate(ciphertexts):
            self._sum[number] += one
            self._sum[number] %= primes
        return name, ciphertexts

    def total(self) -> Residues:
        """Return the sum, (ciphertexts, 2, primes, N).

        Raises:
            PolicyError: (decryption-floor) it is of too few sites: all of the cohort must be in it.
            IntegrityError: (decryption-sum) it is another than the server asked for.
        """
        if len(self._names) < (least := max(self.manifest.least, len(self._cohort))):
            raise below(len(self._names), least)
        if hashlib.sha256(self.form.write(self._sum)).digest() != self._digest:
            raise IntegrityError(
                "the sum of the sites' ciphertexts is not the one that the server asked for",
                remedy="find out what happened at the server; nothing was decrypted",
                code="decryption-sum",
            )
        return self._sum


def sums_in(slots: Integers, *, form: Form, manifest: Manifest, sites: int) -> Integers:
    """Return the (size,) sums in decrypted ``slots``, (ciphertexts, slots) int64.

    Raises:
        IntegrityError: (decryption-range) a number is none that so many sites could have sent.
    """
    values = unpacked(slots, lanes=form.lanes)
    sums, rest = values[: form.size], values[form.size :]
    if max(int(sums.max()), -int(sums.min())) > sites * manifest.largest or bool(rest.any()):
        raise nonsense("a number is no sum of values that the sites may send")
    return sums


def below(found: int, least: int) -> PolicyError:
    """Return the refusal of a sum of too few sites."""
    return PolicyError(
        f"a sum of {found} sites is asked for, and nothing below {least} is decrypted",
        remedy="ask more sites",
        code="decryption-floor",
    )


def nonsense(why: str) -> IntegrityError:
    """Return the refusal of what came out of a decryption."""
    return IntegrityError(
        f"the sum was decrypted and not released: {why}",
        remedy="a site sent nonsense, or the key is another: run the round again with the same sites; if it fails again, begin a run with fewer to find out which",
        code="decryption-range",
    )
