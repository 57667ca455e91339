"""A child process that is written to and read from through unbuffered pipes, and killed where it takes too long."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator

__all__ = ["killed_after", "read", "send", "stop"]


def send(child: subprocess.Popen[bytes], message: bytes) -> None:
    """Write all of ``message`` to what the child reads.

    Raises:
        OSError, EOFError: it reads no more.
    """
    if child.stdin is None:
        raise EOFError
    left = memoryview(message)
    while left:
        left = left[child.stdin.write(left) or 0 :]


def read(child: subprocess.Popen[bytes], length: int) -> bytes:
    """Return the next ``length`` bytes that the child wrote.

    Raises:
        EOFError: it wrote fewer, and ended.
    """
    if child.stdout is None:
        raise EOFError
    parts, left = [], length
    while left:
        part = child.stdout.read(left)
        if not part:
            raise EOFError
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


@contextlib.contextmanager
def killed_after(seconds: float, child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill ``child`` unless the block ends in time: what waits for it in the block then finds its pipes closed."""
    watch = threading.Timer(seconds, child.kill)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def stop(child: subprocess.Popen[bytes]) -> None:
    """Kill the child, wait for its end and close the pipes."""
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
