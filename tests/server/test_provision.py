"""``cloister provision``: a consortium's kits, each its member's alone, and certificates that do what they say."""

import json
import re
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from cloister.client.gate.policy import read_policy
from cloister.client.site_config import load_site
from cloister.core.command import run
from cloister.core.errors import IntegrityError, StorageError, UsageError
from cloister.privacy.authority.folder import CERTIFICATE, CONSORTIUM, IDENTITY, load_identity
from cloister.privacy.authority.tls import AUTHORITY, SERVER, Credentials
from cloister.privacy.homomorphic.vault import Vault
from cloister.privacy.identity import Purpose, Role
from cloister.privacy.identity.kit import load_kit
from cloister.server.deployment.settings import load_server
from consortia import FILE, client_context, make_consortium, server_context

KITS = {
    ("server", Role.SERVER),
    ("authority", Role.AUTHORITY),
    ("sites/cleveland", Role.SITE),
    ("sites/hungarian", Role.SITE),
    ("users/ada", Role.USER),
    ("users/bob", Role.USER),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("consortium") / "hospitals"
    make_consortium(out)
    return out


@pytest.mark.parametrize(("name", "role"), sorted(KITS))
def test_every_kit_loads_as_its_member_s_and_nobody_else_s(made: Path, name: str, role: Role) -> None:
    kit = load_kit(made / "kits" / name, role)
    assert kit.identity.member.role is role
    for other in set(Role) - {role}:
        with pytest.raises(IntegrityError, match="is needed"):
            load_kit(made / "kits" / name, other)
    other_site = load_kit(made / "kits" / "sites" / "hungarian", Role.SITE)
    signature = kit.identity.sign(Purpose.JOB, b"x")
    other_site.consortium.member(kit.identity.certificate, role=role).check(Purpose.JOB, b"x", signature)
    assert kit.members().of(role)[kit.identity.name].identity == kit.identity.member.public_key.hex()


def test_a_member_that_enrols_by_itself_has_no_kit(made: Path) -> None:
    assert {path.name for path in (made / "kits" / "sites").iterdir()} == {"cleveland", "hungarian"}


def test_no_private_key_is_in_two_places_and_none_may_be_read_by_others(made: Path) -> None:
    secrets = [path for path in made.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert len({path.read_bytes() for path in secrets}) == len(secrets) == 2 + 2 + 2 + 1 + 2 * 3 + 2 * 2
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert {path.suffix for path in secrets} == {".key"}
    assert {path.stat().st_mode & 0o777 for path in made.rglob("*") if path.is_dir()} == {0o700}


def test_a_site_s_kit_is_what_its_config_and_flower_read(made: Path) -> None:
    folder = made / "kits" / "sites" / "cleveland"
    config = load_site(folder)
    assert (config.site.name, config.server.address) == ("cleveland", "localhost:8443")
    assert config.data["heart"].owner == "cleveland"
    assert config.data["heart"].options == {"data": "/srv/heart"}
    policy = read_policy(folder / "policy.toml").policy
    assert (policy.who.users, policy.allow) == ((), ())
    key = load_ssh_private_key((folder / "node.key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    server = load_kit(made / "kits" / "server", Role.SERVER)
    known = server.members().of(Role.SITE)["cleveland"].node_key
    assert known == public_key_to_bytes(key.public_key())


def test_the_server_s_kit_is_what_its_config_reads(made: Path) -> None:
    config = load_server(made / "kits" / "server")
    users = load_kit(made / "kits" / "server", Role.SERVER).members().of(Role.USER)
    assert {name: entry.roles for name, entry in users.items()} == {
        "ada": ["submit", "watch"],
        "bob": ["admin"],
    }
    assert config.server.superlink == "127.0.0.1:9092"
    assert config.authority is not None
    assert config.authority.address == "127.0.0.1:9443"


def test_the_authority_s_kit_is_one_that_its_command_runs_with(made: Path) -> None:
    folder = made / "kits" / "authority"
    who, _ = load_identity(folder / IDENTITY, folder / CERTIFICATE, folder / CONSORTIUM)
    assert who.name == "key-authority"
    Vault.open(folder).close()
    own = Credentials.read(folder / "tls", AUTHORITY)
    server = Credentials.read(made / "kits" / "server" / "authority", SERVER)
    assert own.root == server.root
    assert not (folder / "tls" / "server.key").exists()


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> tuple[str, bytes]:
    """Connect over the loopback: the peer's URI as the server sees it, and what the client read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seen: list[str] = []

        def answer() -> None:
            connection, _ = listener.accept()
            try:
                with server.wrap_socket(connection, server_side=True) as tls:
                    parsed = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
                    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
                    seen.extend(names.get_values_for_type(x509.UniformResourceIdentifier))
                    tls.sendall(b"ok")
            except (OSError, ssl.SSLError):
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname()) as plain,
                client.wrap_socket(plain, server_hostname=host) as tls,
            ):
                got = tls.recv(2)
        finally:
            thread.join()
    return (seen or [""])[0], got


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "fl.example.org"])
def test_a_member_reaches_the_server_by_each_of_its_names_and_is_told_apart(made: Path, host: str) -> None:
    kits = made / "kits"
    server = server_context(kits / "server")
    assert handshake(server, client_context(kits / "sites/cleveland"), host) == (
        "cloister:site:cleveland",
        b"ok",
    )
    assert handshake(server, client_context(kits / "users/ada"), host)[0] == "cloister:user:ada"


def test_a_stranger_a_wrong_name_and_a_site_that_poses_as_the_server_get_no_connection(
    made: Path, tmp_path: Path
) -> None:
    kits = made / "kits"
    server = server_context(kits / "server")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(server, client_context(kits / "sites/cleveland", own=False), "localhost")
    make_consortium(tmp_path / "other")
    stranger = client_context(tmp_path / "other/kits/sites/cleveland")
    stranger.load_verify_locations(kits / "users/ada/tls/root.pem")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(server, stranger, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, client_context(kits / "sites/cleveland"), "other.example.org")
    posing = server_context(kits / "sites/hungarian")
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(posing, client_context(kits / "sites/cleveland"), "localhost")


def test_the_same_file_again_makes_nothing_and_a_new_member_gets_a_kit(tmp_path: Path) -> None:
    first = make_consortium(tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*.key")}
    again = make_consortium(tmp_path / "a")
    assert (again.made, again.fingerprint, again.number) == ([], first.fingerprint, first.number)
    more = make_consortium(tmp_path / "a", FILE.replace('name = "bob"', 'name = "eve"'))
    assert [path.name for path in more.made] == ["eve"]
    assert more.left == ["user:bob"]
    assert {path: path.read_bytes() for path in before} == before
    server = load_kit(tmp_path / "a/kits/server", Role.SERVER)
    assert set(server.members().of(Role.USER)) == {"ada", "bob", "eve"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('name = "cleveland"', 'name = "../cleveland"'), "sites[0].name"),
        (('name = "ada"', 'name = ".."'), "should fit the pattern"),
        (('name = "hungarian"', 'name = "Cleveland"'), "'Cleveland' twice"),
        (('host = "localhost"', 'host = "localhost; }"'), "no host's name"),
        (('aliases = ["fl.example.org"]', 'alias = ["a"]'), "did you mean 'aliases'"),
        (("days = 30", "days = 0"), "at least 1"),
        (('roles = ["admin"]', 'roles = ["root"]'), "roles"),
        (("csr = true", 'csr = true\ndata = { heart = { task = "heart" } }'), "enrols by itself"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], says: str
) -> None:
    assert change[0] in FILE
    path = tmp_path / "consortium.toml"
    path.write_text(FILE.replace(*change), encoding="utf-8")
    assert run(["provision", str(path), "--out", str(tmp_path / "out"), "--json"]) == 3
    assert says in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_the_command_makes_it_and_prints_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "consortium.toml"
    path.write_text(FILE, encoding="utf-8")
    assert run(["provision", str(path), "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr().out
    told = json.loads(printed)
    assert len(told["made"]) == 6
    assert told["awaited"] == ["site:switzerland"]
    assert "PRIVATE" not in printed


def test_a_kit_that_a_killed_command_left_half_made_is_made_anew_and_its_certificates_taken_back(
    tmp_path: Path,
) -> None:
    make_consortium(tmp_path / "a")
    kit = tmp_path / "a/kits/sites/cleveland"
    before = load_kit(kit, Role.SITE).identity.certificate
    kit.rename(kit.parent / ".cleveland.making")
    assert make_consortium(tmp_path / "a").made == [kit]
    assert load_kit(kit, Role.SITE).identity.certificate != before
    other = load_kit(tmp_path / "a/kits/sites/hungarian", Role.SITE)
    with pytest.raises(IntegrityError, match="taken back"):
        other.consortium.member(before, role=Role.SITE)


def test_a_folder_that_others_can_change_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "shared"
    out.mkdir()
    out.chmod(0o777)
    with pytest.raises(UsageError, match="others than you"):
        make_consortium(out)
    assert list(out.iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(StorageError):
        make_consortium(tmp_path / "link")


def test_a_kit_is_refused_when_its_place_is_taken_by_a_link(tmp_path: Path) -> None:
    """What hides in a member's place is neither followed nor written over."""
    make_consortium(tmp_path / "a")
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "a/kits/users/eve").symlink_to(victim)
    with pytest.raises(UsageError, match="exists"):
        make_consortium(tmp_path / "a", FILE.replace('name = "bob"', 'name = "eve"'))
    assert list(victim.iterdir()) == []


def test_an_authority_that_a_killed_command_left_half_made_is_made_anew(tmp_path: Path) -> None:
    make_consortium(tmp_path / "a")
    (tmp_path / "b").mkdir(mode=0o700)
    (tmp_path / "a/authority-offline").rename(tmp_path / "b/.authority-offline.making")
    made = make_consortium(tmp_path / "b")
    assert len(made.made) == 6
    assert not (tmp_path / "b/.authority-offline.making").exists()


def test_the_file_in_the_guide_is_accepted(repository: Path, tmp_path: Path) -> None:
    text = (repository / "docs/deploy.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert make_consortium(tmp_path / "a", block).awaited == ["site:hungarian"]
