"""The key stream of AES-256 in counter mode (NIST SP 800-38A; counter from zero): what masks are, and where coins in number come from.

AES and not ChaCha20, because processors have instructions for it: on one without AVX-512 its stream takes less than half of ChaCha20's time. A
processor without AES instructions is slower, and may not take constant time.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

__all__ = ["MOST_AT_ONCE", "KeyStream"]

#: Bytes that one call may ask for: what is made, what it is made of, and what it is added to fit into a core's second-level cache.
MOST_AT_ONCE = 1 << 18
_ZEROS = memoryview(bytes(MOST_AT_ONCE))


class KeyStream:
    """One key's stream, from its beginning on. A key serves one stream only.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def read_into(self, block: memoryview | bytearray) -> None:
        """Overwrite ``block``, of at most `MOST_AT_ONCE` bytes, with the stream's next ones.

        Raises:
            ValueError: it is longer.
        """
        if len(block) > MOST_AT_ONCE:
            raise ValueError(f"{len(block)} bytes at once, at most {MOST_AT_ONCE}")
        self._cipher.update_into(_ZEROS[: len(block)], block)
