"""Worker processes that run a ClientApp, one single-threaded worker a core.

A worker takes tasks from its pipe, runs the same ClientApp as every other engine, and answers with plain data and a block of
shared memory. Which worker takes a task does not change its result: all randomness is keyed by what is computed. A worker that
dies (out of memory, killed) loses its tasks, which are answered as lost, and is replaced.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Protocol

from cloister.simulation.packing import Attached, Outbox, Packed, remove
from cloister.simulation.threads import keep_memory

__all__ = ["LOST", "Inline", "Result", "Runner", "Task", "WorkerPool", "Workers", "undisturbed"]

#: Flower's ``ErrorCode.CLIENT_APP_CRASHED``: the worker is gone, or nobody waits for its answer any more.
LOST = 8


@dataclass(frozen=True, kw_only=True)
class Task:
    """One message for one virtual site, as plain data."""

    ticket: str
    node: int
    node_config: dict[str, Any]
    message_type: str
    round_group: str
    expires: float
    content: Packed
    state: Packed | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a task: the reply and the site's state afterwards, or the Flower error code that took its place."""

    ticket: str
    content: Packed | None = None
    state: Packed | None = None
    block: str | None = None
    error: int = LOST


#: Runs one task in a worker: reads arrays through the `Attached` blocks and answers in a block of the `Outbox`.
Runner = Callable[[Task, Attached, Outbox], Result]

#: Blocks that a worker keeps attached: the round's model, and what came with the last task.
_ATTACHED = 2


class Workers(Protocol):
    """Runs tasks and hands results out as they come.

    Attributes:
        private: they run in this process, so that nothing need lie in shared memory.
    """

    private: bool

    def submit(self, task: Task) -> None:
        """Queue a task."""
        ...

    def results(self, timeout: float) -> Iterator[Result]:
        """Yield the results that are there, waiting up to ``timeout`` seconds for the first."""
        ...

    def was_read(self, block: str) -> None:
        """Hand back the block of a result: it may be filled again."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


class Inline:
    """No worker process: a task runs when its result is asked for, in this process."""

    private = True

    def __init__(self, make_runner: Callable[[], Runner]) -> None:
        self._runner = make_runner()
        self._tasks: deque[Task] = deque()
        self._attached, self._outbox = Attached(keep=_ATTACHED), Outbox(private=True)

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self._tasks.append(task)

    def results(self, timeout: float) -> Iterator[Result]:  # noqa: ARG002
        """Run the next task and yield its result."""
        if self._tasks:
            yield self._runner(self._tasks.popleft(), self._attached, self._outbox)

    def was_read(self, block: str) -> None:
        """Hand back the block of a result: it may be filled again."""
        self._outbox.take_back([block])

    def close(self) -> None:
        """Forget what is queued."""
        self._tasks.clear()
        self._outbox.free()


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    held: list[Task] = field(default_factory=list)
    #: The blocks that it answered in, and those of them that it may fill again when it hears of it.
    blocks: set[str] = field(default_factory=set)
    read: list[str] = field(default_factory=list)


class WorkerPool:
    """``count`` worker processes.

    They are forked where that is safe (Linux, one thread, no GPU in sight), so that the task's data is shared and the
    first round starts at once; else they are spawned and build everything anew.
    """

    private = False

    def __init__(self, make_runner: Callable[[], Runner], count: int, *, method: str | None = None) -> None:
        """Start the workers.

        Args:
            make_runner: called once in each worker; it must survive pickling where workers are spawned.
            count: how many.
            method: ``fork`` or ``spawn``; chosen as said above when left out.
        """
        self._make_runner = make_runner
        resource_tracker.ensure_running()  # before any fork: one tracker then frees what a killed process left behind
        self._context = multiprocessing.get_context(method or ("fork" if _fork_is_safe() else "spawn"))
        self._queue: deque[Task] = deque()
        self._workers: list[_Worker] = []
        for _ in range(count):
            self._workers.append(self._start())

    def submit(self, task: Task) -> None:
        """Queue a task; it goes to the first worker with room."""
        self._queue.append(task)
        self._hand_out()

    def results(self, timeout: float) -> Iterator[Result]:
        """Yield the results that are there, waiting up to ``timeout`` seconds for the first."""
        pipes = {worker.pipe: worker for worker in self._workers if worker.held}
        for pipe in multiprocessing.connection.wait(list(pipes), timeout) if pipes else ():
            worker = pipes[pipe]  # type: ignore[index]  # only our own pipes were waited for
            try:
                result: Result = worker.pipe.recv()
            except (EOFError, ConnectionError):
                yield from self._replace(worker)
                continue
            worker.held = [task for task in worker.held if task.ticket != result.ticket]
            if result.block is not None:
                worker.blocks.add(result.block)
            self._hand_out()
            yield result

    def was_read(self, block: str) -> None:
        """Hand back the block of a result: its worker fills it again."""
        for worker in self._workers:
            if block in worker.blocks:
                worker.read.append(block)

    def close(self) -> None:
        """Stop the workers and free what they answered in; one that does not listen is killed. Ctrl-C waits for that."""
        with undisturbed():
            self._queue.clear()
            for worker in self._workers:
                with suppress(OSError):
                    worker.pipe.send(None)
            for worker in self._workers:
                deadline = time.monotonic() + (0.2 if worker.held else 5)
                while _take_next(worker, max(0.0, deadline - time.monotonic())):
                    pass
                worker.process.join(timeout=max(0.0, deadline - time.monotonic()))
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
                while _take_next(worker, 0):
                    pass
                worker.pipe.close()
                _remove_blocks(worker)
            self._workers.clear()

    def _hand_out(self) -> None:
        """Give each idle worker a task, and each a second one to go on with while there are plenty."""
        while self._queue:
            worker = min(self._workers, key=lambda w: len(w.held))
            if len(worker.held) >= (2 if len(self._queue) > len(self._workers) else 1):
                return
            task = self._queue.popleft()
            worker.held.append(task)
            with suppress(OSError):  # it died: `results` finds out and answers for its tasks
                worker.pipe.send((task, worker.read))
                worker.read = []

    def _replace(self, worker: _Worker) -> Iterator[Result]:
        worker.pipe.close()
        worker.process.join()
        _remove_blocks(worker)
        lost = worker.held
        self._workers[self._workers.index(worker)] = self._start()
        # The task it ran is lost; one that only waited goes to another worker.
        self._queue.extendleft(reversed(lost[1:]))
        self._hand_out()
        for task in lost[:1]:
            yield Result(ticket=task.ticket)

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        others = [worker.pipe for worker in self._workers] + [ours]
        fork = self._context.get_start_method() == "fork"
        process = self._context.Process(  # type: ignore[attr-defined]  # typeshed's BaseContext lacks it
            target=_work,
            args=(theirs, self._make_runner, others if fork else []),
            daemon=True,
            name="cloister-worker",
        )
        # Started with SIGINT held back, which the worker inherits until it ignores it: Ctrl-C is for this process alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(process, ours)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C while the context lasts, where this thread may say so: what is being given back is given back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def _work(pipe: Connection, make_runner: Callable[[], Runner], others: list[Connection]) -> None:
    """Run tasks until the pipe closes."""
    for other in others:
        other.close()  # inherited: while it is open here, a dead parent goes unnoticed
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import torch

    torch.set_num_threads(1)
    keep_memory()
    runner, attached, outbox = make_runner(), Attached(keep=_ATTACHED), Outbox()
    gc.freeze()  # what is there now stays: the collector need not look at it again and again
    with suppress(EOFError, ConnectionError):
        while (received := pipe.recv()) is not None:
            task, read = received
            outbox.take_back(read)
            pipe.send(runner(task, attached, outbox))
    os._exit(0)  # a forked child must not run its parent's exit handlers


def _take_next(worker: _Worker, timeout: float) -> bool:
    """Take one answer that nobody waits for, for its block's name; whether there was one."""
    try:
        if not worker.pipe.poll(timeout):
            return False
        result: Result = worker.pipe.recv()
    except (EOFError, OSError):
        return False
    if result.block is not None:
        worker.blocks.add(result.block)
    return True


def _remove_blocks(worker: _Worker) -> None:
    for name in worker.blocks:
        remove(name)
    worker.blocks.clear()


def _fork_is_safe() -> bool:
    import torch

    on_linux = "fork" in multiprocessing.get_all_start_methods() and os.uname().sysname == "Linux"
    # Where a GPU is in sight, counting them is enough for CUDA to fail in a fork, and so is a backward pass for autograd, whatever the device of the run.
    return on_linux and threading.active_count() == 1 and not torch.cuda.is_available()
