"""A site's part in opening a sum, and the server's: partial decryptions of all holders, added up.

Formal guarantees:

- `partials` answers only for the sum that `cloister.privacy.homomorphic.recount` lets pass: of all sites' own containers, at least ``manifest.least``,
  each fixed before its maker could see another's, counted again here, each ciphertext with a proof that it is well formed; for the very session whose share it holds;
  and, if its caller keeps what `Held` says of the share, once. So the server and any sites on its side, short of all holders, learn that sum and nothing
  else that the others encrypted, whatever they send.
- Twice the sum is opened, since proofs are of twice a polynomial. A partial decryption is 2·c1·s and noise that OpenFHE draws below 2^119, fresh each time.
  What it floods, of n sites: the noise of honest ciphertexts and shares, below 2^40 for n = 1000, and what a hostile one can add with u' and e' below 2^37: (u', e') times
  the others' secrets and noise, below n·2^56. For n = 1000 that is 2^-53 of the flooding a coefficient. Over the 8192·chunks coefficients of a session, of which
  a message of 1 GiB bounds n·chunks, what a sum tells beside itself is a statistical distance of about 2^-41 for each honest holder. That the flooding is that large is
  measured in `tests/privacy/threshold`.
- `fused` is the sum exactly where no holder lied: n·2^119 is below Δ/2 = 2^151 for every n that a manifest admits. A holder that lies makes it
  nonsense, which is refused where a number is out of range; as with every site that lies, within the range nobody can tell.

==========================================  =======================================================
case                                        outcome
==========================================  =======================================================
another session than the share's            ``IntegrityError`` (ciphertext-key)
a request that does not hold                as of `Recount`
a partial of another length or residues     ``IntegrityError`` (partial-length, partial-residue)
the sum is out of range                     ``IntegrityError`` (decryption-range)
==========================================  =======================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.container import Form, Residues, limits
from cloister.privacy.homomorphic.lanes import Integers
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.homomorphic.public_key import key_refused
from cloister.privacy.homomorphic.recount import Recount, nonsense, sums_in
from cloister.privacy.homomorphic.summation import SumRequest
from cloister.privacy.identity import Consortium
from cloister.privacy.manifest import Manifest
from cloister.privacy.threshold.engine import Engine
from cloister.privacy.threshold.ring import plus, transformed
from cloister.privacy.threshold.shares import check_formed

__all__ = ["Held", "Recounted", "fused", "partials"]


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a site keeps of its share from the moment that it encrypts until it opens the sum: it is gone before a partial decryption leaves.

    Attributes:
        manifest: `Manifest.digest` of the session.
        secret: the secret half, `NewShare.secret`; never printed.
    """

    manifest: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recounted:
    """A request that was counted again.

    Attributes:
        manifest: of the session.
        names: the sites in the sum, sorted.
        total: (ciphertexts, 2, primes, N), the sum.
        form: of its containers.
    """

    manifest: Manifest
    names: tuple[str, ...]
    total: Residues
    form: Form

    @classmethod
    def of(cls, request: SumRequest, consortium: Consortium, *, formed: bool = True) -> Recounted:
        """Count a request again.

        Args:
            request: as it came.
            consortium: who vouches for server and sites.
            formed: whether to check the proofs too; the server, which holds no share, has no need to.

        Raises:
            IntegrityError, PolicyError, SpecError: as of `Recount`.
            IntegrityError: (ciphertext-proof) a ciphertext comes without a proof that it is well formed.
        """
        recount = Recount(
            consortium=consortium,
            manifest=request.manifest,
            cohort=request.cohort,
            commitments=request.commitments,
            digest=request.digest,
            signature=request.signature,
        )
        manifest = recount.manifest
        added = [recount.add(sealed) for sealed in request.sealed]
        total = recount.total()  # first, as it costs less than the proofs
        for name, ciphertexts in added if formed else ():
            check_formed(ciphertexts, run=manifest.run, serial=manifest.serial, name=name)
        return cls(manifest=recount.manifest, names=recount.names, total=total, form=recount.form)


def partials(sum_: Recounted, held: Held, own: Engine) -> bytes:
    """Return a holder's partial decryption of each ciphertext of the sum.

    Args:
        sum_: what is to be opened.
        held: the share, which the caller has destroyed where it was kept, before this leaves.
        own: OpenFHE.

    Raises:
        IntegrityError: (ciphertext-key, threshold-failed) it is another session's, or OpenFHE failed.
    """
    if sum_.manifest.digest != held.manifest:
        raise key_refused("the server asks to open another session than this site's share is of")
    s = transformed(np.frombuffer(held.secret, dtype=np.int8).astype(np.int64))
    return b"".join(own.partial(s, plus(one[1], one[1])).astype("<u8").tobytes() for one in sum_.total)


def fused(sum_: Recounted, found: Mapping[str, bytes], own: Engine) -> Integers:
    """Return the (size,) sums, int64.

    Args:
        sum_: what was to be opened.
        found: what `partials` returned at each holder, by name; nothing of it is trusted.
        own: OpenFHE.

    Raises:
        IntegrityError: (partial-length, partial-residue, decryption-range, threshold-failed) see the table.
    """
    primes = limits(THRESHOLD)
    slots = np.empty((sum_.form.chunks, THRESHOLD.slots), dtype=np.int64)
    shape = (sum_.form.chunks, len(THRESHOLD.primes), THRESHOLD.degree)
    total = plus(sum_.total[:, 0], sum_.total[:, 0])
    for name, raw in found.items():
        total += _partial(name, raw, shape)
        total %= primes
    for row, one in zip(slots, total, strict=True):
        row[:] = own.opened(one)
    if bool((slots % 2).any()):
        raise nonsense("twice the sum came out odd")
    return sums_in(slots // 2, form=sum_.form, manifest=sum_.manifest, sites=len(sum_.names))


def _partial(name: str, raw: bytes, shape: tuple[int, ...]) -> Residues:
    if len(raw) != 8 * int(np.prod(shape)):
        raise _refused(name, f"it has {len(raw)} bytes", "length")
    made: Residues = np.frombuffer(raw, dtype="<u8").astype(np.uint64).reshape(shape)
    if not bool((made < limits(THRESHOLD)).all()):
        raise _refused(name, "a number is not below its modulus", "residue")
    return made


def _refused(name: str, why: str, part: str) -> IntegrityError:
    return IntegrityError(
        f"the partial decryption of site '{name}' was refused: {why}",
        remedy="use the same version of cloister at every site; this round has no sum",
        code=f"partial-{part}",
    )
