"""What an audit is worth: planted faults are found, claims that hold are left alone. The figures of docs/audits.md, from benchmarks/audit_power.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.usefixtures("undrawn")

_HONEST, _FAULTY = 20, 10


@pytest.fixture(scope="module")
def benchmark(repository: Path) -> ModuleType:
    """Load the script that measures it."""
    folder = str(repository / "benchmarks")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("audit_power", f"{folder}/audit_power.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["audit_power"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_faults_are_found_in_nine_of_ten_audits_and_honest_runs_are_refuted_by_chance_only(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds 1 to 20: more than 3 refutations of 20 honest runs have a chance of 0.016 where the share is 1 in 20; the script counts 50 of each, and 200 of the first."""
    rows = [
        benchmark.measured(case, range(1, 1 + (_HONEST if case.honest else _FAULTY)))
        for case in benchmark.CASES
    ]
    with capsys.disabled():
        print(f"\n{benchmark.printed(rows)}")
    for row in rows:
        assert not row.case.honest or row.refuted <= 3, row.case.name
    missed = [target["what"] for target in benchmark.targets_of(rows) if not target["met"]]
    assert not missed
