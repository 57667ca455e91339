"""The federation file: read, refused, filled in, written."""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cloister.core.errors import SpecError
from cloister.core.spec import FederationSpec, Origin, load_federation, parse_federation
from cloister.core.spec.reading import nearest
from cloister.core.spec.refusals import expected

HERE = Path()
SMALL: dict[str, Any] = {"federation": {"name": "heart", "rounds": 3}, "task": {"use": "heart"}}

positive = st.floats(min_value=1e-3, max_value=1e6, allow_nan=False)
count = st.integers(min_value=1, max_value=1000)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
keys = text.filter(bool)
plain = st.recursive(
    st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


def table(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


partitions = st.one_of(
    st.just({"by": "site"}),
    st.just({"by": "iid"}),
    st.fixed_dictionaries({"by": st.just("dirichlet"), "alpha": positive}),
    st.fixed_dictionaries({"by": st.just("shards"), "per_site": count}),
)
documents = st.fixed_dictionaries(
    {
        "federation": st.fixed_dictionaries(
            {"name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,20}\Z"), "rounds": count},
            optional={"seed": st.integers(0, 2**63 - 1)},
        ),
        "task": st.dictionaries(keys.filter(lambda key: key != "use"), plain, max_size=3).map(
            lambda keys: {"use": "heart", **keys}
        ),
    },
    optional={
        "cohort": table(
            partition=partitions,
            per_round=st.just("all") | st.fixed_dictionaries({"poisson": st.floats(0.01, 1)}),
            wait_s=positive | count,
        ),
        "training": table(
            local_epochs=count,
            optimizer=table(name=st.sampled_from(["sgd", "adam"]), lr=positive, betas=st.just([0.5, 0.75])),
            class_weights=st.lists(positive, max_size=3),
            early_stop=table(patience=count),
        ),
        "aggregation": table(weighting=st.just("uniform") | st.fixed_dictionaries({"records_cap": count})),
        "evaluation": table(every=count, central=st.booleans(), baselines=st.just(["local", "pooled"])),
        "tracking": table(mlflow=text),
    },
)


def refused(*overrides: str, document: Mapping[str, Any] = SMALL) -> str:
    with pytest.raises(SpecError) as caught:
        parse_federation(document, base=HERE, overrides=overrides)
    assert caught.value.exit_code == 3
    assert caught.value.remedy
    return caught.value.message


def tables(
    model: type[BaseModel], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """Every table of the format with the keys that lead to it."""
    yield path, model
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from tables(kind, (*path, name))


ALL_TABLES = list(tables(FederationSpec))
CLOSED_TABLES = [(path, model) for path, model in ALL_TABLES if model.model_config.get("extra") == "forbid"]


class TestRoundTrip:
    @given(documents)
    def test_the_effective_file_read_again_has_the_same_digest(self, document: dict[str, Any]) -> None:
        loaded = parse_federation(document, base=HERE)
        again = parse_federation(tomllib.loads(loaded.effective_toml()), base=HERE)
        assert again.digest() == loaded.digest()
        assert again.spec == loaded.spec

    @given(documents)
    def test_the_annotated_file_is_a_federation_file_with_the_same_digest(
        self, document: dict[str, Any]
    ) -> None:
        loaded = parse_federation(document, base=HERE)
        assert parse_federation(tomllib.loads(loaded.annotated_toml()), base=HERE).digest() == loaded.digest()

    @given(documents)
    def test_json_carries_the_file_without_loss(self, document: dict[str, Any]) -> None:
        loaded = parse_federation(document, base=HERE)
        assert (
            parse_federation(json.loads(json.dumps(loaded.effective())), base=HERE).digest()
            == loaded.digest()
        )

    def test_the_digest_does_not_depend_on_the_order_of_keys_but_on_every_value(self) -> None:
        turned = {"task": {"use": "heart"}, "federation": {"rounds": 3, "name": "heart"}}
        digest = parse_federation(SMALL, base=HERE).digest()
        assert parse_federation(turned, base=HERE).digest() == digest
        others = [
            "federation.rounds=4",
            "federation.seed=1",
            "task.use=digits",
            "task.x=1",
            "training.optimizer.lr=0.06",
        ]
        digests = {parse_federation(SMALL, base=HERE, overrides=[other]).digest() for other in others}
        assert len(digests | {digest}) == 1 + len(others)

    def test_a_default_written_out_changes_nothing(self) -> None:
        written = parse_federation(
            SMALL, base=HERE, overrides=["training.batch_size=32", "cohort.wait_s=600"]
        )
        assert written.digest() == parse_federation(SMALL, base=HERE).digest()


class TestUnknownKeys:
    @given(st.sampled_from(CLOSED_TABLES), st.from_regex(r"\A[a-z_]{1,12}\Z"))
    def test_an_unknown_key_anywhere_is_refused_by_its_full_name(
        self, place: tuple[tuple[str, ...], type[BaseModel]], key: str
    ) -> None:
        path, model = place
        dotted = ".".join((*path, key))
        if key in model.model_fields or dotted == "attack" or path[:1] == ("privacy",):
            return
        assert f"unknown key '{dotted}'" in refused(f"{dotted}=1")

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            ("federation.round", "rounds"),
            ("training.batchsize", "batch_size"),
            ("training.lr", "training.optimizer.lr"),
            ("training.min_sites", "cohort.min_sites"),
            ("cohort.partition.alhpa", "alpha"),
            ("cohort.per_round.poison", "poisson"),
            ("aggregation.weighting.record_cap", "records_cap"),
        ],
    )
    def test_an_unknown_key_offers_the_nearest_known_one(self, wrong: str, right: str) -> None:
        assert refused(f"{wrong}=1").splitlines()[-1] == f"  unknown key '{wrong}'; did you mean '{right}'?"

    def test_an_unknown_table_offers_the_nearest_known_one(self) -> None:
        assert refused("trainning.batch_size=1").endswith("unknown key 'trainning'; did you mean 'training'?")

    def test_a_key_that_resembles_nothing_lists_what_is_known(self) -> None:
        assert refused("aggregation.qqq=1").endswith(
            "unknown key 'aggregation.qqq'; known here: average_rounds, byzantine, group_size, optimizer, protection, reach, rule, weighting"
        )

    def test_keys_of_the_task_are_the_task_s_business(self) -> None:
        assert parse_federation(SMALL, base=HERE, overrides=["task.anything=1"]).spec.task.options == {
            "anything": 1
        }

    def test_nearest_knows_when_there_is_nothing_to_offer(self) -> None:
        assert nearest("x", []) == ""
        assert nearest("rounds", ["round", "seed"]) == "; did you mean 'round'?"


class TestRefusals:
    @pytest.mark.parametrize(
        ("override", "line"),
        [
            ("federation.rounds=many", 'federation.rounds = "many": should be a whole number'),
            ("federation.rounds=30.0", "federation.rounds = 30.0: should be a whole number"),
            ("federation.rounds=true", "federation.rounds = true: should be a whole number"),
            ("federation.rounds=0", "federation.rounds = 0: should be at least 1"),
            (
                "federation.seed=9223372036854775808",
                "federation.seed = 9223372036854775808: should be less than 9.22337e+18",
            ),
            ("federation=3", "federation = 3: should be a table"),
            ("cohort.wait_s=soon", 'cohort.wait_s = "soon": should be a number'),
            ("training.optimizer.lr=0", "training.optimizer.lr = 0: should be at least 1e-12"),
            ("training.optimizer.momentum=1", "training.optimizer.momentum = 1: should be less than 1"),
            (
                "training.schedule={name='step', every=2, gamma=2}",
                "training.schedule.gamma = 2: should be at most 1",
            ),
            (
                "training.optimizer.betas=[1, 2, 3]",
                "training.optimizer.betas = [1, 2, 3]: should have at most 2 entries",
            ),
            ("training.optimizer.betas=[0.5, 'a']", 'training.optimizer.betas[1] = "a": should be a number'),
            ("training.class_weights=3", "training.class_weights = 3: should be a list"),
            ("training.class_weights=[1, -1]", "training.class_weights[1] = -1: should be at least 1e-12"),
            ("training.early_stop=3", "training.early_stop = 3: should be a table"),
            ("evaluation.central=1", "evaluation.central = 1: should be true or false"),
            ("tracking.mlflow=3", "tracking.mlflow = 3: should be text in quotes"),
            ("task.use=''", 'task.use = "": should not be empty'),
            (
                "training.device=gpu",
                "training.device = \"gpu\": should be 'auto', 'cpu', 'cuda', or 'mps'; did you mean 'cpu'?",
            ),
            ("aggregation.rule=men", "[aggregation.rule] 'men' is no stage of a rule; did you mean 'mean'?"),
            (
                "federation.name=a b",
                'federation.name = "a b": should fit the pattern ^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$',
            ),
            ("cohort.sites=2\nx=3", 'cohort.sites = "2\\nx=3": should be a whole number'),
        ],
    )
    def test_a_wrong_value_is_refused_in_one_plain_line(self, override: str, line: str) -> None:
        assert refused(override).splitlines()[1:] == [f"  {line}"]

    @pytest.mark.parametrize("value", ["al", "1.5", "true", "[1]"])
    def test_a_value_that_fits_no_member_of_a_choice_gives_one_line_with_all_that_is_expected(
        self, value: str
    ) -> None:
        shown = '"al"' if value == "al" else value
        (line,) = refused(f"cohort.per_round={value}").splitlines()[1:]
        assert (
            line
            == f"  cohort.per_round = {shown}: expected 'all', a whole number, or a table like {{ poisson = 0.1 }}"
        )

    def test_weighting_says_what_it_expects_in_one_line(self) -> None:
        (line,) = refused("aggregation.weighting=records").splitlines()[1:]
        assert (
            line
            == "  aggregation.weighting = \"records\": expected 'uniform' or a table like { records_cap = 500 }"
        )

    @pytest.mark.parametrize(
        ("value", "line"),
        [
            ("0", "cohort.per_round = 0: should be at least 1"),
            ("{poisson = 2}", "cohort.per_round.poisson = 2: should be at most 1"),
            ("{}", "'cohort.per_round.poisson' is missing; for example poisson = 0.1"),
        ],
    )
    def test_a_value_meant_for_one_member_of_a_choice_is_judged_by_that_member(
        self, value: str, line: str
    ) -> None:
        assert refused(f"cohort.per_round={value}").splitlines()[1:] == [f"  {line}"]

    def test_all_refusals_come_in_one_message(self) -> None:
        message = refused("federation.rounds=0", "cohort.sites=0", "training.typo=1")
        assert len(message.splitlines()) == 4

    @pytest.mark.parametrize(
        ("document", "lines"),
        [
            (
                {},
                [
                    'the table [federation] is missing; for example [federation] with name = "heart", rounds = 30',
                    'the table [task] is missing; for example [task] with use = "heart"',
                ],
            ),
            (
                {"federation": {}, "task": {}},
                [
                    "'federation.name' is missing; for example name = \"heart\"",
                    "'federation.rounds' is missing; for example rounds = 30",
                    "'task.use' is missing; for example use = \"heart\"",
                ],
            ),
        ],
    )
    def test_what_is_missing_is_named_with_an_example(
        self, document: dict[str, Any], lines: list[str]
    ) -> None:
        assert [line.strip() for line in refused(document=document).splitlines()[1:]] == lines

    @pytest.mark.parametrize(("path", "model"), ALL_TABLES)
    def test_the_example_of_each_required_key_is_itself_accepted(
        self, path: tuple[str, ...], model: type[BaseModel]
    ) -> None:
        shown = expected(model)
        if model is FederationSpec or shown == "a table":
            return
        model.model_validate(tomllib.loads(f"v = {shown.removeprefix('a table like ')}")["v"])

    @pytest.mark.parametrize(
        ("overrides", "line"),
        [
            (
                ["cohort.sites=2", "cohort.min_sites=3"],
                "[cohort] sites = 2 can never reach min_sites = 3; lower min_sites",
            ),
            (
                ["cohort.per_round=2", "cohort.min_sites=3"],
                "[cohort] per_round = 2 can never reach min_sites = 3; lower min_sites",
            ),
            (
                ["cohort.partition.by=dirichlet"],
                "[cohort.partition] by = 'dirichlet' needs 'alpha', for example alpha = 0.5",
            ),
            (
                ["training.local_epochs=1", "training.local_steps=1"],
                "[training] give local_epochs or local_steps, not both",
            ),
        ],
    )
    def test_a_rule_over_several_keys_names_the_table_and_the_way_out(
        self, overrides: list[str], line: str
    ) -> None:
        assert refused(*overrides).splitlines()[1:] == [f"  {line}"]

    def test_a_long_value_is_cut_in_the_message(self) -> None:
        assert len(refused(f"federation.rounds={'x' * 5000}")) < 300

    def test_the_tables_cannot_be_changed_after_the_check(self) -> None:
        spec = parse_federation(SMALL, base=HERE).spec
        with pytest.raises(ValidationError):
            spec.federation.rounds = 4


class TestWhatTomlCanSayAndAFederationCannot:
    @pytest.mark.parametrize(
        "key", ["cohort.wait_s", "task.x", "training.l1", "training.optimizer.lr", "task.deep.er"]
    )
    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(self, key: str, value: str) -> None:
        assert refused(f"{key}={value}") == f"{key} = {value}: should be a finite number"

    @pytest.mark.parametrize(
        "value", ["2024-01-01", "2024-01-01T10:00:00", "2024-01-01T10:00:00Z", "10:00:00"]
    )
    @pytest.mark.parametrize("key", ["federation.name", "task.since"])
    def test_a_date_is_refused_and_not_taken_for_text(self, key: str, value: str) -> None:
        assert "a federation file holds no dates" in refused(f"{key}={value}")

    def test_a_key_without_a_name_is_refused(self) -> None:
        assert refused(document={**SMALL, "task": {"use": "heart", "": 1}}) == "task has a key without a name"

    def test_they_are_found_inside_lists(self) -> None:
        assert refused("task.x=[1, [nan]]") == "task.x[1][0] = nan: should be a finite number"

    def test_plain_data_from_python_is_held_to_the_same(self) -> None:
        assert "task.x is a Path" in refused(
            document={**SMALL, "task": {"use": "heart", "x": Path("a")}}
        ).replace("Posix", "")
        assert refused(document={**SMALL, "task": {"use": "heart", "x": math.nan}})

    def test_none_in_plain_data_counts_as_left_out(self) -> None:
        given_none = {**SMALL, "cohort": {"sites": None}}
        assert parse_federation(given_none, base=HERE).digest() == parse_federation(SMALL, base=HERE).digest()


class TestWhatWouldEndDeepInsideTorch:
    @pytest.mark.parametrize(
        "override",
        [
            "training.optimizer.lr=1e7",
            "training.optimizer.lr=1e-300",
            "training.optimizer.weight_decay=1e300",
            "training.optimizer.eps=1e300",
            "training.proximal_mu=1e300",
            "training.l1=1e300",
            "training.l2=1e300",
            "training.gradient_clip=1e300",
            "training.schedule={name='exponential', gamma=1e-300}",
            "training.schedule.warmup=10000000000",
            "training.batch_size=10000000000",
            "training.local_steps=9223372036854775808",
            "training.class_weights=[1e300, 1]",
            "federation.rounds=9223372036854775808",
            "aggregation.optimizer.tau=1e300",
            "aggregation.optimizer.tau=1e-300",
            "aggregation.optimizer.lr=1e300",
            "evaluation.every=10000000000",
            "cohort.wait_s=1e300",
            "cohort.partition={by='dirichlet', alpha=1e-300}",
            "cohort.partition={by='dirichlet', alpha=1e300}",
            "cohort.partition={by='quantity', skew=1e-300}",
            "cohort.partition={by='quantity', skew=1e300}",
        ],
    )
    def test_a_number_beyond_all_sense_is_refused_by_its_key(self, override: str) -> None:
        said = refused(override).splitlines()[1]
        assert said.startswith(f"  {override.partition('=')[0]}")
        assert "should be at " in said

    @pytest.mark.parametrize("depth", [40, 300, 5000])
    def test_lists_and_tables_nested_without_end_are_refused(self, depth: int) -> None:
        nested: list[Any] = []
        for _ in range(depth):
            nested = [nested]
        table: dict[str, Any] = {"x": 1}
        for _ in range(depth):
            table = {"a": table}
        for document in ({**SMALL, "task": {"use": "heart", "z": nested}}, {**SMALL, "a": table}):
            assert "nested more than 32 deep" in refused(document=document)
        assert "nested more than 32 deep" in refused(".".join("a" * depth) + "=1")
        assert "nested more than 32 deep" in refused("task.z=" + "[" * 40 + "]" * 40)

    @pytest.mark.parametrize("text", ["\0.py:X", "\ud800"])
    def test_text_that_no_file_can_hold_is_refused_wherever_it_stands(self, text: str) -> None:
        for task in ({"use": text}, {"use": "heart", "x": [text]}, {"use": "heart", text: 1}):
            assert "NUL or with half a surrogate pair" in refused(document={**SMALL, "task": task})
        assert "half a surrogate pair" in refused(f"tracking.mlflow={text}")
        assert "half a surrogate pair" in refused(f"{text}=1")


class TestOverrides:
    @given(st.integers(1, 9), st.integers(10, 99), st.integers(100, 999))
    def test_set_beats_the_file_and_the_last_set_beats_the_first(
        self, file: int, first: int, last: int
    ) -> None:
        document = {**SMALL, "training": {"batch_size": file}}
        assert parse_federation(document, base=HERE).spec.training.batch_size == file
        one = parse_federation(document, base=HERE, overrides=[f"training.batch_size={first}"])
        assert one.spec.training.batch_size == first
        two = parse_federation(
            document, base=HERE, overrides=[f"training.batch_size={first}", f"training.batch_size={last}"]
        )
        assert two.spec.training.batch_size == last

    def test_each_value_says_where_it_came_from(self) -> None:
        document = {
            **SMALL,
            "training": {"optimizer": {"lr": 0.1}},
            "cohort": {"per_round": {"poisson": 0.1}},
        }
        origins = parse_federation(
            document, base=HERE, overrides=["training.optimizer.momentum=0.9", "cohort.per_round=2"]
        ).origins
        assert origins["training.optimizer.lr"] is Origin.FILE
        assert origins["training.optimizer.momentum"] is Origin.SET
        assert origins["training.optimizer.name"] is Origin.DEFAULT
        assert origins["cohort.per_round"] is Origin.SET
        assert "cohort.per_round.poisson" not in origins

    def test_a_table_that_is_set_replaces_the_file_s_whole_table(self) -> None:
        document = {**SMALL, "training": {"optimizer": {"lr": 0.1, "momentum": 0.9}}}
        loaded = parse_federation(document, base=HERE, overrides=["training.optimizer={lr=0.2}"])
        assert loaded.spec.training.optimizer.momentum == 0
        assert loaded.origins["training.optimizer.momentum"] is Origin.DEFAULT

    @given(documents)
    def test_every_value_of_the_effective_file_has_an_origin(self, document: dict[str, Any]) -> None:
        loaded = parse_federation(document, base=HERE)
        written = [line for line in loaded.annotated_toml().split("\n") if line and not line.startswith("[")]
        assert all(line.endswith(("# file", "# default")) for line in written)

    def test_a_value_is_toml_or_else_text(self) -> None:
        overrides = [
            "task.a=1",
            "task.b=heart",
            "task.c='1'",
            "task.d=[1, 2]",
            "task.e={f = true}",
            "task.g=",
            "task.h=a=b",
        ]
        options = parse_federation(SMALL, base=HERE, overrides=overrides).spec.task.options
        assert options == {"a": 1, "b": "heart", "c": "1", "d": [1, 2], "e": {"f": True}, "g": "", "h": "a=b"}

    @pytest.mark.parametrize("override", ["federation.rounds", "=3", "federation..rounds=3", ".rounds=3"])
    def test_what_is_no_key_and_value_is_refused(self, override: str) -> None:
        assert refused(override) == f"--set '{override}' is not key=value"

    def test_a_key_below_a_value_is_refused_with_the_way_to_write_it(self) -> None:
        document = {**SMALL, "cohort": {"per_round": 3}}
        assert "'cohort.per_round' is a value" in refused("cohort.per_round.poisson=0.1", document=document)


class TestFiles:
    def load(self, path: Path) -> SpecError:
        with pytest.raises(SpecError) as caught:
            load_federation(path)
        assert caught.value.exit_code == 3
        assert caught.value.remedy
        return caught.value

    def test_a_file_is_read_and_its_folder_is_the_base(self, tmp_path: Path) -> None:
        path = tmp_path / "federation.toml"
        path.write_text('federation = { name = "a", rounds = 1 }\ntask.use = "heart"\n')
        loaded = load_federation(path, ["federation.rounds=2"])
        assert loaded.base == tmp_path
        assert loaded.spec.federation.rounds == 2

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        assert "there is no federation file" in self.load(tmp_path / "none.toml").message

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        assert "cannot read" in self.load(tmp_path).message

    @pytest.mark.parametrize(
        "content",
        [b"= 3", b"a = 1\na = 2", b"\xff\xfe", b"a = " + b"9" * 5000, b"a = " + b"[" * 20000],
        ids=["no key", "twice", "not utf-8", "a number of 5000 digits", "20000 brackets"],
    )
    def test_what_is_not_toml_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "federation.toml"
        path.write_bytes(content)
        assert "is not TOML" in self.load(path).message

    def test_a_file_of_a_megabyte_is_refused_unread(self, tmp_path: Path) -> None:
        path = tmp_path / "federation.toml"
        path.write_bytes(b"#" * ((1 << 20) + 1))
        assert "more than 1048576 bytes" in self.load(path).message

    def test_the_heart_example_is_accepted(self, repository: Path) -> None:
        loaded = load_federation(repository / "examples" / "heart" / "federation.toml")
        assert loaded.spec.task.use == "heart"
        assert loaded.spec.evaluation.baselines == ("pooled", "local")
