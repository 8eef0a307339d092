"""The classical forms: rounds come apart into functions that run, and go together into the same round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon import compiler
from koinon.computation import INTRINSICS
from koinon.computation import _ir as ir
from koinon.errors import NotCompilableError
from koinon.types import CLIENTS, SERVER, FunctionType, SequenceType, StructType, TensorType, at_clients, at_server

FLOAT = TensorType(jnp.float32)
KEY = TensorType(jax.random.key(0).dtype)
VECTOR = TensorType(jnp.float32, (2,))


class State(NamedTuple):
    """The state of the round with everything in it."""

    model: Any
    key: Any
    count: Any


class Output(NamedTuple):
    """The result of that round."""

    state: Any
    metrics: Any


@ko.federated_computation(
    at_server(State({"w": VECTOR}, KEY, TensorType(jnp.int32))),
    at_clients(SequenceType({"x": VECTOR, "y": FLOAT})),
    at_clients(FLOAT),
)
def full_round(state: Any, data: Any, weight: Any) -> Any:
    """A round with a broadcast, keys, every kind of fold, secure sums and constants."""

    def split(key: Any) -> Any:
        first, second = jax.random.split(key)
        return first, second

    def work(examples: Any, model: Any, key: Any, scale: Any) -> Any:
        noisy = model["w"] + 0.1 * jax.random.normal(key, (2,))
        step = lambda w, e: w - 0.1 * scale * (e["x"] @ w - e["y"]) * e["x"]  # noqa: E731
        delta = examples.reduce(noisy, step) - model["w"]
        return {"delta": delta, "size": examples.length, "norm": jnp.linalg.norm(delta)}

    def add(a: Any, b: Any) -> Any:
        return jax.tree.map(jnp.add, a, b)

    def accumulate(acc: Any, v: Any) -> Any:
        return {"n": acc["n"] + 1, "squares": acc["squares"] + v**2}

    own, following = ko.federated_map(split, state.key)
    given = ko.federated_map(
        work,
        (
            data,
            ko.federated_broadcast(state.model),
            ko.federated_split_key(own),
            ko.federated_value(jnp.float32(0.5), CLIENTS),
        ),
    )
    mean = ko.federated_mean(given["delta"], weight)
    sums = ko.federated_secure_sum_bitwidth(given["size"], 10), ko.federated_secure_sum(given["size"], 100)
    modular = ko.federated_secure_modular_sum(given["size"], 7)
    zero = {"n": jnp.int32(0), "squares": jnp.float32(0)}
    spread = ko.federated_aggregate(
        given["norm"], zero, accumulate, add, lambda acc: acc["squares"] / jnp.maximum(acc["n"], 1)
    )
    extremes = ko.federated_min(given["norm"]), ko.federated_max(given["size"]), ko.federated_mean(given["norm"])
    model = ko.federated_map(lambda m, d: {"w": m["w"] + d}, (state.model, mean))
    count = ko.federated_map(lambda c, s: c + s, (state.count, sums[0]))
    extra = ko.federated_eval(lambda: jnp.float32(3.5), SERVER)
    metrics = {"sums": (*sums, modular), "spread": spread, "extremes": extremes, "extra": extra}
    return Output(ko.federated_zip(State(model, following, count)), metrics)


def arguments(clients: int) -> tuple[Any, ...]:
    """A state and the data of clients, some without examples."""
    rng = np.random.default_rng(3)
    sizes = [int(rng.integers(0, 4)) for _ in range(clients)]
    data = [
        {"x": rng.normal(size=(n, 2)).astype(np.float32), "y": rng.normal(size=n).astype(np.float32)} for n in sizes
    ]
    weights = [float(n + 1) for n in sizes]
    state = State({"w": jnp.asarray([0.5, -1.0])}, jax.random.key(7), jnp.int32(4))
    return state, data, weights


def same(first: Any, second: Any) -> bool:
    """Whether two results are equal, bit for bit."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)

    def bits(leaf: Any) -> np.ndarray:
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return all(np.array_equal(bits(a), bits(b), equal_nan=True) for a, b in pairs)


@pytest.mark.parametrize("clients", [0, 1, 4])
def test_a_round_goes_together_again(clients: int) -> None:
    """Taken apart into either form and put together, a round gives the same result, bit for bit."""
    computation = full_round
    reduced = compiler.get_computation_for_map_reduce_form(compiler.get_map_reduce_form_for_computation(computation))
    distributed = compiler.get_computation_for_distribute_aggregate_form(
        compiler.get_distribute_aggregate_form_for_computation(computation)
    )
    with ko.backends.use("reference"):
        expected = computation(*arguments(clients))

        assert same(reduced(*arguments(clients)), expected)
        assert same(distributed(*arguments(clients)), expected)
    assert reduced.type_signature == computation.type_signature
    assert distributed.type_signature == computation.type_signature


def by_hand(form: compiler.MapReduceForm, state: Any, clients: list[Any], halves: bool) -> Any:
    """A round run by calling the parts of its form."""
    prepared = form.prepare(state)
    sent, keys = prepared["broadcast"], prepared["keys"]
    given = [form.work(data, sent, tuple(jax.random.fold_in(key, i) for key in keys)) for i, data in enumerate(clients)]
    middle = len(given) // 2 if halves else 0
    parts = []
    for group in (given[:middle], given[middle:]):
        accumulator = form.zero()
        for one in group:
            accumulator = form.accumulate(accumulator, one["folded"])
        parts.append(accumulator)
    folded = form.report(form.merge(*parts))
    totals = []
    for number, bound in enumerate(form.secure_bounds()):
        total = sum(int(one["secure"][number]) for one in given)
        modular = form.secure_operators[number] == "federated_secure_modular_sum"
        totals.append(jnp.int32(total % int(bound) if modular else total))
    return form.update(state, folded, tuple(totals))


@pytest.mark.parametrize("halves", [False, True])
def test_the_parts_run_by_themselves(halves: bool) -> None:
    """Calling the parts one after the other is the round, also with clients accumulated in two groups."""
    form = compiler.get_map_reduce_form_for_computation(full_round)
    state, data, weights = arguments(4)
    with ko.backends.use("reference"):
        expected = full_round(state, data, weights)
        found = by_hand(form, state, list(zip(data, weights, strict=True)), halves)

    # Two groups add in another order.
    flat = zip(jax.tree.leaves(found.state.model), jax.tree.leaves(expected.state.model), strict=True)
    assert all(np.allclose(a, b, rtol=1e-6) for a, b in flat)
    assert int(found.state.count) == int(expected.state.count)
    assert [int(n) for n in found.metrics["sums"]] == [int(n) for n in expected.metrics["sums"]]
    assert np.allclose(found.metrics["spread"], expected.metrics["spread"], rtol=1e-6)
    assert np.allclose(found.metrics["extremes"], expected.metrics["extremes"], rtol=1e-6)


def test_the_parts_have_the_types_that_they_should() -> None:
    """The state goes into prepare and update, data into work; a round's clients' arguments are one struct."""
    form = compiler.get_map_reduce_form_for_computation(full_round)
    parameter = full_round.type_signature.parameter

    assert form.type_signature == full_round.type_signature
    assert form.prepare.type_signature.parameter == parameter[0].member
    assert str(form.prepare.type_signature.result) == "<broadcast=<<w=float32[2]>>,keys=<key<fry>>>"
    assert str(form.work.type_signature.parameter) == (
        "<data=<data=<x=float32[2],y=float32>*,weight=float32>,broadcast=<<w=float32[2]>>,keys=<key<fry>>>"
    )
    assert form.merge.type_signature.result == form.zero.type_signature.result
    assert form.secure_operators == (
        "federated_secure_sum_bitwidth",
        "federated_secure_sum",
        "federated_secure_modular_sum",
    )
    assert [int(bound) for bound in form.secure_bounds()] == [10, 100, 7]
    assert "prepare: " in str(form)


def test_the_parts_of_the_other_form_have_the_right_places() -> None:
    """Preparation and result are the server's, work is the clients', and two computations go between them."""
    form = compiler.get_distribute_aggregate_form_for_computation(full_round)

    compiler.check_has_single_placement(form.server_prepare, SERVER)
    compiler.check_has_single_placement(form.client_work, CLIENTS)
    compiler.check_has_single_placement(form.server_result, SERVER)
    assert form.server_to_client_broadcast.type_signature.parameter == form.server_prepare.type_signature.result["sent"]
    assert form.server_result.type_signature.result == full_round.type_signature.result


def test_a_round_without_exchange_has_a_form() -> None:
    """A round that neither broadcasts nor aggregates is a form with nothing between its ends."""

    @ko.federated_computation(at_server(FLOAT), at_clients(FLOAT))
    def idle(state: Any, x: Any) -> Any:
        return (ko.federated_map(lambda s: s + 1, state),)

    form = compiler.get_map_reduce_form_for_computation(idle)

    assert str(form.zero.type_signature) == "( -> <>)"
    with ko.backends.use("reference"):
        assert [float(x) for x in compiler.get_computation_for_map_reduce_form(form)(1.0, [5.0])] == [2.0]


def test_functions_that_have_captured_values_come_along() -> None:
    """A mapped function with a captured constant becomes a part that holds the constant."""
    times = ko.jax_computation(FLOAT, FLOAT)(lambda v, c: v * c).expression
    state, data = at_server(FLOAT), at_clients(FLOAT)
    product = ir.Call(times, ir.Struct(((None, ir.Reference("v", FLOAT)), (None, ir.Reference("c", FLOAT)))))
    scaled = call("federated_map", ir.Lambda("v", FLOAT, product), ir.Selection(argument_of(state, data), 1))
    body = ir.Struct(((None, call("federated_sum", scaled)),))
    constant = ir.Call(ko.jax_computation(lambda: jnp.float32(3)).expression, None)
    expression = ir.Lambda("p", StructType([state, data]), ir.Block((("c", constant),), body))
    computation = ko.Computation(expression, name="captured")
    form = compiler.get_map_reduce_form_for_computation(computation)
    with ko.backends.use("reference"):
        assert [float(x) for x in compiler.get_computation_for_map_reduce_form(form)((0.0, [1.0, 2.0]))] == [9.0]


def argument_of(*types: Any) -> ir.Reference:
    """The parameter of a computation that is written as an expression."""
    return ir.Reference("p", StructType(types))


def call(name: str, *operands: ir.Expression) -> ir.Call:
    """The call of an operator."""
    argument = operands[0] if len(operands) == 1 else ir.Struct(tuple((None, operand) for operand in operands))
    return ir.Call(ir.Intrinsic(name, FunctionType(argument.type, INTRINSICS[name].rule(argument.type))), argument)


def refusals() -> dict[str, tuple[Callable[[], Any], str, str]]:
    """Computations without a form: how each is made, what the error says, and the expression or type that it names."""
    state, data = at_server(FLOAT), at_clients(FLOAT)

    def make(*types: Any) -> Any:
        return ko.federated_computation(*types)

    return {
        "no state": (lambda: make(data)(ko.federated_sum), "no round from a state", "{float32}@CLIENTS"),
        "state at the clients": (
            lambda: make(data, data)(lambda s, x: (ko.federated_sum(s),)),
            "argument 0 is not placed at SERVER",
            "{float32}@CLIENTS",
        ),
        "data at the server": (
            lambda: make(state, state)(lambda s, x: (s,)),
            "argument 1 is not placed at CLIENTS",
            "float32@SERVER",
        ),
        "no struct": (lambda: make(state, data)(lambda s, x: s), "begins with a state", "float32@SERVER"),
        "result at the clients": (
            lambda: make(state, data)(lambda s, x: (s, x)),
            "part of its result is not at the server",
            "{float32}@CLIENTS",
        ),
        "unplaced result": (
            lambda: make(state, data)(lambda s, x: (s, jnp.float32(1))),
            "part of its result is not placed",
            "float32",
        ),
        "another state": (
            lambda: make(state, data)(lambda s, x: (ko.federated_map(lambda v: v > 0, s),)),
            "not one that it takes",
            "bool@SERVER",
        ),
        "collect": (
            lambda: make(state, data)(lambda s, x: (s, ko.federated_collect(x))),
            "uses federated_collect",
            "collect(argument.x)",
        ),
        "second broadcast": (
            lambda: make(state, data)(lambda s, x: (two_exchanges(x),)),
            "sends clients what depends on an aggregation",
            "= broadcast(",
        ),
    }


def two_exchanges(x: Any) -> Any:
    """A value that takes two exchanges."""
    mean = ko.federated_broadcast(ko.federated_mean(x))
    return ko.federated_sum(ko.federated_map(lambda v, m: v - m, (x, mean)))


@pytest.mark.parametrize(("make", "says", "names"), refusals().values(), ids=refusals().keys())
def test_what_has_no_form_is_refused_by_name(make: Any, says: str, names: str) -> None:
    """The error says what a form needs, and names the type or the expression that is in the way."""
    computation = make()
    for function in (
        compiler.check_computation_compatible_with_map_reduce_form,
        compiler.get_map_reduce_form_for_computation,
        compiler.get_distribute_aggregate_form_for_computation,
    ):
        with pytest.raises(NotCompilableError, match=says) as error:
            function(computation)
        assert names in str(error.value.found)


def test_a_learning_process_goes_together_again() -> None:
    """Federated averaging of the library has both forms, starts from its own state, and learns the same."""
    model = ko.learning.models.functional(
        lambda w, x: x @ w["w"],
        {"w": np.zeros((2, 1), np.float32)},
        example_spec={"x": (jnp.float32, (2,)), "y": (jnp.float32, (1,))},
        loss=ko.learning.losses.squared_error,
    )
    process = ko.learning.algorithms.build_weighted_fed_avg(
        model, optax.sgd(0.1), optax.adam(0.1), batch_size=2, shuffle=True
    )
    form = compiler.get_map_reduce_form_for_computation(process.next)
    rng = np.random.default_rng(0)
    data = [
        {"x": rng.normal(size=(n, 2)).astype(np.float32), "y": rng.normal(size=(n, 1)).astype(np.float32)}
        for n in (3, 1)
    ]
    with ko.backends.use("reference"):
        state = compiler.get_state_initialization_computation(process)()

        assert same(compiler.get_computation_for_map_reduce_form(form)(state, data), process.next(state, data))


@pytest.mark.parametrize(
    "initialize",
    [
        ko.federated_computation(at_server(FLOAT))(lambda s: s),
        ko.federated_computation(lambda: ko.federated_value(1.0, CLIENTS)),
        ko.jax_computation(lambda: 1.0),
    ],
    ids=["parameter", "clients", "unplaced"],
)
def test_a_state_is_made_at_the_server_of_nothing(initialize: Any) -> None:
    """An initialization that takes something, or makes a value elsewhere, is refused."""

    class Process(NamedTuple):
        initialize: Any

    with pytest.raises(NotCompilableError, match="initialization of a state"):
        compiler.get_state_initialization_computation(Process(initialize))


def test_what_has_a_form_passes_the_check() -> None:
    """A round of one exchange is compatible."""
    compiler.check_computation_compatible_with_map_reduce_form(full_round)
