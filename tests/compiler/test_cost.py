"""The cost report: bytes from types, operations as XLA counts them times the steps of loops, memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import koinon as ko
from koinon.compiler import PhaseCost, cost_report, plan
from koinon.compiler._flops import count_flops
from koinon.errors import KoinonValueError
from koinon.types import SERVER, SequenceType, TensorType, at_clients, at_server

FLOAT = TensorType(jnp.float32)
FEATURES = 16
VECTOR = TensorType(jnp.float32, (FEATURES,))
EXAMPLES = SequenceType({"x": VECTOR, "y": FLOAT})


@ko.federated_computation(at_server(VECTOR), at_clients(EXAMPLES))
def gradient_round(weights: Any, data: Any) -> Any:
    """A round of federated gradient descent in batches of 8."""

    def work(examples: Any, w: Any) -> Any:
        def step(w: Any, batch: Any) -> Any:
            error = batch.examples["x"] @ w - batch.examples["y"]
            return w - 0.1 * batch.examples["x"].T @ error

        return examples.batch(8).reduce(w, step), examples.length

    deltas, sizes = ko.federated_map(work, (data, ko.federated_broadcast(weights)))
    return ko.federated_mean(deltas), ko.federated_sum(sizes)


def one_phase(computation: Any, **options: Any) -> PhaseCost:
    """The cost of a computation of one exchange."""
    (phase,) = cost_report(computation, **{"clients": 1, **options}).phases
    return phase


def flops_of(fn: Any, *arguments: Any) -> float:
    """The operations of a function of arrays, none of them known."""
    return count_flops(jax.make_jaxpr(fn)(*arguments), [None] * len(arguments)).total


def xla_flops(fn: Any, *arguments: Any) -> float:
    """What XLA counts for a function without loops."""
    return float(jax.jit(fn).lower(*arguments).compile().cost_analysis()["flops"])


def test_bytes_follow_from_types() -> None:
    """A client receives the weights, and sends its own and a count; a batch of five clients five times as much."""
    report = cost_report(gradient_round, clients=5, examples_per_client=20)

    assert report.phases[0].bytes_down == FEATURES * 4
    assert report.phases[0].bytes_up == FEATURES * 4 + 4
    assert (report.bytes_down, report.bytes_up) == (5 * FEATURES * 4, 5 * (FEATURES * 4 + 4))


def test_folds_are_counted_for_each_step() -> None:
    """Twenty examples in batches of eight are three steps, each with two products of a matrix and a vector."""
    three = one_phase(gradient_round, examples_per_client=20)
    six = one_phase(gradient_round, examples_per_client=48)

    products = 2 * (2 * 8 * FEATURES)
    assert three.steps == (3,)
    assert six.steps == (6,)
    assert three.open_loops == 0
    # Reading a batch and masking it costs about as much as these small products.
    assert 3 * products <= three.flops <= 2 * 3 * products
    assert six.flops == 2 * three.flops


def test_clients_without_examples_compute_no_step() -> None:
    """A fold over nothing costs nothing."""
    none = one_phase(gradient_round, examples_per_client=0)

    assert none.steps == (0,)
    assert none.flops == 0


def test_loops_cost_as_much_as_what_they_repeat() -> None:
    """A scan of a program costs its length times the program; nested loops multiply."""
    matrix = jnp.ones((8, 8))
    once = xla_flops(lambda a: a @ a, matrix)

    def loop(n: int) -> Any:
        return lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, None, length=n)[0]

    def nested(a: Any) -> Any:
        return jax.lax.scan(lambda c, _: (loop(3)(c), None), a, None, length=5)[0]

    assert once == 2 * 8**3
    assert flops_of(lambda a: a @ a, matrix) == once
    assert flops_of(loop(7), matrix) == 7 * once
    assert flops_of(nested, matrix) == 15 * once
    assert flops_of(jax.jit(loop(7)), matrix) == 7 * once


def test_straight_code_around_loops_is_counted() -> None:
    """What comes before and after a loop, and uses its results, is counted once."""
    matrix = jnp.ones((8, 8))
    once = xla_flops(lambda a: a @ a, matrix)

    def around(a: Any) -> Any:
        before = a @ a
        looped = jax.lax.scan(lambda c, _: (c @ before, None), before, None, length=4)[0]
        return looped @ a

    assert flops_of(around, matrix) == 6 * once


def test_a_branch_costs_its_more_expensive_side() -> None:
    """Of the two sides of a branch the more expensive one is counted."""
    matrix = jnp.ones((8, 8))
    branch = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a)  # noqa: E731

    assert 2 * 2 * 8**3 <= flops_of(branch, matrix) <= 2 * 2 * 8**3 + 10


def test_loops_with_an_open_end_are_counted_once_and_named() -> None:
    """Where the number of steps depends on values, one step is counted, and the report says so."""

    @ko.federated_computation(at_clients(TensorType(jnp.float32, (8, 8))))
    def spin(x: Any) -> Any:
        loop = lambda m: jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ m, m)  # noqa: E731
        return ko.federated_sum(ko.federated_map(loop, x))

    phase = one_phase(spin)

    assert phase.open_loops == 1
    assert 2 * 8**3 <= phase.flops <= 2 * 8**3 + 10
    assert "each counted once" in str(cost_report(spin, clients=1))


def test_accumulators_do_not_grow_with_clients() -> None:
    """A mean holds its sum and its weight in float32, a secure sum and a user's fold what they are declared to hold."""

    @ko.federated_computation(at_clients({"a": TensorType(jnp.bfloat16, (10,)), "b": jnp.int32}))
    def several(x: Any) -> Any:
        add = lambda acc, v: acc + v["b"]  # noqa: E731
        plus = lambda a, b: a + b  # noqa: E731
        return (
            ko.federated_mean(x["a"]),
            ko.federated_secure_sum_bitwidth(x["b"], 8),
            ko.federated_aggregate(x, jnp.zeros(6, jnp.int32), add, plus, lambda acc: acc),
        )

    phase = one_phase(several, clients=1000)

    # bfloat16[10] is summed as float32[10] with one float32 of weight.
    assert phase.accumulator_bytes == (10 * 4 + 4) + 4 + 6 * 4
    assert phase.row_bytes == 0
    assert cost_report(several, clients=1000).memory == phase.accumulator_bytes


def test_what_is_kept_of_each_client_grows_with_them() -> None:
    """Collected values, and what a second phase or the result needs of each client, are rows."""

    @ko.federated_computation(at_clients(VECTOR))
    def kept(x: Any) -> Any:
        centred = ko.federated_map(lambda v: v * 2.0, x)
        mean = ko.federated_broadcast(ko.federated_mean(centred))
        return ko.federated_collect(ko.federated_map(lambda v, m: (v - m)[:2], (centred, mean)))

    first, second = cost_report(kept, clients=7).phases

    assert first.row_bytes == FEATURES * 4
    assert second.row_bytes == 2 * 4
    assert second.bytes_down == FEATURES * 4
    assert cost_report(kept, clients=7).memory == 7 * (FEATURES + 2) * 4 + first.accumulator_bytes


def test_selected_slices_are_counted_by_keys() -> None:
    """A client that asks with three keys sends three int32, and receives three slices, whatever examples it has."""

    @ko.federated_computation(at_server(TensorType("float32", (100, 5))), at_clients(TensorType("int32", (3,))))
    def select(table: Any, keys: Any) -> Any:
        rows = ko.federated_select(keys, ko.federated_value(100, SERVER), table, lambda t, k: t[k])
        return ko.federated_sum(ko.federated_map(lambda r: r.reduce(jnp.zeros(5), lambda t, x: t + x), rows))

    phase = one_phase(select)

    assert phase.bytes_down == 3 * 5 * 4
    assert phase.bytes_up == 3 * 4 + 5 * 4
    assert phase.steps == (3,)


def test_keys_that_clients_get_are_counted() -> None:
    """A client's own PRNG key is eight bytes on the way down."""

    def normal(key: Any) -> Any:
        return jax.random.normal(key)

    @ko.federated_computation(at_server(TensorType(jax.random.key(0).dtype)))
    def noise(key: Any) -> Any:
        return ko.federated_sum(ko.federated_map(normal, ko.federated_split_key(key)))

    assert one_phase(noise).bytes_down == 8


def test_a_plan_serves_as_well_as_its_computation() -> None:
    """The costs of a plan are those of the computation that it is of."""
    options = {"clients": 3, "examples_per_client": 9}

    assert cost_report(plan(gradient_round), **options) == cost_report(gradient_round, **options)


def test_the_report_reads_as_a_table() -> None:
    """Each phase has a line for one client, and the last line is for all of them."""
    text = str(cost_report(gradient_round, clients=5, examples_per_client=20)).splitlines()

    assert text[0] == "cost of gradient_round: 5 clients, 20 examples each"
    assert text[2].split() == ["down", "up", "flops", "accumulators", "rows"]
    assert text[3].startswith("phase 0, one client")
    assert text[3].split()[4:8] == ["64", "B", "68", "B"]
    assert text[4].split()[:6] == ["all", "clients", "320", "B", "340", "B"]
    assert text[5] == "phase 0: folds of 3 steps"


def test_a_computation_of_the_server_costs_the_clients_nothing() -> None:
    """Without an exchange there is no phase to count."""

    @ko.federated_computation(at_server(FLOAT))
    def double(x: Any) -> Any:
        return ko.federated_map(lambda v: v * 2, x)

    assert cost_report(double, clients=10).phases == ()


def test_lengths_and_sizes_must_be_known() -> None:
    """Sequences without a length, tensors with an unknown dimension and negative numbers are refused by name."""

    @ko.federated_computation(at_clients(TensorType(jnp.float32, (None,))))
    def ragged(x: Any) -> Any:
        return ko.federated_collect(x)

    with pytest.raises(KoinonValueError, match="length of the clients' sequences"):
        cost_report(gradient_round, clients=5)
    with pytest.raises(KoinonValueError, match="not known"):
        cost_report(ragged, clients=5)
    with pytest.raises(KoinonValueError, match="number of clients"):
        cost_report(gradient_round, clients=-1, examples_per_client=3)
