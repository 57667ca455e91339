"""A site's share of a joint key (``threshold-bfv``): made, shown, used to encrypt, and spent on one sum.

The protocol is `cloister.privacy.threshold`; here the site's `SessionBook` keeps what must outlive a message.

Formal guarantees:

- A share is shown once, with one set of commitments.
- A sum is opened with a share once, for the session that the site encrypted for, and the secret half is gone from the book before the partial decryption
  leaves. Of sums that were opened `Turn.opened` knows, as under masks.

==========================================  ===================================================
case                                        outcome
==========================================  ===================================================
a session not newer than the last           ``IntegrityError`` (manifest-replayed)
a share that was shown before               ``IntegrityError`` (key-share)
no share, or one that opened its sum        ``IntegrityError`` (session-none)
another session than the share's            ``IntegrityError`` (ciphertext-key)
a round, or a model, that was opened        ``IntegrityError`` (round-unmasked)
==========================================  ===================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cloister.client.book import SessionBook, Turn
from cloister.core import protocol
from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.public_key import key_refused
from cloister.privacy.manifest import Manifest
from cloister.privacy.masking import Fields
from cloister.privacy.threshold import (
    Held,
    JointCodec,
    JointKey,
    NewShare,
    OpenRequest,
    PublicShares,
    Recounted,
    ShareCommitments,
    engine,
    partials,
    show_share,
)
from cloister.privacy.threshold.shares import share_commitment

__all__ = ["counted", "hold", "joint_codec", "opened", "show"]


def hold(said: Mapping[str, Any], turn: Turn, run: str) -> Fields:
    """Make a share for a session to come, and answer with the commitment to it.

    Raises:
        IntegrityError: (manifest-replayed, session-step) the session is not newer than the last, or has no number.
        SpecError: (threshold-missing) OpenFHE cannot be used here.
    """
    serial = said.get(protocol.SERIAL)
    if type(serial) is not int or serial < 1:
        raise IntegrityError("the session has no number", code="session-step")
    turn.check_newer(serial)
    engine().check()  # now, and not when others have computed
    name = turn.credentials.identity.name
    made = NewShare.drawn(run=run, serial=serial, name=name)
    turn.keep_share({"serial": serial, "secret": made.secret, "public": made.share, "proof": made.proof})
    return {protocol.COMMITMENT: share_commitment(made.share, run=run, serial=serial, name=name)}


def show(said: Mapping[str, Any], turn: Turn, run: str) -> Fields:
    """Answer with the public half, signed with everybody's commitments; once.

    Raises:
        IntegrityError: (session-none, key-share, masking-message) there is none, it was shown, or its commitment is not among them.
    """
    share = turn.share()
    if "key" in share:
        raise IntegrityError(
            "this site's share of the joint key was shown before",
            remedy="let the server begin a new session",
            code="key-share",
        )
    told = ShareCommitments.from_fields(said)
    key, shown = show_share(
        turn.credentials.identity, told, share["public"], share["proof"], run=run, serial=share["serial"]
    )
    turn.keep_share({"serial": share["serial"], "secret": share["secret"], "key": key})
    return shown.to_fields()


def joint_codec(manifest: Manifest, said: Mapping[str, Any], book: SessionBook) -> JointCodec:
    """Return what encrypts for a session, and bind this site's share to its manifest.

    Args:
        manifest: of the session, checked.
        said: the message's record, with all public shares.
        book: holds this site's.

    Raises:
        IntegrityError: the shares do not hold, or are of another session.
    """
    shares = PublicShares.from_fields({one.name: said.get(one.name) for one in fields(PublicShares)})
    with book.turn() as turn:
        share = turn.share()
        if "key" not in share or "manifest" in share or share["serial"] != manifest.serial:
            raise key_refused("this site's share of the joint key is of another session, or was not shown")
        key = JointKey.read(
            shares,
            book.credentials.consortium,
            run=manifest.run,
            serial=manifest.serial,
            key_id=share["key"],
        )
        key.check(manifest)
        turn.keep_share({**share, "manifest": manifest.digest})
    return JointCodec(key, engine(), book.credentials.identity.name)


def counted(said: Mapping[str, Any], turn: Turn) -> Recounted:
    """Return the sum that the server asks this site to help open, counted again.

    Raises:
        IntegrityError: (session-none, ciphertext-key) it is of another session than this site's share; looked at before anything is counted, so that
            what is counted has the size that this site encrypted itself.
        IntegrityError, PolicyError: the request does not hold.
    """
    request, consortium = OpenRequest.from_fields(said).request(), turn.credentials.consortium
    if turn.share().get("manifest") != request.manifest.opened(consortium).digest:
        raise key_refused("the server asks to open another session than this site's share is of")
    return Recounted.of(request, consortium)


def opened(sum_: Recounted, turn: Turn) -> bytes:
    """Return this site's partial decryption of ``sum_``, and destroy its share.

    Raises:
        IntegrityError: (session-none, ciphertext-key, round-unmasked, threshold-failed) see the table.
    """
    share = turn.share()
    turn.check_sites(sum_.manifest, sum_.names)
    turn.opened(sum_.manifest)
    turn.drop_share()
    return partials(sum_, Held(manifest=share.get("manifest", b""), secret=share["secret"]), engine())
