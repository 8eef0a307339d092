"""Tests of the way of arguments into a compiled program."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.backends._feed import Layout
from koinon.computation._flat import to_user, unflatten
from koinon.errors import ArgumentError
from koinon.testing import count_compilations
from koinon.types import StructType, TensorType, at_clients, at_server

VECTOR = TensorType(np.float32, (3,))


class Lookalike:
    """What has the dtype and the shape of an array and is none, as a dataset in a file is."""

    dtype, shape = np.dtype(np.float32), (3,)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.ones(3, np.float32)


@pytest.mark.parametrize("value", [Lookalike(), jax.ShapeDtypeStruct((3,), np.float32)], ids=["file", "shape"])
def test_what_only_looks_like_an_array_is_no_tensor(value: Any, backend: str) -> None:
    """At the server, at the clients and in a program of JAX the error is that of the reference."""
    double = ko.jax_computation(VECTOR)(lambda x: x + x)
    calls = [
        lambda: double(value),
        lambda: ko.federated_computation(at_server(VECTOR))(lambda v: ko.federated_map(double, v))(value),
        lambda: ko.federated_computation(at_clients(VECTOR))(lambda v: ko.federated_sum(v))([value]),
    ]
    for call in calls:
        with pytest.raises(ArgumentError, match="An argument is not a tensor"):
            call()


@pytest.mark.parametrize(
    "array",
    [np.ones(3, np.float32), np.float32(1), jnp.ones(3), jax.random.key(0), np.ones(3, np.float32).view(np.memmap)],
)
def test_every_array_of_the_declared_type_goes_the_fast_way(array: Any) -> None:
    """Whatever its class; what JAX traces too, each time that it comes."""
    layout = Layout(TensorType(array.dtype, array.shape))
    traced = []
    for _ in range(2):
        taken = layout.take(array)
        assert taken is not None
        assert taken[0] is array
        jax.eval_shape(lambda tracer: traced.append(layout.take(tracer)), array)
    assert None not in traced


@pytest.mark.parametrize("make", [lambda: jnp.full(3, 0.5), lambda: [0.5, 0.5, 0.5]], ids=["array", "list"])
def test_a_state_without_a_fixed_dtype_needs_no_program_of_its_own(make: Any) -> None:
    """JAX calls `jnp.full(3, 0.5)` weakly typed; the state that comes back, which is not, runs what was compiled."""
    step = ko.federated_computation(at_server(VECTOR))(lambda state: ko.federated_map(lambda s: s + 1, state))
    with ko.backends.use("local"):
        state = step(make())
        with count_compilations() as compiled:
            state = step(state)
    assert compiled.total == 0
    np.testing.assert_array_equal(state, [2.5] * 3)


def reversed_names(count: int) -> StructType:
    """The type of a dict whose fields are declared in the opposite of the order in which JAX flattens it."""
    return StructType([(f"leaf{count - i:06}", np.int32) for i in range(count)], dict)


def test_leaves_come_in_the_order_of_the_type() -> None:
    """Whatever the order in which JAX flattens the container, and back."""
    type_ = reversed_names(12)
    layout = Layout(type_)
    value = {name: np.int32(i) for i, (name, _) in enumerate(type_.items())}
    taken = layout.take(dict(sorted(value.items())))
    assert taken is not None
    assert taken == list(range(12))
    assert layout.give(taken) == value


def test_a_layout_of_many_leaves_is_made_quickly() -> None:
    """The work is in proportion to the leaves: a few times that of going through a value once."""
    type_ = reversed_names(20_000)

    def seconds(work: Callable[[], object]) -> float:
        """The least of three tries."""
        taken = []
        for _ in range(3):
            start = time.process_time()
            work()
            taken.append(time.process_time() - start)
        return min(taken)

    once = seconds(lambda: jax.tree.flatten(to_user(type_, unflatten(type_, range(20_000)))))
    # It is about five; a search for the place of each leaf made it more than a hundred.
    assert seconds(lambda: Layout(type_)) < 30 * once
