"""What travels between the server and a site: the names of records and keys, and nothing else.

Both sides speak Flower's messages; neither imports the other. This module is the vocabulary that they share.

===============  ==========================================================================================
message          records
===============  ==========================================================================================
``train``        ``job``, ``model`` → ``report``, ``update``  (or ``refusal``)
``evaluate``     ``job``, ``model`` → ``report``              (or ``refusal``)
``query``        ``job``            → ``site``                (or ``refusal``)
===============  ==========================================================================================

``job`` (text and numbers): `PROTOCOL`, the run's name, the round, the effective federation file as JSON, the layout's digest; `CLIP`, the
round's clip, where it adapts. A ``query`` with `AFFORD` asks whether the site allows the rounds after that one, too.
``model`` and ``update`` (arrays): `VECTOR`, and `CONTROL` under SCAFFOLD; each a flat float32 vector. Under ``unit = "site-distributed"``
the update's `VECTOR` is (2^k,) uint32, integers modulo 2^20, under ``"record-distributed"`` (size,) uint32, integers modulo 2^32; where the clip adapts, an update has also `WITHIN`: (1,) float32.
``report`` (numbers): what was measured at the site. ``refusal`` (text): a stable code and a message without data.
``ledger`` (text, in private runs whose sites keep ledgers): in a job, what others saw of the site's ledger and signed, and heads of
other sites; in a reply, the ledger's new head, what it has spent and its cap, and signatures of those heads. See `LEDGER`.
"""

from __future__ import annotations

__all__ = [
    "AFFORD",
    "CLIP",
    "CONFUSION",
    "CONTROL",
    "JOB",
    "LEDGER",
    "METRIC",
    "MODEL",
    "PROTOCOL",
    "REFUSAL",
    "REPORT",
    "SITE",
    "UPDATE",
    "VECTOR",
    "WITHIN",
]

#: Version of this vocabulary; a site refuses a job of another version.
PROTOCOL = 2

JOB = "job"
MODEL = "model"
UPDATE = "update"
REPORT = "report"
REFUSAL = "refusal"
SITE = "site"
#: One key, `LEDGER`, whose value is JSON: {"heads", "witnesses", "peers"} in a job, {"head", "epsilon", "delta", "cap", "signed"} in a reply.
LEDGER = "ledger"
AFFORD = "afford"

VECTOR = "vector"
CONTROL = "control"

#: The round's clip in ``job``, where it adapts; and what a site then adds to its update: 1/2 if the norm was within, -1/2 if not.
CLIP = "clip"
WITHIN = "within"

#: Prefix of a task metric in ``report``; `CONFUSION` is the confusion matrix, row by row.
METRIC = "metric."
CONFUSION = "confusion"
