"""The transcript audit: from everything that the server received, what could it read of one site?

::

    reading      the transcript's lines, strictly: a damaged or edited file is refused
    sessions     which lines are of which secure session
    fields       what may arrive in a step of a protocol; all else came in clear
    uniformity   protected vectors against uniform numbers: chi-squares, neighbours, nearness to 0, differences
    masked       the attacker's side of a masked session: what opens with every share at hand
    encrypted    the same of an encrypted session; `examined` is what either gives
    collusion    who would have to help the server
    auditing     all of it, as data with a verdict
    telling      for a terminal; `page` for a browser; ``cloister audit transcript`` is `cloister.server.audit.transcript_command`
"""

from cloister.server.audit.transcript.auditing import audit_transcript

__all__ = ["audit_transcript"]
