"""How sure shadow models are of each record: trained in chunks, each kept as soon as it is there, so that an audit that was interrupted goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor, nn

from cloister.core.data import Data
from cloister.core.errors import DataError
from cloister.core.files import write_whole
from cloister.core.resolve import build_model
from cloister.core.task import Task
from cloister.privacy.audit.membership import confidence, halves, regression_confidence
from cloister.server.audit.subject import AuditSubject
from cloister.simulation.joined import join
from cloister.simulation.membership.one_by_one import train_one
from cloister.simulation.membership.side_by_side import Records, obstacle, train_side_by_side

__all__ = ["Population", "Shadows", "confidences", "population_of", "train_shadows"]

Members = npt.NDArray[np.bool_]

#: Numbers of all stacked models of a chunk together, and of the gradients of single records where those are taken.
_STACKED, _SINGLE = 6_000_000, 60_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """The records that an attacker asks about, site after site: training records, then test records.

    Attributes:
        sites: names.
        data: of each site.
        trained: (n,) whether the run trained on a record.
        site: (n,) the place of a record's site.
        row: (n,) its row among its site's training or test records.
    """

    sites: tuple[str, ...]
    data: tuple[Data, ...]
    trained: npt.NDArray[np.bool_]
    site: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.trained)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shadows:
    """How sure each shadow is of each record.

    Attributes:
        values: (shadows, records) logit-scaled confidences.
        member: (shadows, records) whether a shadow was trained with a record.
        way: how they were trained: ``side by side``, or ``one by one`` and why.
    """

    values: npt.NDArray[np.float64]
    member: npt.NDArray[np.bool_]
    way: str


def population_of(subject: AuditSubject, limit: int) -> Population:
    """Return the records of all sites, or ``limit`` of them: the same share of each site's training and of its test records.

    Raises:
        DataError: no record is at hand, or there are no test records: nobody who was not trained on.
    """
    splits = subject.sites
    total = sum(len(split.train) + len(split.test) for split in splits.values())
    share = min(1.0, limit / max(total, 1))
    names: list[str] = []
    data: list[Data] = []
    trained: list[Members] = []
    site: list[npt.NDArray[np.int64]] = []
    row: list[npt.NDArray[np.int64]] = []
    for name, split in splits.items():
        rows = []
        for part, there in ((split.train, True), (split.test, False)):
            kept = round(share * len(part))
            rng = subject.randomness("membership").generator("population", name, int(there))
            chosen = np.sort(rng.permutation(len(part))[:kept])
            rows.append((part, chosen))
            trained.append(np.full(len(chosen), there))
            row.append(chosen)
            site.append(np.full(len(chosen), len(names)))
        held = [part.subset(chosen) for part, chosen in rows if len(chosen)]
        if held:
            data.append(join(held))
            names.append(name)
    if not names or not np.concatenate(trained).any() or np.concatenate(trained).all():
        raise DataError(
            "the audit needs records that were trained on and records that were not, and one of the two is missing",
            remedy="give the sites test records",
            code="data-empty",
        )
    return Population(
        sites=tuple(names),
        data=tuple(data),
        trained=np.concatenate(trained),
        site=np.concatenate(site),
        row=np.concatenate(row),
    )


def train_shadows(subject: AuditSubject, population: Population, count: int) -> Shadows:
    """Train ``count`` shadow federations (an even number) and return how sure they are of each record."""
    randomness = subject.randomness("membership")
    member = halves([len(part) for part in population.data], count, randomness)
    model = build_model(subject.task, subject.spec.federation.seed)
    records = [_records(part) for part in population.data]
    whole = [part for part in records if part is not None]
    why = (
        obstacle(subject.spec, subject.task, model, whole)
        if len(whole) == len(records)
        else "inputs that are no tensor"
    )
    way = f"one by one ({why})" if why else "side by side"
    size = sum(value.numel() for value in model.parameters())
    chunk = 1 if why else _chunk(subject, size, count)
    values = np.zeros((count, len(population)))
    for first in range(0, count, chunk):
        places = list(range(first, min(first + chunk, count)))
        values[places] = _kept(
            subject,
            first,
            member[places],
            lambda places=places: _trained(subject, population, model, whole, member, places, why),  # type: ignore[misc]
        )
        subject.tell(f"membership: {places[-1] + 1} of {count} shadow models are there ({way})")
    return Shadows(values=values, member=member, way=way)


def confidences(task: Task, model: nn.Module, data: Sequence[Data]) -> npt.NDArray[np.float64]:
    """Return how sure ``model`` is of each record of ``data``, part after part."""
    model.eval()
    found = []
    with torch.inference_mode():
        for part in data:
            for rows in torch.split(torch.arange(len(part)), 512):
                inputs, targets = part.batch(rows)
                outputs = model(inputs)
                if task.kind == "classification":
                    found.append(confidence(outputs, targets))
                else:
                    found.append(regression_confidence(task.loss(outputs, targets)))
    return np.concatenate(found)


def _trained(  # noqa: PLR0917 - one step of a loop
    subject: AuditSubject,
    population: Population,
    model: nn.Module,
    records: Sequence[Records],
    member: npt.NDArray[np.bool_],
    places: Sequence[int],
    why: str,
) -> npt.NDArray[np.float64]:
    randomness = subject.randomness(f"membership-{places[0]}")
    if why:
        tensors = [
            train_one(
                subject.loaded,
                _whole_sites(subject, population, member[place]),
                seed=randomness.torch_seed("shadow", place) % 2**31,
            )
            for place in places
        ]
    else:
        tensors = train_side_by_side(
            subject.spec,
            subject.task,
            model,
            records,
            member[list(places)],
            randomness=randomness,
            tell=lambda number, of: (
                subject.tell(
                    f"membership: round {number} of {of}, models {places[0] + 1} to {places[-1] + 1}"
                )
                if number % max(1, of // 5) == 0
                else None
            ),
        )
    return np.stack([confidences(subject.task, _filled(model, one), population.data) for one in tensors])


def _whole_sites(
    subject: AuditSubject, population: Population, member: npt.NDArray[np.bool_]
) -> Mapping[int, npt.NDArray[np.bool_]]:
    """Return who is in by the places that all sites have, over all their training and test records."""
    found = {}
    for place, (name, split) in enumerate(subject.sites.items()):
        flags = np.zeros(len(split.train) + len(split.test), dtype=np.bool_)
        if name in population.sites:
            own = (population.site == population.sites.index(name)) & member
            offset = np.where(population.trained[own], 0, len(split.train))
            flags[population.row[own] + offset] = True
        found[place] = flags
    return found


def _filled(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    with torch.no_grad():
        model.load_state_dict(dict(tensors), strict=False)
    return model


def _records(data: Data) -> Records | None:
    inputs, targets = data.batch(torch.arange(len(data)))
    return Records(inputs=inputs, targets=targets) if isinstance(inputs, Tensor) else None


def _chunk(subject: AuditSubject, size: int, count: int) -> int:
    """Return how many models are trained at once: as memory allows, in pairs."""
    most = _STACKED // size
    if subject.spec.privacy.unit == "record":
        most = min(most, _SINGLE // (size * max(subject.spec.training.batch_size, 1)))
    return max(2, min(count, most) // 2 * 2)


def _kept(
    subject: AuditSubject,
    first: int,
    member: npt.NDArray[np.bool_],
    train: Callable[[], npt.NDArray[np.float64]],
) -> npt.NDArray[np.float64]:
    """Return a chunk's confidences from its file where that is of this very audit; else train, and write them."""
    path = subject.work("membership") / f"shadows-{first:03d}.safetensors"
    key = np.frombuffer(
        hashlib.sha256((subject.key("membership") + f" {first}").encode() + member.tobytes()).digest(),
        np.uint8,
    )
    try:
        kept = load(path.read_bytes())
        if np.array_equal(kept["key"], key) and kept["values"].shape == member.shape:
            return kept["values"].astype(np.float64)
    except (OSError, SafetensorError, KeyError, ValueError):
        pass
    values = train()
    write_whole(path, save({"values": values, "key": key.copy()}), mode=0o600)
    return values
