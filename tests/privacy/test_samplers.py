"""The discrete Gaussian and the Skellam sampler, against their exact probabilities."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext
from fractions import Fraction

import jax
import numpy as np
import pytest
from scipy import special, stats

import koinon as ko
from koinon.privacy._chacha import noise_key, random_words
from koinon.privacy._samplers import discrete_gaussian_sampler, skellam_sampler

VARIANCES = [Fraction(1, 4), Fraction(1), Fraction(4), Fraction(25), Fraction(10**4)]
COUNT = 1_000_000
# Four standard errors of a standard deviation of a million normal numbers: 4 / sqrt(2 N).
BAND = 4 / math.sqrt(2 * COUNT)


@jax.jit
def words_of(round_, key):
    """Words for a million draws from three tables."""
    return random_words(key, (round_, 0, 0), 9 * COUNT).reshape(9, COUNT)


def draw(sampler, seed):
    """A million integers."""
    words = words_of(seed, noise_key(11))[: sampler.words]
    return np.asarray(jax.jit(sampler)(words))


def gaussian_weights(variance, radius):
    """`exp(-x^2 / 2 variance)` for x from -radius to radius, from the definition, in 50 digits."""
    getcontext().prec = 50
    v = Decimal(variance.numerator) / Decimal(variance.denominator)
    return [(-Decimal(x * x) / (2 * v)).exp() for x in range(-radius, radius + 1)]


def exact_gaussian(variance, values):
    """The probabilities of values, in float64."""
    radius = 40 + int(12 * math.sqrt(variance))
    grid = np.arange(-radius, radius + 1)
    weights = np.exp(-(grid**2) / (2 * float(variance)))
    return np.exp(-(values.astype(np.float64) ** 2) / (2 * float(variance))) / weights.sum()


def exact_skellam(variance, values):
    """The probabilities by the scaled Bessel function."""
    return special.ive(np.abs(values), float(variance))


def chi_square_p(drawn, pmf):
    """The p-value of a chi-square test of the counts of all values that are expected ten times or more."""
    values = np.arange(drawn.min(), drawn.max() + 1)
    expected = pmf(values) * len(drawn)
    observed = np.bincount(drawn - drawn.min(), minlength=len(values))
    often = expected >= 10
    observed, expected = observed[often], expected[often]
    # All the rest counts with the rarest of them.
    observed[-1] += len(drawn) - observed.sum()
    expected[-1] += len(drawn) - expected.sum()
    return stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(observed) - 1)


@pytest.mark.parametrize("variance", VARIANCES, ids=str)
@pytest.mark.parametrize(
    ("make", "exact"),
    [(discrete_gaussian_sampler, exact_gaussian), (skellam_sampler, exact_skellam)],
    ids=["gaussian", "skellam"],
)
def test_a_million_draws_follow_the_probabilities(make, exact, variance):
    """The chi-square test does not reject, and rejects draws of a deviation that is 1 percent larger."""
    drawn = draw(make(variance), 0)

    assert chi_square_p(drawn, lambda values: exact(variance, values)) > 1e-4
    if variance >= 1:
        wrong = draw(make(variance * Fraction(101, 100) ** 2), 0)
        assert chi_square_p(wrong, lambda values: exact(variance, values)) < 1e-4


def in_band(drawn, deviation):
    """Whether the standard deviation is within four standard errors of what it should be."""
    return abs(np.sqrt(np.mean(drawn.astype(np.float64) ** 2)) / deviation - 1) < BAND


@pytest.mark.parametrize("deviation", [3, 1000, 2**22])
def test_the_deviation_is_right_within_a_third_of_a_percent(deviation):
    """Within 0.283 percent at a million draws, of one table and of sums of two and three; and 1 percent more is not."""
    assert BAND < 0.00283
    assert in_band(draw(discrete_gaussian_sampler(Fraction(deviation) ** 2), 1), deviation)
    assert not in_band(draw(discrete_gaussian_sampler((Fraction(deviation) * Fraction(101, 100)) ** 2), 1), deviation)


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(7, 3), Fraction(448**2)], ids=str)
def test_a_table_has_the_probabilities_that_it_states(variance):
    """The total variation distance of the exact probabilities of a table to the definition is below 2**-63."""
    ((_, table),) = discrete_gaussian_sampler(variance).parts
    radius = 30 + int(15 * math.sqrt(variance))
    weights = gaussian_weights(variance, radius)
    total = sum(weights)
    exact = {x: weight / total for x, weight in zip(range(-radius, radius + 1), weights, strict=True)}
    of_table = dict(enumerate(table.probabilities(), table.first))
    assert sum(of_table.values()) == 1
    distance = sum(
        abs(exact.get(x, Decimal(0)) - Decimal(p.numerator) / p.denominator) for x, p in of_table.items()
    ) + sum(p for x, p in exact.items() if x not in of_table)

    assert distance / 2 < Decimal(2) ** -63


def test_a_skellam_table_has_the_probabilities_that_it_states():
    """Against the sum over two Poisson variables, exactly but for a factor exp(-variance)."""
    getcontext().prec = 50
    mean = Fraction(3, 2)
    poisson = [Fraction(mean**k, math.factorial(k)) for k in range(80)]
    factor = (-2 * Decimal(mean.numerator) / mean.denominator).exp()
    ((_, table),) = skellam_sampler(2 * mean).parts
    distance = Decimal(0)
    for value, probability in enumerate(table.probabilities(), table.first):
        exact = sum(poisson[k] * poisson[k + abs(value)] for k in range(80 - abs(value)))
        distance += abs(
            factor * Decimal(exact.numerator) / exact.denominator
            - Decimal(probability.numerator) / probability.denominator
        )

    assert distance / 2 < Decimal(2) ** -63


def test_a_sum_of_tables_is_a_discrete_gaussian():
    """The weights of `x + 256 y`, from their definition, are those of the sum but for a factor of 1 +- 2**-62."""
    variance = Fraction(1281) ** 2
    (one, _), (step, second) = discrete_gaussian_sampler(variance).parts
    inner, outer = Fraction(448**2), (variance - 448**2) / 256**2
    assert (one, step) == (1, 256)
    assert discrete_gaussian_sampler(outer).parts[0][1] is second
    getcontext().prec = 50
    low, high = (Decimal(v.numerator) / Decimal(v.denominator) for v in (inner, outer))
    total = low + 256 * 256 * high

    def ratio(n):
        terms = ((-((n - 256 * j) ** 2) / (2 * low) - j * j / (2 * high)).exp() for j in map(Decimal, range(-60, 61)))
        return sum(terms) / (-Decimal(n * n) / (2 * total)).exp()

    ratios = [ratio(n) for n in range(-6000, 6000, 37)]
    assert max(ratios) / min(ratios) - 1 < Decimal(2) ** -66


@pytest.mark.parametrize("deviation", [1, 50, 2**22])
def test_values_beyond_six_deviations_can_be_drawn(deviation):
    """The extreme slots of the tables reach beyond 9 deviations, where float32 normal noise ends at 5.42."""
    sampler = discrete_gaussian_sampler(Fraction(deviation) ** 2)
    reach = sum(factor * (table.first + len(table.probabilities()) - 1) for factor, table in sampler.parts)

    assert reach > 9 * deviation


def test_draws_of_different_words_are_independent():
    """Neighbouring elements, and elements of neighbouring rounds, are not correlated."""
    sampler = discrete_gaussian_sampler(Fraction(2500))
    first, second = (draw(sampler, seed) / 50 for seed in (2, 3))

    assert abs(np.mean(first[1:] * first[:-1])) < 4 / math.sqrt(COUNT)
    assert abs(np.mean(first * second)) < 4 / math.sqrt(COUNT)
    assert abs(np.mean(first)) < 4 / math.sqrt(COUNT)


def test_sums_of_skellam_noise_are_skellam_noise():
    """Three shares of a third of the variance follow the probabilities of the whole."""
    share = skellam_sampler(Fraction(3))
    total = sum(draw(share, seed) for seed in range(3))

    assert chi_square_p(total, lambda values: exact_skellam(9, values)) > 1e-4


def test_the_same_key_gives_the_same_draws():
    """The public functions are functions of their key."""
    key = jax.random.key(3)
    for fn in (ko.privacy.discrete_gaussian, ko.privacy.skellam):
        np.testing.assert_array_equal(fn(key, 5.0, (100,)), fn(key, 5.0, (100,)))
        assert (fn(key, 5.0, (100,)) != fn(jax.random.key(4), 5.0, (100,))).any()


@pytest.mark.parametrize("variance", [0.0, -1.0, 2.0**55])
def test_a_variance_out_of_its_range_is_refused(variance):
    """There is no noise of a negative variance, and none that 32 bits cannot hold."""
    with pytest.raises(ko.errors.KoinonValueError, match="variance"):
        ko.privacy.discrete_gaussian(jax.random.key(0), variance)
    with pytest.raises(ko.errors.KoinonValueError, match="variance"):
        ko.privacy.skellam(jax.random.key(0), variance)


@pytest.mark.soak
@pytest.mark.parametrize("variance", VARIANCES, ids=str)
@pytest.mark.parametrize(
    ("make", "exact"),
    [(discrete_gaussian_sampler, exact_gaussian), (skellam_sampler, exact_skellam)],
    ids=["gaussian", "skellam"],
)
def test_p_values_are_uniform(make, exact, variance):
    """Those of twenty runs of a million draws are all above 1e-4, and together look uniform."""
    sampler = make(variance)
    p_values = [chi_square_p(draw(sampler, seed), lambda values: exact(variance, values)) for seed in range(100, 120)]

    assert min(p_values) > 1e-4
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
