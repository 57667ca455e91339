"""The process of one job: ``python -m cloister.server.deployment.work FOLDER RUN``. It ends as the job does, and says how in a file.

It ends too when its parent does: whoever opens the queue next starts the job again, from its last checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from cloister.core.errors import CloisterError
from cloister.core.files import write_whole
from cloister.core.observing import log_to
from cloister.server.deployment.parent import end_with_parent
from cloister.server.deployment.running import open_office, run_job
from cloister.server.deployment.store import JobStore

__all__ = ["main", "outcome_path"]

_LOG = logging.getLogger("cloister.server.work")


def outcome_path(state: Path, run: str) -> Path:
    """Return the file in which a job's process says how it ended."""
    return state / "outcomes" / f"{run}.json"


def main() -> int:
    """Run the job that the arguments name."""
    folder, run = Path(sys.argv[1]), sys.argv[2]
    log_to()
    end_with_parent()
    signal.signal(
        signal.SIGTERM, lambda *_: os._exit(143)
    )  # whatever stands in the run folder stays resumable
    office = open_office(folder)
    path = outcome_path(office.state, run)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        signed, federation = JobStore(office.state / "jobs.sqlite").asked(run)
        run_job(office, signed, federation)
        said: dict[str, Any] = {"kind": "done", "code": "done", "message": "", "status": 0}
    except CloisterError as error:
        said = {
            "kind": type(error).__name__,
            "code": error.code,
            "message": error.message,
            "status": error.exit_code,
        }
        _LOG.error("job %s: %s", run, error)
    except Exception:  # noqa: BLE001 - told by code; the words stay in the log
        _LOG.exception("job %s: a fault", run)
        said = {"kind": "fault", "code": "internal", "message": "a fault of the server's own", "status": 1}
    write_whole(path, json.dumps(said), mode=0o600)
    return int(said["status"])


if __name__ == "__main__":
    sys.exit(main())
