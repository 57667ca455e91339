"""Write the Python of every ``.proto`` file, or check with ``--check`` that what stands there is current. Needs grpcio-tools."""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Below which folder each lies, and where.
PROTOS = {
    "privacy": "cloister/privacy/authority/authority.proto",
    "server": "cloister/server/deployment/jobs.proto",
}


def generate(part: str, proto: str, folder: Path) -> list[str]:
    """Write both modules of ``proto`` below ``folder``; return their names."""
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / part)]
    command += [f"--python_out={folder}", f"--pyi_out={folder}", proto]
    subprocess.run(command, check=True)  # noqa: S603 - our own arguments
    stem = proto.removesuffix(".proto")
    return [f"{stem}_pb2.py", f"{stem}_pb2.pyi"]


def main() -> None:
    """Write or check."""
    stale = []
    for part, proto in PROTOS.items():
        if "--check" not in sys.argv[1:]:
            generate(part, proto, ROOT / part)
            continue
        with tempfile.TemporaryDirectory() as name:
            made = generate(part, proto, Path(name))
            stale += [
                one for one in made if (Path(name) / one).read_text() != (ROOT / part / one).read_text()
            ]
    if stale:
        raise SystemExit(f"not current: {', '.join(stale)}; run: python scripts/protos.py")


if __name__ == "__main__":
    main()
