"""A proof that a polynomial c is a·u + e with small u and e, which tells nothing else of them.

Why: the server adds partial decryptions up, and so sees a sum with its noise, unrounded. A ciphertext whose polynomial 1 is not well formed (with 2^130 added to it,
say), or a share of the key that is not, would carry the joint secret key, or the others' randomness, into that noise, above all flooding, while the sum stays exact.

How (Lyubashevsky 2009, with the monomials of Benhamouda et al. 2014, "Better zero-knowledge proofs for lattice encryption", as challenges, made non-interactive
after Fiat and Shamir). `REPEATS` times: t = a·y_u + y_e with y uniform below 2^23; a challenge i from 0 to 2N - 1, all of them a hash of what is proved and all
t; z = y + X^i·(u, e). The proof is the challenges and the z; it is begun anew where a z is so large that it would tell of (u, e).

Formal guarantees, with SHAKE-256 as a random oracle:

- Completeness: `proved` of small u and e `holds`.
- What it tells: the z that leave are uniform below 2^23 - 21 in magnitude, whatever u and e are.
- Soundness: who can make a proof that `holds` for c knows u' and e', with coefficients below 2^37, for which 2·c = a·u' + e', but with a probability of 2^-140 a try
  (challenges of 14 bits, ten times; 2 / (X^i - X^j) has coefficients of -1, 0 and 1). Of 2·c, not of c: so what is opened is twice the sum (`opening`).

==========================================  ==============================================
case                                        outcome
==========================================  ==============================================
another length, a coefficient too large     `holds` is false
of another session, site, polynomial        `holds` is false
u or e beyond what `small` and `noise` draw ``ValueError``: a fault of the caller
==========================================  ==============================================
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cloister.privacy.homomorphic.container import Residues
from cloister.privacy.homomorphic.frames import framed
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.threshold.ring import (
    Coefficients,
    Prepared,
    minus,
    monomials,
    plus,
    prepared,
    times,
    transformed,
    turned,
)

__all__ = ["REPEATS", "holds", "noise", "proved", "small"]

#: How many challenges a proof answers.
REPEATS = 10

_N = THRESHOLD.degree
_BOUND = 1 << 23
#: The largest magnitude of a coefficient of u or e.
_LARGEST = 21
_LABEL = b"cloister well-formed 1"
#: What was looked at last, by SHA-256 over all of it: in a simulation many sites look at the same proofs in one process.
_looked_at: dict[bytes, bool] = {}
_MOST_LOOKED_AT = 1 << 14
_lock = threading.Lock()


def small() -> Coefficients:
    """Draw a polynomial with coefficients of -1, 0 and 1, uniform, from the operating system."""
    found = np.zeros(0, dtype=np.uint8)
    while len(found) < _N:
        drawn = np.frombuffer(os.urandom(_N), dtype=np.uint8)
        found = np.concatenate([found, drawn[drawn < 255]])
    made: Coefficients = found[:_N].astype(np.int64) % 3 - 1
    return made


def noise() -> Coefficients:
    """Draw a polynomial with coefficients from -21 to 21, binomial with a standard deviation of 3.24, from the operating system."""
    coins = np.unpackbits(np.frombuffer(os.urandom(_N * 2 * _LARGEST // 8), dtype=np.uint8))
    heads = coins.reshape(_N, 2, _LARGEST).sum(2, dtype=np.int64)
    made: Coefficients = heads[:, 0] - heads[:, 1]
    return made


def proved(a: Prepared, c: Residues, u: Coefficients, e: Coefficients, about: Sequence[bytes]) -> bytes:
    """Return a proof that c, (primes, N), is a·u + e, of `THRESHOLD.proof_bytes`.

    Args:
        a: the session's common polynomial.
        c: what is proved of.
        u: (N,) its secret factor: of `small`, or minus that.
        e: (N,) its noise: of `noise`.
        about: the session, the site, and which polynomial of its it is; ``a`` must follow from it.
    """
    secret = np.stack([u, e])
    if int(np.abs(secret).max()) > _LARGEST:
        raise ValueError("u or e is too large to be proved of")
    while True:
        raw = np.frombuffer(os.urandom(3 * REPEATS * 2 * _N), dtype=np.uint8)
        y = _read(raw)
        made = [plus(times(transformed(one), a), transformed(other)) for one, other in y]
        challenges = _challenges(c, made, about)
        z = y + np.stack([turned(secret, int(challenge)) for challenge in challenges])
        if int(np.abs(z).max()) < _BOUND - _LARGEST:
            return challenges.astype("<u2").tobytes() + _written(z)


def holds(a: Prepared, c: Residues, proof: bytes, about: Sequence[bytes]) -> bool:
    """Return whether a proof, of which nothing is trusted, is one; the arguments are those of `proved`."""
    if len(proof) != THRESHOLD.proof_bytes:
        return False
    key = hashlib.sha256(framed([*about, a.values.tobytes(), c.tobytes(), proof])).digest()
    with _lock:
        found = _looked_at.get(key)
    if found is None:
        found = _verified(a, c, proof, about)
        with _lock:
            _looked_at[key] = found
            while len(_looked_at) > _MOST_LOOKED_AT:
                del _looked_at[next(iter(_looked_at))]
    return found


def _verified(a: Prepared, c: Residues, proof: bytes, about: Sequence[bytes]) -> bool:
    challenges = np.frombuffer(proof, dtype="<u2", count=REPEATS).astype(np.int64)
    z = _read(np.frombuffer(proof, dtype=np.uint8, offset=2 * REPEATS))
    if int(challenges.max()) >= 2 * _N or int(np.abs(z).max()) >= _BOUND - _LARGEST:
        return False
    turns, factor = monomials(challenges), prepared(c)
    made = [
        minus(plus(times(transformed(one), a), transformed(other)), times(turn, factor))
        for (one, other), turn in zip(z, turns, strict=True)
    ]
    return bool(np.array_equal(_challenges(c, made, about), challenges))


def _challenges(c: Residues, made: Sequence[Residues], about: Sequence[bytes]) -> npt.NDArray[np.int64]:
    whole = hashlib.shake_256(framed([_LABEL, *about]))
    for residues in (c, *made):
        whole.update(residues.astype("<u8").tobytes())
    return np.frombuffer(whole.digest(2 * REPEATS), dtype="<u2").astype(np.int64) & (2 * _N - 1)


def _read(raw: npt.NDArray[np.uint8]) -> Coefficients:
    """Return the coefficients, (REPEATS, 2, N), in three bytes each."""
    wide = np.zeros((REPEATS * 2 * _N, 4), dtype=np.uint8)
    wide[:, :3] = raw.reshape(-1, 3)
    return (wide.view("<u4").astype(np.int64) - _BOUND).reshape(REPEATS, 2, _N)


def _written(z: Coefficients) -> bytes:
    shifted = np.ascontiguousarray((z + _BOUND).astype("<u4"))
    return shifted.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
