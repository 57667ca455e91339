"""Who asks for a run, and for which: what a message's signed request says, checked against the message itself."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from flwr.app import Message

from cloister.client.incoming import Job, parsed
from cloister.core import protocol
from cloister.core.digests import federation_digest
from cloister.core.errors import IntegrityError
from cloister.core.spec import FederationSpec
from cloister.core.spec.grouping import least_in_sum
from cloister.privacy.identity import Consortium
from cloister.privacy.request import JobRequest, SignedRequest

__all__ = ["asked", "check_request"]

#: How far ahead of this site's clock a request may be dated.
_AHEAD = timedelta(minutes=10)


def check_request(
    message: Message, job: Job, consortium: Consortium, *, site: str, now: datetime, days: float
) -> tuple[str, JobRequest]:
    """Return the name of the user who asks, and the request.

    Args:
        message: what came.
        job: what it asks for.
        consortium: whose users may ask.
        site: this site's name.
        now: the time.
        days: a request that was signed longer ago is refused.

    Raises:
        IntegrityError: (request, identity, identity-revoked, signature) no user of the consortium signed it; (policy-request) it is for another run,
            another federation file or other sites, too old, or dated ahead.
    """
    record = message.content.config_records.get(protocol.REQUEST)
    user, request = SignedRequest.from_fields({} if record is None else dict(record)).opened(consortium)
    wrong = {
        "it is for another run than the message": request.run != job.run,
        "it is for another federation file than the message's": request.federation
        != federation_digest(parsed(job.federation)),
        "it does not ask this site": bool(request.sites) and site not in request.sites,
        "it is dated later than this site's clock": request.time > now + _AHEAD,
        f"it was signed more than {days:g} days ago": now - request.time > timedelta(days=days),
    }
    for why, holds in wrong.items():
        if holds:
            raise IntegrityError(
                f"the request to run a federation was refused: {why}",
                remedy="submit it anew",
                code="policy-request",
            )
    return user.name, request


def asked(user: str, request: JobRequest, spec: FederationSpec) -> dict[str, Any]:
    """Return what the site's log says of a run that is asked for."""
    return {
        "run": request.run,
        "user": user,
        "name": request.name,
        "purpose": request.purpose,
        "signed": request.at,
        "federation": request.federation,
        "task": spec.task.use,
        "protection": spec.aggregation.protection,
        "unit": spec.privacy.unit,
        "rounds": spec.federation.rounds,
        "min_sites": least_in_sum(spec),
    }
