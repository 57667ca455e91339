"""Call into a task's own code: whatever it raises becomes a refusal that tells nothing of the data."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cloister.core.errors import CloisterError, TaskError

__all__ = ["guarded"]

T = TypeVar("T")

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def guarded(name: str, where: str, call: Callable[[], T]) -> T:
    """Call into a task; what it raises becomes a `TaskError` without the exception's text."""
    try:
        return call()
    except CloisterError:
        raise
    except (Exception, SystemExit) as error:  # a task that calls sys.exit() does not end the run in silence
        raise TaskError(
            f"task '{name}' raised {type(error).__name__} in {where}{_place(error)}",
            remedy="set CLOISTER_DEBUG=1 to see the whole traceback",
            code="task-raised",
        ) from error


def _place(error: BaseException) -> str:
    """Say where in the task's code ``error`` arose: its innermost line outside installed packages, if there is one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" (at {Path(error.filename).name}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if not frame.filename.startswith((*_INSTALLED, "<"))] or frames
    return f" (at {Path(own[-1].filename).name}:{own[-1].lineno}, {own[-1].name})" if own else ""
