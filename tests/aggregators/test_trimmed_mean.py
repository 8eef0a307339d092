"""`TrimmedMeanFactory`; see also `test_robust_contract.py`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.aggregators import TrimmedMeanFactory
from koinon.aggregators._rows import Rows


@functools.cache
def compiled(fraction):
    """The rule on rows, of which the first so many count."""
    return jax.jit(lambda m, n: TrimmedMeanFactory(fraction).combine(Rows(m, jnp.arange(len(m)), n)))


@pytest.mark.parametrize(
    "fraction", [0.3, pytest.param(0.0, marks=pytest.mark.soak), pytest.param(0.49, marks=pytest.mark.soak)]
)
def test_it_is_the_mean_of_what_sorting_leaves(fraction):
    """`floor(beta n)` values are left out at each end, and never all."""
    matrix = np.random.default_rng(0).normal(size=(13, 5)).astype(np.float32)
    rule = compiled(fraction)
    for count in range(1, 14):
        trimmed = min(int(fraction * count + 1e-9), (count - 1) // 2)
        expected = np.sort(matrix[:count].astype(np.float64), axis=0)[trimmed : count - trimmed].mean(axis=0)
        result, measured = rule(matrix, count)

        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
        assert int(measured["trimmed_clients"]) == trimmed


def test_shares_are_counted_exactly():
    """0.29 of 100 is 29, though in binary floating point it is less."""
    assert int(0.29 * 100) == 28
    assert int(compiled(0.29)(np.zeros((100, 1), np.float32), 100)[1]["trimmed_clients"]) == 29


def test_it_breaks_down_beyond_its_share():
    """With as many corrupted clients as are trimmed the result is among the others, with one more no longer."""
    honest = np.random.default_rng(1).normal(size=(13, 5)).astype(np.float32)
    for corrupted, withstands in ((3, True), (4, False)):
        matrix = honest.copy()
        matrix[:corrupted] = 1e30
        result, _ = compiled(0.3)(matrix, 10)

        assert bool((np.asarray(result) <= honest[corrupted:10].max(0)).all()) is withstands


def test_large_numbers_do_not_overflow():
    """The sum of three would."""
    assert np.asarray(compiled(0.3)(np.full((13, 5), 3e38, np.float32), 3)[0]) == pytest.approx(3e38)


@pytest.mark.parametrize("fraction", [0.5, -0.1, float("nan"), 1.0])
def test_the_share_is_below_a_half(fraction):
    """At a half nothing would be left."""
    with pytest.raises(ValueError, match=r"\[0, 0.5\)"):
        TrimmedMeanFactory(fraction)


@pytest.mark.parametrize("fraction", [0, "0.1", None])
def test_the_share_is_a_float(fraction):
    """An int is taken for a number of clients too easily."""
    with pytest.raises(TypeError, match="must be a float"):
        TrimmedMeanFactory(fraction)
