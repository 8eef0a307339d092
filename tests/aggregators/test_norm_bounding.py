"""`NormBoundedMeanFactory`; see also `test_robust_contract.py`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from koinon.aggregators import NormBoundedMeanFactory
from koinon.types import TensorType


def test_it_is_the_mean_of_the_values_scaled_down():
    """Over the clients whose values are finite; a value of norm zero stays what it is."""
    clients = np.float32([[3, 4], [0.3, 0.4], [0, 0], [-6e30, 8e30], [np.nan, 0]])
    process = NormBoundedMeanFactory(1.0).create(TensorType(jnp.float32, (2,)))
    output = process.next(process.initialize(), list(clients))
    expected = np.mean([[0.6, 0.8], [0.3, 0.4], [0, 0], [-0.6, 0.8]], axis=0)

    np.testing.assert_allclose(output.result, expected, rtol=1e-6)
    assert int(output.measurements["clipped_count"]) == 2
    assert int(output.measurements["non_finite_clients"]) == 1


@pytest.mark.parametrize("bad", [1e9, -1e30, 3e38])
def test_no_client_moves_the_result_by_more_than_its_share(bad):
    """One of eight moves the mean by twice the bound over eight at most, whatever it sends."""
    honest = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    process = NormBoundedMeanFactory(1.0).create(TensorType(jnp.float32, (2,)))
    attacked = honest.copy()
    attacked[0] = bad
    results = [np.asarray(process.next(process.initialize(), list(c)).result) for c in (honest, attacked)]

    assert np.linalg.norm(results[0] - results[1]) <= 2 * 1.0 / 8 + 1e-6


@pytest.mark.parametrize("norm", [0.0, -1.0, float("inf"), float("nan")])
def test_the_bound_is_positive(norm):
    """And finite."""
    with pytest.raises(ValueError, match="must be positive and finite"):
        NormBoundedMeanFactory(norm)


@pytest.mark.parametrize("arguments", [(1,), (None,), (1.0, 2.0), (1.0, None, "sum")])
def test_arguments_of_another_type_are_refused(arguments):
    """An int is no norm, a number no factory."""
    with pytest.raises(TypeError, match="must be a"):
        NormBoundedMeanFactory(*arguments)
