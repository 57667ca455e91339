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

**Against whom.** The server may do what it likes, with any sites on its side short of all. What it sees beyond the sum is the sum's noise, unrounded: it adds the
partial decryptions up. A ciphertext or a share of the key that is not well formed, with 2^130 added to it, say, would carry the joint secret key into that noise, above
all flooding, while the sum stays exact. So each comes with a proof that it is well formed (`proofs`), which every site checks before it helps. OpenFHE makes no such
proofs, so shares and ciphertexts are made here (`shares`, over `ring`); OpenFHE encodes, partially decrypts with its flooding, and decodes.
"""

from cloister.privacy.threshold.engine import PYTHON, Engine, engine
from cloister.privacy.threshold.messages import KeyShare, OpenRequest, PublicShares, ShareCommitments
from cloister.privacy.threshold.opening import Held, Recounted, fused, partials
from cloister.privacy.threshold.shares import (
    JointCodec,
    JointKey,
    NewShare,
    agreed_shares,
    check_formed,
    check_share,
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
    "NewShare",
    "OpenRequest",
    "PublicShares",
    "Recounted",
    "ShareCommitments",
    "agreed_shares",
    "check_formed",
    "check_share",
    "engine",
    "fused",
    "partials",
    "share_commitment",
    "show_share",
]
