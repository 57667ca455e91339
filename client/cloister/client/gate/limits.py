"""What a run may use of the machine: threads, memory, GPUs.

Memory is limited by ``RLIMIT_DATA``: on Linux the kernel counts what the process has allocated for itself and can write to, and refuses more. Unlike
``RLIMIT_AS`` it leaves out libraries, mapped files and address space that is only reserved, of which torch and CUDA take many times what they use. The
refusal reaches the task as an error of its allocation, the site answers with a refusal, and the process lives on. It holds while a message is
worked on, for the whole process. Memory on a GPU is not counted.

==========================================  ==================================================
case                                        outcome
==========================================  ==================================================
no limit                                    nothing is done
more in use already than is allowed         ``PolicyError`` (wait-memory): nothing is begun
not Linux                                   ``PolicyError`` (policy-memory): it cannot be kept
==========================================  ==================================================
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from cloister.client.gate.policy import Limits
from cloister.core.errors import PolicyError

__all__ = ["bounded", "settle"]

_MIB = 1 << 20
_IN_USE = re.compile(r"^VmData:\s+(\d+) kB$", re.MULTILINE)


def settle(limits: Limits) -> None:
    """Set what holds for the whole process: the number of threads, and that no GPU is seen.

    A GPU that was used before stays visible: a run that would use it is refused instead.
    """
    if limits.threads is not None:
        torch.set_num_threads(limits.threads)
    if not limits.gpu and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@contextlib.contextmanager
def bounded(memory_mb: int | None) -> Iterator[None]:
    """Let the process hold at most ``memory_mb`` MiB while this is open.

    Raises:
        PolicyError: see the table.
    """
    if memory_mb is None:
        yield
        return
    if sys.platform != "linux":
        raise PolicyError(
            "this site limits memory, which it can on Linux only",
            code="policy-memory",
            remedy="remove limits.memory_mb",
        )
    wanted = memory_mb * _MIB
    found = _IN_USE.search(Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
    if found is None or int(found[1]) * 1024 > wanted:
        raise PolicyError(
            f"this site's process holds more memory already than the {memory_mb} MiB that its policy allows",
            code="wait-memory",
            remedy="raise limits.memory_mb, or start the site anew",
        )
    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = before[1]
    soft = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
