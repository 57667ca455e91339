"""``threshold-bfv``: sums under a key that all sites of a session hold together, and nobody else. Through OpenFHE; experimental.

No one ever holds the secret key. Each site makes a share; values are encrypted under the sum of all public shares; and a sum is
opened from one partial decryption of every site: n of n. So a site that is lost before the end costs the round its sum.

One session, in order::

    site      hold    a fresh share of the key; its commitment                      the secret half is kept
    site      show    the public half, once all have committed                      signed, with all commitments
    site      add     a commitment to its ciphertext under the joint key            as in `cloister.privacy.homomorphic`
    site      seal    the ciphertext, signed with all commitments to ciphertexts
    site      open    its partial decryption of the sum, which it counts again      once: the secret half is gone before
    server            the sums, from all partial decryptions

Each site is to the sum what the key authority is under ``bfv``: it is sent every site's ciphertext, believes nothing that the server says of
the sum, and opens one sum a session. In place of an authority that is trusted, it takes all sites together to read one update.

**Against whom.** The server may do what it likes, and all sites but one may tell it all that they see, as long as every site *sends* what the protocol
says. It is broken by one site that does not, together with the server. The server puts partial decryptions together and so sees Δ·M + noise, unrounded.
A ciphertext whose polynomial 1 is not a·u + e1 with small u and e1, but has 2^130 added, say, adds 2^130·s to that noise, above all flooding: the joint secret
key s can be read off, and with it every ciphertext of the session, while the sum stays exact. A share b that is not e - a·s with small s and e does the same
in another way. It would take a proof with each ciphertext and each share that they are well formed; there is none here. ``bfv`` is not
touched by it, since its authority releases whole sums only; ``masked`` has nothing to decrypt.
"""

from cloister.privacy.threshold.engine import PYTHON, Engine, engine
from cloister.privacy.threshold.messages import KeyShare, OpenRequest, PublicShares, ShareCommitments
from cloister.privacy.threshold.opening import Held, Recounted, fused, partials
from cloister.privacy.threshold.shares import (
    JointCodec,
    JointKey,
    agreed_shares,
    check_share,
    new_share,
    share_commitment,
    show_share,
)

__all__ = [
    "PYTHON",
    "Engine",
    "Held",
    "JointCodec",
    "JointKey",
    "KeyShare",
    "OpenRequest",
    "PublicShares",
    "Recounted",
    "ShareCommitments",
    "agreed_shares",
    "check_share",
    "engine",
    "fused",
    "new_share",
    "partials",
    "share_commitment",
    "show_share",
]
