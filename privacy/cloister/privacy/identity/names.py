"""Names of members that may be names of folders, and subjects of certificates."""

from __future__ import annotations

import re

from cloister.core.errors import UsageError

__all__ = ["NAME", "checked_name"]

#: Letters, digits, ``-``, ``_`` and ``.``, at most 64 of them, a letter or digit first: never ``..``, never with a slash.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def checked_name(name: str) -> str:
    """Return ``name`` if a member may be called so.

    Raises:
        UsageError: it may not.
    """
    if re.fullmatch(NAME.strip("^$"), name) is None:
        raise UsageError(
            f"{name!r} is no name of a member",
            remedy="take letters, digits, '-', '_' and '.', at most 64, beginning with a letter or digit",
        )
    return name
