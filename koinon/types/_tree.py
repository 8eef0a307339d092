"""Values made for a type, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from koinon._errors import KoinonTypeError
from koinon.types._base import Type
from koinon.types._containers import to_container
from koinon.types._convert import to_type
from koinon.types._kinds import TENSOR
from koinon.types._struct import StructType
from koinon.types._types import TensorType


def structure_from_tensor_type_tree(fn: Callable[[TensorType], Any], type_spec: Any) -> Any:
    """The value of a type that has what a function makes of each tensor type, such as zeros for the state of a server.

    Args:
      fn: takes a `TensorType`, and returns what stands in its place.
      type_spec: a type, or what `to_type` reads as one; of tensors and structures alone.

    Raises:
      KoinonTypeError: if the type has other parts than tensors and structures.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> value_type = ko.to_type({"w": (jnp.float32, (2,)), "n": jnp.int32})
      >>> zeros = ko.types.structure_from_tensor_type_tree(lambda t: jnp.zeros(t.shape, t.dtype), value_type)
      >>> {name: leaf.tolist() for name, leaf in zeros.items()}
      {'n': 0, 'w': [0.0, 0.0]}
    """
    return _build(fn, to_type(type_spec), ())


def _build(fn: Callable[[TensorType], Any], type_: Type, path: tuple[object, ...]) -> Any:
    if isinstance(type_, StructType):
        fields = enumerate(type_.items())
        return to_container(type_, [_build(fn, field, (*path, name or i)) for i, (name, field) in fields])
    if type_.kind is not TENSOR:
        raise KoinonTypeError(
            "Only tensors and structures of them are walked through.",
            expected="a type of tensors",
            found=type_,
            differs=".".join(map(str, path)) or None,
            hint="for a placed value, pass its member",
        )
    assert isinstance(type_, TensorType)
    return fn(type_)
