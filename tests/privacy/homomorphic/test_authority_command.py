"""``cloister authority``: the operator's commands, and the service as a process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cloister.core.command import run
from cloister.privacy.authority.client import RemoteAuthority
from cloister.privacy.authority.folder import CERTIFICATE, CONSORTIUM, IDENTITY, load_identity
from cloister.privacy.authority.tls import SERVER, Credentials
from cloister.privacy.homomorphic import Vault
from cloister.privacy.identity import Role
from parties import Parties

COHORT = "c" * 64


@pytest.fixture
def parties() -> Parties:
    return Parties()


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    status = run(["authority", *arguments, "--json"])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return status, found


@pytest.fixture
def folder(tmp_path: Path, parties: Parties, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "authority"
    status, found = told(capsys, "init", str(path))
    assert status == 0
    public = bytes.fromhex(str(found["public_key"]))
    (path / CERTIFICATE).write_bytes(parties.authority.certify("keeper", Role.AUTHORITY, public))
    (path / CONSORTIUM).write_bytes(parties.consortium.certificate)
    return path


def test_init_makes_a_folder_whose_secrets_are_its_owner_s(folder: Path) -> None:
    secret = [folder / IDENTITY, folder / "decrypted.jsonl", *(folder / "tls").glob("*.key")]
    assert len(secret) == 4
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_init_says_what_is_next_and_prints_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["authority", "init", str(tmp_path / "a"), "--host", "keys.example.org"]) == 0
    said = capsys.readouterr().out
    assert "cloister authority run" in said
    assert "PRIVATE" not in said


def test_init_makes_a_folder_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = told(capsys, "init", str(folder))
    assert (status, found["error"]["code"]) == (7, "authority-key")  # type: ignore[index]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        ("no certificate", "authority-identity"),
        ("another key's", "authority-identity"),
        ("a site's", "identity"),
        ("another consortium's", "identity"),
        ("a key for all", "authority-key"),
        ("no key", "authority-key"),
    ],
)
def test_run_needs_an_authority_s_own_certificate(
    folder: Path, parties: Parties, capsys: pytest.CaptureFixture[str], spoil: str, code: str
) -> None:
    own = load_identity(folder / IDENTITY, folder / CERTIFICATE, folder / CONSORTIUM)[0].member.public_key
    if spoil == "no certificate":
        (folder / CERTIFICATE).unlink()
    elif spoil == "another key's":
        (folder / CERTIFICATE).write_bytes(parties.keeper.certificate)
    elif spoil == "a site's":
        (folder / CERTIFICATE).write_bytes(parties.authority.certify("keeper", Role.SITE, own))
    elif spoil == "another consortium's":
        (folder / CONSORTIUM).write_bytes(Parties().consortium.certificate)
    elif spoil == "a key for all":
        (folder / IDENTITY).chmod(0o644)
    else:
        (folder / IDENTITY).write_bytes(b"x")
    status, found = told(capsys, "run", str(folder), "--listen", "127.0.0.1:0")
    assert (status, found["error"]["code"]) == (7, code)  # type: ignore[index]


def test_rotate_destroys_the_keys_that_wait(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vault = Vault.open(folder)
    vault.issue("run", 1, COHORT, "bfv")
    vault.close()
    assert told(capsys, "rotate", str(folder)) == (0, {"folder": str(folder), "forgotten": 1})
    assert told(capsys, "rotate", str(folder)) == (0, {"folder": str(folder), "forgotten": 0})


def test_rotate_is_refused_while_the_authority_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vault = Vault.open(folder)
    status, found = told(capsys, "rotate", str(folder))
    assert (status, found["error"]["code"]) == (7, "authority-busy")  # type: ignore[index]
    vault.close()


def test_tls_makes_new_certificates(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = Credentials.read(folder / "tls", SERVER)
    status, _ = told(capsys, "tls", str(folder), "--host", "keys.example.org")
    after = Credentials.read(folder / "tls", SERVER)
    assert status == 0
    assert before.root != after.root
    assert told(capsys, "tls", str(tmp_path))[0] == 2


def listening(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if "listens on" in line:
            return line.split()[-1]
    raise AssertionError("it ended")


def test_the_service_runs_stops_and_remembers(folder: Path, parties: Parties) -> None:
    credentials = Credentials.read(folder / "tls", SERVER)
    command = [sys.executable, "-c", "from cloister.core.command import main; main()", "authority", "run"]
    command += [str(folder), "--listen", "127.0.0.1:0", "--json"]
    request = plain = None
    for decrypted in (1, 0):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
        )
        try:
            with RemoteAuthority(listening(process), credentials) as client:
                if request is None:
                    session = parties.session(client, size=100)  # type: ignore[arg-type]
                    request, plain = session.request(), session.plain()
                    assert np.array_equal(client.decrypt(request), plain)
                from cloister.core.errors import IntegrityError

                with pytest.raises(IntegrityError) as refused:
                    client.decrypt(request)
                assert refused.value.code == "decryption-twice"
            process.send_signal(signal.SIGTERM)
            out, said = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, said
        assert json.loads(out)["decrypted"] == decrypted
        assert "PRIVATE" not in said
        time.sleep(0.1)
    assert len((folder / "decrypted.jsonl").read_text().splitlines()) == 1
