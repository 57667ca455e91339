"""A user's signed call: who asks the server for what, so that it counts whatever carries it.

Formal guarantees:

- `CallBook.heard` returns a user only for a call that this user signed, for this method and this matter, within the last minutes, and that was not
  heard before, whatever process heard it.

==============================================  =====================================
case                                            outcome
==============================================  =====================================
no call, or one that cannot be read             ``IntegrityError`` (call)
signed by nobody, by a site, by a stranger      ``IntegrityError`` (identity, signature)
of another method or matter                     ``IntegrityError`` (call)
older than `FRESH_S`, or of the future          ``IntegrityError`` (call-stale)
heard before                                    ``IntegrityError`` (call-replayed)
==============================================  =====================================
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable

from cloister.core.errors import IntegrityError
from cloister.privacy.identity import Consortium, Identity, Member, Purpose, Role
from cloister.server.deployment import jobs_pb2 as messages

__all__ = ["FRESH_S", "CallBook", "sign_call"]

#: Seconds that a signed call is good for, and that clocks may be apart.
FRESH_S = 300.0
_LONGEST = 4096


def sign_call(user: Identity, method: str, about: str = "") -> messages.Call:
    """Return a call of ``method`` about ``about`` (a run's name), signed now."""
    said = json.dumps(
        {"method": method, "about": about, "at": time.time(), "nonce": secrets.token_hex(16)},
        sort_keys=True,
    ).encode()
    return messages.Call(said=said, signature=user.sign(Purpose.CALL, said), certificate=user.certificate)


class CallBook:
    """Checks calls, and has those of the last minutes remembered.

    Args:
        believed: whose users are heard, at this moment.
        first: remembers a key until a time, seconds since 1970, on the disk; whether it is new.
    """

    def __init__(self, believed: Callable[[], Consortium], first: Callable[[str, float], bool]) -> None:
        self._believed = believed
        self._first = first

    def heard(self, call: messages.Call, method: str, about: str = "") -> Member:
        """Return the user who signed ``call``.

        Raises:
            IntegrityError: see the table.
        """
        user = self._believed().member(bytes(call.certificate), role=Role.USER)
        user.check(Purpose.CALL, bytes(call.said), bytes(call.signature))
        try:
            said = json.loads(call.said) if len(call.said) <= _LONGEST else {}
            at, nonce = float(said["at"]), str(said["nonce"])
            same = (said["method"], said["about"]) == (method, about)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise _unfit("it cannot be read") from None
        if not same:
            raise _unfit("it is signed for something else")
        now = time.time()
        if not abs(now - at) <= FRESH_S:
            raise IntegrityError(
                f"a call of user '{user.name}' was signed {now - at:.0f} s ago by its own clock",
                remedy="set the clocks right, and call again",
                code="call-stale",
            )
        key = hashlib.sha256(user.public_key + nonce.encode(errors="replace")).hexdigest()
        if not self._first(key, max(at, now) + 2 * FRESH_S):
            raise IntegrityError(
                f"a call of user '{user.name}' was heard before",
                remedy="call again: each call is signed anew",
                code="call-replayed",
            )
        return user


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        f"a call was refused: {why}", remedy="use the same version of cloister as the server's", code="call"
    )
