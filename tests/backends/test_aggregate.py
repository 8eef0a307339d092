"""Secure sums on the local engine: exact at the ends of every dtype, for many clients and in several parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.backends import LocalBackend
from koinon.backends._aggregate import fold_of
from koinon.computation import ClientRows
from koinon.types import SequenceType, TensorType, at_clients

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32"]


@pytest.mark.parametrize(("clients", "value"), [(2**17, 2**31), (2**16, 2**32 - 1), (2, 2**31)])
def test_a_total_that_is_a_multiple_of_two_to_the_32_does_not_come_out_as_zero(clients: int, value: int) -> None:
    """However far a sum is beyond its dtype, it is an error; one that just fits is exact."""

    @ko.federated_computation(at_clients(jnp.uint32))
    def total(values: Any) -> Any:
        return ko.federated_secure_sum(values, np.uint32(2**32 - 1))

    def rows(numbers: np.ndarray) -> ClientRows:
        return ClientRows(TensorType(jnp.uint32), [jnp.asarray(numbers, jnp.uint32)], len(numbers))

    numbers = np.full(clients, value, np.uint32)
    with pytest.raises(ko.errors.SecureSumRangeError, match="does not fit"):
        total(rows(numbers))
    share = (2**32 - 1) // clients
    assert int(total(rows(np.full(clients, share, np.uint32)))) == clients * share


def moduli_of(dtype: str) -> list[int]:
    """Moduli of any kind, up to the largest that a dtype has the results of."""
    largest = int(np.iinfo(dtype).max) + 1
    return [1, 2, 3, 100, largest // 2 + 1, largest - 1, min(largest, 2**32 - 1)]


def modular_sum_by(modulus: np.uint32) -> Callable[[Any], Any]:
    """The operator with a constant modulus."""
    return lambda values: ko.federated_secure_modular_sum(values, modulus)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_modular_sum_is_that_of_python_integers(dtype: str, backend: str) -> None:
    """For integers of all of a dtype and any modulus, constant or not, the result is Python's `sum % modulus`."""
    limits = np.iinfo(dtype)
    values = np.random.default_rng(0).integers(limits.min, int(limits.max) + 1, size=(7, 3)).astype(dtype)
    values[0], values[1], values[2] = limits.min, limits.max, -1 if limits.min else 1
    rows = at_clients(TensorType(dtype, (3,)))
    computed = ko.federated_computation(lambda v, m: ko.federated_secure_modular_sum(v, m), rows, np.uint32)

    for modulus in moduli_of(dtype):
        constant = ko.federated_computation(modular_sum_by(np.uint32(modulus)), rows)
        expected = [sum(map(int, column)) % modulus for column in values.T]

        assert constant(list(values)).tolist() == expected
        assert computed(list(values), np.uint32(modulus)).tolist() == expected


@pytest.mark.parametrize(
    "engine",
    [
        LocalBackend(threads=3),
        LocalBackend(lanes=4, threads=2),
        LocalBackend(devices=2),
        LocalBackend(deterministic=True),
    ],
    ids=["threads", "lanes", "devices", "deterministic"],
)
def test_a_modular_sum_does_not_depend_on_the_parts_that_a_cohort_runs_in(engine: LocalBackend) -> None:
    """Modulo all that uint8 holds and modulo one more than int8 holds, in however many parts."""
    # Long enough for a cohort to be worth cutting up.
    last = ko.jax_computation(lambda s: s.reduce(jnp.int32(0), lambda _, x: x), SequenceType(np.int32))

    @ko.federated_computation(at_clients(SequenceType(np.int32)))
    def totals(data: Any) -> Any:
        number = ko.federated_map(last, data)
        unsigned = ko.federated_map(lambda x: x.astype(jnp.uint8), number)
        signed = ko.federated_map(lambda x: x.astype(jnp.int8), number)
        return ko.federated_secure_modular_sum(unsigned, 256), ko.federated_secure_modular_sum(signed, 128)

    numbers = [200, 100, -128, 127, -1, 255, 77, -77, 128, 3, 9]
    with ko.backends.use(engine):
        unsigned, signed = totals([np.full(400, number, np.int32) for number in numbers])

    assert int(unsigned) == sum(np.uint8(number % 256).item() for number in numbers) % 256
    assert int(signed) == sum(np.uint8(number % 256).view(np.int8).item() for number in numbers) % 128


@pytest.mark.parametrize(
    ("dtype", "modulus", "message"),
    [
        ("int8", 129, "does not fit its dtype"),
        ("uint8", 257, "does not fit its dtype"),
        ("int32", 2**31 + 1, "does not fit its dtype"),
        ("int8", 2**32 - 1, "does not fit its dtype"),
        ("int8", 0, "must be positive"),
    ],
)
def test_a_computed_modulus_is_refused_where_results_would_not_fit(
    dtype: str, modulus: int, message: str, backend: str
) -> None:
    """Whatever the values are, so that no result is outside of `[0, modulus)`."""
    total = ko.federated_computation(
        lambda v, m: ko.federated_secure_modular_sum(v, m), at_clients(TensorType(dtype)), np.uint32
    )

    with pytest.raises(ko.errors.SecureSumRangeError, match=message):
        total([1, 2], np.uint32(modulus))


@pytest.mark.parametrize("bits_dtype", ["int8", "uint8", "int32", "uint32"])
def test_a_number_of_bits_counts_in_any_dtype(bits_dtype: str, backend: str) -> None:
    """More bits than a dtype has are all of its own, none is zero alone, and fewer than none are none."""
    total = ko.federated_computation(
        lambda v, bits: ko.federated_secure_sum_bitwidth(v, bits), at_clients(np.int32), TensorType(bits_dtype)
    )
    limits = np.iinfo(bits_dtype)

    assert int(total([100, 20], np.asarray(40, bits_dtype))) == 120
    assert int(total([2**31 - 1, 0], np.asarray(limits.max, bits_dtype))) == 2**31 - 1
    assert int(total([0, 0], np.asarray(limits.min, bits_dtype))) == 0
    for bits, value in ((6, 64), (0, 1), (limits.min, 1)):
        with pytest.raises(ko.errors.SecureSumRangeError, match="outside the declared range"):
            total([0, value], np.asarray(bits, bits_dtype))


def test_a_flag_of_a_total_is_the_number_of_the_leaf_that_does_not_fit() -> None:
    """Counted from 1, so that the error can name the dtype of that leaf; 0 where all of them fit."""
    value = {"a": np.int32, "b": np.int8, "c": np.int8}
    computation = ko.federated_computation(lambda v: ko.federated_secure_sum(v, 127), at_clients(value))
    (step,) = ko.compiler.plan(computation).phases[0].aggregations
    fold = fold_of(step, (None, np.int32(127)))

    def flag(*clients: tuple[int, int, int]) -> int:
        state = fold.zero
        for index, (a, b, c) in enumerate(clients):
            state = fold.add(state, ((jnp.int32(a), jnp.int8(b), jnp.int8(c)), None), jnp.int32(index))
        return int(fold.finish(state)[1]["total"])

    assert flag((100, 100, 100)) == 0
    assert flag((100, 27, 27), (100, 101, 101)) == 2
    assert flag((100, 27, 27), (100, 100, 101)) == 3
