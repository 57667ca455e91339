"""Memory between processes: no room is a refusal and not a crash, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cloister.core.errors import CloisterError
from cloister.simulation.packing import Attached, Block
from cloister.simulation.workers import Result, Runner, Task, WorkerPool, undisturbed

SHARED = Path("/dev/shm")
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="shared memory is not a folder here")


def held() -> set[str]:
    return set(os.listdir(SHARED))  # noqa: PTH208 - names


def test_no_room_in_shared_memory_is_a_refusal_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = held()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CloisterError, match="shared memory") as refused:
        Block([np.zeros(1000)])
    assert refused.value.code == "shared-memory"
    assert "--shm-size" in refused.value.remedy
    assert "--workers 0" in refused.value.remedy
    assert held() <= before
    assert Attached(private=True).private


def test_a_block_larger_than_shared_memory_is_refused_and_does_not_kill_the_process() -> None:
    """For real, in a process with a /dev/shm of 1 MB: without the reservation it dies of SIGBUS."""
    small = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    wrap = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*wrap, small], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system gives nobody a /dev/shm of their own")
    code = """
import os, numpy as np
from cloister.core.errors import CloisterError
from cloister.simulation.packing import Block
kept = Block([np.zeros(500_000, np.uint8)])
try:
    Block([np.zeros(900_000, np.uint8)])
except CloisterError as error:
    print(error.code, len(os.listdir("/dev/shm")))
kept.free()
"""
    script = f'{small} && exec "$0" -c "$1"'
    done = subprocess.run([*wrap, script, sys.executable, code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "shared-memory 1"), done.stderr


def test_private_memory_needs_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    before = held()
    arrays: list[npt.NDArray[Any]] = [np.arange(7, dtype=np.float32), np.ones((2, 3))]
    block, attached = Block(arrays, private=True), Attached(private=True)
    assert held() == before
    for array, piece in zip(arrays, block.pieces, strict=True):
        np.testing.assert_array_equal(attached.view(piece), array)
    view = attached.view(block.pieces[0])
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    attached.free(block.memory.name)
    np.testing.assert_array_equal(view, arrays[0])
    with pytest.raises(OSError, match=r"."):
        Attached().view(block.pieces[0])


def make_runner() -> Runner:
    """Answer with a block, after a moment."""

    def run(task: Task, attached: Attached) -> Result:
        time.sleep(0.05)
        block = Block([np.zeros(100)], private=attached.private)
        block.memory.close()
        return Result(ticket=task.ticket, block=block.memory.name)

    return run


def task(ticket: str) -> Task:
    from cloister.simulation.packing import Packed

    return Task(
        ticket=ticket,
        node=1,
        node_config={},
        message_type="train",
        round_group="",
        expires=time.time() + 60,
        content=Packed(()),
        state=None,
    )


def test_answers_that_nobody_took_are_freed_when_the_pool_closes() -> None:
    before = held()
    pool = WorkerPool(make_runner, 2, method="fork")
    for number in range(4):
        pool.submit(task(str(number)))
    time.sleep(0.4)
    assert held() > before, "the workers have answered"
    pool.close()
    assert held() <= before


def test_an_interruption_while_workers_stop_does_not_stop_that() -> None:
    before = held()
    pool = WorkerPool(make_runner, 2, method="fork")
    pool.submit(task("1"))
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
    with undisturbed():
        timer.start()
        pool.close()
        timer.join()
    assert held() <= before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
