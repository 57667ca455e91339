"""From ``[task]`` to a checked task: what is found, what is refused, and that a refusal tells nothing of the data."""

import os
import py_compile
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cloister.core.data import Split, TensorData
from cloister.core.errors import CloisterError, DataError, TaskError
from cloister.core.preflight import try_task
from cloister.core.resolve import (
    POOLED,
    build_model,
    check_data,
    described,
    load_task,
    notes_of,
    owners,
    task_names,
)
from cloister.core.spec.tables import TaskTable
from cloister.core.task import Task

TASK = """
from pathlib import Path
from typing import Annotated, Literal
import torch
from pydantic import Field
from torch import nn
from cloister.core import Split, Task, TensorData

class Mine(Task):
    classes = ("no", "yes")

    def __init__(self, size: int = 3, *, rate: float = 0.5, deep: bool = False, kind_of: Literal["a", "b"] = "a",
                 data: Path = Path("x.csv"), more: tuple[Path, ...] = (), schema: dict[str, int] | None = None,
                 least: Annotated[int, Field(ge=2)] = 2, free=None) -> None:
        self.options = {"size": size, "rate": rate, "deep": deep, "kind_of": kind_of, "data": data, "more": more,
                        "schema": schema, "least": least, "free": free}

    def model(self) -> nn.Module:
        return nn.Linear(2, 2)

    def data(self) -> Split:
        records = TensorData(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        return Split(records, records)

class Needs(Mine):
    def __init__(self, path: Path) -> None:
        self.path = path

class Half(Task):
    classes = ("no", "yes")

class One(Mine):
    classes = ("only",)

class Odd(Mine):
    kind = "ranking"

class Raises(Mine):
    def __init__(self) -> None:
        raise ValueError("patient 4711 has 63 years")

class Leaves(Mine):
    def __init__(self) -> None:
        raise SystemExit(0)

class Deep(Mine):
    def __init__(self) -> None:
        torch.zeros(3).reshape(2)

class Misspelt(Mine):
    def __init__(self, size: "Nothing" = 3) -> None:
        pass

def make(size: int = 1) -> Mine:
    return Mine(size)

def silent(size: int = 1):
    return Mine(size)

def lies() -> Mine:
    return 3

made = Mine(9)
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder outside the repository with a task of somebody's own."""
    (tmp_path / "mine.py").write_text(TASK, encoding="utf-8")
    return tmp_path


def load(use: str, base: Path, **options: Any) -> Any:
    return load_task(TaskTable.model_validate({"use": use, **options}), base)


def refused(call: Callable[[], object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        call()
    assert caught.value.remedy
    return caught.value


class TestFinding:
    def test_a_task_in_a_file_of_one_s_own_is_found_from_the_federation_file_s_folder(
        self, folder: Path
    ) -> None:
        assert type(load("mine.py:Mine", folder)).__name__ == "Mine"
        assert type(load(f"{folder}/mine.py:Mine", Path("/"))).__name__ == "Mine"

    def test_a_function_that_says_it_returns_a_task_makes_one(self, folder: Path) -> None:
        assert load("mine.py:make", folder, size=5).options["size"] == 5

    def test_a_task_already_made_is_taken_as_it_is_but_takes_no_options(self, folder: Path) -> None:
        assert load("mine.py:made", folder).options["size"] == 9
        assert "takes no options" in refused(lambda: load("mine.py:made", folder, size=1)).message

    def test_a_task_in_an_installed_module_is_found(self) -> None:
        assert isinstance(load("cloister.core.tasks.heart:Heart", Path()), Task)

    def test_an_installed_task_is_found_by_name(self) -> None:
        assert {"heart", "digits", "tabular", "images", "hub"} <= set(task_names())
        assert isinstance(load("heart", Path()), Task)

    def test_an_edited_file_is_read_anew(self, folder: Path) -> None:
        load("mine.py:Mine", folder)
        (folder / "mine.py").write_text(TASK.replace("size: int = 3", "size: int = 4"), encoding="utf-8")
        assert load("mine.py:Mine", folder).options["size"] == 4

    def test_a_file_is_run_and_not_what_lies_compiled_beside_it(self, folder: Path) -> None:
        file = folder / "mine.py"
        before = file.stat()
        py_compile.compile(str(file))
        file.write_text(TASK.replace("size: int = 3", "size: int = 4"), encoding="utf-8")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert load("mine.py:Mine", folder).options["size"] == 4

    @pytest.mark.parametrize(
        ("use", "says"),
        [
            ("hart", "there is no task 'hart'; did you mean 'heart'?"),
            ("qqqqq", "there is no task 'qqqqq'; known here: "),
            ("nowhere:Mine", "there is no module 'nowhere'"),
            ("cloister.nowhere:Mine", "there is no module 'cloister.nowhere'"),
            ("missing.py:Mine", "missing.py': No such file"),
            ("mine.py:Min", "'mine.py' has no 'Min'; did you mean 'Mine'?"),
            ("mine.py:", "lacks a part"),
            (":Mine", "lacks a part"),
        ],
    )
    def test_what_is_not_there_is_named_with_the_nearest(self, folder: Path, use: str, says: str) -> None:
        error = refused(lambda: load(use, folder))
        assert says in error.message
        assert (error.code, error.exit_code) == ("task-unknown", 3)

    @pytest.mark.parametrize(
        "use",
        [
            "mine.py:number",
            "mine.py:silent",
            "mine.py:torch",
            "os:system",
            "subprocess:Popen",
            "builtins:eval",
        ],
    )
    def test_what_does_not_say_that_it_makes_a_task_is_never_called(self, folder: Path, use: str) -> None:
        mark = folder / "called"
        error = refused(lambda: load(use, folder, command=f"touch {mark}", args=f"touch {mark}", size=1))
        assert error.code == "task-type"
        assert not mark.exists()

    @pytest.mark.parametrize(
        ("use", "code", "says"),
        [
            ("mine.py:Half", "task-type", "lacks data() and model()"),
            ("mine.py:One", "task-classes", "a classification with 1 classes"),
            ("mine.py:Odd", "task-kind", "of kind 'ranking'"),
            ("mine.py:lies", "task-type", "made a int, not a Task"),
        ],
    )
    def test_a_task_that_is_not_whole_is_refused(self, folder: Path, use: str, code: str, says: str) -> None:
        error = refused(lambda: load(use, folder))
        assert (error.code, error.exit_code) == (code, 3)
        assert says in error.message


class TestOptions:
    def test_options_reach_the_constructor_in_their_own_types(self, folder: Path) -> None:
        task = load(
            "mine.py:Mine",
            folder,
            size=2,
            rate=1,
            deep=True,
            kind_of="b",
            schema={"a": 1},
            least=4,
            free=[1, "x"],
        )
        assert task.options | {"data": None} == {
            "size": 2,
            "rate": 1.0,
            "deep": True,
            "kind_of": "b",
            "data": None,
            "more": (),
            "schema": {"a": 1},
            "least": 4,
            "free": [1, "x"],
        }

    def test_a_path_is_taken_from_the_federation_file_s_folder_unless_it_is_absolute(
        self, folder: Path
    ) -> None:
        options = load("mine.py:Mine", folder, data="sub/a.csv", more=["b.csv", "/c.csv"]).options
        assert options["data"] == folder / "sub" / "a.csv"
        assert options["more"] == (folder / "b.csv", Path("/c.csv"))

    def test_an_option_left_out_keeps_the_constructor_s_default(self, folder: Path) -> None:
        assert load("mine.py:Mine", folder).options["data"] == Path("x.csv")

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            ({"sise": 1}, "unknown key 'task.sise'; did you mean 'size'?"),
            ({"size": "many"}, 'task.size = "many": should be a whole number'),
            ({"size": "3"}, 'task.size = "3": should be a whole number'),
            ({"size": True}, "task.size = true: should be a whole number"),
            ({"size": 0.5}, "task.size = 0.5: should be a whole number"),
            ({"rate": "0.5"}, 'task.rate = "0.5": should be a number'),
            ({"deep": 1}, "task.deep = 1: should be true or false"),
            ({"kind_of": "c"}, "task.kind_of = \"c\": should be 'a' or 'b'"),
            ({"data": 3}, "task.data = 3: should be text in quotes"),
            ({"more": "b.csv"}, 'task.more = "b.csv": should be a list'),
            ({"schema": {"a": "x"}}, 'task.schema.a = "x": should be a whole number'),
            ({"least": 1}, "task.least = 1: should be at least 2"),
        ],
    )
    def test_a_wrong_option_is_refused_in_one_plain_line(
        self, folder: Path, options: dict[str, Any], line: str
    ) -> None:
        error = refused(lambda: load("mine.py:Mine", folder, **options))
        assert error.message.splitlines() == ["[task] was refused by 'mine.py:Mine':", f"  {line}"]
        assert (error.code, error.exit_code) == ("task-option", 3)

    def test_an_option_that_must_be_given_is_named_with_an_example(self, folder: Path) -> None:
        message = refused(lambda: load("mine.py:Needs", folder)).message
        assert message.splitlines()[1] == "  'task.path' is missing; for example path = \"data.csv\""


class TestATaskThatRaises:
    @pytest.mark.parametrize(
        ("use", "says"),
        [
            ("mine.py:Raises", "raised ValueError in its constructor (at mine.py:40, __init__)"),
            ("mine.py:Leaves", "raised SystemExit in its constructor (at mine.py:44, __init__)"),
            ("mine.py:Deep", "raised RuntimeError in its constructor (at mine.py:48, __init__)"),
            ("mine.py:Misspelt", "raised NameError in the annotations of its constructor"),
        ],
    )
    def test_the_place_in_its_own_file_is_named(self, folder: Path, use: str, says: str) -> None:
        error = refused(lambda: load(use, folder))
        assert says in error.message
        assert (error.code, error.exit_code) == ("task-raised", 3)

    def test_the_text_of_its_exception_is_in_no_part_of_the_refusal(self, folder: Path) -> None:
        error = refused(lambda: load("mine.py:Raises", folder))
        assert "4711" not in f"{error} {error.as_dict()}"
        assert isinstance(error.__cause__, ValueError)

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("x = (", "raised SyntaxError in its module (at broken.py:1)"),
            ("import nowhere_at_all", "raised ModuleNotFoundError in its module (at broken.py:1, <module>)"),
            (
                "a = 1\nraise KeyError('patient 4711')",
                "raised KeyError in its module (at broken.py:2, <module>)",
            ),
        ],
    )
    def test_a_file_that_cannot_be_imported_is_refused_with_the_line(
        self, tmp_path: Path, source: str, says: str
    ) -> None:
        (tmp_path / "broken.py").write_text(source, encoding="utf-8")
        error = refused(lambda: load("broken.py:Mine", tmp_path))
        assert says in error.message
        assert "4711" not in error.message

    def test_a_refusal_of_the_task_s_own_passes_as_it_is(self) -> None:
        def data() -> Split:
            raise DataError("'a.csv', row 3: column 'age' is empty", remedy="fill it", code="data-missing")

        assert refused(lambda: owners(task(data=data))).code == "data-missing"


def task(
    *,
    model: Callable[[], Any] = lambda: nn.Linear(2, 2),
    data: Callable[[], Any] | None = None,
    loss: Callable[..., Any] | None = None,
    single: bool = True,
) -> Task:
    """Return a task of two classes with these parts in place of plain ones."""

    class Mine(Task):
        classes = ("no", "yes")
        allows_single_class = single

        def model(self) -> nn.Module:
            made: nn.Module = model()
            return made

        def data(self) -> Split | Mapping[str, Split]:
            handed: Split = data() if data else Split(records([0, 1]), records([0, 1]))
            return handed

        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = loss(outputs, targets) if loss else super().loss(outputs, targets)
            return found

    return Mine()


def records(targets: list[Any]) -> TensorData:
    return TensorData(torch.ones(len(targets), 2), torch.tensor(targets))


class Regression(Task):
    """One value a record."""

    kind = "regression"

    def model(self) -> nn.Module:
        return nn.Linear(2, 1)

    def data(self) -> Split:
        return Split(records([0.5]), records([]))


class TestModels:
    def test_every_party_builds_the_same_model_from_the_same_seed(self) -> None:
        one, other, third = (build_model(task(), seed) for seed in (3, 3, 4))
        assert torch.equal(one.weight, other.weight)  # type: ignore[arg-type]  # a Linear's weight is a tensor
        assert not torch.equal(one.weight, third.weight)  # type: ignore[arg-type]

    def test_building_a_model_leaves_torch_s_own_generator_alone(self) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        build_model(task(), 1)
        assert torch.equal(torch.rand(3), expected)

    @pytest.mark.parametrize(
        "layer", [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.SyncBatchNorm(2), nn.LazyBatchNorm1d()]
    )
    def test_batch_norm_is_refused_by_the_layer_s_name(self, layer: nn.Module) -> None:
        error = refused(
            lambda: build_model(task(model=lambda: nn.Sequential(nn.Linear(2, 2), nn.Sequential(layer))), 0)
        )
        assert (error.code, error.exit_code) == ("batch-norm", 3)
        assert "layer '1.0'" in error.message
        assert "GroupNorm" in error.remedy

    def test_other_norms_are_accepted(self) -> None:
        build_model(task(model=lambda: nn.Sequential(nn.GroupNorm(1, 2), nn.LayerNorm(2))), 0)

    def test_what_is_no_module_is_refused(self) -> None:
        error = refused(lambda: build_model(task(model=lambda: "resnet"), 0))
        assert "returned a str" in error.message

    def test_a_model_that_raises_is_refused(self) -> None:
        assert (
            refused(lambda: build_model(task(model=lambda: nn.Linear(2, 2)(torch.ones(3))), 0)).code
            == "task-raised"
        )


class TestRecords:
    def test_one_split_is_owned_by_the_pool_and_a_mapping_by_its_names(self) -> None:
        split = Split(records([0, 1]), records([]))
        assert set(owners(task(data=lambda: split))) == {POOLED}
        assert list(owners(task(data=lambda: {"b": split, "a": split}))) == ["b", "a"]

    @pytest.mark.parametrize("handed", [None, [], {}, {"a": 3}, "data"])
    def test_what_is_no_split_is_refused(self, handed: Any) -> None:
        assert refused(lambda: owners(task(data=lambda: handed))).code == "task-data"

    @pytest.mark.parametrize(
        ("targets", "code", "says"),
        [
            ([], "data-empty", "site 'a' has no training record"),
            ([0, 2], "data-target", "outside the 2 classes"),
            ([0, -1], "data-target", "outside the 2 classes"),
            ([0.0, 1.0], "data-target", "not class numbers"),
        ],
    )
    def test_records_that_cannot_be_trained_on_are_refused_by_the_owner_s_name(
        self, targets: list[Any], code: str, says: str
    ) -> None:
        error = refused(lambda: owners(task(data=lambda: {"a": Split(records(targets), records([]))})))
        assert (error.code, error.exit_code) == (code, 4)
        assert says in error.message

    def test_a_bad_test_record_is_refused_too(self) -> None:
        error = refused(lambda: owners(task(data=lambda: {"a": Split(records([0, 1]), records([7]))})))
        assert "a test target" in error.message
        assert "7" not in error.message

    def test_records_of_one_class_are_refused_only_where_the_task_does_not_allow_them(self) -> None:
        error = refused(lambda: check_data(task(single=False), records([1, 1]), owner="a", part="training"))
        assert (error.code, error.exit_code) == ("data-single-class", 4)
        check_data(task(single=True), records([1, 1]), owner="a", part="training")
        check_data(task(single=False), records([1, 1]), owner="a", part="test")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_regression_target_that_is_not_finite_is_refused(self, value: float) -> None:
        assert (
            refused(
                lambda: check_data(Regression(), records([0.5, value]), owner="a", part="training")
            ).exit_code
            == 4
        )
        check_data(Regression(), records([0.5, -3.0]), owner="a", part="training")

    @pytest.mark.parametrize("shape", [(4, 1), (4, 2), (2,)])
    def test_targets_that_are_not_one_a_record_are_refused(self, shape: tuple[int, ...]) -> None:
        class Odd(Handed):
            targets = torch.zeros(shape)

        error = refused(lambda: check_data(Regression(), Odd(), owner="a", part="test"))
        assert (error.code, error.exit_code) == ("data-target", 4)
        assert f"site 'a': test targets have shape {shape} for 4 records" in error.message

    def test_targets_that_are_no_tensor_are_refused(self) -> None:
        class Odd(Handed):
            targets: Any = (0, 1, 0, 1)

        odd: Any = Odd()
        error = refused(lambda: check_data(task(), odd, owner="a", part="test"))
        assert (error.code, error.exit_code) == ("task-data", 3)

    @pytest.mark.parametrize("classes", [2, None, "no", (0, 1), ("no", "yes", "no")])
    def test_classes_that_are_no_names_are_refused(self, folder: Path, classes: Any) -> None:
        (folder / "odd.py").write_text(f"{TASK}\nclass Odd(Mine):\n    classes = {classes!r}\n")
        error = refused(lambda: load_task(TaskTable(use="odd.py:Odd"), folder))
        assert error.code == "task-classes"
        assert "not a tuple of names" in error.message or "which is no name" in error.message


class Handed:
    """Data of a user's own, of four records."""

    targets: Any

    def __len__(self) -> int:
        return 4

    def batch(self, rows: torch.Tensor) -> tuple[Any, torch.Tensor]:
        return torch.zeros(len(rows), 2), self.targets[rows]

    def subset(self, rows: Any) -> Any:
        return self


class TestWhatATaskSaysOfItself:
    def test_a_card_becomes_plain_data(self) -> None:
        class Mine(Regression):
            def describe(self) -> dict[str, Any]:
                return {"title": "é", "sizes": (1, 2.5)}

        assert described(Mine()) == {"title": "é", "sizes": [1, 2.5]}

    @pytest.mark.parametrize(
        "card", [None, ["x"], {"x": object()}, {"x": {1, 2}}, {"x": float("nan")}, {"x": "\ud800"}]
    )
    def test_a_card_that_json_cannot_hold_is_refused(self, card: Any) -> None:
        class Mine(Regression):
            def describe(self) -> dict[str, Any]:
                return card  # type: ignore[no-any-return]

        error = refused(lambda: described(Mine()))
        assert (error.code, error.exit_code) == ("task-describe", 3)

    def test_a_card_or_notes_that_raise_are_refused_without_the_words(self) -> None:
        class Mine(Regression):
            def describe(self) -> dict[str, Any]:
                raise ValueError("patient 4711")

            @property
            def notes(self) -> list[str]:
                raise ValueError("patient 4711")

        for call in (lambda: described(Mine()), lambda: notes_of(Mine())):
            error = refused(call)
            assert error.code == "task-raised"
            assert "4711" not in error.message

    @pytest.mark.parametrize("notes", [5, "text", (object(),), None, [b"x"]])
    def test_notes_that_are_no_list_of_texts_are_refused(self, notes: Any) -> None:
        mine = Regression()
        vars(mine)["notes"] = notes
        assert refused(lambda: notes_of(mine)).code == "task-notes"

    def test_notes_are_a_list_and_empty_where_there_are_none(self) -> None:
        mine = Regression()
        assert notes_of(mine) == []
        vars(mine)["notes"] = ("synthetic",)
        assert notes_of(mine) == ["synthetic"]


class TestTheTrial:
    def test_what_the_trial_changes_is_put_back(self) -> None:
        class Counting(nn.Linear):
            def __init__(self) -> None:
                super().__init__(2, 2, dtype=torch.float64)
                self.calls: torch.Tensor
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                self.calls += 1
                return super().forward(inputs.double())

        model = Counting()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        try_task(task(), model, records([0, 1, 1]))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_a_loss_without_a_gradient_is_refused(self) -> None:
        def detached(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(outputs, targets, reduction="none").detach()

        error = refused(lambda: try_task(task(loss=detached), nn.Linear(2, 2), records([0, 1])))
        assert (error.code, error.exit_code) == ("task-loss", 3)
        assert "no gradient" in error.message

    def test_a_tensor_that_cannot_be_written_is_refused(self) -> None:
        model = nn.Linear(2, 2)
        model.register_buffer("all_one", torch.ones(1).expand(5))
        error = refused(lambda: try_task(task(), model, records([0, 1])))
        assert (error.code, error.exit_code) == ("task-model", 3)

    def test_fixed_weights_that_differ_from_build_to_build_are_refused(self) -> None:
        def model(generator: Any) -> nn.Module:
            made = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            made[0].weight = nn.Parameter(torch.tensor(generator.random((2, 2))).float(), requires_grad=False)
            return made

        drawn, seeded = np.random.default_rng(5), partial(np.random.default_rng, 5)
        error = refused(lambda: try_task(task(model=lambda: model(drawn)), nn.Linear(2, 2), records([0, 1])))
        assert (error.code, error.exit_code) == ("task-model", 3)
        assert "another model each time" in error.message
        try_task(task(model=lambda: model(seeded())), nn.Linear(2, 2), records([0, 1]))

    def test_a_sound_task_passes_and_its_model_is_left_as_it_was(self) -> None:
        model = nn.Linear(2, 2)
        try_task(task(), model, records([0, 1, 1]))
        assert model.training
        try_task(Regression(), nn.Linear(2, 1), records([0.5]))

    @pytest.mark.parametrize(
        ("model", "loss", "code", "says"),
        [
            (nn.Linear(2, 3), None, "task-model", "returned (2, 3) for 2 records, expected (2, 2)"),
            (nn.Linear(3, 2), None, "task-raised", "raised RuntimeError in its model or loss"),
            (
                nn.Linear(2, 2),
                lambda outputs, _: outputs.sum(),
                "task-loss",
                "returned () for 2 records, expected (2,)",
            ),
            (nn.Linear(2, 2), lambda outputs, _: outputs[:, 0] / 0 * 0, "task-loss", "not finite"),
        ],
    )
    def test_a_model_or_loss_that_does_not_fit_is_found_before_any_site_trains(
        self, model: Any, loss: Any, code: str, says: str
    ) -> None:
        error = refused(lambda: try_task(task(loss=loss), model, records([0, 1, 1])))
        assert (error.code, error.exit_code) == (code, 3)
        assert says in error.message


def test_the_task_in_the_seam_s_docstring_works(tmp_path: Path) -> None:
    from cloister.core import task as seam

    source = textwrap.dedent((seam.__doc__ or "").split("::\n", 1)[1].split("\nName it", 1)[0])
    (tmp_path / "parity.py").write_text(source, encoding="utf-8")
    parity = load("parity.py:Parity", tmp_path, records=30)
    split = owners(parity)[POOLED]
    assert (len(split.train), len(split.test)) == (20, 10)
    try_task(parity, build_model(parity, 0), split.train)


def test_a_task_error_is_a_refusal_of_the_federation_file() -> None:
    assert TaskError("m").exit_code == 3
