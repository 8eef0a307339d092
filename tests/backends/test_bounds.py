"""Static bounds for folds: never fewer steps than a fold may take, and none where nothing is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import koinon as ko
from koinon.backends._bounds import bound_folds
from koinon.backends._estimate import equations
from koinon.computation._sequence_primitives import reduce, reduce_p


def bounds(trip_count: Callable[..., Any], *greatest: int | None) -> list[int | None]:
    """The bounds of the folds of a program that counts to a function of its inputs."""

    def program(*inputs: Any) -> Any:
        return reduce(trip_count(*inputs), jnp.float32(0), lambda _, total: total + 1)

    closed = jax.make_jaxpr(program)(*[np.int32(1)] * len(greatest))
    found = bound_folds(closed, greatest)
    return [eqn.params["bound"] for eqn in equations(found.jaxpr) if eqn.primitive is reduce_p]


@pytest.mark.parametrize(
    ("trip_count", "bound"),
    [
        (lambda n: (n + 3) // 4 * 2, 6),
        (lambda n: n % 4, 3),
        (lambda n: jnp.clip(n, 0, 5), 5),
        (lambda n: jnp.maximum(n - 20, 0), 0),
        (lambda n: jnp.where(n > 3, 10 - n, n), 10),
        (lambda n: jnp.abs(n - 7), 7),
        (lambda n: jax.lax.cond(n > 2, lambda: n + 1, lambda: jnp.int32(2)), 10),
    ],
)
def test_the_bound_is_the_most_steps_that_any_length_gives(trip_count: Any, bound: int) -> None:
    """Arithmetic of all kinds, also such as does not grow with the length."""
    assert bounds(trip_count, 9) == [bound]
    assert max(int(trip_count(jnp.int32(n))) for n in range(10)) <= bound


def test_every_length_has_a_greatest_value_of_its_own() -> None:
    """A fold over one sequence is not bounded by another."""
    assert bounds(lambda first, second: second, 3, 40) == [40]
    assert bounds(lambda first, second: first + second, 3, 40) == [43]


def test_a_number_of_which_nothing_is_known_gives_no_bound_unless_it_is_cut_off() -> None:
    """Data may be anything, and comes round where it leaves the integers; `min` bounds it all the same."""
    assert bounds(lambda data: data, None) == [None]
    assert bounds(lambda data: jnp.maximum(data, 0) + 1, None) == [None]
    assert bounds(lambda n, data: jnp.clip(data, 0, n), 9, None) == [9]


def test_what_may_leave_the_integers_gives_no_bound() -> None:
    """A product that overflows is negative, or small."""
    assert bounds(lambda n: n * 2**20, 2**12) == [None]


def test_folds_inside_folds_and_calls_are_bounded() -> None:
    """A fold in the step of a fold, in a function under `jit` and in a branch."""

    def program(n: Any) -> Any:
        def inner(count: Any) -> Any:
            return reduce(count, jnp.float32(0), lambda _, total: total + 1)

        nested = reduce(n, jnp.float32(0), lambda index, total: total + inner(index))
        called = jax.jit(inner)(n + 1)
        return nested + called + jax.lax.cond(n > 2, inner, lambda _: jnp.float32(0), n)

    found = bound_folds(jax.make_jaxpr(program)(np.int32(1)), [9])

    assert sorted(eqn.params["bound"] for eqn in equations(found.jaxpr) if eqn.primitive is reduce_p) == [8, 9, 9, 10]


LEAVES = st.sampled_from(["n", "m"]) | st.integers(-3, 7)
OPERATORS = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "floor": lambda x, y: x // y,
    "mod": lambda x, y: x % y,
    "div": lambda x, y: jax.lax.div(jnp.asarray(x, jnp.int32), jnp.asarray(y, jnp.int32)),
    "rem": lambda x, y: jax.lax.rem(jnp.asarray(x, jnp.int32), jnp.asarray(y, jnp.int32)),
    "max": jnp.maximum,
    "min": jnp.minimum,
    "less": lambda x, y: jnp.where(x < y, x, 2 * y),
    "same": lambda x, y: jnp.where((x == y) & (y >= x), x + 1, y),
    "sign": lambda x, y: jnp.sign(x) * abs(y),
}
TREES = st.recursive(LEAVES, lambda inner: st.tuples(st.sampled_from(sorted(OPERATORS)), inner, inner), max_leaves=5)


def evaluated(tree: Any, n: Any, m: Any) -> Any:
    """The value of a tree of operators."""
    if isinstance(tree, tuple):
        name, left, right = tree
        left, right = evaluated(left, n, m), evaluated(right, n, m)
        if name in ("floor", "mod", "div", "rem"):
            right = jnp.maximum(abs(right), 1)
        return OPERATORS[name](left, right)
    return {"n": n, "m": m}.get(tree, tree)


@given(TREES, st.integers(0, 5), st.integers(0, 5))
def test_no_length_gives_more_steps_than_the_bound(tree: Any, most_n: int, most_m: int) -> None:
    """Random integer arithmetic: the bound holds for all lengths up to the greatest."""
    (bound,) = bounds(lambda n, m: jnp.asarray(evaluated(tree, n, m), jnp.int32), most_n, most_m)
    if bound is None:
        return
    lengths = np.array([(n, m) for n in range(most_n + 1) for m in range(most_m + 1)], np.int32)

    steps = evaluated(tree, jnp.asarray(lengths[:, 0]), jnp.asarray(lengths[:, 1]))

    assert int(jnp.max(jnp.asarray(steps))) <= bound


# --- through the public interface ------------------------------------------------------------------------------------

FLOATS = ko.types.SequenceType(np.float32)
AT_SERVER = ko.types.at_server(np.float32)


@ko.jax_computation(FLOATS, np.float32)
def scaled_sum(numbers: Any, scale: Any) -> Any:
    """The sum of a sequence, times a number."""
    return numbers.reduce(jnp.float32(0), lambda total, x: total + scale * x)


@ko.jax_computation(FLOATS)
def three_times(numbers: Any) -> Any:
    """A sequence three times over."""
    return numbers.repeat(3)


@ko.jax_computation({"test": FLOATS, "train": FLOATS}, np.float32)
def of_both(data: Any, scale: Any) -> Any:
    """The sum of two sequences, times a number."""
    return scaled_sum(data["test"], scale) + scaled_sum(data["train"], scale)


def gradient_and_value(computation: Any, *arguments: Any) -> tuple[float, float]:
    """The gradient by the last argument, of which the computation is linear, and the value where it is 1."""
    gradient = jax.grad(lambda scale: computation(*arguments, scale))(jnp.float32(1))
    return float(gradient), float(computation(*arguments, 1.0))


def test_the_gradient_meets_all_examples_of_two_sequences_of_a_client() -> None:
    """The first sequence is the shorter one."""
    loss = ko.federated_computation(ko.types.at_clients({"test": FLOATS, "train": FLOATS}), AT_SERVER)(
        lambda data, scale: ko.federated_sum(ko.federated_map(of_both, (data, ko.federated_broadcast(scale))))
    )

    gradient, value = gradient_and_value(loss, [{"test": [1.0, 2.0], "train": [1.0] * 7}])

    assert gradient == value == 10.0


def test_the_gradient_meets_all_examples_of_the_servers_sequence() -> None:
    """The server has more examples than any client."""

    @ko.federated_computation(ko.types.at_server(FLOATS), ko.types.at_clients(FLOATS), AT_SERVER)
    def loss(own: Any, data: Any, scale: Any) -> Any:
        clients = ko.federated_sum(ko.federated_map(scaled_sum, (data, ko.federated_broadcast(scale))))
        return ko.federated_map(lambda a, b: a + b, (ko.federated_map(scaled_sum, (own, scale)), clients))

    gradient, value = gradient_and_value(loss, [1.0] * 40, [[1.0], [2.0]])

    assert gradient == value == 43.0


def test_the_gradient_meets_all_examples_of_a_sequence_that_a_client_made() -> None:
    """What one program makes of a sequence is longer than it, and goes on to another program."""

    @ko.federated_computation(ko.types.at_clients(FLOATS), AT_SERVER)
    def loss(data: Any, scale: Any) -> Any:
        longer = ko.federated_map(three_times, data)
        return ko.federated_sum(ko.federated_map(scaled_sum, (longer, ko.federated_broadcast(scale))))

    gradient, value = gradient_and_value(loss, [[1.0, 2.0], [3.0]])

    assert gradient == value == 18.0
