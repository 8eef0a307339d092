"""Dtypes: which there are, how they are named, and what is asked about them."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon import _errors as errors
from koinon.types import TensorType, parse
from koinon.types._dtypes import DTYPE_NAMES, is_complex, is_dtype_like, is_floating, is_integer, is_key_dtype
from tests import strategies


def test_every_name_gives_a_type_that_prints_and_parses_under_that_name() -> None:
    """The table of dtypes is closed under printing, parsing and `repr`."""
    for name in DTYPE_NAMES:
        type_ = TensorType(name)
        assert str(type_) == name
        assert parse(name) == type_
        assert eval(repr(type_)) == type_


def test_all_common_dtypes_of_jax_are_there() -> None:
    """Among the names are bfloat16, float8, int4 and typed PRNG keys."""
    assert set(strategies.DTYPE_NAMES) <= set(DTYPE_NAMES)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (bool, "bool"),
        (np.bool_, "bool"),
        (np.float32, "float32"),
        (np.dtype("int64"), "int64"),
        (np.dtype(">f4"), "float32"),
        (np.longlong, "int64"),
        (jnp.float32, "float32"),
        (jnp.bfloat16, "bfloat16"),
        (jnp.dtype(jnp.bfloat16), "bfloat16"),
        (jnp.float8_e4m3fn, "float8_e4m3fn"),
        (jnp.int4, "int4"),
        ("float64", "float64"),
    ],
)
def test_dtypes_are_read_from_all_their_python_forms(spec, name: str) -> None:
    """Scalar classes, dtype objects and names denote the same tensor type."""
    assert TensorType(spec) == TensorType(name)
    assert str(TensorType(spec)) == name


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_key_dtypes_are_those_of_jax(impl: str) -> None:
    """The type of a typed PRNG key has the dtype of the key and prints as JAX prints it."""
    dtype = jax.random.key(0, impl=impl).dtype

    type_ = TensorType(dtype)

    assert type_.dtype == dtype
    assert str(type_) == str(dtype)
    assert parse(str(dtype)) == type_
    assert is_key_dtype(type_.dtype)


@pytest.mark.parametrize(
    "spec",
    [
        *(str, bytes, object, "str", "<U3", "datetime64[s]", np.datetime64, np.dtype("O"), np.dtype("S3"), np.floating),
        *(np.dtype([("a", np.int32)]), np.number, np.generic, jax.dtypes.float0, None, 3, "float31", "f4"),
    ],
)
def test_other_dtypes_are_refused(spec) -> None:
    """Text, objects, dates, records and abstract classes are no dtypes; the error is that of TFF."""
    with pytest.raises(errors.UnsupportedTypeError, match="no tensor type with this dtype") as info:
        TensorType(spec)

    assert isinstance(info.value, TypeError)
    assert isinstance(info.value, NotImplementedError)


@pytest.mark.parametrize("spec", [int, float, complex])
def test_python_number_types_are_refused_with_a_hint(spec) -> None:
    """NumPy reads `int` as 64 bits and JAX as 32, so that koinon asks."""
    with pytest.raises(errors.UnsupportedTypeError, match="does not tell how wide") as info:
        TensorType(spec)

    assert "name the dtype" in str(info.value)


def test_kinds_of_dtypes_partition_the_dtypes() -> None:
    """Each dtype is a truth value, an integer, a float, a complex number or a key, and only one of them."""
    for name in DTYPE_NAMES:
        dtype = TensorType(name).dtype
        kinds = [name == "bool", is_integer(dtype), is_floating(dtype), is_complex(dtype), is_key_dtype(dtype)]
        assert sum(kinds) == 1, name


def test_narrow_types_are_floats_and_integers() -> None:
    """NumPy does not count bfloat16 and float8 among the floats; koinon does."""
    assert all(is_floating(TensorType(name).dtype) for name in ("bfloat16", "float8_e5m2", "float16", "float64"))
    assert all(is_integer(TensorType(name).dtype) for name in ("int4", "uint4", "uint64"))


def test_dtype_like_is_what_denotes_a_dtype() -> None:
    """Classes and objects denote dtypes, Python's numbers and texts do not."""
    assert all(is_dtype_like(spec) for spec in (np.int32, jnp.int32, np.dtype("i4"), TensorType("key<fry>").dtype))
    assert not any(is_dtype_like(spec) for spec in (int, bool, "int32", None, 3, np.zeros(2), object()))


def test_importing_types_starts_no_backend() -> None:
    """After the import, and after naming a key type, the number of devices can still be chosen."""
    program = (
        "import jax; from koinon import types; types.parse('key<fry>[3]')\n"
        "jax.config.update('jax_platforms', 'cpu'); jax.config.update('jax_num_cpu_devices', 3)\n"
        "print(len(jax.devices()))"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert result.stdout.strip() == "3", result.stderr
