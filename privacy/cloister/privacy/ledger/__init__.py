"""A site's ledger: what was spent of a data set's privacy, in a file that outlives runs and crashes and cannot be rewritten.

==================  ==========================================================================================
module              what it is
==================  ==========================================================================================
`ledger`            `Ledger`: caps, reserve, what is spent and left, witnesses
`reservation`       `Reservation`: commit before anything leaves, or give back
`spending`          the composition of everything charged, against cap and rate
`budget`            `Cap`, `Rate`, and the seam to the accounting
`chain`             the rules that every entry meets, when written and when verified
`entry`             one entry: columns, canonical form, hash, signature
`heads`             heads, their witnesses, and the head file
`telling`           what sites and server tell each other about them each round
`verification`      is it all there, and does it cost what it says? (reads through `inspection`)
`writer`, `store`,  the files: SQLite, synced, one writer
`lock`, `keys`
==================  ==========================================================================================
"""

from __future__ import annotations

from cloister.privacy.ledger.budget import Account, Cap, Rate
from cloister.privacy.ledger.entry import Entry, Figures
from cloister.privacy.ledger.heads import Head, sign_witness
from cloister.privacy.ledger.inspection import Problem
from cloister.privacy.ledger.keys import create_key, load_key, load_or_create_key
from cloister.privacy.ledger.ledger import Ledger
from cloister.privacy.ledger.reservation import Reservation
from cloister.privacy.ledger.spending import Budget
from cloister.privacy.ledger.verification import Verification, verify

__all__ = [
    "Account",
    "Budget",
    "Cap",
    "Entry",
    "Figures",
    "Head",
    "Ledger",
    "Problem",
    "Rate",
    "Reservation",
    "Verification",
    "create_key",
    "load_key",
    "load_or_create_key",
    "sign_witness",
    "verify",
]
