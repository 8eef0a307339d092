"""The element types of tensors: every dtype of JAX, and typed PRNG keys.

A dtype is represented by ONE object per name, so that the rest of the package compares dtypes by identity.
"""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import UnsupportedTypeError

# np.dtype, or the dtype of a typed PRNG key array, for which JAX has no public class.
DType: TypeAlias = Any

_NUMPY_NAMES = tuple(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split()
)
# Which of the narrow types exist depends on the version of JAX.
_JAX_NAMES = tuple(
    (
        "bfloat16 float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 "
        "float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn int1 int2 int4 uint1 uint2 uint4"
    ).split()
)
_DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in _NUMPY_NAMES} | {
    name: np.dtype(getattr(jnp, name)) for name in _JAX_NAMES if hasattr(jnp, name)
}
_KEY_IMPLEMENTATIONS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}

_FLOATING = frozenset(name for name, dtype in _DTYPES.items() if jnp.issubdtype(dtype, np.floating))
_INTEGER = frozenset(name for name, dtype in _DTYPES.items() if jnp.issubdtype(dtype, np.integer))
_COMPLEX = frozenset(name for name, dtype in _DTYPES.items() if jnp.issubdtype(dtype, np.complexfloating))

DTYPE_NAMES = tuple(sorted([*_DTYPES, *_KEY_IMPLEMENTATIONS]))


@functools.cache
def _key_dtype(name: str) -> DType:
    # Traced, not run: a key's dtype must not start a JAX backend.
    return jax.eval_shape(lambda: jax.random.key(0, impl=_KEY_IMPLEMENTATIONS[name])).dtype


def dtype_from_name(name: str) -> DType | None:
    """Returns the dtype that prints as `name`, None if there is none."""
    if name in _KEY_IMPLEMENTATIONS:
        return _key_dtype(name)
    return _DTYPES.get(name)


def dtype_name(dtype: DType) -> str:
    """Returns the name of a dtype in the compact notation."""
    return str(dtype)


def dtype_repr(dtype: DType) -> str:
    """Returns a Python expression for a dtype."""
    name = str(dtype)
    if name == "bool":
        return "np.bool_"
    if name in _KEY_IMPLEMENTATIONS:
        return repr(name)
    return f"np.{name}" if name in _NUMPY_NAMES else f"jnp.{name}"


def is_dtype_like(spec: object) -> bool:
    """Whether `spec` is a dtype, or a scalar class of NumPy or JAX."""
    if isinstance(spec, np.dtype):
        return True
    if isinstance(spec, type):
        return issubclass(spec, np.generic) or isinstance(getattr(spec, "dtype", None), np.dtype)
    return is_key_dtype(spec)


def is_key_dtype(dtype: object) -> bool:
    """Whether `dtype` is the dtype of a typed PRNG key array."""
    return not isinstance(dtype, np.dtype) and isinstance(dtype, type(_key_dtype("key<fry>")))


def as_dtype(spec: object) -> DType:
    """Returns the dtype that `spec` denotes.

    Args:
      spec: a dtype, a scalar class of NumPy or JAX, Python's `bool`, or the name of a dtype.

    Raises:
      UnsupportedTypeError: if koinon has no such dtype: text, bytes, objects, dates, records; and Python's `int`,
        `float` and `complex`, which do not tell a width.
    """
    dtype: DType | None = None
    if isinstance(spec, str):
        dtype = dtype_from_name(spec)
    elif spec is bool:
        dtype = _DTYPES["bool"]
    elif spec is int or spec is float or spec is complex:  # not `in`: NumPy's int64 equals Python's int
        raise UnsupportedTypeError(
            "A number type of Python does not tell how wide it is.",
            expected="a dtype such as np.int32 or np.float32",
            found=repr(spec),
            hint="name the dtype, for example `np.float32`",
        )
    elif is_key_dtype(spec):
        dtype = dtype_from_name(str(spec))
        dtype = dtype if dtype == spec else None
    elif is_dtype_like(spec):
        try:
            dtype = _DTYPES.get(np.dtype(spec).name)  # pyright: ignore[reportArgumentType, reportCallIssue]
        except TypeError:  # an abstract class such as np.floating
            dtype = None
    if dtype is None:
        raise UnsupportedTypeError(
            "There is no tensor type with this dtype.",
            expected="a dtype of JAX: bool, an integer, floating-point or complex dtype, or a typed PRNG key",
            found=repr(spec),
            hint=_hint(spec),
        )
    return dtype


def _hint(spec: object) -> str:
    if isinstance(spec, (list, tuple)):
        return "the dtype comes before the shape: TensorType(jnp.float32, (3,))"
    if isinstance(spec, str):
        return "write a dtype such as jnp.float32, or its name, 'float32'"
    return "map text and other objects to integers or floats before they enter a computation"


def is_bool(dtype: DType) -> bool:
    """Whether `dtype` is the dtype of truth values."""
    return dtype is _DTYPES["bool"]


def is_floating(dtype: DType) -> bool:
    """Whether `dtype` is a real floating-point dtype, of whatever width."""
    return str(dtype) in _FLOATING


def is_integer(dtype: DType) -> bool:
    """Whether `dtype` is a signed or unsigned integer dtype."""
    return str(dtype) in _INTEGER


def is_complex(dtype: DType) -> bool:
    """Whether `dtype` is a complex dtype."""
    return str(dtype) in _COMPLEX
