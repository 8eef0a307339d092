"""Noise for a sequence of rounds: it has the law it states, and hides exactly what it claims to."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.privacy._noise import BandedNoise, IndependentNoise, TreeNoise, at_least, band_coefficients

SIZE = 200_000


def run(noise, rounds, draw, size):
    """The noise of some rounds; `draw(round, sampler, stream)` draws."""
    step = jax.jit(lambda state, t: noise.next(state, t, functools.partial(draw, t)))
    state, rows = noise.initialize(size), []
    for t in range(rounds):
        row, state = step(state, jnp.int32(t))
        rows.append(np.asarray(row, np.int64))
    return np.array(rows)


def pseudo_random(t, sampler, stream, size=SIZE):
    """Draws with a key of their own for each round and stream."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), t), stream)
    return sampler(jax.random.bits(key, (sampler.words, size), jnp.uint32))


def test_the_multiplier_is_never_rounded_down():
    """A float32 that is no smaller; numbers of float32 stay."""
    for number in (0.1, 1.13, 0.5, 1e-3, 7.3):
        assert float(np.float32(at_least(number))) == at_least(number) >= number
    assert at_least(0.5) == 0.5


@pytest.mark.parametrize("noise", [IndependentNoise(1.3, 64), TreeNoise(1.3, 64, 7, True), BandedNoise(1.3, 64, 3, 50)])
def test_what_is_drawn_has_the_multiplier_that_is_stated(noise):
    """Exactly: the variance of the sampler is the square of multiplier times sensitivity."""
    assert noise.sampler.variance == (Fraction(noise.noise_multiplier) * noise.sensitivity) ** 2
    assert noise.noise_multiplier == at_least(1.3)


@pytest.mark.parametrize("noise", [IndependentNoise(0.0, 64), TreeNoise(0.0, 64, 7, True), BandedNoise(0.0, 64, 3, 50)])
def test_the_multiplier_zero_is_no_noise(noise):
    """Nothing is drawn at all."""

    def draw(*_):
        raise AssertionError("something was drawn")

    assert not run(noise, 4, draw, 5).any()


@pytest.mark.parametrize("is_efficient", [True, False])
def test_sums_over_rounds_have_the_variance_of_their_nodes(is_efficient):
    """Of `t` rounds: for each bit of `t`, 1, or `1 / (2 - 2**-level)` where nodes are estimated from below."""
    units, rounds = 256, 7
    noise = TreeNoise(1.0, units, rounds, is_efficient)
    sums = np.cumsum(run(noise, rounds, pseudo_random, SIZE), axis=0)
    for t in range(1, rounds + 1):
        bits = [level for level in range(3) if t >> level & 1]
        variance = sum(1 / (2 - 0.5**level) if is_efficient else 1 for level in bits)

        np.testing.assert_allclose(np.var(sums[t - 1] / units), variance, rtol=4 * math.sqrt(2 / SIZE))


@pytest.mark.parametrize("is_efficient", [True, False])
def test_the_tree_hides_any_sums_exactly(is_efficient):
    """If what is summed changes, a change of the nodes' noise by their sums gives the same noisy sums, bit for bit."""
    rounds, size = 11, 6
    rng = np.random.default_rng(0)
    summands = rng.integers(-(2**20), 2**20, (rounds, size)).astype(np.int32)
    node_noise = rng.integers(-(2**22), 2**22, (rounds, 4, size)).astype(np.int32)
    node_sums = np.zeros((rounds, 4, size), np.int32)
    for t in range(rounds):
        for level in range(4):
            if (t + 1) % 2**level == 0:
                node_sums[t, level] = summands[t + 1 - 2**level : t + 1].sum(axis=0)

    def rows(values):
        table = jnp.asarray(values)
        return run(TreeNoise(1.0, 8, 15, is_efficient), rounds, lambda t, _, level: table[t, level], size)

    np.testing.assert_array_equal(rows(node_noise + node_sums), rows(node_noise) + summands)


def test_band_coefficients_are_those_of_the_square_root_of_prefix_sums():
    """Their product with themselves, as power series, is 1 + x + x^2 + ..."""
    exact = [float(c) for c in band_coefficients(64, 40)]

    np.testing.assert_allclose(np.convolve(exact, exact)[:64], np.ones(64), rtol=1e-9)


def test_banded_noise_is_the_inverse_of_the_matrix_times_the_draws():
    """`C n = z` but for rounding: less than half a step in each round."""
    rounds, bands, size = 12, 4, 50
    draws = np.random.default_rng(1).integers(-(2**24), 2**24, (rounds, size)).astype(np.int32)
    noise = BandedNoise(1.0, 2**20, bands, size)
    rows = run(noise, rounds, lambda t, *_: jnp.asarray(draws)[t], size)
    c = np.array([float(c) for c in noise.coefficients] + [0.0] * (rounds - bands))
    matrix = np.array([[c[t - s] if t >= s else 0.0 for s in range(rounds)] for t in range(rounds)])

    assert np.abs(matrix @ rows - draws).max() <= 0.5


def test_the_sensitivity_of_banded_noise_covers_what_one_client_can_change():
    """The change of the draws that hides a client of the clipping norm is never longer; rounding included."""
    rounds, bands, size, units = 9, 4, 400, 64
    noise = BandedNoise(1.0, units, bands, size)
    c = [float(c) for c in noise.coefficients]
    rng = np.random.default_rng(2)
    longest = 0.0
    for _ in range(200):
        rows = rng.integers(-5000, 5000, (rounds, size))
        direction = rng.normal(size=size) * (rng.random(size) < rng.choice([0.02, 1.0]))
        client = np.trunc(direction * units / np.linalg.norm(direction))
        moved = rows.copy()
        moved[3] -= client.astype(np.int64)  # the noise that gives the same output if the client is there
        draws = [needed_draws(r, c, noise) for r in (rows, moved)]
        longest = max(longest, np.linalg.norm(draws[0] - draws[1]))

    assert units < longest <= noise.sensitivity


def needed_draws(rows, c, noise):
    """The draws that give this noise, by the formula of the class, in integers."""
    scaled = [int(x * 1024) for x in c]
    earlier = [
        sum(scaled[j] * rows[t - j] for j in range(1, len(scaled)) if t >= j) + np.zeros_like(rows[0])
        for t in range(len(rows))
    ]
    return np.array([row + ((past + 512) >> 10) for row, past in zip(rows, earlier, strict=True)])


def test_banded_noise_cancels_in_sums_over_rounds():
    """The deviation of a sum of 12 rounds is that of the matrix `A C^-1`, and below that of independent noise."""
    rounds, bands = 12, 4
    noise = BandedNoise(1.0, 4096, bands, SIZE)
    rows = run(noise, rounds, pseudo_random, SIZE)
    c = np.array([float(c) for c in noise.coefficients] + [0.0] * (rounds - bands))
    matrix = np.array([[c[t - s] if t >= s else 0.0 for s in range(rounds)] for t in range(rounds)])
    expected = np.linalg.norm(np.ones(rounds) @ np.linalg.inv(matrix)) * noise.sensitivity

    np.testing.assert_allclose(rows.sum(axis=0).std(), expected, rtol=4 / math.sqrt(2 * SIZE))
    assert expected < math.sqrt(rounds) * 4096
