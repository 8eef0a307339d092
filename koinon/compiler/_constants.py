"""Constants as bytes: little-endian numbers in row-major order; of typed PRNG keys, their data."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon.compiler._stablehlo import physical
from koinon.compiler._wire import refuse
from koinon.types import TensorType

_KEY_IMPLEMENTATIONS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}


def constant_bytes(value: Any) -> bytes:
    """The bytes of a constant."""
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        value = jax.random.key_data(value)
    array = np.ascontiguousarray(value)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def read_constant(type_: TensorType, data: memoryview, at: str) -> Any:
    """The constant of a type that some bytes hold.

    Raises:
      SerializationError: where there are more or fewer bytes than such a constant has, or other bits than it can have.
    """
    is_key = jnp.issubdtype(type_.dtype, jax.dtypes.extended)
    element = physical(jax.ShapeDtypeStruct((), type_.dtype))
    shape, dtype = (*[dim or 0 for dim in type_.shape or ()], *element.shape), np.dtype(element.dtype)
    # The size is computed before anything of that size is made.
    size = math.prod(shape) * dtype.itemsize
    if size != len(data):
        refuse(
            "A constant has another size than its type.", at=at, expected=f"{size} bytes", found=f"{len(data)} bytes"
        )
    array = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    if _is_narrow(dtype) and array.astype(np.float32).astype(dtype).tobytes() != data:
        refuse("A constant has bits that its type does not have.", at=at, found=type_)
    if is_key:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=_KEY_IMPLEMENTATIONS[str(type_.dtype)])
    return array


def _is_narrow(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype has fewer than eight bits, each number in a byte of its own."""
    return dtype == np.bool_ or dtype.name in ("int2", "int4", "uint2", "uint4", "int1", "uint1", "float4_e2m1fn")
