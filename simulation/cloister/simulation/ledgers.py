"""Where the sites of a simulation keep their ledgers: one folder for all runs, so that what they spend adds up over them.

::

    ledgers/<data set>/<site>.sqlite        the site's ledger; beside it its head file and what it keeps of the last round
    ledgers/<data set>/<site>.pem           its key
    ledgers/<data set>/seen.json            the heads that the server saw
    ledgers/server.pem                      the server's key

A data set is named after the task, and its data where the file names some: two runs of one task at one site share an account. Names
that are no plain file names are replaced by a hash of them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cloister.client.charging import SiteLedger
from cloister.core.errors import UsageError
from cloister.core.finding import innermost
from cloister.core.spec import FederationSpec
from cloister.privacy.ledger import load_or_create_key
from cloister.server.witnessing import Witnesses

__all__ = ["SimulatedLedgers", "keeps_ledgers"]

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def keeps_ledgers(spec: FederationSpec) -> bool:
    """Whether a simulation keeps ledgers without being told to: a private run whose sites own their data, not virtual ones."""
    return spec.privacy.unit != "none" and spec.cohort.partition.by == "site"


@dataclass(frozen=True)
class SimulatedLedgers:
    """The ledgers under one folder."""

    folder: Path

    def of(self, site: str, spec: FederationSpec) -> SiteLedger:
        """Return where ``site`` keeps the ledger of the data that ``spec`` trains on."""
        dataset = dataset_of(spec)
        place = self.folder / _file_name(dataset)
        name = _file_name(site)
        return SiteLedger(
            path=place / f"{name}.sqlite",
            key=place / f"{name}.pem",
            site=site,
            dataset=dataset,
            durable=False,
        )

    def witnesses(self, spec: FederationSpec) -> Witnesses:
        """Return what the server saw of the ledgers of the data that ``spec`` trains on.

        Raises:
            UsageError: the folder cannot be used.
            IntegrityError: what it saw cannot be read.
        """
        place = self.folder / _file_name(dataset_of(spec))
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot keep ledgers in '{place}': {error.strerror}", remedy="give another --ledgers"
            ) from None
        key = load_or_create_key(self.folder / "server.pem")
        return Witnesses(place / "seen.json", key, durable=False)


def dataset_of(spec: FederationSpec) -> str:
    """Return the name of the data's lineage: the task whose records are used, and the name of its data where the file gives a path."""
    task = innermost(spec.task)
    use = task.use.rpartition("/")[2]
    extra = task.model_extra or {}
    data = extra.get("data") or extra.get("dataset")
    return f"{use} {Path(data).name}" if isinstance(data, str) and Path(data).name else use


def _file_name(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else "x-" + hashlib.sha256(name.encode()).hexdigest()[:24]
