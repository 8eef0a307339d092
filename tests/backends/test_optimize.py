"""Tests of what engines make of programs of JAX: made once for a computation, and gone when it is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.backends import LocalBackend, ReferenceBackend, _optimize, _pieces
from koinon.learning.models import FunctionalModel, ModelWeights
from koinon.types import CLIENTS, SequenceType, TensorType, at_clients, at_server

FLOAT = TensorType(np.float32)
EXAMPLE = ko.to_type({"x": (np.float32, (4,)), "y": (np.float32, (1,))})
SIZE = 2**20


def of_a_number(captured: jax.Array) -> None:
    """A program of JAX."""
    double = ko.jax_computation(FLOAT)(lambda x: (captured * x).sum())
    double(1.0)
    double(2.0)


def of_unknown_sizes(captured: jax.Array) -> None:
    """A program for two sizes of its argument."""
    total = ko.jax_computation(TensorType(np.float32, (None,)))(lambda x: captured.sum() * x)
    total(np.ones(2, np.float32))
    total(np.ones(3, np.float32))


def of_clients(captured: jax.Array) -> None:
    """A fold at the clients, and a sum of what it gives."""
    fold = ko.jax_computation(SequenceType(FLOAT))(lambda s: s.reduce(jnp.float32(0), lambda c, x: c + captured[0] * x))
    total = ko.federated_computation(at_clients(SequenceType(FLOAT)))(
        lambda d: ko.federated_sum(ko.federated_map(fold, d))
    )
    total([[1.0, 2.0], [3.0]])
    total([[1.0], [3.0]])


def of_the_server(captured: jax.Array) -> None:
    """A function at the server, and one without a parameter at the clients."""

    @ko.federated_computation(at_server(FLOAT))
    def scale(value: Any) -> Any:
        scaled = ko.federated_map(lambda x: (captured * x).sum(), value)
        return scaled, ko.federated_sum(ko.federated_eval(lambda: captured.sum(), CLIENTS))

    scale(1.0)
    scale(2.0)


def of_a_learning_process(captured: jax.Array) -> None:
    """Two rounds of federated averaging of a model that has the array beside its weights."""

    def predict(weights: Any, x: Any, training: bool = False) -> Any:
        return x @ weights.trainable + 1e-9 * captured.sum()

    model = FunctionalModel(
        initial_weights=ModelWeights(jnp.zeros((4, 1)), ()),
        predict_on_batch_fn=predict,
        loss_fn=lambda predictions, y: ((predictions - y) ** 2)[:, 0],
        input_spec=EXAMPLE,
    )
    process = ko.learning.algorithms.build_weighted_fed_avg(model, optax.sgd(0.1), batch_size=2)
    clients = [[{"x": np.ones(4, np.float32), "y": np.ones(1, np.float32)}] * 3] * 2
    process.next(process.next(process.initialize(), clients).state, clients)


def bytes_in_large_arrays() -> int:
    """What arrays of JAX of the captured size, or larger ones, take in all, but for those that JAX's caches keep."""
    jax.clear_caches()
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays() if array.nbytes >= 4 * SIZE)


@pytest.mark.parametrize(
    "compute",
    [of_a_number, of_unknown_sizes, of_clients, of_the_server, of_a_learning_process],
    ids=lambda fn: fn.__name__,
)
def test_what_a_computation_captured_goes_when_the_computation_goes(
    compute: Callable[[jax.Array], None], backend: str
) -> None:
    """Neither engine keeps the array, nor a copy of it."""
    before = bytes_in_large_arrays()
    captured = jnp.arange(SIZE, dtype=jnp.float32)
    kept = weakref.ref(captured)
    compute(captured)
    del captured
    assert bytes_in_large_arrays() <= before
    assert kept() is None


@pytest.mark.parametrize(
    ("engine", "module", "name"),
    [(LocalBackend, _optimize, "read_in_bounds"), (ReferenceBackend, _pieces, "_compiled")],
)
def test_another_engine_finds_what_the_first_made_of_a_program(
    engine: Callable[[], Any], module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program is rewritten, or cut into pieces, once, however many engines run it and computations call it."""
    double = ko.jax_computation(FLOAT)(lambda x: x + x)
    double_all = ko.federated_computation(at_clients(FLOAT))(lambda v: ko.federated_map(double, v))
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: calls.append(name) or function(*arguments))
    for backend in (engine(), engine()):
        with ko.backends.use(backend):
            assert (double(3.0), double(4.0), double_all([1.0, 2.0])) == (6.0, 8.0, [2.0, 4.0])
    assert calls == [name]
