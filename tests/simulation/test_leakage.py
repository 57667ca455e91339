"""The leakage audit: records from the very update of a site's own code, and none from a protected one."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cloister.core import command
from cloister.core.data import TensorData
from cloister.core.randomness import SeededRandomness
from cloister.core.update import Layout
from cloister.server.audit.contract import broken_promises
from cloister.server.audit.subject import AuditSubject, open_audit
from cloister.simulation.leakage.checking import PICTURES, check_leakage
from cloister.simulation.leakage.updates import gradient_seen, seen_by_server

RECORD = "[training]\nlocal_steps = 2\n[privacy]\nunit = 'record'\nnoise_multiplier = 1.0\ndelta = 1e-5\nclip = 1.0\nsampling_rate = 0.1\n[aggregation]\nprotection = 'plain'\n"
SITE = "[privacy]\nunit = '{unit}'\nnoise_multiplier = 1.0\ndelta = 1e-5\nclip = 1.0\n[aggregation]\nprotection = 'plain'\n"


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def opened(folder: Path, more: str = "", **settings: Any) -> AuditSubject:
    path = folder / "federation.toml"
    path.write_text(
        '[federation]\nname = "leaks"\nrounds = 2\nseed = 3\n[task]\nuse = "digits"\nmodel = { name = "mlp", hidden = [32] }\n'
        f'[cohort]\nsites = 4\nmin_sites = 3\npartition = {{ by = "iid" }}\n{more}'
    )
    return open_audit(path, settings={"leakage": {"inversion": False, **settings}})


PLAIN = "[aggregation]\nprotection = 'plain'\n"


class TestForms:
    def test_an_unprotected_update_is_the_gradient(self, tmp_path: Path) -> None:
        subject = opened(tmp_path, PLAIN)
        x, y = next(iter(subject.sites.values())).train.batch(torch.arange(16))
        model = subject.initial.requires_grad_(True)
        seen = gradient_seen(subject, model, TensorData(x, y), "plain", randomness=SeededRandomness(0))
        gradient = torch.autograd.grad(subject.task.loss(model(x), y).mean(), list(model.parameters()))
        flat = torch.cat([part.flatten() for part in gradient]).numpy()
        assert np.abs(seen - flat).max() < 1e-5
        masked = gradient_seen(subject, model, TensorData(x, y), "masked", randomness=SeededRandomness(0))
        assert abs(np.corrcoef(masked, flat)[0, 1]) < 0.1
        assert np.abs(Layout.of(model).read(model)).max() < 1  # the model is as it was

    @pytest.mark.parametrize(
        ("more", "form"),
        [
            (PLAIN, "plain"),
            ("", "masked"),
            (RECORD, "private"),
            (SITE.format(unit="site"), "clipped"),
            (SITE.format(unit="site-local"), "private"),
        ],
    )
    def test_what_the_server_sees_of_one_site(self, tmp_path: Path, more: str, form: str) -> None:
        assert seen_by_server(opened(tmp_path, more)) == form


class TestCheck:
    def test_it_keeps_the_contract(self, tmp_path: Path) -> None:
        assert broken_promises("leakage", check_leakage, opened(tmp_path)) == []

    def test_at_least_half_of_64_records_come_from_an_unprotected_update_and_none_from_a_private_one(
        self, tmp_path: Path
    ) -> None:
        found = check_leakage(opened(tmp_path, PLAIN))
        forms = found.figures["imprint"]["forms"]
        assert found.verdict == "warn"
        assert forms["plain"]["records"] == 64
        assert forms["plain"]["fraction"] >= 0.5
        assert forms["clipped"]["fraction"] >= 0.5  # clipping alone is no protection
        assert forms["private"]["recovered"] == forms["masked"]["recovered"] == 0

    @pytest.mark.parametrize("more", ["", RECORD])
    def test_a_protected_federation_passes(self, tmp_path: Path, more: str) -> None:
        assert check_leakage(opened(tmp_path, more)).verdict == "pass"

    def test_pictures_are_for_whoever_may_see_the_records(self, tmp_path: Path) -> None:
        subject = opened(tmp_path, PLAIN)
        found = check_leakage(subject)
        assert found.artefacts == (PICTURES,)
        assert stat.S_IMODE((subject.folder / PICTURES).stat().st_mode) == 0o600
        assert "original" not in json.dumps(found.as_dict()["figures"])
        (tmp_path / "none").mkdir()
        assert check_leakage(opened(tmp_path / "none", PLAIN, pictures=False)).artefacts == ()

    @pytest.mark.slow
    def test_the_command_makes_a_page_with_pictures(self, tmp_path: Path) -> None:
        path = opened(tmp_path, PLAIN).path
        done = CliRunner().invoke(command.app, ["audit", "leakage", str(path), "--no-inversion", "--json"])
        assert done.exit_code == 0, done.output
        page = Path(json.loads(done.stdout)["page"]).read_text()
        assert "data:image/png" in page
        assert "Imprint layer" in page


@pytest.mark.slow
class TestInversion:
    def test_gradient_inversion_sees_an_unprotected_batch_and_nothing_of_a_private_one(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = check_leakage(opened(tmp_path, PLAIN, inversion=True))
        with capsys.disabled():
            print("\nrecords recovered from one update of digits, MLP 32 (PSNR of 30 dB and more)")
            for attack in ("imprint", "inversion"):
                for form, one in found.figures[attack]["forms"].items():
                    print(f"{attack:10} {form:8} {one['recovered']:3} of {one['records']:3}  median {one['psnr_median']} dB  best {one['psnr_best']} dB")  # fmt: skip
        forms = found.figures["inversion"]["forms"]
        assert forms["plain"]["psnr_best"] > 25
        assert forms["plain"]["psnr_median"] > found.figures["chance"] + 5
        assert forms["private"]["psnr_best"] < found.figures["chance"] + 2
        assert forms["masked"]["recovered"] == 0
