"""`CoordinateMedianFactory`; see also `test_robust_contract.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.aggregators import CoordinateMedianFactory
from koinon.aggregators._rows import Rows

median = jax.jit(lambda m, n: CoordinateMedianFactory().combine(Rows(m, jnp.arange(len(m)), n))[0])


def test_it_is_the_median_of_numpy():
    """Of even and odd numbers of clients."""
    matrix = np.random.default_rng(0).normal(size=(12, 7)).astype(np.float32)
    for count in range(1, 13):
        np.testing.assert_allclose(median(matrix, count), np.median(matrix[:count], axis=0), rtol=1e-6)


@pytest.mark.parametrize("bad", [1e30, -3e38])
def test_it_breaks_down_at_a_half(bad):
    """With less than half of the clients corrupted the result is among the values of the others, then no longer."""
    honest = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)
    for corrupted in range(12):
        matrix = honest.copy()
        matrix[:corrupted] = bad
        result = np.asarray(median(matrix, 12))
        lies_within = (result >= honest[corrupted:].min(0)) & (result <= honest[corrupted:].max(0))

        assert lies_within.all() == (corrupted < 6)


def test_it_moves_with_the_values():
    """Translation and scaling of all values are those of the result."""
    matrix = np.random.default_rng(2).normal(size=(9, 4)).astype(np.float32)
    shift = np.float32([1, 2, 3, 4])

    np.testing.assert_allclose(median(2 * matrix + shift, 9), 2 * median(matrix, 9) + shift, rtol=1e-6, atol=1e-6)
