"""The public key and what a site does with it."""

from collections.abc import Iterator

import numpy as np
import pytest

from cloister.core.errors import DataError, IntegrityError, SpecError
from cloister.privacy.homomorphic import BFV, CKKS, KeyAuthority, Parameters, PublicCodec, PublicKey
from cloister.privacy.homomorphic.frames import framed, unframed
from cloister.privacy.homomorphic.vectors import Vectors, new_key
from cloister.privacy.identity import Purpose, Role
from cloister.privacy.manifest import cohort_digest
from parties import Parties

COHORT = cohort_digest([f"site-{number}" for number in range(4)])


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties()


@pytest.fixture(scope="module")
def keeper(parties: Parties) -> Iterator[KeyAuthority]:
    made = KeyAuthority.in_memory(parties.keeper, parties.consortium)
    yield made
    made.close()


@pytest.mark.parametrize("parameters", [BFV, CKKS])
def test_a_public_context_holds_no_secret_key(parameters: Parameters) -> None:
    secret, public = new_key(parameters)
    assert len(public) < len(secret)
    residues = Vectors(parameters, public).encrypt(np.zeros(parameters.slots, dtype=np.int64))
    with pytest.raises(ValueError, match="no secret key"):
        Vectors(parameters, public).decrypt(residues)
    Vectors(parameters, secret).decrypt(residues)


@pytest.mark.parametrize(("made", "taken"), [(BFV, CKKS), (CKKS, BFV)])
def test_a_context_of_other_parameters_is_refused(made: Parameters, taken: Parameters) -> None:
    with pytest.raises(IntegrityError) as refused:
        Vectors(taken, new_key(made)[1])
    assert refused.value.code == "public-key"


def test_a_context_of_another_plain_modulus_is_refused() -> None:
    import tenseal  # type: ignore[import-untyped]

    context = tenseal.context(
        tenseal.SCHEME_TYPE.BFV,
        poly_modulus_degree=4096,
        plain_modulus=1032193,
        coeff_mod_bit_sizes=[40, 40, 29],
    )
    with pytest.raises(IntegrityError) as refused:
        Vectors(BFV, context.serialize(save_secret_key=False))
    assert refused.value.code == "public-key"


def test_two_keys_differ_and_so_do_two_encryptions() -> None:
    assert new_key(BFV)[1] != new_key(BFV)[1]
    vectors = Vectors(BFV, new_key(BFV)[1])
    zeros = np.zeros(BFV.slots, dtype=np.int64)
    assert not np.array_equal(vectors.encrypt(zeros), vectors.encrypt(zeros))


def test_a_session_keeps_its_key_and_another_has_another(parties: Parties, keeper: KeyAuthority) -> None:
    read = [
        PublicKey.read(keeper.public(run, serial, COHORT), parties.consortium).key_id
        for run, serial in [("same", 1), ("same", 1), ("same", 2), ("other", 1)]
    ]
    assert read[0] == read[1]
    assert len(set(read)) == 3


@pytest.mark.parametrize("role", [Role.SERVER, Role.SITE, Role.USER])
def test_a_key_that_somebody_else_signed_is_refused(parties: Parties, role: Role) -> None:
    """A server that puts its own key in the authority's place could read everything."""
    key = PublicKey(scheme="bfv", run="run", serial=1, cohort=COHORT, context=new_key(BFV)[1])
    with pytest.raises(IntegrityError) as refused:
        PublicCodec(key.signed(parties.member("keeper", role)), parties.consortium)
    assert refused.value.code == "identity"


def test_a_key_of_another_consortium_s_authority_is_refused(parties: Parties) -> None:
    key = PublicKey(scheme="bfv", run="run", serial=1, cohort=COHORT, context=new_key(BFV)[1])
    with pytest.raises(IntegrityError) as refused:
        PublicCodec(key.signed(Parties().keeper), parties.consortium)
    assert refused.value.code == "identity"


def test_a_key_whose_session_was_changed_is_refused(parties: Parties, keeper: KeyAuthority) -> None:
    label, inner, signature, certificate = unframed(keeper.public("run", 7, COHORT), count=4, most=1 << 20)
    scheme, run, _, cohort, context = unframed(inner, count=5, most=1 << 20)
    changed = framed([label, framed([scheme, run, b"8", cohort, context]), signature, certificate])
    other = framed([label, framed([scheme, run, b"7", b"d" * 64, context]), signature, certificate])
    for wrong in (changed, other):
        with pytest.raises(IntegrityError) as refused:
            PublicCodec(wrong, parties.consortium)
        assert refused.value.code == "signature"


def test_a_signature_for_another_purpose_does_not_make_a_key(parties: Parties) -> None:
    key = PublicKey(scheme="bfv", run="run", serial=1, cohort=COHORT, context=new_key(BFV)[1])
    label, inner, _, certificate = unframed(key.signed(parties.keeper), count=4, most=1 << 20)
    wrong = parties.keeper.sign(Purpose.MANIFEST, inner)
    with pytest.raises(IntegrityError) as refused:
        PublicCodec(framed([label, inner, wrong, certificate]), parties.consortium)
    assert refused.value.code == "signature"


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"\xff" * 100, framed([b"x"] * 4), framed([b"x"] * 5)])
def test_what_is_no_key_is_refused(parties: Parties, data: bytes) -> None:
    with pytest.raises(IntegrityError) as refused:
        PublicCodec(data, parties.consortium)
    assert refused.value.code == "public-key"


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_truncated_key_is_refused(parties: Parties, keeper: KeyAuthority, cut: int) -> None:
    with pytest.raises(IntegrityError) as refused:
        PublicCodec(keeper.public("run", 9, COHORT)[:-cut], parties.consortium)
    assert refused.value.code == "public-key"


@pytest.mark.parametrize("changes", [{"serial": 2}, {"run": "other"}, {"scheme": "ckks"}, {"key": "0" * 64}])
def test_values_are_encrypted_for_the_key_s_session_alone(
    parties: Parties, keeper: KeyAuthority, changes: dict[str, object]
) -> None:
    codec = PublicCodec(keeper.public("run", 1, COHORT), parties.consortium)
    manifest = parties.manifest(**{"key": codec.key_id, **changes})  # type: ignore[arg-type]
    with pytest.raises(IntegrityError) as refused:
        codec.encrypt(np.zeros(manifest.size, dtype=np.int64), manifest)
    assert refused.value.code == "ciphertext-key"


@pytest.mark.parametrize("value", [1, -1])
@pytest.mark.parametrize("at", [0, -1])
def test_a_value_above_the_largest_is_refused_and_not_named(
    parties: Parties, keeper: KeyAuthority, at: int, value: int
) -> None:
    session = parties.session(keeper)
    values = np.zeros(session.manifest.size, dtype=np.int64)
    values[at] = value * session.manifest.largest
    session.codec.encrypt(values, session.manifest)
    values[at] += value
    with pytest.raises(DataError) as refused:
        session.codec.encrypt(values, session.manifest)
    assert refused.value.code == "update-range"
    assert str(abs(values[at])) not in refused.value.message


def test_the_least_integer_of_all_is_refused(parties: Parties, keeper: KeyAuthority) -> None:
    """Its magnitude is no int64: ``abs`` would give it back negative."""
    session = parties.session(keeper)
    values = np.full(session.manifest.size, np.iinfo(np.int64).min)
    with pytest.raises(DataError):
        session.codec.encrypt(values, session.manifest)


@pytest.mark.parametrize(
    "values", [np.zeros(8999, np.int64), np.zeros(9000, np.float64), np.zeros((9000, 1), np.int64)]
)
def test_another_shape_or_type_is_a_fault(parties: Parties, keeper: KeyAuthority, values: object) -> None:
    session = parties.session(keeper)
    with pytest.raises(ValueError, match="expected int64"):
        session.codec.encrypt(values, session.manifest)  # type: ignore[arg-type]


def test_a_session_whose_sums_do_not_fit_is_refused(parties: Parties, keeper: KeyAuthority) -> None:
    with pytest.raises(SpecError) as refused:
        parties.session(keeper, modulus_bits=60)
    assert refused.value.code == "protection-range"


@pytest.mark.parametrize("parts", [[], [b""], [b"a", b"", b"ccc"]])
def test_frames_come_back(parts: list[bytes]) -> None:
    assert unframed(framed(parts), count=len(parts), most=1000) == parts


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1\0\0",
        framed([b"a"]) + b"x",
        framed([b"a"])[:-1],
        framed([b"a", b"b"]),
        b"\1\0\0\0" + b"\xff" * 8,
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"another number|ends too soon|follows"):
        unframed(data, count=1, most=1000)
