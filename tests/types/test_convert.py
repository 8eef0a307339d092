"""What is read as a type, and the types of values."""

from __future__ import annotations

import collections
import dataclasses
import types as python_types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon import _errors as errors
from koinon.types import CLIENTS, StructType, TensorType, infer_type, parse, to_type
from tests import strategies


class Pair(NamedTuple):
    """A named tuple of two fields."""

    first: Any
    second: Any


@dataclasses.dataclass
class Record:
    """A dataclass that JAX does not know."""

    x: Any
    y: Any


class Signed:
    """An object that knows its type."""

    type_signature = parse("(int32 -> float32)")


OrderedDict = collections.OrderedDict

# (spec, notation, container)
SPECS = [
    (np.int32, "int32", None),
    (np.bool_, "bool", None),
    (jnp.float32, "float32", None),
    (jnp.bfloat16, "bfloat16", None),
    (np.dtype("float64"), "float64", None),
    (jnp.dtype("uint8"), "uint8", None),
    ((np.float32, (3, None)), "float32[3,?]", None),
    ((np.float32, [3]), "float32[3]", None),
    ((np.float32, ()), "float32", None),
    ((np.float32, []), "float32", None),
    ((np.float32, None), "'float32'(shape=None)", None),
    ((np.float32, (np.int64(3),)), "float32[3]", None),
    ((np.dtype("int8"), (2,)), "int8[2]", None),
    (jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), "bfloat16[2,3]", None),
    (np.zeros((2, 0), np.float64), "float64[2,0]", None),
    (np.float64(1.5), "float64", None),
    (jnp.zeros(4), "float32[4]", None),
    (jax.random.key(0), "key<fry>", None),
    (jax.random.split(jax.random.key(0, impl="rbg"), 3), "key<rbg>[3]", None),
    (parse("{int32*}@CLIENTS"), "{int32*}@CLIENTS", None),
    ([("a", np.int32), ("b", np.float32)], "<a=int32,b=float32>", None),
    ((("a", np.int32), ("b", np.float32)), "<a=int32,b=float32>", None),
    (("a", np.int32), "<a=int32>", None),
    ([("a", [("b", np.int32)])], "<a=<b=int32>>", None),
    ([np.int32, np.float32], "<int32,float32>", list),
    ((np.int32, np.float32), "<int32,float32>", tuple),
    ([np.float32], "<float32>", list),
    ((np.float32,), "<float32>", tuple),
    ((), "<>", tuple),
    ([], "<>", list),
    ({}, "<>", dict),
    ({"b": np.int32, "a": np.float32}, "<a=float32,b=int32>", dict),
    (OrderedDict(b=np.int32, a=np.float32), "<b=int32,a=float32>", OrderedDict),
    (Pair(np.int32, np.float32), "<first=int32,second=float32>", Pair),
    (Record(np.int32, {"a": np.float32}), "<x=int32,y=<a=float32>>", Record),
    ([(np.float32, (2,)), {"a": (np.int32, None)}], "<float32[2],<a='int32'(shape=None)>>", list),
    (((np.float32, (2,)), np.int32), "<float32[2],int32>", tuple),
]


@pytest.mark.parametrize(("spec", "text", "container"), SPECS, ids=lambda value: str(value)[:40])
def test_specs_are_read(spec, text: str, container) -> None:
    """Each form that a JAX user has in hand gives its type, structures with their container."""
    type_ = to_type(spec)

    assert str(type_) == text
    assert getattr(type_, "container", None) is container


def test_types_are_returned_as_they_are() -> None:
    """The very object, not a copy."""
    type_ = parse("<a=int32>")

    assert to_type(type_) is type_


@pytest.mark.parametrize("shape", [(), (3,), [3], None])
def test_named_tuples_are_never_tensors(shape) -> None:
    """A pair of a dtype and something like a shape is a tensor only as a plain tuple; TFF reads any."""
    spec = Pair(np.float32, () if shape == () else [np.int32])

    type_ = to_type(spec)

    assert isinstance(type_, StructType)
    assert type_.container is Pair
    assert type_.fields() == ["first", "second"]


@pytest.mark.parametrize(
    "spec",
    [
        *(int, float, complex, bool, str, object, "int32", "", None, 3, 2.0, b"", {1, 2}, object(), Pair, Record),
        *(CLIENTS, Signed(), len, [int], {"a": None}),
        *((np.float32, 3), [np.float32, [2]], (np.float32, (True,)), (np.float32, "3")),
    ],
)
def test_other_things_are_refused(spec) -> None:
    """Python's types, texts, numbers, None, and the shapes in a list that TFF refuses as well."""
    with pytest.raises(errors.KoinonTypeError, match=r"Unable to interpret an argument of type .* as a type spec"):
        to_type(spec)


@pytest.mark.parametrize("spec", [np.str_, np.dtype("U3"), np.array("text"), np.array([None]), {"a": np.datetime64}])
def test_dtypes_that_jax_does_not_have_are_refused(spec) -> None:
    """Text, objects and dates are dtypes of NumPy only."""
    with pytest.raises(errors.UnsupportedTypeError):
        to_type(spec)


def test_names_for_some_elements_only_are_refused() -> None:
    """A list with one named element needs names for all."""
    with pytest.raises(errors.KoinonValueError, match="either all a name or none"):
        to_type([("a", np.int32), np.float32])


def test_duplicate_names_are_refused() -> None:
    """Also those of keys that are different and print alike."""
    for spec in ([("a", np.int32), ("a", np.int32)], {1: np.int32, "1": np.int32}):
        with pytest.raises(errors.KoinonValueError, match="occurs twice"):
            to_type(spec)


def test_keys_that_are_no_text_are_named_by_their_text() -> None:
    """Integers and tuples of numbers are common keys; they have to be printable without commas."""
    assert str(to_type({10: np.int32, 9: np.float32})) == "<9=float32,10=int32>"
    assert str(to_type({"b": np.int32, 1: np.float32})) == "<b=int32,1=float32>"
    with pytest.raises(errors.KoinonValueError, match="cannot be the name"):
        to_type({(1, 2): np.int32})


def test_specs_that_contain_themselves_are_refused() -> None:
    """A list inside itself, and a very deep one, exceed the declared depth."""
    loop: list[Any] = []
    loop.append(loop)
    pairs: list[Any] = []
    pairs.append(("a", pairs))
    deep: Any = np.int32
    for _ in range(100_000):
        deep = [deep]

    for spec in (loop, pairs, deep):
        with pytest.raises(errors.KoinonValueError, match="at most 200 levels"):
            to_type(spec)
    for value in (loop, deep):
        with pytest.raises(errors.KoinonValueError, match="at most 200 levels"):
            infer_type(value)
    while isinstance(deep, list):  # else Python's own deallocation of the nest is recursive
        deep = deep.pop()


def test_symbolic_dimensions_are_unknown_dimensions() -> None:
    """What `jax.export` calls by a name is `?` in a type."""
    shape = jax.export.symbolic_shape("n, 3")

    assert str(to_type(jax.ShapeDtypeStruct(shape, jnp.float32))) == "float32[?,3]"


def test_traced_arrays_have_types() -> None:
    """Inside of `jax.jit` an array has a dtype and a shape."""
    seen = []
    jax.jit(lambda x: seen.append(infer_type(x)))(jnp.zeros((2, 3)))

    assert seen == [parse("float32[2,3]")]


def test_states_of_optimizers_have_types() -> None:
    """The states of optax are named tuples in tuples."""
    state = optax.adam(0.1).init({"w": jnp.zeros(3)})

    type_ = to_type(state)

    assert str(type_) == "<<count=int32,mu=<w=float32[3]>,nu=<w=float32[3]>>,<>>"
    assert isinstance(type_, StructType)
    assert getattr(type_[0], "container", None) is optax.ScaleByAdamState
    assert infer_type(state) == type_


VALUES = [
    (True, "bool"),
    (np.bool_(True), "bool"),
    (0, "int32"),
    (2**31 - 1, "int32"),
    (-(2**31), "int32"),
    (2**31, "int64"),
    (-(2**31) - 1, "int64"),
    (2**40, "int64"),
    (2**63 - 1, "int64"),
    (-(2**63), "int64"),
    (1.0, "float32"),
    (float("nan"), "float32"),
    (1j, "complex64"),
    (np.float64(1), "float64"),
    (np.int8(1), "int8"),
    (np.zeros((2, 3)), "float64[2,3]"),
    (jnp.zeros((2, 3), jnp.bfloat16), "bfloat16[2,3]"),
    (jax.random.key(0), "key<fry>"),
    ([1, 2.0], "<int32,float32>"),
    ({"b": 1, "a": (True, [])}, "<a=<bool,<>>,b=int32>"),
    (Pair(1, Record(2.0, {})), "<first=int32,second=<x=float32,y=<>>>"),
    (Signed(), "(int32 -> float32)"),
    ([Signed(), 1], "<(int32 -> float32),int32>"),
]


@pytest.mark.parametrize(("value", "text"), VALUES, ids=lambda value: str(value)[:40])
def test_values_have_types(value, text: str) -> None:
    """Python's numbers have the types that JAX gives them, arrays the dtype that they say."""
    assert str(infer_type(value)) == text


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**20_000], ids=["2**63", "-2**63-1", "huge"])
def test_integers_beyond_64_bits_have_no_type(value: int) -> None:
    """Nothing is wrapped around or rounded."""
    with pytest.raises(errors.KoinonValueError, match="does not fit into 64 bits"):
        infer_type(value)


@pytest.mark.parametrize(
    "value", [None, "text", b"", object(), {1}, int, np.float32, parse("int32"), [None], {"a": "b"}, Signed, range(3)]
)
def test_other_values_have_no_type(value) -> None:
    """Texts, None, sets, classes and types themselves."""
    with pytest.raises(errors.UnsupportedTypeError, match="no type for such a value"):
        infer_type(value)


def test_lists_of_pairs_are_no_names_in_values() -> None:
    """A value is what it is: a text in it is an error, not a name."""
    with pytest.raises(errors.UnsupportedTypeError):
        infer_type([("a", 1)])


def test_read_only_mappings_are_mappings() -> None:
    """A mapping that JAX does not know is remembered by its class."""
    type_ = to_type(python_types.MappingProxyType({"b": np.int32, "a": np.int32}))

    assert isinstance(type_, StructType)
    assert (type_.fields(), type_.container) == (["b", "a"], python_types.MappingProxyType)


specs = st.recursive(
    strategies.tensor_types(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(strategies.field_names(), inner, max_size=3)
        | st.builds(Pair, inner, inner)
        | st.builds(Record, inner, inner)
    ),
    max_leaves=8,
)


@given(specs)
def test_types_of_containers_have_the_containers_shape(spec) -> None:
    """Reading a spec is a homomorphism: its parts are the types of the parts, in order."""

    def expected(spec) -> str:
        if isinstance(spec, TensorType):
            return str(spec)
        if isinstance(spec, Record):
            spec = {"x": spec.x, "y": spec.y}
        if isinstance(spec, Pair):
            spec = spec._asdict()
        if isinstance(spec, dict):
            return f"<{','.join(f'{name}={expected(child)}' for name, child in sorted(spec.items()))}>"
        return f"<{','.join(expected(child) for child in spec)}>"

    assert str(to_type(spec)) == expected(spec)


def test_steps_of_optimizers_keep_the_type_of_their_state() -> None:
    """JAX sorts dictionaries, so that types do as well; an OrderedDict keeps its order in both."""
    for weights in ({"b": jnp.zeros(3), "a": jnp.zeros(2)}, OrderedDict(b=jnp.zeros(3), a=jnp.zeros(2))):
        state = optax.adam(0.1).init(weights)
        stepped = jax.tree.map(lambda x: x + 1, state)
        assert infer_type(stepped) == infer_type(state)
        assert infer_type(jax.tree.map(lambda x: x, weights)) == infer_type(weights)
