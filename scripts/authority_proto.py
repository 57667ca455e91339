"""Write the Python of ``authority.proto``, or check with ``--check`` that what stands there is current. Needs grpcio-tools."""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "privacy"
PROTO = "cloister/privacy/authority/authority.proto"
MADE = ("cloister/privacy/authority/authority_pb2.py", "cloister/privacy/authority/authority_pb2.pyi")


def generate(folder: Path) -> None:
    """Write both modules below ``folder``."""
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT)]
    command += [f"--python_out={folder}", f"--pyi_out={folder}", PROTO]
    subprocess.run(command, check=True)  # noqa: S603 - our own arguments


def main() -> None:
    """Write or check."""
    if "--check" not in sys.argv[1:]:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as name:
        generate(Path(name))
        stale = [made for made in MADE if (Path(name) / made).read_text() != (ROOT / made).read_text()]
    if stale:
        raise SystemExit(f"not current: {', '.join(stale)}; run: python scripts/authority_proto.py")


if __name__ == "__main__":
    main()
