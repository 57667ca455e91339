"""``cloister ledger``: what a privacy officer reads, exit statuses, and ε against a formula that shares nothing with ours."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy.optimize import brentq
from scipy.stats import norm

from cloister.privacy.accounting import account
from cloister.privacy.events import Gaussian, to_json
from cloister.privacy.ledger import Ledger, Rate, load_key, load_or_create_key, sign_witness
from cloister.privacy.ledger.keys import public_key_of
from cloister.privacy.ledger_command import register

DELTA = 1e-5
NOISE = 20.0
ROUNDS = 4


def gaussian_epsilon(count: int) -> float:
    """ε of ``count`` Gaussian mechanisms in closed form: Balle and Wang (2018), Theorem 8, with μ = √count / σ."""
    mu = math.sqrt(count) / NOISE

    def excess(epsilon: float) -> float:
        return (
            float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))
            - DELTA
        )

    return float(brentq(excess, 0.0, 50.0))


CAP = 1.2
FIT = next(
    n for n in range(1000) if gaussian_epsilon(n + 1 + ROUNDS + 1) > CAP
)  # beside what is charged below


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "heart.sqlite"
    key, peer = load_or_create_key(tmp_path / "key.pem"), Ed25519PrivateKey.generate()
    event = to_json(Gaussian(noise_multiplier=NOISE))
    charge: dict[str, Any] = {"unit": "record", "relation": "zero-out", "delta": DELTA, "code_hash": "code"}
    with Ledger.open(path, site="north", dataset="heart", key=key, account=account, durable=False) as ledger:
        ledger.set_cap(CAP, DELTA, rate=Rate(epsilon=1.1, days=30))
        for number in range(ROUNDS):
            ledger.reserve("run-7", number, event, **charge).commit(output=f"digest {number}")
        ledger.reserve("run-7", 8, event, **charge).abort("not needed")
        ledger.reserve("run-7", 9, event, **charge)
        head = ledger.head()
        ledger.witness(
            sign_witness(head, peer), by="server", public_key=peer.public_key().public_bytes_raw(), head=head
        )
    return path


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command and returns its exit status and what it said on both streams."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        app = typer.Typer()
        register(app)
        status = typer.main.get_command(app).main(
            [str(a) for a in arguments], prog_name="cloister", standalone_mode=False
        )
        said = capsys.readouterr()
        return status or 0, said.out, said.err

    def ledger(*arguments: object) -> tuple[int, str, str]:
        return call("ledger", *arguments)

    return ledger


def test_the_group_has_the_one_name_that_its_entry_point_promises() -> None:
    app = typer.Typer()
    register(app)
    group = typer.main.get_group(app)
    assert list(group.commands) == ["ledger"]
    assert sorted(group.commands["ledger"].commands) == [  # type: ignore[attr-defined]  # a group
        "cap",
        "export",
        "predict",
        "remaining",
        "show",
        "verify",
    ]


class TestShow:
    def test_it_says_what_was_spent_of_what(self, run: Run, path: Path) -> None:
        status, out, _ = run("show", path, "--json")
        found = json.loads(out)
        (unit,) = found["units"]
        assert status == 0
        assert unit["epsilon"] == pytest.approx(gaussian_epsilon(ROUNDS + 1), rel=0.01)
        assert unit["left"] == pytest.approx(CAP - unit["epsilon"])
        assert (unit["cap"], unit["committed"], unit["open"], unit["aborted"]) == (CAP, ROUNDS, 1, 1)
        assert (found["site"], found["dataset"], found["length"]) == ("north", "heart", 14)
        assert found["head"]["seq"] == 13
        assert [entry["kind"] for entry in found["entries"][:3]] == ["POLICY", "POLICY", "RESERVE"]
        assert found["entries"][2]["event"]["noise_multiplier"] == NOISE

    def test_a_person_reads_tables(self, run: Run, path: Path) -> None:
        status, out, _ = run("show", path)
        assert status == 0
        for text in (
            "ledger of 'north' for 'heart', 14 entries",
            "RESERVE",
            "run-7",
            "by server",
            "of 2",
            "cap 1.2 at 1e-05",
        ):
            assert text in out
        assert "1 reservations are open" in out
        assert out.rstrip().endswith(f"next: cloister ledger verify {path}")

    def test_the_newest_entries_or_all(self, run: Run, path: Path) -> None:
        assert len(json.loads(run("show", path, "--last", "3", "--json")[1])["entries"]) == 3
        assert len(json.loads(run("show", path, "--last", "0", "--json")[1])["entries"]) == 14

    @pytest.mark.parametrize("command", ["show", "verify", "export", "remaining"])
    def test_a_path_without_a_ledger_is_a_usage_error(self, run: Run, tmp_path: Path, command: str) -> None:
        status, out, _ = run(command, tmp_path / "none.sqlite", "--json")
        assert (status, json.loads(out)["error"]["code"]) == (2, "usage")

    @pytest.mark.parametrize("command", ["show", "export", "remaining"])
    def test_a_damaged_ledger_is_not_shown_as_if_it_were_so(self, run: Run, path: Path, command: str) -> None:
        raw = bytearray(path.read_bytes())
        raw[raw.find(b"digest 1")] ^= 1
        path.write_bytes(raw)
        status, out, _ = run(command, path, "--json")
        assert (status, json.loads(out)["error"]["code"]) == (7, "ledger-chain")


class TestVerify:
    def test_a_sound_ledger_verifies_with_every_epsilon_recomputed(self, run: Run, path: Path) -> None:
        key = public_key_of(load_key(path.with_name("key.pem")))
        status, out, err = run("verify", path, "--public-key", key, "--json")
        found = json.loads(out)
        assert status == 0
        assert (found["verified"], found["entries"], found["recomputed"]) == (True, 14, 2 * ROUNDS + 3)
        assert found["epsilon"]["record"]["epsilon"] == pytest.approx(gaussian_epsilon(ROUNDS + 1), rel=0.01)
        assert (found["witnesses"], found["warnings"]) == ({"server": 12}, [])
        assert "recomputing" in err

    def test_a_person_is_told_whose_key_it_is_judged_by(self, run: Run, path: Path) -> None:
        status, out, _ = run("verify", path)
        assert status == 0
        assert "verifies: 14 entries" in out
        assert "compare it with the site's" in out
        assert "witnessed by 'server' up to entry 12" in out

    def test_a_changed_byte_is_exit_7(self, run: Run, path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[raw.find(b"digest 1")] ^= 1
        path.write_bytes(raw)
        status, out, _ = run("verify", path, "--json")
        error = json.loads(out)["error"]
        assert (status, error["code"]) == (7, "ledger-chain")
        assert "entry 5 (COMMIT) is not what was hashed" in error["message"]
        assert error["remedy"]

    def test_another_key_is_exit_7(self, run: Run, path: Path) -> None:
        assert run("verify", path, "--public-key", "ab" * 32)[0] == 7

    def test_an_older_copy_is_found_by_a_head_that_an_export_kept(
        self, run: Run, path: Path, tmp_path: Path
    ) -> None:
        head = path.with_name(path.name + ".head")
        kept = path.read_bytes(), head.read_bytes()
        with Ledger.open(
            path,
            site="north",
            dataset="heart",
            key=load_key(path.with_name("key.pem")),
            account=account,
            durable=False,
        ) as ledger:
            ledger.audit({"n": 1})
        assert run("export", path, "--out", tmp_path / "seen.json")[0] == 0
        assert run("verify", path, "--witnessed", tmp_path / "seen.json")[0] == 0
        path.write_bytes(kept[0])
        head.write_bytes(kept[1])
        assert run("verify", path)[0] == 0
        status, out, _ = run("verify", path, "--witnessed", tmp_path / "seen.json", "--json")
        assert (status, json.loads(out)["error"]["code"]) == (7, "ledger-rollback")

    def test_a_copy_without_its_head_file_verifies_only_when_told(
        self, run: Run, path: Path, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy.sqlite"
        copy.write_bytes(path.read_bytes())
        assert run("verify", copy)[0] == 7
        status, out, _ = run("verify", copy, "--no-head-file", "--json")
        assert status == 0
        assert "would not show" in json.loads(out)["warnings"][0]

    @pytest.mark.parametrize(("content", "status"), [("{", 2), ("[]", 7), ("{}", 7), ('{"heads": [1]}', 7)])
    def test_heads_that_are_none_are_refused(
        self, run: Run, path: Path, tmp_path: Path, content: str, status: int
    ) -> None:
        (tmp_path / "heads.json").write_text(content)
        assert run("verify", path, "--witnessed", tmp_path / "heads.json")[0] == status


class TestExport:
    def test_it_holds_every_entry_and_all_that_is_needed_to_check_it_elsewhere(
        self, run: Run, path: Path, tmp_path: Path
    ) -> None:
        status, out, _ = run("export", path, "--json")
        found = json.loads(out)
        assert status == 0
        assert [entry["seq"] for entry in found["entries"]] == list(range(14))
        assert all(
            a["entry_hash"] == b["prev_hash"]
            for a, b in zip(found["entries"], found["entries"][1:], strict=False)
        )
        assert (found["site"], found["head"]["seq"]) == ("north", 13)
        status, out, _ = run("export", path, "--out", tmp_path / "out.json", "--json")
        assert json.loads(out) == {"out": str(tmp_path / "out.json"), "entries": 14}
        assert json.loads((tmp_path / "out.json").read_text()) == found
        assert (tmp_path / "out.json").stat().st_mode & 0o077 == 0
        assert json.loads(run("export", path)[1]) == found

    def test_a_file_that_cannot_be_written_is_a_usage_error(
        self, run: Run, path: Path, tmp_path: Path
    ) -> None:
        assert run("export", path, "--out", tmp_path / "no" / "folder.json")[0] == 2


class TestRemaining:
    def test_it_says_how_many_more_rounds_fit(self, run: Run, path: Path) -> None:
        status, out, _ = run("remaining", path, "--json")
        (unit,) = json.loads(out)["units"]
        assert status == 0
        assert unit["more"] == pytest.approx(FIT, abs=1)
        assert unit["left"] == pytest.approx(CAP - gaussian_epsilon(ROUNDS + 1), rel=0.01)
        assert unit["window_left"] == pytest.approx(1.1 - gaussian_epsilon(ROUNDS + 1), rel=0.02)
        assert f"{unit['more']} more charges like the last one fit" in run("remaining", path)[1]

    def test_without_a_cap_it_says_that_nothing_is_refused(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "new.sqlite"
        key = load_or_create_key(tmp_path / "new.pem")
        Ledger.open(path, site="north", dataset="heart", key=key, account=account, durable=False).close()
        status, out, _ = run("remaining", path)
        assert status == 0
        assert "no cap is set" in out
        assert json.loads(run("remaining", path, "--json")[1])["units"] == []
