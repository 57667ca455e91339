"""Masks are the key stream of AES-256-CTR, whatever the blocks, and they cancel."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cloister.privacy.masking import stream
from cloister.privacy.masking.stream import BLOCK, add_stream, add_streams

KEY = bytes(range(32))


def library(key: bytes, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """The oracle: the whole stream in one call."""
    made = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * size))
    return np.frombuffer(made, dtype="<u4").astype(np.uint32)


class TestStream:
    def test_is_aes_256_of_a_counter_from_zero(self) -> None:
        """NIST's known answers (AESAVS, GFSbox and variable text, 256 bits, key zero): the blocks 0 and 1 under a key of zeros."""
        values = np.zeros(8, dtype=np.uint32)
        add_stream(values, bytes(32))
        assert values.tobytes()[:16].hex() == "dc95c078a2408989ad48a21492842087"
        assert values.tobytes()[16:].hex() == "530f8afbc74536b9a963b4f1c4cb738b"

    @pytest.mark.parametrize(
        "size", [0, 1, 15, 16, 17, BLOCK // 4 - 1, BLOCK // 4, BLOCK // 4 + 1, 3 * BLOCK // 4 + 5]
    )
    def test_is_the_librarys_at_every_length(self, size: int) -> None:
        values = np.zeros(size, dtype=np.uint32)
        add_stream(values, KEY)
        np.testing.assert_array_equal(values, library(KEY, size))

    @pytest.mark.parametrize("words", [16, 48, 1 << 10])
    def test_does_not_depend_on_the_block(self, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stream, "_WORDS", words)
        values = np.zeros(5000, dtype=np.uint32)
        add_stream(values, KEY)
        np.testing.assert_array_equal(values, library(KEY, 5000))

    def test_is_added_in_place_modulo_2_to_32_and_taken_away_again(self) -> None:
        values = np.random.default_rng(1).integers(0, 1 << 32, 70_000, dtype=np.uint32)
        before, keys = values.copy(), [os.urandom(32) for _ in range(3)]
        add_streams(values, [(keys[0], 1), (keys[1], -1), (keys[2], 1)])
        expected = (
            before.astype(np.int64)
            + library(keys[0], 70_000)
            - library(keys[1], 70_000)
            + library(keys[2], 70_000)
        )
        np.testing.assert_array_equal(values, (expected % (1 << 32)).astype(np.uint32))
        add_streams(values, [(keys[1], 1), (keys[0], -1), (keys[2], -1)])
        np.testing.assert_array_equal(values, before)

    def test_every_bit_of_the_key_counts(self) -> None:
        """Flower 1.41 folds a key to 28 effective bits by exclusive or of its words: half of these pairs collide there."""
        streams = {library_like(KEY)}
        for bit in range(256):
            changed = bytearray(KEY)
            changed[bit // 8] ^= 1 << (bit % 8)
            streams.add(library_like(bytes(changed)))
            changed[(bit // 8 + 4) % 32] ^= 1 << (bit % 8)  # Flower's fold is what it was
            assert folded(bytes(changed)) == folded(KEY)
            streams.add(library_like(bytes(changed)))
        assert len(streams) == 1 + 2 * 256


def library_like(key: bytes) -> bytes:
    values = np.zeros(8, dtype=np.uint32)
    add_stream(values, key)
    return values.tobytes()


def folded(key: bytes) -> int:
    """What flwr.common.secure_aggregation.secaggplus_utils.pseudo_rand_gen makes of a key."""
    seed = 0
    for at in range(0, len(key), 4):
        seed ^= int.from_bytes(key[at : at + 4], "little")
    return seed
