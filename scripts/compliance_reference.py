"""Write ``docs/compliance.md`` from the table that the report shows: ``server/cloister/server/report/compliance.toml``.

::

    python scripts/compliance_reference.py            # write it
    python scripts/compliance_reference.py --check    # exit 1 if it is not current
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from cloister.server.report.compliance import kinds, requirements

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "compliance.md"

HEAD = """\
<!-- Written by scripts/compliance_reference.py from server/cloister/server/report/compliance.toml: change it there. -->

# Evidence and requirements of the law

Every report ends with this table, filled in with what its run has (`report.html`, "Evidence and requirements of the law"). It is a map for those who answer
for the processing: a controller, its data-protection officer, an auditor. It is no legal advice, and **no row says that a requirement is met**: the last
column says what the evidence leaves open.

A check that says "no power" is no evidence. What each check could have shown stands beside its verdict, and in the
[certificate](release.md).
"""


def main() -> int:
    """Write the document, or with ``--check`` compare it; return the exit status."""
    parser = argparse.ArgumentParser(description="Write docs/compliance.md")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the file is not current"
    )
    text = reference()
    if not parser.parse_args().check:
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    if DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    print(f"{DOCUMENT.name} is not current: run python scripts/compliance_reference.py", file=sys.stderr)
    return 1


def reference() -> str:
    """Return the whole document."""
    return "\n".join([HEAD, *_laws()])


def _laws() -> Iterator[str]:
    about = {key: kind["about"] for key, kind in kinds().items()}
    laws = dict.fromkeys(one.law for one in requirements())
    for law in laws:
        yield f"## {law}\n"
        yield "| requirement | evidence in a run | not covered |\n|---|---|---|"
        for one in requirements():
            if one.law == law:
                evidence = "; ".join(about[key] for key in one.evidence)
                yield f"| **{one.article}** {one.requirement} | {evidence} | {one.open} |"
        yield ""


if __name__ == "__main__":
    sys.exit(main())
