"""What all tests share: reproducible property tests, no telemetry, no figure windows, no file in the user's own folders."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Started in the background of a shell, a process is deaf to Ctrl-C, and so is every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Compiled code is kept, whatever the shell says: each process that a test starts would compile all of Cloister again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# Tests run side by side, one a core: threads of one more would stand in each other's way. Before anything imports torch.
os.environ["OMP_NUM_THREADS"] = "1"

# Derandomised: a property test tries the same examples in every run, so a failure is the change's and not the day's.
settings.register_profile("cloister", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("cloister")


def pytest_collection_finish() -> None:
    """Let the collector of garbage leave alone what stays for all tests, and come less often: a quarter of all time was its."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let reports of our own faults go to a folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("CLOISTER_DEBUG", raising=False)
    return tmp_path / "state"


@pytest.fixture
def flower_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages can only be made by a Flower task: say that this is one."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="module")
def undrawn() -> Iterator[Callable[..., str]]:
    """Leave every page without its plots: half of what a small run takes, for modules that train and look at no plot."""
    from cloister.server.report import canvas

    real = canvas._drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "_drawn", lambda name, draw, size: "<svg></svg>")
        yield real


@pytest.fixture
def drawn(undrawn: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw them all the same, for one test of such a module."""
    monkeypatch.setattr("cloister.server.report.canvas._drawn", undrawn)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return Path(__file__).resolve().parent.parent
