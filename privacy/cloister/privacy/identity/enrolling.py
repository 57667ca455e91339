"""What ``cloister site enrol`` and ``cloister kit enrol`` do: make keys and ask, then take the answer.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
the folder exists when keys are made        ``UsageError``
a folder without keys gets a grant          ``IntegrityError`` (kit-key)
a file of the member's own is there         left as it is
==========================================  =====================================
"""

from __future__ import annotations

import os
from pathlib import Path

from cloister.core.errors import UsageError
from cloister.core.files import write_whole
from cloister.privacy.identity.documents import read_document
from cloister.privacy.identity.enrolment import REQUEST, Grant, accept, new_request
from cloister.privacy.identity.keys import MemberKeys, private_folder
from cloister.privacy.identity.members import Consortium, Role
from cloister.privacy.identity.names import checked_name
from cloister.privacy.identity.texts import site_files, user_files

__all__ = ["ask", "complete"]


def ask(folder: Path, name: str, role: Role) -> str:
    """Make a member's folder with new keys and ``request.json``, and return the request's fingerprint.

    Raises:
        UsageError: the folder exists, or nobody can be called so.
        StorageError: it cannot be written.
    """
    checked_name(name)
    if os.path.lexists(folder):
        raise UsageError(
            f"'{folder}' exists", remedy="name a new folder, or give --grant to complete this one"
        )
    private_folder(folder)
    keys = MemberKeys.generate(role)
    keys.write(folder)
    raw, fingerprint = new_request(name, role, keys)
    write_whole(folder / REQUEST, raw)
    return fingerprint


def complete(
    folder: Path, grant: Path, *, role: Role | None = None, fingerprint: str | None = None
) -> tuple[Grant, Consortium]:
    """Put a grant into a member's folder, and the settings files that are not there yet.

    Args:
        folder: the member's.
        grant: ``grant.json``.
        role: what the member must be; any if left out.
        fingerprint: of the consortium's certificate, as its people told it.

    Raises:
        IntegrityError: as `accept`.
        UsageError: a file cannot be read.
    """
    given, consortium = accept(folder, read_document(grant), role=role, fingerprint=fingerprint)
    files: dict[str, str] = {}
    if Role(given.role) is Role.SITE:
        files = site_files(given.name, consortium.name, given.address, {})
    elif Role(given.role) is Role.USER:
        files = user_files(given.name, consortium.name, given.address)
    for name, text in files.items():
        if not os.path.lexists(folder / name):
            write_whole(folder / name, text)
    return given, consortium
