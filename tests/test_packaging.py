"""What is shipped, and what must not be in the repository."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from cloister.core._version import __version__

PARTS = ("core", "privacy", "strategies", "client", "server", "simulation")
HEART = ("cleveland.csv", "hungarian.csv", "long-beach-va.csv", "switzerland.csv")


def tracked(repository: Path) -> list[Path]:
    """Every file that git knows or would add; the tests run from a checkout."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=repository,
        capture_output=True,
        check=True,
    )
    paths = [repository / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


@pytest.fixture(scope="session")
def sources(repository: Path) -> list[Path]:
    """Return every module of the parts."""
    return sorted(path for part in PARTS for path in (repository / part / "cloister" / part).rglob("*.py"))


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel and open it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(repository),
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.parametrize("part", PARTS)
def test_no_part_has_a_package_file_that_would_hide_the_others(repository: Path, part: str) -> None:
    assert (repository / part / "cloister" / part).is_dir()
    assert not (repository / part / "cloister" / "__init__.py").exists()


@pytest.mark.parametrize("part", PARTS)
def test_every_part_says_who_runs_it_and_what_it_may_see(repository: Path, part: str) -> None:
    text = (repository / part / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\b(who runs it|run by)\b", text, flags=re.IGNORECASE)
    assert re.search(r"\b(what it may see|sees)\b", text, flags=re.IGNORECASE)


def test_the_wheel_holds_all_parts_and_the_heart_records_and_no_test(
    wheel: zipfile.ZipFile, sources: list[Path], repository: Path
) -> None:
    names = set(wheel.namelist())
    modules = {
        path.relative_to(repository / path.relative_to(repository).parts[0]).as_posix() for path in sources
    }
    assert modules <= names
    assert {f"cloister/{part}/py.typed" for part in PARTS} <= names
    assert {f"cloister/core/tasks/heart_data/{name}" for name in HEART} <= names
    assert not [name for name in names if "test" in name.lower()]
    assert {name.split("/")[0] for name in names} == {"cloister", f"cloister-{__version__}.dist-info"}
    assert "cloister/__init__.py" not in names


def test_the_heart_records_in_the_wheel_are_those_of_the_repository(
    wheel: zipfile.ZipFile, repository: Path
) -> None:
    for name in HEART:
        assert (
            wheel.read(f"cloister/core/tasks/heart_data/{name}")
            == (repository / "examples/heart/data" / name).read_bytes()
        )


def test_the_version_has_one_source(wheel: zipfile.ZipFile, repository: Path) -> None:
    metadata = wheel.read(f"cloister-{__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]


def test_the_changelog_has_this_version(repository: Path) -> None:
    text = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(__version__)}\]", text, flags=re.MULTILINE)


def test_the_licence_is_shipped(wheel: zipfile.ZipFile) -> None:
    text = wheel.read(f"cloister-{__version__}.dist-info/licenses/LICENSE").decode()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_public_module_lists_its_names_in_order(sources: list[Path]) -> None:
    lacking, unsorted = [], []
    for path in sources:
        module = ast.parse(path.read_text(encoding="utf-8"))
        listed = [
            ast.literal_eval(node.value)
            for node in module.body
            if isinstance(node, ast.Assign)
            and [target.id for target in node.targets if isinstance(target, ast.Name)] == ["__all__"]
        ]
        public = [
            node.name
            for node in module.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        if public and not listed and not path.name.startswith("_"):
            lacking.append(path.name)
        # As ruff sorts them (RUF022): CONSTANTS, then Classes, then functions.
        if listed and listed[0] != sorted(
            listed[0], key=lambda name: (not name.isupper(), not name[:1].isupper(), name)
        ):
            unsorted.append(path.name)
    assert (lacking, unsorted) == ([], [])


def test_every_listed_name_exists() -> None:
    for part in ("cloister.core", "cloister.privacy", "cloister.strategies"):
        package = importlib.import_module(part)
        for found in pkgutil.walk_packages(package.__path__, f"{part}."):
            module = importlib.import_module(found.name)
            assert [name for name in getattr(module, "__all__", []) if not hasattr(module, name)] == []


def test_names_of_core_that_are_imported_late_are_those_that_it_lists() -> None:
    core = importlib.import_module("cloister.core")
    assert {*core._HOME, "__version__"} == set(core.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = core.Nothing


def test_the_layers_hold(repository: Path) -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_holds_a_path_of_a_developer_s_machine_or_a_registry_s_host(repository: Path) -> None:
    # The patterns are put together here so that this file does not match itself.
    folders = "|".join(["wo" + "rk", "fa" + "rm", "ro" + "ot", "ho" + "me/[a-z]"])
    hosts = "|".join(
        re.escape(".".join(parts))
        for parts in [("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch", "org")]
    )
    forbidden = re.compile(rf"(?:^|[^A-Za-z0-9_.])/(?:{folders})/|{hosts}")
    found = []
    for path in tracked(repository):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(repository)}:{number}"
            for number, line in enumerate(text.splitlines(), 1)
            if forbidden.search(line)
        ]
    assert found == []


def test_constraints_are_exact_versions_and_nothing_else(repository: Path) -> None:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line)] == []
    assert len({line.partition("==")[0].lower().replace("_", "-") for line in pins}) == len(pins)


def test_every_requirement_has_a_constraint(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [
        name for extra in project["optional-dependencies"].values() for name in extra
    ]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (repository / "constraints.txt").read_text().splitlines()
    }
    names = {re.split(r"[<>=!\[ ]", name, maxsplit=1)[0].lower().replace("_", "-") for name in wanted}
    assert names - pinned == set()
