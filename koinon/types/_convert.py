"""What a JAX user has in hand, read as a type: dtypes, shapes, arrays, and containers of those; and values."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError, UnsupportedTypeError
from koinon.types._base import MAX_DEPTH, Type, register_converter
from koinon.types._containers import Parts, take_apart
from koinon.types._dtypes import is_dtype_like
from koinon.types._struct import StructType
from koinon.types._types import TensorType

_ARRAYS = (jax.ShapeDtypeStruct, jax.Array, np.ndarray, np.generic)


def to_type(spec: Any) -> Type:
    """Returns the type that `spec` describes.

    Args:
      spec: one of

        * a type, which is returned as it is;
        * a dtype or scalar class of NumPy or JAX: a scalar tensor;
        * a plain tuple `(dtype, shape)`, the shape a list or tuple of integers and None, or None: a tensor;
        * an array or a `jax.ShapeDtypeStruct`: a tensor of its dtype and shape;
        * a list or tuple with a `(name, spec)` pair in it, or such a pair: a structure without container;
        * a dictionary, list, tuple, named tuple, dataclass, attrs object or other JAX pytree node of specs: a
          structure that remembers its container. The fields of a `dict` are in the order of its keys, as JAX has them;
          an `OrderedDict` keeps its own order.

    Raises:
      KoinonTypeError: if `spec` is none of these, such as `int`, `"int32"` or None.

    >>> import jax.numpy as jnp
    >>> str(to_type({"w": (jnp.float32, (3, None)), "b": jnp.int32}))
    '<b=int32,w=float32[3,?]>'
    """
    return _convert(spec, _read_spec, 0)


def _read_spec(spec: Any) -> Type | Parts:
    if isinstance(spec, Type):
        return spec
    if is_dtype_like(spec):
        return TensorType(spec)
    if isinstance(spec, _ARRAYS):
        return _array_type(spec)
    if type(spec) is tuple and len(spec) == 2 and is_dtype_like(spec[0]) and _is_shape(spec[1]):
        return TensorType(*spec)
    if _is_pair(spec):
        return Parts([spec[0]], [spec[1]], None)
    if type(spec) in (list, tuple) and any(_is_pair(element) for element in spec):
        pairs = [element if _is_pair(element) else (None, element) for element in spec]
        return Parts([name for name, _ in pairs], [child for _, child in pairs], None)
    parts = take_apart(spec)
    if parts is None:
        raise KoinonTypeError(
            f"Unable to interpret an argument of type {type(spec).__name__} as a type spec.",
            expected="a type, a dtype, (dtype, shape), an array, a jax.ShapeDtypeStruct, or a container of those",
            found=reprlib.repr(spec),
            hint="write a shape as a tuple, as in (np.float32, (3,))"
            if type(spec) is int
            else "write a dtype such as np.int32, or parse the notation with `koinon.types.parse`",
        )
    return parts


def infer_type(value: Any) -> Type:
    """Returns the type of a Python value.

    Python's numbers have the types that JAX gives them: `bool`, `int32` (`int64` if it does not fit), `float32` and
    `complex64`; the last deviates from TFF, which says `complex128`. Arrays have the dtype that they say they have.

    Args:
      value: a number, an array, an object with a `type_signature`, or a container of those.

    Raises:
      UnsupportedTypeError: if there is no type for such a value.
      KoinonValueError: if an integer does not fit into 64 bits.

    >>> str(infer_type({"a": 1, "b": [2.0, True]}))
    '<a=int32,b=<float32,bool>>'
    """
    return _convert(value, _read_value, 0)


def _read_value(value: Any) -> Type | Parts:
    signature = None if isinstance(value, (type, Type)) else getattr(value, "type_signature", None)
    if isinstance(signature, Type):
        return signature
    if isinstance(value, _ARRAYS):
        return _array_type(value)
    if isinstance(value, bool):
        return TensorType(np.bool_)
    if isinstance(value, int):
        return _integer_type(value)
    if isinstance(value, float):
        return TensorType(np.float32)
    if isinstance(value, complex):
        return TensorType(np.complex64)
    parts = None if isinstance(value, Type) else take_apart(value)
    if parts is None:
        raise UnsupportedTypeError(
            "There is no type for such a value.",
            expected="a number, an array, or a container of those",
            found=f"a value of {type(value)}",
        )
    return parts


def _integer_type(value: int) -> TensorType:
    for dtype in (np.int32, np.int64):
        if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            return TensorType(dtype)
    raise KoinonValueError(
        "An integer does not fit into 64 bits.", expected="-2**63 to 2**63 - 1", found=f"{value.bit_length()} bits"
    )


def _array_type(array: Any) -> TensorType:
    # A symbolic dimension of `jax.export` is not known.
    return TensorType(array.dtype, [size if isinstance(size, int) else None for size in array.shape])


def _is_shape(spec: object) -> bool:
    if spec is None:
        return True
    if type(spec) is not tuple and type(spec) is not list:
        return False
    sizes: Any = spec
    return all(size is None or (isinstance(size, (int, np.integer)) and not isinstance(size, bool)) for size in sizes)


def _is_pair(spec: object) -> bool:
    return type(spec) is tuple and len(spec) == 2 and isinstance(spec[0], str)


def _convert(tree: Any, read: Callable[[Any], Type | Parts], depth: int) -> Type:
    # A list may contain itself, so that the depth is checked on the way down.
    if depth >= MAX_DEPTH:
        raise KoinonValueError(f"A type may be nested at most {MAX_DEPTH} levels deep.")
    parts = read(tree)
    if isinstance(parts, Type):
        return parts
    types: list[Type] = []
    for child in parts.children:
        types.append(_convert(child, read, depth + 1))  # noqa: PERF401 (a comprehension doubles the stack's depth)
    return StructType(types if parts.names is None else zip(parts.names, types, strict=True), parts.container)


register_converter(to_type)
