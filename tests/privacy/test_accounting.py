"""Accounting: against closed forms, against published figures, and laws that every accountant has to obey."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import koinon as ko
from koinon.privacy import (
    FixedSizeSampling,
    NoSampling,
    PoissonSampling,
    calibrate_noise_multiplier,
    compute_epsilon,
    dp_event,
    epsilon_of_event,
)
from koinon.privacy._accounting import ORDERS, epsilon_offsets, rdp_per_round

dp_accounting = pytest.importorskip("dp_accounting")

# (noise multiplier, rounds, sampling probability): the epsilon at delta 1e-6 that `dp_accounting` 0.6.0 gives with the
# orders that it takes by default; `test_the_golden_figures_are_those_of_the_package` computes them again.
GOLDEN = {
    (0.6, 1, 0.001): 2.361191746,
    (0.6, 1, 0.01): 3.667121297,
    (0.6, 1, 0.1): 6.309674589,
    (0.6, 100, 0.001): 2.781587487,
    (0.6, 100, 0.01): 5.790717170,
    (0.6, 100, 0.1): 25.992661880,
    (0.6, 2000, 0.001): 3.313335442,
    (0.6, 2000, 0.01): 12.861097317,
    (0.6, 2000, 0.1): 201.850774994,
    (1.0, 1, 0.001): 0.785894752,
    (1.0, 1, 0.01): 1.212123844,
    (1.0, 1, 0.1): 2.582589050,
    (1.0, 100, 0.001): 0.813174475,
    (1.0, 100, 0.01): 1.507389492,
    (1.0, 100, 0.1): 8.921391653,
    (1.0, 2000, 0.001): 0.881911572,
    (1.0, 2000, 0.01): 3.246453284,
    (1.0, 2000, 0.1): 46.502942669,
    (2.0, 1, 0.001): 0.162840282,
    (2.0, 1, 0.01): 0.257538850,
    (2.0, 1, 0.1): 0.661378906,
    (2.0, 100, 0.001): 0.164418617,
    (2.0, 100, 0.01): 0.322917383,
    (2.0, 100, 0.1): 2.914173762,
    (2.0, 2000, 0.001): 0.182314683,
    (2.0, 2000, 0.01): 1.119979852,
    (2.0, 2000, 0.1): 14.700300724,
    (8.0, 1, 0.001): 0.012877182,
    (8.0, 1, 0.01): 0.013312415,
    (8.0, 1, 0.1): 0.064701162,
    (8.0, 100, 0.001): 0.013279546,
    (8.0, 100, 0.01): 0.049523595,
    (8.0, 100, 0.1): 0.562128383,
    (8.0, 2000, 0.001): 0.021001685,
    (8.0, 2000, 0.01): 0.240176791,
    (8.0, 2000, 0.1): 2.761367913,
}


def sampled_gaussian_rdp(q, z, order):
    """For an integer order: log(sum_k C(order, k) (1-q)^(order-k) q^k exp(k (k-1) / 2 z^2)) / (order - 1)."""
    terms = [
        math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
        + (order - k) * math.log1p(-q) + k * math.log(q) + k * (k - 1) / (2 * z * z)
        for k in range(order + 1)
    ]  # fmt: skip
    top = max(terms)
    return (top + math.log(math.fsum(math.exp(t - top) for t in terms))) / (order - 1)


@pytest.mark.parametrize(("q", "z"), list(itertools.product([1e-4, 0.01, 0.2], [0.5, 1.0, 4.0])))
def test_the_divergence_of_a_round_is_the_closed_form_at_integer_orders(q, z):
    """The sampled Gaussian of Mironov, Talwar and Zhang, within 1e-6 for every integer order up to 64."""
    rdp = rdp_per_round(z, PoissonSampling(q))
    for order, found in zip(ORDERS, rdp, strict=True):
        if order == int(order) and order <= 64:
            assert found == pytest.approx(sampled_gaussian_rdp(q, z, int(order)), abs=1e-6, rel=1e-6)


def test_epsilon_is_that_of_the_golden_figures():
    """Within 1e-6, for 36 settings of noise, rounds and sampling."""
    for (z, rounds, q), epsilon in GOLDEN.items():
        assert compute_epsilon(z, rounds, 1e-6, PoissonSampling(q)) == pytest.approx(epsilon, abs=1e-6)


@pytest.mark.soak
def test_the_golden_figures_are_those_of_the_package():
    """And so are a hundred more, each composed round by round by an accountant of the package."""
    more = itertools.product([0.5, 0.8, 1.3, 3.0, 10.0], [3, 30, 300, 3000], [1e-4, 3e-3, 0.03, 0.3, 1.0])
    for z, rounds, q in [*GOLDEN, *more]:
        accountant = dp_accounting.rdp.RdpAccountant()
        accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z)), rounds)
        epsilon = accountant.get_epsilon(1e-6)

        assert compute_epsilon(z, rounds, 1e-6, PoissonSampling(q)) == pytest.approx(epsilon, abs=1e-6)
        if (z, rounds, q) in GOLDEN:
            assert GOLDEN[z, rounds, q] == pytest.approx(epsilon, abs=1e-6)


def test_without_sampling_the_divergence_is_that_of_a_gaussian():
    """`order / (2 z^2)`, and the package agrees."""
    np.testing.assert_allclose(rdp_per_round(1.7, NoSampling()), np.array(ORDERS) / (2 * 1.7**2), rtol=1e-12)
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(1.7), 10)
    assert compute_epsilon(1.7, 10, 1e-6, NoSampling()) == pytest.approx(epsilon_of_event(event, 1e-6), abs=1e-9)


@pytest.mark.parametrize(("z", "rounds", "delta"), [(1.0, 1, 1e-5), (0.7, 100, 1e-6), (20.0, 3000, 1e-9)])
def test_epsilon_is_the_least_over_the_orders(z, rounds, delta):
    """What a round measures in the program is what the package computes."""
    for sampling in (NoSampling(), PoissonSampling(0.05)):
        ours = np.min(rounds * rdp_per_round(z, sampling) + epsilon_offsets(delta))
        assert max(ours, 0.0) == pytest.approx(compute_epsilon(z, rounds, delta, sampling), abs=1e-6)


def test_published_figures_come_out():
    """Gboard's rho of 0.81 at 1e-10; DP-FTRL of 1,600 rounds with 1.13 and 8.83 at 1e-6."""
    assert epsilon_of_event(dp_accounting.ZCDpEvent(0.81), 1e-10) == pytest.approx(8.922, abs=1e-3)
    for multiplier, epsilon in ((1.13, 18.71), (8.83, 1.773)):
        event = dp_accounting.SingleEpochTreeAggregationDpEvent(multiplier, 1600)
        assert epsilon_of_event(event, 1e-6) == pytest.approx(epsilon, abs=5e-3)


def test_replacing_a_client_counts_twice():
    """A cohort that is everybody is no sample: the epsilon of a fixed size is that of half the noise."""
    assert compute_epsilon(2.0, 5, 1e-6, FixedSizeSampling(7, 7)) == pytest.approx(
        compute_epsilon(1.0, 5, 1e-6, NoSampling()), rel=1e-6
    )
    event = dp_event(2.0, 5, FixedSizeSampling(7, 100))
    assert event.event == dp_accounting.SampledWithoutReplacementDpEvent(100, 7, dp_accounting.GaussianDpEvent(1.0))


def test_privacy_loss_distributions_are_tighter_and_not_below_the_truth():
    """Without sampling the truth is known: the analytic Gaussian mechanism."""
    z, rounds, delta = 2.0, 4, 1e-5
    exact = ko.privacy.audit.gaussian_epsilon((0.0, z / math.sqrt(rounds)), (1.0, z / math.sqrt(rounds)), delta)
    tight, loose = (compute_epsilon(z, rounds, delta, NoSampling(), name) for name in ("pld", "rdp"))

    assert exact - 1e-6 <= tight <= exact + 1e-3
    assert tight < loose


SETTINGS = {
    "z": st.floats(0.3, 30.0),
    "rounds": st.integers(1, 3000),
    "q": st.floats(1e-5, 1.0),
    "log_delta": st.floats(-10, -3),
    "factor": st.floats(1.01, 3.0),
}


@settings(max_examples=4, deadline=None)
@given(**SETTINGS)
def test_more_rounds_more_clients_and_less_noise_cost_more(z, rounds, q, log_delta, factor):
    """Epsilon grows with the rounds and the probability, and falls with the noise and with delta."""
    check_laws(z, rounds, q, log_delta, factor)


@pytest.mark.soak
@settings(max_examples=2000, deadline=None)
@given(**SETTINGS)
def test_the_laws_hold_everywhere(z, rounds, q, log_delta, factor):
    """As above, ten thousand epsilons."""
    check_laws(z, rounds, q, log_delta, factor)


def check_laws(z, rounds, q, log_delta, factor):
    """Compares five neighbouring settings, of which the package finds the divergences of all orders.

    It leaves out orders whose series converges too slowly, for little noise and much sampling. What is left is a bound
    all the same, but one setting may then miss the best order of its neighbour.
    """
    for noise, probability in ((z, q), (z, min(1.0, q * factor)), (z * factor, q)):
        assume(np.isfinite(rdp_per_round(noise, PoissonSampling(probability))).all())
    delta = 10.0**log_delta
    here = compute_epsilon(z, rounds, delta, PoissonSampling(q))
    slack = 1e-9 + 1e-9 * here

    assert compute_epsilon(z, math.ceil(rounds * factor), delta, PoissonSampling(q)) >= here - slack
    assert compute_epsilon(z, rounds, delta, PoissonSampling(min(1.0, q * factor))) >= here - slack
    assert compute_epsilon(z * factor, rounds, delta, PoissonSampling(q)) <= here + slack
    assert compute_epsilon(z, rounds, delta * factor, PoissonSampling(q)) <= here + slack
    assert compute_epsilon(z, rounds, delta, NoSampling()) >= here - slack


@pytest.mark.parametrize("sampling", [NoSampling(), PoissonSampling(0.1), FixedSizeSampling(3, 30)])
def test_no_noise_costs_everything_and_no_round_nothing(sampling):
    """Infinity and zero."""
    assert compute_epsilon(0.0, 3, 1e-5, sampling) == math.inf
    assert compute_epsilon(1.0, 0, 1e-5, sampling) == 0.0
    assert (rdp_per_round(0.0, sampling) == math.inf).all()


def test_extreme_settings_never_cost_nothing():
    """Tiny probabilities and huge numbers of rounds have an epsilon above zero."""
    assert compute_epsilon(0.01, 1, 1e-12, PoissonSampling(1e-4)) > 0.1
    assert compute_epsilon(1.0, 10**9, 1e-12, PoissonSampling(1e-5)) > 0.1


@pytest.mark.parametrize(
    ("sampling", "epsilon"), [(NoSampling(), 0.3), (NoSampling(), 8.0), (PoissonSampling(0.02), 2.0)]
)
def test_calibrated_noise_is_just_enough(sampling, epsilon):
    """It spends no more than the budget, and a thousandth less noise would."""
    z = calibrate_noise_multiplier(epsilon, 1e-6, 200, sampling)

    assert compute_epsilon(z, 200, 1e-6, sampling) <= epsilon < compute_epsilon(z * 0.999, 200, 1e-6, sampling)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compute_epsilon(1.0, 1, 0.0, NoSampling()), "delta"),
        (lambda: compute_epsilon(1.0, 1, 1.0, NoSampling()), "delta"),
        (lambda: compute_epsilon(-1.0, 1, 0.1, NoSampling()), "noise multiplier"),
        (lambda: compute_epsilon(1.0, -1, 0.1, NoSampling()), "rounds"),
        (lambda: compute_epsilon(1.0, 1, 0.1, 0.01), "how the cohorts are drawn"),
        (lambda: compute_epsilon(1.0, 1, 0.1, NoSampling(), "gdp"), "no such accountant"),
        (lambda: calibrate_noise_multiplier(0.0, 0.1, 1, NoSampling()), "epsilon"),
        (lambda: calibrate_noise_multiplier("1", 0.1, 1, NoSampling()), "epsilon must be a number"),
        (lambda: compute_epsilon(1.0, "1", 0.1, NoSampling()), "rounds must be a number"),
        (lambda: compute_epsilon(None, 1, 0.1, NoSampling()), "noise multiplier must be a number"),
        (lambda: compute_epsilon(1.0, 1, "0.1", NoSampling()), "delta must be a number"),
        (lambda: PoissonSampling("0.1"), "probability must be a number"),
        (lambda: FixedSizeSampling(1.5, 3), "must be ints"),
        (lambda: calibrate_noise_multiplier(1.0, 0.1, 0, NoSampling()), "round"),
        (lambda: PoissonSampling(0.0), "probability"),
        (lambda: PoissonSampling(1.1), "probability"),
        (lambda: FixedSizeSampling(0, 3), "cohort"),
        (lambda: FixedSizeSampling(4, 3), "cohort"),
        (lambda: epsilon_of_event(dp_accounting.UnsupportedDpEvent(), 0.1), "does not know"),
    ],
)
def test_what_cannot_be_accounted_for_is_refused(call, message):
    """Every argument has a range."""
    with pytest.raises(ko.errors.KoinonError, match=message):
        call()


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    """Only what needs the package fails."""
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)

    assert rdp_per_round(1.0, NoSampling()).shape == (len(ORDERS),)
    with pytest.raises(ko.errors.MissingDependencyError, match=r"koinon\[dp\]"):
        compute_epsilon(1.0, 1, 0.1, PoissonSampling(0.5))
