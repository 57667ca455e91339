"""Who is in the run, as a site knows it for itself: what its groups are drawn from.

In a deployment the names are those of the request that a user signed, which comes with every message; the run is named after it. In a simulation
the sites know each other.

==============================================  ================================================
case                                            outcome
==============================================  ================================================
no group_size                                   no groups
a request that nobody signed, of another run    ``IntegrityError`` (identity, signature, request)
or another federation
a request that lists no sites                   ``PolicyError`` (groups-open): the server could
                                                choose them, and so the groups
neither a request nor a simulation              ``PolicyError`` (groups-open)
another number of sites than cohort.sites       ``IntegrityError`` (group-differs)
==============================================  ================================================
"""

from __future__ import annotations

import json

from flwr.app import Message

from cloister.client.incoming import Job
from cloister.core import protocol
from cloister.core.digests import federation_digest
from cloister.core.errors import IntegrityError, PolicyError
from cloister.core.randomness import Randomness
from cloister.core.spec import FederationSpec
from cloister.privacy.grouping import Groups, beacon_of
from cloister.privacy.identity import Consortium
from cloister.privacy.request import SignedRequest

__all__ = ["groups_for"]


def groups_for(
    message: Message,
    job: Job,
    spec: FederationSpec,
    *,
    consortium: Consortium | None,
    peers: tuple[str, ...],
    randomness: Randomness,
) -> Groups | None:
    """Return the groups of the run that ``message`` is of; ``None`` where the federation has none.

    Args:
        message: holds the user's request, in a deployment.
        job: what it says, checked.
        spec: the federation.
        consortium: whose users may ask.
        peers: all sites of a simulation; none in a deployment.
        randomness: the site's.

    Raises:
        IntegrityError: the request does not hold, or is of something else.
        PolicyError: nothing that a user signed says who is in the run.
    """
    size = spec.aggregation.group_size
    if size is None or spec.aggregation.protection == "plain":
        return None
    record = message.content.config_records.get(protocol.REQUEST)
    if record is not None and consortium is not None:
        _, request = SignedRequest.from_fields(record).opened(consortium)
        if request.run != job.run or request.federation != federation_digest(json.loads(job.federation)):
            raise IntegrityError(
                "the request that came with the message is of another run or another federation",
                remedy="find out why the server mixes requests",
                code="request",
            )
        peers = request.sites
    elif not randomness.reproducible:
        peers = ()
    if not peers:
        raise PolicyError(
            "aggregation.group_size needs the run's sites by name in the request that a user signs: else the server could choose them, "
            "and with them the groups",
            remedy="submit the job with the names of its sites",
            code="groups-open",
        )
    if len(peers) < size or (spec.cohort.sites or len(peers)) != len(peers):
        raise IntegrityError(
            f"the run has {len(peers)} sites, and the federation file says group_size = {size} and sites = {spec.cohort.sites}",
            remedy="ask as many sites as cohort.sites says",
            code="group-differs",
        )
    return Groups.draw(beacon_of(randomness, job.run), peers, size)
