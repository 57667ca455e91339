"""An environment of its own for pfl 0.6.0: its NumPy and Python bounds need not be Cloister's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from measuring import say

__all__ = ["PFL", "default_folder", "python_of"]

PFL = "0.6.0"


def default_folder() -> Path:
    """Return where the environment is kept between runs: in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "cloister-benchmarks" / f"pfl-{PFL}"


def python_of(folder: Path) -> Path:
    """Return the environment's Python, after making it with pfl and this environment's own torch and NumPy versions.

    Raises:
        SystemExit: it could not be made.
    """
    wanted = [f"torch=={version('torch').split('+')[0]}", f"numpy=={version('numpy')}", f"pfl=={PFL}"]
    folder = folder.expanduser().resolve()
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists() and done.read_text().split() == wanted:
        return python
    if folder.exists() and not (folder / "pyvenv.cfg").exists():
        raise SystemExit(f"--pfl-venv {folder}: that folder is something else; give another one")
    say(f"making an environment for pfl in {folder}: {' '.join(wanted)} (once)")
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
    ):
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            raise SystemExit(
                f"could not make the environment for pfl: {' '.join(command)}\nremedy: leave pfl out with --without pfl pfl-tuned"
            )
    done.write_text("\n".join(wanted))
    return python
