"""A real site as the ClientApp sees it: its own records, ledger, sessions and identity.

What a federation needs is built when its first message is let in, and kept while the runner lives: the newest few federations.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context

from cloister.client.app import Site, Workbench
from cloister.client.book import Credentials
from cloister.client.canaries import KeptCoins
from cloister.client.charging import RunBounds, SiteLedger
from cloister.client.incoming import parsed
from cloister.client.site_config import SiteConfig
from cloister.client.site_data import load_dataset
from cloister.client.trainer import Trainer
from cloister.core._version import __version__
from cloister.core.data import Split
from cloister.core.digests import federation_digest
from cloister.core.errors import PolicyError
from cloister.core.randomness import SystemRandomness
from cloister.core.resolve import build_model
from cloister.core.source import source_digest
from cloister.core.spec import FederationSpec, parse_federation
from cloister.core.update import Layout
from cloister.privacy.audit.canaries import with_canaries
from cloister.privacy.identity import Consortium
from cloister.privacy.identity.kit import Kit
from cloister.privacy.manifest import Floors

__all__ = ["DeployedSite", "ledger_of", "run_files_of"]

_KEPT = 4


class DeployedSite:
    """Where the ClientApp of a real site finds its workbench and its records.

    Args:
        folder: the site's.
        config: its ``site.toml``.
        kit: who it is.
        dataset_for: which of its data sets a federation trains on; ``None``: none of them.
        floors: what it demands of every sum.
        bounds: what a federation's run may be charged at the most, beside the cap; nothing once more unless given.
        consortium: whom it believes at this moment; the kit's unless given.
    """

    def __init__(
        self,
        folder: Path,
        config: SiteConfig,
        kit: Kit,
        *,
        dataset_for: Callable[[FederationSpec], str | None],
        floors: Callable[[], Floors],
        bounds: Callable[[FederationSpec], RunBounds] = lambda _: RunBounds(repeats=0),
        consortium: Callable[[], Consortium] | None = None,
    ) -> None:
        self._folder, self._config, self._kit = folder, config, kit
        self._dataset_for, self._floors, self._bounds = dataset_for, floors, bounds
        self._consortium = consortium or (lambda: kit.consortium)
        self._randomness = SystemRandomness()
        self._built: OrderedDict[str, tuple[Workbench, Split, str]] = OrderedDict()

    def workbench(self, federation: str) -> Workbench:
        """Return the workbench for a federation that was let in, built once.

        Raises:
            CloisterError: the federation file, its task or this site's records were refused.
        """
        return self._of(federation)[0]

    def site(self, context: Context, bench: Workbench) -> Site:  # noqa: ARG002 - the seam's signature
        """Return this site, with the records that ``bench`` trains on."""
        _, split, dataset = next(one for one in self._built.values() if one[0] is bench)
        private = bench.spec.privacy.unit != "none"
        return Site(
            name=self._kit.identity.name,
            split=split,
            ledger=ledger_of(self._folder, self._config, self._kit, dataset) if private else None,
            credentials=Credentials(
                identity=self._kit.identity, consortium=self._consortium(), floors=self._floors()
            ),
            sessions=run_files_of(self._folder, self._config),
            bounds=self._bounds(bench.spec),
            coins=KeptCoins(run_files_of(self._folder, self._config), self._randomness),
        )

    def _of(self, federation: str) -> tuple[Workbench, Split, str]:
        tables = parsed(federation)
        key = federation_digest(tables)
        found = self._built.get(key)
        if found is None or self._dataset_for(found[0].spec) != found[2]:  # the policy may have changed since
            self._built.pop(key, None)
            found = self._build(federation, tables)
            self._built[key] = found
            while len(self._built) > _KEPT:
                self._built.popitem(last=False)
        self._built.move_to_end(key)
        return found

    def _build(self, federation: str, tables: dict[str, Any]) -> tuple[Workbench, Split, str]:
        spec = parse_federation(tables, base=self._folder).spec
        dataset = self._dataset_for(spec)
        if dataset is None:
            raise PolicyError(
                f"this site has no data set for the task '{spec.task.use}'",
                remedy="leave this site out, or have it declare one in site.toml and allow it in policy.toml",
                code="policy-task",
            )
        own, split = load_dataset(self._config.data[dataset], spec.task, self._folder)
        task = with_canaries(own, spec)
        model = build_model(task, spec.federation.seed)
        bench = Workbench(
            spec=spec,
            trainer=Trainer(spec, task, model, Layout.of(model)),
            randomness=self._randomness,
            code_hash=hashlib.sha256(
                f"cloister-{__version__} {source_digest(type(own), spec.task.use, self._folder)} {federation}".encode()
            ).hexdigest(),
        )
        return bench, split, dataset


def run_files_of(folder: Path, config: SiteConfig) -> Path:
    """Return beside what a site keeps its files of runs (`cloister.client.run_files`)."""
    return folder / config.site.state / "sessions"


def ledger_of(folder: Path, config: SiteConfig, kit: Kit, dataset: str) -> SiteLedger:
    """Return where a site keeps the ledger of one of its data sets."""
    place = folder / config.site.state / "ledgers"
    return SiteLedger(
        path=place / f"{dataset}.sqlite",
        key=place / f"{dataset}.pem",
        site=kit.identity.name,
        dataset=dataset,
    )
