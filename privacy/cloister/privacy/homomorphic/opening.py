"""One decryption, as the key authority does it: it believes nothing that the server says about the sites.

Formal guarantees. `Opening.finish` returns integers only if

1. the consortium's server signed the manifest and asked for this decryption;
2. the sum is of at least ``manifest.least`` different sites of the cohort, and of at least the authority's own floor, and each site signed
   its container for this very session: the server cannot have one site's ciphertext decrypted, nor a site counted twice;
3. it is the sum of these containers: the authority computed it, and the server's digest agrees;
4. the session was not decrypted before: it is recorded as decrypted before it is;
5. every ciphertext of the sum has at least `LEAST_BUDGET` bits of noise budget (``bfv``), or every number is within a quarter of an integer
   (``ckks``); every value is at most sites × ``largest``; and every slot after the last value is zero.

The fifth holds off both a site that sent nonsense and a library that failed: numbers that are not sums of values are not released.
What a site that lies can do is what it can do in every protocol: choose its own values up to ``largest``, or make the sum fail.

==========================================  ========================================================
case                                        outcome
==========================================  ========================================================
another scheme, an old key                  ``IntegrityError`` (ciphertext-key)
more values than the authority's limit      ``PolicyError`` (decryption-size)
below the manifest's or the own floor       ``PolicyError`` (decryption-floor)
one site twice, or of another cohort        ``IntegrityError`` (ciphertext-twice, ciphertext-cohort)
signed for another session, forged          ``IntegrityError`` (signature)
another sum than the server's digest        ``IntegrityError`` (decryption-sum)
the same session again                      ``IntegrityError`` (decryption-twice)
noise, a value out of range                 ``IntegrityError`` (decryption-range); the session is spent
==========================================  ========================================================
"""

from __future__ import annotations

import hashlib

import numpy as np

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.homomorphic.child import Decrypter
from cloister.privacy.homomorphic.container import Form, Residues
from cloister.privacy.homomorphic.lanes import unpacked
from cloister.privacy.homomorphic.parameters import LEAST_BUDGET
from cloister.privacy.homomorphic.sealed import Sealed
from cloister.privacy.homomorphic.summation import check_cohort, refuse_site, request_message
from cloister.privacy.homomorphic.vault import Vault
from cloister.privacy.identity import Consortium, Purpose, Role
from cloister.privacy.manifest import SignedManifest
from cloister.privacy.updates.rounding import Integers

__all__ = ["Opening"]


class Opening:
    """The sum of one session, from its containers.

    Args:
        vault: the key and the record.
        decrypter: of that key.
        consortium: who vouches for server and sites.
        least: the authority's own floor.
        most_values: the authority's own limit on the length of a sum.
        manifest: as the server signed it.
        cohort: the names that the server says were asked.
        digest: SHA-256 of the sum, as the server computed it.
        signature: the server's, over both.

    Raises:
        IntegrityError, PolicyError, SpecError: it will not be decrypted; nothing was recorded.
    """

    def __init__(
        self,
        *,
        vault: Vault,
        decrypter: Decrypter,
        consortium: Consortium,
        least: int,
        most_values: int,
        manifest: SignedManifest,
        cohort: tuple[str, ...],
        digest: bytes,
        signature: bytes,
    ) -> None:
        self.manifest = manifest.opened(consortium)
        server = consortium.member(manifest.certificate, role=Role.SERVER)
        server.check(Purpose.DECRYPTION, request_message(self.manifest, digest), signature)
        self.form = Form.of(self.manifest)
        if self.form.key != vault.key_id or self.form.parameters is not vault.parameters:
            raise IntegrityError(
                f"the session is under key {self.form.key[:16]}… ({self.manifest.scheme}), and the authority's is {vault.key_id[:16]}…",
                remedy="have server and sites fetch the key authority's present public key",
                code="ciphertext-key",
            )
        if self.manifest.least < least:
            raise _below(self.manifest.least, least)
        if self.manifest.size > most_values:
            raise PolicyError(
                f"a sum of {self.manifest.size} values is more than this key authority decrypts ({most_values})",
                remedy="raise --most-values of 'cloister authority run'",
                code="decryption-size",
            )
        self._cohort = check_cohort(self.manifest, cohort)
        vault.check_unspent(self.manifest)
        self._vault, self._decrypter, self._consortium = vault, decrypter, consortium
        self._digest = digest
        self._names: set[str] = set()
        parameters = self.form.parameters
        self._primes = np.asarray(parameters.primes, dtype=np.uint64)[None, :, None]
        # Zeros are not touched until a first container is added, so a request alone costs no memory.
        self._sum = np.zeros(
            (self.form.chunks, 2, len(parameters.primes), parameters.degree), dtype=np.uint64
        )

    def add(self, sealed: Sealed) -> None:
        """Add a site's container.

        Raises:
            IntegrityError: it does not hold; no sum with it will be decrypted.
        """
        name, ciphertexts = sealed.opened(self.form, self.manifest, self._consortium)
        if name not in self._cohort:
            raise refuse_site(name, "it is not of the session's cohort", "cohort")
        if name in self._names:
            raise refuse_site(name, "it is in the sum already", "twice")
        self._names.add(name)
        for number, one in enumerate(ciphertexts):
            self._sum[number] += one
            self._sum[number] %= self._primes

    def finish(self) -> Integers:
        """Record the session and return the (size,) sums, int64.

        Raises:
            PolicyError: (decryption-floor) the sum is of too few sites.
            IntegrityError: (decryption-sum, decryption-twice, decryption-failed, decryption-range) see the table.
            StorageError: it could not be recorded.
        """
        if len(self._names) < self.manifest.least:
            raise _below(len(self._names), self.manifest.least)
        if hashlib.sha256(self.form.write(self._sum)).digest() != self._digest:
            raise IntegrityError(
                "the sum of the sites' ciphertexts is not the one that the server asked for",
                remedy="find out what happened between server and authority; nothing was decrypted",
                code="decryption-sum",
            )
        self._vault.spend(self.manifest, sites=len(self._names))
        slots: Integers = np.empty((self.form.chunks, self.form.parameters.slots), dtype=np.int64)
        for row, one in zip(slots, self._sum, strict=True):
            row[:] = self._decrypted(one)
        values = unpacked(slots, lanes=self.form.lanes)
        most = len(self._names) * self.manifest.largest
        sums, rest = values[: self.form.size], values[self.form.size :]
        if max(int(sums.max()), -int(sums.min())) > most or bool(rest.any()):
            raise _nonsense("a number is no sum of values that the sites may send")
        return sums

    def _decrypted(self, residues: Residues) -> Integers:
        numbers, budget = self._decrypter.decrypt(residues)
        if self.form.parameters.scheme == "bfv":
            if budget < LEAST_BUDGET:
                raise _nonsense(f"{budget} bits of noise budget are left, and {LEAST_BUDGET} are needed")
            return numbers
        rounded = np.rint(numbers)
        near = np.abs(numbers - rounded) <= 0.25  # false for what is not finite
        if not bool(near.all()) or float(np.abs(rounded).max()) >= 1 << self.form.parameters.reach:
            raise _nonsense("a number is not within a quarter of an integer")
        integers: Integers = rounded.astype(np.int64)
        return integers


def _below(found: int, least: int) -> PolicyError:
    return PolicyError(
        f"a sum of {found} sites is asked for, and nothing below {least} is decrypted",
        remedy="ask more sites",
        code="decryption-floor",
    )


def _nonsense(why: str) -> IntegrityError:
    return IntegrityError(
        f"the sum was decrypted and not released: {why}",
        remedy="a site sent nonsense, or the key is another: run the round again with fewer sites to find out which",
        code="decryption-range",
    )
