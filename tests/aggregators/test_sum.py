"""`SumFactory`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from koinon._errors import SumIncompatibleError
from koinon.aggregators import SumFactory
from koinon.types import TensorType, to_type


def test_the_sum_is_taken_leaf_by_leaf(backend):
    """Structures of any numeric dtypes are summed as NumPy sums them."""
    rng = np.random.default_rng(0)
    clients = [
        {"w": rng.normal(size=(2, 3)).astype(np.float32), "n": rng.integers(0, 9, size=2).astype(np.int32)}
        for _ in range(5)
    ]
    process = SumFactory().create(to_type(clients[0]))
    result = process.next(process.initialize(), clients).result

    np.testing.assert_allclose(result["w"], np.sum([c["w"] for c in clients], axis=0), rtol=1e-6)
    np.testing.assert_array_equal(result["n"], np.sum([c["n"] for c in clients], axis=0))


def test_state_and_measurements_are_empty(backend):
    """There is nothing to keep and nothing to tell."""
    process = SumFactory().create(TensorType(jnp.float32))
    output = process.next(process.initialize(), [1.0])

    assert str(process.state_type) == "<>@SERVER"
    assert output.state == output.measurements == ()


def test_the_sum_over_no_client_is_zero(backend):
    """An empty cohort adds nothing."""
    process = SumFactory().create(TensorType(jnp.float32, (2,)))

    np.testing.assert_array_equal(process.next(process.initialize(), []).result, np.zeros(2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_is_not_finite_out(backend, value):
    """The sum is the plain mathematics."""
    process = SumFactory().create(TensorType(jnp.float32))

    np.testing.assert_equal(float(process.next(process.initialize(), [1.0, value]).result), value)


@pytest.mark.parametrize(
    "value_type", [TensorType(jnp.bool_), TensorType(jnp.float32, (None,)), TensorType("key<fry>")], ids=str
)
def test_what_cannot_be_summed_is_refused_when_the_process_is_made(value_type):
    """Truth values, unknown shapes and PRNG keys have no sum."""
    with pytest.raises(SumIncompatibleError):
        SumFactory().create(value_type)
