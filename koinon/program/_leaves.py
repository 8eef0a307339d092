"""The leaves of a container: arrays, PRNG keys and Python scalars, as header entries and buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from koinon._errors import UnsupportedTypeError

_DTYPE_NAMES = (
    *("bool", "int2", "int4", "int8", "int16", "int32", "int64", "uint2", "uint4", "uint8", "uint16", "uint32"),
    *("uint64", "bfloat16", "float16", "float32", "float64", "complex64", "complex128", "float4_e2m1fn"),
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
    *("float8_e5m2fnuz", "float8_e8m0fnu"),
)
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in _DTYPE_NAMES}

_MAX_RANK = 32
_MAX_DIMENSION = 2**48

# Numbers are written in base 16: exact for floats, and without Python's limit on the digits of a decimal integer.
_SCALAR_TO_TEXT: dict[type, Callable[[Any], Any]] = {
    bool: bool,
    int: hex,
    float: float.hex,
    complex: lambda value: [value.real.hex(), value.imag.hex()],
    str: str,
}


def _instance_of(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{value!r:.80} is no {kind.__name__}")
        return value

    return check


_SCALAR_FROM_TEXT: dict[str, Callable[[Any], Any]] = {
    "bool": _instance_of(bool),
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)),
    "str": _instance_of(str),
}

Leaf = Any


def encode_leaf(value: Leaf, path: str) -> tuple[dict[str, Any], np.ndarray | None]:
    """A leaf's header entry, without its place, and its bytes; Python scalars live in the header alone."""
    if type(value) in _SCALAR_TO_TEXT:
        return {"python": type(value).__name__, "value": _SCALAR_TO_TEXT[type(value)](value)}, None
    entry: dict[str, Any] = {}
    if is_key(value):
        entry["key_impl"] = str(jax.random.key_impl(value))
        value = jax.random.key_data(value)
    if not isinstance(value, jax.Array | np.ndarray | np.generic) or value.dtype.name not in DTYPES:
        raise UnsupportedTypeError(
            f"The leaf at {path} cannot be saved.",
            expected="an array of numbers or booleans, a typed PRNG key, or a Python bool, int, float, complex or str",
            found=f"{type(value).__name__}, dtype {value.dtype}" if hasattr(value, "dtype") else type(value).__name__,
            hint="keep it outside of the saved tree, or turn it into an array",
        )
    dtype = DTYPES[value.dtype.name]
    array = np.asarray(value)
    entry |= {"dtype": value.dtype.name, "shape": list(array.shape)}
    # `reshape` after `ascontiguousarray`, which turns scalars into vectors.
    buffer = np.ascontiguousarray(array.astype(dtype, copy=False)).reshape(-1).view(np.uint8)
    return entry, buffer


def check_header_leaf(entry: Any) -> str | None:
    """What is wrong with a header entry, without looking at its bytes; None if nothing is."""
    if not isinstance(entry, dict):
        return "is not described by an object"
    names = set(entry)
    if names == {"python", "value"}:
        return None if entry["python"] in list(_SCALAR_FROM_TEXT) else "is of an unknown Python type"
    if names - {"key_impl"} != {"dtype", "nbytes", "offset", "shape"}:
        return "has unknown or missing attributes"
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        return "has an unknown dtype"
    shape = entry["shape"]
    if not isinstance(shape, list) or len(shape) > _MAX_RANK:
        return "has no shape or one of too many dimensions"
    if not all(type(size) is int and 0 <= size <= _MAX_DIMENSION for size in shape):
        return "has an impossible dimension"
    if not all(type(entry[name]) is int and entry[name] >= 0 for name in ("nbytes", "offset")):
        return "has an impossible place"
    return None


def decode_leaf(entry: dict[str, Any], buffer: np.ndarray | None) -> Leaf:
    """A leaf from its checked entry and bytes, as a NumPy array, a JAX array of keys, or a Python scalar.

    Raises:
      ValueError: if the bytes are no value of the declared kind.
    """
    if buffer is None:
        try:
            return _SCALAR_FROM_TEXT[entry["python"]](entry["value"])
        except (TypeError, LookupError, OverflowError) as error:
            raise ValueError(f"{entry['value']!r:.80} is no {entry['python']}") from error
    dtype = DTYPES[entry["dtype"]]
    if dtype.kind == "b" and buffer.size and buffer.max() > 1:
        raise ValueError("a boolean is neither 0 nor 1")
    # The copy makes the array writable, and independent of the bytes of the other leaves.
    array = buffer.view(dtype).reshape(entry["shape"]).astype(dtype.newbyteorder("="), copy=True)
    if "key_impl" not in entry:
        return array
    try:
        return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=entry["key_impl"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"no PRNG key: {str(error)[:200]}") from error


def is_key(value: Any) -> bool:
    """Whether `value` is an array (or the shape and dtype) of typed PRNG keys."""
    return hasattr(value, "dtype") and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)


def describe_leaf(value: Leaf) -> str:
    """A leaf in compact notation: its dtype and shape, or its Python type."""
    if not hasattr(value, "dtype"):
        return f"a Python {type(value).__name__}"
    dimensions = ",".join(map(str, value.shape))
    return f"{value.dtype}[{dimensions}]" if dimensions else str(value.dtype)


def convert_leaf(value: Leaf, like: Leaf) -> Leaf:
    """A restored leaf as what `like` is: a JAX array, a NumPy array or scalar, or a Python scalar."""
    if is_key(value):
        return value
    if isinstance(like, np.generic):
        return value[()]
    if isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        # A copy, because JAX may otherwise keep the memory of the NumPy array.
        return jax.numpy.array(value, copy=True)
    return value
