"""Audits: of the noise of this library, which they cannot refute, and of noise that is wrong, which they do."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.errors import KoinonValueError
from koinon.privacy._chacha import noise_key, random_words
from koinon.privacy._grid import to_grid
from koinon.privacy._samplers import discrete_gaussian_sampler
from koinon.privacy.audit import canary_epsilon, epsilon_lower_bound, gaussian_epsilon, impossible_share

COUNT = 1_000_000
UNITS = 2**10


def grid_noise(deviation, seed, count=COUNT):
    """Noise of the library on a grid of 2**10 steps, in steps."""
    sampler = discrete_gaussian_sampler((Fraction(deviation) * UNITS) ** 2)
    words = random_words(jnp.asarray(noise_key(seed)), (0, 0, 0), sampler.words * count)
    return np.asarray(jax.jit(sampler)(words.reshape(sampler.words, count)))


def all_normals(deviation):
    """Every number that `jax.random.normal` in float32 can give, times a deviation: one for each of 2**23 uniforms."""
    bits = jnp.arange(2**23, dtype=jnp.uint32) | np.float32(1.0).view(np.uint32)
    low = np.nextafter(np.float32(-1.0), np.float32(0.0))
    uniform = (jax.lax.bitcast_convert_type(bits, jnp.float32) - 1.0) * (np.float32(1.0) - low) + low
    return np.asarray(jnp.float32(deviation) * (np.float32(math.sqrt(2)) * jax.lax.erf_inv(jnp.maximum(low, uniform))))


@pytest.mark.parametrize("deviation", [1.0, pytest.param(4.0, marks=pytest.mark.soak)])
def test_float_noise_gives_most_clients_away(deviation):
    """Of sums with a contribution of 1, more than 80 percent have a bit pattern that no sum without it has."""
    normals = all_normals(deviation)
    drawn = jnp.float32(deviation) * jax.random.normal(jax.random.key(0), (COUNT,), jnp.float32)
    assert impossible_share(drawn, normals) == 0.0

    assert impossible_share(1.0 + drawn, normals) > 0.8


@pytest.mark.parametrize("deviation", [1, pytest.param(4, marks=pytest.mark.soak)])
def test_grid_noise_gives_nobody_away(deviation):
    """Every sum with a contribution can be drawn without it too: none of a million is impossible."""
    drawn = grid_noise(deviation, 0)
    reach = 9 * deviation * UNITS
    possible = np.arange(-reach, reach + 1)  # each of them has a slot in the table; see the test of the samplers

    assert impossible_share(drawn + UNITS, possible) == 0.0


@pytest.mark.parametrize("deviation", [1, *(pytest.param(d, marks=pytest.mark.soak) for d in (2, 4))])
def test_a_scalar_audit_does_not_refute_the_noise_and_refutes_half_of_it(deviation):
    """The lower bound at delta 1e-5 is below the claim, and not far; with half of the noise it is above."""
    claim = gaussian_epsilon((0.0, deviation), (1.0, deviation), 1e-5)
    with_client, without = grid_noise(deviation, 1) + UNITS, grid_noise(deviation, 2)
    bound = epsilon_lower_bound(with_client, without, 1e-5)
    halved = epsilon_lower_bound(
        grid_noise(Fraction(deviation, 2), 3) + UNITS, grid_noise(Fraction(deviation, 2), 4), 1e-5
    )

    assert 0.5 * claim < bound <= claim < halved


def canary_run(noise_multiplier, seed, dimensions, canaries=300):
    """The cosines of random unit vectors with their sum on the grid and noise."""
    units = 2**16
    sampler = discrete_gaussian_sampler((Fraction(noise_multiplier) * units) ** 2)

    @jax.jit
    def cosines(key):
        vectors = jax.random.normal(jax.random.key(seed), (canaries, dimensions))
        vectors = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
        total = jax.lax.map(lambda vector: to_grid(vector, 1.0, units).value, vectors, batch_size=50).sum(axis=0)
        words = random_words(key, (0, 0, 0), sampler.words * dimensions)
        released = (total + sampler(words.reshape(sampler.words, dimensions))).astype(jnp.float32)
        return vectors @ (released / jnp.linalg.norm(released))

    return np.asarray(cosines(jnp.asarray(noise_key(seed))))


def check_canaries(epsilon, dimensions):
    """The estimate is bounded by the claim, with a planted half of the noise it is not."""
    delta = 1e-5
    low, high = 0.05, 50.0
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        is_private = gaussian_epsilon((0.0, middle), (1.0, middle), delta) <= epsilon
        low, high = (low, middle) if is_private else (middle, high)

    assert canary_epsilon(canary_run(high, 0, dimensions), dimensions, delta) <= 1.7 * epsilon + 0.8
    return canary_epsilon(canary_run(high / 2, 1, dimensions), dimensions, delta)


def test_canaries_in_one_run_do_not_refute_the_noise():
    """An epsilon of 3 is estimated below 1.7 * 3 + 0.8, and above that if half of the noise is missing."""
    assert check_canaries(3.0, 20_000) > 1.7 * 3.0 + 0.8


@pytest.mark.soak
@pytest.mark.parametrize("epsilon", [1.0, 3.0, 10.0])
def test_canaries_among_a_hundred_thousand_dimensions_do_not_refute_the_noise(epsilon):
    """As above; the planted half is estimated higher than the claim."""
    assert check_canaries(epsilon, 100_000) > epsilon


def test_the_closeness_of_two_normal_distributions():
    """Known values of the analytic Gaussian mechanism at 1e-5; the order does not matter, equal ones are at 0."""
    for deviation, epsilon in ((0.5, 9.997), (1.0, 4.377), (2.0, 1.993), (4.0, 0.926)):
        assert gaussian_epsilon((0.0, deviation), (1.0, deviation), 1e-5) == pytest.approx(epsilon, abs=1e-3)
    assert gaussian_epsilon((0.0, 1.0), (0.5, 1.2), 1e-5) == gaussian_epsilon((0.5, 1.2), (0.0, 1.0), 1e-5)
    assert gaussian_epsilon((2.0, 3.0), (2.0, 3.0), 1e-5) == 0.0
    assert gaussian_epsilon((0.0, 1.0), (1e5, 1.0), 1e-5) == math.inf


@pytest.mark.parametrize("normals", [((0.0, 1.0), (0.8, 1.5)), ((0.0, 1.0), (0.3, 0.6))])
def test_the_closeness_of_unequal_normals_is_the_integral(normals):
    """At the epsilon that is found, delta is that of the numerical integral of `max(p - exp(epsilon) q, 0)`."""
    epsilon = gaussian_epsilon(*normals, 1e-4)
    x = np.linspace(-20, 20, 2_000_001)
    p, q = (np.exp(-0.5 * ((x - m) / s) ** 2) / (s * math.sqrt(2 * math.pi)) for m, s in normals)
    deltas = [np.maximum(a - math.exp(epsilon) * b, 0).sum() * (x[1] - x[0]) for a, b in ((p, q), (q, p))]

    assert max(deltas) == pytest.approx(1e-4, rel=1e-3)


def test_scores_that_show_nothing_bound_nothing():
    """The bound of equal distributions is zero with the confidence that is asked for."""
    rng = np.random.default_rng(0)

    assert epsilon_lower_bound(rng.normal(size=10_000), rng.normal(size=10_000), 1e-5) == 0.0


def test_audits_refuse_what_they_cannot_use():
    """Scores of both kinds, two canaries, and a delta are needed."""
    with pytest.raises(ko.errors.KoinonValueError, match="scores of both kinds"):
        epsilon_lower_bound([], [1.0], 1e-5)
    with pytest.raises(ko.errors.KoinonValueError, match="two canaries"):
        canary_epsilon([0.1], 100, 1e-5)


def test_what_is_no_number_is_an_error_and_never_an_audit_that_found_nothing():
    """No comparison holds for NaN, so an audit of it would say 0.0; two distributions are told by two deviations."""
    with pytest.raises(KoinonValueError, match="finite"):
        epsilon_lower_bound([1.0, math.nan], [0.0, 1.0], 1e-5)
    with pytest.raises(KoinonValueError, match="finite"):
        canary_epsilon([0.1, math.inf], 100, 1e-5)
    with pytest.raises(KoinonValueError, match="finite"):
        gaussian_epsilon((0.0, 1.0), (math.nan, 1.0), 1e-5)
    with pytest.raises(KoinonValueError, match="deviations"):
        gaussian_epsilon((0.0, -1.0), (0.0, 1.0), 1e-5)
    with pytest.raises(KoinonValueError, match="outputs"):
        impossible_share([], [1.0])


def test_the_limits_of_two_distributions_are_exact():
    """Equal ones are never told apart; without noise, or without a delta, others always are."""
    assert gaussian_epsilon((0.0, 1.0), (0.0, 1.0), 0.0) == gaussian_epsilon((2.0, 0.0), (2.0, 0.0), 1e-5) == 0.0
    assert gaussian_epsilon((0.0, 1.0), (1.0, 1.0), 1.0) == 0.0
    assert gaussian_epsilon((0.0, 0.0), (1.0, 1.0), 1e-5) == gaussian_epsilon((0.0, 1.0), (1.0, 1.0), 0.0) == math.inf


def test_an_aggregation_that_gives_no_direction_is_not_audited():
    """A sum of zero noise and of zeros, such as one that zeroes all canaries, says nothing about privacy."""
    factory = ko.aggregators.zeroing_factory(1e-3, ko.aggregators.SumFactory())
    with pytest.raises(KoinonValueError, match="no direction"):
        ko.testing.audit_with_canaries(factory, delta=1e-5, canaries=2, dimensions=10)
