"""Who is a member: answers to requests, renewals, revocations, and the table of all of them.

Formal guarantees:

- A request is granted only for a member that ``consortium.toml`` lets enrol by itself, and under its name nobody else's keys are certified while
  it is a member.
- A renewal without new keys certifies the keys that were certified, and no others.
- A revocation takes back every certificate that the member ever had and that it could still use.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
a request from nobody in the file           ``UsageError``
a request for a member that gets a kit      ``UsageError``
another key under a member's name           ``UsageError``: revoke first
no such member                              ``UsageError``, with the nearest name
==========================================  =====================================
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloister.core.errors import IntegrityError, UsageError
from cloister.core.files import write_whole
from cloister.core.spec.refusals import nearest
from cloister.privacy.identity import Purpose, Role
from cloister.privacy.identity.documents import read_document, sealed
from cloister.privacy.identity.enrolment import LONGEST_REQUEST, Grant, Request, read_request
from cloister.privacy.identity.keys import MemberKeys, private_folder
from cloister.server.provision.issued import IssuedBook, IssuedLine, Reason
from cloister.server.provision.kits import Kits, hosts_of, roles_of
from cloister.server.provision.making import meant, opened, publish
from cloister.server.provision.offline import Lists, Offline, Papers

__all__ = ["RENEW_DAYS", "Granted", "add", "members_table", "renew", "revoke"]

#: A certificate that ends within so many days is due.
RENEW_DAYS = 30
_GRANTS = "grants"


@dataclass(frozen=True, kw_only=True)
class Granted:
    """What `add`, `renew` and `revoke` did.

    Attributes:
        member: ``ROLE:NAME``.
        fingerprint: of the request; empty where there was none.
        grant: the file to hand to the member; none where there is none.
        kit: its kit, where that is here.
        expires: when its certificates end; empty if revoked.
        number: of the lists that were signed.
    """

    member: str
    fingerprint: str = ""
    grant: Path | None = None
    kit: Path | None = None
    expires: str = ""
    number: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {
            "member": self.member,
            "fingerprint": self.fingerprint,
            "grant": None if self.grant is None else str(self.grant),
            "kit": None if self.kit is None else str(self.kit),
            "expires": self.expires,
            "number": self.number,
        }


def add(out: Path, path: Path, *, fingerprint: str | None = None, to: Path | None = None) -> Granted:
    """Answer a request.

    Args:
        out: the consortium's folder.
        path: ``request.json``.
        fingerprint: of the request, as the member told it; any if left out.
        to: where the grant goes; into ``DIR/grants`` if left out.

    Raises:
        IntegrityError: (document, signature, enrolment, kit-key, key-known) it is refused.
        UsageError: see the table.
    """
    request = read_request(read_document(path, most=LONGEST_REQUEST))
    if fingerprint is not None and re.sub("[: ]", "", fingerprint).lower() != request.fingerprint:
        raise IntegrityError(
            f"the request has the fingerprint {request.fingerprint}, which is not the one you gave",
            remedy="ask the member what it sent: somebody else may have made this one",
            code="enrolment",
        )
    with opened(out) as (offline, kits):
        _refuse_unmeant(offline, request)
        papers = offline.issue(
            request.name,
            request.role,
            request.keys,
            by="request",
            roles=roles_of(offline.file, request.role, request.name),
        )
        lists, number = publish(out, offline, kits)
        grant = _write_grant(out, offline, papers, lists, to)
        return Granted(
            member=f"{request.role}:{request.name}",
            fingerprint=request.fingerprint,
            grant=grant,
            expires=papers.line.expires,
            number=number,
        )


def renew(out: Path, member: str, *, new_keys: bool = False, days: int | None = None) -> Granted:
    """Certify a member again: the same keys, or with ``new_keys`` new ones in a new kit, the old ones then taken back.

    Raises:
        UsageError: there is no such member, or it makes its keys itself.
    """
    with opened(out) as (offline, kits):
        line = _found(offline.book, member)
        role = Role(line.role)
        kit = kits.path(role, line.name)
        if new_keys:
            papers = _new_kit(offline, kits, line)
        else:
            papers = offline.issue(
                line.name,
                role,
                line.public,
                by=line.by,
                roles=roles_of(offline.file, role, line.name) or line.roles,
                hosts=hosts_of(offline.file, role),
                days=days,
            )
            if _is_kit_of(kit, role, papers):
                kits.write_papers(kit, papers)
                if role is Role.AUTHORITY:
                    kits.write_channel(kit)
        if kits.path(Role.SERVER, "").is_dir():
            kits.write_server_files()
        lists, number = publish(out, offline, kits)
        return Granted(
            member=f"{role}:{line.name}",
            grant=None if new_keys else _write_grant(out, offline, papers, lists, None),
            kit=kit if kit.is_dir() else None,
            expires=papers.line.expires,
            number=number,
        )


def revoke(out: Path, member: str, reason: Reason) -> Granted:
    """Take back all certificates of a member.

    Raises:
        UsageError: there is no such member.
    """
    with opened(out) as (offline, kits):
        line = _found(offline.book, member)
        offline.take_back(offline.book.standing(line.role, line.name), reason)
        _, number = publish(out, offline, kits)
        return Granted(member=f"{line.role}:{line.name}", number=number)


def members_table(out: Path) -> tuple[list[dict[str, Any]], int]:
    """Return a row for each member, awaited or struck off (who, what, until when, how it stands), and the number of the newest lists."""
    with opened(out) as (offline, _):
        now, current = datetime.now(UTC), offline.book.current()
        rows = [_row(line, now) for line in current.values()]
        rows += [
            {"role": role.value, "name": name, "state": "awaited"}
            for role, name in meant(offline.file)
            if (role.value, name) not in current
        ]
        for gone in offline.book.revoked():
            if (gone.role, gone.name) not in current:
                rows = [row for row in rows if (row["role"], row["name"]) != (gone.role, gone.name)]
                rows.append(
                    {
                        "role": gone.role,
                        "name": gone.name,
                        "state": f"revoked: {gone.reason}",
                        "since": gone.at,
                    }
                )
        return rows, offline.book.number


def _row(line: IssuedLine, now: datetime) -> dict[str, Any]:
    left = (line.ends - now).days
    state = "valid" if left >= RENEW_DAYS else "renew soon" if line.ends > now else "expired"
    return {
        "role": line.role,
        "name": line.name,
        "roles": list(line.roles),
        "state": state,
        "expires": line.expires,
        "days_left": left,
        "keys_made": "here" if line.by == "kit" else "by the member",
        "identity_serial": line.identity_serial,
        "tls_serial": line.tls_serial,
    }


def _refuse_unmeant(offline: Offline, request: Request) -> None:
    who, table = f"{request.role} '{request.name}'", f"{request.role}s"
    enrols = meant(offline.file).get((request.role, request.name))
    if enrols is None:
        raise UsageError(
            f"consortium.toml has no {who}",
            remedy=f"if it is to be a member: add it to [[{table}]] with csr = true, and run 'cloister provision' with the file",
        )
    if not enrols:
        raise UsageError(
            f"a kit is made for {who}: it does not enrol by itself",
            remedy=f"set csr = true for it in [[{table}]], and run 'cloister provision' with the file; revoke the kit if it was made",
        )
    there = offline.book.current().get((request.role.value, request.name))
    if there is not None and there.public != request.keys:
        raise UsageError(
            f"{who} is a member already, with other keys",
            remedy=f"if its keys are lost or known to others: cloister provision revoke DIR {request.role}:{request.name}; then add again",
        )


def _new_kit(offline: Offline, kits: Kits, line: IssuedLine) -> Papers:
    """Make a kit with new keys, then take back what there was: never the other way round, lest a crash leave no member."""
    role = Role(line.role)
    if line.by == "request":
        raise UsageError(
            f"{role} '{line.name}' makes its keys itself",
            remedy="revoke it, and have it enrol in a new folder",
        )
    before = offline.book.standing(line.role, line.name)
    kit = kits.path(role, line.name)
    if kit.exists():
        kit.rename(_aside(kit))
    papers = kits.make(line.name, role)
    offline.take_back(before, "superseded")
    return papers


def _aside(kit: Path) -> Path:
    """Return a name for a kit that was replaced; its operator removes it."""
    return kit.parent / f".{kit.name}.{datetime.now(UTC):%Y%m%dT%H%M%S%f}.replaced"


def _is_kit_of(kit: Path, role: Role, papers: Papers) -> bool:
    if not kit.is_dir():
        return False
    try:
        return MemberKeys.read(kit, role).public.identity.hex() == papers.line.identity
    except IntegrityError:
        return False


def _found(book: IssuedBook, member: str) -> IssuedLine:
    role, colon, name = member.rpartition(":")
    current = book.current()
    hits = [line for line in current.values() if line.name == name and (not colon or line.role == role)]
    if len(hits) != 1:
        known = [f"{line.role}:{line.name}" for line in (hits or current.values())]
        raise UsageError(
            f"{'several members are' if hits else 'no member is'} called '{member}'{nearest(member, known)}",
            remedy="name it as ROLE:NAME; 'cloister provision list DIR' shows all",
        )
    return hits[0]


def _write_grant(out: Path, offline: Offline, papers: Papers, lists: Lists, to: Path | None) -> Path:
    line = papers.line
    made = Grant.model_validate(
        {
            "consortium": base64.b64encode(offline.certificate).decode(),
            "name": line.name,
            "role": line.role,
            "address": offline.file.server.address,
            "identity": base64.b64encode(papers.identity).decode(),
            "tls": None if papers.tls is None else papers.tls.decode(),
            "root": None if papers.tls is None else offline.tls.root.decode(),
            "members": lists.members.decode(),
            "revoked": lists.revoked.decode(),
        }
    )
    if to is None:
        private_folder(out / _GRANTS, there=True)
        to = out / _GRANTS / f"{line.role}-{line.name}.json"
    write_whole(to, sealed(made, lambda signed: offline.identities.sign(Purpose.GRANT, signed)))
    return to
