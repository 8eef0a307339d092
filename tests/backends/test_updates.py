"""Updates in place of what a fold carries."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.backends._rewrite import CPU_RULES, rewrite, rewritten
from koinon.computation._sequence_primitives import reduce

SIZE = 192


def train(weights: list[Any], x: Any, steps: Any) -> Any:
    """Gradient descent on a linear network."""

    def loss(weights: list[Any], x: Any) -> Any:
        for w in weights:
            x = x @ w
        return jnp.mean(x * x)

    def step(index: Any, weights: list[Any]) -> Any:
        gradient = jax.grad(loss)(weights, jnp.asarray(x)[index])
        return [w - 0.1 * g for w, g in zip(weights, gradient, strict=True)]

    return reduce(steps, weights, step)


@pytest.fixture(name="arguments")
def fixture_arguments() -> tuple[Any, ...]:
    """Six layers, batches, and how many of them."""
    rng = np.random.default_rng(0)
    weights = [(rng.normal(size=(SIZE, SIZE)) / SIZE**0.5).astype(np.float32) for _ in range(6)]
    return weights, rng.normal(size=(5, 4, SIZE)).astype(np.float32), np.int32(4)


def compiled(function: Any, arguments: Any, rules: Any) -> Any:
    """The program that rules make of a function, compiled."""
    program = rewrite(jax.make_jaxpr(function)(*arguments), rules)
    leaves = jax.tree.leaves(arguments)
    return jax.jit(lambda *leaves: jax.core.eval_jaxpr(program.jaxpr, program.consts, *leaves)).lower(*leaves).compile()


def test_weights_are_not_copied_in_each_step(arguments: Any) -> None:
    """The layers that are read on the way back need no room for a copy, and the results are the same, bit for bit."""
    others = [rule for rule in CPU_RULES if rule.__name__ != "late_updates"]
    before, after = compiled(train, arguments, others), compiled(train, arguments, CPU_RULES)

    assert rewritten(jax.make_jaxpr(train)(*arguments).jaxpr) == ["late_updates"]
    saved = before.memory_analysis().temp_size_in_bytes - after.memory_analysis().temp_size_in_bytes
    assert saved >= 2 * SIZE * SIZE * 4
    for a, b in zip(*[program(*jax.tree.leaves(arguments)) for program in (before, after)], strict=True):
        np.testing.assert_array_equal(a, b)


def test_values_that_are_not_finite_change_nothing(arguments: Any) -> None:
    """The update happens whatever was read before it."""
    weights, x, steps = arguments
    weights[1][0, 0] = np.nan
    x[2] = np.inf

    (*found,) = compiled(train, arguments, CPU_RULES)(*weights, x, steps)
    for a, b in zip(found, train(weights, x, steps), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_reads_the_new_value_too_is_not_waited_for() -> None:
    """The distance of an update can only be computed after it."""
    w = np.ones((SIZE, SIZE), np.float32)

    def fold(w: Any, steps: Any) -> Any:
        def step(index: Any, carry: Any) -> Any:
            w, distance = carry
            new = w * 0.5 + index
            return new, distance + jnp.sum(jnp.abs(new - w))

        return reduce(steps, (w, jnp.float32(0)), step)

    closed = jax.make_jaxpr(fold)(w, np.int32(3))
    assert rewritten(closed.jaxpr) == []
    for a, b in zip(compiled(fold, (w, np.int32(3)), CPU_RULES)(w, np.int32(3)), fold(w, np.int32(3)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_small_carries_are_left_alone() -> None:
    """To copy a few numbers takes no longer than to find out that one need not."""
    weights = [np.eye(8, dtype=np.float32)] * 3

    closed = jax.make_jaxpr(train)(weights, np.ones((2, 4, 8), np.float32), np.int32(2))
    assert "late_updates" not in rewritten(closed.jaxpr)


def test_what_only_prints_the_old_value_is_not_waited_for(arguments: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """An equation without results, such as a print while it runs."""
    weights, x, steps = arguments

    def printing(weights: list[Any], x: Any, steps: Any) -> Any:
        def step(index: Any, w: Any) -> Any:
            jax.debug.print("corner {}", w[0, 0])
            jax.debug.callback(lambda w: None, w)
            return w - 0.1 * (w @ x[index].T @ x[index])

        return reduce(steps, weights[0], step)

    (found,) = compiled(printing, (weights, x, steps), CPU_RULES)(*weights, x, steps)
    jax.effects_barrier()
    assert capsys.readouterr().out.count("corner") == int(steps)
    assert np.isfinite(found).all()
