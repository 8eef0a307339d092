"""Tests of the reference engine: the meaning of every operator, against plain numpy and Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.backends import ReferenceBackend
from koinon.errors import SecureSumRangeError
from koinon.types import CLIENTS, SERVER, FederatedType, SequenceType, TensorType, at_clients, at_server

INT, FLOAT = at_clients(np.int32), at_clients(np.float32)
KEY = TensorType(jax.random.key(0).dtype)


@pytest.fixture(autouse=True)
def _reference() -> Iterator[None]:
    with ko.backends.use("reference"):
        yield


def run(fn: Callable[..., Any], types: Any, *arguments: Any) -> Any:
    """The result of the computation of a function."""
    return ko.federated_computation(fn, *types)(*arguments)


def add(x: Any, y: Any) -> Any:
    """The sum."""
    return x + y


# --- aggregations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "float16", "bfloat16", "float32", "complex64"])
def test_a_sum_is_that_of_numpy(dtype: str) -> None:
    """For every kind of number, with the dtype kept."""
    values = [np.asarray(np.arange(3) + i, jnp.dtype(dtype)) for i in range(4)]
    total = run(ko.federated_sum, [at_clients(TensorType(dtype, (3,)))], values)
    assert total.dtype == dtype
    np.testing.assert_array_equal(np.asarray(total), np.sum(values, axis=0, dtype=jnp.dtype(dtype)))


def test_means_are_those_of_numpy() -> None:
    """Weighted by ints and floats, and not weighted, leaf by leaf."""
    values = [{"a": np.float32([i, 2 * i]), "b": np.float32(-i)} for i in range(4)]
    types = [at_clients({"a": (np.float32, (2,)), "b": np.float32}), INT]
    weights = [1, 0, 2, 5]
    mean = run(lambda v, w: ko.federated_mean(v, w), types, values, weights)
    np.testing.assert_allclose(mean["a"], np.average([v["a"] for v in values], axis=0, weights=weights), rtol=1e-6)
    np.testing.assert_allclose(mean["b"], np.average([v["b"] for v in values], weights=weights), rtol=1e-6)
    plain = run(lambda v: ko.federated_mean(v), types[:1], values)
    np.testing.assert_allclose(plain["b"], np.mean([v["b"] for v in values]), rtol=1e-6)


def test_a_mean_in_half_precision_is_summed_in_single() -> None:
    """The mean of 4,000 ones is one: float16 cannot count so far."""
    mean = run(lambda v: ko.federated_mean(v), [at_clients(np.float16)], [np.float16(1)] * 4000)
    assert (mean.dtype, float(mean)) == (np.float16, 1.0)


def test_a_mean_with_weights_that_sum_to_zero_is_nan() -> None:
    """No clients, or clients without weight, have no mean."""
    weighted = lambda v, w: ko.federated_mean(v, w)  # noqa: E731
    assert math.isnan(run(weighted, [FLOAT, FLOAT], [1.0, 2.0], [0.0, 0.0]))
    assert math.isnan(run(weighted, [FLOAT, FLOAT], [], []))


@pytest.mark.parametrize(
    ("dtype", "values", "least", "greatest"),
    [
        ("float32", [2.0, -1.0, 0.5], -1.0, 2.0),
        ("float32", [math.inf, math.inf], math.inf, math.inf),
        ("float32", [-math.inf, 1.0], -math.inf, 1.0),
        ("int8", [5, -3], -3, 5),
        ("uint8", [5, 3], 3, 5),
        ("float32", [], np.finfo(np.float32).max, np.finfo(np.float32).min),
        ("int32", [], np.iinfo(np.int32).max, np.iinfo(np.int32).min),
        ("uint8", [], 255, 0),
    ],
)
def test_extrema(dtype: str, values: list[Any], least: Any, greatest: Any) -> None:
    """Those of the values, infinities included; of no clients the end of the range of the dtype."""
    types = [at_clients(TensorType(dtype))]
    assert run(ko.federated_min, types, values) == least
    assert run(ko.federated_max, types, values) == greatest


def test_nan_is_the_extremum_of_what_contains_it() -> None:
    """A NaN is not lost among numbers."""
    assert math.isnan(run(ko.federated_min, [FLOAT], [1.0, math.nan]))
    assert math.isnan(run(ko.federated_max, [FLOAT], [math.nan, 1.0]))


def test_an_aggregation_folds_over_the_clients_in_order() -> None:
    """Decimal digits in the order of the cohort; the report is applied once."""
    digits = lambda v: ko.federated_aggregate(v, 0, lambda t, x: t * 10 + x, add, lambda t: -t)  # noqa: E731
    assert int(run(digits, [INT], [1, 2, 3])) == -123
    assert int(run(digits, [INT], [])) == 0


def test_an_accumulator_may_grow() -> None:
    """An accumulator of unknown size takes what the clients give."""
    growing = TensorType(np.float32, (None,))
    append = ko.jax_computation(lambda total, x: jnp.concatenate([total, x[None]]), growing, np.float32)
    join = ko.jax_computation(lambda a, b: jnp.concatenate([a, b]), growing, growing)
    same = ko.jax_computation(lambda a: a, growing)
    collect = lambda v: ko.federated_aggregate(v, np.zeros(0, np.float32), append, join, same)  # noqa: E731
    assert run(collect, [FLOAT], [1.0, 2.0]).tolist() == [1.0, 2.0]


def test_collecting_keeps_the_order_of_the_cohort() -> None:
    """The server gets a sequence that it can fold."""
    fold = lambda v: ko.federated_map(lambda s: s.reduce(0, lambda c, x: c * 10 + x), ko.federated_collect(v))  # noqa: E731
    assert int(run(fold, [INT], [3, 1, 2])) == 312
    assert run(ko.federated_collect, [INT], [3, 1, 2]) == [3, 1, 2]
    assert run(ko.federated_collect, [INT], []) == []


# --- secure sums ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
def test_a_secure_sum_is_exact_up_to_the_end_of_the_dtype(dtype: str) -> None:
    """The largest sum that fits is given, one more is an error and never wraps around."""
    largest = int(np.iinfo(dtype).max)
    bound = np.asarray(largest, dtype)
    types = [at_clients(TensorType(dtype))]
    secure = lambda v: ko.federated_secure_sum(v, bound)  # noqa: E731
    assert int(run(secure, types, [largest - 1, 1, 0])) == largest
    with pytest.raises(SecureSumRangeError, match="does not fit its dtype") as caught:
        run(secure, types, [largest - 1, 2])
    assert isinstance(caught.value, ValueError)
    assert caught.value.expected == f"a sum that {dtype} holds"


@pytest.mark.parametrize(
    ("operator", "bound", "value", "ok"),
    [
        (ko.federated_secure_sum, 10, 10, True),
        (ko.federated_secure_sum, 10, 11, False),
        (ko.federated_secure_sum, 10, -1, False),
        (ko.federated_secure_sum, 0, 0, True),
        (ko.federated_secure_sum_bitwidth, 3, 7, True),
        (ko.federated_secure_sum_bitwidth, 3, 8, False),
        (ko.federated_secure_sum_bitwidth, 32, 2**31 - 1, True),
        (ko.federated_secure_sum_bitwidth, 31, -1, False),
    ],
)
def test_a_client_outside_the_declared_range_fails_the_run(operator: Any, bound: int, value: int, ok: bool) -> None:
    """The message names the client's place in the cohort."""
    fn = lambda v: operator(v, bound)  # noqa: E731
    if ok:
        assert int(run(fn, [INT], [0, value])) == value
        return
    with pytest.raises(SecureSumRangeError, match="outside the declared range") as caught:
        run(fn, [INT], [0, value, value])
    assert caught.value.differs == "the client at position 1 of the cohort"
    assert caught.value.hint is not None


def test_each_tensor_has_a_bound_of_its_own() -> None:
    """A struct of bounds is matched with the struct of values."""
    types = [at_clients({"a": (np.int32, (2,)), "b": np.int32})]
    secure = lambda v: ko.federated_secure_sum(v, {"a": 3, "b": 100})  # noqa: E731
    total = run(secure, types, [{"a": [3, 0], "b": 100}, {"a": [1, 2], "b": 50}])
    assert (total["a"].tolist(), int(total["b"])) == ([4, 2], 150)
    with pytest.raises(SecureSumRangeError):
        run(secure, types, [{"a": [0, 4], "b": 0}])


def test_a_modular_sum_is_in_the_range_of_its_modulus() -> None:
    """Whatever the clients send, negative numbers among it; without overflow on the way."""
    modulus = 2**31 - 1
    numbers = [2**31 - 1, 2**31 - 2, -5, -(2**31)]
    secure = lambda v: ko.federated_secure_modular_sum(v, modulus)  # noqa: E731
    assert int(run(secure, [INT], numbers)) == sum(numbers) % modulus
    assert int(run(lambda v: ko.federated_secure_modular_sum(v, 8), [INT], [7, 7, -1])) == 13 % 8


def test_a_modulus_that_is_computed_must_be_positive() -> None:
    """What tracing cannot see is checked when it runs."""
    secure = lambda v, m: ko.federated_secure_modular_sum(v, m)  # noqa: E731
    assert int(run(secure, [INT, np.int32], [5, 6], 7)) == 4
    with pytest.raises(SecureSumRangeError, match="must be positive"):
        run(secure, [INT, np.int32], [5, 6], 0)


# --- placing and mapping ---------------------------------------------------------------------------------------------


def test_a_function_is_evaluated_once_for_each_client() -> None:
    """The number of clients is that of the arguments, or the default."""
    once = lambda v: (ko.federated_eval(lambda: 3, CLIENTS), ko.federated_eval(lambda: 4, SERVER), v)  # noqa: E731
    assert run(once, [INT], [0, 0]) == ([3, 3], 4, [0, 0])
    alone = ko.federated_computation(lambda: ko.federated_eval(lambda: 3, CLIENTS))
    assert alone() == []
    with ko.backends.use(ReferenceBackend(default_num_clients=4)):
        assert alone() == [3] * 4


def test_a_value_that_all_clients_have_comes_back_once() -> None:
    """A broadcast can be called without any client, which TFF cannot do."""
    assert int(run(ko.federated_broadcast, [at_server(np.int32)], 5)) == 5
    assert int(run(lambda: ko.federated_value(7, CLIENTS), [])) == 7
    mapped = lambda v: ko.federated_map(lambda x: x + 1, ko.federated_broadcast(v))  # noqa: E731
    assert run(mapped, [at_server(np.int32)], 5) == []
    both = lambda v, c: ko.federated_map(add, (ko.federated_broadcast(v), c))  # noqa: E731
    assert run(both, [at_server(np.int32), INT], 5, [1, 2]) == [6, 7]


def test_zipping_what_is_the_same_everywhere_gives_one_for_each_client() -> None:
    """A zip forgets that all are equal."""
    zipped = lambda v, c: ko.federated_zip((ko.federated_broadcast(v), ko.federated_broadcast(v)))  # noqa: E731
    assert run(zipped, [at_server(np.int32), INT], 5, [1, 2]) == [(5, 5), (5, 5)]


def test_an_all_equal_argument_is_one_value() -> None:
    """A parameter of the type `T@CLIENTS` takes the value itself."""
    total = lambda v, c: ko.federated_sum(ko.federated_map(add, (v, c)))  # noqa: E731
    assert int(run(total, [FederatedType(np.int32, CLIENTS, True), INT], 10, [1, 2])) == 23


def test_every_client_has_a_key_of_its_own() -> None:
    """That at position i is `fold_in(key, i)`."""
    key = jax.random.key(3)
    keys = run(lambda k, v: ko.federated_split_key(k), [at_server(KEY), INT], key, [0, 0, 0])
    expected = [jax.random.key_data(jax.random.fold_in(key, i)).tolist() for i in range(3)]
    assert [jax.random.key_data(k).tolist() for k in keys] == expected


def test_a_selection_gives_each_client_what_it_asks_for() -> None:
    """In the order of its keys, as a sequence."""
    types = [at_clients((np.int32, (2,))), at_server(np.int32), at_server((np.float32, (4, 2)))]
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    select = lambda k, m, s: ko.federated_select(k, m, s, lambda t, i: t[i])  # noqa: E731
    slices = run(select, types, [[3, 0], [1, 1]], 4, table)
    assert [[piece.tolist() for piece in client] for client in slices] == [[[6, 7], [0, 1]], [[2, 3], [2, 3]]]
    secure = lambda k, m, s: ko.federated_secure_select(k, m, s, lambda t, i: t[i].sum())  # noqa: E731
    assert [[float(p) for p in c] for c in run(secure, types, [[3, 0]], 4, table)] == [[13.0, 1.0]]


# --- sequences -----------------------------------------------------------------------------------------------------

_PLACES = {
    "unplaced": (lambda t: t, [1, 2, 3], lambda r: r),
    "server": (at_server, [1, 2, 3], lambda r: r),
    "clients": (at_clients, [[1, 2, 3], []], lambda r: r[0]),
}


@pytest.mark.parametrize("place", _PLACES)
def test_operators_on_sequences_run_where_the_sequence_is(place: str) -> None:
    """Unplaced, at the server, and at each client."""
    at, data, first = _PLACES[place]
    types = [at(SequenceType(np.int32))]
    assert first(run(lambda s: ko.sequence_map(lambda x: x * 10, s), types, data)) == [10, 20, 30]
    assert int(first(run(ko.sequence_sum, types, data))) == 6
    assert int(first(run(lambda s: ko.sequence_reduce(s, 0, lambda t, x: t * 10 + x), types, data))) == 123


def test_a_reduction_may_start_from_a_placed_zero() -> None:
    """A zero that is where the sequence is."""
    reduce = lambda s, z: ko.sequence_reduce(s, z, lambda t, x: t * 10 + x)  # noqa: E731
    assert run(reduce, [at_clients(SequenceType(np.int32)), INT], [[1, 2], []], [7, 8]) == [712, 8]
    same = lambda s: ko.sequence_reduce(s, ko.federated_value(9, CLIENTS), add)  # noqa: E731
    assert run(same, [at_clients(SequenceType(np.int32))], [[1, 2], []]) == [12, 9]


def test_unknown_sizes_differ_from_client_to_client() -> None:
    """Each client's array has a size of its own."""
    norm = lambda v: ko.federated_map(lambda x: x.sum(), v)  # noqa: E731
    values = [np.ones(3, np.float32), np.ones(1, np.float32), np.zeros(0, np.float32)]
    assert run(norm, [at_clients(TensorType(np.float32, (None,)))], values) == [3.0, 1.0, 0.0]


def test_the_engine_prints_its_settings() -> None:
    """For those who look at what runs."""
    assert repr(ReferenceBackend(default_num_clients=3)) == "ReferenceBackend(default_num_clients=3)"
