"""Clipping onto the grid: no rounding, and no float32 norm, lets a client exceed its sensitivity."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.privacy._grid import to_grid, to_grid_at_random

SIZE = 64


@functools.partial(jax.jit, static_argnums=2)
def nearest(vectors, clips, units):
    """Many vectors at once."""
    return jax.vmap(lambda vector, clip: to_grid(vector, clip, units).value)(vectors, clips)


@functools.partial(jax.jit, static_argnums=2)
def at_random(vectors, clips, units, key):
    """Many vectors at once."""
    keys = jax.random.split(key, len(vectors))
    return jax.vmap(lambda v, c, k: to_grid_at_random(v, c, units, k).value)(vectors, clips, keys)


def hostile(rng, count, units):
    """Vectors that are hard to measure or to round: of any scale, with one large element, halves of a step, equal."""
    scale = 2.0 ** rng.integers(-149, 126, (count, 1))
    kinds = rng.integers(0, 5, (count, 1))
    normal = rng.normal(size=(count, SIZE))
    one_large = np.where(rng.random((count, SIZE)) < 1 / SIZE, 2.0**20, 1.0) * normal
    halves = (rng.integers(0, 9, (count, SIZE)) + 0.5) / units
    equal = np.broadcast_to(SIZE**-0.5, (count, SIZE)) * (1 + rng.integers(-3, 4, (count, 1)) * 2.0**-24)
    subnormal = rng.integers(0, 4, (count, SIZE)) * 2.0**-149
    vectors = np.select([kinds == 0, kinds == 1, kinds == 2, kinds == 3], [normal * scale, one_large, halves, equal])
    vectors = np.where(kinds == 4, subnormal, vectors)
    return np.clip(vectors, -3.4e38, 3.4e38).astype(np.float32)


def worst_norm(integers, units):
    """The largest norm in units of the bound, computed in float64."""
    return np.linalg.norm(np.asarray(integers, np.float64), axis=1).max() / units


def check_bound(count, seed):
    """The bound, for hostile vectors and clips of every scale."""
    rng = np.random.default_rng(seed)
    for units in (2**22, 2**8):
        vectors = hostile(rng, count, units)
        clips = (2.0 ** rng.integers(-60, 60, count)).astype(np.float32)
        clips[::2] = 1.0
        assert worst_norm(nearest(vectors, clips, units), units) <= 1.0
        assert worst_norm(at_random(vectors, clips, units, jax.random.key(seed)), units) <= 1.0


def test_no_vector_is_longer_than_the_clip_on_the_grid():
    """Neither of the two roundings exceeds the bound, for 20,000 hostile vectors, on a fine and on a coarse grid."""
    check_bound(10_000, 0)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_no_vector_of_a_million_is_longer_than_the_clip(seed):
    """As above, two million vectors in all."""
    check_bound(100_000, seed + 1)


def test_a_large_vector_is_as_long_as_the_clip_and_no_longer():
    """A million elements lose a part in a thousand to the room for rounding."""
    vector = np.random.default_rng(0).normal(size=10**6).astype(np.float32)
    norm = np.linalg.norm(np.asarray(jax.jit(lambda v: to_grid(v, 1.0, 2**22).value)(vector), np.float64)) / 2**22

    assert 0.999 < norm <= 1.0


def test_a_short_vector_is_rounded_and_not_scaled():
    """It keeps its values within half a step, or a step at random."""
    vector = np.float32([0.3, -0.2, 0.0, 0.1])
    units = 2**12

    np.testing.assert_allclose(to_grid(vector, 1.0, units).value / units, vector, atol=0.5 / units)
    rounded = to_grid_at_random(vector, 1.0, units, jax.random.key(0)).value
    np.testing.assert_allclose(rounded / units, vector, atol=1 / units)


@pytest.mark.parametrize(("vector", "is_short"), [([0.6, 0.8], True), ([0.6, 0.81], False), ([3e38, 3e38], False)])
def test_it_says_whether_the_vector_was_short(vector, is_short):
    """The norm is compared before rounding, with the clip itself."""
    assert bool(to_grid(np.float32(vector), 1.0, 2**22).is_short) is is_short


def test_rounding_at_random_has_the_right_mean():
    """Over 20,000 keys, within 4 standard errors, the variance at most a quarter of a step."""
    vector = np.float32([0.1, 0.0321, -0.00077, 0.25])
    units, count = 2**10, 20_000
    vectors = np.broadcast_to(vector, (count, 4))
    drawn = np.asarray(at_random(vectors, np.ones(count, np.float32), units, jax.random.key(5)), np.float64)
    error = drawn.mean(axis=0) - vector.astype(np.float64) * units

    assert (np.abs(error) <= 4 * drawn.std(axis=0) / np.sqrt(count) + 1e-4).all()
    assert (drawn.var(axis=0) <= 0.25).all()


@pytest.mark.parametrize("units", [2, 0, 2**25])
def test_a_grid_that_is_too_coarse_is_refused(units):
    """Where rounding would take more than half of the clip, more bits are asked for."""
    vector = jnp.zeros(100, jnp.float32)
    with pytest.raises(ko.errors.KoinonValueError, match="too coarse"):
        to_grid(vector, 1.0, units)
    with pytest.raises(ko.errors.KoinonValueError, match="too coarse"):
        to_grid_at_random(vector, 1.0, units, jax.random.key(0))
