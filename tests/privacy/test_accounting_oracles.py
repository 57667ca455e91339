"""ε against oracles that share no code with the accounting: closed forms, quadrature, exact sums, Opacus, events by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from dp_accounting import NeighboringRelation  # type: ignore[import-untyped]  # dp-accounting ships no types
from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]  # as above
from dp_accounting.rdp import RdpAccountant  # type: ignore[import-untyped]  # as above
from scipy import integrate, optimize, stats

from cloister.privacy.accounting import delta_at, spent
from cloister.privacy.events import (
    Composed,
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

DELTA = 1e-5
RUN = PoissonGaussian(noise_multiplier=1.0, sampling_rate=0.01, steps=1000)
ROUND = PoissonGaussian(noise_multiplier=1.0, sampling_rate=0.01, steps=100)
Density = Callable[[np.ndarray], np.ndarray]


# ------------------------------------------------------------------ oracles


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


def quadrature_delta(p: Density, q: Density, epsilon: float, reach: float) -> float:
    """∫ max(p - e^ε q, 0): the definition of δ, by quadrature."""
    x = np.linspace(-reach, reach, 400_001)
    return float(integrate.simpson(np.maximum(p(x) - math.exp(epsilon) * q(x), 0.0), x=x))


def mixture(noise: float, weights: dict[float, float]) -> Density:
    return lambda x: sum(weight * stats.norm.pdf(x, move, noise) for move, weight in weights.items())  # type: ignore[return-value]


def pld_by_hand(event: object, relation: NeighboringRelation, delta: float) -> float:
    return float(PLDAccountant(relation, 1e-3).compose(event).get_epsilon(delta))


def rdp_by_hand(event: object, relation: NeighboringRelation, delta: float) -> float:
    return float(RdpAccountant(neighboring_relation=relation).compose(event).get_epsilon(delta))


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8, 1e-12])
@pytest.mark.parametrize("noise", [0.7, 2.0, 40.0])
def test_the_gaussian_mechanism_agrees_with_its_closed_form(noise: float, delta: float) -> None:
    found = spent(Gaussian(noise_multiplier=noise, count=5), delta)
    exact = gaussian_epsilon(math.sqrt(5) / noise, delta)
    assert exact <= found.epsilon <= exact * 1.005 + 1e-4


def test_gaussians_of_different_noise_compose_to_one_of_their_joint_precision() -> None:
    found = spent([Gaussian(noise_multiplier=2.0), Gaussian(noise_multiplier=3.0, count=4)], DELTA)
    exact = gaussian_epsilon(math.sqrt(1 / 4 + 4 / 9), DELTA)
    assert exact <= found.epsilon <= exact * 1.001


def test_replacing_one_moves_the_gaussian_mechanism_twice_as_far_in_both_bounds() -> None:
    found = spent(Gaussian(noise_multiplier=2.0), DELTA, relation=Relation.REPLACE_ONE)
    exact = gaussian_epsilon(1.0, DELTA)
    assert found.pld == pytest.approx(exact, rel=1e-3)
    assert found.rdp == spent(Gaussian(noise_multiplier=1.0), DELTA).rdp
    assert found.rdp is not None
    assert exact < found.rdp < 1.2 * exact


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_a_sampled_step_agrees_with_quadrature_in_both_directions(epsilon: float) -> None:
    moved, still = mixture(0.8, {0.0: 0.9, 1.0: 0.1}), mixture(0.8, {0.0: 1.0})
    exact = max(quadrature_delta(moved, still, epsilon, 12.0), quadrature_delta(still, moved, epsilon, 12.0))
    step = PoissonGaussian(noise_multiplier=0.8, sampling_rate=0.1)
    assert exact * (1 - 1e-6) <= delta_at(step, epsilon) <= exact * 1.001 + 1e-9


def test_several_records_a_person_agree_with_quadrature_in_both_directions() -> None:
    weights = {float(i): math.comb(3, i) * 0.1**i * 0.9 ** (3 - i) for i in range(4)}
    moved, still = mixture(2.0, weights), mixture(2.0, {0.0: 1.0})
    inner = PoissonGaussian(noise_multiplier=2.0, sampling_rate=0.1)
    step = SeveralRecords(records=3, event=inner)
    for epsilon in (0.2, 1.0):
        exact = max(
            quadrature_delta(moved, still, epsilon, 25.0), quadrature_delta(still, moved, epsilon, 25.0)
        )
        assert exact * (1 - 1e-6) <= delta_at(step, epsilon) <= exact * 1.001 + 1e-9
        assert delta_at(step, epsilon) > 2 * delta_at(inner, epsilon)


def test_several_records_a_person_cost_more_and_only_pld_knows_how_much() -> None:
    run = PoissonGaussian(noise_multiplier=3.0, sampling_rate=0.1, steps=30)
    found = spent(SeveralRecords(records=2, event=run), DELTA)
    assert spent(run, DELTA).epsilon * 1.5 < found.epsilon
    assert found.rdp is None
    assert "several-records" in found.left_out["rdp"]


def test_laplace_noise_agrees_with_its_closed_form() -> None:
    """One application is (1/b)-DP, with δ(ε) = 1 - exp((ε - 1/b)/2) below."""
    event = Laplace(noise_multiplier=2.0)
    assert spent(event, 1e-9).epsilon == pytest.approx(0.5, abs=2e-3)
    assert delta_at(event, 0.2) == pytest.approx(-math.expm1((0.2 - 0.5) / 2), rel=1e-3)


@pytest.mark.parametrize(("variance", "move"), [(400.0, 20), (2500.0, 25)])
def test_skellam_noise_is_bounded_from_above_and_closely_by_its_exact_privacy_loss(
    variance: float, move: int
) -> None:
    x = np.arange(-1500, 1501)
    p, q = (stats.skellam.pmf(x - moved, variance / 2, variance / 2) for moved in (move, 0))
    event = Skellam(variance=variance, l2=float(move), l1=float(move))
    for epsilon in (0.5, 1.0, 2.0):
        exact = float(np.maximum(p - math.exp(epsilon) * q, 0).sum())
        bound = delta_at(event, epsilon)
        assert exact <= bound <= 6 * exact  # what converting Rényi divergences costs
    for order in (2, 5, 11):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(p > 0, p * (p / q) ** (order - 1), 0.0)
        exact = math.log(ratio[np.isfinite(ratio)].sum()) / (order - 1)
        zcdp = event.dp_event()
        assert exact <= zcdp.xi + zcdp.rho * order <= 1.1 * exact


def test_dp_sgd_agrees_with_the_prv_accountant_of_opacus_within_a_percent() -> None:
    from opacus.accountants import PRVAccountant  # type: ignore[import-untyped]  # Opacus ships no types

    for noise, rate, steps in ((1.0, 0.01, 1000), (1.3, 0.034, 400)):
        prv = PRVAccountant()
        prv.history = [(noise, rate, steps)]
        mine = spent(PoissonGaussian(noise_multiplier=noise, sampling_rate=rate, steps=steps), DELTA).epsilon
        assert mine == pytest.approx(prv.get_epsilon(delta=DELTA), rel=0.01)


@pytest.mark.parametrize(
    "event",
    [
        RUN,
        PoissonGaussian(noise_multiplier=0.6, sampling_rate=0.1, steps=50),
        Gaussian(noise_multiplier=3.0, count=4),
        Laplace(noise_multiplier=8.0, count=9),
        SeveralRecords(records=2, event=PoissonGaussian(noise_multiplier=3.0, sampling_rate=0.1, steps=30)),
        Composed(events=(ROUND, Laplace(noise_multiplier=9.0), Gaussian(noise_multiplier=9.0))),
    ],
    ids=lambda event: event.kind,
)
def test_pld_is_what_the_accountant_says_of_the_same_event(event: Event) -> None:
    by_hand = pld_by_hand(event.dp_event(), NeighboringRelation.REPLACE_SPECIAL, DELTA)
    assert spent(event, DELTA).pld == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize(
    ("event", "relation"),
    [
        (RUN, NeighboringRelation.REPLACE_SPECIAL),
        (Gaussian(noise_multiplier=3.0, count=4), NeighboringRelation.REPLACE_SPECIAL),
        (Laplace(noise_multiplier=8.0, count=9), NeighboringRelation.REPLACE_SPECIAL),
        (
            Selected(event=ROUND, mean_runs=20.0, distribution="geometric"),
            NeighboringRelation.REPLACE_SPECIAL,
        ),
        (Selected(event=ROUND, mean_runs=20.0, distribution="poisson"), NeighboringRelation.REPLACE_SPECIAL),
        (
            Selected(event=ROUND, mean_runs=20.0, distribution="logarithmic"),
            NeighboringRelation.REPLACE_SPECIAL,
        ),
        (
            FixedSizeGaussian(noise_multiplier=4.0, sample_size=10, population=900, steps=70),
            NeighboringRelation.REPLACE_ONE,
        ),
    ],
    ids=lambda value: getattr(value, "kind", value.name if hasattr(value, "name") else ""),
)
def test_rdp_is_what_the_accountant_says_of_the_same_event(
    event: Event, relation: NeighboringRelation
) -> None:
    assert spent(event, DELTA).rdp == pytest.approx(rdp_by_hand(event.dp_event(), relation, DELTA), rel=1e-6)


def test_skellam_is_accounted_at_whole_orders_only() -> None:
    event = Skellam(variance=1e4, l2=60.0, l1=900.0, count=30)
    whole = [*range(2, 64), 128, 256, 512, 1024]
    at_whole = (
        RdpAccountant(whole, NeighboringRelation.REPLACE_SPECIAL).compose(event.dp_event()).get_epsilon(DELTA)
    )
    assert spent(event, DELTA).epsilon == pytest.approx(at_whole, rel=1e-9)
    assert rdp_by_hand(event.dp_event(), NeighboringRelation.REPLACE_SPECIAL, DELTA) < 0.999 * at_whole
