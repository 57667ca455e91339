"""Threshold BFV: what it says where OpenFHE does not load, and sums where it does."""

import importlib
import random
import sys
import types

import pytest

from cloister.core.errors import SpecError
from cloister.privacy.homomorphic import threshold


def loads() -> bool:
    try:
        importlib.import_module("openfhe")
    except ImportError:
        return False
    return True


needs_openfhe = pytest.mark.skipif(not loads(), reason="OpenFHE does not load here")


def test_without_openfhe_it_says_so_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openfhe", None)
    with pytest.raises(SpecError) as refused:
        threshold.openfhe()
    assert refused.value.code == "threshold-missing"
    assert "cloister[threshold]" in refused.value.remedy


def test_an_openfhe_that_does_not_load_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the wheel for Python 3.10 fails on 3.11, where pip installs it."""

    def broken(name: str) -> types.ModuleType:
        raise ModuleNotFoundError("No module named 'openfhe.openfhe'", name="openfhe.openfhe")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(SpecError) as refused:
        threshold.share()
    assert refused.value.code == "threshold-missing"
    assert "is installed and cannot be loaded" in refused.value.message


@needs_openfhe
@pytest.mark.parametrize("holders", [2, 3, 8])
def test_all_holders_together_decrypt_the_sum_and_without_one_they_do_not(holders: int) -> None:
    generator = random.Random(1)
    first = threshold.share()
    shares = [first, *(threshold.share(first[1]) for _ in range(holders - 1))]
    public = threshold.joined([public for _, public in shares])
    rows = [[generator.randint(-(1 << 22), 1 << 22) for _ in range(threshold.SLOTS)] for _ in range(10)]
    total = threshold.added([threshold.encrypted(public, row) for row in rows])
    partials = [
        threshold.partial(secret, total, first=number == 0) for number, (secret, _) in enumerate(shares)
    ]
    plain = [sum(column) for column in zip(*rows, strict=True)]
    assert threshold.fused(partials, threshold.SLOTS) == plain
    assert threshold.fused(partials[:-1], threshold.SLOTS) != plain


@needs_openfhe
@pytest.mark.parametrize("values", [[], [0] * (threshold.SLOTS + 1), [1 << 26], [-(1 << 26)]])
def test_values_that_do_not_fit_are_a_fault(values: list[int]) -> None:
    first = threshold.share()
    public = threshold.joined([first[1], threshold.share(first[1])[1]])
    with pytest.raises(ValueError, match="expected at most"):
        threshold.encrypted(public, values)
