"""From types to the shapes and dtypes that JAX traces with."""

from __future__ import annotations

from typing import Any

import jax

from koinon._errors import KoinonTypeError
from koinon.types import StructType, TensorType, Type, to_container


def specs_of(type_: Type) -> Any:
    """The `jax.ShapeDtypeStruct`s of a structure of tensors, in its containers.

    Raises:
      KoinonTypeError: a tensor has an unknown shape, or something in it is no tensor.
    """
    if isinstance(type_, StructType):
        return to_container(type_, [specs_of(child) for child in type_])
    if not isinstance(type_, TensorType) or not type_.is_fully_defined:
        raise KoinonTypeError("This must be a tensor of a known shape.", found=type_)
    return jax.ShapeDtypeStruct(type_.shape, type_.dtype)
