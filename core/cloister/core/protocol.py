"""What travels between the server and a site: the names of records and keys, and nothing else.

Both sides speak Flower's messages; neither imports the other. This module is the vocabulary that they share.

===============  ==========================================================================================
message          records
===============  ==========================================================================================
``train``        ``job``, ``model`` → ``report``, ``update``  (or ``refusal``)
``evaluate``     ``job``, ``model`` → ``report``              (or ``refusal``)
``query``        ``job``            → ``site``                (or ``refusal``)
``query.secure`` ``job``, ``secure`` → ``secure``             (or ``refusal``)
``query.seal``   ``job``            → ``canaries``            (or ``refusal``)
``query.open``   ``job``            → ``canaries``            (or ``refusal``)
===============  ==========================================================================================

``job`` (text and numbers): `PROTOCOL`, the run's name, the round, the effective federation file as JSON, the layout's digest; `CLIP`, the
round's clip, where it adapts. A ``query`` with `AFFORD` asks whether the site allows the rounds after that one, too.
``model`` and ``update`` (arrays): `VECTOR`, and `CONTROL` under SCAFFOLD; each a flat float32 vector. Under ``unit = "site-distributed"``
the update's `VECTOR` is (2^k,) uint32, integers modulo 2^20, under ``"record-distributed"`` (size,) uint32, integers modulo 2^32; where the clip adapts, an update has also `WITHIN`: (1,) float32.
``report`` (numbers): what was measured at the site. ``refusal`` (text): a stable code and a message without data.
``secure`` (where updates are protected): a `STEP` of a secure session and what goes with it (`cloister.privacy.masking`): `ADVERT`, `SHARE`,
`CONFIRM` and `REVEAL` are queries; with `ADD` a ``train`` or an ``evaluate`` brings what the site needs. Under masks it is answered with ``update`` alone, whose one array is
`SUM`; under encryption with a `COMMITMENT`, and the query `SEAL` with ``update``, whose `SUM` is a ciphertext, and its signature. Under a joint key
the queries `HOLD` (a commitment to a share of the key) and `SHOW` (the share) come before, and `OPEN` after: ``update``, whose `SUM` is a partial decryption.
``ledger`` (text, in private runs whose sites keep ledgers): in a job, what others saw of the site's ledger and signed, and heads of
other sites; in a reply, the ledger's new head, what it has spent and its cap, and signatures of those heads. See `LEDGER`.
``canaries`` (where a run plants some): to ``query.seal`` the `SEAL` of the site's coins, before anything is trained; to ``query.open``, after the last
round, what opens it (`cloister.privacy.audit.coins`).
"""

from __future__ import annotations

__all__ = [
    "ADD",
    "ADVERT",
    "AFFORD",
    "CANARIES",
    "CLIP",
    "COMMITMENT",
    "CONFIRM",
    "CONFUSION",
    "CONTROL",
    "HOLD",
    "JOB",
    "KEY",
    "LEDGER",
    "METRIC",
    "MODEL",
    "MOST_INSIDE",
    "MOST_PACKED",
    "OPEN",
    "OPEN_QUERY",
    "PACKED",
    "PROTOCOL",
    "REFUSAL",
    "REPORT",
    "REQUEST",
    "REVEAL",
    "SEAL",
    "SEAL_QUERY",
    "SECURE",
    "SECURE_QUERY",
    "SERIAL",
    "SHARE",
    "SHOW",
    "SITE",
    "STEP",
    "SUM",
    "TOGETHER",
    "UPDATE",
    "VECTOR",
    "WITHIN",
]

#: Version of this vocabulary; a site refuses a job of another version.
PROTOCOL = 3

JOB = "job"
MODEL = "model"
UPDATE = "update"
REPORT = "report"
REFUSAL = "refusal"
SITE = "site"
#: In a deployment, beside ``job`` in every message: the user's signed request (`cloister.privacy.request`).
REQUEST = "request"
#: One key, `LEDGER`, whose value is JSON: {"heads", "witnesses", "peers"} in a job, {"head", "epsilon", "delta", "cap", "signed"} in a reply.
LEDGER = "ledger"
AFFORD = "afford"

#: The record of a secure session's messages, its key for the step, and the steps.
SECURE = "secure"
STEP = "step"
ADVERT, SHARE, ADD, CONFIRM, REVEAL, SEAL = "advert", "share", "add", "confirm", "reveal", "seal"
HOLD, SHOW, OPEN = "hold", "show", "open"
#: Under encryption: the authority's key in ``add``, the commitment in its answer, the digest of all commitments in ``seal``.
KEY, COMMITMENT, TOGETHER = "key", "commitment", "together"
#: Under a joint key: the number of the session that ``hold`` begins.
SERIAL = "serial"
#: The type of the messages that are steps of nothing else.
SECURE_QUERY = "query.secure"
#: What a site tells of the canaries that it plants, and the types of the messages that ask for it: the seal of the coins, and what opens it.
CANARIES = "canaries"
SEAL_QUERY, OPEN_QUERY = "query.seal", "query.open"
#: The one array of a protected reply.
SUM = "sum"

#: Over a SuperLink a message's records travel as one where they have at most so many bytes: under this name, as Flower's protobuf.
PACKED = "packed"
MOST_PACKED = 4 << 20
#: And where that one has at most so many bytes it travels in the message itself: apart, it would cost either side three calls more.
MOST_INSIDE = 256 << 10

VECTOR = "vector"
CONTROL = "control"

#: The round's clip in ``job``, where it adapts; and what a site then adds to its update: 1/2 if the norm was within, -1/2 if not.
CLIP = "clip"
WITHIN = "within"

#: Prefix of a task metric in ``report``; `CONFUSION` is the confusion matrix, row by row.
METRIC = "metric."
CONFUSION = "confusion"
