"""The manifest of a secure session: what is signed is what is read, and what cannot be is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.identity import ConsortiumAuthority, Role
from cloister.privacy.manifest import Floors, Manifest, SignedManifest, cohort_digest

AUTHORITY = ConsortiumAuthority("c", Ed25519PrivateKey.generate())
SERVER = AUTHORITY.identity("server", Role.SERVER, Ed25519PrivateKey.generate())


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "run": "heart-1",
        "round_number": 3,
        "serial": 7,
        "kind": "train",
        "federation": "a" * 64,
        "layout": "b" * 64,
        "model": "c" * 64,
        "cohort": cohort_digest(["ann", "bob", "cy", "dee"]),
        "cohort_size": 4,
        "least": 3,
        "threshold": 3,
        "degree": 3,
        "size": 100,
        "largest": 1000,
    }
    return Manifest(**{**fields, **changes})


def test_what_is_read_is_what_was_signed() -> None:
    made = manifest(clip=0.25)
    read = SignedManifest.from_fields(made.signed(SERVER).to_fields()).opened(AUTHORITY.consortium())
    assert read == made
    assert read.digest == made.digest


def test_every_field_is_in_the_digest() -> None:
    digests = {
        manifest(**change).digest
        for change in (
            {},
            {"run": "heart-2"},
            {"round_number": 4},
            {"serial": 8},
            {"kind": "evaluate"},
            {"group": 1},
            {"scheme": "bfv"},
            {"federation": "d" * 64},
            {"layout": "d" * 64},
            {"model": "d" * 64},
            {"cohort": "d" * 64},
            {"cohort_size": 5},
            {"least": 4},
            {"threshold": 4},
            {"degree": 2},
            {"size": 101},
            {"modulus_bits": 31},
            {"largest": 1001},
            {"clip": 1.0},
            {"key": "k"},
        )
    }
    assert len(digests) == 20


def test_a_sum_that_could_wrap_is_refused() -> None:
    largest = ((1 << 31) - 1) // 4
    manifest(largest=largest)
    with pytest.raises(IntegrityError, match="wrap modulo"):
        manifest(largest=largest + 1)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "../x"},
        {"round_number": 0},
        {"serial": 0},
        {"group": -1},
        {"kind": "steal"},
        {"scheme": "plain"},
        {"model": "C" * 64},
        {"cohort_size": 1},
        {"least": 1},
        {"least": 5},
        {"threshold": 5},
        {"threshold": 1},
        {"degree": 4},
        {"size": 0},
        {"modulus_bits": 63},
        {"largest": 0},
        {"clip": -1.0},
        {"clip": float("nan")},
        {"key": "k" * 129},
    ],
)
def test_a_manifest_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError) as refused:
        manifest(**change)
    assert refused.value.code == "manifest"


def test_only_the_server_signs_manifests() -> None:
    made = manifest()
    site = AUTHORITY.identity("ann", Role.SITE, Ed25519PrivateKey.generate())
    stranger = ConsortiumAuthority("c", Ed25519PrivateKey.generate()).identity(
        "server", Role.SERVER, Ed25519PrivateKey.generate()
    )
    for signer in (site, stranger):
        with pytest.raises(IntegrityError, match="certificate"):
            made.signed(signer).opened(AUTHORITY.consortium())
    signed = made.signed(SERVER)
    other = SignedManifest(
        encoded=manifest(least=4).encoded, signature=signed.signature, certificate=signed.certificate
    )
    with pytest.raises(IntegrityError, match="signature"):
        other.opened(AUTHORITY.consortium())


def _changed(**change: Any) -> bytes:
    return json.dumps(json.loads(manifest().encoded) | change, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 9000,
        _changed(version=2),
        _changed(version=True),
        _changed(more=1),
        _changed(least=3.0),
        _changed(group=True),
        _changed(size="100"),
        json.dumps(json.loads(manifest().encoded)).encode(),  # the same, with spaces
    ],
)
def test_other_bytes_are_no_manifest(encoded: bytes) -> None:
    with pytest.raises(IntegrityError) as refused:
        Manifest.decode(encoded)
    assert refused.value.code == "manifest"


def test_a_site_keeps_to_its_own_floors() -> None:
    manifest().check_floors(Floors(least=3))
    with pytest.raises(PolicyError, match="demands at least 4"):
        manifest().check_floors(Floors(least=4))
    with pytest.raises(PolicyError, match="no majority"):
        manifest(threshold=2).check_floors(Floors(least=3))
