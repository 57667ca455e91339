"""The tree of refusals and the table of exit statuses."""

import inspect
import re
from pathlib import Path

import pytest

from cloister.core import errors
from cloister.core.errors import EXIT_CODES, CloisterError, SpecError, TaskError

CLASSES = [getattr(errors, name) for name in errors.__all__ if inspect.isclass(getattr(errors, name))]


def drawn() -> dict[str, tuple[str, int]]:
    """Read the tree of the module's docstring: class → (parent, exit status)."""
    found: dict[str, tuple[str, int]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([ │├└─]*)([A-Z]\w+)\s+exit (\d+)", line)
        if match:
            depth, name = len(match[1]), match[2]
            above = [(d, n) for d, n in above if d < depth]
            found[name] = (above[-1][1] if above else "Exception", int(match[3]))
            above.append((depth, name))
    return found


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    assert drawn() == {kind.__name__: (kind.__bases__[0].__name__, kind.exit_code) for kind in CLASSES}


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [kind.default_code for kind in CLASSES]
    assert len(set(codes)) == len(codes)


def test_every_exit_status_of_a_class_is_in_the_table_and_the_other_way_round() -> None:
    assert {kind.exit_code for kind in CLASSES} | {0, 130, 141} == set(EXIT_CODES)


def test_a_refusal_carries_code_message_and_remedy() -> None:
    error = TaskError("the task 'x' is unknown", remedy="name another", code="task-unknown")
    assert error.as_dict() == {
        "code": "task-unknown",
        "message": "the task 'x' is unknown",
        "remedy": "name another",
    }
    assert str(error) == error.message


@pytest.mark.parametrize("kind", CLASSES)
def test_a_refusal_without_a_code_takes_its_class_s(kind: type[CloisterError]) -> None:
    assert kind("m").as_dict() == {"code": kind.default_code, "message": "m", "remedy": ""}


def test_what_catches_the_federation_file_s_refusals_catches_the_task_s() -> None:
    assert issubclass(TaskError, SpecError)


def test_docs_print_the_table_of_exit_statuses(repository: Path) -> None:
    text = (repository / "docs" / "simulate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert {int(status): words for status, words in rows} == EXIT_CODES
