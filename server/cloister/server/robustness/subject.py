"""What is evaluated: a released model, read from safetensors only, and the test records of the sites it was made for.

A model file holds tensors and no code; the task that the federation file names builds the module. Files that would be unpickled
(``.pt``, ``.pth``, ``.bin``, ``.pkl``) are refused by name, before anything reads them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from cloister.core.data import Data
from cloister.core.errors import DataError, IntegrityError, UsageError
from cloister.core.randomness import SeededRandomness
from cloister.core.resolve import build_model, load_task, owners
from cloister.core.spec import Loaded, load_federation
from cloister.core.task import Task

__all__ = ["Sample", "Subject", "draw_sample", "open_subject", "read_model_file"]

_UNPICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A model, what it was made for, and where it came from.

    Attributes:
        path: the model's file.
        sha256: of that file.
        loaded: the federation file.
        task: what the model was made for.
        model: in evaluation mode, its parameters frozen.
        sites: each site's test records, by name.
    """

    path: Path
    sha256: str
    loaded: Loaded
    task: Task
    model: nn.Module
    sites: Mapping[str, Data]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """The records that a model is evaluated on.

    Attributes:
        inputs: (n, …) float32.
        targets: (n,) int64.
        site: (n,) the place of each record's site in ``sites``.
        sites: the sites' names.
    """

    inputs: Tensor
    targets: Tensor
    site: Tensor
    sites: tuple[str, ...]


def open_subject(path: Path, federation: Path | None = None) -> Subject:
    """Open a run folder, or a model file with the federation file that it was made under.

    Raises:
        UsageError: there is no model, or no federation file is named for a model outside of a run folder.
        IntegrityError: the model's file is no safetensors file, or does not fit the task's model.
        SpecError: the federation file or its task is refused.
        DataError: the task's records are refused, or there is no test record.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    loaded = _federation(path, file, federation)
    tensors, digest = read_model_file(file)
    task = load_task(loaded.spec.task, loaded.base)
    model = build_model(task, loaded.spec.federation.seed)
    fill(model, tensors, file)
    model.eval().requires_grad_(False)
    sites = {name: data for name, data in _sites(loaded, task).items() if len(data)}
    if not sites:
        raise DataError(
            "the task has no test record to evaluate the model on",
            remedy="give it test records",
            code="data-empty",
        )
    return Subject(path=file, sha256=digest, loaded=loaded, task=task, model=model, sites=sites)


def read_model_file(file: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a safetensors file by name, and the file's SHA-256.

    Raises:
        UsageError: there is no such file.
        IntegrityError: it is of a kind that is unpickled, or no safetensors file.
    """
    if file.suffix.lower() in _UNPICKLED:
        raise IntegrityError(
            f"'{file}' is a file of a kind that runs code when it is read",
            remedy="convert it to safetensors where it was made; Cloister unpickles nothing",
            code="model-unsafe",
        )
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"there is no model '{file}' that can be read: {error.strerror}",
            remedy="name a run folder, or a .safetensors file",
        ) from None
    try:
        return load(raw), hashlib.sha256(raw).hexdigest()
    except (SafetensorError, ValueError, KeyError):
        raise IntegrityError(
            f"'{file}' is not a safetensors file",
            remedy="restore the file of the run",
            code="model-malformed",
        ) from None


def fill(model: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Put ``tensors`` into ``model``; a tied tensor stands in the file once.

    Raises:
        IntegrityError: a tensor is missing, not known, of another shape, or not finite.
    """
    known = {
        name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)
    }
    wrong = [
        name
        for name, value in tensors.items()
        if name not in known or known[name].shape != value.shape or not bool(value.isfinite().all())
    ]
    held = {id(known[name]) for name in tensors if name in known}
    wrong += [name for name, value in known.items() if id(value) not in held]
    if wrong:
        raise IntegrityError(
            f"the model in '{file}' is not one of this task: tensor '{wrong[0]}' is missing, unknown, of another shape or not finite",
            remedy="name the federation file that it was made under",
            code="model-layout",
        )
    with torch.no_grad():
        for name, value in tensors.items():
            known[name].copy_(value)


def draw_sample(subject: Subject, records: int, seed: int) -> Sample:
    """Draw ``records`` of all sites' test records, without replacement; all of them where there are fewer.

    Raises:
        DataError: the inputs are no floating-point tensors of one shape.
    """
    sizes = [len(data) for data in subject.sites.values()]
    rng = SeededRandomness(seed).generator("robustness", "records")
    chosen = np.sort(rng.permutation(sum(sizes))[:records])
    inputs, targets, site, first = [], [], [], 0
    for place, data in enumerate(subject.sites.values()):
        rows = chosen[(chosen >= first) & (chosen < first + sizes[place])] - first
        first += sizes[place]
        if not len(rows):
            continue
        own, wanted = data.batch(torch.from_numpy(rows))
        if not isinstance(own, Tensor) or not own.is_floating_point():
            raise DataError(
                "the records' inputs are no floating-point tensor: they cannot be moved by a little",
                remedy="evaluate tasks whose input is one floating-point tensor",
                code="adversarial-inputs",
            )
        inputs.append(own.float())
        targets.append(wanted)
        site.append(torch.full((len(rows),), place))
    return Sample(
        inputs=torch.cat(inputs), targets=torch.cat(targets), site=torch.cat(site), sites=tuple(subject.sites)
    )


def _federation(path: Path, file: Path, federation: Path | None) -> Loaded:
    if federation is not None:
        return load_federation(federation)
    folder = path if path.is_dir() else file.parent
    if not (folder / "federation.toml").is_file():
        raise UsageError(
            f"'{path}' does not say what its model was made for",
            remedy="name the federation file: --task FILE",
        )
    written = load_federation(folder / "federation.toml")
    try:
        base = Path(os.fsdecode((folder / "base.txt").read_bytes()))
    except OSError:
        base = written.base
    return Loaded(spec=written.spec, base=base, origins=written.origins)


def _sites(loaded: Loaded, task: Task) -> Mapping[str, Data]:
    """Return each site's test records: the owners', or those that the simulation's partition deals out.

    The partition lives in the simulation part, which the server does not import: it is found by the entry point ``simulation`` of the
    group ``cloister.partitions``. Without that part all records count as one site's.
    """
    found = owners(task)
    for point in entry_points(group="cloister.partitions", name="simulation"):
        sites: Mapping[str, Data] | None = point.load()(loaded.spec, found, task)
        if sites is not None:
            return sites
    return {name: split.test for name, split in found.items()}
