"""``cloister site run``: the runner of a site, until it is stopped."""

from __future__ import annotations

import threading
from pathlib import Path

from cloister.client.app import make_client_app
from cloister.client.deployed import DeployedSite
from cloister.client.fleet_link import FleetLink
from cloister.client.gate.gate import Gate, open_gate
from cloister.client.gate.gated_app import GatedApp
from cloister.client.runner import Runner, Watched
from cloister.client.site_config import SiteConfig, load_site
from cloister.core.errors import IntegrityError
from cloister.privacy.identity import Role
from cloister.privacy.identity.kit import Kit, load_kit

__all__ = ["OpenSite", "open_site"]


class OpenSite:
    """A site that is ready to run; close it.

    Args:
        folder: the site's.
        config: its ``site.toml``.
        kit: who it is.
        gate: its gate.
    """

    def __init__(self, folder: Path, config: SiteConfig, kit: Kit, gate: Gate) -> None:
        self.config, self.kit, self.gate = config, kit, gate
        self.watched = Watched()
        self._link: FleetLink | None = None
        source = DeployedSite(
            folder,
            config,
            kit,
            dataset_for=gate.dataset_for,
            floors=lambda: gate.floors,
            bounds=gate.bounds_for,
            consortium=gate.consortium,
        )
        app = make_client_app(source)
        self._runner = Runner(
            config.server, self._connect, GatedApp(app, gate, source), self.watched, idle=gate.tidy
        )

    def run(self, stop: threading.Event) -> None:
        """Answer the coordinator until ``stop`` is set."""
        self.gate.tidy()
        self._runner.run(stop)

    def close(self) -> None:
        """Write down that the site stops."""
        self.gate.close()

    def _connect(self) -> FleetLink:
        server = self.config.server
        earlier = None if self._link is None else self._link.standing
        self._link = FleetLink(server.address, self.kit, most_bytes=server.most_bytes, earlier=earlier)
        return self._link


def open_site(folder: Path) -> OpenSite:
    """Read a site's folder and open its gate.

    Raises:
        SpecError: ``site.toml`` or ``policy.toml`` was refused.
        IntegrityError: the kit or the site's log does not hold, or ``site.toml`` is another site's.
    """
    config, kit = load_site(folder), load_kit(folder, Role.SITE)
    if config.site.name != kit.identity.name:
        raise IntegrityError(
            f"site.toml is of '{config.site.name}', and the certificate beside it of '{kit.identity.name}'",
            remedy="use the kit that the consortium made for this site",
            code="kit-file",
        )
    return OpenSite(folder, config, kit, open_gate(folder, config, kit))
