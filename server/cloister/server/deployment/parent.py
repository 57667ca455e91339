"""Children of the server end when it does, however it ends: what goes on next is for whoever is started next."""

from __future__ import annotations

import os
import threading
import time

__all__ = ["PARENT", "end_with_parent"]

#: The variable that names the parent's process to its children.
PARENT = "CLOISTER_PARENT"
_WATCH_S = 0.5
_STATUS = 143


def end_with_parent() -> None:
    """Watch, from a thread, for the end of the process that `PARENT` names; end this one at once then."""
    parent = int(os.environ.get(PARENT, "0"))
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os._exit(_STATUS)

    threading.Thread(target=watch, daemon=True, name="parent").start()
