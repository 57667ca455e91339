"""The joint key of one session: a share of each site, committed to before anybody shows one.

Public shares add up: b = Σ b_i is the public key of s = Σ s_i, which nobody holds. What could go wrong, and what is done about it:

- A share made of the others' (b* minus their sum) would make the sum the key of its maker alone. So all commit to their shares before one is
  shown, and show them once; each signs its share together with everybody's commitments.
- A share that is not e - a·s with small s and e would carry others' randomness through the flooding when a sum is opened; so would a ciphertext whose polynomial 1
  is not a·u + e. So both come with a proof that they are well formed (`proofs`).
- All shares are over one polynomial a. Whoever chose it could choose one that hides nothing (0, say). So nobody does: it is SHAKE-256 of the
  session's run and serial (`common`).
- The server hands the shares on and could swap them. So each site adds them up itself, and checks that they are those that were committed to,
  its own among them, and that their holders are exactly the sites that the manifest asks.

Formal guarantee: of a `JointKey` that `JointKey.read` returned at an honest site that calls `show_share` once a share: every share was fixed before
this site's was shown to anybody, and is signed by a site of the consortium under its own name. Under RLWE the key b hides what is encrypted under it from
everybody but all holders together: this site's share is uniform to them, none depends on it, and twice each is e' - a·s' with coefficients below 2^37 that its
holder knows.

==========================================  =======================================================
case                                        outcome
==========================================  =======================================================
another site's commitments, or not the own  ``IntegrityError`` (key-share)
a share that was not committed to, foreign  ``IntegrityError`` (key-share, identity, signature)
a share whose proof does not hold           ``IntegrityError`` (key-share)
a residue that is not below its prime       ``IntegrityError`` (key-share)
other holders than the manifest's cohort    ``IntegrityError`` (ciphertext-cohort)
another key than the manifest's             ``IntegrityError`` (ciphertext-key)
==========================================  =======================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.codec import check_values
from cloister.privacy.homomorphic.container import Ciphertexts, Form, Residues, limits
from cloister.privacy.homomorphic.frames import framed
from cloister.privacy.homomorphic.lanes import Integers, packed
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.homomorphic.public_key import key_refused
from cloister.privacy.homomorphic.sealed import refuse_site
from cloister.privacy.homomorphic.summation import check_cohort
from cloister.privacy.identity import Consortium, Identity, Purpose, Role
from cloister.privacy.manifest import Manifest
from cloister.privacy.threshold.engine import Engine
from cloister.privacy.threshold.messages import KeyShare, PublicShares, ShareCommitments
from cloister.privacy.threshold.proofs import holds, noise, proved, small
from cloister.privacy.threshold.ring import Prepared, minus, plus, prepared, times, transformed

__all__ = [
    "JointCodec",
    "JointKey",
    "NewShare",
    "agreed_shares",
    "check_formed",
    "check_share",
    "check_shown",
    "common",
    "share_commitment",
    "show_share",
]

_COMMON, _SHARE, _JOINT, _CIPHERTEXT = (
    b"cloister common polynomial 1",
    b"cloister key share 1",
    b"cloister joint key 1",
    b"cloister joint ciphertext 1",
)
#: Numbers that are drawn beyond the N that are needed: each misses with a probability of 2^-42.
_SPARE = 8


def common(run: str, serial: int) -> Residues:
    """Return the polynomial that all shares of a session are over, (primes, N), in the transformed domain, where uniform is uniform."""
    found = []
    for number, prime in enumerate(THRESHOLD.primes):
        seed = framed([_COMMON, run.encode(), str(serial).encode(), bytes([number])])
        raw = hashlib.shake_256(seed).digest(8 * (THRESHOLD.degree + _SPARE))
        drawn = np.frombuffer(raw, dtype="<u8").astype(np.uint64) & np.uint64((1 << 60) - 1)
        below = drawn[drawn < prime]
        if len(below) < THRESHOLD.degree:
            raise ArithmeticError("SHAKE-256 drew too few numbers below the prime: begin another session")
        found.append(below[: THRESHOLD.degree])
    return np.stack(found)


@lru_cache(maxsize=4)
def _a(run: str, serial: int) -> Prepared:
    return prepared(common(run, serial))


@dataclass(frozen=True, kw_only=True)
class NewShare:
    """A fresh share of a session's key.

    Attributes:
        secret: its secret half, (N,) coefficients of -1, 0 and 1 in a byte each; never printed.
        share: its public half, residues.
        proof: that the public half is well formed.
    """

    secret: bytes = field(repr=False)
    share: bytes = field(repr=False)
    proof: bytes = field(repr=False)

    @classmethod
    def drawn(cls, *, run: str, serial: int, name: str) -> NewShare:
        """Draw the share of site ``name``, from the operating system."""
        a, s, e = _a(run, serial), small(), noise()
        b = minus(transformed(e), times(transformed(s), a))
        return cls(
            secret=s.astype(np.int8).tobytes(),
            share=b.astype("<u8").tobytes(),
            proof=proved(a, b, -s, e, _about(_SHARE, run, serial, name)),
        )


def share_commitment(share: bytes, *, run: str, serial: int, name: str) -> bytes:
    """Return the commitment of site ``name`` to its public share, 32 bytes. The share is uniform to others: its hash tells nothing of it."""
    return hashlib.sha256(framed([_SHARE, run.encode(), str(serial).encode(), name.encode(), share])).digest()


def agreed_shares(commitments: Mapping[str, bytes], *, run: str, serial: int) -> str:
    """Return the key's id, 64 hexadecimal digits: SHA-256 over the session and all commitments to its shares, by name."""
    parts = [_JOINT, run.encode(), str(serial).encode()]
    for name in sorted(commitments):
        parts += [name.encode(), commitments[name]]
    return hashlib.sha256(framed(parts)).hexdigest()


def show_share(
    identity: Identity, told: ShareCommitments, share: bytes, proof: bytes, *, run: str, serial: int
) -> tuple[str, KeyShare]:
    """Return the key's id and the share, signed with all commitments; once a share.

    Args:
        identity: the site's.
        told: all commitments, as the server says.
        share: the site's public share.
        proof: that it is well formed.
        run: of the session.
        serial: of the session.

    Raises:
        IntegrityError: (key-share) the site's own is not among them.
    """
    commitments = dict(zip(told.names, told.digests, strict=True))
    own = share_commitment(share, run=run, serial=serial, name=identity.name)
    if commitments.get(identity.name) != own:
        raise _refused("this site's own share is not among the commitments that the server tells")
    key_id = agreed_shares(commitments, run=run, serial=serial)
    signature = identity.sign(Purpose.SHARE, _signed(key_id, own, identity.name))
    shown = KeyShare(share=share, proof=proof, signature=signature, certificate=identity.certificate)
    return key_id, shown


@dataclass(frozen=True, kw_only=True, eq=False)
class JointKey:
    """The public key of one session; make one with `read`.

    Attributes:
        run: of the session.
        serial: of the session.
        key_id: what the manifest names.
        names: the holders, sorted.
        b: the sum of all shares, as a factor.
        a: what they are over, as a factor.
    """

    run: str
    serial: int
    key_id: str
    names: tuple[str, ...]
    b: Prepared = field(repr=False)
    a: Prepared = field(repr=False)

    @classmethod
    def read(
        cls, told: PublicShares, consortium: Consortium, *, run: str, serial: int, key_id: str
    ) -> JointKey:
        """Return the key of these shares.

        Args:
            told: all shares, as the server says.
            consortium: who vouches for their holders.
            run: of the session.
            serial: of the session.
            key_id: of the commitments that were there before a share was shown.

        Raises:
            IntegrityError: (key-share, identity, identity-revoked, signature) a share does not hold.
        """
        total = np.zeros((len(THRESHOLD.primes), THRESHOLD.degree), dtype=np.uint64)
        commitments = {}
        for name, share in zip(told.names, told.each(), strict=True):
            commitments[name] = share_commitment(share.share, run=run, serial=serial, name=name)
            b = check_share(name, share, commitments[name], consortium, run=run, serial=serial, key_id=key_id)
            total = plus(total, b)
        if agreed_shares(commitments, run=run, serial=serial) != key_id:
            raise _refused("the shares are not those that were committed to")
        return cls(
            run=run, serial=serial, key_id=key_id, names=told.names, b=prepared(total), a=_a(run, serial)
        )

    def check(self, manifest: Manifest) -> None:
        """Check that this is the key of the session of ``manifest``, and that its holders are the sites that are asked.

        Raises:
            IntegrityError: (ciphertext-key, ciphertext-cohort) it is not.
        """
        this = (THRESHOLD.scheme, self.run, self.serial, self.key_id)
        if (manifest.scheme, manifest.run, manifest.serial, manifest.key) != this:
            raise key_refused(
                f"the joint key {self.key_id[:16]}… is of session {self.serial} of run '{self.run}', and the manifest asks for "
                f"{manifest.key[:16]}… of session {manifest.serial} of run '{manifest.run}' ({manifest.scheme})"
            )
        check_cohort(manifest, self.names)


def check_share(
    name: str,
    shown: KeyShare,
    commitment: bytes,
    consortium: Consortium,
    *,
    run: str,
    serial: int,
    key_id: str,
) -> Residues:
    """Return the residues, (primes, N), of the share that site ``name`` shows, of which nothing is trusted.

    Args:
        name: who sent it, or whose the server says it is.
        shown: the share.
        commitment: `share_commitment` of it under that name.
        consortium: who vouches for sites.
        run: of the session.
        serial: of the session.
        key_id: of all commitments.

    Raises:
        IntegrityError: (key-share, identity, identity-revoked, signature) it does not hold.
    """
    check_shown(name, commitment, shown.signature, shown.certificate, consortium=consortium, key_id=key_id)
    made: Residues = np.frombuffer(shown.share, dtype="<u8").astype(np.uint64)
    made = made.reshape(len(THRESHOLD.primes), THRESHOLD.degree)
    if not bool((made < limits(THRESHOLD)[0]).all()):
        raise _refused(f"a number in the share of '{name}' is not below its modulus")
    if not holds(_a(run, serial), made, shown.proof, _about(_SHARE, run, serial, name)):
        raise _refused(f"the share of '{name}' comes without a proof that it is well formed")
    return made


def check_shown(
    name: str,
    commitment: bytes,
    signature: bytes,
    certificate: bytes,
    *,
    consortium: Consortium,
    key_id: str,
) -> None:
    """Check that site ``name`` signed the share with this commitment for the key of all commitments.

    Raises:
        IntegrityError: (key-share, identity, identity-revoked, signature) it did not.
    """
    holder = consortium.member(certificate, role=Role.SITE)
    if holder.name != name:
        raise _refused(f"the share of '{name}' came with the certificate of '{holder.name}'")
    holder.check(Purpose.SHARE, _signed(key_id, commitment, name), signature)


class JointCodec:
    """A session's joint key, as a site uses it: what `PublicCodec` is under an authority's key.

    Args:
        key: the key, checked.
        own: OpenFHE.
        name: the site's.
    """

    def __init__(self, key: JointKey, own: Engine, name: str) -> None:
        self.key = key
        self._own = own
        self._name = name

    def encrypt(self, values: Integers, manifest: Manifest) -> bytes:
        """Return a container of ``values``, (size,) int64, for the session of ``manifest``.

        Raises:
            IntegrityError: (ciphertext-key, threshold-failed) the session is under another key, or OpenFHE failed.
            DataError: (update-range) a value is larger than the session admits.
            SpecError: (protection-scheme, protection-range) as of `Form.of`.
        """
        self.key.check(manifest)
        form = Form.of(manifest)
        check_values(values, manifest)
        rows = packed(values, lanes=form.lanes, slots=form.parameters.slots)
        made = [self._encrypted(row, number) for number, row in enumerate(rows)]
        return form.write(ciphertext for ciphertext, _ in made) + b"".join(proof for _, proof in made)

    def _encrypted(self, row: Integers, number: int) -> tuple[Residues, bytes]:
        """Return the ciphertext b·u + e0 + Δm, a·u + e1 of a row, and the proof of its polynomial 1."""
        key, u, e = self.key, small(), noise()
        factor = transformed(u)
        c1 = plus(times(factor, key.a), transformed(e))
        c0 = plus(times(factor, key.b), self._own.encoded(row))
        about = _about(_CIPHERTEXT, key.run, key.serial, self._name, number)
        return np.stack([c0, c1]), proved(key.a, c1, u, e, about)


def check_formed(ciphertexts: Ciphertexts, *, run: str, serial: int, name: str) -> None:
    """Check that each ciphertext of site ``name`` comes with a proof that its polynomial 1 is well formed; of polynomial 0 none is needed.

    Args:
        ciphertexts: its container, read.
        run: of the session.
        serial: of the session.
        name: who signed it.

    Raises:
        IntegrityError: (ciphertext-proof) one does not.
    """
    for number, one in enumerate(ciphertexts):
        about = _about(_CIPHERTEXT, run, serial, name, number)
        if not holds(_a(run, serial), one[1], ciphertexts.proof(number), about):
            raise refuse_site(name, f"number {number} comes without a proof that it is well formed", "proof")


def _about(what: bytes, run: str, serial: int, name: str, number: int = 0) -> list[bytes]:
    return [what, run.encode(), str(serial).encode(), name.encode(), str(number).encode()]


def _signed(key_id: str, commitment: bytes, name: str) -> bytes:
    return framed([key_id.encode(), commitment, name.encode()])


def _refused(why: str) -> IntegrityError:
    return IntegrityError(
        f"the session's joint key was refused: {why}",
        remedy="let the server begin a new session; if it happens again, find out who sends what was not committed to",
        code="key-share",
    )
