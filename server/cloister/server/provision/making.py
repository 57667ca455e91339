"""What the commands of ``cloister provision`` do: make a consortium, bring it up to date, certify again, take back.

::

    DIR/authority-offline/    the certificate authority: `offline`
    DIR/kits/                 members' kits, until they are handed over: `kits`
    DIR/grants/               answers to requests, and renewals: handed to the member
    DIR/public/               members.json, revoked.json, crl.pem: for every member

==========================================  =====================================
case                                        outcome
==========================================  =====================================
the same file again                         makes nothing, signs new lists
a member that is new in the file            its kit is made
a member that is no longer in the file      stays certified, and is named: revoke it
others may change what is in the folder     ``UsageError``
==========================================  =====================================
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.core.errors import UsageError
from cloister.core.files import write_whole
from cloister.privacy.identity import Consortium, Role
from cloister.privacy.identity.keys import private_folder
from cloister.privacy.identity.register import MEMBERS, REVOKED
from cloister.server.provision.consortium_file import ConsortiumFile
from cloister.server.provision.kits import KITS, Kits
from cloister.server.provision.offline import OFFLINE, Lists, Offline, make_offline, open_offline

__all__ = ["Provisioned", "meant", "opened", "provision", "publish"]

_PUBLIC = "public"


@dataclass(frozen=True, kw_only=True)
class Provisioned:
    """What `provision` did.

    Attributes:
        fingerprint: of the consortium's certificate: what people compare over the telephone.
        made: the kits that were made.
        awaited: sites and users that enrol by themselves and did not yet.
        left: members that are certified and no longer in the file.
        number: of the lists that were signed.
    """

    fingerprint: str
    made: list[Path] = field(default_factory=list)
    awaited: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    number: int

    def as_dict(self) -> Mapping[str, Any]:
        """Return it as ``--json`` prints it."""
        return {
            "fingerprint": self.fingerprint,
            "made": [str(path) for path in self.made],
            "awaited": self.awaited,
            "left": self.left,
            "number": self.number,
        }


def provision(file: ConsortiumFile, raw: bytes, out: Path) -> Provisioned:
    """Make the consortium in ``out``, or bring it up to date with a newer file.

    Args:
        file: the consortium.
        raw: the bytes of ``consortium.toml``.
        out: ``DIR``.

    Raises:
        UsageError: ``out`` is of another consortium.
        StorageError: it cannot be written.
    """
    private_folder(out, there=True)
    _refuse_shared(out)
    if not (out / OFFLINE).exists():
        make_offline(out / OFFLINE, file, raw)
    with opened(out, newer=(file, raw)) as (offline, kits):
        wanted = meant(file)
        for role, name in wanted:
            kits.abandon(role, name)
        current = offline.book.current()
        made, awaited = [], []
        for (role, name), enrols in wanted.items():
            if (role.value, name) in current:
                continue
            if enrols:
                awaited.append(f"{role}:{name}")
                continue
            kits.make(name, role)
            made.append(kits.path(role, name))
        if kits.path(Role.SERVER, "").is_dir():
            kits.write_server_files()
        lists = publish(out, offline, kits)
        return Provisioned(
            fingerprint=Consortium(offline.certificate).fingerprint,
            made=made,
            awaited=awaited,
            left=[f"{role}:{name}" for role, name in current if (Role(role), name) not in wanted],
            number=lists[1],
        )


def _refuse_shared(out: Path) -> None:
    """Refuse a folder in which others could put something else in the place of what is made."""
    found = out.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise UsageError(
            f"others than you can change what is in '{out}'",
            remedy="name a folder of your own with --out, or: chmod go-w",
        )


@contextmanager
def opened(out: Path, newer: tuple[ConsortiumFile, bytes] | None = None) -> Iterator[tuple[Offline, Kits]]:
    """Open a consortium's folder for one command.

    Raises:
        UsageError: it is none.
        IntegrityError: (offline, offline-busy, kit-key, identity) it does not hold.
    """
    with open_offline(out / OFFLINE, newer) as offline:
        yield offline, Kits(folder=out / KITS, offline=offline)


def meant(file: ConsortiumFile) -> dict[tuple[Role, str], bool]:
    """Return who is to be a member, and whether it makes its keys itself; the server first."""
    found = {(Role.SERVER, file.server.name): False}
    if file.authority is not None:
        found[Role.AUTHORITY, file.authority.name] = False
    found |= {(Role.SITE, site.name): site.csr for site in file.sites}
    return found | {(Role.USER, user.name): user.csr for user in file.users}


def publish(out: Path, offline: Offline, kits: Kits) -> tuple[Lists, int]:
    """Sign the lists anew, and put them into ``DIR/public`` and every kit that is still here; return them and their number."""
    lists = offline.lists()
    private_folder(out / _PUBLIC, there=True)
    write_whole(out / _PUBLIC / MEMBERS, lists.members)
    write_whole(out / _PUBLIC / REVOKED, lists.revoked)
    write_whole(out / _PUBLIC / "crl.pem", lists.crl)
    kits.refresh(lists)
    return lists, offline.book.number
