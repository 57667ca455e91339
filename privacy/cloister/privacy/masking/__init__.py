"""Secure aggregation by masking: the server learns the sum of the sites' vectors, and no site's own.

(The whole protocol is described below; see also `parameters`, `graph`, `site`, `server`.)
"""

from cloister.privacy.masking.fields import Fields
from cloister.privacy.masking.messages import (
    Advert,
    Confirmation,
    Confirmations,
    Deliveries,
    Reveal,
    Roster,
    SealedShares,
    Survivors,
)
from cloister.privacy.masking.parameters import parameters, quorum
from cloister.privacy.masking.server import Refusal, ServerSession
from cloister.privacy.masking.site import SiteSession

__all__ = [
    "Advert",
    "Confirmation",
    "Confirmations",
    "Deliveries",
    "Fields",
    "Refusal",
    "Reveal",
    "Roster",
    "SealedShares",
    "ServerSession",
    "SiteSession",
    "Survivors",
    "parameters",
    "quorum",
]
