"""What the server sees of one site is uniform, whatever the site's vector is.

Chi-square of byte counts (256 cells) of 2^16 values, two-sided at 1e-6 on either side. Every key is drawn from a seed in these tests, so that
they are the same in every run: the chance that a seed is unlucky was taken once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
from scipy import stats

from cloister.privacy.masking import keys
from cloister.privacy.masking.rehearsal import Rehearsal, Stage, Step
from cloister.privacy.masking.stream import add_stream, add_streams
from cloister.privacy.updates.modular import Residues

SIZE = 1 << 16
INPUTS = {
    "zeros": np.zeros(SIZE, dtype=np.uint32),
    "ones": np.full(SIZE, 0xFFFFFFFF, dtype=np.uint32),
    "small": (np.arange(SIZE) % 3).astype(np.uint32),
    "marked": np.full(SIZE, 0xC0FFEE11, dtype=np.uint32),
}
DROPS, ONE, OTHER = "site-0003", "site-0000", "site-0001"


@pytest.fixture(params=sorted(INPUTS))
def vector(request: pytest.FixtureRequest) -> Residues:
    return INPUTS[request.param]


@pytest.fixture
def fixed() -> Iterator[None]:
    draws = random.Random(11)
    with patch("os.urandom", draws.randbytes):
        yield


def probability(values: Residues) -> float:
    """Where the chi-square statistic of the bytes lies among those of uniform bytes."""
    found = np.bincount(values.view(np.uint8), minlength=256)
    expected = values.size * 4 / 256
    return float(stats.chi2(255).cdf(((found - expected) ** 2 / expected).sum()))


def uniform(values: Residues) -> bool:
    return 1e-6 < probability(values) < 1 - 1e-6


def masked(
    stage: Stage, vector: Residues, leaves: dict[str, Step] | None = None
) -> tuple[Rehearsal, dict[str, Residues], dict[str, dict[str, bytes]]]:
    """Return a session in which all sites have masked ``vector``, what they sent, and the secrets that they had."""
    rehearsal = stage.rehearsal(5, size=SIZE, leaves=leaves, stored=False)
    rehearsal.advert()
    rehearsal.share()
    secrets = {name: dict(site._state.kept.to_fields()) for name, site in rehearsal.sites.items()}
    sent = {site.name: vector.copy() for site in stage.sites(5)}
    rehearsal.mask(sent)
    return rehearsal, sent, secrets  # type: ignore[return-value]


def pair(
    rehearsal: Rehearsal, secrets: dict[str, dict[str, bytes]], one: str, other: str
) -> tuple[bytes, int]:
    """The mask that ``one`` added for ``other``, from the private key of ``other``."""
    low, high = sorted((one, other))
    private = keys.private_key(secrets[other]["mask_private"])
    public = keys.public_of(secrets[one]["mask_private"])
    key = keys.pair_key(private, public, manifest=rehearsal.server.manifest.digest, low=low, high=high)
    return key, (1 if one == low else -1)


@pytest.mark.usefixtures("fixed")
class TestTheServersView:
    def test_the_test_can_tell(self, vector: Residues) -> None:
        assert not uniform(vector)
        almost = np.random.default_rng(0).integers(0, 1 << 32, SIZE, dtype=np.uint32)
        assert uniform(almost)
        almost[: SIZE // 50] = vector[: SIZE // 50]
        assert not uniform(almost)
        even = np.arange(256, dtype=np.uint8).repeat(SIZE // 64).view(np.uint32)
        assert not uniform(even)  # too even to be random

    def test_a_masked_vector_is_uniform_whatever_it_holds(self, vector: Residues, stage: Stage) -> None:
        _, sent, _ = masked(stage, vector)
        assert all(uniform(values) for values in sent.values())

    def test_two_masked_vectors_are_not_alike(self, vector: Residues, stage: Stage) -> None:
        _, sent, _ = masked(stage, vector)
        assert uniform(sent[ONE] - sent[OTHER])
        assert uniform(sent[ONE] + sent[OTHER])

    def test_of_a_survivor_it_stays_uniform_once_its_own_mask_and_those_with_a_dropped_peer_are_known(
        self, vector: Residues, stage: Stage
    ) -> None:
        """All that the session reveals about it: its seed, and the mask key of the peer that dropped."""
        rehearsal, sent, secrets = masked(stage, vector, {DROPS: Step.MASK})
        seed = keys.self_key(secrets[ONE]["seed"], manifest=rehearsal.server.manifest.digest)
        key, sign = pair(rehearsal, secrets, ONE, DROPS)
        view = sent[ONE].copy()
        add_streams(view, [(seed, -1), (key, -sign)])
        assert uniform(view)
        for peer in (
            OTHER,
            "site-0002",
            "site-0004",
        ):  # and with the masks of all survivors gone too, it is the vector
            key, sign = pair(rehearsal, secrets, ONE, peer)
            add_stream(view, key, sign=-sign)
        np.testing.assert_array_equal(view, vector)

    def test_of_a_site_that_was_said_to_have_dropped_it_stays_uniform_once_its_mask_key_is_known(
        self, vector: Residues, stage: Stage
    ) -> None:
        """A vector that came too late: the server can take all pairwise masks away, and the site's own stays."""
        rehearsal, sent, secrets = masked(stage, vector)
        view = sent[ONE].copy()
        for peer in (OTHER, "site-0002", DROPS, "site-0004"):
            key, sign = pair(rehearsal, secrets, ONE, peer)
            add_stream(view, key, sign=-sign)
        assert uniform(view)
        add_stream(
            view, keys.self_key(secrets[ONE]["seed"], manifest=rehearsal.server.manifest.digest), sign=-1
        )
        np.testing.assert_array_equal(view, vector)

    def test_no_byte_string_of_a_vector_is_in_anything_that_it_is_sent(self, stage: Stage) -> None:
        """Every message of a whole session is searched for four values in a row of a marked vector, but for the sum."""
        seen: list[bytes] = []
        rehearsal = stage.rehearsal(4, size=1000, leaves={DROPS: Step.CONFIRM}, stored=False)
        server = rehearsal.server
        for method in ("take_advert", "take_shares", "take_masked", "take_confirmation", "take_reveal"):

            def spying(name: str, given: object, inner: object = getattr(server, method)) -> object:
                seen.append(given.tobytes() if isinstance(given, np.ndarray) else b"".join(_flat(given)))
                return inner(name, given)  # type: ignore[operator]

            setattr(server, method, spying)
        marked = INPUTS["marked"][:1000]
        total = rehearsal.run({site.name: marked.copy() for site in stage.sites(4)})
        needle = marked[:4].tobytes()
        assert len(seen) == 5 * 4 - 2
        assert needle in marked.tobytes()
        assert not any(needle in message for message in seen)
        np.testing.assert_array_equal(total, marked * 4)


def _flat(message: object) -> list[bytes]:
    fields = message.to_fields()  # type: ignore[attr-defined]
    values = [value for field in fields.values() for value in (field if isinstance(field, list) else [field])]
    return [value if isinstance(value, bytes) else str(value).encode() for value in values]
