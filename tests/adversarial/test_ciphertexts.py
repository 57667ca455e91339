"""Hostile ciphertexts: a site that sends what no encryption makes, and a server with a site on its side.

A mutated container is signed by the site that sends it, and committed to: the signature is not what stops it. What must hold for each is
that the process lives, and that either it is refused or the sum is the plain sum; no memory comes back.
"""

import hashlib
import itertools
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from cloister.core.errors import CloisterError, IntegrityError
from cloister.privacy.homomorphic import (
    BFV,
    Ciphertexts,
    Form,
    KeyAuthority,
    PublicCodec,
    SumRequest,
    agreed,
    commitment,
    seal,
)
from cloister.privacy.homomorphic.container import Residues, summed
from cloister.privacy.homomorphic.summation import request_message
from cloister.privacy.homomorphic.vault import Vault
from cloister.privacy.identity import Purpose
from cloister.privacy.manifest import Manifest
from parties import Parties, Session

SERIALS = itertools.count(1)
HEADER = 60


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties(3)


@pytest.fixture(scope="module")
def keeper(parties: Parties) -> Iterator[KeyAuthority]:
    made = KeyAuthority.in_memory(parties.keeper, parties.consortium)
    yield made
    made.close()


class Lasting(Vault):
    """A vault whose keys open more than one sum: making one takes three times as long as an attack."""

    def spend(self, manifest: Manifest, *, names: Collection[str]) -> None:
        """Record nothing and keep the key."""


@pytest.fixture(scope="module")
def lasting(parties: Parties) -> Iterator[KeyAuthority]:
    made = KeyAuthority(Lasting.in_memory(), parties.keeper, parties.consortium)
    yield made
    made.close()


def session(parties: Parties, keeper: KeyAuthority, **changes: object) -> Session:
    serial = next(SERIALS)  # of a run of its own: a round is opened over one set of sites
    made = parties.session(keeper, **{"serial": serial, "run": f"run-{serial}", "size": 100, **changes})
    made.encrypt()
    return made


def asked(session: Session, containers: dict[str, bytes]) -> SumRequest:
    """Return what a server asks that takes anything: every site commits to and signs what it sends, and the digest is that of the sum."""
    parties, manifest = session.parties, session.manifest
    commitments = {name: commitment(container) for name, container in containers.items()}
    together = agreed(manifest, commitments)
    sealed = tuple(
        seal(parties.sites[name], manifest, container, together) for name, container in containers.items()
    )
    try:
        form = Form.of(manifest)
        digest = hashlib.sha256(
            summed([Ciphertexts.read(container, form) for container in containers.values()])
        ).digest()
    except IntegrityError:
        digest = bytes(32)
    return SumRequest(
        manifest=manifest.signed(parties.server),
        cohort=tuple(parties.names),
        commitments=commitments,
        digest=digest,
        signature=parties.server.sign(Purpose.DECRYPTION, request_message(manifest, digest)),
        sealed=sealed,
    )


def mutations(container: bytes, generator: np.random.Generator, foreign: bytes) -> Iterator[bytes]:
    """Yield mutated containers without end: flipped bits, cuts, huge and small sizes, residues at and above the primes, other keys."""
    while True:
        raw = bytearray(container)
        at = int(generator.integers(len(raw)))
        kind = int(generator.integers(10))
        if kind == 0:
            raw[at] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            raw[int(generator.integers(HEADER))] ^= 1 << int(generator.integers(8))
        elif kind == 2:
            del raw[at:]
        elif kind == 3:
            raw += bytes(int(generator.integers(1, 1000)))
        elif kind == 4:
            where, form = ((40, "<Q"), (48, "<I"), (52, "<I"), (56, "<I"))[int(generator.integers(4))]
            top = 1 << (8 * struct.calcsize(form))
            struct.pack_into(
                form, raw, where, (0, 1, top - 1, top // 2, top // 8)[int(generator.integers(5))]
            )
        elif kind == 5:
            at = HEADER + 5 * int(generator.integers((len(raw) - HEADER) // 5))
            near = BFV.primes[int(generator.integers(2))] + int(generator.integers(-2, 3))
            raw[at : at + 5] = near.to_bytes(5, "little")
        elif kind == 6:
            begin = int(generator.integers(HEADER, len(raw) - 64))
            raw[begin : begin + 64] = generator.bytes(64)
        elif kind == 7:
            raw[HEADER:] = bytes(len(raw) - HEADER)
        elif kind == 8:
            raw[8:40] = foreign[8:40] if generator.integers(2) else raw[8:40]
            raw[HEADER:] = foreign[HEADER:]
        else:
            half = (len(raw) - HEADER) // 2
            raw[HEADER:] = raw[HEADER + half :] + raw[HEADER : HEADER + half]
        yield bytes(raw)


def attacked(
    parties: Parties, keeper: KeyAuthority, count: int, seed: int, *, uses: int = 1
) -> dict[str, int]:
    """Have ``count`` mutated containers summed with two good ones, and return how often each refusal came (``exact``: the plain sum).

    A key is asked to decrypt ``uses`` times.
    """
    generator = np.random.default_rng(seed)
    ends: dict[str, int] = {}
    foreign, one, used = session(parties, keeper), None, 0
    keeper.decrypt(asked(foreign, foreign.containers))  # its key is no longer kept
    for number in range(count):
        one = one or session(parties, keeper)
        changed = next(mutations(one.containers["site-2"], generator, foreign.containers["site-2"]))
        request = asked(one, {**one.containers, "site-2": changed})
        try:
            found = keeper.decrypt(request)
        except CloisterError as refused:
            end = refused.code
        else:
            # All zeros is a ciphertext of zero, if not one that an encryption makes.
            names = one.parties.names if any(changed[HEADER:]) else one.parties.names[:2]
            assert np.array_equal(found, one.plain(*names)), f"a wrong sum was released in attack {number}"
            end = "exact"
        ends[end] = ends.get(end, 0) + 1
        if not end.startswith("ciphertext-"):
            used += 1
            if used % uses == 0:
                one = None
    return ends


@pytest.mark.slow
def test_mutated_containers_are_refused_or_change_nothing(parties: Parties, keeper: KeyAuthority) -> None:
    ends = attacked(parties, keeper, 200, seed=1)
    assert sum(ends.values()) == 200
    assert {"ciphertext-length", "ciphertext-header", "decryption-range", "ciphertext-residue"} <= set(ends)
    assert "internal" not in ends
    # The child did not die once: what reached it was well formed.
    assert "decryption-failed" not in ends


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 10))
def test_ten_thousand_mutated_containers(parties: Parties, lasting: KeyAuthority, seed: int) -> None:
    """In eight parts, which run side by side; under some two dozen keys each."""
    ends = attacked(parties, lasting, 1250, seed=seed, uses=25)
    assert sum(ends.values()) == 1250
    assert "decryption-failed" not in ends


def crafted(form: Form, first: Callable[[int], int], second: Callable[[int], int]) -> bytes:
    """Return a container whose two polynomials are constants, each given by its residue modulo a prime."""
    residues: Residues = np.zeros((2, len(form.parameters.primes), form.parameters.degree), dtype=np.uint64)
    for number, prime in enumerate(form.parameters.primes):
        residues[0, number, 0] = first(prime)
        residues[1, number, 0] = second(prime)
    return form.write([residues] * form.chunks)


def scaled(amount: int) -> Callable[[int], int]:
    """Return the residues of Δ·amount, Δ = floor(q / t): what BFV encodes a plain constant as."""
    q = BFV.primes[0] * BFV.primes[1]
    return lambda prime: (q // BFV.plain_modulus * amount) % prime


def test_numbers_of_the_secret_key_do_not_come_back(parties: Parties, keeper: KeyAuthority) -> None:
    """(0, Δ) decrypts to the secret key's own slots: the chosen ciphertext that BFV has no answer to."""
    for amount in (1, 1 << 10, BFV.plain_modulus - 1):
        one = session(parties, keeper)
        probe = crafted(Form.of(one.manifest), lambda _: 0, scaled(amount))
        with pytest.raises(IntegrityError) as refused:
            keeper.decrypt(asked(one, {**one.containers, "site-2": probe}))
        assert refused.value.code == "decryption-range"


def test_the_same_probe_without_the_secret_key_is_an_ordinary_value(
    parties: Parties, keeper: KeyAuthority
) -> None:
    """(Δ·m, 0) is m in the clear, which a site may send: that the test above is refused is due to the key in its answer."""
    one = session(parties, keeper, size=16384 // 2)
    open_value = crafted(Form.of(one.manifest), scaled(5), lambda _: 0)
    found = keeper.decrypt(asked(one, {**one.containers, "site-2": open_value}))
    constant = np.resize(np.array([5, 0]), one.manifest.size)
    assert np.array_equal(found, one.plain("site-0", "site-1") + constant)


@pytest.mark.parametrize(
    ("bits", "released"), [(10, True), (14, True), (18, False), (22, False), (25, False)]
)
def test_noise_that_was_made_large_is_refused(
    parties: Parties, keeper: KeyAuthority, bits: int, released: bool
) -> None:
    """A reaction attack: noise up to what just decrypts rightly (2^25), to learn from whether it does. From 2^15 on it is refused."""
    one = session(parties, keeper)
    probe = crafted(Form.of(one.manifest), lambda _: 1 << bits, lambda _: 0)
    request = asked(one, {**one.containers, "site-2": probe})
    if released:
        assert np.array_equal(keeper.decrypt(request), one.plain("site-0", "site-1"))
        return
    with pytest.raises(IntegrityError) as refused:
        keeper.decrypt(request)
    assert refused.value.code == "decryption-range"


def minus(form: Form, containers: list[bytes]) -> bytes:
    """Return the ciphertexts of minus the sum of others': anybody can compute them."""
    primes = np.asarray(form.parameters.primes, dtype=np.uint64)[None, :, None]
    total = Ciphertexts.read(summed([Ciphertexts.read(one, form) for one in containers]), form)
    return form.write((primes - one) % primes for one in total)


def test_a_server_with_a_site_cannot_cancel_the_others_and_read_one(
    parties: Parties, keeper: KeyAuthority
) -> None:
    """The site would send minus the others' ciphertexts, which it can make only after it saw them."""
    one = session(parties, keeper)
    victim, other, accomplice = parties.names
    form = Form.of(one.manifest)
    # The honest sites saw these commitments before they sent anything, whatever the accomplice put there.
    commitments = {name: commitment(container) for name, container in one.containers.items()}
    together = agreed(one.manifest, commitments)
    honest = [
        seal(parties.sites[name], one.manifest, one.containers[name], together) for name in (victim, other)
    ]
    forged = minus(form, [one.containers[other]])
    late = agreed(one.manifest, {**commitments, accomplice: commitment(forged)})
    request = asked(one, {**one.containers, accomplice: forged})
    attempts = {
        "ciphertext-commitment": (
            commitments,
            seal(parties.sites[accomplice], one.manifest, forged, together),
        ),
        "signature": (request.commitments, seal(parties.sites[accomplice], one.manifest, forged, late)),
    }
    for code, (claimed, sealed) in attempts.items():
        with pytest.raises(IntegrityError) as refused:
            keeper.decrypt(replace(request, commitments=claimed, sealed=(*honest, sealed)))
        assert refused.value.code == code
    # The attack itself is real: had the honest sites agreed to the forged commitment, the sum would be the victim's update.
    found = keeper.decrypt(request)
    assert np.array_equal(found, one.values[victim])


def test_an_earlier_ciphertext_cannot_be_brought_into_a_later_sum(
    parties: Parties, keeper: KeyAuthority
) -> None:
    """A site could add a victim's ciphertext of an earlier session many times over; but the key is another."""
    earlier, later = session(parties, keeper), session(parties, keeper)
    keeper.decrypt(asked(earlier, earlier.containers))
    old = earlier.containers["site-0"]
    with pytest.raises(IntegrityError) as refused:
        keeper.decrypt(asked(later, {**later.containers, "site-2": old}))
    assert refused.value.code == "ciphertext-key"
    relabelled = Form.of(later.manifest).header + old[HEADER:]
    with pytest.raises(IntegrityError) as refused:
        keeper.decrypt(asked(later, {**later.containers, "site-2": relabelled}))
    assert refused.value.code == "decryption-range"


def test_a_ciphertext_under_another_key_spoils_the_sum_and_is_noticed(
    parties: Parties, keeper: KeyAuthority
) -> None:
    one = session(parties, keeper)
    stranger = KeyAuthority.in_memory(parties.keeper, parties.consortium)
    codec = PublicCodec(
        stranger.public(one.manifest.run, one.manifest.serial, one.manifest.cohort), parties.consortium
    )
    manifest = replace(one.manifest, key=codec.key_id)
    wrong = codec.encrypt(one.values["site-2"], manifest)
    stranger.close()
    relabelled = Form.of(one.manifest).header + wrong[HEADER:]
    with pytest.raises(IntegrityError) as refused:
        keeper.decrypt(asked(one, {**one.containers, "site-2": relabelled}))
    assert refused.value.code == "decryption-range"


@pytest.mark.parametrize("where", [100, 8191])
def test_something_hidden_after_the_last_value_is_noticed(
    parties: Parties, keeper: KeyAuthority, where: int
) -> None:
    one = session(parties, keeper)
    longer = replace(one.manifest, size=8192)
    hidden: npt.NDArray[np.int64] = np.zeros(8192, dtype=np.int64)
    hidden[where] = 1
    slots = one.codec.encrypt(hidden, longer)
    relabelled = Form.of(one.manifest).header + slots[HEADER:]
    with pytest.raises(IntegrityError) as refused:
        keeper.decrypt(asked(one, {**one.containers, "site-2": relabelled}))
    assert refused.value.code == "decryption-range"


def test_a_value_beyond_the_largest_is_noticed_where_the_sum_shows_it(
    parties: Parties, keeper: KeyAuthority
) -> None:
    one = session(parties, keeper)
    wider = replace(one.manifest, largest=(1 << 25) // 3)
    values = np.zeros(one.manifest.size, dtype=np.int64)
    for name in ("site-0", "site-1"):
        one.put(name, values)
    small = replace(one.manifest, largest=1000)
    values[3] = 3001
    big = one.codec.encrypt(values, wider)
    containers = {**one.containers, "site-2": big}
    with pytest.raises(IntegrityError) as refused:
        keeper.decrypt(asked(replace(one, manifest=small), containers))
    assert refused.value.code == "decryption-range"


@pytest.mark.parametrize(
    ("amount", "released"), [(1 << 10, True), (1 << 20, False), (1 << 30, False), (1 << 50, False)]
)
def test_what_ckks_adds_of_the_key_is_rounded_away_or_refused(
    parties: Parties, keeper: KeyAuthority, amount: int, released: bool
) -> None:
    """(0, a) decrypts to a times the secret key: below a quarter of a step it is rounded away, above it numbers are no integers."""
    one = session(parties, keeper, scheme="ckks", size=2048)  # no slot is left over that would show it
    form = Form.of(one.manifest)
    probe: Residues = np.zeros((2, 1, form.parameters.degree), dtype=np.uint64)
    probe[1] = amount  # a constant, in the form that CKKS keeps polynomials in
    request = asked(one, {**one.containers, "site-2": form.write([probe])})
    if released:
        assert np.array_equal(keeper.decrypt(request), one.plain("site-0", "site-1"))
        return
    with pytest.raises(IntegrityError) as refused:
        keeper.decrypt(request)
    assert refused.value.code == "decryption-range"
