"""Canaries at a site: whose coins they are, where they are kept, and how their records come among the site's own.

A federation file with ``audit.canaries`` names the site that plants them. That site draws a fair coin for each, tells the SHA-256 of salt and coins before
anything is trained, trains on those whose coin fell so beside its records, and opens the coins after the last round (`cloister.privacy.audit.coins`).

Formal guarantees of `KeptCoins`, the coins of a real site:

- They come from the operating system, are on disk (0600, written whole) before their seal leaves, and are the same ones after a restart.
- Nothing is trained in a run whose seal was never asked for.

==========================================  ==============================================================
case                                        outcome
==========================================  ==============================================================
the site is not the one that is named       `IntegrityError` (audit-site) where it is asked for coins
trained, or opened, before a seal           `IntegrityError` (audit-seal)
the file is damaged, or for another number  `IntegrityError` (audit-coins); coins are never drawn anew
the run is over, and its files removed      `IntegrityError` (run-over)
==========================================  ==============================================================

When coins may be opened is the gate's to say (`cloister.client.gate`): it has the record of what left this site.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from cloister.client.run_files import RunFiles
from cloister.core.data import Data, Split
from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole
from cloister.core.randomness import Randomness
from cloister.core.spec import FederationSpec
from cloister.core.task import Task
from cloister.privacy.audit.canaries import CanaryTask, planted
from cloister.privacy.audit.coins import Coins, opened

__all__ = ["CoinSource", "KeptCoins", "SeededCoins", "coins_of", "records_with_canaries"]

_LONGEST = 1 << 20


class CoinSource(Protocol):
    """Where a site has the coins of its canaries."""

    def coins(self, run: str, canaries: int, *, draw: bool) -> Coins:
        """Return the coins of a run.

        Args:
            run: its name.
            canaries: how many.
            draw: whether to draw them, where there are none yet.

        Raises:
            IntegrityError: there are none, or they do not hold.
        """
        ...


class SeededCoins:
    """The coins of a simulation: they follow from its seed, and so are the same in each of its processes.

    Args:
        randomness: of the simulation.
    """

    def __init__(self, randomness: Randomness) -> None:
        self._randomness = randomness

    def coins(self, run: str, canaries: int, *, draw: bool) -> Coins:  # noqa: ARG002 - the seam's signature
        """Return the coins that follow from the seed."""
        return Coins.draw(canaries, self._randomness)


class KeptCoins:
    """The coins of a real site, one file a run.

    Args:
        beside: where the site keeps its files of runs (`cloister.client.run_files`).
        randomness: the operating system's.
    """

    def __init__(self, beside: Path, randomness: Randomness) -> None:
        self._beside, self._randomness = beside, randomness

    def coins(self, run: str, canaries: int, *, draw: bool) -> Coins:
        """Return the coins of a run; see the module."""
        files = RunFiles(self._beside, run)
        with files.alone():
            return self._kept(files.path("canaries", "json"), run, canaries, draw=draw)

    def _kept(self, path: Path, run: str, canaries: int, *, draw: bool) -> Coins:
        if path.exists():
            return _read(path, run, canaries)
        if not draw:
            raise IntegrityError(
                "no seal of this run's canaries was ever asked for, and nothing is trained or opened without",
                remedy="let the server ask for the seal first",
                code="audit-seal",
            )
        drawn = Coins.draw(canaries, self._randomness)
        text = json.dumps({"run": run, "seal": drawn.seal, "opening": drawn.opening()}, sort_keys=True)
        write_whole(path, text + "\n", mode=0o600)
        return drawn


def coins_of(source: CoinSource | None, spec: FederationSpec, *, site: str, run: str, draw: bool) -> Coins:
    """Return the coins that ``site`` has for a run.

    Raises:
        IntegrityError: the run plants none here, or they do not hold.
    """
    count = spec.audit.canaries
    if count is None or source is None or spec.audit.canary_site != site:
        raise IntegrityError(
            "this site plants no canaries in this run",
            remedy="ask the site that audit.canary_site names",
            code="audit-site",
        )
    return source.coins(run, count, draw=draw)


def records_with_canaries(
    split: Split, task: Task, spec: FederationSpec, source: CoinSource | None, *, site: str, run: str
) -> Data:
    """Return what ``site`` trains on: its records, and among them the canaries that are in, where it plants some.

    A canary stands for a person, who may have ``privacy.max_records_per_person`` records.

    Raises:
        IntegrityError: it should, and has no coins.
    """
    if spec.audit.canary_site != site or not isinstance(task, CanaryTask):
        return split.train
    coins = coins_of(source, spec, site=site, run=run, draw=False)
    inside = torch.from_numpy(np.flatnonzero(coins.included))
    copies = spec.privacy.max_records_per_person or 1
    return planted(split, task, inside.repeat_interleave(copies)).train


def _read(path: Path, run: str, canaries: int) -> Coins:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_LONGEST))
        coins = opened(str(found["seal"]), found["opening"])
        fits = found["run"] == run and len(coins.included) == canaries
    except (OSError, ValueError, KeyError, TypeError, RecursionError, IntegrityError):
        fits = False
    if not fits:
        raise IntegrityError(
            "the coins that this site keeps for this run cannot be read, or are for another number of canaries",
            remedy=f"restore '{path.name}' in the site's state folder, or submit the federation anew: that is a new run",
            code="audit-coins",
        )
    return coins
