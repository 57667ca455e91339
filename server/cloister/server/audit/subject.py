"""What a check looks at: a run's model and all that is known of how it was made, or a federation file alone.

At a simulation all sites' records are at hand; at a server, or where the sites are too many to be told apart, there are none, and a check that needs
them says that it has no power.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cloister.core._version import __version__
from cloister.core.data import Data, Split
from cloister.core.errors import DataError, StorageError, UsageError
from cloister.core.randomness import SeededRandomness
from cloister.core.resolve import build_model, load_task, owners
from cloister.core.spec import FederationSpec, Loaded, load_federation
from cloister.core.task import Task
from cloister.core.tasks.encoding import input_names
from cloister.server.events import read_events
from cloister.server.robustness.subject import fill, read_model_file

__all__ = ["AuditSubject", "Batch", "open_audit"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Records of several sites.

    Attributes:
        inputs: (n, …) float32.
        targets: (n,).
        site: (n,) the place of each record's site in ``sites``.
        sites: names.
    """

    inputs: Tensor
    targets: Tensor
    site: Tensor
    sites: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditSubject:
    """What is audited.

    Attributes:
        path: the run's folder, or the federation file.
        loaded: the federation.
        task: what is learned.
        folder: where findings go.
        tensors: the released model's tensors by name; ``None`` for a federation file alone.
        sha256: of the model's file; empty without one.
        file: the model's file.
        seed: of everything that checks draw.
        settings: by check, what it is told beside its defaults.
        tell: is told what goes on.
    """

    path: Path
    loaded: Loaded
    task: Task
    folder: Path
    tensors: Mapping[str, Tensor] | None = None
    sha256: str = ""
    file: Path | None = None
    seed: int = 0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tell: Callable[[str], None] = lambda _: None

    @property
    def spec(self) -> FederationSpec:
        """The federation file's tables."""
        return self.loaded.spec

    @property
    def classes(self) -> int:
        """How many classes there are; 0 for a regression."""
        return len(self.task.classes)

    @property
    def input_names(self) -> tuple[str, ...] | None:
        """The name of each of a record's inputs, where the task declares columns."""
        return None if self.task.columns is None else input_names(self.task.columns)

    @cached_property
    def initial(self) -> nn.Module:
        """The model as every site built it, in evaluation mode, frozen: a copy of its own is for the caller to make."""
        return build_model(self.task, self.spec.federation.seed).eval().requires_grad_(False)

    @cached_property
    def model(self) -> nn.Module:
        """The released model, in evaluation mode, frozen.

        Raises:
            UsageError: there is none.
            IntegrityError: the file does not fit the task's model.
        """
        if self.tensors is None or self.file is None:
            raise UsageError(
                "this check looks at a released model, and a federation file has none", remedy="name a run"
            )
        model = build_model(self.task, self.spec.federation.seed)
        fill(model, self.tensors, self.file)
        return model.eval().requires_grad_(False)

    @cached_property
    def deployed(self) -> bool:
        """Whether it is a run of real sites: what records the task may find on this machine are not those that it was trained on."""
        return any(event["kind"] == "run" and event.get("engine") == "superlink" for event in self.events)

    @cached_property
    def sites(self) -> Mapping[str, Split]:
        """Each site's records, where they are at hand; else nothing."""
        if self.deployed:
            return {}
        found = owners(self.task)
        for point in entry_points(group="cloister.partitions", name="records"):
            sites: Mapping[str, Split] | None = point.load()(self.loaded)
            if sites is not None:
                return sites
        return found

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """What happened in the run; nothing for a federation file alone."""
        log = self.path / "events.jsonl"
        return list(read_events(log)) if log.is_file() else []

    def setting(self, check: str, key: str, default: Any) -> Any:
        """Return what ``check`` is told of ``key``."""
        return self.settings.get(check, {}).get(key, default)

    def key(self, check: str) -> str:
        """Return a digest of what a finding of ``check`` depends on: the same key means the same finding."""
        told = {
            "check": check,
            "federation": self.loaded.digest(),
            "model": self.sha256,
            "seed": self.seed,
            "settings": dict(self.settings.get(check, {})),
            "version": __version__,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()

    def randomness(self, check: str) -> SeededRandomness:
        """Return the check's own randomness."""
        return SeededRandomness(SeededRandomness(self.seed).torch_seed("audit", check))

    def work(self, check: str) -> Path:
        """Return the folder in which ``check`` keeps what it has done so far, for another try.

        Raises:
            StorageError: it cannot be made.
        """
        path = self.folder / f"{check}.work"
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError.of(path, error) from None
        return path

    def batch(self, part: str, limit: int, check: str) -> Batch:
        """Return up to ``limit`` records of all sites, drawn without replacement, a share of each site.

        Args:
            part: ``train`` or ``test``.
            limit: the most.
            check: whose randomness draws them.

        Raises:
            DataError: there is no record, or inputs are no floating-point tensors of one shape.
        """
        held: dict[str, Data] = {name: getattr(split, part) for name, split in self.sites.items()}
        sizes = [len(data) for data in held.values()]
        if not sum(sizes):
            raise DataError(
                f"there is no {part} record at hand", remedy="audit where the records are", code="data-empty"
            )
        rng = self.randomness(check).generator("records", part)
        chosen = np.sort(rng.permutation(sum(sizes))[:limit])
        inputs, targets, site, first = [], [], [], 0
        for place, data in enumerate(held.values()):
            rows = chosen[(chosen >= first) & (chosen < first + sizes[place])] - first
            first += sizes[place]
            if len(rows):
                own, wanted = data.batch(torch.from_numpy(rows))
                if not isinstance(own, Tensor) or not own.is_floating_point():
                    raise DataError(
                        "the records' inputs are no floating-point tensor",
                        remedy="this check is for tasks whose input is one floating-point tensor",
                        code="audit-inputs",
                    )
                inputs.append(own.float())
                targets.append(wanted)
                site.append(torch.full((len(rows),), place))
        return Batch(
            inputs=torch.cat(inputs), targets=torch.cat(targets), site=torch.cat(site), sites=tuple(held)
        )


def open_audit(
    path: Path,
    *,
    out: Path | None = None,
    seed: int = 0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> AuditSubject:
    """Open a run's folder, or a federation file.

    Args:
        path: the folder of a run that has a model, or a federation file.
        out: where findings go; by default ``audits`` in the run's folder, or ``audits-<name>`` beside a federation file.
        seed: of everything that checks draw.
        settings: by check, what it is told beside its defaults.
        tell: is told what goes on.

    Raises:
        UsageError: there is no run, or no model in it.
        IntegrityError: the model's file is no safetensors file.
        SpecError: the federation file or its task is refused.
    """
    more: dict[str, Any] = {"seed": seed, "settings": settings or {}, "tell": tell}
    if not path.is_dir():
        loaded = load_federation(path)
        folder = out or path.parent / f"audits-{loaded.spec.federation.name}"
        return AuditSubject(
            path=path, loaded=loaded, task=load_task(loaded.spec.task, loaded.base), folder=folder, **more
        )
    if not (path / "federation.toml").is_file():
        raise UsageError(
            f"'{path}' is not a run: it has no federation.toml", remedy="name a folder under runs/"
        )
    written = load_federation(path / "federation.toml")
    try:
        base = Path(os.fsdecode((path / "base.txt").read_bytes()))
    except OSError:
        base = written.base
    loaded = Loaded(spec=written.spec, base=base, origins=written.origins)
    file = path / "model.safetensors"
    tensors, digest = read_model_file(file)
    return AuditSubject(
        path=path,
        loaded=loaded,
        task=load_task(loaded.spec.task, loaded.base),
        folder=out or path / "audits",
        tensors=tensors,
        sha256=digest,
        file=file,
        **more,
    )
