"""The mechanisms that hide a whole site: clip, noise, adaptive clip, rotation, rounding, Skellam shares, sums modulo 2^20."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cloister.core.errors import DataError, SpecError
from cloister.core.randomness import SeededRandomness
from cloister.privacy.noise import cipher_generator
from cloister.privacy.updates import (
    BITS,
    MODULUS,
    NORM_TOLERANCE,
    AdaptiveClip,
    IntegerCode,
    ModularSum,
    centred,
    choose_scale,
    clip_update,
    conditional_round,
    exceeds_clip,
    hadamard,
    l2_norm,
    padded,
    rotate,
    rotate_back,
    rotation_signs,
    rounded_norm,
    skellam_noise,
    wrapped,
)
from cloister.privacy.updates.encoding import WRAP_SIGMAS

RNG = np.random.default_rng(5)
SEEDED = SeededRandomness(3)


def normal(size: int, norm: float) -> npt.NDArray[np.float32]:
    vector = RNG.standard_normal(size)
    return (vector * norm / np.linalg.norm(vector)).astype(np.float32)


class TestClip:
    @given(st.integers(1, 300), st.floats(1e-6, 1e30), st.floats(1e-6, 1e6))
    def test_no_update_is_longer_than_the_clip_in_exact_arithmetic(
        self, size: int, norm: float, clip: float
    ) -> None:
        clipped = clip_update(normal(size, norm), clip)
        assert math.sqrt(math.fsum(float(x) ** 2 for x in clipped.vector)) <= clip
        assert clipped.vector.dtype == np.float32
        assert not exceeds_clip(clipped.vector, clip)

    def test_an_update_within_the_clip_is_left_to_the_bit_and_a_longer_one_keeps_its_direction(self) -> None:
        vector = normal(1000, 2.0)
        kept, cut = clip_update(vector, 2.1), clip_update(vector, 0.5)
        assert kept.within
        assert np.array_equal(kept.vector, vector)
        assert not cut.within
        np.testing.assert_allclose(cut.vector, vector / 4, rtol=1e-5)
        assert l2_norm(cut.vector) == pytest.approx(0.5, rel=1e-6)

    def test_a_norm_a_little_above_the_clip_is_told_from_a_rounding(self) -> None:
        vector = normal(1000, 1.0)
        assert not exceeds_clip(vector, 1.0 / (1 + NORM_TOLERANCE / 2))
        assert exceeds_clip(vector, 1.0 / (1 + 2 * NORM_TOLERANCE))

    @pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan])
    def test_a_clip_that_bounds_nothing_is_refused(self, clip: float) -> None:
        with pytest.raises(SpecError, match="clip"):
            clip_update(normal(3, 1.0), clip)

    @pytest.mark.parametrize("value", [math.inf, math.nan])
    def test_an_update_that_is_not_finite_is_refused(self, value: float) -> None:
        with pytest.raises(DataError):
            clip_update(np.array([1.0, value], dtype=np.float32), 1.0)


class TestAdaptiveClip:
    @pytest.mark.parametrize("start", [0.01, 100.0])
    @pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
    def test_the_clip_converges_to_the_quantile_from_above_and_from_below(
        self, start: float, quantile: float
    ) -> None:
        norms = np.random.default_rng(2).lognormal(0.5, 0.6, 400)
        adaptive = AdaptiveClip(quantile=quantile, rate=0.2, count_noise=20.0, sites=400)
        draws, clip, last = np.random.default_rng(4), start, []
        for step in range(250):
            bits = np.where(norms <= clip, 0.5, -0.5)
            clip = adaptive.next_clip(clip, adaptive.share_within(float(bits.sum()) + draws.normal(0, 20.0)))
            last += [clip] if step >= 150 else []
        assert np.median(last) == pytest.approx(np.quantile(norms, quantile), rel=0.12)

    def test_too_many_within_lower_the_clip_and_too_few_raise_it(self) -> None:
        adaptive = AdaptiveClip(quantile=0.5, rate=0.2, count_noise=1.0, sites=10)
        assert adaptive.next_clip(1.0, adaptive.share_within(5.0)) == pytest.approx(math.exp(-0.1))
        assert adaptive.next_clip(1.0, adaptive.share_within(-5.0)) == pytest.approx(math.exp(0.1))

    def test_updates_and_bits_cost_together_what_z_costs(self) -> None:
        adaptive = AdaptiveClip(quantile=0.5, rate=0.2, count_noise=2.0, sites=40)
        noise = adaptive.update_noise(1.3)
        assert noise > 1.3
        assert noise**-2 + (2 * 2.0) ** -2 == pytest.approx(1.3**-2)

    def test_noise_on_the_count_that_costs_more_than_the_round_is_refused(self) -> None:
        for count_noise in (0.3, 0.5):
            with pytest.raises(SpecError, match="count_noise") as refused:
                AdaptiveClip(quantile=0.5, rate=0.2, count_noise=count_noise, sites=10).update_noise(1.0)
            assert refused.value.code == "privacy-count-noise"

    @given(st.floats(1e-3, 1e3), st.integers(1, 10**6))
    def test_the_default_count_noise_adds_at_most_sixteen_percent(self, noise: float, sites: int) -> None:
        default = AdaptiveClip.default_count_noise(noise, sites)
        adaptive = AdaptiveClip(quantile=0.5, rate=0.2, count_noise=default, sites=sites)
        assert noise <= adaptive.update_noise(noise) <= 1.16 * noise

    def test_a_clip_that_noise_led_away_is_an_error(self) -> None:
        with pytest.raises(SpecError, match="noise moves it"):
            AdaptiveClip(quantile=0.5, rate=10.0, count_noise=1.0, sites=1).next_clip(1.0, 100.0)


class TestRotation:
    @pytest.mark.parametrize("dim", [1, 2, 8, 64])
    def test_the_transform_is_orthonormal_and_its_own_inverse(self, dim: int) -> None:
        matrix = np.array([hadamard(row) for row in np.eye(dim)])
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), atol=1e-12)
        np.testing.assert_allclose(matrix, matrix.T)
        np.testing.assert_allclose(np.abs(matrix), dim**-0.5)
        assert np.linalg.matrix_rank(matrix) == dim

    @given(st.integers(1, 2000), st.integers(0, 5))
    def test_rotating_back_gives_the_vector_and_keeps_its_norm(self, size: int, round_number: int) -> None:
        vector = normal(size, 3.0)
        signs = rotation_signs(1, round_number, padded(size))
        rotated = rotate(vector, signs)
        assert np.linalg.norm(rotated) == pytest.approx(l2_norm(vector))
        np.testing.assert_allclose(rotate_back(rotated, signs, size), vector, atol=1e-12)

    def test_one_large_coordinate_is_spread_evenly(self) -> None:
        vector = np.zeros(1000, dtype=np.float32)
        vector[17] = 1.0
        np.testing.assert_allclose(np.abs(rotate(vector, rotation_signs(1, 1, 1024))), 1 / 32)

    def test_signs_are_even_and_those_of_other_rounds_and_seeds_are_others(self) -> None:
        signs = rotation_signs(1, 1, 1 << 14)
        assert set(signs) == {1, -1}
        assert abs(signs.mean()) < 4 / 128
        for other in (rotation_signs(1, 2, 1 << 14), rotation_signs(2, 1, 1 << 14)):
            assert abs(np.mean(signs * other)) < 4 / 128

    def test_a_length_that_is_no_power_of_two_is_refused(self) -> None:
        with pytest.raises(SpecError, match="power of two"):
            hadamard(np.ones(12))


class TestRounding:
    @given(st.integers(1, 200), st.floats(0.01, 1e4))
    def test_no_rounded_vector_is_longer_than_the_bound(self, dim: int, norm: float) -> None:
        vector = normal(dim, norm * (1 - 1e-6)).astype(np.float64)
        rounded = conditional_round(vector, norm=norm, generator=np.random.default_rng(dim))
        assert np.linalg.norm(rounded) <= rounded_norm(norm, dim) * (1 + 1e-12)
        assert np.abs(rounded - vector).max() < 1

    def test_the_bound_is_the_papers(self) -> None:
        """Kairouz, Liu & Steinke 2021, section 4.2 with γ = 1, β = e^(-1/2): by hand, once for each branch."""
        assert rounded_norm(100.0, 10_000) == pytest.approx(math.sqrt(100**2 + 2500 + 100 + 50))
        assert rounded_norm(0.001, 1) == pytest.approx(math.sqrt(min(1.001**2, 1e-6 + 0.25 + 0.001 + 0.5)))
        assert rounded_norm(100.0, 1) == pytest.approx(math.sqrt(100**2 + 0.25 + 100 + 0.5))
        assert rounded_norm(0.0, 4) == pytest.approx(math.sqrt(min(4, 1 + 1)))

    def test_rounding_that_would_often_be_longer_is_drawn_again(self) -> None:
        """Just below 1/2 in all coordinates: plain rounding passes the bound often, and never here."""
        vector = np.full(64, 0.49)
        norm = float(np.linalg.norm(vector))
        plain = [np.linalg.norm(np.floor(vector + RNG.random(64))) for _ in range(400)]
        bound = rounded_norm(norm, 64)
        conditional = [
            np.linalg.norm(conditional_round(vector, norm=norm, generator=RNG)) for _ in range(400)
        ]
        assert max(conditional) <= bound
        assert min(conditional) != max(conditional)
        assert max(plain) > 0.9 * bound

    def test_rounding_keeps_the_mean(self) -> None:
        vector = np.linspace(-40, 40, 257)
        norm = float(np.linalg.norm(vector))
        drawn = np.mean([conditional_round(vector, norm=norm, generator=RNG) for _ in range(3000)], axis=0)
        assert np.abs(drawn - vector).max() < 5 * 0.5 / math.sqrt(3000)

    def test_a_vector_beyond_the_stated_norm_is_refused(self) -> None:
        with pytest.raises(DataError, match="rounded"):
            conditional_round(np.full(16, 100.0), norm=1.0, generator=RNG)


def z_of_moments(draws: npt.NDArray[Any], variance: float) -> tuple[float, float]:
    """Return how many standard errors mean and variance are from 0 and ``variance``, for nearly normal draws."""
    n = len(draws)
    return draws.mean() / math.sqrt(variance / n), (draws.var() / variance - 1) / math.sqrt(2 / n)


class TestSkellam:
    @pytest.mark.parametrize("variance", [0.5, 9.0, 1e6])
    def test_the_sum_of_shares_has_the_stated_variance_and_no_other(self, variance: float) -> None:
        """Ten shares: false alarms 1e-4; a standard deviation of 2/3 or 3/2 of it is told apart."""
        shares = [
            skellam_noise(cipher_generator(SEEDED, "share", 1, site), variance=variance / 10, size=40_000)
            for site in range(10)
        ]
        total = np.sum(shares, axis=0)
        mean, spread = z_of_moments(total, variance)
        heavier = math.sqrt(
            (2 + 1 / variance) / 2
        )  # of a Skellam law's sample variance, against a normal one's
        assert abs(mean) < 4
        assert abs(spread) < 4 * heavier
        for wrong in (2 / 3, 3 / 2):
            assert abs(z_of_moments(total, variance * wrong**2)[1]) > 20

    def test_the_shares_sum_is_skellam_noise(self) -> None:
        """χ² of the frequencies against scipy's own Skellam distribution; false alarm 1e-4; 2/3 and 3/2 of σ rejected."""
        total = sum(
            skellam_noise(cipher_generator(SEEDED, "chi", 1, site), variance=4.0, size=20_000)
            for site in range(4)
        )
        edges = np.arange(-12, 13)

        def p_value(variance: float) -> float:
            law = stats.skellam(variance / 2, variance / 2)
            inner = law.pmf(edges)
            expected = np.concatenate([[law.cdf(-13)], inner, [law.sf(12)]]) * 20_000
            seen = np.concatenate(
                [[np.sum(total < -12)], [np.sum(total == k) for k in edges], [np.sum(total > 12)]]
            )
            return float(stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue)

        assert p_value(16.0) > 1e-4
        assert p_value(16.0 * 4 / 9) < 1e-9
        assert p_value(16.0 * 9 / 4) < 1e-9

    def test_sites_do_not_share_their_noise(self) -> None:
        one, two = (
            skellam_noise(cipher_generator(SEEDED, "share", 1, site), variance=100.0, size=10_000)
            for site in ("ann", "bob")
        )
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.04

    @pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf])
    def test_noise_without_variance_is_refused(self, variance: float) -> None:
        with pytest.raises(SpecError, match="Skellam"):
            skellam_noise(RNG, variance=variance, size=1)


class TestModularSum:
    @given(st.lists(st.lists(st.integers(-(10**5), 10**5), min_size=4, max_size=4), min_size=1, max_size=5))
    def test_the_sum_of_residues_is_the_integer_sum(self, rows: list[list[int]]) -> None:
        total = ModularSum(4)
        for row in rows:
            total.add(wrapped(np.array(row)))
        true = np.sum(rows, axis=0)
        if np.abs(true).max() < MODULUS // 2:
            assert np.array_equal(centred(total.result()), true)

    def test_masks_that_cancel_modulo_2_to_the_32_change_nothing(self) -> None:
        """What secure aggregation will do with the very same values."""
        rows = [wrapped(RNG.integers(-50_000, 50_000, 64)) for _ in range(3)]
        mask = RNG.integers(0, 1 << 32, 64, dtype=np.uint32)
        plain, masked = ModularSum(64), ModularSum(64)
        for row in rows:
            plain.add(row)
        for row, own in zip(rows, (mask, np.uint32(0) - mask, np.zeros_like(mask)), strict=True):
            masked.add(row + own)
        assert np.array_equal(plain.result(), masked.result())

    def test_values_have_twenty_bits(self) -> None:
        assert BITS == 20
        assert wrapped(np.array([-1, 0, MODULUS, MODULUS // 2])).tolist() == [MODULUS - 1, 0, 0, MODULUS // 2]

    def test_another_shape_or_type_is_refused(self) -> None:
        with pytest.raises(ValueError, match="expected uint32"):
            ModularSum(3).add(np.zeros(4, dtype=np.uint32))
        with pytest.raises(ValueError, match="expected uint32"):
            ModularSum(3).add(np.zeros(3, dtype=np.int64))


class TestIntegerCode:
    def code(self, *, noise: float, size: int, most: int, least: int, clip: float = 0.7) -> IntegerCode:
        scale = choose_scale(clip=clip, noise_multiplier=noise, most=most, least=least, dim=padded(size))
        return IntegerCode(size=size, clip=clip, scale=scale, share=(noise * scale * clip) ** 2 / least)

    def total(self, code: IntegerCode, updates: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
        signs = rotation_signs(9, 1, code.dim)
        total = ModularSum(code.dim)
        for site, update in enumerate(updates):
            total.add(
                code.encode(
                    update,
                    signs,
                    rounding=cipher_generator(SEEDED, "round", site),
                    noise=cipher_generator(SEEDED, "noise", site),
                )
            )
        return code.decode(total.result(), signs)

    def test_the_decoded_sum_is_the_sum_plus_noise_of_the_stated_size(self) -> None:
        """KS against N(0, (zC)²) at five sites of which five are counted on; false alarm 1e-4; 2/3 and 3/2 rejected."""
        code = self.code(noise=1.3, size=3000, most=5, least=5)
        updates = [clip_update(normal(3000, 2.0), 0.7).vector for _ in range(5)]
        left = self.total(code, updates) - np.sum(updates, axis=0, dtype=np.float64)
        std = 1.3 * 0.7
        assert stats.kstest(left / std, "norm").pvalue > 1e-4
        for wrong in (2 / 3, 3 / 2):
            assert stats.kstest(left / (std * wrong), "norm").pvalue < 1e-9

    def test_equal_updates_of_all_sites_do_not_wrap(self) -> None:
        code = self.code(noise=1e-3, size=900, most=20, least=20)
        update = clip_update(normal(900, 5.0), 0.7).vector
        left = self.total(code, [update] * 20) - 20 * update.astype(np.float64)
        assert np.abs(left).max() < 0.02

    def test_eight_standard_deviations_of_a_coordinate_fit(self) -> None:
        for noise, size, most, least in ((1.0, 1000, 10, 5), (30.0, 60, 500, 100), (0.01, 10**6, 100, 100)):
            code = self.code(noise=noise, size=size, most=most, least=least)
            signal = (code.scale * most * code.clip) ** 2 / code.dim
            spread = math.sqrt(signal + most / 4 + most * code.share)
            assert WRAP_SIGMAS * spread == pytest.approx(MODULUS / 2, rel=1e-9)

    def test_every_site_keeps_to_the_stated_norms_before_noise(self) -> None:
        code = self.code(noise=0.5, size=500, most=3, least=3)
        signs = rotation_signs(9, 1, code.dim)
        rotated = rotate(clip_update(normal(500, 9.0), 0.7).vector, signs) * code.scale
        integers = conditional_round(rotated, norm=code.scale * code.clip, generator=RNG)
        assert np.linalg.norm(integers) <= code.l2
        assert np.abs(integers).sum() <= code.l1
        assert code.l1 == pytest.approx(min(math.sqrt(code.dim) * code.l2, code.l2**2))
