"""A request to run a federation: what a user signs, the server queues, and every site reads before it decides.

The signed request travels with each message of its run, so that a site knows who asks without having to believe the server.

Formal guarantees:

- `SignedRequest.opened` returns a request only if a user of the consortium signed exactly these bytes.
- A run is named after its request (`JobRequest.run`): the same request again is the same run, whose rounds a site has answered already.

==============================================  =====================================
case                                            outcome
==============================================  =====================================
unknown or missing field, another version       ``IntegrityError`` (request)
signed by nobody, by a site, by a stranger      ``IntegrityError`` (identity, signature)
==============================================  =====================================
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property

from cloister.core.errors import IntegrityError
from cloister.privacy.identity import Consortium, Identity, Member, Purpose, Role
from cloister.privacy.identity.statement import Statement

__all__ = ["VERSION", "JobRequest", "SignedRequest"]

#: Version of the request.
VERSION = 1

_HEX = re.compile(r"[0-9a-f]{64}")
_NONCE = re.compile(r"[0-9a-f]{32}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_ODD = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST = 1 << 14
_LONGEST_PURPOSE = 500
_MOST_SITES = 1000


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What a user asks for.

    Attributes:
        name: of the federation.
        federation: SHA-256 (hex) of the effective federation file.
        purpose: why, in the user's words: a site's officer reads it.
        sites: the sites that are asked, by name, sorted; empty for all of the consortium.
        at: when it was signed, UTC, ``YYYY-MM-DDTHH:MM:SSZ``.
        nonce: 32 hexadecimal digits: tells two requests for the same federation apart.
    """

    name: str
    federation: str
    purpose: str = ""
    sites: tuple[str, ...] = ()
    at: str
    nonce: str

    def __post_init__(self) -> None:
        holds = {
            "name": 0 < len(self.name) <= 128 and self.name.isprintable(),
            "federation": _HEX.fullmatch(self.federation) is not None,
            "purpose": len(self.purpose) <= _LONGEST_PURPOSE and self.purpose.isprintable(),
            "sites": len(self.sites) <= _MOST_SITES and list(self.sites) == sorted(set(self.sites)),
            "at": _TIME.fullmatch(self.at) is not None,
            "nonce": _NONCE.fullmatch(self.nonce) is not None,
        }
        wrong = [name for name, one in holds.items() if not one]
        if wrong:
            raise _unfit(f"its {', '.join(wrong)} cannot be used")

    @classmethod
    def new(cls, name: str, federation: str, *, purpose: str = "", sites: tuple[str, ...] = ()) -> JobRequest:
        """Return a request made now, with a nonce of its own."""
        return cls(
            name=name,
            federation=federation,
            purpose=purpose,
            sites=tuple(sorted(set(sites))),
            at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            nonce=secrets.token_hex(16),
        )

    @cached_property
    def encoded(self) -> bytes:
        """The bytes that are signed: JSON with sorted keys."""
        data = {"version": VERSION, **asdict(self), "sites": list(self.sites)}
        return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def run(self) -> str:
        """What names the run at the server, at the sites and in their ledgers."""
        stem = _ODD.sub("-", self.name).strip("-")[:40] or "job"
        return f"{stem}-{hashlib.sha256(self.encoded).hexdigest()[:24]}"

    @property
    def time(self) -> datetime:
        """When it was signed."""
        return datetime.strptime(self.at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)

    def signed(self, user: Identity) -> SignedRequest:
        """Return it with the user's signature."""
        return SignedRequest.by(user, self.encoded)

    @classmethod
    def decode(cls, encoded: bytes) -> JobRequest:
        """Read a request.

        Raises:
            IntegrityError: (request) it is none, or not in its one form.
        """
        try:
            data = json.loads(encoded) if len(encoded) <= _LONGEST else None
        except (ValueError, RecursionError):
            data = None
        texts = {field.name for field in fields(cls)} - {"sites"}
        if not isinstance(data, dict) or set(data) != texts | {"sites", "version"}:
            raise _unfit("it cannot be read")
        if data.pop("version") != VERSION:
            raise _unfit(f"it is of another version than {VERSION}")
        sites = data.pop("sites")
        if not isinstance(sites, list) or not all(isinstance(one, str) for one in [*sites, *data.values()]):
            raise _unfit("it cannot be read")
        made = cls(**data, sites=tuple(sites))
        if made.encoded != encoded:
            raise _unfit("it is not written in its one form")
        return made


class SignedRequest(Statement):
    """A request as it travels, signed by a user; ``encoded`` is `JobRequest.encoded`."""

    FIELD = "request"
    PURPOSE = Purpose.JOB
    ROLE = Role.USER

    def opened(self, consortium: Consortium) -> tuple[Member, JobRequest]:
        """Return who asks for what, checked.

        Raises:
            IntegrityError: no user of the consortium signed it, or it is none.
        """
        return self.signer(consortium), JobRequest.decode(self.encoded)

    @classmethod
    def unfit(cls, why: str) -> IntegrityError:
        """Return the refusal of a request."""
        return _unfit(why)


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        f"the request to run a federation was refused: {why}",
        remedy="submit it with the same version of cloister as the server's and the sites'",
        code="request",
    )
