"""The tensor container: everything comes back, and nothing that was changed is accepted."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from koinon._errors import ProgramStateCorruptedError, ProgramStateStructureError, UnsupportedTypeError
from koinon.program import pytree_from_bytes, pytree_to_bytes


class Pair(NamedTuple):
    left: Any
    right: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Model:
    weights: Any
    bias: Any


def assert_same(found: Any, expected: Any) -> None:
    """Asserts that two pytrees have the same containers and bit-identical leaves of the same kinds."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(one) is type(other)
        if hasattr(other, "dtype"):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            if jnp.issubdtype(other.dtype, jax.dtypes.prng_key):
                one, other = jax.random.key_data(one), jax.random.key_data(other)
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        else:
            assert one == other or (one != one and other != other)


@pytest.fixture
def mixed() -> dict[str, Any]:
    """A state with every kind of container and leaf."""
    params = {"w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)}
    return {
        "params": params,
        "optimizer": optax.adam(1e-3).init(params),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "pair": Pair(np.float64(1.5), (None, [], {}, ())),
        "ordered": collections.OrderedDict(z=np.zeros((0, 5), np.int8), a=np.array([True, False])),
        "model": Model([jnp.int32(3)], np.array(2 + 1j)),
        "scalars": [True, -(10**400), 0.1, float("nan"), float("-inf"), 1 - 2j, "naïve \ud800 text", ""],
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    }


def forged(header: Any, body: bytes = b"", *, version: int = 1) -> bytes:
    """A container with a valid digest around the given header, as an attacker would make it."""
    text = header if isinstance(header, bytes) else json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    data = struct.pack("<8sIQ", b"KOINON\r\n", version, len(text)) + text
    data += bytes(-len(data) % 64) + body
    return data + hashlib.sha256(data).digest()


def header_of(*leaves: Any, tree: Any = 0, metadata: Any = None) -> dict[str, Any]:
    """A header with the given leaves."""
    return {"leaves": list(leaves), "metadata": metadata or {}, "tree": tree}


def leaf_of(**changes: Any) -> dict[str, Any]:
    """The header entry of a vector of two float32, with some attributes changed."""
    return {"dtype": "float32", "nbytes": 8, "offset": 0, "shape": [2]} | changes


def test_a_state_comes_back_in_its_containers_bit_for_bit(mixed: Any) -> None:
    """With `like`, containers, kinds of leaves, dtypes and bits are those that were saved."""
    assert_same(pytree_from_bytes(pytree_to_bytes(mixed), mixed), mixed)


def test_without_a_structure_containers_are_dicts_and_lists() -> None:
    """Named containers come back as dicts and the others as lists, with NumPy arrays in them."""
    tree = {"pair": Pair(jnp.int32(1), (2.0, None)), "model": Model(np.ones(2), [])}
    found = pytree_from_bytes(pytree_to_bytes(tree))
    assert_same(
        found,
        {"pair": {"left": np.array(1, np.int32), "right": [2.0, None]}, "model": {"weights": np.ones(2), "bias": []}},
    )


@pytest.mark.parametrize("leaf", [np.ones(3), jnp.float32(2), 5, None])
def test_a_single_leaf_is_a_tree(leaf: Any) -> None:
    """A leaf without a container, and None, come back as they are."""
    assert_same(pytree_from_bytes(pytree_to_bytes(leaf), leaf), leaf)


def test_integer_names_survive() -> None:
    """Dicts whose keys are integers keep them."""
    assert_same(pytree_from_bytes(pytree_to_bytes({3: 1, -7: 2})), {3: 1, -7: 2})


@pytest.mark.parametrize(
    "dtype", ["bool", "int4", "uint4", "int8", "uint64", "bfloat16", "float16", "float8_e4m3fn", "complex128", ">f4"]
)
def test_every_dtype_keeps_its_bits(dtype: str) -> None:
    """Arrays of 8-bit floats, of 4-bit integers and of big-endian numbers have the same values after the trip."""
    array = np.array([0, 1, 1, 0], dtype)
    found = pytree_from_bytes(pytree_to_bytes(array))
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.astype("complex128").tolist() == array.astype("complex128").tolist()


@given(hnp.arrays(st.sampled_from(["float32", "int16", "uint8", "float64", "bool"]), hnp.array_shapes(min_side=0)))
def test_any_array_comes_back(array: np.ndarray) -> None:
    """Shapes with and without elements, and any bits, come back."""
    found = pytree_from_bytes(pytree_to_bytes([array, {"again": array}]))
    assert_same(found, [array, {"again": array}])


def test_equal_trees_give_equal_bytes(mixed: Any) -> None:
    """Saving twice gives the same bytes, and the order of a dict does not matter."""
    again = dict(reversed(mixed.items()))
    assert pytree_to_bytes(mixed) == pytree_to_bytes(again)


def test_loaded_arrays_are_independent_and_writable() -> None:
    """A loaded array may be changed without a change to the bytes or to other leaves."""
    data = pytree_to_bytes([np.zeros(4), np.zeros(4)])
    first, second = pytree_from_bytes(data)
    first += 1
    assert second.tolist() == [0] * 4
    assert pytree_from_bytes(data)[0].tolist() == [0] * 4


def test_fields_are_matched_by_name() -> None:
    """An OrderedDict in another order gets the values of its names, not of its positions."""
    data = pytree_to_bytes({"a": 1, "b": 2})
    assert pytree_from_bytes(data, collections.OrderedDict(b=0, a=0)) == collections.OrderedDict(b=2, a=1)


def test_shapes_and_dtypes_may_be_given_without_values() -> None:
    """`jax.eval_shape` gives a structure to restore into; its leaves become JAX arrays."""
    tree = {"w": jnp.ones((2, 3)), "key": jax.random.key(0)}
    assert_same(pytree_from_bytes(pytree_to_bytes(tree), jax.eval_shape(lambda: tree)), tree)


@pytest.mark.parametrize(
    ("like", "path", "expected", "found"),
    [
        ({"a": {"b": [np.ones(2), np.ones(3)]}, "c": 1}, ".a.b[1]", "float64[3]", "float64[2]"),
        ({"a": {"b": [np.ones(2), np.ones(2, np.float32)]}, "c": 1}, ".a.b[1]", "float32[2]", "float64[2]"),
        ({"a": {"b": [np.ones(2), np.ones(2)]}, "c": 1.0}, ".c", "a Python float", "a Python int"),
        ({"a": {"b": [np.ones(2)]}, "c": 1}, ".a.b", "list of 1", "2 items: with 1"),
        ({"a": {"x y": 1}, "c": 1}, ".a", "dict of 1", "1 fields: without 'x y', with 'b'"),
        ({"a": {"b": np.ones(2)}, "c": 1}, ".a.b", "float64[2]", "2 items"),
        ({"a": {"b": [np.ones(2), np.ones(2)]}, "c": None}, ".c", "None", "a Python int"),
        ({"a": {"b": [np.ones(2), jax.random.key(0)]}, "c": 1}, ".a.b[1]", "key<fry>", "float64[2]"),
        (np.ones(2), "the root", "float64[2]", "2 fields"),
    ],
)
def test_another_structure_is_refused_with_its_path(like: Any, path: str, expected: str, found: str) -> None:
    """The error says where the structures differ, what was expected there and what was saved."""
    data = pytree_to_bytes({"a": {"b": [np.ones(2), np.ones(2)]}, "c": 1})
    with pytest.raises(ProgramStateStructureError) as caught:
        pytree_from_bytes(data, like)
    error = caught.value
    assert (error.differs, error.expected, error.found) == (path, expected, found)
    assert f"differs at {path}" in str(error)


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"a": [object()]}, ".a[0]"),
        ({"a b": len}, "['a b']"),
        (np.array(["text"]), "the root"),
        ([np.array([None])], "[0]"),
        (b"bytes", "the root"),
    ],
)
def test_what_cannot_be_saved_is_named(tree: Any, path: str) -> None:
    """A leaf of an unsupported kind is an error with its path."""
    with pytest.raises(UnsupportedTypeError, match="cannot be saved") as caught:
        pytree_to_bytes(tree)
    assert f"at {path} " in str(caught.value)


def test_other_keys_than_names_and_numbers_are_refused() -> None:
    """A dict with tuples for keys has no names to write."""
    with pytest.raises(UnsupportedTypeError, match="keys of type str or int"):
        pytree_to_bytes({(1, 2): 3})


def test_too_deep_a_tree_is_refused() -> None:
    """Nesting that the reader would refuse is refused by the writer."""
    tree: Any = 1
    for _ in range(300):
        tree = [tree]
    with pytest.raises(UnsupportedTypeError, match="nested deeper"):
        pytree_to_bytes(tree)


def assert_all_changes_are_found(data: bytes, flips: int, seed: int) -> None:
    """Asserts that changed bits, truncations, zeroed runs and insertions are all refused."""
    rng = np.random.default_rng(seed)
    for position in rng.integers(len(data) * 8, size=flips):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << (position % 8)
        with pytest.raises(ProgramStateCorruptedError):
            pytree_from_bytes(changed)
    for size in rng.integers(len(data), size=flips // 4):
        with pytest.raises(ProgramStateCorruptedError):
            pytree_from_bytes(data[:size])
        with pytest.raises(ProgramStateCorruptedError):
            pytree_from_bytes(data[:size] + b"\x01" + data[size:])
        zeroed = data[:size] + bytes(len(data[size : size + 64])) + data[size + 64 :]
        if zeroed != data:
            with pytest.raises(ProgramStateCorruptedError):
                pytree_from_bytes(zeroed)


def test_every_change_is_found(mixed: Any) -> None:
    """Flipped bits, truncations, insertions and zeroed runs are refused, wherever they are."""
    assert_all_changes_are_found(pytree_to_bytes(mixed), flips=400, seed=0)


@pytest.mark.soak
def test_ten_thousand_changes_are_found(mixed: Any) -> None:
    """The same at the size of the reliability plan."""
    assert_all_changes_are_found(pytree_to_bytes(mixed), flips=10_000, seed=1)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    """Bytes that are no container are refused, with and without its first bytes."""
    for candidate in (data, b"KOINON\r\n" + data, forged(data)):
        with pytest.raises(ProgramStateCorruptedError):
            pytree_from_bytes(candidate)


def test_a_forged_but_sound_container_is_read() -> None:
    """The forgery of these tests is accepted where nothing is wrong with it, so that its refusals mean something."""
    data = forged(header_of(leaf_of()), np.array([1, 2], "<f4").tobytes() + bytes(56))
    assert pytree_from_bytes(data).tolist() == [1, 2]


HUGE = 2**40
BODY = bytes(64)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (header_of(leaf_of(shape=[HUGE], nbytes=4 * HUGE)), BODY),
        (header_of(leaf_of(shape=[HUGE, HUGE], nbytes=8)), BODY),
        (header_of(leaf_of(shape=[2**64, 0], nbytes=0)), b""),
        (header_of(leaf_of(shape=[-2])), BODY),
        (header_of(leaf_of(shape=[True, 2])), BODY),
        (header_of(leaf_of(shape=[2.0])), BODY),
        (header_of(leaf_of(shape=2)), BODY),
        (header_of(leaf_of(shape=[1] * 1000 + [2])), BODY),
        (header_of(leaf_of(offset=-8)), BODY),
        (header_of(leaf_of(offset=64)), BODY),
        (header_of(leaf_of(nbytes=4)), BODY),
        (header_of(leaf_of(dtype="object")), BODY),
        (header_of(leaf_of(dtype=["float32"])), BODY),
        (header_of(leaf_of(dtype="bool", shape=[8])), b"\x02" + bytes(63)),
        (header_of(leaf_of(extra=1)), BODY),
        (header_of([]), BODY),
        (header_of(leaf_of()), BODY + BODY),
        (header_of(leaf_of()), b""),
        (header_of(leaf_of(), leaf_of(), tree={"items": [0, 1]}), BODY),
        (header_of(leaf_of(key_impl="threefry2x32")), BODY),
        (header_of(leaf_of(key_impl="os.system", dtype="uint32")), BODY),
        (header_of(leaf_of(key_impl=[], dtype="uint32")), BODY),
        (header_of(leaf_of(key_impl="threefry2x32", dtype="uint32", shape=[2, 1])), BODY),
        (header_of({"python": "int", "value": "nine"}), b""),
        (header_of({"python": "int", "value": 9}), b""),
        (header_of({"python": "eval", "value": "1"}), b""),
        (header_of({"python": ["int"], "value": "1"}), b""),
        (header_of({"python": "bool", "value": 1}), b""),
        (header_of({"python": "str", "value": ["a"]}), b""),
        (header_of({"python": "float", "value": "0x1p99999"}), b""),
        (header_of({"python": "complex", "value": ["0x1p0", "0x1p0", "0x1p0"]}), b""),
        (header_of(leaf_of(), tree=1), BODY),
        (header_of(leaf_of(), tree=None), BODY),
        (header_of(leaf_of(), tree={"items": [0, 0]}), BODY),
        (header_of(leaf_of(), tree={"items": [0], "fields": []}), BODY),
        (header_of(leaf_of(), tree={"items": 0}), BODY),
        (header_of(leaf_of(), tree={"fields": [["a", None], ["a", 0]]}), BODY),
        (header_of(leaf_of(), tree={"fields": [[True, 0]]}), BODY),
        (header_of(leaf_of(), tree={"fields": [["a"]]}), BODY),
        (header_of(leaf_of(), tree=False), BODY),
        (header_of(leaf_of(), tree="x"), BODY),
        ({"leaves": {}, "metadata": {}, "tree": None}, b""),
        ({"leaves": [], "metadata": [], "tree": None}, b""),
        ({"leaves": [], "tree": None}, b""),
        ([], b""),
        (b'{"leaves": [],"metadata":{},"tree":null}', b""),
        (b'{"leaves":[],"leaves":[],"metadata":{},"tree":null}', b""),
        (b'{"leaves":[],"metadata":{"a":NaN},"tree":null}', b""),
        (b'{"leaves":[],"metadata":{"a":1.0e0},"tree":null}', b""),
        ('{"leaves":[],"metadata":{"é":1},"tree":null}'.encode(), b""),
        (b"[" * 100_000 + b"]" * 100_000, b""),
        (b'{"leaves":[],"metadata":{"a":' + b"9" * 10_000 + b'},"tree":null}', b""),
        (b'{"leaves":[],"metadata":{},"tree":' + b'{"items":[' * 300 + b"]}" * 300 + b"}", b""),
        (b'{"leaves":[],"metadata":{},"tree":null}' + b" " * 9 * 2**20, b""),
    ],
)
def test_malicious_headers_are_refused_without_allocating(header: Any, body: bytes) -> None:
    """A valid digest does not help a header that lies: it is refused, with a few megabytes of memory at most."""
    data = forged(header, body)
    tracemalloc.start()
    with pytest.raises(ProgramStateCorruptedError):
        pytree_from_bytes(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_an_unknown_format_version_is_refused() -> None:
    """A container of a later format is refused, and says which version it has."""
    with pytest.raises(ProgramStateCorruptedError, match="version 2"):
        pytree_from_bytes(forged(header_of(tree=None), version=2))


def test_a_header_that_would_be_refused_is_not_written() -> None:
    """A tree with too many leaves is an error when it is saved, not when it is needed."""
    with pytest.raises(ValueError, match="too many"):
        pytree_to_bytes(["x" * 2**20] * 9)


def test_loading_runs_no_code() -> None:
    """While a container is loaded the interpreter compiles, executes and imports nothing, and starts no process."""
    script = """
        import sys
        import jax, numpy as np
        from koinon.program import pytree_from_bytes, pytree_to_bytes
        tree = {"w": np.ones(3), "key": jax.random.key(0), "n": 3}
        data = pytree_to_bytes(tree)
        pytree_from_bytes(data, tree)  # whatever is imported lazily is imported now
        events, watching = [], False
        def hook(event, arguments):
            if watching and event.split(".")[0] in {"exec", "compile", "import", "os", "subprocess", "pickle"}:
                events.append((event, str(arguments)[:200]))
        sys.addaudithook(hook)
        watching = True
        pytree_from_bytes(data, tree)
        pytree_from_bytes(data)
        watching = False
        assert not events, events
        watching = True
        compile("1", "file", "eval")
        watching = False
        assert events, "the hook sees nothing"
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60, env=environment)
