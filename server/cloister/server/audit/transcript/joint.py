"""Of a session under a joint key: who holds a share of it, and whether all of them helped to open the sum."""

from __future__ import annotations

from collections import Counter, defaultdict

from cloister.core import protocol
from cloister.core.errors import CloisterError
from cloister.privacy.identity import Consortium
from cloister.privacy.threshold.shares import agreed_shares, check_shown
from cloister.server.audit.transcript.examined import Examined
from cloister.server.audit.transcript.sessions import Session

__all__ = ["HOLDERS", "check_joint_key", "check_opened", "unopened"]

HOLDERS = "all sites of a session together"


def check_joint_key(session: Session, consortium: Consortium, found: Examined) -> None:
    """Check that the manifest's key is of the commitments that its sites sent, and that each signed its share with them.

    A share itself is not kept: that it is what was committed to the sites check, and the server did.
    """
    manifest, commitments = session.manifest, {}
    held: dict[str, dict[str, list[bytes]]] = defaultdict(lambda: defaultdict(list))
    for site, replies in session.holding.items():
        for reply in replies:
            for name, value in reply.values(protocol.SECURE).items():
                if isinstance(value, bytes):
                    held[site][name].append(value)
    for site in session.names:
        digests = held[site][protocol.COMMITMENT]
        found.public[f"{site}, share of the key"] = tuple(digests)
        commitments[site] = digests[0] if digests else b""
    key_id = agreed_shares(commitments, run=manifest.run, serial=manifest.serial)
    if key_id != manifest.key:
        found.unsigned.append("the session's key is not that of the commitments that its sites sent")
        return
    for site, digest in commitments.items():
        signatures, certificates = held[site]["signature"], held[site]["certificate"]
        try:
            check_shown(
                site,
                digest,
                (signatures or [b""])[0],
                (certificates or [b""])[0],
                consortium=consortium,
                key_id=key_id,
            )
        except CloisterError as error:
            found.unsigned.append(f"the share of '{site}': {error.message}")


def check_opened(session: Session, found: Examined) -> None:
    """Check that the server asked for one sum, of all holders, and that each helped once: two partial decryptions of one share open two sums."""
    if len(session.opens) > 1:
        found.unsigned.append(f"the server asked the holders of one key to open {len(session.opens)} sums")
    helped = _helped(session)
    found.unsigned += [
        f"'{site}' helped {count} times to open what one key opens once"
        for site, count in helped.items()
        if count > 1
    ]
    if helped and set(found.survivors) != set(session.names):
        found.unsigned.append(
            f"{len(helped)} sites helped to open a sum that not all {len(session.names)} holders of its key are in"
        )


def unopened(session: Session) -> str:
    """Return why the sum was not opened, or nothing where every holder helped."""
    helped = _helped(session)
    missing = [site for site in session.names if site not in helped]
    return (
        f"{len(missing)} of {len(session.names)} holders of the key did not help to open the sum"
        if missing
        else ""
    )


def _helped(session: Session) -> dict[str, int]:
    """Return how many partial decryptions came from each site."""
    return Counter(
        reply.site
        for reply in session.of(protocol.OPEN)
        for entry in reply.entries
        if session.allows_partial(entry)
    )
