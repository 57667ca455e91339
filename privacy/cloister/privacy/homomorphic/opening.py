"""One decryption, as the key authority does it: it believes nothing that the server says about the sites.

Formal guarantees. `Opening.finish` returns integers only if

1. the consortium's server signed the manifest and asked for this decryption;
2. the sum is of at least ``manifest.least`` different sites of the cohort, and of at least the authority's own floor, and each site signed
   its container for this very session: the server cannot have one site's ciphertext decrypted, nor a site counted twice;
3. each of these sites committed to its container before it could see another's (`sealed`): none is made of the others';
4. it is the sum of these containers: the authority computed it, and the server's digest agrees;
5. the session was not decrypted before: it is recorded as decrypted, and its key's file is gone, before it is;
6. no other sum of the round or of the model was opened, in whatever session, over other sites, and no later round (`rounds`): the
   server cannot subtract two sums of one round. This too is recorded before anything is decrypted;
7. every ciphertext of the sum has at least `LEAST_BUDGET` bits of noise budget (``bfv``), or every number is within a quarter of an integer
   (``ckks``); every value is at most sites × ``largest``; and every value after the last is zero.

So with an honest authority, the server and any sites on its side learn the sum of the other sites and nothing else that those encrypted.
The seventh holds off a library that failed, and a site that sent what no encryption makes: BFV is not secure against chosen ciphertexts,
and an unchecked answer would be numbers of the secret key. Half of all numbers in a lane are out of range, so k of them pass
with a probability of 2^-k at most, and a key answers once. What a site that lies can do is what it can do in every protocol: choose
its own values up to ``largest``, or make the sum fail.

==========================================  ========================================================
case                                        outcome
==========================================  ========================================================
another scheme, another session's key       ``IntegrityError`` (ciphertext-key)
more values than the authority's limit      ``PolicyError`` (decryption-size)
below the manifest's or the own floor       ``PolicyError`` (decryption-floor)
one site twice, or of another cohort        ``IntegrityError`` (ciphertext-twice, ciphertext-cohort)
signed for another session, forged          ``IntegrityError`` (signature)
not what a site committed to                ``IntegrityError`` (ciphertext-commitment)
another sum than the server's digest        ``IntegrityError`` (decryption-sum)
the same session again                      ``IntegrityError`` (decryption-twice)
its round or model again over other sites   ``IntegrityError`` (decryption-round)
its round again, with another model         ``IntegrityError`` (decryption-round)
an earlier round than one opened before     ``IntegrityError`` (decryption-round)
noise, a value out of range                 ``IntegrityError`` (decryption-range); the session is spent
==========================================  ========================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.homomorphic.child import Decrypter
from cloister.privacy.homomorphic.container import Form
from cloister.privacy.homomorphic.lanes import Integers, unpacked
from cloister.privacy.homomorphic.parameters import LEAST_BUDGET
from cloister.privacy.homomorphic.sealed import Sealed, refuse_site
from cloister.privacy.homomorphic.summation import check_cohort, request_message
from cloister.privacy.homomorphic.vault import Vault
from cloister.privacy.identity import Consortium, Purpose, Role
from cloister.privacy.manifest import SignedManifest

__all__ = ["Opening"]


class Opening:
    """The sum of one session, from its containers.

    Args:
        vault: the keys and the record.
        decrypter: the child that decrypts.
        consortium: who vouches for server and sites.
        least: the authority's own floor.
        most_values: the authority's own limit on the length of a sum.
        manifest: as the server signed it.
        cohort: the names that the server says were asked.
        commitments: what each site committed to, as the server says; the sites' signatures say so too.
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
        commitments: Mapping[str, bytes],
        digest: bytes,
        signature: bytes,
    ) -> None:
        self.manifest = manifest.opened(consortium)
        server = consortium.member(manifest.certificate, role=Role.SERVER)
        server.check(Purpose.DECRYPTION, request_message(self.manifest, digest), signature)
        self.form = Form.of(self.manifest)
        self._key = vault.find(self.manifest)
        if self.manifest.least < least:
            raise _below(self.manifest.least, least)
        if self.manifest.size > most_values:
            raise PolicyError(
                f"a sum of {self.manifest.size} values is more than this key authority decrypts ({most_values})",
                remedy="raise --most-values of 'cloister authority run'",
                code="decryption-size",
            )
        self._cohort = check_cohort(self.manifest, cohort)
        if not commitments.keys() <= self._cohort:
            raise refuse_site("?", "one that committed is not of the session's cohort", "cohort")
        self._commitments = commitments
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
        name, ciphertexts = sealed.opened(self.form, self.manifest, self._commitments, self._consortium)
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
            IntegrityError: (decryption-sum, decryption-twice, decryption-round, decryption-failed, decryption-range) see the table.
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
        self._vault.spend(self.manifest, names=self._names)
        slots: Integers = np.empty((self.form.chunks, self.form.parameters.slots), dtype=np.int64)
        with closing(self._decrypter.decrypt(self._key, self._sum)) as answers:
            for row, (numbers, budget) in zip(slots, answers, strict=True):
                row[:] = self._believed(numbers, budget)
        values = unpacked(slots, lanes=self.form.lanes)
        most = len(self._names) * self.manifest.largest
        sums, rest = values[: self.form.size], values[self.form.size :]
        if max(int(sums.max()), -int(sums.min())) > most or bool(rest.any()):
            raise _nonsense("a number is no sum of values that the sites may send")
        return sums

    def _believed(self, numbers: npt.NDArray[Any], budget: int) -> Integers:
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
        remedy="a site sent nonsense, or the key is another: run the round again with the same sites; if it fails again, begin a run with fewer to find out which",
        code="decryption-range",
    )
