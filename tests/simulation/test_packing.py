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
from cloister.simulation.packing import Attached, Block, Outbox, Piece
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
    block, attached = Block(arrays, private=True), Attached()
    assert held() == before
    for array, piece in zip(arrays, block.pieces, strict=True):
        np.testing.assert_array_equal(attached.view(piece), array)
    view = attached.view(block.pieces[0])
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    block.free()
    attached.let_go(block.memory.name)
    np.testing.assert_array_equal(view, arrays[0])
    with pytest.raises(OSError, match=r"."):
        Attached().view(block.pieces[0])


def make_runner() -> Runner:
    """Answer with a block, after a moment."""

    def run(task: Task, attached: Attached, outbox: Outbox) -> Result:
        time.sleep(0.05)
        return Result(ticket=task.ticket, block=outbox.place([np.full(100, float(task.ticket))]).memory.name)

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
    deadline = time.monotonic() + 60
    while held() <= before:
        assert time.monotonic() < deadline, "the workers never answered"
        time.sleep(0.02)
    pool.close()
    assert held() <= before


@pytest.mark.parametrize("private", [True, False])
def test_a_block_is_filled_again_only_when_it_was_read(*, private: bool) -> None:
    before, outbox, attached = held(), Outbox(private=private), Attached()
    first = outbox.place([np.full(100, 1.0)])
    kept = attached.view(first.pieces[0])
    second = outbox.place([np.full(100, 2.0)])
    assert (second.memory.name == first.memory.name, kept[0]) == (False, 1.0)
    outbox.take_back([first.memory.name])
    assert outbox.place([np.full(200, 3.0)]).memory.name not in (first.memory.name, second.memory.name)
    again = outbox.place([np.full(50, 4.0), np.full(10, 5.0, np.float32)])
    assert again.memory.name == first.memory.name
    assert [attached.view(piece)[0] for piece in again.pieces] == [4.0, 5.0]
    outbox.free()
    assert held() <= before


def test_few_blocks_stay_attached_and_what_is_read_stays_readable() -> None:
    blocks = [Block([np.full(10, float(number))]) for number in range(4)]
    attached = Attached(keep=2)
    views = [attached.view(block.pieces[0]) for block in blocks]
    for block in blocks:
        block.free()
    assert [view[0] for view in views] == [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(OSError, match=r"."):
        attached.view(blocks[0].pieces[0])


def test_a_pool_answers_in_as_many_blocks_as_are_being_read() -> None:
    before = held()
    pool, seen = WorkerPool(make_runner, 1, method="fork"), set()
    for number in range(6):
        pool.submit(task(str(number)))
    attached = Attached()
    values: list[float] = []
    while len(values) < 6:
        for result in pool.results(5):
            assert result.block is not None
            values.append(attached.take(Piece(result.block, 0, "float64", (100,)))[7])
            seen.add(result.block)
            pool.was_read(result.block)
    assert values == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert len(seen) <= 3
    pool.close()
    assert held() <= before


def test_a_killed_worker_leaves_no_block() -> None:
    before = held()
    pool = WorkerPool(make_runner, 1, method="fork")
    pool.submit(task("1"))
    (result,) = pool.results(5)
    os.kill(pool._workers[0].process.pid or 0, signal.SIGKILL)
    pool.submit(task("2"))
    answers = [answer.block for _ in range(3) for answer in pool.results(5)]
    assert result.block not in os.listdir(SHARED), answers  # noqa: PTH208 - names
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
