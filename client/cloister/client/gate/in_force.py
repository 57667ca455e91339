"""What is in force at a site at this moment: its policy, and whom it believes. Both are read again when their files change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cloister.client.gate.policy import POLICY, ReadPolicy, check_datasets, read_policy
from cloister.client.site_config import SiteConfig
from cloister.privacy.identity import Consortium
from cloister.privacy.identity.kit import Kit, load_consortium
from cloister.privacy.identity.register import REVOKED

__all__ = ["InForce"]

_Stamp = tuple[int, ...]


class InForce:
    """A site's policy and consortium.

    Args:
        folder: the site's.
        config: its ``site.toml``.
        kit: whom it believes; ``revoked.json`` beside it says whom not any more.
        changed: is told of another policy, before it is used.

    Raises:
        SpecError: (policy-file) there is no policy, or it is refused.
    """

    def __init__(
        self, folder: Path, config: SiteConfig, kit: Kit, *, changed: Callable[[ReadPolicy], None]
    ) -> None:
        self._path = folder / POLICY
        self._config = config
        self._kit = kit
        self._changed = changed
        self._stamp = _stamp(self._path)
        self._policy = self._read()
        self._consortium = kit.consortium
        self._revoked = _stamp(kit.folder / REVOKED)

    def policy(self) -> ReadPolicy:
        """Return the policy.

        Raises:
            SpecError: (policy-file) it was changed, and is refused now.
        """
        stamp = _stamp(self._path)
        if stamp != self._stamp or not stamp:
            read = self._read()
            if read.digest != self._policy.digest:
                self._changed(read)
            self._policy, self._stamp = read, stamp
        return self._policy

    def consortium(self) -> Consortium:
        """Return whom the site believes.

        Raises:
            IntegrityError: (document, signature) the list of those who were revoked was changed, and does not hold.
        """
        stamp = _stamp(self._kit.folder / REVOKED)
        if stamp != self._revoked:
            self._consortium, self._revoked = load_consortium(self._kit.folder), stamp
        return self._consortium

    def _read(self) -> ReadPolicy:
        read = read_policy(self._path)
        check_datasets(read.policy, self._config)
        return read


def _stamp(path: Path) -> _Stamp:
    """Return what changes when a file does; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
