"""Which canaries are planted: fair coins that are sealed before training and opened after it.

Formal guarantee: whoever has the seal can neither tell the coins from it (a salt of 128 random bits is hashed with them) nor be shown other coins that fit
it (SHA-256). So the coins were fixed when the seal was written down, and were not chosen to suit the scores.

==========================================  =========================================
case                                        result
==========================================  =========================================
other coins, another salt, another number   ``IntegrityError`` (audit-coins)
fewer than 1 canary                         ``UsageError`` (audit-canaries)
==========================================  =========================================
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloister.core.errors import IntegrityError, UsageError
from cloister.core.randomness import Randomness

__all__ = ["Coins", "opened"]

_TAG = b"cloister audit coins 1\n"


@dataclass(frozen=True, kw_only=True, eq=False)
class Coins:
    """One fair coin a canary, and the salt of their seal. A secret of the auditor until training is over.

    Attributes:
        included: (m,) bool.
        salt: 16 bytes.
    """

    included: npt.NDArray[np.bool_]
    salt: bytes

    @classmethod
    def draw(cls, canaries: int, randomness: Randomness) -> Coins:
        """Draw the coins of so many canaries: from the operating system, or from the seed of a simulation.

        Raises:
            UsageError: there is not one canary.
        """
        if canaries < 1:
            raise UsageError(
                f"an audit with {canaries} canaries shows nothing",
                remedy="plant at least 1; 1000 see something at an epsilon of 2 and more",
                code="audit-canaries",
            )
        included = randomness.generator("audit-coins").integers(0, 2, canaries).astype(bool)
        return cls(included=included, salt=randomness.bits("audit-salt").to_bytes(16))

    @property
    def seal(self) -> str:
        """What is written down before training: SHA-256, hex."""
        return hashlib.sha256(_TAG + self.salt + len(self.included).to_bytes(8) + self._packed()).hexdigest()

    def opening(self) -> dict[str, str | int]:
        """Return what opens the seal, as plain data."""
        return {"canaries": len(self.included), "salt": self.salt.hex(), "coins": self._packed().hex()}

    def _packed(self) -> bytes:
        return np.packbits(self.included).tobytes()


def opened(seal: str, opening: dict[str, str | int]) -> Coins:
    """Return the coins that ``opening`` tells, checked against the seal.

    Raises:
        IntegrityError: (audit-coins) they are not those that were sealed.
    """
    try:
        number, salt = int(opening["canaries"]), bytes.fromhex(str(opening["salt"]))
        packed = np.frombuffer(bytes.fromhex(str(opening["coins"])), dtype=np.uint8)
        coins = Coins(included=np.unpackbits(packed, count=number).astype(bool), salt=salt)
        holds = len(salt) == 16 and coins.seal == seal and coins.opening()["coins"] == opening["coins"]
    except (KeyError, ValueError, TypeError, OverflowError):
        holds = False
    if not holds:
        raise IntegrityError(
            "the coins of the audit are not those that were sealed before training",
            remedy="do not rely on this audit: run it again, and find out who changed the run's events",
            code="audit-coins",
        )
    return coins
