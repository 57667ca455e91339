"""Homomorphic sums: Cloister's BFV and its CKKS against NVFlare's CKKS setting in TenSEAL, per million parameters, in one run.

The baseline is what NVFlare 2.x encrypts updates with: CKKS, N = 8192, coefficient moduli [60, 40, 40], scale 2^40, one key pair for all sites,
TenSEAL's own serialisation. Each contestant encrypts and serialises the same vector, reads and adds it, and decrypts, in turn, on one
core. Cloister's "add" is what its server does (check every residue, add); its "decrypt" is what its authority's process does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measuring import Noise, hand_in, machine, median, options, ratio, say, table, target_table

from cloister.privacy.homomorphic import BFV, CKKS, Ciphertexts, Form, Parameters
from cloister.privacy.homomorphic.lanes import packed, unpacked
from cloister.privacy.homomorphic.vectors import Vectors, new_key

#: At least so many times faster to encrypt and serialise, at most such a share of the bytes.
FASTER, SMALLER = 1.7, 0.2
SLOTS = 4096


class Baseline:
    """NVFlare's setting, as its encryptor, aggregator and decryptor use it: one CKKS vector for each 4096 numbers."""

    name = "NVFlare's CKKS"

    def __init__(self) -> None:
        import tenseal

        self._ts = tenseal
        context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 40]
        )
        context.global_scale = 2**40
        self._secret = context
        self._public = tenseal.context_from(
            context.serialize(
                save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
            )
        )

    def encrypt(self, values: np.ndarray[Any, Any]) -> list[bytes]:
        return [
            self._ts.ckks_vector(self._public, values[at : at + SLOTS].tolist()).serialize()
            for at in range(0, values.size, SLOTS)
        ]

    def add(self, one: list[bytes], other: list[bytes]) -> list[Any]:
        load = self._ts.ckks_vector_from
        return [load(self._public, a) + load(self._public, b) for a, b in zip(one, other, strict=True)]

    def decrypt(self, total: list[Any]) -> np.ndarray[Any, Any]:
        key = self._secret.secret_key()
        return np.rint(np.concatenate([np.asarray(one.decrypt(key)) for one in total])).astype(np.int64)

    def size(self, made: list[bytes]) -> int:
        return sum(len(one) for one in made)


class Cloister:
    """A scheme of `cloister.privacy.homomorphic`."""

    def __init__(self, parameters: Parameters, count: int) -> None:
        self.name = f"cloister {parameters.scheme}"
        secret, public = new_key(parameters)
        self._secret, self._public = Vectors(parameters, secret), Vectors(parameters, public)
        self._form = Form(parameters=parameters, key="0" * 64, size=count, lanes=parameters.lanes(26))

    def encrypt(self, values: np.ndarray[Any, Any]) -> bytes:
        form = self._form
        slots = packed(values, lanes=form.lanes, slots=form.parameters.slots)
        return form.write(self._public.encrypt(row) for row in slots)

    def add(self, one: bytes, other: bytes) -> list[Any]:
        primes = np.asarray(self._form.parameters.primes, dtype=np.uint64)[None, :, None]
        pair = [Ciphertexts.read(container, self._form) for container in (one, other)]
        return [(a + b) % primes for a, b in zip(*pair, strict=True)]

    def decrypt(self, total: list[Any]) -> np.ndarray[Any, Any]:
        slots = np.stack([np.rint(self._secret.decrypt(one)[0]).astype(np.int64) for one in total])
        return unpacked(slots, lanes=self._form.lanes)

    def size(self, made: bytes) -> int:
        return len(made)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    answer = call()
    return time.process_time() - began, answer


def main() -> None:
    parser = options(__doc__, repetitions=5)
    parser.add_argument("--values", type=int, default=1 << 20, help="numbers in an update (1048576)")
    given = parser.parse_args()
    noise = Noise(given.patience)
    contestants: list[Any] = [Baseline(), Cloister(BFV, given.values), Cloister(CKKS, given.values)]
    found: dict[str, dict[str, list[float]]] = {
        one.name: {"encrypt": [], "add": [], "decrypt": [], "bytes": []} for one in contestants
    }
    scale = 1e6 / given.values
    for repetition in range(given.repetitions):
        generator = np.random.default_rng(given.seed + repetition)
        values = generator.integers(-(1 << 20), 1 << 20, given.values)
        for one in contestants:
            noise.sample()
            say(f"repetition {repetition + 1} of {given.repetitions}: {one.name} ...", end=" ")
            encrypting, made = timed(lambda one=one, values=values: one.encrypt(values))
            adding, total = timed(lambda one=one, made=made: one.add(made, made))
            decrypting, plain = timed(lambda one=one, total=total: one.decrypt(total))
            if not np.array_equal(plain[: given.values], 2 * values):
                raise SystemExit(f"{one.name}: the sum is wrong")
            kept = found[one.name]
            for what, seconds in (("encrypt", encrypting), ("add", adding / 2), ("decrypt", decrypting)):
                kept[what].append(1000 * seconds * scale)
            kept["bytes"].append(one.size(made) / given.values)
            say(f"{kept['encrypt'][-1]:.0f} ms to encrypt a million")
    base, bfv = (found[one.name] for one in contestants[:2])
    faster, smaller = ratio(base["encrypt"], bfv["encrypt"]), median(bfv["bytes"]) / median(base["bytes"])
    targets = [
        {
            "what": "times faster to encrypt and serialise (bfv)",
            "target": f"at least {FASTER}",
            "found": faster.median,
            "met": faster.median >= FASTER,
        },
        {
            "what": "share of the bytes (bfv)",
            "target": f"at most {SMALLER}",
            "found": smaller,
            "met": smaller <= SMALLER,
        },
    ]
    rows = [
        [
            name,
            *(f"{median(kept[what]):.0f}" for what in ("encrypt", "add", "decrypt")),
            f"{median(kept['bytes']):.1f}",
        ]
        for name, kept in found.items()
    ]
    rows.append(
        [
            "baseline over bfv",
            *(str(ratio(base[what], bfv[what])) for what in ("encrypt", "add", "decrypt")),
            f"{1 / smaller:.2f}",
        ]
    )
    answer = {
        "benchmark": "homomorphic",
        "machine": machine(),
        "seeds": [given.seed + repetition for repetition in range(given.repetitions)],
        "values": given.values,
        "found": found,
        "targets": targets,
        **noise.report(),
    }
    text = "\n\n".join(
        [
            table(
                [
                    "CPU ms a million values",
                    "encrypt + serialise",
                    "load + add, a client",
                    "decrypt",
                    "bytes a value",
                ],
                rows,
            ),
            target_table(targets),
        ]
    )
    hand_in(given, answer, text, missed=[str(target["what"]) for target in targets if not target["met"]])


if __name__ == "__main__":
    main()
