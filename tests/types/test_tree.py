"""Values made for a type, tensor by tensor."""

from __future__ import annotations

import collections

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.errors import KoinonTypeError
from koinon.types import TensorType, structure_from_tensor_type_tree


def test_a_structure_has_the_containers_of_the_type() -> None:
    """Dicts, named tuples and tuples come back as they are in the type, with a value for each tensor."""
    Pair = collections.namedtuple("Pair", "left right")
    type_ = ko.types.infer_type({"pair": Pair(np.zeros(3, np.float32), (np.int32(1),)), "empty": ()})
    shapes = structure_from_tensor_type_tree(lambda tensor: (tensor.dtype.name, tensor.shape), type_)
    assert shapes == {"pair": Pair(("float32", (3,)), (("int32", ()),)), "empty": ()}


def test_zeros_of_a_type_are_of_the_type() -> None:
    """What a server begins with where it keeps a value of the clients' type."""
    type_ = ko.to_type({"w": (jnp.float32, (2, 3)), "n": jnp.int32})
    zeros = structure_from_tensor_type_tree(lambda tensor: jnp.zeros(tensor.shape, tensor.dtype), type_)
    assert ko.types.infer_type(zeros) == type_


def test_a_single_tensor_is_its_own_structure() -> None:
    """Also in the notation that `to_type` reads."""
    assert structure_from_tensor_type_tree(lambda tensor: tensor, (np.int32, (2,))) == TensorType(np.int32, (2,))


def test_other_parts_are_refused_with_their_place() -> None:
    """A sequence has no one tensor."""
    with pytest.raises(KoinonTypeError, match="Only tensors and structures") as error:
        structure_from_tensor_type_tree(lambda tensor: tensor, {"a": {"b": ko.types.SequenceType(np.int32)}})
    assert "a.b" in str(error.value)
