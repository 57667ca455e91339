"""The command: how it ends, what it prints where, how parts add to it, and ``cloister check``."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import typer

from cloister.core import command, errors
from cloister.core._version import __version__
from cloister.core.check_command import predicted_traffic
from cloister.core.checking import check_federation, check_records, expected_cohort
from cloister.core.data import Split, TensorData
from cloister.core.errors import CloisterError, SpecError
from cloister.core.exposure import exposure
from cloister.core.outcome import outcome, reports_folder
from cloister.core.resolve import load_task, owners
from cloister.core.spec import Loaded, load_federation, parse_federation

TASK = '''
import os
import torch
from torch import nn
from cloister.core import Split, Task, TensorData

class Sums(Task):
    """Whether two numbers sum to more than one."""

    classes = ("no", "yes")

    def __init__(self, owners: int = 0, records: int = 60, tested: bool = True, loud: bool = False) -> None:
        self.owners, self.records, self.tested, self.loud = owners, records, tested, loud

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def data(self):
        if self.loud:
            print("a task that prints")
            os.system("echo a child that prints")
        x = torch.rand(self.records, 2, generator=torch.Generator().manual_seed(1))
        records = TensorData(x, (x.sum(1) > 1).long())
        split = Split(records, records if self.tested else records.subset(torch.arange(0).numpy()))
        return {f"site-{n}": split for n in range(self.owners)} if self.owners else split

class Values(Sums):
    kind = "regression"

    def model(self) -> nn.Module:
        return nn.Linear(2, 1)
'''
PARAMETERS = 2 * 16 + 16 + 16 * 2 + 2

FEDERATION = """
[federation]
name = "sums"
rounds = 3
[task]
use = "sums.py:Sums"
[cohort]
sites = 10
min_sites = 3
partition = { by = "iid" }
"""


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    """Return a federation file beside a task of somebody's own."""
    (tmp_path / "sums.py").write_text(TASK, encoding="utf-8")
    path = tmp_path / "federation.toml"
    path.write_text(FEDERATION, encoding="utf-8")
    return path


def ended(call: Callable[[], Any], *, json_output: bool = False) -> int:
    """Run ``call`` as a command's body and return the exit status."""
    try:
        with outcome(json_output) as out:
            found = call()
            if isinstance(found, dict):
                out.result = found
    except typer.Exit as done:
        return done.exit_code
    return 0


def raising(error: BaseException) -> Callable[[], Any]:
    def call() -> None:
        raise error

    return call


class TestHowACommandEnds:
    @pytest.mark.parametrize(
        "kind", [getattr(errors, name) for name in errors.__all__ if name != "EXIT_CODES"]
    )
    def test_a_refusal_ends_with_its_status_and_prints_message_and_remedy_on_standard_error(
        self, kind: type[CloisterError], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert ended(raising(kind("it was [refused]", remedy="do [that]"))) == kind.exit_code
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == "error: it was [refused]\n  → do [that]\n"

    @pytest.mark.parametrize("status", [0, 3, None])
    def test_code_that_leaves_with_a_status_of_its_own_does_not_end_the_command_well(
        self, status: int | None, state_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert ended(raising(SystemExit(status))) == 1
        assert "(SystemExit)" in capsys.readouterr().err
        assert len(list((state_folder / "cloister" / "reports").iterdir())) == 1

    def test_a_pipe_that_breaks_elsewhere_is_a_fault_like_any_other(
        self, state_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert ended(raising(BrokenPipeError())) == 1
        assert "(BrokenPipeError)" in capsys.readouterr().err

    def test_with_json_a_refusal_is_one_object_on_standard_output(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert ended(raising(SpecError("no", remedy="yes", code="c")), json_output=True) == 3
        said = capsys.readouterr()
        assert json.loads(said.out) == {"error": {"code": "c", "message": "no", "remedy": "yes"}}
        assert said.err == ""

    def test_a_good_end_prints_the_result_with_json_and_what_is_said_without(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for json_output, printed in ((True, '{"a": 1}\n'), (False, "for a person\n")):
            with outcome(json_output) as out:
                out.result = {"a": 1}
                out.say("for a person")
            assert capsys.readouterr().out == printed

    def test_what_json_cannot_hold_is_made_plain(self, capsys: pytest.CaptureFixture[str]) -> None:
        import numpy as np

        result = {
            "nan": float("nan"),
            "inf": np.float32("inf"),
            "path": Path("a"),
            "n": np.int64(3),
            "x": np.float32(0.5),
            "t": (1, None),
        }
        assert ended(lambda: result, json_output=True) == 0
        said = json.loads(capsys.readouterr().out)
        assert said == {"nan": None, "inf": None, "path": "a", "n": 3, "x": 0.5, "t": [1, None]}

    def test_an_interruption_ends_with_130_and_says_how_to_go_on(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupted() -> None:
            with outcome(json_output=False) as out:
                out.on_interrupt = "cloister simulate --resume runs/x"
                raise KeyboardInterrupt

        with pytest.raises(typer.Exit) as done:
            interrupted()
        assert done.value.exit_code == 130
        assert capsys.readouterr().err == "error: interrupted\n  → cloister simulate --resume runs/x\n"

    def test_control_characters_of_somebody_else_s_file_never_reach_the_terminal(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ended(raising(SpecError("name = '\x1b[2J\x07\u202e'\n  next", remedy="\x9b31m")))
        said = capsys.readouterr().err
        assert said == "error: name = '\\x1b[2J\\x07\\u202e'\n  next\n  → \\x9b31m\n"

    def test_a_long_message_is_not_broken_into_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        ended(raising(SpecError("word " * 100)))
        assert len(capsys.readouterr().err.splitlines()) == 1


class TestAFaultOfOurOwn:
    def test_it_ends_with_1_and_a_report_id_and_no_word_of_the_exception(
        self, capsys: pytest.CaptureFixture[str], state_folder: Path
    ) -> None:
        assert ended(raising(ValueError("patient 4711"))) == 1
        said = capsys.readouterr()
        (report,) = (state_folder / "cloister" / "reports").iterdir()
        assert report.stem in said.err
        assert str(report) in said.err
        assert "4711" not in said.err + said.out
        assert "Traceback" not in said.err + said.out

    def test_the_traceback_is_kept_where_only_its_owner_reads_it(self, state_folder: Path) -> None:
        ended(raising(ValueError("patient 4711")))
        assert reports_folder() == state_folder / "cloister" / "reports"
        (report,) = reports_folder().iterdir()
        assert "ValueError: patient 4711" in report.read_text(encoding="utf-8")
        assert stat.S_IMODE(report.stat().st_mode) == 0o600
        assert stat.S_IMODE(reports_folder().stat().st_mode) == 0o700

    def test_json_holds_the_report_id(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert ended(raising(ValueError("patient 4711")), json_output=True) == 1
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["code"] == "internal"
        assert error["report"] in error["message"]
        assert (reports_folder() / f"{error['report']}.txt").is_file()

    def test_a_folder_that_cannot_be_made_does_not_hide_the_fault(
        self, capsys: pytest.CaptureFixture[str], state_folder: Path
    ) -> None:
        state_folder.write_text("a file where the folder should be", encoding="utf-8")
        assert ended(raising(ValueError("x"))) == 1
        assert "could not be written down" in capsys.readouterr().err

    def test_the_traceback_is_shown_when_it_is_asked_for(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CLOISTER_DEBUG", "1")
        ended(raising(SpecError("refused")))
        said = capsys.readouterr().err
        assert "Traceback (most recent call last)" in said
        assert said.endswith("error: refused\n")


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["chek"], "there is no command 'chek'; did you mean 'check'?"),
            (["--nope"], "No such option '--nope'"),
            (["check"], "Missing argument 'FILE'"),
            (["version", "--jsn"], "Did you mean '--json'?"),
        ],
    )
    def test_a_wrong_call_ends_with_2_and_says_where_help_is(
        self, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert command.run(arguments) == 2
        said = capsys.readouterr()
        assert says in said.err
        assert "--help" in said.err
        assert said.out == ""

    @pytest.mark.parametrize("arguments", [["chek", "--json"], ["check", "--json"], ["--nope", "--json"]])
    def test_a_wrong_call_with_json_is_one_object(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert command.run(arguments) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"

    def test_no_argument_at_all_shows_the_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.run([]) == 2
        said = capsys.readouterr()
        assert "check" in said.out + said.err


class TestParts:
    @pytest.fixture
    def parts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """Return a function that puts these entry points in place of the installed ones."""
        monkeypatch.syspath_prepend(tmp_path)

        def put(name: str, source: str, value: str) -> None:
            (tmp_path / f"{name}_part.py").write_text(source, encoding="utf-8")
            monkeypatch.delitem(sys.modules, f"{name}_part", raising=False)
            point = EntryPoint(name=name, value=value, group="cloister.commands")
            monkeypatch.setattr(
                command, "entry_points", lambda group: [point] if group == point.group else []
            )

        return put

    GREET = (
        "import typer\nfrom cloister.core.outcome import JsonOption, outcome\n"
        "def register(app):\n    @app.command('greet')\n    def greet(name: str, json_output: JsonOption = False) -> None:\n"
        "        'Greet [somebody].'\n        with outcome(json_output) as out:\n            out.result = {'hello': name}\n"
        "            out.say('hello ' + name)\n"
    )

    def test_a_part_adds_its_command_and_its_help(
        self, parts: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        parts("greet", self.GREET, "greet_part:register")
        assert command.run(["greet", "you", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"hello": "you"}
        assert command.run(["--help"]) == 0
        assert "Greet [somebody]." in capsys.readouterr().out

    def test_a_part_that_is_not_installed_is_left_out_and_version_says_so(
        self, parts: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        parts("greet", "import nowhere_at_all\n", "greet_part:register")
        assert command.run(["--help"]) == 0
        assert "greet" not in capsys.readouterr().out
        assert command.run(["greet", "you"]) == 2
        assert "needs nowhere_at_all, which is not installed" in capsys.readouterr().err
        assert command.run(["version", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["absent"] == {"greet": "nowhere_at_all"}

    def test_a_part_that_registers_another_name_is_our_own_fault(
        self, parts: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        parts("meet", self.GREET, "meet_part:register")
        assert command.run(["meet"]) == 1
        assert "report" in capsys.readouterr().err
        (report,) = reports_folder().iterdir()
        assert "registers ['greet'], not one command of its own name" in report.read_text(encoding="utf-8")

    def test_the_help_waits_for_neither_torch_nor_flower_nor_pydantic(self) -> None:
        code = (
            "import sys\nfrom cloister.core.command import run\nstatus = run(['--help'])\n"
            "print(status, sorted({'torch', 'flwr', 'pydantic', 'pandas', 'ray'} & set(sys.modules)), file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr == "0 []\n"
        assert "check" in done.stdout
        assert "simulate" in done.stdout

    def test_flower_is_told_before_it_is_imported_to_tell_nobody(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
        code = "import os\nfrom cloister.core.command import run\nrun(['version'])\nprint(os.environ['FLWR_TELEMETRY_ENABLED'], os.environ['FLWR_DISABLE_UPDATE_CHECK'])"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean
        )
        assert done.stdout.splitlines()[-1] == "0 1"

    @pytest.mark.parametrize(
        ("said", "waits"),
        [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    )
    def test_torchs_threads_are_told_how_to_wait_before_torch_is_loaded_unless_the_user_has(
        self, said: dict[str, str], waits: str
    ) -> None:
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_WAIT"))
        }
        code = "import os, sys\nfrom cloister.core.command import run\nprint('torch' in sys.modules)\nrun(['--version'])\nprint(os.environ.get('GOMP_SPINCOUNT'))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean | said
        )
        assert [done.stdout.splitlines()[0], done.stdout.splitlines()[-1]] == ["False", waits]

    def test_version_is_one_number_everywhere(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.run(["--version"]) == 0
        assert capsys.readouterr().out == f"cloister {__version__}\n"
        assert command.run(["version", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["cloister"] == __version__
        assert {"python", "torch", "flwr", "commands", "absent"} <= set(found)

    def test_tasks_lists_each_installed_task_with_its_options(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert command.run(["tasks", "--json"]) == 0
        tasks = {task["name"]: task for task in json.loads(capsys.readouterr().out)["tasks"]}
        assert {"heart", "digits", "tabular", "images", "hub"} <= set(tasks)
        assert tasks["heart"]["description"]
        assert "model" in tasks["heart"]["options"]


class TestTheProcess:
    @pytest.mark.slow
    def test_with_json_standard_output_holds_one_object_whatever_the_task_and_its_children_print(
        self, federation: Path
    ) -> None:
        arguments = ["check", str(federation), "--set", "task.loud=true", "--json"]
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["name"] == "sums"
        assert "a task that prints" in done.stderr
        assert "a child that prints" in done.stderr

    def test_an_interrupt_from_the_keyboard_ends_the_process_with_130(self) -> None:
        code = """
import time
from cloister.core.command import app, main
from cloister.core.outcome import outcome

@app.command("wait")
def wait() -> None:
    with outcome(json_output=False):
        print("waiting", flush=True)
        time.sleep(60)

main()
"""
        with subprocess.Popen(
            [sys.executable, "-c", code, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        assert process.returncode == 130
        assert said == "error: interrupted\n"

    @pytest.mark.parametrize("more", [[], ["--json"]])
    def test_a_reader_that_leaves_early_is_no_fault_of_ours(
        self, more: list[str], state_folder: Path
    ) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", MAIN, "version", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == b""
        assert process.returncode == 141
        assert not (state_folder / "cloister").exists()


MAIN = "from cloister.core.command import main; main()"


def checked(path: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, dict[str, Any]]:
    arguments = [word for override in overrides for word in ("--set", override)]
    status = command.run(["check", str(path), *arguments, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, found


class TestCheck:
    def test_it_says_what_the_file_means(self, federation: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status, found = checked(federation, capsys, "training.optimizer.lr=0.1")
        assert status == 0
        loaded = load_federation(federation, ["training.optimizer.lr=0.1"])
        assert found["digest"] == loaded.digest()
        assert found["effective"] == loaded.effective()
        assert (found["origins"]["training.optimizer.lr"], found["origins"]["cohort.sites"]) == (
            "--set",
            "file",
        )
        assert found["origins"]["training.batch_size"] == "default"
        assert found["model"]["parameters"] == PARAMETERS
        assert (found["sites"], found["cohort"]) == (10, 10)
        assert found["privacy"] == {"unit": "none", "epsilon": None}
        assert set(found["exposure"]) == {"server", "site", "outsider"}
        assert found["warnings"] == []

    def test_a_person_reads_the_effective_file_which_is_itself_a_federation_file(
        self, federation: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert command.run(["check", str(federation), "--set", "cohort.per_round=5"]) == 0
        said = capsys.readouterr().out
        effective = said.split("\n\ndigest")[0]
        (tmp_path / "effective.toml").write_text(effective, encoding="utf-8")
        assert (
            load_federation(tmp_path / "effective.toml").digest()
            == load_federation(federation, ["cohort.per_round=5"]).digest()
        )
        assert "per_round = 5" in said
        assert "# --set" in said
        assert "none: privacy.unit = 'none'" in said
        assert "no single one" in said
        assert said.rstrip().endswith(f"next: cloister simulate {federation}")

    def test_traffic_is_four_bytes_a_parameter_and_site(self) -> None:
        spec = small().spec
        assert predicted_traffic(spec, 100, 3) == {"down": 1200, "up": 1200, "evaluation_down": 1200}
        doubled = small("training.scaffold=true", "evaluation.sites=false").spec
        assert predicted_traffic(doubled, 100, 3) == {"down": 2400, "up": 2400, "evaluation_down": 0}

    @pytest.mark.parametrize(("per_round", "cohort"), [("all", 10), ("4", 4), ("{poisson = 0.25}", 2.5)])
    def test_the_cohort_is_what_the_file_says_on_average(self, per_round: str, cohort: float) -> None:
        assert expected_cohort(small(f"cohort.per_round={per_round}").spec, 10) == cohort

    @pytest.mark.parametrize(
        ("override", "status", "code"),
        [
            ("federation.rounds=0", 3, "spec"),
            ("task.use=nope", 3, "task-unknown"),
            ("task.owner=3", 3, "task-option"),
            ("task.records=0", 4, "data-empty"),
            ("training.class_weights=[1]", 3, "unsound"),
            ("cohort.sites=100", 3, "unsound"),
        ],
    )
    def test_a_refusal_has_its_code_and_status(
        self, federation: Path, capsys: pytest.CaptureFixture[str], override: str, status: int, code: str
    ) -> None:
        ended_with, found = checked(federation, capsys, override)
        assert (ended_with, found["error"]["code"]) == (status, code)
        assert found["error"]["remedy"]

    def test_the_heart_example_is_sound(self, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status, found = checked(repository / "examples" / "heart" / "federation.toml", capsys)
        assert status == 0
        assert found["sites"] == 4
        assert found["warnings"] == []


def small(*overrides: str) -> Loaded:
    document = {
        "federation": {"name": "a", "rounds": 3},
        "task": {"use": "sums.py:Sums"},
        "cohort": {"sites": 10, "partition": {"by": "iid"}},
    }
    return parse_federation(
        document, base=Path(), overrides=["aggregation.protection=plain", "cohort.min_sites=3", *overrides]
    )


@pytest.fixture
def task(federation: Path) -> Callable[..., Any]:
    """Return a function that makes the task with options."""

    def make(kind: str = "Sums", **options: Any) -> Any:
        table = parse_federation(
            {"federation": {"name": "a", "rounds": 1}, "task": {"use": f"sums.py:{kind}", **options}},
            base=federation.parent,
        )
        return load_task(table.spec.task, table.base)

    return make


class TestUnsound:
    @pytest.mark.parametrize(
        ("kind", "overrides", "says"),
        [
            (
                "Sums",
                ["training.class_weights=[1.0]"],
                "class_weights has 1 entries, and the task has 2 classes",
            ),
            ("Sums", ["training.class_weights=[]"], "class_weights has 0 entries"),
            ("Values", ["training.class_weights=[1.0, 2.0]"], "class_weights goes with a classification"),
            (
                "Values",
                ["cohort.partition={by='dirichlet', alpha=1}"],
                "spreads classes, and the task is a regression",
            ),
            (
                "Sums",
                ["training.scaffold=true", "training.early_stop={}"],
                "scaffold's control variates count every step",
            ),
            (
                "Sums",
                ["evaluation.baselines=['pooled']", "evaluation.central=false"],
                "baselines are measured on the central test records",
            ),
            ("Sums", ["training.device=mps"], "training.device = 'mps' is not on this machine"),
        ],
    )
    def test_what_does_not_go_with_the_task_or_the_machine_is_refused(
        self, task: Any, kind: str, overrides: list[str], says: str
    ) -> None:
        with pytest.raises(SpecError) as caught:
            check_federation(small(*overrides), task(kind))
        assert (caught.value.code, caught.value.exit_code) == ("unsound", 3)
        assert says in caught.value.message

    def test_a_partition_anew_needs_a_number_of_sites(self, task: Any) -> None:
        document = {
            "federation": {"name": "a", "rounds": 3},
            "task": {"use": "x"},
            "cohort": {"partition": {"by": "iid"}},
        }
        with pytest.raises(SpecError, match=r"say over how many sites, for example cohort\.sites = 10"):
            check_federation(parse_federation(document, base=Path()), task())

    def test_a_tracker_that_is_not_installed_is_refused(
        self, task: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = small("tracking.tensorboard=true", "tracking.mlflow='file:x'")
        assert check_federation(loaded, task()) == []
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SpecError, match="tensorboard") as caught:
            check_federation(loaded, task())
        assert "pip install 'cloister[mlflow]'" in caught.value.message

    def test_all_reasons_come_at_once(self, task: Any) -> None:
        with pytest.raises(SpecError) as caught:
            check_federation(small("training.class_weights=[1.0]", "training.device=mps"), task())
        assert len(caught.value.message.splitlines()) == 3

    @pytest.mark.parametrize(
        ("options", "overrides", "says"),
        [
            ({}, ["cohort.partition={by='site'}"], "needs data that comes with owners"),
            (
                {"owners": 4},
                ["cohort.partition={by='site'}"],
                "cohort.sites = 10, and the data comes with 4 owners",
            ),
            ({"records": 9}, [], "needs at least 10 training records, and there are 9"),
            (
                {},
                ["cohort.partition={by='shards', per_site=7}"],
                "needs at least 70 training records, and there are 60",
            ),
            (
                {"tested": False},
                ["evaluation.baselines=['pooled']"],
                "measured on test records, and the task has none",
            ),
        ],
    )
    def test_what_the_records_cannot_give_is_refused(
        self, task: Any, options: dict[str, Any], overrides: list[str], says: str
    ) -> None:
        with pytest.raises(SpecError) as caught:
            check_records(small(*overrides), owners(task(**options)))
        assert caught.value.code == "unsound"
        assert says in caught.value.message

    @pytest.mark.parametrize("override", ["cohort.min_sites=5", "cohort.per_round=5"])
    def test_more_sites_than_the_data_has_owners_are_refused(self, task: Any, override: str) -> None:
        document = {"federation": {"name": "a", "rounds": 3}, "task": {"use": "x"}}
        loaded = parse_federation(document, base=Path(), overrides=[override])
        with pytest.raises(SpecError, match=r"cohort\.(min_sites|per_round) = 5"):
            check_records(loaded, owners(task(owners=4)))

    def test_no_test_record_at_all_is_warned_of(self, task: Any) -> None:
        (warning,) = check_records(small(), owners(task(tested=False)))
        assert "evaluation.central measures nothing" in warning

    def test_virtual_sites_may_share_records(self, task: Any) -> None:
        loaded = small("cohort.sites=1000", "cohort.partition={by='iid', per_site=5}")
        assert check_records(loaded, owners(task())) == []


class TestWarnings:
    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("cohort.min_sites=1", "cohort.min_sites = 1"),
            ("training.optimizer.name=adam", "adam usually wants about 0.001"),
            ("training.schedule={warmup=3}", "warmup = 3 never ends within 3 rounds"),
            ("training.schedule={name='step', every=5, gamma=0.5}", "every = 5 never drops"),
            ("training.early_stop={}", "can stop nothing with one local epoch"),
            ("aggregation.optimizer.name=fedadam", "aggregation.optimizer.lr = 1.0"),
            ("evaluation={central=false, sites=false}", "nothing measures the model"),
            ("evaluation.every=9", "only the last round is measured"),
            ("training={precision='mixed', device='cpu'}", "changes nothing on device = 'cpu'"),
            ("training={scaffold=true, proximal_mu=0.1}", "both correct drift"),
        ],
    )
    def test_a_poor_setting_is_warned_of_and_a_good_one_is_not(
        self, task: Any, override: str, says: str
    ) -> None:
        (warning,) = check_federation(small(override), task())
        assert says in warning
        assert check_federation(small(), task()) == []

    def test_a_learning_rate_that_was_chosen_is_not_doubted(self, task: Any) -> None:
        assert check_federation(small("training.optimizer={name='adam', lr=0.05}"), task()) == []
        assert check_federation(small("aggregation.optimizer={name='fedadam', lr=0.01}"), task()) == []

    def test_a_poisson_cohort_that_is_often_too_small_is_warned_of_with_its_chance(self, task: Any) -> None:
        # P(Binomial(10, 0.1) < 3) = 0.9^10 + 10 0.1 0.9^9 + 45 0.01 0.9^8 = 0.9298
        (warning,) = check_records(small("cohort.per_round={poisson = 0.1}"), owners(task()))
        assert "in 93% of the draws" in warning
        assert check_records(small("cohort.per_round={poisson = 0.9}"), owners(task())) == []
        assert check_records(small("cohort.per_round={poisson = 1}"), owners(task())) == []

    def test_sites_that_are_small_or_of_one_class_or_untested_are_named(self) -> None:
        import torch

        def site(targets: list[int], tests: int = 1) -> Split:
            return Split(
                *(TensorData(torch.ones(len(t), 2), torch.tensor(t)) for t in (targets, [0] * tests))
            )

        splits = {"a": site([0, 1] * 20), "b": site([0, 1]), "c": site([1] * 40), "d": site([0, 1] * 20, 0)}
        document = {
            "federation": {"name": "a", "rounds": 3},
            "task": {"use": "x"},
            "cohort": {"min_sites": 3},
        }
        warnings = check_records(parse_federation(document, base=Path()), splits)
        assert [warning for warning in warnings if "'b'" in warning and "batch_size = 32" in warning]
        assert [warning for warning in warnings if "'c' have one class" in warning]
        assert [warning for warning in warnings if "no test record at 'd'" in warning]
        assert len(warnings) == 3

    def test_many_sites_are_not_all_named(self) -> None:
        import torch

        splits = {
            f"s{n}": Split(*[TensorData(torch.ones(2, 2), torch.tensor([0, 1]))] * 2) for n in range(50)
        }
        document = {"federation": {"name": "a", "rounds": 3}, "task": {"use": "x"}}
        (warning,) = check_records(parse_federation(document, base=Path()), splits)
        assert warning.count("'s") == 5
        assert "and 45 more" in warning


class TestExposure:
    def test_plain_protection_says_that_the_server_sees_updates_in_clear(self) -> None:
        server = " ".join(exposure(small().spec).server)
        assert "update in clear" in server
        assert "reconstructed" in server

    def test_what_is_switched_on_is_said_and_what_is_off_is_not(self) -> None:
        on = exposure(small("training.scaffold=true", "training.local_steps=1").spec)
        off = exposure(small("evaluation={sites=false, central=false}").spec)
        assert any("control variate" in sentence for sentence in on.server)
        assert any("local_steps = 1" in sentence for sentence in on.server)
        assert any("metrics on its own test records" in sentence for sentence in on.server)
        assert any("central test records" in sentence for sentence in on.server)
        assert not any("control variate" in sentence or "test records" in sentence for sentence in off.server)
        assert any("each site's metrics" in sentence for sentence in on.outsider)
        assert not any("each site's metrics" in sentence for sentence in off.outsider)

    @pytest.mark.parametrize(
        ("least", "says"),
        [(1, "that site's own model then goes to all"), (2, "each can subtract its own update")],
    )
    def test_a_round_over_one_or_two_sites_shows_them_to_each_other(self, least: int, says: str) -> None:
        site = " ".join(exposure(small(f"cohort.min_sites={least}").spec).site)
        assert says in site
        assert says not in " ".join(exposure(small("cohort.min_sites=3").spec).site)

    @pytest.mark.parametrize(
        ("unit", "to_server", "to_sites"),
        [
            ("site", "without noise, which the server adds", "noise that the server added"),
            ("site-local", "under noise of the site's own", "its own noise"),
            ("site-distributed", "not protected from the server", "noise shares of all"),
            ("record-distributed", "not protected from the server", "noise shares of all"),
        ],
    )
    def test_whom_a_sites_guarantee_holds_against_is_said(
        self, unit: str, to_server: str, to_sites: str
    ) -> None:
        rate = ", sampling_rate = 0.1" if unit.startswith("record") else ""
        settings = f"{{unit = '{unit}', noise_multiplier = 1.0, delta = 1e-3, clip = 1.0{rate}}}"
        found = exposure(
            small(
                f"privacy={settings}", "evaluation.sites=false", "cohort.sites=9", "training.local_steps=1"
            ).spec
        )
        assert to_server in found.server[0]
        assert to_sites in found.site[0]
        assert "ε bounds" in " ".join(found.outsider)
        assert not any("mean training loss" in sentence for sentence in found.server)

    @pytest.mark.parametrize(
        ("protection", "rests_on"),
        [
            ("masked", "about a third"),
            ("bfv", "The key authority is sent every ciphertext"),
            ("ckks", "Li & Micciancio 2021"),
            ("threshold-bfv", "each site holds a share of the key"),
        ],
    )
    def test_of_a_protected_federation_the_server_learns_sums_and_on_what_that_rests(
        self, protection: str, rests_on: str
    ) -> None:
        server = exposure(small(f"aggregation.protection={protection}").spec).server
        assert server[0].startswith("Of updates, their sum over at least 3 sites a round, and no single one")
        assert rests_on in " ".join(server)
        assert not any("in clear" in sentence or "Each site's" in sentence for sentence in server)

    def test_whom_epsilon_holds_against_under_protection_is_said(self) -> None:
        settings = "{{unit = '{}', noise_multiplier = 1.0, delta = 1e-3, clip = 1.0}}"
        for unit, says in (
            ("site", "ε does not hold against the server"),
            ("site-distributed", "ε holds against the server, too"),
        ):
            loaded = small(
                f"privacy={settings.format(unit)}", "aggregation.protection=masked", "evaluation.sites=false"
            )
            assert says in exposure(loaded.spec).server[0]

    def test_nobody_is_promised_that_they_learn_nothing(self) -> None:
        found = exposure(small().spec).as_dict()
        assert all(len(sentences) >= 2 for sentences in found.values())
        assert "no differential privacy" in " ".join(found["outsider"])
