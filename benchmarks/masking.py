"""What masking an update costs: Cloister's masks beside those of Flower's SecAgg+, the keys and shares of a session, and whole sessions.

All runs in one process and is timed in processor time of its one thread. Flower's side is the arithmetic of `secaggplus_mod`'s third stage, function by function
(weight, quantisation, own and pairwise masks, modulus); Cloister's side is the same work: weight, the check against the reach, fixed-point integers modulo 2^32, own and pairwise masks. Contestants
take turns in an order that is shuffled anew; a ratio is the median over the repetitions of (Flower / Cloister next to it). Keys are agreed on beforehand on both
sides. A session's memory is what its calls allocate (tracemalloc), beside the vector that the caller brings.
"""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from measuring import Noise, hand_in, machine, median, options, ratio, say, table, target_table
from numpy.typing import NDArray

from cloister.core.randomness import SystemRandomness
from cloister.privacy.identity import Purpose
from cloister.privacy.manifest import Floors
from cloister.privacy.masking import ServerSession, SiteSession, keys, parameters
from cloister.privacy.masking.fields import Fields
from cloister.privacy.masking.rehearsal import Stage
from cloister.privacy.masking.shamir import combine, split
from cloister.privacy.masking.stream import BLOCK, add_streams
from cloister.privacy.noise import cipher_generator
from cloister.privacy.sums import Reals, SumCode

#: Times faster than Flower, and the share of its bytes.
FASTER, BYTES = 5.0, 0.5
CLIP, WEIGHT = 8.0, 0.5
#: Flower's defaults.
TARGET_RANGE, MOD_RANGE = 1 << 22, 1 << 32

R = TypeVar("R")


def main() -> None:
    parser = options(__doc__, repetitions=15)
    parser.add_argument("--size", type=int, default=1_000_000, help="parameters (1000000)")
    parser.add_argument("--neighbours", nargs="*", type=int, default=[10, 50], help="(10 50)")
    parser.add_argument("--sites", type=int, default=100, help="sites of the whole session (100)")
    parser.add_argument(
        "--large", type=int, default=0, help="also count the bytes of a session of so many sites (0: no)"
    )
    given = parser.parse_args()
    noise = Noise(given.patience)
    masks, targets = [], []
    for neighbours in given.neighbours:
        say(f"masks with {neighbours} neighbours")
        noise.sample()
        one = masking(given.size, neighbours, given.repetitions, given.seed)
        masks.append(one)
        what = f"{neighbours} neighbours: Flower's {{}} / Cloister's"
        targets.append(target(what.format("time"), one["ratio"]["median"], FASTER))
        targets.append(
            target(what.format("bytes"), one["bytes"]["flower"] / one["bytes"]["cloister"], 1 / BYTES)
        )
    say("keys and shares")
    noise.sample()
    parts = pieces(given.repetitions)
    say(f"a session of {given.sites} sites")
    noise.sample()
    sessions = [session(given.sites, given.size)]
    if given.large:
        say(f"a session of {given.large} sites")
        sessions.append(session(given.large, 1))
    answer = {
        "benchmark": "masking",
        "size": given.size,
        "machine": machine(),
        "noise": noise.report(),
        "masks": masks,
        "pieces": parts,
        "sessions": sessions,
        "targets": targets,
    }
    hand_in(given, answer, text(answer), missed=[t["what"] for t in targets if not t["met"]])


def masking(size: int, neighbours: int, repetitions: int, seed: int) -> dict[str, Any]:
    """Return the seconds that one site needs, in turn, and the ratios."""
    update = np.random.default_rng(seed).normal(0, 0.01, size).astype(np.float32)
    seeds = [os.urandom(32) for _ in range(neighbours + 1)]
    contestants: dict[str, Callable[[], NDArray[Any]]] = {
        "flower": lambda: flower(update, seeds),
        "cloister": lambda: cloister(update, seeds, neighbours + 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    sizes: dict[str, int] = {}
    shuffle = random.Random(seed)  # noqa: S311 - an order, not a secret
    for repetition in range(-1, repetitions):
        for name in shuffle.sample(list(contestants), len(contestants)):
            began = time.process_time()
            made = contestants[name]()
            spent = time.process_time() - began
            sizes[name] = made.nbytes
            if repetition >= 0:
                seconds[name].append(spent)
    found = ratio(seconds["flower"], seconds["cloister"])
    return {"neighbours": neighbours, "seconds": seconds, "bytes": sizes, "ratio": vars(found)}


def flower(update: NDArray[np.float32], seeds: list[bytes]) -> NDArray[Any]:
    """What `_collect_masked_vectors` of flwr.client.mod.secure_aggregation.secaggplus_mod does once keys are agreed on."""
    q_ratio = round(WEIGHT * TARGET_RANGE)
    parameters_ = quantize(parameters_multiply([update], q_ratio / TARGET_RANGE), CLIP, TARGET_RANGE)
    values = factor_combine(q_ratio, parameters_)
    shapes: list[tuple[int, ...]] = [array.shape for array in values]
    values = parameters_addition(values, pseudo_rand_gen(seeds[0], MOD_RANGE, shapes))
    for number, seed in enumerate(seeds[1:]):
        mask = pseudo_rand_gen(seed, MOD_RANGE, shapes)
        values = (parameters_addition if number % 2 else parameters_subtraction)(values, mask)
    return parameters_mod(values, MOD_RANGE)[1]


def cloister(update: NDArray[np.float32], seeds: list[bytes], sites: int) -> NDArray[Any]:
    """The same of a site of Cloister: weight, integers, residues, masks."""
    code = SumCode(parts=(Reals(name="update", size=update.size, reach=CLIP),), most=sites, bits=32)
    rounding = cipher_generator(SystemRandomness(), "sum-rounding")
    values = code.residues({"update": update * np.float32(WEIGHT)}, rounding)
    add_streams(values, [(seed, 1 if number % 2 else -1) for number, seed in enumerate(seeds)])
    return values


def pieces(repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of a session's other work, 99 neighbours where it is not said."""
    stage = Stage()
    private, secret, digest = keys.private_key(os.urandom(32)), os.urandom(32), bytes(32)
    publics = [keys.public_of(os.urandom(32)) for _ in range(99)]
    identity = stage.sites(1)[0]
    signature = identity.sign(Purpose.ADVERT, digest)
    sparse, complete = parameters(100), (99, 67)
    shares = dict(zip(range(1, 101), split(secret, threshold=complete[1], points=range(1, 101)), strict=True))
    few = {point: shares[point] for point in list(shares)[: complete[1]]}
    zeros, block = bytes(BLOCK), bytearray(BLOCK + 16)
    ciphers = {
        "ChaCha20": Cipher(algorithms.ChaCha20(secret, bytes(16)), None).encryptor(),
        "AES-256-CTR (the one used)": Cipher(algorithms.AES(secret), modes.CTR(bytes(16))).encryptor(),
    }
    work: dict[str, Callable[[], object]] = {
        f"4 MiB of key stream: {name}": lambda one=one: [  # type: ignore[misc]
            one.update_into(zeros, block) for _ in range((1 << 22) // BLOCK)
        ]
        for name, one in ciphers.items()
    }
    work |= {
        "99 X25519 agreements and HKDF": lambda: [
            keys.pair_key(private, public, manifest=digest, low="a", high="b") for public in publics
        ],
        "99 Ed25519 checks": lambda: [
            identity.member.check(Purpose.ADVERT, digest, signature)  # type: ignore[func-returns-value]
            for _ in range(99)
        ],
        f"Shamir: share two secrets, {sparse[1]} of {sparse[0]}": lambda: [
            split(secret, threshold=sparse[1], points=range(1, sparse[0] + 1)) for _ in range(2)
        ],
        f"Shamir: share two secrets, {complete[1]} of 100": lambda: [
            split(secret, threshold=complete[1], points=range(1, 101)) for _ in range(2)
        ],
        f"Shamir: rebuild 100 secrets from {complete[1]} shares": lambda: [combine(few) for _ in range(100)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repetitions):
        for name, one in work.items():
            began = time.process_time()
            one()
            seconds[name].append(time.process_time() - began)
    return seconds


class Meter:
    """Adds up what the calls of one party take: processor time, and memory in a second run of the session.

    Args:
        memory: whether to count memory; time is then not to be believed.
    """

    def __init__(self, *, memory: bool) -> None:
        self._memory = memory
        self.seconds = 0.0
        self.peak = self._kept = 0

    def __call__(self, call: Callable[[], R]) -> R:
        """Return what ``call`` returns, counted."""
        before = tracemalloc.get_traced_memory()[0] if self._memory else 0
        if self._memory:
            tracemalloc.reset_peak()
        began = time.process_time()
        result = call()
        self.seconds += time.process_time() - began
        if self._memory:
            after, peak = tracemalloc.get_traced_memory()
            self.peak = max(self.peak, self._kept + peak - before)
            self._kept += after - before
        return result


def session(sites: int, size: int) -> dict[str, Any]:
    """Return what a session costs the server and one site that stays: time, memory, and bytes each way."""
    found = one_session(sites, size, memory=False)
    if size > 1:
        found["memory"] = one_session(sites, size, memory=True)["memory"]
    return found


def one_session(sites: int, size: int, *, memory: bool) -> dict[str, Any]:
    """Run one session; a tenth of the sites drop after they have shared, which is what costs the server most."""
    stage = Stage()
    signed, names = stage.signed(sites, size=size), [one.name for one in stage.sites(sites)]
    stays = names[: sites - sites // 10]
    meters = {"server": Meter(memory=memory), "site": Meter(memory=memory)}
    others = Meter(memory=False)
    up, down = {}, {}
    begun = {
        one.name: SiteSession.begin(one, stage.consortium, signed, floors=Floors(), newest=0)
        for one in stage.sites(sites)
    }
    if memory:
        tracemalloc.start()
    server_, site = meters["server"], dict.fromkeys(names, others) | {names[0]: meters["site"]}
    server = server_(lambda: ServerSession(stage.manifest(sites, size=size), signed, stage.consortium, names))
    for name in names:
        advert = site[name](begun[name].advert)
        need(server_(lambda: server.take_advert(name, advert)))  # noqa: B023
        up["advert"] = nbytes(advert.to_fields())
    server_(server.end_adverts)
    for name in names:
        roster = server_(lambda: server.roster_for(name))  # noqa: B023
        sealed = site[name](lambda: begun[name].share(roster))  # noqa: B023
        need(server_(lambda: server.take_shares(name, sealed)))  # noqa: B023
        down["roster"], up["shares"] = nbytes(roster.to_fields()), nbytes(sealed.to_fields())
    server_(server.end_shares)
    for name in stays:
        deliveries = server_(lambda: server.deliveries_for(name))  # noqa: B023
        values = np.ones(size, dtype=np.uint32)
        site[name](lambda: begun[name].mask(deliveries, values))  # noqa: B023
        need(server_(lambda: server.take_masked(name, values)))  # noqa: B023
        down["deliveries"], up["vector"] = nbytes(deliveries.to_fields()), values.nbytes
    server_(server.end_masked)
    survivors = server_(server.survivors)
    for name in stays:
        confirmation = site[name](lambda: begun[name].confirm(survivors))  # noqa: B023
        need(server_(lambda: server.take_confirmation(name, confirmation)))  # noqa: B023
        up["confirmation"] = nbytes(confirmation.to_fields())
    server_(server.end_confirmations)
    confirmations = server_(server.confirmations)
    for name in stays:
        reveal = site[name](lambda: begun[name].reveal(confirmations))  # noqa: B023
        need(server_(lambda: server.take_reveal(name, reveal)))  # noqa: B023
        up["reveal"] = nbytes(reveal.to_fields())
    total = server_(server.result)
    if memory:
        tracemalloc.stop()
    if not (total == len(stays)).all():
        raise SystemExit("the sum is wrong")
    down |= {"survivors": nbytes(survivors.to_fields()), "confirmations": nbytes(confirmations.to_fields())}
    return {
        "sites": sites,
        "size": size,
        "parameters": parameters(sites),
        "dropped": sites - len(stays),
        "seconds": {name: meter.seconds for name, meter in meters.items()},
        "memory": {name: meter.peak for name, meter in meters.items()},
        "up": up,
        "down": down,
    }


def need(refusal: object) -> None:
    """Stop when the server refused an answer."""
    if refusal is not None:
        raise SystemExit(f"refused: {refusal}")


def nbytes(fields: Fields) -> int:
    """Return the bytes of a message's values, without what a transport adds."""
    return sum(
        sum(map(length, value)) if isinstance(value, list) else length(value) for value in fields.values()
    )


def length(value: object) -> int:
    """Return the bytes of one value."""
    return len(value) if isinstance(value, bytes) else len(str(value).encode())


def target(what: str, found: float, least: float) -> dict[str, Any]:
    return {"what": what, "target": f"at least {least:g}", "found": found, "met": found >= least}


def text(answer: Mapping[str, Any]) -> str:
    """Return the result as tables."""
    masks = [
        [
            f"{one['neighbours']}",
            *(f"{1e3 * median(one['seconds'][name]):.1f}" for name in ("flower", "cloister")),
            f"{one['ratio']['median']:.2f} ({one['ratio']['least']:.2f} to {one['ratio']['most']:.2f})",
            *(f"{one['bytes'][name] / answer['size']:.0f}" for name in ("flower", "cloister")),
        ]
        for one in answer["masks"]
    ]
    header = ["neighbours", "Flower, ms", "Cloister, ms", "ratio", "Flower, bytes a parameter", "Cloister"]
    small = [[name, f"{1e3 * median(times):.2f}"] for name, times in answer["pieces"].items()]
    whole = []
    for one in answer["sessions"]:
        degree, threshold = one["parameters"]
        name = f"{one['sites']} sites, {one['size']:,} values, k = {degree}, t = {threshold}, {one['dropped']} drop"
        for who in ("server", "site"):
            vector = one["up"]["vector"]
            aside = sum(one["up"].values()) - vector, sum(one["down"].values())
            memory = f"{one['memory'][who] / vector:.2f}" if one["size"] > 1 else ""
            traffic = [f"{kilo / 1e3:.1f}" for kilo in aside] if who == "site" else ["", ""]
            whole.append([f"{name}: {who}", f"{one['seconds'][who]:.3f}", memory, *traffic])
    lines = [
        f"Masking {answer['size']:,} parameters\n",
        table(header, masks),
        "",
        table(["work", "ms"], small),
        "",
        table(["session", "s", "memory, vectors", "kB up, beside the vector", "kB down"], whole),
        "",
        target_table(answer["targets"]),
    ]
    if answer["noise"]["unreliable"]:
        lines.append("\nUNRELIABLE: other programs used more than a tenth of the cores.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
