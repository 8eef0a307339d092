"""Taking Python containers apart, and putting them together again."""

from __future__ import annotations

import collections
import copy
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
from koinon.types import (
    MappingContainer,
    PyTreeContainer,
    StructType,
    from_container,
    infer_type,
    parse,
    to_container,
    to_type,
)
from tests import strategies


class Point(NamedTuple):
    """A named tuple."""

    x: Any
    y: Any


@dataclasses.dataclass
class Record:
    """A dataclass that JAX does not know, with a field that its constructor does not take."""

    x: Any
    y: Any = 0
    total: Any = dataclasses.field(init=False, default=None, compare=False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A dataclass that JAX knows, with static data."""

    kernel: Any
    bias: Any = None
    activation: str = dataclasses.field(default="relu", metadata={"static": True})


@jax.tree_util.register_pytree_node_class
class Node:
    """A node without names."""

    def __init__(self, *children: Any, tag: Any = None) -> None:
        self.children = children
        self.tag = tag

    def tree_flatten(self):
        return self.children, self.tag

    @classmethod
    def tree_unflatten(cls, tag, children):
        return cls(*children, tag=tag)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.children == other.children and self.tag == other.tag

    def __hash__(self) -> int:
        return hash((self.children, self.tag))

    def __repr__(self) -> str:
        return f"Node{self.children}"


class AttrsLike:
    """A class as attrs makes them: a private attribute has a public argument."""

    __attrs_attrs__ = (
        python_types.SimpleNamespace(name="_x", alias="x", init=True),
        python_types.SimpleNamespace(name="y", alias="y", init=True),
        python_types.SimpleNamespace(name="cache", alias="cache", init=False),
    )

    def __init__(self, x: Any, y: Any) -> None:
        self._x, self.y, self.cache = x, y, object()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AttrsLike) and (self._x, self.y) == (other._x, other.y)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return f"AttrsLike({self._x}, {self.y})"


class Words(list):
    """A list of one's own."""


VALUES = [
    (),
    [],
    {},
    (1,),
    [1, 2.0],
    {"b": 1, "a": 2.0},
    {3: 1, "a": 2.0, 1.5: True},
    collections.OrderedDict(b=1, a=2.0),
    collections.defaultdict(int, {"b": 1, "a": 2.0}),
    collections.UserDict({"b": 1, "a": 2.0}),
    Point(1, 2.0),
    Record(1, 2.0),
    AttrsLike(1, 2.0),
    Words([1, 2.0]),
    Layer(1, 2.0),
    Layer(1),
    Layer(1, activation="tanh"),
    Node(1, 2.0),
    Node(1, None, tag="static"),
    Node(),
    optax.EmptyState(),
]


def struct(text: str) -> StructType:
    """The structure that a text denotes."""
    type_ = parse(text)
    assert isinstance(type_, StructType)
    return type_


def struct_of(spec: Any) -> StructType:
    """The structure that a container describes."""
    type_ = to_type(spec)
    assert isinstance(type_, StructType)
    return type_


def as_value(type_: StructType, value: Any) -> Any:
    """Takes a container apart and puts it together again."""
    return to_container(type_, from_container(type_, value))


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_containers_come_back_as_they_were(value) -> None:
    """Taken apart and put together, a container is equal to itself, and of the same class."""
    type_ = infer_type(value)

    assert isinstance(type_, StructType)
    result = as_value(type_, value)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_types_of_equal_containers_are_equal(value) -> None:
    """The container that a type remembers is a value itself."""
    one, other = infer_type(value), infer_type(copy.copy(value))

    assert one == other
    assert hash(one) == hash(other)


def test_structures_without_container_become_ordered_dictionaries_and_tuples() -> None:
    """What has names is a dictionary, what has none a tuple; an empty structure is a tuple."""
    named = to_container(StructType([("b", np.int32), ("a", np.int32)]), [1, 2])
    unnamed = to_container(StructType([np.int32, np.int32]), [1, 2])

    assert type(named) is collections.OrderedDict
    assert list(named.items()) == [("b", 1), ("a", 2)]
    assert unnamed == (1, 2)
    assert type(unnamed) is tuple
    assert to_container(StructType([]), []) == ()


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": 2},
        {"b": 2, "a": 1},
        collections.OrderedDict(b=2, a=1),
        collections.UserDict({"b": 2, "a": 1}),
        collections.namedtuple("Reversed", ["b", "a"])(2, 1),
        dataclasses.make_dataclass("Made", ["b", "a"])(2, 1),
        [1, 2],
        (1, 2),
        Node(1, 2),
    ],
    ids=repr,
)
def test_values_match_names_where_they_have_some(value) -> None:
    """Mappings, named tuples and dataclasses match by name in any order, the rest by position."""
    assert from_container(struct("<a=int32,b=int32>"), value) == [1, 2]


@pytest.mark.parametrize("value", [[1, 2], (1, 2), Point(1, 2), Node(1, 2), Record(1, 2), Words([1, 2])], ids=repr)
def test_types_without_names_match_by_position(value) -> None:
    """Whatever has an order serves."""
    assert from_container(struct("<int32,int32>"), value) == [1, 2]


@pytest.mark.parametrize(
    ("text", "value", "message"),
    [
        ("<a=int32,b=int32>", {"a": 1}, "missing 'b'"),
        ("<a=int32>", {"a": 1, "b": 2, "c": 3}, "unexpected 'b', 'c'"),
        ("<a=int32,b=int32>", {"a": 1, "c": 2}, "missing 'b'; unexpected 'c'"),
        ("<a=int32,b=int32>", Point(1, 2), "missing 'a', 'b'; unexpected 'x', 'y'"),
        ("<a=int32,b=int32>", Record(1, 2), "missing 'a', 'b'; unexpected 'x', 'y'"),
        ("<a=int32>", {"a": 1, 3: 2}, "unexpected '3'"),
        ("<int32>", {"a": 1}, "unexpected 'a'"),
        ("<int32,int32>", [1], "1 values in a list"),
        ("<a=int32>", (1, 2), "2 values in a tuple"),
        ("<a=int32>", 3, "a value of <class 'int'>"),
        ("<a=int32>", None, "a value of <class 'NoneType'>"),
        ("<a=int32>", "a", "a value of <class 'str'>"),
        ("<a=int32>", np.zeros(1), "a value of <class 'numpy.ndarray'>"),
        ("<>", {"a": 1}, "unexpected 'a'"),
    ],
)
def test_values_that_do_not_fit_are_refused(text: str, value, message: str) -> None:
    """The message names the fields that are missing or too many."""
    with pytest.raises(errors.ArgumentError) as info:
        from_container(struct(text), value)

    assert message in str(info.value)
    assert text in str(info.value)
    assert isinstance(info.value, TypeError)


def test_an_empty_mapping_is_an_empty_structure() -> None:
    """There are no names to disagree about."""
    assert from_container(struct("<>"), {}) == []


def test_keys_with_the_same_text_are_refused() -> None:
    """A mapping that has 1 and "1" cannot match by name."""
    with pytest.raises(errors.ArgumentError, match="same text"):
        from_container(struct("<1=int32>"), {1: 0, "1": 0})


def test_names_of_keys_that_are_no_text_are_matched() -> None:
    """The dictionary comes back with its own keys, sorted as by JAX; an OrderedDict with its own order."""
    for container, keys in ((dict, [1, 3]), (collections.OrderedDict, [3, 1])):
        type_ = struct_of(container({3: np.int32, 1: np.int32}))
        result = as_value(type_, {1: "one", 3: "three"})
        assert result == {3: "three", 1: "one"}
        assert (type(result), list(result)) == (container, keys)


def test_nodes_of_other_static_data_are_refused() -> None:
    """What is no field of a node is part of its type."""
    type_ = struct_of(Layer(np.int32, np.int32, activation="relu"))

    for value in (Layer(1, 2, activation="tanh"), Layer(1), Node(1, 2)):
        with pytest.raises(errors.ArgumentError, match="differs from its type"):
            from_container(type_, value)
    assert as_value(type_, {"bias": 2, "kernel": 1}) == Layer(1, 2)


def test_none_inside_a_node_belongs_to_the_node() -> None:
    """As for JAX, None is no value: the type has no field for it, and the rebuilt node has it again."""
    type_ = struct_of(Layer(np.float32, None))

    assert str(type_) == "<kernel=float32>"
    assert to_container(type_, [1.0]) == Layer(1.0, None)


def test_containers_know_the_class_of_the_node() -> None:
    """The class is an attribute, and the name by which a type prints it."""
    layer, keyed = infer_type(Layer(1)), infer_type({3: 1})

    assert isinstance(layer, StructType)
    assert isinstance(layer.container, PyTreeContainer)
    assert layer.container.node_type is Layer
    assert repr(layer) == "StructType([('kernel', TensorType(np.int32))]) as Layer"
    assert repr(layer.container) == "PyTreeContainer(Layer)"
    assert isinstance(keyed, StructType)
    assert isinstance(keyed.container, MappingContainer)
    assert (keyed.container.node_type, keyed.container.keys) == (dict, (3,))
    assert repr(keyed) == "StructType([('3', TensorType(np.int32))]) as dict"
    assert repr(keyed.container) == "MappingContainer(dict, (3,))"


def test_containers_of_other_nodes_are_different() -> None:
    """Class, static data and keys all count."""
    values = [Layer(1), Layer(1, 2), Layer(1, activation="tanh"), Node(1), Node(1, tag=3), {3: 1}, {4: 1}, {"3": 1}]
    containers = [infer_type(value).container for value in values]  # pyright: ignore[reportAttributeAccessIssue]

    assert len(set(containers)) == len(containers)
    assert all((one == other) == (one is other) for one in containers for other in containers)


def test_static_data_need_not_be_hashable_or_comparable() -> None:
    """A node with a list as static data has a type; with an array, a type that equals itself only."""
    listed = infer_type(Node(1, tag=[1, 2]))
    arrays = [infer_type(Node(1, tag=np.arange(3))) for _ in range(2)]

    assert listed == infer_type(Node(1, tag=[1, 2]))
    assert hash(listed) == hash(infer_type(Node(1, tag=[1, 2])))
    assert arrays[0] == arrays[0]
    assert arrays[0] != arrays[1]


def test_a_wrong_number_of_values_is_refused() -> None:
    """A structure is built of one value for each field."""
    with pytest.raises(errors.KoinonTypeError, match="one value for each field"):
        to_container(struct("<int32,int32>"), [1])


def test_containers_that_do_not_take_the_fields_are_refused() -> None:
    """The error names the class and keeps the error of its constructor."""
    type_ = StructType([("z", np.int32)], Point)

    with pytest.raises(errors.KoinonTypeError, match="A Point cannot be built from these fields") as info:
        to_container(type_, [1])

    assert isinstance(info.value.__cause__, TypeError)


def test_models_of_flax_and_equinox_come_back() -> None:
    """Frozen dictionaries, states and modules are nodes that only JAX can rebuild."""
    flax = pytest.importorskip("flax")
    equinox = pytest.importorskip("equinox")
    frozen = flax.core.FrozenDict({"b": {"w": jnp.zeros(3)}, "a": jnp.zeros(2)})
    linear = equinox.nn.Linear(2, 3, use_bias=False, key=jax.random.key(0))
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))

    for value, text in (
        (frozen, "<a=float32[2],b=<w=float32[3]>>"),
        (linear, "<weight=float32[3,2]>"),
        (state, "<bias=<value=float32[3]>,kernel=<value=float32[2,3]>>"),
    ):
        type_ = infer_type(value)
        assert isinstance(type_, StructType)
        assert str(type_) == text
        result = as_value(type_, value)
        assert jax.tree_util.tree_structure(result) == jax.tree_util.tree_structure(value)
        assert jax.tree_util.tree_all(jax.tree_util.tree_map(lambda a, b: (a == b).all(), result, value))


def rebuild(type_, value):
    """Takes a whole tree apart and puts it together again."""
    if not isinstance(type_, StructType):
        return value
    children = from_container(type_, value)
    return to_container(type_, [rebuild(t, child) for t, child in zip(type_, children, strict=True)])


trees = st.recursive(
    st.integers(-5, 5) | st.booleans() | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(strategies.field_names(), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3)
        | st.builds(Point, inner, inner)
        | st.builds(Record, inner, inner)
        | st.builds(Layer, inner, st.none() | inner)
        | st.builds(Node, inner, inner)
    ),
    max_leaves=8,
)


@given(trees)
def test_trees_come_back_as_they_were(tree) -> None:
    """The law of single containers holds for trees of them."""
    assert rebuild(infer_type(tree), tree) == tree


@given(trees)
def test_inferred_types_are_read_back_up_to_containers(tree) -> None:
    """The notation of an inferred type denotes an equivalent type."""
    type_ = infer_type(tree)

    assert parse(str(type_)).is_equivalent_to(type_)
