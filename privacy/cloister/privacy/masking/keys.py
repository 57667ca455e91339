"""Keys that two sites share, and what is sealed under them: X25519, HKDF-SHA256 and ChaCha20-Poly1305, all of ``cryptography``.

Formal guarantees:

- `pair_key` and `sealing_key` give both ends the same 32 bytes, bound to the manifest's digest and to both names; anybody without one of
  the two private keys cannot tell them from random bytes (decisional Diffie-Hellman on X25519, HKDF as an extractor).
- `opened` returns only what was sealed under the same key for the same manifest, roster, sender and receiver.

=======================================  =======================
case                                     outcome
=======================================  =======================
a public key of low order                ``ValueError``
changed, truncated, sealed for another   `opened` returns None
=======================================  =======================
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = [
    "KEY",
    "OVERHEAD",
    "framed",
    "hashed",
    "opened",
    "pair_key",
    "private_key",
    "public_of",
    "sealed",
    "sealing_key",
    "self_key",
    "usable",
]

#: Bytes of a key, private or public.
KEY = 32
#: Bytes that sealing adds: a nonce and a tag.
OVERHEAD = 28
_NONCE = 12
#: Agrees on keys that nobody uses: every private key finds out a point of low order, as all are multiples of 8.
_PROBE = X25519PrivateKey.from_private_bytes(bytes(KEY))


def framed(*parts: bytes) -> bytes:
    """Return the parts, each behind its length: different parts never give the same bytes."""
    return b"".join(len(part).to_bytes(8) + part for part in parts)


def hashed(purpose: str, *parts: bytes) -> bytes:
    """Return the SHA-256 over a purpose and parts."""
    digest = Hash(SHA256())
    digest.update(framed(f"cloister/masking/{purpose}".encode(), *parts))
    return digest.finalize()


def private_key(drawn: bytes) -> X25519PrivateKey:
    """Return the X25519 private key that any 32 bytes are."""
    return X25519PrivateKey.from_private_bytes(drawn)


def public_of(drawn: bytes) -> bytes:
    """Return the X25519 public key (32 bytes) of a private one (any 32 bytes)."""
    return private_key(drawn).public_key().public_bytes_raw()


def usable(public: bytes) -> bool:
    """Return whether a key can be agreed on with ``public``: a point of low order would make it known to all."""
    try:
        _PROBE.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return False
    return True


def pair_key(private: X25519PrivateKey, public: bytes, *, manifest: bytes, low: str, high: str) -> bytes:
    """Return the key of the mask of two sites, of which ``low`` adds it and ``high`` subtracts it."""
    return _derived(_agreed(private, public), manifest, framed(b"pair", low.encode(), high.encode()))


def sealing_key(
    private: X25519PrivateKey, public: bytes, *, manifest: bytes, source: str, target: str
) -> bytes:
    """Return the key under which ``source`` seals what only ``target`` may open."""
    return _derived(_agreed(private, public), manifest, framed(b"seal", source.encode(), target.encode()))


def self_key(seed: bytes, *, manifest: bytes) -> bytes:
    """Return the key of a site's own mask from its seed (32 bytes)."""
    return _derived(seed, manifest, framed(b"self"))


def sealed(key: bytes, plaintext: bytes, *, bound: bytes) -> bytes:
    """Return ``plaintext``, encrypted and authenticated together with ``bound``; the nonce is fresh and stands in front."""
    nonce = os.urandom(_NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, bound)


def opened(key: bytes, ciphertext: bytes, *, bound: bytes) -> bytes | None:
    """Return what was sealed, or None."""
    try:
        return ChaCha20Poly1305(key).decrypt(ciphertext[:_NONCE], ciphertext[_NONCE:], bound)
    except (InvalidTag, ValueError):
        return None


def _agreed(private: X25519PrivateKey, public: bytes) -> bytes:
    return private.exchange(X25519PublicKey.from_public_bytes(public))


def _derived(secret: bytes, manifest: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY, salt=manifest, info=b"cloister/masking" + info).derive(secret)
