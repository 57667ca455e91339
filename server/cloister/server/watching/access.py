"""Who may look: the Host header, the token and its cookie.

=================================  ========================================================================================
a request                          what comes of it
=================================  ========================================================================================
names a host that is not ours      403, whatever else it holds: a foreign page that had its own name lead here learns nothing
came from another site's page      403, but for a plain visit
is no GET, HEAD (POST /enter)      405
without the token, where one is    403 with a form for it; nothing of a run
``?token=`` or the form, right     303 to the same page without it, and a cookie
=================================  ========================================================================================

The cookie holds no token but what only its holder can make of it, is sent to this site only (``SameSite=Strict``) and is out of reach of scripts
(``HttpOnly``). Tokens and cookies are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cloister.core.errors import UsageError
from cloister.core.files import write_whole

__all__ = ["Access", "is_loopback", "names_of", "token_from"]

_LEAST = 24
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a request is held against.

    Attributes:
        token: who shows it may look; ``None``: whoever can reach the address.
        names: host names that are ours, beside loopback's.
        addresses: whether any literal address is ours: where one listens beyond loopback. Only a name can be led astray.
    """

    token: str | None = None
    names: frozenset[str] = frozenset()
    addresses: bool = False

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names us; its port does not matter, so that a tunnel may have another."""
        name = _name_of(host)
        if name in _LOOPBACK or name in self.names:
            return True
        return self.addresses and _is_address(name)

    def opens(self, token: str) -> bool:
        """Whether ``token`` is ours."""
        return self.token is not None and hmac.compare_digest(_hash(token), _hash(self.token))

    @property
    def cookie(self) -> str:
        """What a visitor who has shown the token is given."""
        return hmac.new(_hash(self.token or ""), b"cloister watch: cookie", hashlib.sha256).hexdigest()

    def admits(self, cookie: str | None) -> bool:
        """Whether a visitor with this cookie may look."""
        return self.token is None or hmac.compare_digest(_hash(cookie or ""), _hash(self.cookie))


def token_from(path: Path | None) -> tuple[str, bool]:
    """Return the token of a file, and whether it was made now; without a file a new one, made for this process only.

    Raises:
        UsageError: others than its owner may read the file, or what it holds is too short or no text.
        StorageError: the file is not there and cannot be made.
    """
    if path is None:
        return secrets.token_urlsafe(32), True
    try:
        about = path.stat()
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        write_whole(path, token + "\n", mode=0o600)
        return token, False
    except OSError as error:
        raise _unusable(path, error.strerror or type(error).__name__) from None
    if not stat.S_ISREG(about.st_mode):
        raise _unusable(path, "it is no file")
    if about.st_mode & 0o077 or about.st_uid not in (os.geteuid(), 0):
        raise _unusable(path, "others than its owner may read or write it")
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise _unusable(path, "it cannot be read as plain text") from None
    if len(token) < _LEAST or any(c.isspace() for c in token):
        raise _unusable(path, f"a token is one word of at least {_LEAST} characters")
    return token, False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen on."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unusable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"cannot use the token file '{path}': {why}",
        remedy="name a file that does not exist: it is made, for you alone (chmod 600 keeps an own one so)",
        code="token-file",
    )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _name_of(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def names_of(given: Iterable[str]) -> frozenset[str]:
    """Return host names as they are compared."""
    return frozenset(_name_of(name) for name in given)
