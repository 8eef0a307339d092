"""Tests of the random permutation: a true one for every length, and uniform over all orders."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from koinon.computation._permutation import permute


@jax.jit
def _rows(key: jax.Array, length: jax.Array) -> jax.Array:
    return permute(key, length)(jnp.arange(600))


@pytest.mark.parametrize("length", [*range(1, 20), 37, 64, 99, 100, 101, 256, 257, 599])
def test_every_key_permutes_every_length(length: int) -> None:
    """Each index is met once, for several keys and an length known only at run time."""
    for seed in range(3):
        permuted = np.asarray(_rows(jax.random.key(seed), jnp.int32(length)))[:length]
        assert sorted(permuted.tolist()) == list(range(length))


@jax.jit
def _huge(indices: jax.Array, length: jax.Array) -> jax.Array:
    return permute(jax.random.key(5), length)(indices)


@pytest.mark.parametrize("length", [46_340**2, 46_340**2 + 1, 2**31 - 2**17, 10**9 + 7])
def test_indices_stay_in_the_range_of_huge_lengths(length: int) -> None:
    """Up to the largest lengths that int32 holds, no index leaves the range, and none is met twice."""
    indices = jnp.concatenate([jnp.arange(500), length - 1 - jnp.arange(500)])
    permuted = np.asarray(_huge(indices, jnp.int32(length)))
    assert permuted.min() >= 0
    assert permuted.max() < length
    assert len(set(permuted.tolist())) == len(set(indices.tolist()))


def test_the_permutation_of_nothing_reads_nothing_out_of_range() -> None:
    """Length 0 is as length 1, so that a program can be traced for it."""
    assert _rows(jax.random.key(0), jnp.int32(0)).tolist() == [0] * 600


def test_one_index_at_a_time_or_many_at_once() -> None:
    """A scalar index and a vector of indices give the same permutation."""
    one = jax.jit(lambda i: permute(jax.random.key(2), 10)(i))
    many = jax.jit(lambda i: permute(jax.random.key(2), 10)(i))(jnp.arange(10))
    assert [int(one(i)) for i in range(10)] == many.tolist()


def test_keys_give_different_orders_and_the_same_key_the_same() -> None:
    """The order is a function of the key."""
    orders = {tuple(np.asarray(_rows(jax.random.key(seed), jnp.int32(20)))[:20].tolist()) for seed in range(50)}
    assert len(orders) == 50
    again = np.asarray(_rows(jax.random.key(7), jnp.int32(20)))
    np.testing.assert_array_equal(again, _rows(jax.random.key(7), jnp.int32(20)))


@functools.partial(jax.jit, static_argnums=2)
def _permuted(keys: jax.Array, length: jax.Array, width: int) -> jax.Array:
    return jax.vmap(lambda key: permute(key, length)(jnp.arange(width)))(keys)


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_all_orders_of_few_elements_are_equally_likely(length: int) -> None:
    """A chi-square test over all orders, with 100,000 keys."""
    count = 100_000
    keys = jax.random.split(jax.random.key(length), count)
    permuted = np.asarray(_permuted(keys, jnp.int32(length), 5))[:, :length]
    codes = permuted @ length ** np.arange(length)
    orders = [np.dot(order, length ** np.arange(length)) for order in itertools.permutations(range(length))]
    observed = [np.count_nonzero(codes == order) for order in orders]
    assert sum(observed) == count
    expected = count / math.factorial(length)
    statistic = sum((number - expected) ** 2 / expected for number in observed)
    # A true uniform law fails once in 10,000 times; the keys are fixed, so that the test does not flake.
    assert statistic < stats.chi2.ppf(1 - 1e-4, math.factorial(length) - 1)


@pytest.mark.parametrize("length", [7, 30, 50])
def test_every_element_is_equally_likely_at_every_place(length: int) -> None:
    """A chi-square test of places and elements, for lengths whose orders are too many to count."""
    count = 10_000
    keys = jax.random.split(jax.random.key(length), count)
    permuted = np.asarray(_permuted(keys, jnp.int32(length), 50))[:, :length]
    table = np.stack([np.bincount(permuted[:, place], minlength=length) for place in range(length)])
    statistic = ((table - count / length) ** 2 / (count / length)).sum()
    assert statistic < stats.chi2.ppf(1 - 1e-4, (length - 1) ** 2)


def test_neighbours_do_not_stay_together() -> None:
    """How often i is followed by i + 1 is what a uniform order has: once in an order, on average."""
    length, count = 50, 10_000
    permuted = np.asarray(_permuted(jax.random.split(jax.random.key(0), count), jnp.int32(length), length))
    together = np.count_nonzero(np.diff(permuted, axis=1) == 1)
    # (n - 1) pairs of places, each with probability 1 / n; the variance is about the mean.
    mean = count * (length - 1) / length
    assert abs(together - mean) < 4 * math.sqrt(mean)
