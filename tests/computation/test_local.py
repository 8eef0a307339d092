"""Tests of programs of JAX: what a `jax_computation` takes, returns and refuses; unknown dimensions; 64 bits."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.computation._local import apply_local
from koinon.errors import ArgumentError, ComputationReturnedNoneError, KoinonTypeError, UnsupportedTypeError
from koinon.types import SequenceType, StructType, TensorType
from tests.messages import blamed_line


@dataclasses.dataclass
class Plain:
    """A dataclass that JAX does not know."""

    x: Any
    y: Any


def unknown(*shape: int | None) -> TensorType:
    """A float tensor of this shape."""
    return TensorType(np.float32, shape)


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "notation"),
    [
        (1, "int32"),
        (2.5, "float32"),
        (True, "bool"),
        (1j, "complex64"),
        (np.float32(1), "float32"),
        (np.zeros((2, 3)), "float32[2,3]"),
        (np.int8([1]), "int8[1]"),
        ((), "<>"),
        ({"b": 1, "a": [2.0, ()]}, "<a=<float32,<>>,b=int32>"),
        (Plain(1, np.ones(2)), "<x=int32,y=float32[2]>"),
    ],
)
def test_a_result_is_anything_made_of_arrays(result: Any, notation: str, backend: str) -> None:
    """Numbers and arrays of Python and numpy become arrays of JAX, with its dtypes, in the same containers."""
    comp = ko.jax_computation(lambda: result)
    assert str(comp.type_signature.result) == notation
    returned = comp()
    if isinstance(result, Plain):
        assert isinstance(returned, Plain)
        returned, result = (returned.x, returned.y), (result.x, result.y)
    assert jax.tree.structure(returned) == jax.tree.structure(result)
    for left, right in zip(jax.tree.leaves(returned), jax.tree.leaves(result), strict=True):
        assert isinstance(left, jax.Array)
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("result", ["text", {"a": None}, object(), b"", [1, "x"]])
def test_a_result_without_a_type_is_refused(result: Any) -> None:
    """The message names the function, what it returned and its line."""

    def returns() -> Any:
        return result

    with pytest.raises(KoinonTypeError, match="The function `returns` must return arrays") as caught:
        ko.jax_computation(returns)
    assert "a value of <class" in str(caught.value.found)
    assert blamed_line(caught.value) == "def returns() -> Any:"


def test_returning_none_is_an_error_at_the_line_of_the_function() -> None:
    """A forgotten return statement is told from a result without a type."""

    def forgets(x: Any) -> Any:
        x + 1

    with pytest.raises(ComputationReturnedNoneError, match="`forgets` returned None") as caught:
        ko.jax_computation(forgets, np.int32)
    assert blamed_line(caught.value) == "def forgets(x: Any) -> Any:"


def test_a_program_is_traced_once_and_holds_no_python() -> None:
    """The body runs at the decoration alone; what it closed over is in the program as it was then."""
    factor = [2.0]
    comp = ko.jax_computation(lambda x: x * factor[0], np.float32)
    factor[0] = 100.0
    assert float(comp(3.0)) == 6.0


def test_a_program_closes_over_arrays() -> None:
    """Constants of the program are arrays of it."""
    table = jnp.arange(4.0)
    lookup = ko.jax_computation(lambda i: table[i], np.int32)
    assert float(lookup(3)) == 3.0


def test_keys_go_in_and_out(backend: str) -> None:
    """Typed PRNG keys are values like others."""
    key = jax.random.key(7)
    comp = ko.jax_computation(lambda k: (jax.random.split(k), jax.random.uniform(k)), key.dtype)
    assert str(comp.type_signature) == "(key<fry> -> <key<fry>[2],float32>)"
    keys, number = comp(key)
    assert jax.random.key_data(keys).tolist() == jax.random.key_data(jax.random.split(key)).tolist()
    assert float(number) == float(jax.random.uniform(key))


# --- unknown dimensions ----------------------------------------------------------------------------------------------


def test_one_trace_serves_every_size(backend: str) -> None:
    """An unknown dimension is a symbol while tracing, and any number in a call."""
    traced = []

    @ko.jax_computation(unknown(None, 3))
    def normalize(x: Any) -> Any:
        traced.append(x.shape)
        return (x - x.mean(0)) / x.shape[0], x.shape[0] * 2

    assert str(normalize.type_signature) == "(float32[?,3] -> <float32[?,3],int32>)"
    for size in (1, 4, 7):
        x = np.arange(3 * size, dtype=np.float32).reshape(size, 3)
        result, twice = normalize(x)
        np.testing.assert_allclose(result, (x - x.mean(0)) / size, rtol=1e-6, atol=1e-6)
        assert int(twice) == 2 * size
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("fn", "types", "notation"),
    [
        (lambda x: x.sum(), [unknown(None)], "float32"),
        (lambda x: jnp.concatenate([x, x]), [unknown(None)], "float32[?]"),
        (lambda x, y: jnp.outer(x, y), [unknown(None), unknown(2)], "float32[?,2]"),
        (lambda x: x.T, [unknown(2, None)], "float32[?,2]"),
        (lambda x: {"a": x[:, 0], "b": x[0]}, [unknown(None, None)], "<a=float32[?],b=float32[?]>"),
        (lambda x: jnp.zeros(x.shape[0] + 1), [unknown(None)], "float32[?]"),
        (lambda x: jax.lax.scan(lambda c, v: (c + v, c), jnp.float32(0), x)[1], [unknown(None)], "float32[?]"),
        (lambda x: jax.vmap(lambda v: v * 2)(x), [unknown(None, 2)], "float32[?,2]"),
    ],
)
def test_the_result_type_is_inferred_once_for_all_sizes(fn: Any, types: Any, notation: str, backend: str) -> None:
    """A dimension that depends on an unknown one is unknown, the others are known; every size runs."""

    def one(x: Any) -> Any:
        return fn(x)

    def two(x: Any, y: Any) -> Any:
        return fn(x, y)

    comp = ko.jax_computation((one, two)[len(types) - 1], *types)
    assert str(comp.type_signature.result) == notation
    for size in (2, 5):
        arguments = [np.arange(np.prod(s), dtype=np.float32).reshape(s) for s in _shapes(types, size)]
        expected = fn(*[jnp.asarray(argument) for argument in arguments])
        jax.tree.map(np.testing.assert_allclose, comp(*arguments), expected)


def _shapes(types: list[TensorType], size: int) -> list[list[int]]:
    return [[size if dim is None else dim for dim in type_.shape or ()] for type_ in types]


def test_derivatives_of_a_program_with_unknown_dimensions(backend: str) -> None:
    """Specialised to a size, a program differentiates and batches like any other."""
    square_sum = ko.jax_computation(lambda x: (x * x).sum(), unknown(None))
    x = jnp.arange(3.0)
    np.testing.assert_allclose(jax.grad(square_sum)(x), 2 * x)
    np.testing.assert_allclose(jax.vmap(square_sum)(jnp.ones((2, 3))), [3.0, 3.0])


def test_each_unknown_dimension_is_free() -> None:
    """Two unknown dimensions need not agree, so that adding them has no type."""
    with pytest.raises(Exception, match=r"(?i)dimension|shape"):
        ko.jax_computation(lambda x, y: x + y, unknown(None), unknown(None))


def test_a_tensor_of_unknown_rank_is_refused() -> None:
    """JAX traces no array of unknown rank; the hint is `?`."""
    with pytest.raises(UnsupportedTypeError, match="unknown rank") as caught:
        ko.jax_computation(lambda x: x, TensorType(np.float32, None))
    assert caught.value.hint is not None


def test_an_argument_of_another_rank_is_refused() -> None:
    """The rank is known, and the known dimensions are."""
    comp = ko.jax_computation(lambda x: x, unknown(None, 2))
    for wrong in (np.zeros(2, np.float32), np.zeros((2, 3), np.float32)):
        with pytest.raises(ArgumentError, match="dtype and shape"):
            comp(wrong)


def test_a_program_runs_on_values_in_the_form_of_koinon() -> None:
    """`apply_local` takes and gives tuples of arrays, never a user's containers."""
    comp = ko.jax_computation(lambda s: {"sum": s["a"] + s["b"], "one": 1}, {"a": np.float32, "b": np.float32})
    one, total = apply_local(comp.expression, (jnp.float32(1), jnp.float32(2)))
    assert (int(one), float(total)) == (1, 3.0)
    assert isinstance(one, jax.Array)


# --- 64 bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="JAX holds 64 bits here")
@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64", "complex128"])
def test_types_of_64_bits_are_refused_while_jax_holds_32(dtype: str) -> None:
    """Alone, in structs and in sequences; the message names the type, the place, and the flag."""
    for type_ in (TensorType(dtype), StructType([np.int32, TensorType(dtype, (2,))]), SequenceType(TensorType(dtype))):
        with pytest.raises(UnsupportedTypeError, match=f"JAX holds no {dtype} as it is configured now") as caught:
            ko.jax_computation(lambda x: x, type_)
        assert isinstance(caught.value, TypeError)
        assert "lambda x: x" in blamed_line(caught.value)


_WITH_X64 = """
import numpy as np, koinon as ko, jax.numpy as jnp
from koinon.types import at_clients, at_server, TensorType, SequenceType
for name in ("reference", "local"):
    with ko.backends.use(name):
        big = ko.jax_computation(lambda x: x + 1, TensorType("int64"))
        assert str(big.type_signature) == "(int64 -> int64)"
        result = big(2**40)
        assert result.dtype == np.int64 and int(result) == 2**40 + 1
        assert float(ko.jax_computation(lambda x: x / 3, TensorType("float64"))(1.0)) == 1 / 3
        total = ko.federated_computation(lambda v: ko.federated_sum(v), at_clients(TensorType("int64")))
        assert int(total([2**40, np.int64(5)])) == 2**40 + 5
        mean = ko.federated_computation(lambda v: ko.federated_mean(v), at_clients(TensorType("float64")))
        assert float(mean([1.0, 1.0, 2.0])) == 4 / 3
        constant = ko.federated_computation(lambda: ko.federated_value(2**40, ko.SERVER))
        assert str(constant.type_signature) == "( -> int64@SERVER)" and int(constant()) == 2**40
        doubles = SequenceType(TensorType("float64"))
        summed = ko.jax_computation(lambda s: s.reduce(jnp.float64(0), lambda a, x: a + x), doubles)
        assert float(summed([0.1, 0.2])) == 0.1 + 0.2
        secure = ko.federated_computation(lambda v: ko.federated_secure_sum(v, 2**40), at_clients(TensorType("int64")))
        assert int(secure([2**40, 2**40 - 1])) == 2**41 - 1
        # 32-bit types stay what they are.
        try:
            ko.jax_computation(lambda x: x, TensorType("float32"))(np.float64(1))
        except ko.errors.ArgumentError:
            pass
        else:
            raise AssertionError("a float64 array was taken for a float32")
print("held")
"""


def test_types_of_64_bits_are_honoured_where_jax_holds_them() -> None:
    """With x64 on, in a process of its own, 64-bit values go through every engine unharmed."""
    environment = {**os.environ, "JAX_ENABLE_X64": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _WITH_X64], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "held\n", done.stderr
