"""Enrolment without private keys on the way, renewal, revocation: who can pass for whom."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.client.site_config import load_site
from cloister.core.command import run
from cloister.core.errors import CloisterError, IntegrityError, SpecError, UsageError
from cloister.privacy.identity import ConsortiumAuthority, Role
from cloister.privacy.identity.enrolling import ask, complete
from cloister.privacy.identity.enrolment import accept, new_request, read_request
from cloister.privacy.identity.keys import MemberKeys
from cloister.privacy.identity.kit import load_kit
from cloister.privacy.identity.register import Register, take_document
from cloister.server.provision.membership import add, members_table, renew, revoke
from consortia import FILE, make_consortium

Told = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    make_consortium(
        tmp_path / "hospitals", FILE + '[[users]]\nname = "eve"\nroles = ["submit"]\ncsr = true\n'
    )
    return tmp_path / "hospitals"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    def tell(*arguments: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        status = run([*map(str, arguments), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return tell


@pytest.fixture
def site(tmp_path: Path, out: Path) -> Path:
    """A site's folder with keys that it made itself, and no certificate yet."""
    ask(tmp_path / "own", "switzerland", Role.SITE)
    return tmp_path / "own"


def refused(code: str, call: Callable[[], object]) -> str:
    with pytest.raises(CloisterError) as found:
        call()
    assert found.value.code == code, found.value.message
    return found.value.message


def test_a_site_enrols_by_the_commands_and_its_keys_never_leave_it(
    tmp_path: Path, out: Path, told: Told
) -> None:
    own = tmp_path / "own"
    status, asked = told("site", "enrol", own, "--name", "switzerland")
    assert status == 0
    secrets = {path: path.read_bytes() for path in own.rglob("*.key")}
    assert {str(path.relative_to(own)) for path in secrets} == {"identity.key", "node.key", "tls/own.key"}
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert b"PRIVATE" not in (own / "request.json").read_bytes()
    status, granted = told(
        "provision", "add", out, own / "request.json", "--fingerprint", asked["fingerprint"]
    )
    assert status == 0
    assert b"PRIVATE" not in Path(granted["grant"]).read_bytes()
    fingerprint = load_kit(out / "kits/server", Role.SERVER).consortium.fingerprint
    status, done = told("site", "enrol", own, "--grant", granted["grant"], "--fingerprint", fingerprint)
    assert (status, done["member"]) == (0, "site:switzerland")
    kit = load_kit(own, Role.SITE)
    assert kit.identity.name == "switzerland"
    assert {path: path.read_bytes() for path in own.rglob("*.key")} == secrets
    known = load_kit(out / "kits/server", Role.SERVER).members().of(Role.SITE)
    assert known["switzerland"].node_key == MemberKeys.read(own, Role.SITE).public.node
    with pytest.raises(SpecError, match="data"):  # its own people say which data it has
        load_site(own)
    (own / "site.toml").write_text(
        (own / "site.toml").read_text(encoding="utf-8") + '[data.heart]\ntask = "heart"\n', encoding="utf-8"
    )
    assert load_site(own).server.address == "localhost:8443"


def test_a_user_enrols_in_the_same_way(tmp_path: Path, out: Path, told: Told) -> None:
    own = tmp_path / "eve"
    assert told("kit", "enrol", own, "--name", "eve")[0] == 0
    _, granted = told("provision", "add", out, own / "request.json")
    assert told("kit", "enrol", own, "--grant", granted["grant"])[0] == 0
    assert load_kit(own, Role.USER).members().of(Role.USER)["eve"].roles == ["submit"]
    assert (own / "user.toml").is_file()
    status, shown = told("kit", "show", own)
    assert (status, shown["role"], shown["name"]) == (0, "user", "eve")


def test_a_grant_for_another_member_or_other_keys_changes_nothing(
    tmp_path: Path, out: Path, site: Path
) -> None:
    grant = add(out, site / "request.json").grant
    assert grant is not None
    other = tmp_path / "other"
    ask(other, "hungarian", Role.SITE)
    twin = tmp_path / "twin"
    ask(twin, "switzerland", Role.SITE)
    for folder in (other, twin):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        refused("grant", lambda folder=folder: complete(folder, grant))  # type: ignore[misc]
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    refused("grant", lambda: complete(site, grant, role=Role.USER))
    refused("grant", lambda: complete(site, grant, fingerprint="00" * 32))
    complete(site, grant)


def test_each_certificate_in_a_grant_must_be_of_the_keys_here(tmp_path: Path, out: Path, site: Path) -> None:
    """The authority itself signs a grant in which one certificate is of another member's keys."""
    from cloister.privacy.identity import Purpose
    from cloister.privacy.identity.documents import sealed
    from cloister.privacy.identity.enrolment import Grant
    from cloister.server.provision.making import opened

    grant = add(out, site / "request.json").grant
    assert grant is not None
    content = json.loads(grant.read_bytes())["content"]
    kit = out / "kits/sites/cleveland"
    twin = MemberKeys.generate(Role.SITE).public  # other keys, certified under the same name
    assert twin.tls is not None
    end = datetime.now(UTC) + timedelta(days=1)
    with opened(out) as (offline, _):
        changes = {
            "identity": [
                (kit / "identity.der").read_bytes(),
                offline.identities.certify("switzerland", Role.SITE, twin.identity),
            ],
            "tls": [
                (kit / "tls/own.pem").read_bytes(),
                offline.tls.certify("switzerland", Role.SITE, twin.tls, end=end).public_bytes(Encoding.PEM),
            ],
            "root": [(out / "kits/authority/tls/root.pem").read_bytes()],
            "members": [(kit / "members.json").read_bytes().replace(b"switzerland", b"cleveland")],
            "name": [b"cleveland"],
        }
        listed = json.loads(content["members"])["content"]
        for change in (
            {"identity": twin.identity.hex()},
            {"node": (twin.node or b"").decode()},
            {"name": "x"},
        ):
            entries = [
                entry | (change if entry["name"] == "switzerland" else {}) for entry in listed["members"]
            ]
            other = Register.model_validate(listed | {"members": entries})
            changes["members"].append(
                sealed(other, lambda signed: offline.identities.sign(Purpose.REGISTER, signed))
            )
        for key, values in changes.items():
            for value in values:
                text = base64.b64encode(value).decode() if key == "identity" else value.decode()
                made = Grant.model_validate(content | {key: text})
                raw = sealed(made, lambda signed: offline.identities.sign(Purpose.GRANT, signed))
                with pytest.raises(IntegrityError):
                    accept(site, raw)
                assert not (site / "identity.der").exists()
    accept(site, grant.read_bytes())


def test_a_grant_or_request_with_a_changed_byte_is_refused(out: Path, site: Path) -> None:
    grant = add(out, site / "request.json").grant
    assert grant is not None
    for raw, read in (
        (grant.read_bytes(), lambda one: accept(site, one)),
        ((site / "request.json").read_bytes(), read_request),
    ):
        text = raw.decode()
        changed = [
            text.replace('"switzerland"', '"cleveland"'),
            text.replace('"site"', '"user"'),
            text.replace('"version": 1', '"version": 2'),
            text.replace('"name"', '"extra": 1, "name"', 1),
            text[:-3],
            "[" * 100_000,
            "{}",
            text.replace('"version": 1', '"version": NaN'),
            text.replace("-----BEGIN", "\\ud800-----BEGIN"),
            text + " " * (1 << 23),
        ]
        for one in changed:
            assert one != text
            with pytest.raises(IntegrityError):
                read(one.encode())


@pytest.mark.parametrize("wrong", ["node of another", "tls of another", "no node", "tls P-384", "RSA node"])
def test_a_request_needs_proof_of_every_key(tmp_path: Path, wrong: str) -> None:
    """Signed by the identity key as a whole, and still refused."""
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import PublicFormat

    from cloister.privacy.identity import Identity, Purpose
    from cloister.privacy.identity.documents import sealed
    from cloister.privacy.identity.enrolment import _RequestContent
    from cloister.privacy.identity.members import Member

    mine, other = MemberKeys.generate(Role.SITE), MemberKeys.generate(Role.SITE)
    content = json.loads(new_request("x", Role.SITE, mine)[0])["content"]
    theirs = json.loads(new_request("x", Role.SITE, other)[0])["content"]
    if wrong == "node of another":
        content |= {"node": theirs["node"], "node_proof": theirs["node_proof"]}
    elif wrong == "tls of another":
        signed = x509.load_pem_x509_csr(theirs["tls"].encode()).public_bytes(Encoding.DER)
        spoilt = signed[:-4] + bytes([signed[-4] ^ 1]) + signed[-3:]
        pem = base64.encodebytes(spoilt).decode()
        content["tls"] = f"-----BEGIN CERTIFICATE REQUEST-----\n{pem}-----END CERTIFICATE REQUEST-----\n"
    elif wrong == "no node":
        content |= {"node": None, "node_proof": None}
    elif wrong == "tls P-384":
        assert mine.node is not None
        built = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        content["tls"] = built.sign(mine.node, SHA256()).public_bytes(Encoding.PEM).decode()
    else:
        key = rsa.generate_private_key(65537, 2048).public_key()
        content["node"] = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    member = Member(name="x", role=Role.SITE, public_key=mine.public.identity)
    signer = Identity(member=member, certificate=b"", key=mine.identity)
    raw = sealed(
        _RequestContent.model_validate(content), lambda signed: signer.sign(Purpose.ENROLMENT, signed)
    )
    with pytest.raises(IntegrityError) as found:
        read_request(raw)
    assert found.value.code in {"enrolment", "kit-key"}


def test_only_who_is_meant_to_enrol_is_granted(tmp_path: Path, out: Path, site: Path) -> None:
    for name, says in (("cleveland", "a kit is made"), ("nobody", "has no site")):
        ask(tmp_path / name, name, Role.SITE)
        assert says in refused("usage", lambda name=name: add(out, tmp_path / name / "request.json"))  # type: ignore[misc]
    refused("enrolment", lambda: add(out, site / "request.json", fingerprint="ab" * 32))
    add(out, site / "request.json")
    add(out, site / "request.json")  # the same again
    ask(tmp_path / "twin", "switzerland", Role.SITE)
    assert "other keys" in refused("usage", lambda: add(out, tmp_path / "twin/request.json"))
    for name in ("../x", "", "a/b", "a\n", "x" * 65, ".x"):
        with pytest.raises(UsageError, match="no name of a member"):
            ask(tmp_path / "bad", name, Role.SITE)


def test_a_key_is_certified_for_one_member_only(tmp_path: Path, out: Path) -> None:
    """Ada's own TLS and identity keys under another name; Cleveland's node key at another site."""
    ada = MemberKeys.read(out / "kits/users/ada", Role.USER)
    (tmp_path / "request.json").write_bytes(new_request("eve", Role.USER, ada)[0])
    assert "certified for user 'ada'" in refused("key-known", lambda: add(out, tmp_path / "request.json"))
    fresh, cleveland = (
        MemberKeys.generate(Role.SITE),
        MemberKeys.read(out / "kits/sites/cleveland", Role.SITE),
    )
    keys = MemberKeys(identity=fresh.identity, tls=fresh.tls, node=cleveland.node)
    (tmp_path / "request.json").write_bytes(new_request("switzerland", Role.SITE, keys)[0])
    assert "node key" in refused("key-known", lambda: add(out, tmp_path / "request.json"))


def test_a_revoked_member_is_refused_by_all_who_have_the_list_and_stays_out_with_its_keys(
    tmp_path: Path, out: Path, site: Path
) -> None:
    add(out, site / "request.json")
    gone = out / "kits/sites/cleveland"
    certificate = load_kit(gone, Role.SITE).identity.certificate
    node = MemberKeys.read(gone, Role.SITE).public.node
    number = revoke(out, "cleveland", "key-compromise").number
    for name, role in (("server", Role.SERVER), ("sites/hungarian", Role.SITE), ("users/ada", Role.USER)):
        kit = load_kit(out / "kits" / name, role)
        assert "taken back" in refused(
            "identity-revoked",
            lambda kit=kit: kit.consortium.member(certificate, role=Role.SITE),  # type: ignore[misc]
        )
        assert "cleveland" not in kit.members().of(Role.SITE)
        assert kit.members().number == number
    refused("identity-revoked", lambda: load_kit(gone, Role.SITE))
    revoked = json.loads((out / "public/revoked.json").read_bytes())["content"]
    assert revoked["nodes"] == [node.decode() if node else ""]
    crl = x509.load_pem_x509_crl((out / "kits/server/tls/crl.pem").read_bytes())
    tls = x509.load_pem_x509_certificate((gone / "tls/own.pem").read_bytes())
    entry = crl.get_revoked_certificate_by_serial_number(tls.serial_number)
    assert entry is not None
    assert (
        entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
        == x509.ReasonFlags.key_compromise
    )
    assert len(list(crl)) == 1
    refused("usage", lambda: revoke(out, "cleveland", "left"))
    revoke(out, "site:switzerland", "left")
    assert "taken back" in refused("key-known", lambda: add(out, site / "request.json"))


def test_an_older_list_is_refused_by_a_kit_and_a_newer_one_taken(
    tmp_path: Path, out: Path, told: Told
) -> None:
    kit, public = out / "kits/sites/hungarian", out / "public"
    old = {name: (public / name).read_bytes() for name in ("members.json", "revoked.json")}
    old_crl = (public / "crl.pem").read_bytes()
    before = {name: (kit / name).read_bytes() for name in old}
    revoke(out, "ada", "left")
    consortium = load_kit(kit, Role.SITE).consortium
    for raw in old.values():
        refused("document-old", lambda raw=raw: take_document(kit, raw, consortium))  # type: ignore[misc]
    for name, raw in before.items():
        (kit / name).write_bytes(raw)
    assert "ada" in load_kit(kit, Role.SITE).members().of(Role.USER)
    assert told("kit", "update", kit, public / "members.json", public / "revoked.json")[0] == 0
    assert "ada" not in load_kit(kit, Role.SITE).members().of(Role.USER)
    server = out / "kits/server"
    (tmp_path / "old.pem").write_bytes(old_crl)
    status, found = told("kit", "update", server, tmp_path / "old.pem")
    assert (status, found["error"]["code"]) == (7, "document-old")
    assert told("kit", "update", server, public / "crl.pem")[0] == 0


def test_lists_of_another_consortium_or_for_another_purpose_are_refused(
    tmp_path: Path, out: Path, told: Told
) -> None:
    make_consortium(tmp_path / "other")
    kit, other = out / "kits/users/ada", tmp_path / "other/public"
    consortium = load_kit(kit, Role.USER).consortium
    for name in ("members.json", "revoked.json"):
        refused("signature", lambda name=name: take_document(kit, (other / name).read_bytes(), consortium))  # type: ignore[misc]
    (kit / "revoked.json").write_bytes((other / "revoked.json").read_bytes())
    refused("signature", lambda: load_kit(kit, Role.USER))
    register = json.loads((out / "public/members.json").read_bytes())
    revoked = json.loads((out / "public/revoked.json").read_bytes())
    mixed = json.dumps({"content": revoked["content"], "signature": register["signature"]}).encode()
    refused("signature", lambda: take_document(out / "kits/users/bob", mixed, consortium))
    status, found = told("kit", "update", out / "kits/server", other / "crl.pem")
    assert (status, found["error"]["code"]) == (7, "document")


def test_a_renewal_certifies_the_same_keys_and_is_taken_by_a_kit_that_was_handed_over(
    tmp_path: Path, out: Path, told: Told
) -> None:
    here = out / "kits/sites/cleveland"
    there = tmp_path / "at-the-site"
    here.rename(there)
    before = load_kit(there, Role.SITE)
    status, made = told("provision", "renew", out, "site:cleveland", "--days", "90")
    assert (status, made["kit"]) == (0, None)
    assert told("kit", "update", there, made["grant"])[0] == 0
    after = load_kit(there, Role.SITE)
    assert after.identity.member == before.identity.member
    assert after.identity.certificate != before.identity.certificate
    _, shown = told("kit", "show", there)
    assert shown["expires"] == made["expires"]
    refused("grant", lambda: complete(out / "kits/sites/hungarian", Path(made["grant"])))


def test_a_renewal_with_new_keys_takes_the_old_ones_back_and_the_node_is_another(
    out: Path, told: Told
) -> None:
    kit = out / "kits/sites/cleveland"
    old, certificate = MemberKeys.read(kit, Role.SITE).public, load_kit(kit, Role.SITE).identity.certificate
    assert told("provision", "renew", out, "cleveland")[0] == 0
    assert MemberKeys.read(kit, Role.SITE).public == old
    assert load_kit(kit, Role.SITE).identity.certificate != certificate
    assert told("provision", "renew", out, "cleveland", "--new-keys")[0] == 0
    new = MemberKeys.read(kit, Role.SITE).public
    assert {new.identity, new.tls, new.node}.isdisjoint({old.identity, old.tls, old.node})
    server = load_kit(out / "kits/server", Role.SERVER)
    refused("identity-revoked", lambda: server.consortium.member(certificate, role=Role.SITE))
    assert server.members().of(Role.SITE)["cleveland"].node_key == new.node
    load_kit(kit, Role.SITE)


def test_the_key_authority_is_renewed_with_the_server_s_side_of_its_channel(out: Path) -> None:
    from cloister.privacy.authority.tls import AUTHORITY, SERVER, Credentials

    before = Credentials.read(out / "kits/authority/tls", AUTHORITY)
    renew(out, "key-authority")
    after = Credentials.read(out / "kits/authority/tls", AUTHORITY)
    assert after.root != before.root
    assert Credentials.read(out / "kits/server/authority", SERVER).root == after.root
    load_kit(out / "kits/authority", Role.AUTHORITY)


def test_list_shows_who_is_valid_due_awaited_and_struck_off(out: Path, told: Told) -> None:
    renew(out, "hungarian", days=90)
    revoke(out, "bob", "left")
    status, found = told("provision", "list", out)
    assert status == 0
    assert {(row["role"], row["name"]): row["state"] for row in found["members"]} == {
        ("authority", "key-authority"): "renew soon",
        ("server", "server"): "renew soon",
        ("site", "cleveland"): "renew soon",
        ("site", "hungarian"): "valid",
        ("site", "switzerland"): "awaited",
        ("user", "ada"): "renew soon",
        ("user", "eve"): "awaited",
        ("user", "bob"): "revoked: left",
    }
    assert run(["provision", "list", str(out)]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("revoke", "OUT", "clevland"), "did you mean 'site:cleveland'"),
        (("revoke", "OUT", "cleveland", "--reason", "lef"), "did you mean 'left'"),
        (("renew", "OUT", "user:cleveland"), "no member is called"),
        (("list", "OUT/kits"), "no consortium's authority"),
        (("add", "OUT", "OUT/nothing.json"), "cannot be read"),
    ],
)
def test_a_wrong_call_is_a_usage_error_that_names_it(
    out: Path, told: Told, arguments: tuple[str, ...], says: str
) -> None:
    status, found = told("provision", *(one.replace("OUT", str(out)) for one in arguments))
    assert status == 2
    assert says in found["error"]["message"]


def test_no_certificate_outlives_its_authority(out: Path) -> None:
    with pytest.raises(UsageError, match="would outlive"):
        renew(out, "cleveland", days=3651)


def test_the_authority_s_folder_is_refused_when_its_keys_may_be_read_or_do_not_belong_together(
    tmp_path: Path, out: Path
) -> None:
    offline = out / "authority-offline"
    for name in ("identity-ca.key", "tls-ca.key", "issued.jsonl", "consortium.toml"):
        (offline / name).chmod(0o640)
        refused("kit-key", lambda: members_table(out))
        (offline / name).chmod(0o600)
    members_table(out)
    make_consortium(tmp_path / "other")
    for name, code in (("consortium.der", "identity"), ("tls-root.pem", "offline")):
        kept = (offline / name).read_bytes()
        (offline / name).write_bytes((tmp_path / "other/authority-offline" / name).read_bytes())
        refused(code, lambda: members_table(out))
        (offline / name).write_bytes(kept)


def test_a_cut_off_last_line_of_the_book_is_removed_and_a_broken_one_is_refused(out: Path) -> None:
    book = out / "authority-offline/issued.jsonl"
    whole = book.read_bytes()
    book.write_bytes(whole + b'{"event": "issu')
    rows, number = members_table(out)
    assert number == len(whole.splitlines())
    assert book.read_bytes() == whole
    assert len(rows) == 8
    book.write_bytes(whole.replace(b'"issued"', b'"changed"', 1))
    refused("offline", lambda: members_table(out))


def test_an_authority_that_is_resumed_signs_as_before() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    first = ConsortiumAuthority("hospitals", key, days=10)
    again = ConsortiumAuthority.resume(first.certificate, key)
    made = again.identity("a", Role.SITE, Ed25519PrivateKey.generate())
    first.consortium().member(made.certificate, role=Role.SITE)
    with pytest.raises(IntegrityError, match="not of the key"):
        ConsortiumAuthority.resume(first.certificate, Ed25519PrivateKey.generate())
