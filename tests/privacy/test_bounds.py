"""Where the accountants alone would mislead, run away or crash: each bound stays a bound."""

import logging
import math

import numpy as np
import pytest
from dp_accounting import NeighboringRelation  # type: ignore[import-untyped]  # dp-accounting ships no types
from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]  # as above
from dp_accounting.pld.privacy_loss_distribution import (  # type: ignore[import-untyped]  # as above
    from_gaussian_mechanism,
    from_mixture_gaussian_mechanism,
)
from dp_accounting.rdp import RdpAccountant  # type: ignore[import-untyped]  # as above
from scipy import integrate, optimize, stats

from cloister.privacy.accounting import delta_at, spent
from cloister.privacy.bounds import GRIDS, pld_delta
from cloister.privacy.events import (
    Event,
    FixedSizeGaussian,
    Gaussian,
    Laplace,
    PoissonGaussian,
    Relation,
    Selected,
    SeveralRecords,
    Skellam,
)
from cloister.privacy.mixture import mixture_pld
from cloister.privacy.tally import Tally

DELTA = 1e-5


def gaussian_delta(shift: float, epsilon: float) -> float:
    """Balle & Wang (2018, Thm. 8): δ of the Gaussian mechanism whose mean moves by ``shift`` standard deviations."""
    log_in, log_out = (
        stats.norm.logcdf(shift / 2 - epsilon / shift),
        stats.norm.logcdf(-shift / 2 - epsilon / shift),
    )
    return float(-np.exp(log_in) * np.expm1(epsilon + log_out - log_in))


def gaussian_epsilon(shift: float, delta: float) -> float:
    def above(epsilon: float) -> float:
        return math.log(max(gaussian_delta(shift, epsilon), 1e-300) / delta)

    return float(optimize.brentq(above, 0.0, 60.0, xtol=1e-12)) if above(0.0) > 0 else 0.0


def pld_by_hand(event: object, delta: float) -> float:
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, 1e-3)
    return float(accountant.compose(event).get_epsilon(delta))


@pytest.mark.parametrize(
    "event",
    [
        PoissonGaussian(noise_multiplier=1e-6, sampling_rate=0.5, steps=10**6),
        PoissonGaussian(noise_multiplier=1e9, sampling_rate=0.5, steps=10**12),
        PoissonGaussian(noise_multiplier=1e9, sampling_rate=1e-12, steps=10**6),
        PoissonGaussian(noise_multiplier=0.1, sampling_rate=1e-12, steps=10**5),
        PoissonGaussian(noise_multiplier=0.01, sampling_rate=0.999999, steps=3),
        Gaussian(noise_multiplier=1e-6, count=10**12),
        Gaussian(noise_multiplier=1e9),
        Laplace(noise_multiplier=1e-6, count=10**12),
        Laplace(noise_multiplier=1e9, count=10**4),
        Skellam(variance=1e-12, l2=1e15, l1=1e30, count=10**12),
        SeveralRecords(
            records=256, event=PoissonGaussian(noise_multiplier=1e-6, sampling_rate=0.5, steps=10)
        ),
        SeveralRecords(
            records=256, event=PoissonGaussian(noise_multiplier=1e9, sampling_rate=1e-12, steps=10)
        ),
        SeveralRecords(
            records=2, event=PoissonGaussian(noise_multiplier=0.3, sampling_rate=1e-12, steps=10**6)
        ),
        Selected(event=PoissonGaussian(noise_multiplier=1e-3, sampling_rate=0.5), mean_runs=1e9),
        FixedSizeGaussian(noise_multiplier=1e-6, sample_size=1, population=10**12, steps=10**12),
        FixedSizeGaussian(noise_multiplier=1e9, sample_size=5, population=5, steps=10),
    ],
    ids=lambda event: f"{event.kind}-{getattr(event, 'noise_multiplier', '')}",
)
def test_extreme_values_give_a_bound_without_a_warning_or_a_crash(event: Event) -> None:
    found = spent(event, DELTA)
    assert found.epsilon >= 0
    assert 0 <= delta_at(event, 1.0) <= 1


def test_the_rounding_of_the_fft_is_charged_to_delta() -> None:
    """dp-accounting alone says less at δ = 1e-12 (28.439 to 28.466, as the processor rounds), where 10,000 unsampled steps at σ = 30 cost 28.467."""
    single = from_gaussian_mechanism(30.0, value_discretization_interval=1e-3)
    assert single.self_compose(10_000).get_epsilon_for_delta(1e-12) < gaussian_epsilon(100 / 30, 1e-12)
    steps = PoissonGaussian(noise_multiplier=3.0, sampling_rate=0.1, steps=10_000)
    alone = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, 1e-3).compose(steps.dp_event())
    for delta in (1e-5, 3e-11):
        assert spent(steps, delta).pld == pytest.approx(alone.get_epsilon(delta - 1e-11), rel=1e-5)
    assert alone.get_epsilon(3e-11) < alone.get_epsilon(2e-11)
    below = spent(steps, 1.9e-11)
    assert below.pld is None
    assert "FFT" in below.left_out["pld"]
    tally = Tally()
    tally.add(steps)
    by_pld = pld_delta(tally.merged(), Relation.ZERO_OUT, 40.0)
    assert by_pld is not None
    assert 1e-11 <= by_pld < 1.1e-11


def test_many_steps_with_a_small_loss_each_are_not_rounded_up_to_the_grid() -> None:
    steps = PoissonGaussian(noise_multiplier=100.0, sampling_rate=0.01, steps=10_000)
    found = spent(steps, DELTA)
    assert found.pld == pytest.approx(0.0275, rel=0.1)  # the central limit: 10,000 losses of 1e-4
    assert pld_by_hand(steps.dp_event(), DELTA) > 3 * found.epsilon
    assert found.rdp is not None
    assert found.epsilon < found.rdp


def test_an_order_that_rounding_takes_below_zero_is_not_taken_for_no_loss() -> None:
    """dp-accounting alone calls 1e12 such steps free at δ = 1e-5, though they amount to a single query at σ = 1000."""
    steps = PoissonGaussian(noise_multiplier=1e6, sampling_rate=0.001, steps=10**12)
    alone = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL).compose(steps.dp_event())
    assert alone.rdp.min() < 0
    assert alone.get_epsilon(DELTA) == 0
    assert spent(steps, DELTA).epsilon >= gaussian_epsilon(1e-3, DELTA) > 1e-3


@pytest.mark.parametrize(("records", "noise", "grid"), [(1, 1.0, 5e-3), (4, 2.0, 1e-2), (40, 160.0, 1e-3)])
def test_a_mixture_is_the_accountants_own_only_sooner(records: int, noise: float, grid: float) -> None:
    moves = [float(i) for i in range(records + 1)]
    chances = np.asarray(stats.binom.pmf(range(records + 1), records, 0.05)).tolist()
    mine = mixture_pld(noise, moves, chances, grid)
    theirs = from_mixture_gaussian_mechanism(noise, moves, chances, value_discretization_interval=grid)
    for epsilon in (0.0, 0.01, 0.1, 0.4):
        by_hand = theirs.get_delta_for_epsilon(epsilon)
        assert mine.get_delta_for_epsilon(epsilon) == pytest.approx(by_hand, rel=1e-8, abs=1e-15)
    for delta in (1e-5, 1e-9):
        by_hand = theirs.get_epsilon_for_delta(delta)
        assert mine.get_epsilon_for_delta(delta) == pytest.approx(by_hand, abs=5e-12)


def test_a_mixture_that_hardly_ever_moves_is_not_taken_for_one_that_never_does() -> None:
    """Of a chance of 1e-9 dp-accounting alone leaves 5e-12 at ε = 0, where quadrature finds 9e-10."""
    x = np.linspace(-3.6, 4.6, 400_001)
    still, moved = stats.norm.pdf(x, 0, 0.3), stats.norm.pdf(x, 1, 0.3)
    exact = 1e-9 * float(integrate.simpson(np.maximum(moved - still, 0), x=x))
    mine = mixture_pld(0.3, [0.0, 1.0], [1 - 1e-9, 1e-9], 1e-3)
    assert exact <= mine.get_delta_for_epsilon(0.0) <= 1.2 * exact
    alone = from_mixture_gaussian_mechanism(
        0.3, [0.0, 1.0], [1 - 1e-9, 1e-9], value_discretization_interval=1e-3
    )
    assert alone.get_delta_for_epsilon(0.0) < 0.01 * exact


def test_losses_beyond_memory_are_left_to_the_other_bound() -> None:
    found = spent(PoissonGaussian(noise_multiplier=0.01, sampling_rate=0.1, steps=10), DELTA)
    assert found.pld == math.inf
    assert "not computed" in found.left_out["pld"]
    assert found.epsilon == found.rdp


def test_the_accountants_keep_quiet_about_orders_that_they_leave_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = PoissonGaussian(noise_multiplier=1.0, sampling_rate=0.1, steps=3)
    with caplog.at_level(logging.WARNING):
        spent(steps, DELTA)
    assert not caplog.records
    assert not logging.getLogger("absl").filters
    assert GRIDS[0] == 1e-3
