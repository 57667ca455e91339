"""Who holds what in a simulation: the owners' own records, or the pooled records dealt or drawn anew.

===========  ==================================  ===================================================================================
by           training records                    sites
===========  ==================================  ===================================================================================
site         each owner's own                    the owners, under their own names
iid          shuffled, equal parts               ``cohort.sites``
iid          ``per_site`` records drawn by each  ``cohort.sites``, any number: a site is drawn when it is asked for, and may share
                                                 records with others
dirichlet    each class spread by Dirichlet(α)   ``cohort.sites``; drawn again (up to 100 times) until none is empty
shards       ``per_site`` runs of sorted labels  ``cohort.sites``
quantity     sizes by Dirichlet(skew)            ``cohort.sites``
===========  ==================================  ===================================================================================

Where the pooled records are dealt, every training record and every test record goes to exactly one site, no site is without a
training record, and each class of the test records spreads over the sites as it does in training (a site of few records may end up
without a test record). A regression has no classes: ``shards`` sorts by the value to predict, test records follow ten quantiles of
it, and ``dirichlet`` is refused.

Everything is drawn from the run's seed by keys of its own: the same seed gives the same sites, whoever asks, and in any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cloister.core.data import Data, Rows, Split
from cloister.core.errors import SpecError
from cloister.core.randomness import SeededRandomness
from cloister.core.resolve import POOLED, check_data
from cloister.core.spec import Cohort, FederationSpec, Partition
from cloister.core.task import Task
from cloister.simulation.dealing import (
    Labels,
    Sites,
    deal_by_class,
    deal_by_size,
    deal_evenly,
    deal_like,
    deal_shards,
)
from cloister.simulation.joined import join

__all__ = ["Roster", "make_roster", "test_records"]

#: More sites than this are not told apart when a model is evaluated at each of them.
_TOLD_APART = 1000
_ATTEMPTS = 100
_QUANTILES = 10


class Roster(ABC):
    """The sites of a simulation, in order.

    Attributes:
        natural: whether the sites are the owners that the data comes with.
        pooled_train: all owners' training records.
        central_test: all owners' test records; may be empty.
    """

    natural: bool = False

    def __init__(self, train: Data, test: Data, task: Task) -> None:
        self.pooled_train = train
        self.central_test = test
        self._task = task

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of sites."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return a site's name.

        Raises:
            IndexError: there is no such site.
        """

    @abstractmethod
    def split(self, index: int) -> Split:
        """Return a site's records; they are read through the owners' data, without a copy.

        Raises:
            IndexError: there is no such site.
            DataError: a site that draws for itself drew one class only, and the task needs more.
        """

    def counts(self, index: int) -> list[int]:
        """Return how many training records of each class a site has, or for a regression one number: all of them."""
        targets = self.split(index).train.targets
        if self._task.kind == "regression":
            return [len(targets)]
        return [int(count) for count in np.bincount(targets.numpy(), minlength=len(self._task.classes))]

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no site {index}: the simulation has {len(self)}, counted from 0")
        return index


class _Owners(Roster):
    """by = "site": the owners themselves, under their own names."""

    natural = True

    def __init__(self, owners: Mapping[str, Split], train: Data, test: Data, task: Task) -> None:
        super().__init__(train, test, task)
        self._names, self._splits = list(owners), list(owners.values())

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[self._checked(index)]

    def split(self, index: int) -> Split:
        return self._splits[self._checked(index)]


class _Virtual(Roster):
    """Sites that hold rows of the pooled records, named ``site-001`` and so on, padded to one width."""

    def __init__(self, sites: int, train: Data, test: Data, task: Task) -> None:
        super().__init__(train, test, task)
        self._sites = sites

    def __len__(self) -> int:
        return self._sites

    def name(self, index: int) -> str:
        return _name(self._checked(index), self._sites)

    def split(self, index: int) -> Split:
        train, test = self._rows(self._checked(index))
        return Split(self.pooled_train.subset(train), self.central_test.subset(test))

    @abstractmethod
    def _rows(self, index: int) -> tuple[Rows, Rows]:
        """Return the rows of a site in the pooled (training, test) records."""


class _Dealt(_Virtual):
    """Every pooled record at exactly one site."""

    def __init__(
        self, sites: int, train: Data, test: Data, task: Task, *, train_sites: Sites, test_sites: Sites
    ) -> None:
        super().__init__(sites, train, test, task)
        self._train, self._test = _by_site(train_sites, sites), _by_site(test_sites, sites)

    def _rows(self, index: int) -> tuple[Rows, Rows]:
        return self._train[index], self._test[index]


class _Drawn(_Virtual):
    """Every site draws records for itself when it is asked for: a million sites cost nothing until then."""

    def __init__(
        self, sites: int, train: Data, test: Data, task: Task, *, per_site: int, randomness: SeededRandomness
    ) -> None:
        super().__init__(sites, train, test, task)
        self._randomness = randomness
        self._sizes = per_site, min(len(test), max(1, round(per_site * len(test) / len(train))))

    def split(self, index: int) -> Split:
        found = super().split(index)
        check_data(self._task, found.train, owner=self.name(index), part="training")
        return found

    def _rows(self, index: int) -> tuple[Rows, Rows]:
        rng = self._randomness.generator("partition", "drawn", index)
        train = rng.choice(len(self.pooled_train), size=self._sizes[0], replace=False)
        return train, rng.choice(len(self.central_test), size=self._sizes[1], replace=False) if self._sizes[
            1
        ] else np.empty(0, np.int64)


def make_roster(
    cohort: Cohort, owners: Mapping[str, Split], task: Task, randomness: SeededRandomness
) -> Roster:
    """Return who holds what, as ``[cohort]`` says.

    Args:
        cohort: ``sites`` and ``partition``.
        owners: the task's records by owner, from `cloister.core.resolve.owners`.
        task: for its kind and classes.
        randomness: the run's; every key begins with "partition".

    Raises:
        SpecError: the partition does not go with the data (code ``partition``); the remedy says what to change.
    """
    partition = cohort.partition
    train = join([split.train for split in owners.values()])
    test = join([split.test for split in owners.values()])
    if partition.by == "site":
        _check_owners(cohort, owners)
        return _Owners(owners, train, test, task)
    sites = _checked_sites(cohort, len(train), task)
    if partition.by == "iid" and partition.per_site is not None:
        return _Drawn(sites, train, test, task, per_site=partition.per_site, randomness=randomness)
    labels, test_labels = _labels(train, test, task)
    train_sites = _deal(partition, train, labels, task, randomness, sites=sites)
    counts = np.zeros(
        (sites, int(max(labels.max(initial=0), test_labels.max(initial=0))) + 1), dtype=np.int64
    )
    np.add.at(counts, (train_sites, labels), 1)
    test_sites = deal_like(test_labels, counts, randomness.generator("partition", "test"))
    return _Dealt(sites, train, test, task, train_sites=train_sites, test_sites=test_sites)


def test_records(spec: FederationSpec, owners: Mapping[str, Split], task: Task) -> dict[str, Data] | None:
    """Return each site's test records by its name, as a run of ``spec`` deals them; ``None`` where its sites are too many, or unknown.

    Entry point ``simulation`` of the group ``cloister.partitions``: an evaluation asks for them.
    """
    if spec.cohort.partition.by == "site" or spec.cohort.sites is None or spec.cohort.sites > _TOLD_APART:
        return None
    roster = make_roster(spec.cohort, owners, task, SeededRandomness(spec.federation.seed))
    return {roster.name(index): roster.split(index).test for index in range(len(roster))}


def _deal(
    partition: Partition, train: Data, labels: Labels, task: Task, randomness: SeededRandomness, *, sites: int
) -> Sites:
    """Return the site of every training record."""
    rng = randomness.generator("partition", partition.by)
    records = len(labels)
    match partition.by:
        case "dirichlet":
            return _deal_dirichlet(_given(partition.alpha), sites, labels, task, randomness)
        case "shards":
            site_of = deal_shards(train.targets.numpy(), sites, int(_given(partition.per_site)), rng)
        case "quantity":
            site_of = deal_by_size(records, sites, _given(partition.skew), rng)
        case _:
            site_of = deal_evenly(records, sites, rng)
    if (poor := _first_poor(site_of, sites, labels, task)) is not None:
        raise _refused(
            f"partition by = '{partition.by}' leaves {_name(poor, sites)} with records of one class, and the task needs more",
            "lower cohort.sites, choose another partition or seed, or set allow_single_class = true in [task]",
        )
    return site_of


def _deal_dirichlet(
    alpha: float, sites: int, labels: Labels, task: Task, randomness: SeededRandomness
) -> Sites:
    for attempt in range(_ATTEMPTS):
        site_of = deal_by_class(labels, sites, alpha, randomness.generator("partition", "dirichlet", attempt))
        if _first_poor(site_of, sites, labels, task) is None:
            return site_of
    what = "at least one record" if task.allows_single_class else "records of two classes"
    raise _refused(
        f"partition by = 'dirichlet' with alpha = {alpha:g} did not give each of {sites} sites {what} in {_ATTEMPTS} draws",
        "raise alpha, or lower cohort.sites",
    )


def _first_poor(site_of: Sites, sites: int, labels: Labels, task: Task) -> int | None:
    """Return the first site without a record, or with one class where the task needs more."""
    poor = np.bincount(site_of, minlength=sites) == 0
    if task.kind == "classification" and not task.allows_single_class:
        classes = np.zeros((sites, len(task.classes)), dtype=np.bool_)
        classes[site_of, labels] = True
        poor |= classes.sum(axis=1) < 2
    found = np.flatnonzero(poor)
    return int(found[0]) if len(found) else None


def _labels(train: Data, test: Data, task: Task) -> tuple[Labels, Labels]:
    """Return the class of every training and test record; a regression's are the deciles of its training targets."""
    one, other = train.targets.numpy(), test.targets.numpy()
    if task.kind == "classification":
        return one.astype(np.int64), other.astype(np.int64)
    edges = np.quantile(one, np.linspace(0, 1, _QUANTILES + 1)[1:-1])
    return np.digitize(one, edges).astype(np.int64), np.digitize(other, edges).astype(np.int64)


def _by_site(site_of: Sites, sites: int) -> list[Rows]:
    """Return every site's rows, ascending."""
    order: npt.NDArray[np.int64] = np.argsort(site_of, kind="stable")
    return np.split(order, np.cumsum(np.bincount(site_of, minlength=sites))[:-1])


def _check_owners(cohort: Cohort, owners: Mapping[str, Split]) -> None:
    if list(owners) == [POOLED]:
        raise _refused(
            "partition by = 'site' needs data that comes with owners, and this task hands over one pool",
            "set cohort.sites and another partition, for example partition = { by = 'iid' }",
        )
    if cohort.sites is not None and cohort.sites != len(owners):
        raise _refused(
            f"cohort.sites = {cohort.sites}, but the data comes with {len(owners)} owners",
            "remove cohort.sites, or choose a partition that deals the records anew",
        )


def _checked_sites(cohort: Cohort, records: int, task: Task) -> int:
    """Return ``cohort.sites``, refusing what the pooled records cannot give."""
    partition, sites = cohort.partition, cohort.sites
    if sites is None:
        raise _refused(
            f"partition by = '{partition.by}' needs to know over how many sites: cohort.sites is missing",
            "set cohort.sites, for example sites = 10",
        )
    if partition.by == "dirichlet" and task.kind == "regression":
        raise _refused(
            "partition by = 'dirichlet' spreads classes over the sites, and a regression has none",
            "use 'iid', 'shards' or 'quantity'",
        )
    if partition.by == "iid" and partition.per_site is not None:
        if partition.per_site > records:
            raise _refused(
                f"partition.per_site = {partition.per_site}, but there are {records} training records",
                "lower per_site",
            )
        return sites
    shards = partition.per_site or 1
    if sites * shards > records:
        asked = f"cohort.sites = {sites}" + (f" with per_site = {shards}" if partition.per_site else "")
        remedy = "lower cohort.sites" + (
            " or per_site"
            if partition.per_site
            else "; or let sites share records: partition = { by = 'iid', per_site = 10 }"
        )
        raise _refused(
            f"{asked} asks for at least {sites * shards} training records, and there are {records}", remedy
        )
    return sites


def _given(value: float | None) -> float:
    if value is None:
        raise SpecError(
            "the partition lacks a key that its own check should have asked for", code="partition"
        )
    return value


def _name(index: int, sites: int) -> str:
    return f"site-{index + 1:0{max(3, len(str(sites)))}d}"


def _refused(message: str, remedy: str) -> SpecError:
    return SpecError(message, remedy=remedy, code="partition")
