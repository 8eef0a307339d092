"""Tests of arguments on their way in: dtypes, shapes and containers are checked, and nothing is narrowed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import koinon as ko
from koinon.computation._flat import leaf_types
from koinon.computation._transfer import columns, local_value, packed_view, sequence_of_rows, tensor
from koinon.errors import (
    ArgumentError,
    CardinalityError,
    InvalidNonAllEqualValueError,
    TypeNotAssignableError,
    UnsupportedTypeError,
)
from koinon.types import SequenceType, StructType, TensorType, at_clients, at_server

KEY = TensorType(jax.random.key(0).dtype)
FLOAT, INT = TensorType(np.float32), TensorType(np.int32)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (np.float32, 3, 3.0),
        (np.float32, 2.5, 2.5),
        (np.float16, 1, 1.0),
        (jnp.bfloat16, 1.5, 1.5),
        (np.complex64, 2, 2 + 0j),
        (np.complex64, 1j, 1j),
        (np.uint8, 255, 255),
        (np.int8, -128, -128),
        (np.bool_, True, True),
        (np.float32, float("inf"), float("inf")),
    ],
)
def test_python_numbers_take_the_declared_dtype(dtype: Any, value: Any, expected: Any) -> None:
    """Python numbers are weakly typed: an int serves for a float, both for a complex number."""
    array = tensor(TensorType(dtype), value, "")
    assert isinstance(array, jax.Array)
    assert array.dtype == dtype
    assert complex(array) == expected


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.int32, 3.0),
        (np.int32, True),
        (np.int32, 2**31),
        (np.int32, -(2**31) - 1),
        (np.uint8, 256),
        (np.uint8, -1),
        (np.float32, True),
        (np.float32, 1j),
        (np.float32, 1e39),
        (np.float16, 70000),
        (np.float16, [1.0, 1e5]),
        (np.bool_, 1),
        (np.bool_, 0.0),
        (KEY.dtype, 0),
    ],
)
def test_python_numbers_that_lose_something_are_refused(dtype: Any, value: Any) -> None:
    """A float for an int, a truth value for a number, and whatever is out of range."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ArgumentError, match="A Python number does not fit the declared dtype") as caught:
            tensor(TensorType(dtype, None), value, ".x")
    assert caught.value.differs == ".x"
    assert repr(value) in str(caught.value.found)


@given(st.integers(-(2**40), 2**40), st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint32"]))
def test_an_int_is_taken_exactly_where_it_is_in_range(value: int, dtype: str) -> None:
    """Every integer in the range of a dtype is taken as it is, every other is refused."""
    limits = np.iinfo(dtype)
    if limits.min <= value <= limits.max:
        assert int(tensor(TensorType(dtype), value, "")) == value
    else:
        with pytest.raises(ArgumentError):
            tensor(TensorType(dtype), value, "")


@pytest.mark.parametrize(
    "array", [np.float64(1), np.int32(1), jnp.int32(1), np.zeros(3, np.float32), np.bool_(True), jnp.bfloat16(1)]
)
def test_arrays_must_have_the_declared_dtype_and_shape(array: Any) -> None:
    """An array is never converted; the message has both types and what to do."""
    with pytest.raises(ArgumentError, match="does not have the declared dtype and shape") as caught:
        tensor(FLOAT, array, ".model.w")
    assert caught.value.expected == FLOAT
    assert caught.value.found == TensorType(array.dtype, array.shape)
    assert caught.value.differs == ".model.w"
    wrong_dtype = array.dtype != np.float32
    assert caught.value.hint is not None
    assert ("jnp.asarray(x, 'float32')" in caught.value.hint) == wrong_dtype


def test_raw_key_data_is_no_typed_key() -> None:
    """The hint says how typed keys are made; a key of another implementation is another type."""
    for value in (jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")):
        with pytest.raises(ArgumentError) as caught:
            tensor(KEY, value, "")
        assert caught.value.hint == "make keys with jax.random.key(seed)"
    assert tensor(KEY, jax.random.key(3), "").dtype == KEY.dtype


def test_unknown_dimensions_take_any_size() -> None:
    """`?` is open, a number is not, and the rank is fixed."""
    type_ = TensorType(np.float32, (None, 2))
    assert tensor(type_, np.ones((5, 2), np.float32), "").shape == (5, 2)
    assert tensor(type_, [[1, 2]], "").shape == (1, 2)
    for wrong in (np.ones((5, 3), np.float32), np.ones(2, np.float32)):
        with pytest.raises(ArgumentError, match="dtype and shape"):
            tensor(type_, wrong, "")


@pytest.mark.parametrize("value", ["text", None, object(), [[1.0], 2.0], {"a": 1}, {1.0}])
def test_what_is_no_tensor_is_refused(value: Any) -> None:
    """Text, None, ragged lists and containers are no tensors."""
    with pytest.raises(ArgumentError, match="An argument is not a tensor") as caught:
        tensor(TensorType(np.float32, (2,)), value, ".x")
    assert caught.value.differs == ".x"
    assert type(value).__name__ in str(caught.value.found)


def test_an_array_of_64_bits_is_refused_while_jax_holds_32() -> None:
    """Also where the declared type agrees with the array."""
    if jax.config.jax_enable_x64:
        pytest.skip("JAX holds 64 bits here")
    for value in (np.int64(2**40), 2**40):
        with pytest.raises(UnsupportedTypeError, match="narrows no value silently") as caught:
            tensor(TensorType("int64"), value, "")
        assert isinstance(caught.value, TypeError)
        assert caught.value.hint is not None
        assert "jax_enable_x64" in caught.value.hint


# --- structures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": {"x": 1.0, "y": 2.0}, "b": [1, 2]}, ".a"),
        ({"a": {"x": 1.0}, "b": [1, 2, 3]}, ".b"),
        ({"a": {"x": 1.0}, "b": 5}, ".b"),
        ({"a": {"x": 1.0}, "b": [1, 2.5]}, ".b[1]"),
        ({"a": {"x": "z"}, "b": [1, 2]}, ".a.x"),
    ],
)
def test_an_error_inside_a_structure_has_the_whole_path(value: Any, path: str) -> None:
    """The path leads from the argument to the leaf or to the structure that is wrong."""
    type_ = ko.to_type({"a": {"x": np.float32}, "b": [np.int32, np.int32]})
    with pytest.raises(ArgumentError) as caught:
        local_value(type_, value)
    assert caught.value.differs == path


# --- sequences -------------------------------------------------------------------------------------------------------

EXAMPLE = ko.to_type({"x": (np.float32, (2,)), "y": np.int32})
PAIR = ko.to_type((TensorType(np.float32, (2,)), np.int32))


@pytest.mark.parametrize(
    "value",
    [
        [{"x": [0, 1], "y": 0}, {"x": np.float32([2, 3]), "y": np.int32(1)}, {"x": jnp.float32([4, 5]), "y": 2}],
        {"x": np.arange(6, dtype=np.float32).reshape(3, 2), "y": np.arange(3, dtype=np.int32)},
        {"y": jnp.arange(3), "x": jnp.arange(6.0).reshape(3, 2)},
        {"x": [[0, 1], [2, 3], [4, 5]], "y": [0, 1, 2]},
    ],
    ids=["examples", "columns", "columns of JAX", "columns of numbers"],
)
def test_the_examples_of_a_client_are_a_list_or_columns(value: Any) -> None:
    """A list of examples, and one example whose leaves are stacked, are the same data."""
    leaves, count = columns(SequenceType(EXAMPLE), value, "")
    assert count == 3
    np.testing.assert_array_equal(leaves[0], np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(leaves[1], np.arange(3))
    assert [leaf.dtype for leaf in leaves] == [np.float32, np.int32]


@pytest.mark.parametrize("container", [tuple, list])
def test_columns_in_a_tuple_are_told_from_a_tuple_of_examples(container: Callable[[Any], Any]) -> None:
    """`(x, y)` with arrays is a pair of columns, since an example that is a structure is no array."""
    x, y = np.ones((3, 2), np.float32), np.arange(3, dtype=np.int32)
    leaves, count = columns(SequenceType(PAIR), container([x, y]), "")
    assert count == 3
    assert leaves[0].shape == (3, 2)
    assert columns(SequenceType(PAIR), container([(x[0], 1), (x[1], 2)]), "")[1] == 2


def test_no_examples_have_the_shapes_of_the_type() -> None:
    """An empty list is a client without examples; unknown dimensions count as 0."""
    type_ = SequenceType(ko.to_type([TensorType(np.float32, (None, 3)), KEY]))
    leaves, count = columns(type_, [], "")
    assert count == 0
    assert [leaf.shape for leaf in leaves] == [(0, 0, 3), (0,)]


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        ([{"x": [1.0, 2.0], "y": 1}, {"x": [1.0], "y": 1}], "[1].x", "dtype and shape"),
        ([{"x": [1.0, 2.0], "y": 1.5}], "[0].y", "A Python number does not fit"),
        ([{"x": [1.0, 2.0]}], "[0]", "The names in a structure"),
        ([5], "[0]", "A structure was expected"),
        ({"x": np.ones((3, 2), np.float32), "y": np.ones(3, np.float32)}, ".y", "dtype and shape"),
        ({"x": np.ones((3, 2), np.float32), "y": np.ones(2, np.int32)}, None, "must have one leading dimension"),
        ({"x": np.ones((3, 4), np.float32), "y": np.ones(3, np.int32)}, ".x", "dtype and shape"),
        (7, None, "A structure was expected"),
    ],
)
def test_wrong_examples_are_named_by_their_position_and_field(value: Any, path: str | None, message: str) -> None:
    """The index of the example and the path of the leaf are in the message."""
    with pytest.raises(ArgumentError, match=message) as caught:
        columns(SequenceType(EXAMPLE), value, "")
    assert caught.value.differs == path


def test_the_examples_of_one_client_have_one_shape() -> None:
    """A `?` stands for one size within a client."""
    type_ = SequenceType(TensorType(np.float32, (None,)))
    with pytest.raises(ArgumentError, match="The examples of one client must have one shape") as caught:
        columns(type_, [np.ones(2, np.float32), np.ones(3, np.float32)], ".data[4]")
    assert caught.value.differs == ".data[4]"
    assert caught.value.found == "[2] and [3]"


def test_a_packed_sequence_has_one_row_at_least() -> None:
    """A program that is traced for the buffers of no examples can still read a row."""
    type_ = SequenceType(EXAMPLE)
    view = packed_view(type_, *columns(type_, [], ""))
    assert int(view.length) == 0
    assert [buffer.shape for buffer in view.buffers] == [(1, 2), (1,)]
    empty = sequence_of_rows(SequenceType(KEY), [])
    assert int(empty.length) == 0
    assert empty.packed().buffers[0].shape == (1,)


def test_the_leaves_of_a_sequence_are_its_buffers_offset_and_length() -> None:
    """The flat form that programs take."""
    assert [str(leaf) for leaf in leaf_types(SequenceType(EXAMPLE))] == ["float32[?,2]", "int32[?]", "int32", "int32"]


# --- values of the clients -------------------------------------------------------------------------------------------


@ko.federated_computation(at_clients({"x": (np.float32, (2,)), "n": np.int32}), at_server(np.float32))
def fed(values: Any, rate: Any) -> Any:
    """Something of both placements."""
    return ko.federated_sum(values), rate


def value(x: Any = (1.0, 2.0), n: Any = 1) -> dict[str, Any]:
    """A client's value."""
    return {"x": list(x), "n": n}


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ([value(), value(n=1.5)], ".values[1].n"),
        ([value(), value(), value(x=(1.0,))], ".values[2].x"),
        ([value(), {"x": [1.0, 2.0]}], ".values[1]"),
        ([value(), {"x": np.float64([1.0, 2.0]), "n": 1}], ".values[1].x"),
        ([3], ".values[0]"),
    ],
)
def test_an_error_in_a_client_names_the_client_and_the_leaf(values: Any, path: str, backend: str) -> None:
    """The parameter, the position of the client and the path of the leaf are in the message, on every engine."""
    with pytest.raises(ArgumentError) as caught:
        fed(values, 1.0)
    assert caught.value.differs == path


@pytest.mark.parametrize("values", [np.ones((3, 2), np.float32), (v for v in [value()]), {"a": value()}, 5, None, "ab"])
def test_the_values_of_the_clients_are_a_list_or_tuple(values: Any, backend: str) -> None:
    """Anything else is an InvalidNonAllEqualValueError, which is a TypeError; a mapping has a hint."""
    with pytest.raises(InvalidNonAllEqualValueError, match="must be a list or tuple") as caught:
        fed(values, 1.0)
    assert isinstance(caught.value, TypeError)
    assert caught.value.differs == ".values"
    assert (caught.value.hint is not None) == isinstance(values, dict)


def test_all_arguments_agree_on_the_number_of_clients(backend: str) -> None:
    """The message has every count with its path."""
    comp = ko.federated_computation(
        lambda a, b, c: ko.federated_sum((a, b, c)), *[at_clients(np.int32), at_clients(np.int32), at_clients(np.int32)]
    )
    with pytest.raises(CardinalityError, match="Conflicting cardinalities for CLIENTS: 2 vs 1 vs 2") as caught:
        comp([1, 2], [1], [1, 2])
    assert isinstance(caught.value, ValueError)
    assert caught.value.found == "2 at .a, 1 at .b, 2 at .c"


def test_a_cohort_has_examples_of_the_declared_type(backend: str) -> None:
    """Another type of examples, or no sequence at all, is a TypeNotAssignableError with both types."""
    packed = ko.PackedSequences(FLOAT, [np.zeros(3, np.float32)], np.array([0]), np.array([3]))
    cohort = ko.Cohort(packed, np.array([0]))
    for type_ in (at_clients(SequenceType(np.int32)), at_clients(np.float32)):
        comp = ko.federated_computation(lambda d, s: d, type_, at_server(np.int32))
        with pytest.raises(TypeNotAssignableError, match=r"The cohort given as \.d does not have the declared type"):
            comp(cohort, 1)
        comp = ko.federated_computation(lambda d: d, type_)
        with pytest.raises(TypeNotAssignableError, match="The cohort does not have the declared type"):
            comp(cohort)


def test_a_sequence_of_other_elements_is_refused() -> None:
    """A `Sequence` given to a computation inside another must have the declared elements."""
    count = ko.jax_computation(lambda s: s.length, SequenceType(np.float32))
    with pytest.raises(TypeNotAssignableError, match="A sequence has other elements"):
        ko.jax_computation(lambda s: count(s), SequenceType(np.int32))
    outer = ko.jax_computation(lambda s: count(s.map(lambda x: x + 0.5)), SequenceType(np.int32))
    assert int(outer([1, 2, 3])) == 3


def test_structs_without_fields_are_arguments(backend: str) -> None:
    """An empty struct is given as an empty tuple or dict."""
    comp = ko.jax_computation(lambda s, x: x, StructType([]), np.int32)
    assert int(comp((), 1)) == 1
    assert int(comp({}, 1)) == 1
    with pytest.raises(ArgumentError):
        comp((1,), 1)
