"""The check of a site's records: each finding where it belongs and nowhere else, and no value of the data in any."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cloister.client.data_check.checking import check_dataset
from cloister.client.data_check.finding import Finding
from cloister.client.data_check.identifiers import by_name, by_values
from cloister.client.data_check.numbers import CHECKED, FORMS
from cloister.client.site_config import DataTable
from cloister.core import command
from cloister.core.spec.tables import TaskTable
from cloister.core.tasks.heart import HOSPITALS

SCHEMA: dict[str, dict[str, dict[str, Any]]] = {
    "columns": {
        "age": {"kind": "numeric", "low": 0, "high": 100},
        "dose": {"kind": "numeric", "low": 0, "high": 10},
        "stage": {"kind": "categorical", "values": ["I", "II", "III"]},
        "sick": {"kind": "boolean"},
    }
}
TASK = TaskTable.model_validate({"use": "tabular", "target": "sick", "schema": SCHEMA})
N = 400


def clean(n: int = N) -> dict[str, list[Any]]:
    draw = np.random.default_rng(5)
    return {
        "age": draw.integers(20, 80, n).tolist(),
        "dose": np.round(draw.uniform(0, 10, n), 4).tolist(),
        "stage": draw.choice(["I", "II", "III"], n).tolist(),
        "sick": draw.integers(0, 2, n).tolist(),
    }


def check(
    folder: Path, columns: dict[str, list[Any]], *, task: TaskTable | None = TASK, **options: Any
) -> list[Finding]:
    path = folder / "records.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    path.chmod(0o600)
    table = DataTable(task="tabular", options={"data": "records.csv"}, **options)
    return check_dataset("records", table, task, folder)


def codes(found: list[Finding]) -> set[str]:
    return {one.code for one in found}


def test_clean_records_make_no_finding_but_of_small_groups(tmp_path: Path) -> None:
    found = check(tmp_path, clean())
    assert codes(found) <= {"small-groups"}
    assert {one.severity for one in found} <= {"note"}


@pytest.mark.parametrize(
    ("column", "values", "code"),
    [
        ("contact", [f"p{n}@example.org" for n in range(N)], "identifier-email"),
        ("contact", ["", "see a.b@example.org", *[""] * (N - 2)], "identifier-email"),
        ("who", [f"{a} {b}" for a in ("Anna", "Ben", "Carla", "Dörte") for b in (f"Sm{'i' * n}th" for n in range(1, 101))], "identifier-name"),
        ("call", [f"+49 30 12{n:05d}" for n in range(N)], "identifier-phone"),
        ("number", [f"219-{10 + n % 80:02d}-{1000 + n}" for n in range(N)], "identifier-number"),
        ("seen", [f"2021-{1 + n % 12:02d}-{1 + n % 28:02d}" for n in range(N)], "identifier-date"),
        ("seen", [f"{1 + n % 28}.{1 + n % 12}.2021 10:15" for n in range(N)], "identifier-date"),
        ("area", [f"SW{n % 9}A {n % 7}AA" for n in range(N)], "identifier-postcode"),
        ("note", [f"the patient came on foot and complained of {n} things" for n in range(N)], "free-text"),
        ("code", [f"A{n:07d}" for n in range(N)], "identifier-unique"),
        ("code", list(range(5000, 5000 + N)), "identifier-unique"),
        ("host", [f"10.0.{n // 250}.{n % 250}" for n in range(N)], "identifier-device"),
        ("patient_id", [n % 7 for n in range(N)], "identifier-number"),
        ("LastName", [f"x{n % 7}" for n in range(N)], "identifier-name"),
        ("geburtsdatum", [f"1980-01-{1 + n % 28:02d}" for n in range(N)], "identifier-birth"),
        ("plz", [f"1{n % 9}117" for n in range(N)], "identifier-postcode"),
    ],
)  # fmt: skip
def test_what_says_who_somebody_is_is_found_and_nothing_of_it_is_told(
    tmp_path: Path, column: str, values: list[Any], code: str
) -> None:
    found = check(tmp_path, clean() | {column: values})
    mine = [one for one in found if one.column == column]
    assert code in codes(mine)
    assert all(one.severity in ("warning", "note") for one in mine)  # the task does not read it
    told = " ".join(one.what + one.remedy for one in found)
    assert not [value for value in map(str, values) if len(value) > 4 and value in told]
    read = {**SCHEMA["columns"], column: {"kind": "categorical", "values": ["a", "b"]}}
    task = TaskTable.model_validate({"use": "tabular", "target": "sick", "schema": {"columns": read}})
    direct = {
        "identifier-email",
        "identifier-phone",
        "identifier-number",
        "identifier-birth",
        "identifier-device",
    }
    if code in direct:
        worst = check(tmp_path, clean() | {column: values}, task=task)
        assert "error" in {one.severity for one in worst if one.column == column and one.code == code}


@pytest.mark.parametrize(
    ("check_digits", "text"),
    [
        ("NHS numbers", "943 476 5919"),
        ("French social security numbers (NIR)", "2 55 08 14 168 025 38"),
        ("Dutch citizen service numbers (BSN)", "111222333"),
        ("Spanish identity numbers (DNI, NIE)", "12345678Z"),
        ("Spanish identity numbers (DNI, NIE)", "X1234567L"),
        ("Polish identity numbers (PESEL)", "44051401359"),
        ("payment card numbers", "4111 1111 1111 1111"),
        ("IBANs", "GB82 WEST 1234 5698 7654 32"),
        ("IBANs", "DE89370400440532013000"),
    ],
)
def test_a_published_example_of_a_number_passes_and_with_any_other_last_mark_does_not(
    check_digits: str, text: str
) -> None:
    fits = (CHECKED | FORMS)[check_digits]
    assert fits(text)
    others = [
        mark
        for mark in ("0123456789" if text[-1].isdigit() else "TRWAGMYFPDXBNJZSQVHLCKE")
        if mark != text[-1]
    ]
    assert not any(fits(text[:-1] + mark) for mark in others)


@pytest.mark.parametrize("digits", [9, 10, 11, 13, 15, 16])
def test_random_digits_are_not_taken_for_numbers_of_persons(digits: int) -> None:
    draw = np.random.default_rng(digits)
    values = ["".join(str(d) for d in draw.integers(1, 10, digits)) for _ in range(500)]
    assert {kind[1] for kind in by_values(np.array(values, dtype=object))} == {"identifier-unique"}


@pytest.mark.parametrize("name", ["age", "chol", "hospital_name", "ph", "telomere", "filename", "cell_count", "emailed", "zipper", "sex", "insulin", "named_dose"])  # fmt: skip
def test_a_harmless_name_is_no_identifier(name: str) -> None:
    assert by_name(name) is None


def test_real_records_of_an_examination_hold_no_identifier() -> None:
    for owner in HOSPITALS:
        found = check_dataset("heart", DataTable(task="heart", owner=owner), TaskTable(use="heart"), Path())
        assert not [one for one in found if one.code.startswith(("identifier", "free"))]
        assert not [one for one in found if one.severity == "error"]


@pytest.mark.parametrize(
    ("change", "code", "severity"),
    [
        (lambda c: c | {"dose": ["x", *c["dose"][1:]]}, "data-not-a-number", "error"),
        (
            lambda c: {name: values for name, values in c.items() if name != "dose"},
            "data-missing-column",
            "error",
        ),
        (lambda c: c | {"sick": [2, *c["sick"][1:]]}, "data-not-a-boolean", "error"),
        (lambda c: c | {"dose": [50.0] * 100 + c["dose"][100:]}, "out-of-range", "warning"),
        (lambda c: c | {"dose": [50.0] * 3 + c["dose"][3:]}, "out-of-range", "note"),
        (lambda c: c | {"dose": [0.0] * 100 + c["dose"][100:]}, "code-for-missing", "note"),
        (lambda c: c | {"dose": [None] * 100 + c["dose"][100:]}, "missing-values", "warning"),
        (lambda c: c | {"dose": [1.5] * N}, "constant", "warning"),
        (lambda c: c | {"stage": ["I"] * (N - 4) + ["II"] * 4}, "rare-values", "warning"),
        (lambda c: {name: values[: N // 2] * 2 for name, values in c.items()}, "duplicates", "warning"),
        (lambda c: {name: values[: N // 2] * 2 for name, values in c.items()}, "test-in-train", "warning"),
        (lambda c: c | {"sick": [1] * (N - 20) + [0] * 20}, "class-imbalance", "warning"),
        (lambda c: c | {"sick": [1] * (N - 4) + [0] * 4}, "class-few", "warning"),
        (lambda c: c | {"sick": [1] * N}, "data-single-class", "error"),
        (lambda _: clean(60), "few-records", "warning"),
        (lambda _: clean(8), "few-records", "error"),
        (lambda c: c | {"age": [95, *c["age"][1:]]}, "high-age", "note"),
    ],
)
def test_what_is_wrong_with_the_records_is_found(
    tmp_path: Path, change: Callable[[dict[str, list[Any]]], dict[str, list[Any]]], code: str, severity: str
) -> None:
    assert code not in codes(check(tmp_path, clean()))
    found = [one for one in check(tmp_path, change(clean())) if one.code == code]
    assert [one.severity for one in found] == [severity]


def test_a_file_without_a_header_is_found_and_its_first_record_not_told(tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    path.write_text("63,7.25,1990-02-01,1\n41,2.5,1970-03-04,0\n")
    path.chmod(0o600)
    found = check_dataset(
        "records", DataTable(task="tabular", options={"data": "records.csv"}), None, tmp_path
    )
    assert "no-header" in codes(found)
    assert "1990" not in " ".join(one.what + one.remedy for one in found)


def test_small_groups_are_counted_by_the_declared_columns(tmp_path: Path) -> None:
    columns = clean() | {"region": ["north"] * (N - 3) + ["south"] * 3}
    (found,) = [
        one
        for one in check(tmp_path, columns, quasi_identifiers=["region"], smallest_group=4)
        if one.code == "small-groups"
    ]
    assert found.severity == "warning"
    assert "3 of 400 records" in found.what
    assert "0 with nobody; the smallest group has 3" in found.what
    assert "small-groups" not in codes(
        check(tmp_path, columns, quasi_identifiers=["region"], smallest_group=3)
    )
    assert "data-missing-column" in codes(check(tmp_path, columns, quasi_identifiers=["county"]))


def test_near_copies_across_the_two_parts_are_found(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    base = {f"x{n}": draw.uniform(0.02, 0.98, N) for n in range(8)}
    schema = {
        "columns": {name: {"kind": "numeric", "low": 0, "high": 1} for name in base}
        | {"y": {"kind": "boolean"}}
    }
    task = TaskTable.model_validate({"use": "tabular", "target": "y", "schema": schema})
    y = draw.integers(0, 2, N).tolist()
    apart: dict[str, list[Any]] = {name: values.tolist() for name, values in base.items()} | {"y": y}
    assert "test-near-train" not in codes(check(tmp_path, apart, task=task))
    near: dict[str, list[Any]] = {
        name: np.concatenate([values[: N // 2], values[: N // 2] + 1e-5]).tolist()
        for name, values in base.items()
    }
    assert "test-near-train" in codes(check(tmp_path, near | {"y": y[: N // 2] * 2}, task=task))


def test_without_a_federation_file_the_tables_are_looked_at_all_the_same(tmp_path: Path) -> None:
    found = check(tmp_path, clean() | {"email": [f"p{n}@example.org" for n in range(N)]}, task=None)
    assert {"no-federation", "identifier-email"} <= codes(found)
    assert [one.severity for one in found if one.code == "identifier-email"] == ["warning"]


def test_a_file_that_everybody_can_read_is_found(tmp_path: Path) -> None:
    check(tmp_path, clean())
    (tmp_path / "records.csv").chmod(0o644)
    found = check_dataset(
        "records", DataTable(task="tabular", options={"data": "records.csv"}), TASK, tmp_path
    )
    assert "readable-by-all" in codes(found)


def test_what_stands_in_pictures_beside_the_pixels_is_found(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir(mode=0o750)
        for number in range(6):
            Image.new("L", (8, 8), 10 * number).save(tmp_path / label / f"{number}.png")
    table = DataTable(task="images", options={"data": "."})
    task = TaskTable.model_validate({"use": "images", "classes": ["a", "b"], "size": 8, "channels": 1})
    tmp_path.chmod(0o750)
    before = codes(check_dataset("scans", table, task, tmp_path))
    assert not {code for code in before if code.startswith("picture")}
    exif = Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"
    exif[0x013B] = "Dr. Zaphod"
    exif[0x0132] = "2021:01:01 10:00:00"
    Image.new("L", (8, 8)).save(tmp_path / "a" / "gps.jpg", exif=exif)
    said = PngInfo()
    said.add_text("Comment", "Zaphod B.")
    Image.new("L", (8, 8)).save(tmp_path / "a" / "said.png", pnginfo=said)
    (tmp_path / "b" / "scan.jpg").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
    found = check_dataset("scans", table, task, tmp_path)
    assert {"picture-place", "picture-text", "picture-date", "picture-dicom"} <= codes(found)
    assert "2 of 15 files" in next(one.what for one in found if one.code == "picture-text")
    assert "Zaphod" not in " ".join(one.what for one in found)


def test_the_command_ends_by_what_was_found_and_tells_all_of_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.toml").write_text(
        '[site]\nname = "a"\n[server]\naddress = "localhost:1"\n[data.records]\ntask = "tabular"\noptions = { data = "records.csv" }\n'
    )

    def run(columns: dict[str, list[Any]], *arguments: str) -> tuple[int, str]:
        check(tmp_path, columns)
        status = command.run(["site", "data", str(tmp_path), *arguments])
        return status, capfd.readouterr().out

    assert run(clean(), "--json")[0] == 0
    federation = tmp_path / "federation.toml"
    federation.write_text(
        '[federation]\nname = "x"\nrounds = 1\n[task]\nuse = "tabular"\ntarget = "sick"\n'
        + "".join(f"[task.schema.columns.{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in column.items()) for name, column in SCHEMA["columns"].items())
    )  # fmt: skip
    status, said = run(
        clean() | {"age": ["x", *clean()["age"][1:]]}, "--json", "--federation", str(federation)
    )
    assert status == 4
    told = json.loads(said)
    assert told["error"]["code"] == "data-findings"
    assert "data-not-a-number" in {one["code"] for one in told["data"]["records"]}
