"""Sums under a key of all sites (``threshold-bfv``) over real processes, and what is left of them afterwards."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from consortium import deployed
from joint import needs_openfhe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), needs_openfhe]

HOSPITALS = ("cleveland", "hungarian", "long-beach-va")


def test_a_private_job_under_a_joint_key_from_submission_to_audit(tmp_path: Path) -> None:
    with deployed(tmp_path, HOSPITALS) as one:
        for site in HOSPITALS:
            policy = one.site(site) / "policy.toml"
            allowed = policy.read_text().replace('["masked"]', '["threshold-bfv"]')
            policy.write_text(allowed)
        text = one.write_heart(rounds=2).read_text()
        assert "[aggregation]" not in text
        run = one.submit_file(f'{text}[aggregation]\nprotection = "threshold-bfv"\n')
        assert one.ended(run)["state"] == "done", one.work_log(run)
        assert [event["answered"] for event in one.events(run) if event["kind"] == "round"] == [3, 3]
        said = one.run("audit", "transcript", str(one.server / "runs" / run), "--json").stdout
        audit = json.loads(said)
        assert (audit["verdict"], audit["protection"]) == ("passed", "threshold-bfv")
        assert audit["decryption"]["holder"] == "all sites of a session together"
        for site in HOSPITALS:
            one.run("site", "log", str(one.site(site)), "--verify")
            log = one.run("site", "log", str(one.site(site)), "--json").stdout
            assert "encrypted (threshold-bfv)" in log
            for path in (one.site(site) / "state").glob("sessions*.json"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                assert "secret" not in path.read_text()
