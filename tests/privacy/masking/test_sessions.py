"""The sum is that of the survivors, whoever leaves wherever; below the threshold there is no sum, and nobody has revealed a share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations_with_replacement, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.core.errors import PeersMissing
from cloister.privacy.masking import parameters, quorum
from cloister.privacy.masking.rehearsal import Rehearsal, Stage, Step
from cloister.privacy.updates.modular import Residues

Vectors = Callable[..., dict[str, Residues]]
#: The step before which a site leaves; the last is never.
WHEN: tuple[Step | None, ...] = (*Step, None)


def plain_sum(vectors: Mapping[str, Residues], names: Sequence[str], bits: int = 32) -> Residues:
    """The oracle: exact integers, one after the other."""
    size = len(next(iter(vectors.values())))
    total = [sum(int(vectors[name][at]) for name in names) % (1 << bits) for at in range(size)]
    return np.array(total, dtype=np.uint32)


def check(rehearsal: Rehearsal, leaves: Mapping[str, Step], vectors: Mapping[str, Residues]) -> bool:
    """Run a session of a complete graph, hold it against a model in a few lines, and return whether there was a sum."""
    kept = {name: vector.copy() for name, vector in vectors.items()}

    def there(step: Step) -> list[str]:
        return [name for name in kept if leaves.get(name, len(Step)) > step]

    least = quorum(rehearsal.server.manifest)
    before = all(len(there(step)) >= least for step in Step if step is not Step.REVEAL)
    if before and len(there(Step.REVEAL)) >= least:
        total = rehearsal.run(vectors)
        np.testing.assert_array_equal(total, plain_sum(kept, there(Step.MASK)))
        assert list(rehearsal.server.survivors().names) == there(Step.MASK)
        return True
    with pytest.raises(PeersMissing) as refusal:
        rehearsal.run(vectors)
    assert refusal.value.code == "masking-short"
    assert rehearsal.revealed == (there(Step.REVEAL) if before else [])
    return False


def named(stage: Stage, when: Sequence[Step | None]) -> dict[str, Step]:
    sites = stage.sites(len(when))
    return {site.name: step for site, step in zip(sites, when, strict=True) if step is not None}


class TestEveryPatternOfLeaving:
    def test_of_three_sites_each_by_name(self, stage: Stage, vectors: Vectors) -> None:
        done = [
            check(stage.rehearsal(3, leaves=(leaves := named(stage, when)), stored=False), leaves, vectors(3))
            for when in product(WHEN, repeat=3)
        ]
        assert done.count(True) == 1  # t = 3: everybody has to stay

    def test_of_four_sites_up_to_naming(self, stage: Stage, vectors: Vectors) -> None:
        """All are alike in a complete graph but for the sign of their masks, so how many leave where is enough; names are drawn."""
        self.up_to_naming(4, stage, vectors)

    @pytest.mark.slow
    def test_of_four_sites_each_by_name(self, stage: Stage, vectors: Vectors) -> None:
        for when in product(WHEN, repeat=4):
            leaves = named(stage, when)
            check(stage.rehearsal(4, leaves=leaves, stored=False), leaves, vectors(4))

    @pytest.mark.slow
    @pytest.mark.parametrize("count", [5, 6])
    def test_of_five_and_six_sites_up_to_naming(self, count: int, stage: Stage, vectors: Vectors) -> None:
        self.up_to_naming(count, stage, vectors)

    @pytest.mark.parametrize("count", [5, 6])
    def test_of_five_and_six_sites_down_to_the_threshold_up_to_naming(
        self, count: int, stage: Stage, vectors: Vectors
    ) -> None:
        """Those patterns alone after which there is a sum, or would be if one more had stayed."""
        _, threshold = parameters(count)
        self.up_to_naming(count, stage, vectors, most=count - threshold + 1)

    def up_to_naming(self, count: int, stage: Stage, vectors: Vectors, most: int | None = None) -> None:
        names = np.random.default_rng(count)
        found = set()
        for when in combinations_with_replacement(WHEN, count):
            if most is not None and len(when) - when.count(None) > most:
                continue
            shuffled = [when[at] for at in names.permutation(count)]
            leaves = named(stage, shuffled)
            found.add(check(stage.rehearsal(count, leaves=leaves, stored=False), leaves, vectors(count)))
        assert found == {True, False}

    @given(data=st.data())
    @settings(max_examples=12)
    def test_of_more_sites(self, data: st.DataObject, stage: Stage, vectors: Vectors) -> None:
        count = data.draw(st.integers(7, 14))
        often = st.sampled_from((*WHEN, *([None] * 3 * len(WHEN))))
        leaves = named(stage, data.draw(st.lists(often, min_size=count, max_size=count)))
        check(stage.rehearsal(count, leaves=leaves, stored=False), leaves, vectors(count))


class TestSparseGraph:
    def test_the_sum_is_that_of_the_survivors(self, stage: Stage, vectors: Vectors) -> None:
        leaving = {f"site-{7 * (at + 1):04d}": step for at, step in enumerate((*Step, Step.MASK))}
        rehearsal, given_ = stage.rehearsal(60, leaves=leaving, stored=False), vectors(60)
        assert rehearsal.server.manifest.degree < 59
        kept = {name: vector.copy() for name, vector in given_.items()}
        total = rehearsal.run(given_)
        alive = [name for name in kept if leaving.get(name, 9) > Step.MASK]
        np.testing.assert_array_equal(total, plain_sum(kept, alive))

    def test_below_the_quorum_nobody_reveals_a_share(self, stage: Stage, vectors: Vectors) -> None:
        least = quorum(stage.manifest(60))
        leaves = {f"site-{at:04d}": Step.CONFIRM for at in range(60 - least + 1)}
        rehearsal = stage.rehearsal(60, leaves=leaves, stored=False)
        with pytest.raises(PeersMissing):
            rehearsal.run(vectors(60))
        assert rehearsal.revealed == []


class TestTheSum:
    @pytest.mark.parametrize("bits", [8, 20, 31, 32])
    def test_is_modulo_the_manifests_modulus(self, bits: int, stage: Stage, vectors: Vectors) -> None:
        given_ = vectors(4)
        kept = {name: vector.copy() for name, vector in given_.items()}
        total = stage.rehearsal(4, modulus_bits=bits).run(given_)
        np.testing.assert_array_equal(total, plain_sum(kept, list(kept), bits))

    def test_is_the_same_for_vectors_longer_than_a_block(self, stage: Stage, vectors: Vectors) -> None:
        size = (1 << 16) + 3
        given_ = vectors(3, size=size)
        expected = sum(vector.astype(np.uint64) for vector in given_.values()) % (1 << 32)
        np.testing.assert_array_equal(stage.rehearsal(3, size=size).run(given_), expected)

    def test_does_not_depend_on_who_is_named_first(self, stage: Stage, vectors: Vectors) -> None:
        """Signs of masks follow names: every order of three names gives the same sum."""
        rows = list(vectors(3).values())
        expected = plain_sum(dict(enumerate(rows)), [0, 1, 2])  # type: ignore[arg-type,list-item]
        for order in permutations(range(3)):
            given_ = {site.name: rows[at].copy() for site, at in zip(stage.sites(3), order, strict=True)}
            np.testing.assert_array_equal(stage.rehearsal(3).run(given_), expected)
