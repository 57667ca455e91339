"""One decryption, as the key authority does it: it believes nothing that the server says about the sites.

Formal guarantees. `Opening.finish` returns integers only if

1. to 4. what it decrypts is what `recount` lets pass: the sum of at least ``manifest.least`` sites' own containers, as the authority computed it
   itself, which the consortium's server asked for; and of at least the authority's own floor;
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

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import PolicyError
from cloister.privacy.homomorphic.child import Decrypter
from cloister.privacy.homomorphic.lanes import Integers
from cloister.privacy.homomorphic.parameters import LEAST_BUDGET
from cloister.privacy.homomorphic.recount import Recount, below, nonsense, sums_in
from cloister.privacy.homomorphic.sealed import Sealed
from cloister.privacy.homomorphic.vault import Vault
from cloister.privacy.identity import Consortium
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
        manifest: as for `Recount`, like all that follow.
        cohort: see there.
        commitments: see there.
        digest: see there.
        signature: see there.

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
        opened = manifest.opened(consortium)
        if opened.size > most_values:  # before anything is made that is as large
            raise PolicyError(
                f"a sum of {opened.size} values is more than this key authority decrypts ({most_values})",
                remedy="raise --most-values of 'cloister authority run'",
                code="decryption-size",
            )
        self._recount = Recount(
            consortium=consortium,
            manifest=manifest,
            cohort=cohort,
            commitments=commitments,
            digest=digest,
            signature=signature,
        )
        self.manifest, self.form = self._recount.manifest, self._recount.form
        self._key = vault.find(self.manifest)
        if self.manifest.least < least:
            raise below(self.manifest.least, least)
        self._vault, self._decrypter = vault, decrypter

    def add(self, sealed: Sealed) -> None:
        """Add a site's container.

        Raises:
            IntegrityError: it does not hold; no sum with it will be decrypted.
        """
        self._recount.add(sealed)

    def finish(self) -> Integers:
        """Record the session and return the (size,) sums, int64.

        Raises:
            PolicyError: (decryption-floor) the sum is of too few sites.
            IntegrityError: (decryption-sum, decryption-twice, decryption-round, decryption-failed, decryption-range) see the table.
            StorageError: it could not be recorded.
        """
        total, names = self._recount.total(), self._recount.names
        self._vault.spend(self.manifest, names=names)
        slots: Integers = np.empty((self.form.chunks, self.form.parameters.slots), dtype=np.int64)
        with closing(self._decrypter.decrypt(self._key, total)) as answers:
            for row, (numbers, budget) in zip(slots, answers, strict=True):
                row[:] = self._believed(numbers, budget)
        return sums_in(slots, form=self.form, manifest=self.manifest, sites=len(names))

    def _believed(self, numbers: npt.NDArray[Any], budget: int) -> Integers:
        if self.form.parameters.scheme == "bfv":
            if budget < LEAST_BUDGET:
                raise nonsense(f"{budget} bits of noise budget are left, and {LEAST_BUDGET} are needed")
            return numbers
        rounded = np.rint(numbers)
        near = np.abs(numbers - rounded) <= 0.25  # false for what is not finite
        if not bool(near.all()) or float(np.abs(rounded).max()) >= 1 << self.form.parameters.reach:
            raise nonsense("a number is not within a quarter of an integer")
        integers: Integers = rounded.astype(np.int64)
        return integers
