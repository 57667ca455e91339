"""The authority's keys and record: once a session, through crashes, in files that nobody else may read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.core.errors import IntegrityError, StorageError
from cloister.privacy.homomorphic import Vault
from cloister.privacy.homomorphic.vault import KEYS, RECORD_FILE
from cloister.privacy.manifest import Manifest, cohort_digest
from parties import Parties

SITES = ["site-0", "site-1", "site-2"]
PARTIES = Parties()

COHORT = cohort_digest([f"site-{number}" for number in range(4)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "authority"
    Vault.create(path).close()
    return path


def session(vault: Vault, serial: int = 1, run: str = "run", **changes: object) -> Manifest:
    key = vault.issue(run, serial, COHORT, "bfv").public.key_id
    return PARTIES.manifest(key, serial=serial, run=run, **changes)


def refusal(folder: Path) -> str:
    with pytest.raises(IntegrityError) as refused:
        Vault.open(folder)
    return refused.value.code


def keys(folder: Path) -> list[Path]:
    return sorted((folder / KEYS).iterdir())


def test_key_and_record_are_for_their_owner_alone(folder: Path) -> None:
    vault = Vault.open(folder)
    vault.issue("run", 1, COHORT, "bfv")
    (key,) = keys(folder)
    modes = [path.stat().st_mode & 0o777 for path in (folder, folder / KEYS, key, folder / RECORD_FILE)]
    assert modes == [0o700, 0o700, 0o600, 0o600]
    vault.close()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
@pytest.mark.parametrize("which", ["key", "record"])
def test_a_file_that_others_may_read_is_refused(folder: Path, which: str, mode: int) -> None:
    vault = Vault.open(folder)
    vault.issue("run", 1, COHORT, "bfv")
    vault.close()
    path = keys(folder)[0] if which == "key" else folder / RECORD_FILE
    path.chmod(mode)
    assert refusal(folder) == "authority-key"
    path.chmod(0o600)
    Vault.open(folder).close()


def test_a_key_comes_back_after_a_restart(folder: Path) -> None:
    vault = Vault.open(folder)
    manifest = session(vault)
    before = vault.find(manifest)
    vault.close()
    vault = Vault.open(folder)
    assert vault.find(manifest) == before
    assert vault.issue("run", 1, COHORT, "bfv") == before
    vault.close()


def test_a_spent_session_has_no_key_and_is_spent_after_a_restart_too(folder: Path) -> None:
    vault = Vault.open(folder)
    manifest = session(vault)
    vault.spend(manifest, names=SITES)
    assert keys(folder) == []
    vault.close()
    vault = Vault.open(folder)
    for again in (
        lambda: vault.spend(manifest, names=SITES),
        lambda: vault.find(manifest),
        lambda: vault.issue("run", 1, COHORT, "bfv"),
    ):
        with pytest.raises(IntegrityError) as refused:
            again()
        assert refused.value.code == "decryption-twice"
    vault.close()


def test_the_record_says_what_was_decrypted(folder: Path) -> None:
    vault = Vault.open(folder)
    manifest = session(vault, serial=5)
    vault.spend(manifest, names=SITES)
    vault.close()
    (line,) = (folder / RECORD_FILE).read_text().splitlines()
    found = json.loads(line)
    assert {name: found[name] for name in ("run", "serial", "round", "sites", "size")} == {
        "run": "run",
        "serial": 5,
        "round": 1,
        "sites": 3,
        "size": 9000,
    }
    assert found["manifest"] == manifest.digest.hex()


def test_a_key_restored_from_a_copy_does_not_come_back_to_life(folder: Path) -> None:
    vault = Vault.open(folder)
    manifest = session(vault)
    (path,) = keys(folder)
    copy = path.read_bytes()
    vault.spend(manifest, names=SITES)
    vault.close()
    path.write_bytes(copy)
    path.chmod(0o600)
    vault = Vault.open(folder)
    assert keys(folder) == []
    with pytest.raises(IntegrityError) as refused:
        vault.find(manifest)
    assert refused.value.code == "decryption-twice"
    vault.close()


def test_a_last_line_that_a_crash_cut_off_is_removed_and_others_stand(folder: Path) -> None:
    vault = Vault.open(folder)
    vault.spend(session(vault), names=SITES)
    vault.close()
    path = folder / RECORD_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"run": "run", "ser')
    vault = Vault.open(folder)
    assert path.read_bytes() == whole
    assert vault.decrypted == 1
    vault.spend(session(vault, serial=2), names=SITES)
    vault.close()
    assert len(path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    "line", [b"x\n", b"{}\n", b'{"run": "a"}\n', b"[]\n", b'{"run": "a", "serial": "x"}\n']
)
def test_a_record_with_a_broken_line_is_refused(folder: Path, line: bytes) -> None:
    (folder / RECORD_FILE).write_bytes(line)
    assert refusal(folder) == "authority-record"


def test_a_folder_without_its_record_is_refused(folder: Path) -> None:
    """Without it nothing says what was decrypted already."""
    (folder / RECORD_FILE).unlink()
    assert refusal(folder) == "authority-record"


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "authority-key"


def test_a_folder_is_made_once(folder: Path) -> None:
    with pytest.raises(IntegrityError) as refused:
        Vault.create(folder)
    assert refused.value.code == "authority-key"


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        Vault.create(tmp_path / "file" / "authority")


def test_one_process_at_a_time_has_it_open(folder: Path) -> None:
    vault = Vault.open(folder)
    assert refusal(folder) == "authority-busy"
    code = f"from cloister.privacy.homomorphic import Vault; from pathlib import Path; Vault.open(Path({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another process has" in done.stderr
    vault.close()
    Vault.open(folder).close()


@pytest.mark.parametrize("damage", [b"", b"x", b"\0" * 5000])
def test_a_key_file_that_holds_no_key_is_refused(folder: Path, damage: bytes) -> None:
    vault = Vault.open(folder)
    vault.issue("run", 1, COHORT, "bfv")
    vault.close()
    keys(folder)[0].write_bytes(damage)
    assert refusal(folder) == "authority-key"


def test_the_oldest_key_that_waits_goes_when_there_are_too_many(tmp_path: Path) -> None:
    Vault.create(tmp_path / "a").close()
    vault = Vault(tmp_path / "a", most_keys=2)
    first, *rest = [session(vault, serial) for serial in (1, 2, 3)]
    assert (vault.waiting, len(keys(tmp_path / "a"))) == (2, 2)
    with pytest.raises(IntegrityError) as refused:
        vault.find(first)
    assert refused.value.code == "ciphertext-key"
    assert [vault.find(manifest).public.serial for manifest in rest] == [2, 3]
    vault.close()


def test_forgotten_keys_are_gone_from_the_disk_and_new_ones_differ(folder: Path) -> None:
    vault = Vault.open(folder)
    manifest = session(vault)
    session(vault, 2)
    assert vault.forget() == 2
    assert keys(folder) == []
    for use in (lambda: vault.find(manifest), lambda: vault.spend(manifest, names=SITES)):
        with pytest.raises(IntegrityError) as refused:
            use()
        assert refused.value.code == "ciphertext-key"
    assert session(vault).key != manifest.key
    vault.close()


def test_what_cannot_be_recorded_is_not_spent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = Vault.open(folder)
    manifest = session(vault)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError):
            vault.spend(manifest, names=SITES)
    assert (folder / RECORD_FILE).read_bytes() == b""
    vault.find(manifest)
    vault.spend(manifest, names=SITES)
    vault.close()


def test_a_session_has_a_key_of_one_scheme() -> None:
    vault = Vault.in_memory()
    vault.issue("run", 1, COHORT, "bfv")
    with pytest.raises(IntegrityError) as refused:
        vault.issue("run", 1, COHORT, "ckks")
    assert refused.value.code == "ciphertext-key"


def test_a_secret_key_is_not_printed() -> None:
    key = Vault.in_memory().issue("run", 1, COHORT, "bfv")
    assert "secret" not in repr(key)


def test_a_run_s_name_does_not_leave_the_folder(folder: Path) -> None:
    vault = Vault.open(folder)
    vault.issue("../../../elsewhere", 1, COHORT, "bfv")
    assert len(keys(folder)) == 1
    vault.close()


MODEL, OTHER = "3" * 64, "4" * 64
ALL = [*SITES, "site-3"]


def opened(vault: Vault, serial: int, names: list[str], **changes: object) -> str:
    """Return "" or the code with which it was refused."""
    try:
        vault.spend(session(vault, serial, **changes), names=names)  # type: ignore[arg-type]
    except IntegrityError as error:
        return error.code
    return ""


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(
    ("names", "changes", "code"),
    [
        (ALL, {}, ""),  # the server was resumed and lost the sum
        (ALL[::-1], {}, ""),
        (SITES, {}, "decryption-round"),  # the difference would be what site-3 sent
        ([*SITES, "site-4"], {}, "decryption-round"),
        ([*ALL, "site-4"], {}, "decryption-round"),
        (ALL, {"model": OTHER}, "decryption-round"),
        (SITES, {"model": OTHER}, "decryption-round"),
        (SITES, {"group": 1}, "decryption-round"),
        (SITES, {"group": 1, "model": OTHER}, "decryption-round"),
        (SITES, {"round_number": 4}, "decryption-round"),  # of the same model
        (ALL, {"round_number": 4}, ""),
        (SITES, {"round_number": 4, "model": OTHER}, ""),
        (ALL, {"round_number": 2}, "decryption-round"),
        (ALL, {"round_number": 2, "model": OTHER}, "decryption-round"),
        (SITES, {"kind": "evaluate"}, ""),
        (SITES, {"run": "another"}, ""),
    ],
)
def test_no_two_sums_of_one_round_or_model_are_opened_over_different_sites(
    folder: Path, names: list[str], changes: dict[str, object], code: str, restarted: bool
) -> None:
    vault = Vault.open(folder)
    assert opened(vault, 1, ALL, round_number=3) == ""
    if restarted:
        vault.close()
        vault = Vault.open(folder)
    record = (folder / RECORD_FILE).read_bytes()
    assert opened(vault, 2, names, **{"round_number": 3, **changes}) == code
    lines = (folder / RECORD_FILE).read_bytes().removeprefix(record).splitlines()
    assert (len(lines), vault.waiting) == ((1, 0) if not code else (0, 1))
    vault.close()


def test_a_model_of_rounds_ago_is_not_opened_over_other_sites(folder: Path) -> None:
    vault = Vault.open(folder)
    assert opened(vault, 1, ALL) == ""
    assert opened(vault, 2, SITES, round_number=2, model=OTHER) == ""
    vault.close()
    vault = Vault.open(folder)
    assert opened(vault, 3, SITES, round_number=3) == "decryption-round"
    assert opened(vault, 4, ALL, round_number=3, model=OTHER) == "decryption-round"
    assert opened(vault, 5, ALL, round_number=3) == ""
    vault.close()


def test_a_vault_in_memory_refuses_as_well() -> None:
    vault = Vault.in_memory()
    assert opened(vault, 1, ALL) == ""
    assert opened(vault, 2, SITES) == "decryption-round"
    assert opened(vault, 3, ALL) == ""


def test_a_round_is_in_the_record_before_it_is_opened(folder: Path) -> None:
    vault = Vault.open(folder)
    assert opened(vault, 1, ALL) == ""
    (line,) = (folder / RECORD_FILE).read_text().splitlines()
    assert json.loads(line)["model"] == MODEL
    assert json.loads(line)["names"] == cohort_digest(ALL)
    assert "site-3" not in line
    vault.close()


def test_a_record_of_an_older_version_loads_and_its_rounds_are_not_opened_again(folder: Path) -> None:
    old = {
        "run": "run",
        "serial": 1,
        "round": 2,
        "kind": "train",
        "group": 0,
        "sites": 4,
        "size": 9000,
        "key": "k",
    }
    lines = [{**old, "round": number, "serial": number} for number in (1, 2)]
    (folder / RECORD_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    vault = Vault.open(folder)
    assert vault.decrypted == 2
    assert opened(vault, 3, ALL, round_number=1) == "decryption-round"
    assert opened(vault, 4, ALL, round_number=2) == "decryption-round"
    assert opened(vault, 5, ALL, round_number=3) == ""
    assert opened(vault, 6, ALL, round_number=1, kind="evaluate") == ""
    vault.close()
