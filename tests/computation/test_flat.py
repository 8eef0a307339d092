"""Tests of values as flat lists of arrays, and of the containers at the boundary."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon import to_type
from koinon.computation._flat import fields_at, flatten, from_user, leaf_types, to_user, unflatten
from koinon.computation._sequence import Sequence
from koinon.computation._views import PackedView
from koinon.errors import ArgumentError
from koinon.types import FunctionType, SequenceType, StructType, TensorType, at_clients
from tests import strategies

TREE = to_type({"b": [np.int32, (np.float32, (2,))], "a": ()})


def count(type_: Any) -> int:
    """The number of tensors in a tree of tensors."""
    return sum(map(count, type_.children())) if isinstance(type_, StructType) else 1


@given(strategies.tensor_trees())
def test_flattening_a_tree_of_tensors_is_undone_by_unflattening(type_: Any) -> None:
    """One leaf for each tensor, in the order of the type."""
    numbers = list(range(count(type_)))
    assert len(leaf_types(type_)) == len(numbers)
    assert flatten(type_, unflatten(type_, numbers)) == numbers


@given(strategies.tensor_trees(), st.sampled_from([None, tuple, list]))
def test_a_value_goes_to_the_user_and_back(type_: Any, container: Any) -> None:
    """Containers appear at the boundary alone."""
    if isinstance(type_, StructType) and not type_.fields():
        type_ = StructType(list(type_.children()), container)
    value = unflatten(type_, list(range(count(type_))))
    assert from_user(type_, to_user(type_, value), lambda _, leaf, __: leaf) == value


def test_a_user_sees_the_containers_of_the_type() -> None:
    """Dictionaries and lists as they were written."""
    assert to_user(TREE, ((), (1, 2))) == {"a": (), "b": [1, 2]}


def test_leaves_too_many_or_too_few_are_a_bug() -> None:
    """The count is checked."""
    with pytest.raises(ValueError, match="more leaves"):
        unflatten(TREE, [1, 2, 3])
    with pytest.raises((ValueError, StopIteration)):
        unflatten(TREE, [1])
    with pytest.raises(ValueError, match="zip"):
        flatten(TREE, ((), (1,)))


def test_a_placed_value_has_the_leaves_of_its_member_and_a_function_has_none() -> None:
    """What has no arrays has no flat form."""
    assert leaf_types(at_clients(TREE)) == leaf_types(TREE)
    function = FunctionType(np.int32, np.int32)
    for fails in (lambda: leaf_types(function), lambda: unflatten(function, [])):
        with pytest.raises(TypeError, match="has no leaves"):
            fails()


def test_a_sequence_is_its_buffers_its_offset_and_its_length() -> None:
    """A derived sequence is computed where its leaves are wanted."""
    type_ = SequenceType({"x": (np.float32, (2,)), "y": np.int32})
    view = PackedView(type_.element, (jnp.ones((4, 2)), jnp.arange(4)), jnp.int32(1), jnp.int32(2))
    leaves = flatten(type_, Sequence(view))
    assert [leaf.shape for leaf in leaves] == [(4, 2), (4,), (), ()]
    again = unflatten(type_, leaves)
    assert isinstance(again, Sequence)
    assert (int(again.packed().offset), int(again.length)) == (1, 2)
    tripled = flatten(type_, Sequence(view).map(lambda e: {"x": e["x"], "y": e["y"] * 3}))
    assert np.asarray(tripled[1])[:2].tolist() == [3, 6]


def test_sequences_pass_the_transformations_of_jax() -> None:
    """A sequence is a pytree, so that jit takes and gives it."""
    view = PackedView(TensorType(np.float32), (jnp.arange(4.0),), jnp.int32(1), jnp.int32(2))
    doubled = jax.jit(lambda s: s.map(lambda x: 2 * x))(Sequence(view))
    assert np.asarray(doubled.packed().buffers[0])[:2].tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("value", "path"),
    [({"a": (), "c": [1, 2]}, ".p"), ({"a": (), "b": [1]}, ".p.b"), ({"a": 3, "b": [1, 2]}, ".p.a"), (5, ".p")],
)
def test_an_error_of_a_container_has_the_path_of_the_whole(value: Any, path: str) -> None:
    """A missing name deep inside is found from the outermost parameter on."""
    with pytest.raises(ArgumentError) as caught:
        from_user(TREE, value, lambda _, leaf, __: leaf, ".p")
    assert caught.value.differs == path


def test_each_leaf_is_converted_with_its_type_and_its_path() -> None:
    """The converter of leaves learns where it is."""
    seen: list[tuple[str, str]] = []
    from_user(TREE, {"a": (), "b": [1, 2]}, lambda type_, _, path: seen.append((str(type_), path)), ".x")
    assert seen == [("int32", ".x.b[0]"), ("float32[2]", ".x.b[1]")]
    assert [(path, str(type_), value) for path, type_, value in fields_at(TREE, {"a": 1, "b": 2}, "")] == [
        (".a", "<>", 1),
        (".b", "<int32,float32[2]>", 2),
    ]
