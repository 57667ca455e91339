"""The documents say what is so: generated pages are current, examples are accepted, links lead somewhere."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cloister.core.resolve import build_model, load_task, owners
from cloister.core.spec import parse_federation


def documents(repository: Path) -> list[Path]:
    folders = ["docs", "examples", "core", "privacy", "strategies", "client", "server", "simulation"]
    return sorted(
        [
            *repository.glob("*.md"),
            *(path for folder in folders for path in (repository / folder).rglob("*.md")),
        ]
    )


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


def test_the_reference_of_the_federation_file_is_current(repository: Path) -> None:
    script = repository / "scripts" / "federation_reference.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_map_of_evidence_and_law_is_current(repository: Path) -> None:
    script = repository / "scripts" / "compliance_reference.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_federation_file_in_a_document_is_accepted(repository: Path) -> None:
    found = 0
    for path in documents(repository):
        for block in blocks(path, "toml"):
            document = tomllib.loads(block)
            if "federation" in document:
                parse_federation(document, base=path.parent)
                found += 1
    assert found >= 3


@pytest.mark.parametrize("name", ["README.md", "docs/tasks.md"])
def test_the_task_in_a_document_works_as_it_stands(repository: Path, tmp_path: Path, name: str) -> None:
    (source,) = [block for block in blocks(repository / name, "python") if "class Parity" in block]
    (tmp_path / "parity.py").write_text(source, encoding="utf-8")
    document = {"federation": {"name": "a", "rounds": 1}, "task": {"use": "parity.py:Parity", "records": 30}}
    task = load_task(parse_federation(document, base=tmp_path).spec.task, tmp_path)
    build_model(task, 0)
    assert {name: len(split.train) for name, split in owners(task).items()} == {"pooled": 20}


def test_python_in_documents_imports_what_exists(repository: Path) -> None:
    import importlib

    for path in documents(repository):
        for block in blocks(path, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cloister"):
                    module = importlib.import_module(node.module or "")
                    assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], path


def test_links_between_documents_lead_somewhere(repository: Path) -> None:
    links = [
        (path, target)
        for path in documents(repository)
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        if not target.startswith(("http://", "https://"))
    ]
    assert len(links) > 20
    assert [(path.name, target) for path, target in links if not (path.parent / target).exists()] == []


def test_the_commands_of_the_readme_are_targets_of_make(repository: Path) -> None:
    commands = re.findall(
        r"^make (\w+)", (repository / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    targets = re.findall(
        r"^(\w+):", (repository / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert {"demo", "test"} <= set(commands) <= set(targets)
