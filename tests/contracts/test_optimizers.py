"""The contract that every optimizer fulfils; a new one is a row in the table."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from koinon.learning import optimizers
from koinon.learning.optimizers import Optimizer
from koinon.testing import count_compilations
from koinon.types import infer_type

OPTIMIZERS: dict[str, Optimizer] = {
    "adafactor": optimizers.build_adafactor(0.1),
    "adagrad": optimizers.build_adagrad(0.5),
    "adam": optimizers.build_adam(0.1),
    "adamw": optimizers.build_adamw(0.1),
    "optax": optimizers.from_optax(optax.inject_hyperparams(optax.adam)(learning_rate=0.1)),
    "rmsprop": optimizers.build_rmsprop(0.05),
    "scheduled": optimizers.schedule_learning_rate(optimizers.build_sgdm(0.1), lambda i: 0.2 / (1 + 0.01 * i)),
    "sgd": optimizers.build_sgdm(0.1),
    "sgd_with_momentum": optimizers.build_sgdm(0.1, momentum=0.5, nesterov=True),
    "yogi": optimizers.build_yogi(0.2),
}
TARGET = {"a": jnp.array([1.0, -2.0, 0.5]), "b": (jnp.float32(3.0),)}
WEIGHTS = jax.tree.map(jnp.zeros_like, TARGET)

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def gradients_at(weights: Any) -> Any:
    """The gradient of half the squared distance from the target."""
    return jax.tree.map(jnp.subtract, weights, TARGET)


@functools.cache
def make_step(name: str) -> Any:
    """A compiled step."""
    return jax.jit(lambda state, weights, gradients: OPTIMIZERS[name].next(state, weights, gradients))


@every_optimizer
def test_state_and_weights_keep_their_types(name: str) -> None:
    """Also from shapes and dtypes instead of weights, and with weights of half the width."""
    optimizer = OPTIMIZERS[name]
    for dtype in (jnp.float32, jnp.bfloat16):
        weights = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), WEIGHTS)
        specs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), weights)
        state = optimizer.initialize(weights)
        new_state, new_weights = jax.eval_shape(optimizer.next, state, weights, weights)

        assert infer_type(state) == infer_type(optimizer.initialize(specs)) == infer_type(new_state)
        assert infer_type(weights) == infer_type(new_weights)


@every_optimizer
def test_steps_descend_and_the_second_compiles_nothing(name: str) -> None:
    """A hundred steps on a parabola come nearer to its minimum, with one compiled program."""
    step, weights = make_step(name), WEIGHTS
    state = jax.tree.map(jnp.asarray, OPTIMIZERS[name].initialize(weights))
    state, weights = step(state, weights, gradients_at(weights))
    jax.block_until_ready(gradients_at(weights))
    with count_compilations() as compiled:
        for _ in range(100):
            state, weights = step(state, weights, gradients_at(weights))

    assert compiled.total <= 1  # weakly typed initial states become strongly typed ones, once
    before, after = (sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients_at(w))) for w in (WEIGHTS, weights))
    assert float(after) < 0.1 * float(before)


@every_optimizer
def test_compiled_and_plain_steps_agree(name: str) -> None:
    """A step is a pure function of its arguments."""
    state = OPTIMIZERS[name].initialize(WEIGHTS)
    gradients = gradients_at(WEIGHTS)
    plain, compiled = OPTIMIZERS[name].next(state, WEIGHTS, gradients), make_step(name)(state, WEIGHTS, gradients)

    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@every_optimizer
def test_hyperparameters_are_read_and_set(name: str) -> None:
    """What is set is read, the state keeps its type, and the rest of the state stays."""
    optimizer = OPTIMIZERS[name]
    state = optimizer.initialize(WEIGHTS)
    hparams = optimizer.get_hparams(state)
    halved = {key: jnp.asarray(value) / 2 for key, value in hparams.items()}
    changed = optimizer.set_hparams(state, halved)

    assert {key: float(value) for key, value in optimizer.get_hparams(changed).items()} == {
        key: float(value) for key, value in halved.items()
    }
    assert jax.tree.structure(changed) == jax.tree.structure(state)
    restored = optimizer.set_hparams(changed, hparams)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
