"""Releases: nothing is signed that its consortium's thresholds bar, and whatever was changed afterwards is found, with its reason."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cloister.core.command import run as cloister
from cloister.core.errors import AuditFailed, IntegrityError, UsageError
from cloister.core.spec import load_federation
from cloister.privacy.accounting import account
from cloister.privacy.events import to_json
from cloister.privacy.identity import Identity, Role
from cloister.privacy.identity.kit import load_kit
from cloister.privacy.ledger import Ledger, load_key
from cloister.privacy.ledger.inspection import inspect
from cloister.privacy.plan import plan_from
from cloister.privacy.request import JobRequest
from cloister.server.audit.verdicts import read_summary
from cloister.server.releasing.certificate import Certificate, signed_certificate
from cloister.server.releasing.issuing import issue
from cloister.server.releasing.sealing import Secret, unseal
from cloister.server.releasing.verifying import Verified, read_consortium, verify_release
from cloister.server.report import write_report
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import simulate
from consortia import make_consortium

pytestmark = pytest.mark.usefixtures("undrawn")

FILE = """
[federation]
name = "digits"
rounds = 2
seed = 11
[task]
use = "digits"
model = { name = "mlp", hidden = [4] }
[cohort]
sites = 3
partition = { by = "iid" }
[training]
local_steps = 1
batch_size = 16
[privacy]
unit = "record"
noise_multiplier = 1.1
delta = 1e-4
clip = 0.5
sampling_rate = 0.05
[audit]
checks = ["provenance", "accounting", "ledgers", "transcript", "privacy", "structure"]
[audit.require]
epsilon_at_most = 8
accuracy_at_least = 0.01
transcript = "pass"
ledgers = "pass"
structure = "pass"
"""


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "federation.toml").write_text(FILE)
    loaded = load_federation(home / "federation.toml")
    made = simulate(loaded, out=home / "runs", engine=LocalEngine(workers=1), ledgers=home / "ledgers")
    assert cloister(["audit", "run", str(made.run)]) == 0
    return home


@pytest.fixture(scope="module")
def released(audited: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release whose run and ledgers lie as they were made."""
    home = tmp_path_factory.mktemp("released") / "home"
    shutil.copytree(audited, home)
    issue(_run(home))
    return home


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("consortium") / "hospitals"
    make_consortium(out)
    return out / "kits"


@pytest.fixture
def home(audited: Path, tmp_path: Path) -> Path:
    shutil.copytree(audited, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def release(released: Path, tmp_path: Path) -> Path:
    shutil.copytree(_run(released) / "release", tmp_path / "release")
    return tmp_path / "release"


def _run(home: Path) -> Path:
    (found,) = (home / "runs").iterdir()
    return found


def _ledgers(home: Path) -> list[Path]:
    return sorted((home / "ledgers").glob("*/*.sqlite"))


def _codes(found: Verified) -> set[str]:
    return {fault.code for fault in found.faults}


def _verified(release: Path, **more: Any) -> Verified:
    return verify_release(release / "certificate.json", **more)


def _resigned(release: Path, change: Callable[[dict[str, Any]], None], signer: Identity) -> None:
    """Sign something else with a key that its certificate vouches for: what only the server itself could do."""
    path = release / "certificate.json"
    content = json.loads(path.read_text())["content"]
    change(content)
    path.write_bytes(signed_certificate(Certificate.model_validate(content), signer))


class TestAudit:
    @pytest.mark.slow
    def test_every_asked_check_has_a_verdict_and_its_power(self, audited: Path) -> None:
        summary = read_summary(_run(audited) / "audits")
        assert summary is not None
        verdicts = {one.name: one.verdict for one in summary.findings}
        assert verdicts == {
            "provenance": "pass",
            "accounting": "pass",
            "ledgers": "pass",
            "transcript": "pass",
            "privacy": "no power",
            "structure": "pass",
        }
        assert all(one.power for one in summary.findings)
        assert summary.met

    def test_a_finding_that_is_there_is_not_made_again(self, home: Path) -> None:
        path = _run(home) / "audits" / "accounting.json"
        before = path.stat().st_mtime_ns
        assert cloister(["audit", "run", str(_run(home))]) == 0
        assert path.stat().st_mtime_ns == before

    def test_a_stated_epsilon_below_its_cost_fails_and_bars_the_release(self, home: Path) -> None:
        run = _run(home)
        path = run / "events.jsonl"
        events = [json.loads(line) for line in path.read_text().splitlines()]
        for event in events:
            if event["kind"] == "privacy" and event.get("site"):
                event["epsilon"] /= 2
        path.write_text("".join(json.dumps(event) + "\n" for event in events))
        assert cloister(["audit", "run", str(run), "--again"]) == 8
        with pytest.raises(AuditFailed, match=r"accounting: fail, required: not failed"):
            issue(run)

    def test_a_real_run_s_checks_have_no_records_at_the_server(self, home: Path) -> None:
        run = _run(home)
        _as_deployed(run)
        assert cloister(["audit", "run", str(run), "--check", "fit", "--check", "calibration"]) == 0
        found = {
            name: json.loads((run / "audits" / f"{name}.json").read_text())["finding"]["verdict"]
            for name in ("fit", "calibration")
            if (run / "audits" / f"{name}.json").exists()
        }
        assert set(found.values()) <= {"no power"}


class TestRefused:
    def test_a_run_that_was_not_audited_is_not_released(self, home: Path) -> None:
        shutil.rmtree(_run(home) / "audits")
        with pytest.raises(AuditFailed, match="was not audited") as caught:
            issue(_run(home))
        assert (caught.value.code, caught.value.exit_code) == ("not-audited", 8)
        assert not (_run(home) / "release").exists()

    def test_an_audit_of_another_model_does_not_count(self, home: Path) -> None:
        model = _run(home) / "model.safetensors"
        raw = bytearray(model.read_bytes())
        raw[-1] ^= 1
        model.write_bytes(raw)
        with pytest.raises(AuditFailed, match="another model"):
            issue(_run(home))

    @pytest.mark.parametrize(
        ("key", "value", "reason"),
        [
            ("epsilon_at_most", 0.01, r"epsilon_at_most: 0\.\d+, required: at most 0.01"),
            ("accuracy_at_least", 0.999, r"accuracy_at_least: .* required: at least 0.999"),
            ("backdoor", "pass", "backdoor: not made, required: pass"),
            ("privacy", "pass", "privacy: no power, required: pass"),
            ("worst_site_accuracy_at_least", 0.1, "worst_site_accuracy_at_least: not measured"),
        ],
    )
    def test_each_threshold_that_is_not_met_is_named(
        self, home: Path, key: str, value: float | str, reason: str
    ) -> None:
        run = _run(home)
        document = tomllib.loads((run / "federation.toml").read_text())
        del document["audit"]["checks"]
        document["audit"]["require"] |= {key: value}
        (run / "federation.toml").write_text(tomli_w.dumps(document))
        with pytest.raises(AuditFailed, match="another model or federation file"):
            issue(run)
        _sum_up_anew(run)
        with pytest.raises(AuditFailed, match=reason) as caught:
            issue(run)
        assert caught.value.code == "thresholds"

    def test_a_finding_that_was_changed_in_the_summary_is_refused(self, home: Path) -> None:
        path = _run(home) / "audits" / "summary.json"
        text = path.read_text().replace("4 ledgers", "5 ledgers").replace("3 ledgers", "5 ledgers")
        path.write_text(text)
        with pytest.raises(IntegrityError, match="is not the one in") as caught:
            issue(_run(home))
        assert caught.value.code == "audit-summary"

    def test_a_release_stands_until_it_is_moved(self, released: Path) -> None:
        with pytest.raises(UsageError, match="is a release already"):
            issue(_run(released))

    def test_a_real_run_needs_the_server_s_identity(self, home: Path) -> None:
        _as_deployed(_run(home))
        with pytest.raises(UsageError, match="needs the server's identity"):
            issue(_run(home))


class TestVerified:
    def test_a_release_verifies_with_its_ledgers(self, released: Path) -> None:
        found = _verified(_run(released) / "release", ledgers=_ledgers(released))
        assert found.faults == []
        told = "\n".join(found.held)
        assert "the model is the one that was certified" in told
        assert "recomputed from the rounds of 3 sites" in told
        assert "6 thresholds" not in told
        assert "5 thresholds of the federation file are met" in told
        assert told.count("verifies, and holds the certified entry") == 3

    def test_the_certificate_says_what_an_officer_asks(self, released: Path) -> None:
        content = _verified(_run(released) / "release").signed.content
        assert content.simulated
        assert 0 < (content.privacy.epsilon or 0) < 8
        assert content.privacy.delta == 1e-4
        assert {one.name for one in content.sites} == {path.stem for path in _ledgers(released)}
        assert all(one.head is not None for one in content.sites)
        assert any("simulation" in text for text in content.not_covered)
        assert all(one.power for one in content.checks)
        assert "cloister" in content.versions

    def test_the_command_ends_with_0(self, release: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cloister(["verify", str(release), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["verified"] is True

    def test_the_page_says_that_it_is_released(self, released: Path, home: Path) -> None:
        assert "Released" in (_run(released) / "release" / "report.html").read_text()
        write_report(_run(home))
        report = json.loads((_run(home) / "report.json").read_text())
        assert report["clearance"]["state"] == "passed"


class TestTampered:
    def test_a_model_that_was_changed(self, release: Path) -> None:
        path = release / "model.safetensors"
        raw = bytearray(path.read_bytes())
        raw[-3] ^= 1
        path.write_bytes(raw)
        found = _verified(release)
        assert _codes(found) == {"release-model"}
        assert "was certified" in found.faults[0].message
        assert cloister(["verify", str(release)]) == 7

    @pytest.mark.parametrize("name", ["report.html", "report.json", "model-card.md", "audits.json"])
    def test_a_file_beside_it_that_was_changed(self, release: Path, name: str) -> None:
        path = release / name
        path.write_text(path.read_text() + " ")
        found = _verified(release)
        assert _codes(found) == {"release-file"}
        assert found.faults[0].message == f"'{name}' was changed: it is not the file that was certified"

    def test_a_report_from_elsewhere(self, release: Path, tmp_path: Path) -> None:
        other = tmp_path / "report.html"
        other.write_text("<p>all is well</p>")
        assert _codes(_verified(release, reports=[other])) == {"release-file"}

    def test_another_federation_file(self, release: Path) -> None:
        path = release / "federation.toml"
        path.write_text(path.read_text().replace("noise_multiplier = 1.1", "noise_multiplier = 1.2"))
        found = _verified(release)
        assert _codes(found) == {"release-file", "release-federation"}

    def test_a_certificate_that_was_changed(self, release: Path) -> None:
        path = release / "certificate.json"
        whole = json.loads(path.read_text())
        whole["content"]["privacy"]["epsilon"] /= 2
        path.write_text(json.dumps(whole))
        with pytest.raises(IntegrityError, match="does not hold") as caught:
            _verified(release)
        assert (caught.value.code, caught.value.exit_code) == ("signature", 7)

    @pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"content": {}, "signature": "00"}', b"\xff" * 100])
    def test_what_is_no_certificate(self, tmp_path: Path, raw: bytes) -> None:
        (tmp_path / "certificate.json").write_bytes(raw)
        with pytest.raises(IntegrityError) as caught:
            _verified(tmp_path)
        assert caught.value.code == "document"

    def test_a_ledger_that_was_put_back(self, released: Path, audited: Path, tmp_path: Path) -> None:
        source = _ledgers(audited)[0]
        path, site = tmp_path / source.name, source.stem
        plan = plan_from(load_federation(audited / "federation.toml").spec, 1)
        assert plan is not None
        with Ledger.open(
            path,
            site=site,
            dataset="digits",
            key=load_key(source.with_suffix(".pem")),
            account=account,
            durable=False,
        ) as own:
            own.reserve(
                "another",
                1,
                to_json(plan.event()),
                unit=plan.unit,
                relation="zero-out",
                delta=plan.delta,
                code_hash="0" * 64,
                figures=plan.figures(),
            )
        found = _verified(_run(released) / "release", ledgers=[path])
        assert _codes(found) == {"release-ledger"}
        assert site in found.faults[0].message

    def test_a_ledger_with_a_changed_byte(self, released: Path, tmp_path: Path) -> None:
        source = _ledgers(released)[0]
        raw = source.read_bytes()
        path = tmp_path / source.name
        path.write_bytes(raw.replace(b"COMMIT", b"RELEASE"[:6], 1))
        found = _verified(_run(released) / "release", ledgers=[path])
        assert _codes(found) == {"release-ledger"}


@pytest.mark.slow
class TestOfAConsortium:
    @pytest.fixture
    def signed(self, home: Path, kits: Path) -> tuple[Path, Path]:
        run = _run(home)
        _as_deployed(run)
        digest = load_federation(run / "federation.toml").digest()
        user = load_kit(kits / "users" / "ada", Role.USER).identity
        request = JobRequest.new("digits", digest, purpose="to see")
        fields = request.signed(user).to_fields()
        (run / "request.json").write_text(json.dumps({name: value.hex() for name, value in fields.items()}))
        (run / "run-id.txt").write_text(request.run)
        _sum_up_anew(run)
        assert cloister(["release", str(run), "--kit", str(kits / "server")]) == 0
        return run / "release", kits / "server" / "consortium.der"

    def test_it_verifies_against_the_consortium_and_names_who_asked(self, signed: tuple[Path, Path]) -> None:
        release, consortium = signed
        found = _verified(release, consortium=read_consortium(consortium))
        assert found.faults == []
        content = found.signed.content
        assert not content.simulated
        assert found.signed.known
        assert content.request is not None
        assert (content.request.user, content.request.purpose) == ("ada", "to see")
        assert not any("simulation" in line for line in found.unchecked)

    def test_another_consortium_s_word_is_not_taken(
        self, signed: tuple[Path, Path], released: Path, tmp_path: Path
    ) -> None:
        make_consortium(tmp_path / "other")
        other = read_consortium(tmp_path / "other" / "kits" / "server" / "consortium.der")
        with pytest.raises(IntegrityError, match="certificate is of the consortium") as caught:
            _verified(signed[0], consortium=other)
        assert caught.value.code == "identity"
        with pytest.raises(IntegrityError, match="signed in a simulation"):
            _verified(_run(released) / "release", consortium=read_consortium(signed[1]))

    def test_a_server_that_signs_too_small_an_epsilon_is_found_out(
        self, signed: tuple[Path, Path], kits: Path
    ) -> None:
        def smaller(content: dict[str, Any]) -> None:
            content["privacy"]["epsilon"] /= 2
            for site in content["sites"]:
                site["epsilon"] /= 2

        _resigned(signed[0], smaller, load_kit(kits / "server", Role.SERVER).identity)
        assert _codes(_verified(signed[0])) == {"release-epsilon"}

    def test_a_server_that_signs_too_few_rounds_is_found_out_by_a_ledger(
        self, signed: tuple[Path, Path], kits: Path, home: Path
    ) -> None:
        def fewer(content: dict[str, Any]) -> None:
            content["run"] = _named(home)
            content["request"] = None
            for site in content["sites"]:
                site["rounds"] = [[survivors, 1] for survivors, _ in site["rounds"]]

        _resigned(signed[0], fewer, load_kit(kits / "server", Role.SERVER).identity)
        assert _verified(signed[0]).faults == []
        found = _verified(signed[0], ledgers=_ledgers(home)[:1])
        assert _codes(found) == {"release-epsilon"}
        assert "charged 2 rounds of this run, and 1 are certified" in found.faults[0].message

    @pytest.mark.slow
    def test_a_server_that_signs_a_failed_check_is_found_out(
        self, signed: tuple[Path, Path], kits: Path
    ) -> None:
        def failed(content: dict[str, Any]) -> None:
            content["checks"][-1]["verdict"] = "fail"

        _resigned(signed[0], failed, load_kit(kits / "server", Role.SERVER).identity)
        found = _verified(signed[0])
        assert _codes(found) == {"release-thresholds"}
        with pytest.raises(AuditFailed, match="structure") as caught:
            found.require()
        assert caught.value.exit_code == 8

    def test_a_site_cannot_sign_a_release(self, signed: tuple[Path, Path], kits: Path) -> None:
        site = load_kit(kits / "sites" / "cleveland", Role.SITE).identity

        def by_the_site(content: dict[str, Any]) -> None:
            content["signer"]["certificate"] = site.certificate.hex()
            content["signer"]["name"] = site.name

        _resigned(signed[0], by_the_site, site)
        with pytest.raises(IntegrityError, match="a server's is needed"):
            _verified(signed[0])

    def test_a_request_for_another_federation_is_found(self, signed: tuple[Path, Path], kits: Path) -> None:
        user = load_kit(kits / "users" / "ada", Role.USER).identity
        other = JobRequest.new("digits", "0" * 64, purpose="to see").signed(user)

        def swapped(content: dict[str, Any]) -> None:
            content["request"] |= {"encoded": other.encoded.hex(), "signature": other.signature.hex()}

        _resigned(signed[0], swapped, load_kit(kits / "server", Role.SERVER).identity)
        assert _codes(_verified(signed[0])) == {"release-request"}


class TestEncrypted:
    def test_an_encrypted_model_comes_back_with_its_key_and_no_other(
        self, home: Path, tmp_path: Path
    ) -> None:
        run, key = _run(home), tmp_path / "key"
        assert cloister(["release", str(run), "--encrypt-with", str(key)]) == 0
        assert key.stat().st_mode & 0o077 == 0
        sealed = run / "release" / "model.sealed"
        assert not (run / "release" / "model.safetensors").exists()
        assert cloister(["unseal", str(sealed), "--key-file", str(key), "--out", str(tmp_path / "m")]) == 0
        assert (tmp_path / "m").read_bytes() == (run / "model.safetensors").read_bytes()
        for model in (sealed, tmp_path / "m"):
            assert _verified(run / "release", model=model).faults == []
        other = Secret.made(tmp_path / "other")
        with pytest.raises(IntegrityError, match="another key") as caught:
            unseal(sealed, tmp_path / "n", other)
        assert caught.value.code == "sealed-key"
        assert not (tmp_path / "n").exists()
        raw = bytearray(sealed.read_bytes())
        raw[-1] ^= 1
        sealed.write_bytes(raw)
        assert _codes(_verified(run / "release")) == {"release-model"}


def _named(home: Path) -> str:
    """Return what names the simulated run in the ledgers."""
    return str(inspect(_ledgers(home)[0]).chain.holdings[0].reserve.run)


def _as_deployed(run: Path) -> None:
    """Make a run's record that of real sites."""
    path = run / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        if event["kind"] == "run":
            event["engine"] = "superlink"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def _sum_up_anew(run: Path) -> None:
    """Write the summary of the findings that are there for the files as they are now."""
    from cloister.server.audit.subject import open_audit
    from cloister.server.audit.summary import write_summary

    summary = read_summary(run / "audits")
    assert summary is not None
    write_summary(open_audit(run), summary.findings)
