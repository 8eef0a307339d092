"""Tests that the engines agree: the local engine against the reference, on every kind of computation."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.backends import LocalBackend
from koinon.computation import Backend, ClientRows
from koinon.computation._evaluate import own_form
from koinon.types import CLIENTS, SERVER, FederatedType, SequenceType, TensorType, Type, at_clients, at_server
from tests.programs import random_program

INT, FLOAT = at_clients(np.int32), at_clients(np.float32)
KEY = TensorType(jax.random.key(0).dtype)


def run_on(backend: str | Backend, computation: ko.Computation, *arguments: Any) -> Any:
    """The result on one engine."""
    with ko.backends.use(backend):
        return computation(*arguments)


def assert_agree(found: Any, expected: Any, what: str = "") -> None:
    """The same containers and dtypes; integers and keys exactly, floating-point numbers up to rounding."""
    found_leaves, found_tree = jax.tree.flatten(found)
    expected_leaves, expected_tree = jax.tree.flatten(expected)
    assert found_tree == expected_tree, what
    for left, right in zip(found_leaves, expected_leaves, strict=True):
        assert isinstance(left, jax.Array), what
        assert isinstance(right, jax.Array), what
        assert (left.dtype, left.shape) == (right.dtype, right.shape), what
        if jax.dtypes.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        if jnp.issubdtype(left.dtype, jnp.inexact):
            tolerance = 1e-2 if left.dtype.itemsize < 4 else 2e-5
            left, right = np.asarray(left, np.complex64), np.asarray(right, np.complex64)
            np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance, err_msg=what)
        else:
            np.testing.assert_array_equal(left, right, err_msg=what)


def check(computation: ko.Computation, *arguments: Any) -> Any:
    """Runs a computation on both engines; gives the result of the reference."""
    expected = run_on("reference", computation, *arguments)
    assert_agree(run_on("local", computation, *arguments), expected, str(computation.type_signature))
    return expected


def fed(*types: Any) -> Callable[[Callable[..., Any]], ko.Computation]:
    """The decorator, typed for tests."""
    return ko.federated_computation(*types)


# --- phases ----------------------------------------------------------------------------------------------------------


@fed(FLOAT, at_server(np.float32))
def standardize(values: Any, floor: Any) -> Any:
    """Three phases: the mean, the variance around it, and the values in its terms, which stay at the clients."""
    mean = ko.federated_mean(values)
    centered = ko.federated_map(lambda m, v: v - m, (ko.federated_broadcast(mean), values))
    variance = ko.federated_mean(ko.federated_map(lambda c: c * c, centered))
    scale = ko.federated_map(lambda v, f: jax.lax.rsqrt(v + f), (variance, floor))
    scaled = ko.federated_map(lambda s, c: s * c, (ko.federated_broadcast(scale), centered))
    return {
        "scaled": scaled,
        "centered": centered,
        "values": values,
        "variance": variance,
        "max": ko.federated_max(scaled),
    }


@pytest.mark.parametrize("values", [[], [2.0], [1.0, 2.0, 4.0], [0.5, -3.0, 2.0, 8.0, 1.0]])
def test_several_phases_with_values_kept_at_the_clients(values: list[float]) -> None:
    """What a later phase needs of the clients is kept in between, and comes back as it was."""
    result = check(standardize, values, 0.25)
    data = np.array(values, np.float32)
    np.testing.assert_allclose([float(c) for c in result["centered"]], data - data.mean() if values else [], atol=1e-6)
    assert len(result["scaled"]) == len(values)


def test_later_phases_read_the_data_of_the_clients_again() -> None:
    """A sequence is an argument of two phases, and a mapped sequence is kept from one to the other."""

    @fed(at_clients(SequenceType(np.int32)))
    def two_phases(data: Any) -> Any:
        doubled = ko.sequence_map(lambda x: x * 2, data)
        largest = ko.federated_max(ko.federated_map(lambda s: s.length, data))
        both = ko.federated_map(
            lambda n, s, t: s.reduce(n, lambda c, x: c * 3 + x) + t.reduce(n, lambda c, x: c * 5 + x),
            (ko.federated_broadcast(largest), data, doubled),
        )
        return ko.federated_sum(both), both, doubled

    result = check(two_phases, [[1, 2, 3], [], [4]])
    assert [int(x) for x in result[2][0]] == [2, 4, 6]


def test_a_phase_may_be_without_clients_and_a_server_without_a_phase() -> None:
    """Server work alone; clients' work alone; nothing at all."""
    check(fed(at_server(np.float32))(lambda s: ko.federated_map(jax.jit(lambda x: x + 1), s)), 1.0)
    check(fed(INT)(lambda v: ko.federated_map(lambda x: x + 1, v)), [1, 2])
    check(fed(INT)(lambda v: v), [1, 2])
    check(fed(INT)(lambda v: ()), [1, 2])
    check(fed(INT)(lambda v: (v, v)), [])
    check(ko.federated_computation(lambda: (3, {"a": ko.federated_value(1, SERVER)})))


def test_aggregates_of_one_phase_and_of_another_meet() -> None:
    """A result that needs both, where the second depends on the first."""

    @fed(INT, at_server(np.int32))
    def chain(values: Any, state: Any) -> Any:
        totals = []
        for _ in range(4):
            shifted = ko.federated_map(lambda s, v: v + s, (ko.federated_broadcast(state), values))
            state = ko.federated_map(lambda s, t: s + t % 7, (state, ko.federated_sum(shifted)))
            totals.append(state)
        return totals

    check(chain, [1, 2, 3], 5)


# --- all-equal and unplaced values -----------------------------------------------------------------------------------


def test_values_that_all_clients_have() -> None:
    """As results, as arguments, aggregated, zipped with others and mapped alone."""

    @fed(at_server(np.int32), FederatedType(np.int32, CLIENTS, True), INT)
    def same(state: Any, shared: Any, values: Any) -> Any:
        sent = ko.federated_broadcast(state)
        return {
            "sent": sent,
            "shared": shared,
            "sum_of_sent": ko.federated_sum(sent),
            "zipped": ko.federated_zip({"a": sent, "b": shared, "c": values}),
            "mapped": ko.federated_map(lambda x: x * 2, sent),
            "constant": ko.federated_sum(ko.federated_value(3, CLIENTS)),
            "collected": ko.federated_collect(shared),
            "mean": ko.federated_mean(ko.federated_value(2.5, CLIENTS)),
        }

    for values in ([], [7], [7, 8, 9]):
        check(same, 5, 6, values)


def test_a_broadcast_needs_no_clients() -> None:
    """A computation without any argument at the clients runs, with no clients."""
    check(fed(at_server(np.int32))(ko.federated_broadcast), 3)
    check(fed(at_server(np.int32))(lambda v: ko.federated_sum(ko.federated_broadcast(v))), 3)


def test_values_that_are_not_placed() -> None:
    """Unplaced parameters and results beside placed ones."""

    @fed({"scale": np.int32, "offset": (np.float32, (2,))}, INT)
    def mixed(plain: Any, values: Any) -> Any:
        scale = ko.federated_value(plain["scale"], CLIENTS)
        scaled = ko.federated_map(lambda s, v: s * v, (scale, values))
        return plain, ko.federated_sum(scaled), plain["offset"]

    check(mixed, {"scale": 3, "offset": [0.5, 1.5]}, [1, 2])
    check(ko.jax_computation(lambda s, n: (s.length + n, s), SequenceType(np.float32), np.int32), [1.0, 2.0], 3)


# --- aggregations ----------------------------------------------------------------------------------------------------

_DTYPES = ["int8", "uint8", "int16", "int32", "uint32", "float16", "bfloat16", "float32", "complex64"]


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_aggregation_of_every_dtype(dtype: str, count: int) -> None:
    """Sums, means and extrema where they have a meaning, also of nothing."""
    kind = jnp.dtype(dtype).kind if dtype != "bfloat16" else "f"
    operators: dict[str, Callable[[Any], Any]] = {"sum": ko.federated_sum, "collect": ko.federated_collect}
    if kind in "fc":
        operators["mean"] = ko.federated_mean
    if kind in "fiu":
        operators |= {"min": ko.federated_min, "max": ko.federated_max}
    comp = _AGGREGATE.get(dtype)
    if comp is None:
        comp = _AGGREGATE[dtype] = fed(at_clients(TensorType(dtype, (3,))))(
            lambda v: {name: operator(v) for name, operator in operators.items()}
        )
    rng = np.random.default_rng(count)
    values = [np.asarray(rng.integers(0, 9, 3), jnp.dtype(dtype)) for _ in range(count)]
    check(comp, values)


_AGGREGATE: dict[str, ko.Computation] = {}


def test_means_with_weights() -> None:
    """Integer and floating weights, zero weights, and structs of several dtypes."""
    comp = fed(at_clients({"a": (np.float32, (2,)), "b": np.float16}), INT, FLOAT)(
        lambda v, n, w: (ko.federated_mean(v, n), ko.federated_mean(v, w), ko.federated_mean(v))
    )
    values = [{"a": [float(i), -float(i)], "b": np.float16(i)} for i in range(4)]
    check(comp, values, [1, 0, 2, 5], [0.5, 0.0, 2.0, 1.5])
    check(comp, values, [0] * 4, [0.0] * 4)
    check(comp, [], [], [])


def test_infinities_and_nan() -> None:
    """What is not finite goes the same way in both."""
    comp = fed(FLOAT, FLOAT)(
        lambda v, w: (ko.federated_sum(v), ko.federated_min(v), ko.federated_max(v), ko.federated_mean(v, w))
    )
    inf, nan = float("inf"), float("nan")
    for values in ([inf, inf], [-inf, inf], [-inf, -inf], [1.0, nan], [nan, -inf], [-0.0, 0.0]):
        check(comp, values, [1.0, 2.0])


def test_an_aggregation_with_its_own_operators() -> None:
    """A fold whose operators do not commute, with structs for accumulators, one after another and alone."""

    @fed(INT)
    def digits(values: Any) -> Any:
        def accumulate(total: Any, value: Any) -> Any:
            return {"number": total["number"] * 10 + value, "count": total["count"] + 1}

        def merge(left: Any, right: Any) -> Any:
            return {
                "number": left["number"] * 10 ** right["count"] + right["number"],
                "count": left["count"] + right["count"],
            }

        zero = {"number": 0, "count": 0}
        return ko.federated_aggregate(values, zero, accumulate, merge, lambda total: (total["number"], total["count"]))

    for values in ([], [4], [1, 2, 3, 4]):
        number, count = check(digits, values)
        assert (int(number), int(count)) == (int("".join(map(str, values)) or 0), len(values))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
def test_secure_sums_are_exact_or_errors_on_both(dtype: str) -> None:
    """At the ends of the dtype: what fits, what is out of range, and what sums to too much."""
    largest = int(np.iinfo(dtype).max)
    bound = np.asarray(largest, dtype)
    comp = fed(at_clients(TensorType(dtype)))(
        lambda v: (
            ko.federated_secure_sum(v, bound),
            ko.federated_secure_sum(v, 2**31 - 1),
            ko.federated_secure_sum_bitwidth(v, np.iinfo(dtype).bits),
            ko.federated_secure_modular_sum(v, 100),
        )
    )
    for values in ([], [largest - 1, 1, 0], [1, 2, 3]):
        if largest > 2**31 - 1 and values[:1] == [largest - 1]:
            values = [2**31 - 1, 2**31 - 1]
        check(comp, values)
    narrow = fed(at_clients(TensorType(dtype)))(lambda v: ko.federated_secure_sum(v, 100))
    whole = fed(at_clients(TensorType(dtype)))(lambda v: ko.federated_secure_sum(v, bound))
    for failing, values in ((narrow, [100, 101, 102]), (whole, [largest, 1])):
        texts = [_failure(backend, failing, values) for backend in ("reference", "local")]
        assert texts[0] == texts[1]


def _failure(backend: str, computation: ko.Computation, values: Any) -> str:
    with pytest.raises(ko.errors.SecureSumRangeError) as caught:
        run_on(backend, computation, values)
    return str(caught.value)


# --- keys, selection, sequences --------------------------------------------------------------------------------------


def test_keys_split_over_the_clients() -> None:
    """Draws of the clients are the same on both engines, and differ between clients and phases."""

    @fed(at_server(KEY), FLOAT)
    def draw(key: Any, values: Any) -> Any:
        keys = ko.federated_split_key(key)
        noisy = ko.federated_map(lambda k, v: v + jax.random.normal(k), (keys, values))
        total = ko.federated_sum(noisy)
        again = ko.federated_map(lambda k, t: jax.random.uniform(k) + t, (keys, ko.federated_broadcast(total)))
        key = ko.federated_map(lambda k: jax.random.split(k)[0], key)
        return key, keys, noisy, again

    for values in ([], [0.0], [0.0] * 3):
        result = check(draw, jax.random.key(5), values)
        assert len({float(x) for x in result[2]}) == len(values)


def test_selections() -> None:
    """Slices of a struct of the server, folded by the clients or returned."""

    @fed(at_clients((np.int32, (3,))), at_server(np.int32), at_server({"t": (np.float32, (5, 2)), "s": np.float32}))
    def select(keys: Any, largest: Any, table: Any) -> Any:
        slices = ko.federated_select(keys, largest, table, lambda v, k: {"row": v["t"][k] * v["s"], "key": k})
        folded = ko.federated_map(lambda s: s.reduce(jnp.zeros(2), lambda c, e: c * 0.5 + e["row"]), slices)
        secure = ko.federated_secure_select(keys, largest, table, lambda v, k: v["t"][k].sum())
        return slices, ko.federated_sum(folded), secure

    table = {"t": np.arange(10, dtype=np.float32).reshape(5, 2), "s": 2.0}
    check(select, [[0, 4, 1], [2, 2, 2]], 5, table)
    check(select, [], 5, table)


def test_operators_on_sequences() -> None:
    """At the clients, at the server and unplaced, with placed zeros, of clients with and without examples."""
    sequence = SequenceType({"a": np.int32, "b": np.float32})

    def operators(s: Any) -> Any:
        mapped = ko.sequence_map(lambda e: {"a": e["a"] * 2, "b": jnp.sin(e["b"])}, s)
        reduced = ko.sequence_reduce(mapped, 1, lambda c, e: c * 3 + e["a"])
        return mapped, ko.sequence_sum(mapped), reduced

    examples = [[{"a": i, "b": 0.5 * i} for i in range(n)] for n in (3, 0, 1)]
    check(fed(at_clients(sequence))(operators), examples)
    check(fed(at_clients(sequence))(operators), [])
    check(fed(at_server(sequence))(operators), examples[0])
    check(fed(sequence)(operators), examples[0])
    check(fed(sequence)(operators), [])
    zeros = fed(at_clients(SequenceType(np.int32)), INT)(lambda s, z: ko.sequence_reduce(s, z, lambda c, x: c * 10 + x))
    check(zeros, [[1, 2], []], [7, 8])


def test_collected_values_are_a_sequence_of_the_server() -> None:
    """Collected, mapped, and folded at the server, and broadcast to a later phase through their fold."""

    @fed(at_clients([np.int32, np.float32]))
    def median(values: Any) -> Any:
        collected = ko.federated_collect(values)
        first = ko.federated_map(lambda s: s.reduce(jnp.int32(0), lambda c, x: c * 2 + x[0]), collected)
        back = ko.federated_map(lambda f, v: f - v[0], (ko.federated_broadcast(first), values))
        return collected, first, ko.sequence_map(lambda x: x[1] * 2, collected), back

    for values in ([], [[1, 0.5]], [[1, 0.5], [2, 1.5], [3, 2.5]]):
        check(median, values)


# --- datasets --------------------------------------------------------------------------------------------------------

EXAMPLE = ko.to_type({"x": (np.float32, (2,)), "y": np.int32})


@fed(at_clients(SequenceType(EXAMPLE)), at_server(np.float32))
def epochs(data: Any, rate: Any) -> Any:
    """Epochs of partial batches, a scan, and the data as they came."""

    def work(s: Any, rate: Any) -> Any:
        batches = s.repeat(2, lambda epoch, t: t.map(lambda e: {"x": e["x"] + epoch, "y": e["y"]}).batch(3))
        w = batches.reduce(jnp.ones(2), lambda w, b: w + rate * jnp.tanh((b.examples["x"] * b.mask[:, None]).sum(0)))
        return w, s.length, s.scan(0, lambda c, e: (c + 1, e["y"] - c))[1]

    result = ko.federated_map(work, (data, ko.federated_broadcast(rate)))
    return ko.federated_sum(result[0]), ko.federated_sum(result[1]), result[2], data


@fed(at_clients(SequenceType(EXAMPLE)))
def shuffled(data: Any) -> Any:
    """A number that depends on the order in which a client meets its examples."""

    def order(s: Any) -> Any:
        batches = s.shuffle(jax.random.key(9)).batch(2)
        return batches.reduce(jnp.int32(0), lambda c, b: c * 31 + (b.examples["y"] * b.mask * jnp.array([1, 7])).sum())

    return ko.federated_map(order, data)


def _clients(lengths: list[int]) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        {"x": rng.normal(size=(n, 2)).astype(np.float32), "y": rng.integers(0, 9, n).astype(np.int32)} for n in lengths
    ]


def _packed(clients: list[dict[str, np.ndarray]]) -> ko.PackedSequences:
    lengths = np.array([len(client["y"]) for client in clients])
    buffers = [np.concatenate([client[name] for client in clients]) for name in ("x", "y")]
    return ko.PackedSequences(EXAMPLE, buffers, np.cumsum(lengths) - lengths, lengths)


def test_a_cohort_is_the_lists_of_its_clients() -> None:
    """Cohorts, columns and lists of examples give the same on both engines, whatever the sizes."""
    clients = _clients([4, 0, 1, 4])
    packed = _packed(clients)
    expected = check(epochs, ko.Cohort(packed, np.arange(4)), 0.1)
    assert_agree(run_on("local", epochs, clients, 0.1), expected)
    examples = [[{"x": x, "y": int(y)} for x, y in zip(c["x"], c["y"], strict=True)] for c in clients]
    assert_agree(run_on("local", epochs, examples, 0.1), expected)
    for indices in ([3, 3, 0], []):
        check(epochs, ko.Cohort(packed, np.array(indices, np.int32)), 0.1)


def test_a_shuffle_is_the_same_on_both_engines() -> None:
    """The order is that of the key, not of the engine."""
    orders = check(shuffled, ko.Cohort(_packed(_clients([5, 0, 1, 5])), np.arange(4)))
    assert int(orders[1]) == 0


def test_cohorts_and_values_side_by_side() -> None:
    """A cohort and a list for another parameter agree on the number of clients, and in order."""
    comp = fed(at_clients(SequenceType(EXAMPLE)), INT)(
        lambda d, v: ko.federated_map(lambda s, x: s.length * 100 + x, (d, v))
    )
    packed = _packed(_clients([4, 0, 1]))
    assert [int(x) for x in check(comp, ko.Cohort(packed, np.array([2, 0])), [5, 6])] == [105, 406]


def test_stacked_values_of_clients_come_back_stacked() -> None:
    """State that clients keep: rows in, rows out, for any number of clients, keys among their leaves."""
    state = ko.to_type({"n": np.int32, "k": KEY, "w": (np.float32, (2,))})
    comp = fed(at_clients(state), INT)(
        lambda s, v: (
            ko.federated_map(lambda s, v: {"n": s["n"] + v, "k": jax.random.fold_in(s["k"], 1), "w": -s["w"]}, (s, v)),
            v,
            ko.federated_sum(ko.federated_map(lambda s: s["w"], s)),
        )
    )
    for count in (0, 1, 3):
        keys = jax.random.split(jax.random.key(0), 4)
        leaves = [np.arange(8, dtype=np.float32).reshape(4, 2), np.arange(4, dtype=np.int32), keys]
        rows = ClientRows(state, [leaves[{"w": 0, "n": 1, "k": 2}[name]] for name in sorted("knw")], count)
        results = [run_on(backend, comp, rows, list(range(count))) for backend in ("reference", "local")]
        for stacked in (*results[0][:2], *results[1][:2]):
            assert isinstance(stacked, ClientRows)
            assert len(stacked) == count
        assert_agree(_lists(results[1]), _lists(results[0]))


def _lists(results: Any) -> Any:
    """Each client's value on its own, as arrays of JAX."""
    *rows, total = results
    return [[jax.tree.map(jnp.asarray, value) for value in stacked] for stacked in rows], total


# --- containers ------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A named tuple."""

    x: Any
    y: Any


@dataclasses.dataclass
class Plain:
    """A dataclass that JAX does not know."""

    x: Any
    y: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    """A dataclass that JAX knows, with a field that is no array."""

    x: Any
    y: Any
    name: str = dataclasses.field(default="static", metadata={"static": True})


@functools.cache
def _module() -> Any:
    equinox = pytest.importorskip("equinox")

    class Module(equinox.Module):
        x: Any
        y: Any
        size: int = equinox.field(static=True, default=3)

    return Module


def _frozen(x: Any, y: Any) -> Any:
    return pytest.importorskip("flax").core.freeze({"params": {"kernel": x, "bias": y}})


_CONTAINERS: dict[str, Callable[[Any, Any], Any]] = {
    "dict": lambda x, y: {"y": y, "x": x},
    "ordered": lambda x, y: collections.OrderedDict(y=y, x=x),
    "numbered": lambda x, y: {2: y, 1: x},
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "named tuple": Pair,
    "dataclass": Plain,
    "registered dataclass": Registered,
    "equinox": lambda x, y: _module()(x, y),
    "flax": _frozen,
    "nested": lambda x, y: {"b": [x, {"a": Pair(y, ())}], "a": (), "c": Plain(x, [y])},
}


@pytest.mark.parametrize("name", _CONTAINERS)
def test_values_in_every_container(name: str) -> None:
    """In and out, at the clients and the server, as values and as examples, mapped and summed."""
    make = _CONTAINERS[name]
    type_ = ko.to_type(make(jax.ShapeDtypeStruct((2,), np.float32), jax.ShapeDtypeStruct((), np.int32)))
    own = ko.jax_computation(lambda v: v, type_)
    comp = fed(at_clients(type_), at_server(type_), at_clients(SequenceType(type_)))(
        lambda v, s, d: [
            v,
            ko.federated_map(own, v),
            ko.federated_collect(v),
            ko.sequence_sum(d),
            ko.federated_sum(v),
            s,
            d,
        ]
    )
    values = [make(np.full(2, i, np.float32), np.int32(i)) for i in range(3)]
    written = make([0.5, 1.5], 7)
    arguments = ([values[0], written], values[2], [values, []])
    expected, found = (run_on(backend, comp, *arguments) for backend in ("reference", "local"))
    assert_agree(_own_form(type_, found), _own_form(type_, expected))
    *lists, total, server, data = found
    elements = [total, server, *data[0], *[element for elements in lists for element in elements]]
    assert {type(element) for element in elements} == {type(values[0])}


def _own_form(type_: Type, results: Any) -> Any:
    """The results as tuples, so that containers which JAX does not know are compared leaf by leaf."""
    *lists, total, server, data = results
    return [[own_form(type_, value) for value in values] for values in (*lists, [total, server], *data)]


# --- random programs -------------------------------------------------------------------------------------------------


def check_program(seed: int, cohorts: tuple[int, ...], backend: str | Backend = "local") -> None:
    """Runs the program of a seed on an engine and on the reference, for cohorts of these sizes."""
    program = random_program(seed)
    for clients in cohorts:
        expected = run_on("reference", program.computation, *program.arguments(clients))
        found = run_on(backend, program.computation, *program.arguments(clients))
        what = f"seed {seed}, {clients} clients\n{program.computation.formatted_representation()}"
        assert_agree(found, expected, what)


@pytest.mark.parametrize("seed", range(3, 8))
def test_random_programs(seed: int) -> None:
    """Programs that nobody wrote, with three clients and with none."""
    check_program(seed, (3, 0))


@pytest.mark.parametrize("seed", range(2))
def test_random_programs_in_lanes_and_threads(seed: int) -> None:
    """The other ways in which the engine runs: five clients side by side and on two threads."""
    check_program(100 + seed, (5,), LocalBackend(lanes=4, threads=2))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_many_random_programs(seed: int) -> None:
    """Many more, on all ways to run."""
    for backend in ("local", LocalBackend(lanes=4), LocalBackend(threads=2), LocalBackend(deterministic=True)):
        check_program(seed, (5, 0, 1, 3), backend)
