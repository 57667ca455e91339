"""The manifest of one secure session: what the server signs before any site does anything for it.

A session is one sum: of the updates of a round, or of its measurements. Everything that two sites must agree on is in the manifest, and
every key and signature of the session is bound to its digest: sites that were told different things cannot be summed.

Formal guarantees:

- `SignedManifest.opened` returns a manifest only if the consortium's server signed exactly these bytes.
- `Manifest.check_floors` refuses a session that would reveal the sum of fewer sites than the site itself demands, or whose threshold
  lets fewer than a majority unmask.
- The integers of ``cohort_size`` sites, each at most ``largest`` in magnitude, sum without wrapping modulo 2^``modulus_bits``:
  checked when a manifest is made and when it is read.

==============================================  =====================================
case                                            outcome
==============================================  =====================================
another version, unknown or missing field       ``IntegrityError`` (manifest)
a number out of its bounds, a sum that wraps    ``IntegrityError`` (manifest)
signed by nobody, by a site, by a stranger      ``IntegrityError`` (identity, signature)
below a site's floors                           ``PolicyError`` (manifest-floor)
==============================================  =====================================
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Literal, get_args

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.identity import Consortium, Identity, Purpose, Role
from cloister.privacy.identity.statement import Statement

__all__ = ["VERSION", "Floors", "Manifest", "Scheme", "SignedManifest", "SumKind", "cohort_digest"]

#: Version of the secure protocols.
VERSION = 1

Scheme = Literal["masked", "bfv", "ckks", "threshold-bfv"]
SumKind = Literal["train", "evaluate"]

_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LONGEST = 1 << 13
_MOST_SITES = 1 << 20
_TYPES = {"str": str, "int": int, "float": float, "SumKind": str, "Scheme": str}


@dataclass(frozen=True, kw_only=True)
class Floors:
    """What a site demands of every session, whatever the server asks for.

    Attributes:
        least: the fewest sites in a sum that it is part of.
    """

    least: int = 3


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one session is.

    Attributes:
        run: names the run.
        round_number: from 1.
        serial: grows with every session of the run; a site takes part in none that is not newer than its last.
        kind: what is summed.
        group: which group of the cohort, from 0; 0 where there is one.
        scheme: how values are protected.
        federation: SHA-256 (hex) of the effective federation file.
        layout: digest of the model's layout.
        model: SHA-256 (hex) of the vectors that the sites are sent.
        cohort: `cohort_digest` of the names that are asked.
        cohort_size: how many they are.
        least: n_min, the fewest sites whose sum is revealed.
        threshold: t, so many shares rebuild a secret.
        degree: k, how many others each site shares its secrets with; ``cohort_size - 1`` for a complete graph.
        size: length of the vector of integers.
        modulus_bits: sums are taken modulo 2 to this.
        largest: the largest magnitude of one site's integer.
        clip: the clip of this round's updates, 0 where there is none.
        key: identifies the key that values are encrypted under; empty where there is none.
    """

    run: str
    round_number: int
    serial: int
    kind: SumKind
    group: int = 0
    scheme: Scheme = "masked"
    federation: str
    layout: str
    model: str
    cohort: str
    cohort_size: int
    least: int
    threshold: int
    degree: int
    size: int
    modulus_bits: int = 32
    largest: int
    clip: float = 0.0
    key: str = ""

    def __post_init__(self) -> None:
        wrong = [name for name, holds in self._conditions().items() if not holds]
        if wrong:
            raise _unfit("; ".join(wrong))

    def _conditions(self) -> dict[str, bool]:
        n, t, k = self.cohort_size, self.threshold, self.degree
        return {
            "run is no name": _NAME.fullmatch(self.run) is not None,
            "round_number or serial is below 1": self.round_number >= 1 and self.serial >= 1,
            "group is below 0": self.group >= 0,
            f"kind = '{self.kind}' is unknown": self.kind in get_args(SumKind),
            f"scheme = '{self.scheme}' is unknown": self.scheme in get_args(Scheme),
            "a digest is not 64 hexadecimal digits": all(
                _HEX.fullmatch(text) for text in (self.federation, self.layout, self.model, self.cohort)
            ),
            f"cohort_size = {n} is not from 2 to {_MOST_SITES}": 2 <= n <= _MOST_SITES,
            f"least = {self.least} is not from 2 to cohort_size = {n}": 2 <= self.least <= n,
            f"degree = {k} is not from 1 to {n - 1}": 1 <= k <= n - 1,
            f"threshold = {t} is not from 2 to degree + 1 = {k + 1}": 2 <= t <= k + 1,
            f"size = {self.size} is not from 1 to 2^32": 1 <= self.size <= 1 << 32,
            f"modulus_bits = {self.modulus_bits} is not from 8 to 62": 8 <= self.modulus_bits <= 62,
            f"{n} integers of magnitude {self.largest} wrap modulo 2^{self.modulus_bits}": self.largest >= 1
            and n * self.largest < 1 << (self.modulus_bits - 1),
            "clip is negative or not finite": 0 <= self.clip < 1e30,
            "key is too long": len(self.key) <= 128,
        }

    @cached_property
    def encoded(self) -> bytes:
        """The bytes that are signed: JSON with sorted keys."""
        return json.dumps(
            {"version": VERSION, **asdict(self)}, sort_keys=True, separators=(",", ":")
        ).encode()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over `encoded`, 32 bytes: what everything in the session is bound to."""
        return hashlib.sha256(self.encoded).digest()

    def signed(self, server: Identity) -> SignedManifest:
        """Return it with the server's signature."""
        return SignedManifest.by(server, self.encoded)

    def check_floors(self, floors: Floors) -> None:
        """Check it against what the site demands.

        Raises:
            PolicyError: (manifest-floor) it asks for less.
        """
        if self.least < floors.least:
            raise PolicyError(
                f"the session would reveal the sum of {self.least} sites, and this site demands at least {floors.least}",
                remedy="raise cohort.min_sites, or have the site lower its floor",
                code="manifest-floor",
            )
        if self.scheme == "masked" and 2 * self.threshold <= self.degree + 1:
            raise PolicyError(
                f"the session's threshold of {self.threshold} of {self.degree + 1} is no majority: two disjoint sets could unmask",
                remedy="use a server that asks for a threshold above half",
                code="manifest-floor",
            )

    @classmethod
    def decode(cls, encoded: bytes) -> Manifest:
        """Read a manifest.

        Raises:
            IntegrityError: (manifest) it is none, or not in its one form.
        """
        try:
            data = json.loads(encoded) if len(encoded) <= _LONGEST else None
        except (ValueError, RecursionError):
            data = None
        known = {"version": int} | {field.name: _TYPES[str(field.type)] for field in fields(cls)}
        if not isinstance(data, dict) or {name: type(value) for name, value in data.items()} != known:
            raise _unfit("it cannot be read")
        version = data.pop("version")
        if version != VERSION:
            raise _unfit(f"it is of version {str(version)[:16]}, and this is version {VERSION}")
        made = cls(**data)
        if made.encoded != encoded:
            raise _unfit("it is not written in its one form")
        return made


class SignedManifest(Statement):
    """A manifest as it travels, signed by the server; ``encoded`` is `Manifest.encoded`."""

    FIELD = "manifest"
    PURPOSE = Purpose.MANIFEST
    ROLE = Role.SERVER

    def opened(self, consortium: Consortium) -> Manifest:
        """Return the manifest, checked.

        Raises:
            IntegrityError: the consortium's server did not sign it, or it is none.
        """
        self.signer(consortium)
        return Manifest.decode(self.encoded)

    @classmethod
    def unfit(cls, why: str) -> IntegrityError:
        """Return the refusal of a manifest."""
        return _unfit(why)


def cohort_digest(names: Iterable[str]) -> str:
    """Return the SHA-256 (hex) over the names, whatever their order."""
    return hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        f"the session's manifest was refused: {why}",
        remedy="use the same version of cloister at the server and at every site",
        code="manifest",
    )
