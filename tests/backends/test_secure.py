"""Secure sums in calls that JAX traces: what is checked in any call is checked there as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.errors import SecureSumRangeError, TracingError
from koinon.types import at_clients

OUTSIDE = "the client at position 1 of the cohort"


@ko.federated_computation(at_clients(np.float32))
def mean_and_count(values: Any) -> Any:
    """The mean of the values, and the secure sum of what they are rounded to, which is at most 10 for each."""
    rounded = ko.federated_map(lambda x: jnp.round(x).astype(jnp.int32), values)
    return ko.federated_mean(values), ko.federated_secure_sum(rounded, 10)


def product(x: Any) -> Any:
    """What is differentiated: the mean of 5 and a number, times their secure sum."""
    mean, count = mean_and_count([jnp.float32(5.0), x])
    return mean * count


def test_gradients_and_batches_of_a_secure_sum_are_those_without_checks() -> None:
    """The checks have no part in values or derivatives: the sum of rounded numbers is a constant where it is smooth."""
    x = jnp.float32(3.0)
    for transformed in (jax.value_and_grad(product), jax.jit(jax.value_and_grad(product))):
        value, slope = transformed(x)
        assert (float(value), float(slope)) == (32.0, 4.0)
    assert jax.vmap(jax.grad(product))(jnp.float32([1.0, 3.0])).tolist() == [3.0, 4.0]
    assert jax.jit(jax.vmap(product))(jnp.float32([1.0, 3.0])).tolist() == [18.0, 32.0]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: jax.grad(product)(x),
        lambda x: jax.value_and_grad(product)(x),
        lambda x: jax.vmap(product)(jnp.stack([jnp.float32(1.0), x])),
        lambda x: jax.vmap(jax.grad(product))(jnp.stack([jnp.float32(1.0), x])),
    ],
    ids=["grad", "value_and_grad", "vmap", "vmap of grad"],
)
def test_a_traced_call_raises_the_error_of_any_call(call: Callable[[Any], Any]) -> None:
    """Where JAX runs operations as it meets them, the error is the very one, naming the client."""
    call(jnp.float32(10.0))
    with pytest.raises(SecureSumRangeError, match="outside the declared range") as caught:
        call(jnp.float32(100.0))
    assert caught.value.differs == OUTSIDE


@pytest.mark.parametrize(
    "transform", [lambda f: f, jax.grad, jax.vmap, lambda f: jax.checkpoint(f)], ids=["jit", "grad", "vmap", "remat"]
)
def test_a_compiled_call_fails_with_an_error_that_quotes_it(transform: Callable[[Any], Any]) -> None:
    """Under `jax.jit` nothing comes back: JAX raises its own error, with the whole message in it."""
    compiled = jax.jit(lambda x: transform(lambda y: product(y).sum())(x))
    shape = (2,) if transform is jax.vmap else ()

    jax.block_until_ready(compiled(jnp.full(shape, 10.0, jnp.float32)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="SecureSumRangeError") as caught:
        jax.block_until_ready(compiled(jnp.full(shape, 100.0, jnp.float32)))
    assert OUTSIDE in str(caught.value)


@pytest.mark.parametrize(
    ("secure", "fits", "does_not", "message"),
    [
        (lambda v, b: ko.federated_secure_sum(v, b), 2**30, 2**31 - 1, "does not fit its dtype"),
        (lambda v, m: ko.federated_secure_modular_sum(v, m), 7, 0, "must be positive"),
    ],
)
def test_totals_and_moduli_are_checked_in_a_compiled_call(
    secure: Callable[[Any, Any], Any], fits: int, does_not: int, message: str
) -> None:
    """Every check of a secure sum is there, also of a bound that is traced."""
    computation = ko.federated_computation(secure, at_clients(np.int32), np.int32)
    compiled = jax.jit(lambda bound: computation([bound, 1], bound))

    jax.block_until_ready(compiled(jnp.int32(fits)))
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(compiled(jnp.int32(does_not)))


@pytest.mark.parametrize("operator", [ko.federated_secure_sum, ko.federated_secure_modular_sum])
def test_the_reference_engine_refuses_to_sum_what_is_traced(operator: Callable[..., Any]) -> None:
    """It sums Python's integers, and says which engine does more; whether the values or the bound are traced."""
    computation = ko.federated_computation(lambda v, b: operator(v, b), at_clients(np.int32), np.int32)
    with ko.backends.use("reference"):
        assert int(computation([5, 4], 10)) == 9
        for call in (lambda x: computation([5, x], 10), lambda x: computation([5, 4], x)):
            with pytest.raises(TracingError, match="while JAX traces it") as caught:
                jax.jit(call)(jnp.int32(10))
            assert "local engine" in str(caught.value.hint)
