"""What is in force at a site at this moment: its policy, and whom it believes. Both are read again when their files change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cloister.client.gate.policy import POLICY, ReadPolicy, check_datasets, read_policy
from cloister.client.site_config import SiteConfig
from cloister.core.files import stamp
from cloister.privacy.identity import Consortium
from cloister.privacy.identity.kit import Believed, Kit

__all__ = ["InForce"]


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
        self._changed = changed
        self._stamp = stamp(self._path)
        self._policy = self._read()
        self._believed = Believed(kit)

    def policy(self) -> ReadPolicy:
        """Return the policy.

        Raises:
            SpecError: (policy-file) it was changed, and is refused now.
        """
        found = stamp(self._path)
        if found != self._stamp or not found:
            read = self._read()
            if read.digest != self._policy.digest:
                self._changed(read)
            self._policy, self._stamp = read, found
        return self._policy

    def consortium(self) -> Consortium:
        """Return whom the site believes.

        Raises:
            IntegrityError: (document, signature) the list of those who were revoked was changed, and does not hold.
        """
        return self._believed()

    def _read(self) -> ReadPolicy:
        read = read_policy(self._path)
        check_datasets(read.policy, self._config)
        return read
