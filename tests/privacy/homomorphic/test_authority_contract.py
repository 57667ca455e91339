"""One contract for the key authority, in process and across the network."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloister.core.errors import CloisterError, IntegrityError, PolicyError, UsageError
from cloister.privacy.authority.client import RemoteAuthority
from cloister.privacy.authority.service import AuthorityService
from cloister.privacy.authority.tls import AUTHORITY, SERVER, Credentials, make_tls
from cloister.privacy.homomorphic import (
    Ciphertexts,
    Form,
    KeyAuthority,
    ServerSum,
    SumRequest,
    Vault,
    agreed,
    commitment,
    seal,
)
from cloister.privacy.homomorphic.container import summed
from cloister.privacy.homomorphic.summation import request_message
from cloister.privacy.identity import Purpose, Role
from cloister.privacy.manifest import Manifest
from parties import Parties, Session

SERIALS = itertools.count(1)


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties()


@pytest.fixture(scope="module", params=["in process", "across the network"])
def keeper(
    request: pytest.FixtureRequest, parties: Parties, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KeyAuthority | RemoteAuthority]:
    local = KeyAuthority(Vault.in_memory(), parties.keeper, parties.consortium, most_values=1 << 20)
    if request.param == "in process":
        yield local
        local.close()
        return
    folder: Path = tmp_path_factory.mktemp("channel") / "tls"
    make_tls(folder, "127.0.0.1")
    service = AuthorityService(local, Credentials.read(folder, AUTHORITY), "127.0.0.1:0")
    service.start()
    with RemoteAuthority(f"127.0.0.1:{service.port}", Credentials.read(folder, SERVER)) as remote:
        yield remote
    service.stop()
    local.close()


@pytest.fixture
def begin(parties: Parties, keeper: KeyAuthority) -> Callable[..., Session]:
    def begun(**changes: object) -> Session:
        serial = next(SERIALS)
        return parties.session(keeper, **{"serial": serial, "run": f"run-{serial}", "size": 300, **changes})

    return begun


def refusal(keeper: KeyAuthority, request: SumRequest) -> str:
    with pytest.raises(CloisterError) as refused:
        keeper.decrypt(request)
    return refused.value.code


def signed_again(parties: Parties, request: SumRequest, asked: Manifest, **changes: object) -> SumRequest:
    """Return a request with something changed that the server then asks for in its own name."""
    changed = replace(request, **changes)  # type: ignore[arg-type]
    message = request_message(asked, changed.digest)
    return replace(changed, signature=parties.server.sign(Purpose.DECRYPTION, message))


@pytest.mark.parametrize(("scheme", "bits"), [("bfv", 26), ("bfv", 20), ("bfv", 50), ("ckks", 26)])
@pytest.mark.parametrize("size", [1, 8192, 9001])
def test_the_sum_is_the_plain_sum(
    begin: Callable[..., Session], keeper: KeyAuthority, scheme: str, bits: int, size: int
) -> None:
    session = begin(scheme=scheme, modulus_bits=bits, size=max(size, 2))
    found = keeper.decrypt(session.request())
    assert found.dtype == np.int64
    assert np.array_equal(found, session.plain())


def test_a_sum_is_of_all_sites_that_its_key_is_for_or_not_opened(
    begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    session = begin()
    request = session.request()
    assert refusal(keeper, replace(request, sealed=request.sealed[:3])) == "decryption-floor"
    assert np.array_equal(keeper.decrypt(request), session.plain())


def test_sites_that_saw_a_ciphertext_cannot_have_it_opened_in_a_sum_of_their_own(
    parties: Parties, begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    """All sites but one side with the server: after it sent its ciphertext they agree on another set of commitments, with a copy of it in the name of one of them."""
    session = begin()
    session.request()
    victim, *others = parties.names
    copy = {name: session.containers[victim if name == others[0] else name] for name in others}
    for manifest in (session.manifest, parties.fewer(4).manifest(session.codec.key_id, **_of(session))):
        commitments = {name: commitment(container) for name, container in copy.items()}
        for told in (commitments, {**commitments, victim: commitment(session.containers[victim])}):
            together = agreed(manifest, told)
            sealed = [seal(parties.sites[name], manifest, copy[name], together) for name in others]
            form = Form.of(manifest)
            total = summed([Ciphertexts.read(one.container, form) for one in sealed])
            request = SumRequest(
                manifest=manifest.signed(parties.server),
                cohort=tuple(parties.names),
                commitments=told,
                digest=b"",
                signature=b"",
                sealed=tuple(sealed),
            )
            asked = signed_again(parties, request, manifest, digest=commitment(total))
            assert refusal(keeper, asked) == "decryption-floor"


def test_a_key_is_for_one_cohort(
    parties: Parties, begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    """A second manifest of the same session and key, which leaves a site out, opens nothing; nor is its key handed out."""
    session = begin()
    fewer = parties.fewer(3)
    other = fewer.manifest(session.codec.key_id, **_of(session))
    assert (other.serial, other.key) == (session.manifest.serial, session.manifest.key)
    with pytest.raises(IntegrityError) as refused:
        session.codec.encrypt(np.zeros(other.size, dtype=np.int64), other)
    assert refused.value.code == "ciphertext-key"
    session.encrypt()
    sums = ServerSum(other.signed(parties.server), fewer.names, parties.consortium)
    for name in fewer.names:
        sums.commit(name, commitment(session.containers[name]))
    for name in fewer.names:
        sums.take(name, seal(parties.sites[name], other, session.containers[name], sums.agree()))
    assert refusal(keeper, sums.total(parties.server)) == "ciphertext-key"
    with pytest.raises(IntegrityError) as refused:
        keeper.public(other.run, other.serial, other.cohort)
    assert refused.value.code == "ciphertext-key"


def _of(session: Session) -> dict[str, object]:
    return {name: getattr(session.manifest, name) for name in ("run", "serial", "size")}


def test_a_session_is_decrypted_once(begin: Callable[..., Session], keeper: KeyAuthority) -> None:
    session = begin()
    request = session.request()
    keeper.decrypt(request)
    assert refusal(keeper, request) == "decryption-twice"
    assert refusal(keeper, replace(request, sealed=request.sealed[:3])) == "decryption-twice"


def test_two_sums_of_one_round_over_different_sites_are_not_opened(
    parties: Parties, begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    first = begin(run="rounds")
    keeper.decrypt(first.request())
    fewer, serial = parties.fewer(3), next(SERIALS)
    second = fewer.session(keeper, serial=serial, run="rounds", size=300)
    assert refusal(keeper, second.request()) == "decryption-round"
    again = begin(run="rounds")
    assert np.array_equal(keeper.decrypt(again.request()), first.plain())
    later = fewer.session(
        keeper, serial=next(SERIALS), run="rounds", size=300, round_number=2, model="4" * 64
    )
    assert np.array_equal(keeper.decrypt(later.request()), later.plain())
    assert refusal(keeper, begin(run="rounds").request()) == "decryption-round"


def test_a_key_of_a_decrypted_session_is_not_handed_out_again(
    begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    session = begin()
    keeper.decrypt(session.request())
    with pytest.raises(IntegrityError) as refused:
        keeper.public(session.manifest.run, session.manifest.serial, session.manifest.cohort)
    assert refused.value.code == "decryption-twice"


@pytest.mark.parametrize("count", [1, 2])
def test_one_site_s_ciphertext_or_fewer_than_least_are_refused_and_cost_nothing(
    parties: Parties, begin: Callable[..., Session], keeper: KeyAuthority, count: int
) -> None:
    session = begin()
    request = session.request()
    form = Form.of(session.manifest)
    own = [Ciphertexts.read(sealed.container, form) for sealed in request.sealed[:count]]
    digest = hashlib.sha256(summed(own)).digest()
    asked = signed_again(parties, request, session.manifest, sealed=request.sealed[:count], digest=digest)
    assert refusal(keeper, asked) == "decryption-floor"
    assert np.array_equal(keeper.decrypt(request), session.plain())


def test_one_site_s_ciphertext_several_times_is_refused(
    begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    request = begin().request()
    assert refusal(keeper, replace(request, sealed=(request.sealed[0],) * 3)) == "ciphertext-twice"


def test_a_manifest_below_the_authority_s_own_floor_is_refused(
    begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    assert refusal(keeper, begin(least=2, threshold=2).request()) == "decryption-floor"


def test_a_sum_above_the_authority_s_own_size_is_refused(
    parties: Parties, begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    session = begin()
    huge = replace(session.manifest, size=1 << 31)
    request = session.request()
    asked = signed_again(parties, request, huge, manifest=huge.signed(parties.server))
    assert refusal(keeper, asked) == "decryption-size"


def test_a_sum_that_is_not_of_these_ciphertexts_is_refused(
    parties: Parties, begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    session = begin()
    request = session.request()
    assert (
        refusal(keeper, signed_again(parties, request, session.manifest, digest=bytes(32)))
        == "decryption-sum"
    )
    assert np.array_equal(keeper.decrypt(request), session.plain())


@pytest.mark.parametrize("who", ["site", "authority", "stranger"])
def test_only_the_server_may_ask(
    parties: Parties, begin: Callable[..., Session], keeper: KeyAuthority, who: str
) -> None:
    session = begin()
    request = session.request()
    asker = {"site": parties.sites["site-0"], "authority": parties.keeper, "stranger": Parties().server}[who]
    message = request_message(session.manifest, request.digest)
    forged = replace(request, signature=asker.sign(Purpose.DECRYPTION, message))
    assert refusal(keeper, forged) == "signature"
    assert refusal(keeper, replace(request, manifest=session.manifest.signed(asker))) == "identity"


def test_a_signature_of_the_manifest_is_none_of_a_request(
    begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    request = begin().request()
    assert refusal(keeper, replace(request, signature=request.manifest.signature)) == "signature"


def test_the_server_cannot_sign_for_a_site(
    parties: Parties, begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    session = begin()
    request = session.request()
    together = agreed(session.manifest, request.commitments)
    zeros = session.codec.encrypt(np.zeros(session.manifest.size, dtype=np.int64), session.manifest)
    by_server = seal(parties.server, session.manifest, zeros, together)
    as_site = replace(by_server, certificate=parties.sites["site-1"].certificate)
    made_up = seal(Parties().sites["site-1"], session.manifest, zeros, together)
    for forged, code in [(by_server, "identity"), (as_site, "signature"), (made_up, "identity")]:
        assert (
            refusal(keeper, replace(request, sealed=(request.sealed[0], forged, request.sealed[2]))) == code
        )


def test_a_site_of_the_consortium_that_was_not_asked_is_refused(
    parties: Parties, begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    session = begin()
    request = session.request()
    late = parties.member("site-9", Role.SITE)
    container = session.codec.encrypt(np.zeros(session.manifest.size, dtype=np.int64), session.manifest)
    commitments = {**request.commitments, "site-9": commitment(container)}
    sealed = seal(late, session.manifest, container, agreed(session.manifest, commitments))
    asked = replace(request, commitments=commitments, sealed=(*request.sealed[:2], sealed))
    assert refusal(keeper, asked) == "ciphertext-cohort"
    cohort = (*request.cohort, "site-9")
    assert refusal(keeper, replace(asked, cohort=cohort)) == "ciphertext-cohort"


def test_ciphertexts_signed_for_another_manifest_are_refused(
    parties: Parties, begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    """The same session and key in all but one public number: the signatures are of the other manifest."""
    session = begin()
    request = session.request()
    other = replace(session.manifest, clip=2.0)
    asked = signed_again(parties, request, other, manifest=other.signed(parties.server))
    assert refusal(keeper, asked) == "signature"


def test_ciphertexts_of_an_earlier_session_are_refused(
    begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    earlier, later = begin(), begin()
    old, new = earlier.request(), later.request()
    assert refusal(keeper, replace(new, sealed=(*new.sealed[:2], old.sealed[2]))) == "ciphertext-key"


def test_a_manifest_that_names_another_session_s_key_is_refused(
    parties: Parties, begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    one, other = begin(), begin()
    request = one.request()
    mixed = replace(one.manifest, key=other.manifest.key)
    asked = signed_again(parties, request, mixed, manifest=mixed.signed(parties.server))
    assert refusal(keeper, asked) == "ciphertext-key"


def test_a_session_without_a_key_is_refused(
    parties: Parties, begin: Callable[..., Session], keeper: KeyAuthority
) -> None:
    request = begin().request()
    manifest = parties.manifest("a" * 64, serial=next(SERIALS))
    asked = signed_again(parties, request, manifest, manifest=manifest.signed(parties.server))
    assert refusal(keeper, asked) == "ciphertext-key"


@pytest.mark.parametrize("part", ["container", "signature", "certificate"])
def test_a_flipped_bit_is_refused_and_the_session_stands(
    begin: Callable[..., Session], keeper: KeyAuthority, part: str
) -> None:
    session = begin()
    request = session.request()
    raw = bytearray(getattr(request.sealed[1], part))
    raw[-20] ^= 4
    changed = replace(request.sealed[1], **{part: bytes(raw)})
    code = refusal(keeper, replace(request, sealed=(request.sealed[0], changed, request.sealed[2])))
    assert code in {"signature", "identity", "ciphertext-residue"}
    assert np.array_equal(keeper.decrypt(request), session.plain())


@pytest.mark.parametrize("length", [0, 10, -1])
def test_a_truncated_container_is_refused(
    begin: Callable[..., Session], keeper: KeyAuthority, length: int
) -> None:
    request = begin().request()
    cut = replace(request.sealed[0], container=request.sealed[0].container[:length])
    with pytest.raises(CloisterError):
        keeper.decrypt(replace(request, sealed=(cut, *request.sealed[1:])))


def test_an_authority_is_one_by_its_certificate(parties: Parties) -> None:
    with pytest.raises(UsageError):
        KeyAuthority.in_memory(parties.server, parties.consortium)


def test_an_authority_s_floor_is_two_at_least(parties: Parties) -> None:
    with pytest.raises(UsageError):
        KeyAuthority.in_memory(parties.keeper, parties.consortium, least=1)


def test_a_policy_s_refusal_is_a_policy_error(begin: Callable[..., Session], keeper: KeyAuthority) -> None:
    with pytest.raises(PolicyError):
        keeper.decrypt(begin(least=2, threshold=2).request())
