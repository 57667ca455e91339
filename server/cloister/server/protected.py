"""Protected vectors as numbers of 32 bits that are uniform where the protection holds: what their facts are counted of.

- A vector under masks is one part, as it is.
- A container of ciphertexts has two parts for each public prime p, from all residues r modulo p: *high*, floor(r 2^32 / p), and *low*, r modulo
  2^32. If r is uniform below p, either is uniform up to a factor of 1 + 2^32 / p a value: 2^-8 (``bfv``, in 1 value of 18,000), 2^-22 (``ckks``) or 2^-28
  (``threshold-bfv``), which no test of a run can see. Polynomial 1 goes first: ``bfv`` ciphertexts made with the same randomness under one key differ there by noise.

==============================================  ======================
case                                            outcome
==============================================  ======================
another type                                    no part
a container that is not whole                   no part
a residue above its prime                       its low 32 bits count, its high part wraps
==============================================  ======================
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cloister.core.errors import SpecError
from cloister.privacy.homomorphic.container import HEADER, residues_in
from cloister.privacy.homomorphic.parameters import SCHEMES, Parameters, parameters_of
from cloister.privacy.updates.modular import Residues

__all__ = ["CONTAINER", "MASKED", "parts_of"]

#: The types of a field that holds a protected vector, as a transcript writes them: under masks, and before the scheme's name.
MASKED, CONTAINER = "array:uint32", "array:cloister."


def parts_of(form: str, data: bytes, *, most: int | None = None) -> dict[str, Residues]:
    """Return the parts of a protected vector by name; the part of a vector under masks is named ``""``.

    Args:
        form: the field's type.
        data: its bytes.
        most: how many ciphertexts are looked at, spread evenly, where there are more.
    """
    if form == MASKED:
        vector: Residues = np.frombuffer(data, dtype="<u4").astype(np.uint32, copy=False)
        return {"": vector}
    parameters = _parameters(form)
    if parameters is None:
        return {}
    chunks, rest = divmod(len(data) - HEADER, parameters.chunk_bytes + parameters.proof_bytes)
    if chunks < 1 or rest:
        return {}
    looked = range(chunks) if most is None or chunks <= most else [n * chunks // most for n in range(most)]
    found: dict[str, list[Residues]] = {}
    for number in looked:
        for name, part in _halves(data, parameters, number):
            found.setdefault(name, []).append(part)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _parameters(form: str) -> Parameters | None:
    try:
        return parameters_of(form.removeprefix(CONTAINER), SCHEMES) if form.startswith(CONTAINER) else None
    except SpecError:
        return None


def _halves(data: bytes, parameters: Parameters, number: int) -> Iterator[tuple[str, Residues]]:
    one = residues_in(data, parameters, number)
    for place, prime in enumerate(parameters.primes):
        residues = np.concatenate([one[1, place], one[0, place]])
        title = f"residues of prime {place + 1} of {len(parameters.primes)}"
        yield f"{title}, high", _scaled(residues, prime)
        yield f"{title}, low", residues.astype(np.uint32)


def _scaled(residues: np.ndarray[tuple[int, ...], np.dtype[np.uint64]], prime: int) -> Residues:
    """Return floor(r 2^32 / prime), exact for primes below 2^60: in eight steps of 4 bits."""
    rest, found = residues.astype(np.uint64), np.zeros(residues.shape, dtype=np.uint64)
    for _ in range(8):
        digit, rest = np.divmod(rest << np.uint64(4), np.uint64(prime))
        found = (found << np.uint64(4)) + digit
    return found.astype(np.uint32)
