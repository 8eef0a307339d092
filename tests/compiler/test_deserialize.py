"""Bytes that are damaged, malformed or hostile: refused with a reason and a place, and nothing of them ever runs."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend import mlir as portable
from jax.extend.mlir import ir as mlir_ir
from jax.interpreters import mlir

import koinon as ko
from koinon._errors import KoinonTypeError, SerializationError
from koinon.compiler import deserialize, serialize
from koinon.compiler._constants import constant_bytes, read_constant
from koinon.compiler._type_rows import TypeReader, type_row
from koinon.compiler._wire import HEADER_OFFSET, MAGIC, pack, unpack
from koinon.types import StructType, TensorType, Type
from tests import strategies
from tests.compiler import zoo

SUBJECTS = ("nested", "aggregations", "sequence_results", "placements_and_constants", "unknown_dimensions")


@functools.cache
def written(name: str) -> bytes:
    return serialize(zoo.MAKERS[name]().computation)


def parts(name: str) -> tuple[dict[str, Any], list[bytes]]:
    """A header that may be changed, and the blobs."""
    header, blobs = unpack(written(name))
    return copy.deepcopy(header), [bytes(blob) for blob in blobs]


def load_changed(name: str, change: Callable[[dict[str, Any], list[bytes]], None]) -> ko.Computation:
    """Loads a computation whose header or blobs were changed, and whose digest is right."""
    header, blobs = parts(name)
    change(header, blobs)
    return deserialize(pack(header, blobs))


def row_of(header: dict[str, Any], kind: str) -> list[Any]:
    """The first expression of a kind."""
    return next(row for row in header["nodes"] if row[0] == kind)


# --- the frame -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason", "place"),
    [
        (lambda data: b"", "truncated", "byte 0"),
        (lambda data: b"PK\x03\x04" + data, "not a serialized computation", "byte 0"),
        (lambda data: data[:5], "truncated", "byte 5"),
        (lambda data: data[:-1], "truncated", f"byte {len(written('nested')) - 1}"),
        (lambda data: data + b"\0", "bytes after its end", f"byte {len(written('nested'))}"),
        (lambda data: data[:100] + b"\xff" + data[101:], "digest", f"byte {len(written('nested')) - 32}"),
    ],
)
def test_damaged_bytes_are_refused_with_the_reason_and_the_place(
    change: Callable[[bytes], bytes], reason: str, place: str
) -> None:
    """The message tells truncation from damage and from what is something else."""
    with pytest.raises(SerializationError, match=reason) as info:
        deserialize(change(written("nested")))
    assert info.value.differs == place


def test_another_version_is_named() -> None:
    """A whole file of a later version is told from a damaged one."""
    data = bytearray(written("nested"))
    data[len(MAGIC)] = 2
    data[-32:] = hashlib.sha256(data[:-32]).digest()
    with pytest.raises(SerializationError, match="version") as info:
        deserialize(data)
    assert (info.value.expected, info.value.found) == (1, 2)


def test_what_is_not_made_of_bytes_is_refused() -> None:
    """Text and None are no bytes; bytearrays and memoryviews are."""
    for thing in ("text", None, 3):
        with pytest.raises(KoinonTypeError):
            deserialize(thing)  # pyright: ignore[reportArgumentType]
    for kind in (bytearray, memoryview):
        assert deserialize(kind(written("nested"))).name == "outer"


# --- mutations -------------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to three changes: a flipped bit, a cut, a run of zeros, an insertion."""
    changed = bytearray(data)
    while bytes(changed) == data:
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(changed) + 1))
            match rng.integers(5):
                case 0:
                    changed[min(place, len(changed) - 1)] ^= 1 << int(rng.integers(8))
                case 1:
                    del changed[place:]
                case 2:
                    del changed[place : place + int(rng.integers(1, 64))]
                case 3:
                    changed[place : place + 16] = bytes(len(changed[place : place + 16]))
                case 4:
                    changed[place:place] = rng.bytes(int(rng.integers(1, 64)))
            if not changed:
                return b""
    return bytes(changed)


def assert_mutations_refused(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for i in range(count):
        with pytest.raises(SerializationError):
            deserialize(mutated(written(SUBJECTS[i % len(SUBJECTS)]), rng))


def test_no_mutated_bytes_are_accepted() -> None:
    """Whatever changes, the digest shows it."""
    assert_mutations_refused(500, seed=0)


@pytest.mark.soak
def test_no_mutated_bytes_are_accepted_in_fifty_thousand() -> None:
    """As above, 50,000 times."""
    assert_mutations_refused(50_000, seed=1)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a JSON value."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


OTHERS: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**70, 1.5, "", "x", [], {}, [[]], [None, 0], "float32[?]", "<int32>", "a,b"),
    *("federated_sum", "lambda", "CLIENTS", "d0", "dict"),
    *(["int32", []], ["<a=int32>", ["dict"]], ["reference", "v0", 0]),
)


def change_header(header: Any, rng: np.random.Generator) -> Any:
    """The header with something replaced, removed, doubled, or exchanged for something else in it."""
    paths = [path for path in places(header) if path]
    path = paths[rng.integers(len(paths))]
    parent = functools.reduce(lambda value, key: value[key], path[:-1], header)
    other = functools.reduce(lambda value, key: value[key], paths[rng.integers(len(paths))], header)
    match rng.integers(4):
        case 0:
            parent[path[-1]] = OTHERS[rng.integers(len(OTHERS))]
        case 1:
            del parent[path[-1]]
        case 2:
            parent[path[-1]] = copy.deepcopy(other)
        case 3 if isinstance(parent, list):
            parent.insert(path[-1], copy.deepcopy(other))
        case _:
            value = parent[path[-1]]
            if type(value) is int:
                parent[path[-1]] = value + 1
            elif isinstance(value, (str, list)):
                parent[path[-1]] = value[:-1]
    return header


def assert_signed_mutations_refused(count: int, seed: int) -> None:
    """Headers that were changed and signed again are refused, or are computations that keep what they are."""
    rng = np.random.default_rng(seed)
    accepted = 0
    for i in range(count):
        header, blobs = parts(SUBJECTS[i % len(SUBJECTS)])
        for _ in range(rng.integers(1, 4)):
            change_header(header, rng)
        try:
            computation = deserialize(pack(header, blobs))
        except SerializationError:
            continue
        accepted += 1
        again = deserialize(serialize(computation))
        assert again.type_signature == computation.type_signature
    assert accepted < count / 4


def test_changed_headers_are_refused_though_their_digest_is_right() -> None:
    """The parser behind the digest raises its one error, whatever a header says."""
    assert_signed_mutations_refused(200, seed=2)


@pytest.mark.soak
def test_changed_headers_are_refused_in_ten_thousand() -> None:
    """As above, 10,000 times."""
    assert_signed_mutations_refused(10_000, seed=3)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_changed_header_text_is_refused_though_the_digest_is_right(data: st.DataObject) -> None:
    """As above, for changes of the text that need not leave it JSON."""
    original = written("nested")
    end = HEADER_OFFSET + int.from_bytes(original[12:16], "little")
    place = data.draw(st.integers(HEADER_OFFSET, end - 1))
    odd = st.sampled_from([b"[" * 9, b"1e9", b"NaN", b'"', b"\xc3\xa4", b"{}", b" "])
    piece = data.draw(st.binary(max_size=3) | odd)
    text = original[HEADER_OFFSET:place] + piece + original[place + 1 : end]
    total = len(original) - (end - HEADER_OFFSET) + len(text)
    prefix = MAGIC + original[8:12] + len(text).to_bytes(4, "little") + total.to_bytes(8, "little")
    body = prefix + text + original[end:-32]
    signed = body + hashlib.sha256(body).digest()
    try:
        computation = deserialize(signed)
    except SerializationError:
        return
    assert serialize(deserialize(serialize(computation))) == serialize(computation)


# --- what the language does not allow --------------------------------------------------------------------------------


def set_row(kind: str, index: int, value: Any) -> Callable[[dict[str, Any], list[bytes]], None]:
    def change(header: dict[str, Any], blobs: list[bytes]) -> None:
        row_of(header, kind)[index] = value

    return change


def call_no_function(header: dict[str, Any], blobs: list[bytes]) -> None:
    row_of(header, "call")[1] = header["nodes"].index(row_of(header, "reference"))


def set_program(key: str, value: Any) -> Callable[[dict[str, Any], list[bytes]], None]:
    def change(header: dict[str, Any], blobs: list[bytes]) -> None:
        header["programs"][0][key] = value

    return change


def append(table: str, row: Any) -> Callable[[dict[str, Any], list[bytes]], None]:
    return lambda header, blobs: header[table].append(row)


def set_type(index: int, row: Any) -> Callable[[dict[str, Any], list[bytes]], None]:
    def change(header: dict[str, Any], blobs: list[bytes]) -> None:
        header["types"][index] = row

    return change


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("nested", lambda header, blobs: header.pop("types"), "other parts"),
        ("nested", lambda header, blobs: header.update(extra=1), "other parts"),
        ("nested", lambda header, blobs: header.update(name="x" * 2000), "too long"),
        ("nested", lambda header, blobs: header["nodes"].clear(), "no expression"),
        ("nested", lambda header, blobs: blobs.append(b"hidden"), "Nothing refers"),
        ("nested", append("types", "int8"), "Nothing refers"),
        ("nested", append("nodes", ["execute", "rm"]), "no expression of this kind"),
        ("nested", set_row("intrinsic", 1, "federated_steal"), "no operator of this name"),
        ("nested", set_row("intrinsic", 1, "federated_broadcast"), "placed"),
        ("nested", set_row("reference", 1, "nowhere"), "not in scope"),
        ("nested", set_row("reference", 1, "os.system"), "identifier"),
        ("nested", set_row("lambda", 3, 10**6), "leads nowhere"),
        ("nested", set_row("selection", 2, 7), "malformed"),
        ("nested", call_no_function, "needs a function"),
        ("nested", set_row("struct", 2, "tests.Moments"), "other fields"),
        ("nested", set_row("local", 1, 5), "has a name"),
        ("placements_and_constants", set_row("literal", 2, -1), "leads nowhere"),
        ("nested", set_type(0, "T"), "A tensor is expected"),
        ("nested", set_type(0, "float33"), "no dtype"),
        ("nested", set_type(0, "float32 "), "canonical notation"),
        ("nested", set_type(0, "<int32>"), "A tensor is expected"),
        ("nested", set_type(0, ["sequence", 0]), "comes before it"),
        ("nested", set_type(0, ["tuple"]), "no type of this kind"),
        ("nested", set_type(1, ["federated", 0, "MOON", True]), "no type of this kind"),
        ("nested", set_type(2, ["federated", 1, "SERVER", True]), "A placed value"),
        ("unknown_dimensions", set_program("convention", 8), "calling convention"),
        ("unknown_dimensions", set_program("convention", 1000), "calling convention"),
        ("unknown_dimensions", set_program("platforms", ["cpu", "toaster"]), "platforms"),
        ("unknown_dimensions", set_program("platforms", []), "platforms"),
        ("unknown_dimensions", set_program("platforms", ["cpu"]), "does not fit its declared type"),
        ("unknown_dimensions", set_program("dimensions", []), "unknown dimension"),
        ("unknown_dimensions", set_program("dimensions", ["d9"] * 7), "no argument has"),
        ("unknown_dimensions", set_program("dimensions", ["(d0 + d1)*(d0 + d1)"] * 7), "expression over"),
        ("unknown_dimensions", set_program("dimensions", ["d0^99999999"] * 7), "expression over"),
        ("unknown_dimensions", set_program("dimensions", ["__import__('os')"] * 7), "expression over"),
        ("unknown_dimensions", set_program("dimensions", ["d0 + d0"] * 7), "canonical form"),
        ("unknown_dimensions", set_program("dimensions", ["5"] * 7), "canonical form"),
        ("nested", lambda header, blobs: blobs.__setitem__(0, b"ML\xefR" + bytes(50)), "no StableHLO module"),
        ("nested", lambda header, blobs: blobs.__setitem__(0, blobs[0][:-9]), "no StableHLO module"),
    ],
)
def test_what_breaks_a_rule_is_refused(
    name: str, change: Callable[[dict[str, Any], list[bytes]], Any], reason: str
) -> None:
    """A right digest does not make a computation right."""
    with pytest.raises(SerializationError, match=reason) as info:
        load_changed(name, change)
    assert "header" in str(info.value.differs)


def test_a_container_that_is_not_registered_here_becomes_the_default() -> None:
    """A name in the bytes never leads to an import; the fields come back in a container without that name."""

    def rename(header: dict[str, Any], blobs: list[bytes]) -> None:
        text = json.dumps(header).replace("tests.Moments", "subprocess.Popen")
        header.update(json.loads(text))

    before = set(sys.modules)
    computation = load_changed("containers", rename)
    result = computation({"a": [1, (2.0,)], "b": 3.0}, {"first": 4.0, "second": 5.0})
    assert list(result) == ["first", "second"]
    assert set(sys.modules) == before


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="JAX holds 64 bits")
def test_a_computation_of_64_bits_is_refused_where_jax_holds_32() -> None:
    """Loading narrows nothing silently."""
    program = serialize(ko.jax_computation(lambda x: x, jnp.float32))
    header, blobs = unpack(program)
    header = json.loads(json.dumps(header).replace("float32", "float64"))
    with pytest.raises(SerializationError, match="narrows no value"):
        deserialize(pack(header, [bytes(blob) for blob in blobs]))


# --- modules ---------------------------------------------------------------------------------------------------------

_MAIN = "func.func public @main(%i: tensor<i32>, %x: tensor<f32>) -> tensor<f32>"


def module(text: str) -> bytes:
    """The bytes of a module given as text."""
    with mlir.make_ir_context():
        return portable.serialize_portable_artifact(mlir_ir.Module.parse(text), "1.0.0")


def load_module(text: str) -> ko.Computation:
    """A computation `(float32 -> float32)` with another module in it."""
    header, _ = unpack(serialize(ko.jax_computation(lambda x: x, jnp.float32)))
    header["programs"][0]["derivative"] = None
    header["programs"][0]["module"] = 0
    return deserialize(pack(header, [module(text)]))


def test_a_module_that_only_computes_is_accepted(backend: str) -> None:
    """The modules below are refused for what they do, not for how they are made here."""
    text = f"{_MAIN} {{ %y = stablehlo.add %x, %x : tensor<f32> return %y : tensor<f32> }}"
    assert float(load_module(text)(4.0)) == 8.0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("%y = stablehlo.custom_call @xla_ffi_python_cpu_callback(%x) : (tensor<f32>) -> tensor<f32>", "may not call"),
        ("%y = stablehlo.custom_call @tpu_custom_call(%x) : (tensor<f32>) -> tensor<f32>", "may not call"),
        ("%y = stablehlo.custom_call @AllocateBuffer() : () -> tensor<f32>", "may not call"),
        (
            "%t = stablehlo.after_all : !stablehlo.token "
            '%u = "stablehlo.outfeed"(%x, %t) {outfeed_config = ""} : '
            "(tensor<f32>, !stablehlo.token) -> !stablehlo.token "
            "%y = stablehlo.add %x, %x : tensor<f32>",
            "does not only compute",
        ),
        (
            "%r = stablehlo.replica_id : tensor<ui32> %y = stablehlo.convert %r : (tensor<ui32>) -> tensor<f32>",
            "does not only compute",
        ),
        ("%y = func.call @main(%i, %x) : (tensor<i32>, tensor<f32>) -> tensor<f32>", "circle"),
    ],
)
def test_a_module_that_does_more_than_to_compute_is_refused(body: str, reason: str) -> None:
    """Callbacks, machine code, unwritten memory, other devices, and calls without end."""
    with pytest.raises(SerializationError, match=reason):
        load_module(f"{_MAIN} {{ {body} return %y : tensor<f32> }}")


@pytest.mark.parametrize(
    "text",
    [
        "func.func public @main(%i: tensor<i32>, %x: tensor<2xf32>) -> tensor<2xf32> { return %x : tensor<2xf32> }",
        "func.func public @main(%i: tensor<i32>, %x: tensor<i32>) -> tensor<i32> { return %x : tensor<i32> }",
        "func.func public @main(%x: tensor<f32>) -> tensor<f32> { return %x : tensor<f32> }",
        "func.func public @main(%i: tensor<i32>, %x: tensor<?xf32>) -> tensor<?xf32> { return %x : tensor<?xf32> }",
        "func.func public @other(%i: tensor<i32>, %x: tensor<f32>) -> tensor<f32> { return %x : tensor<f32> }",
    ],
)
def test_a_module_of_another_type_is_refused(text: str) -> None:
    """Shapes, dtypes, the number of arguments and the name of the function must be the declared ones."""
    with pytest.raises(SerializationError, match=r"declared type|no function `main`"):
        load_module(text)


# --- sizes -----------------------------------------------------------------------------------------------------------


def constant(*types: Any, data: bytes = b"") -> bytes:
    """A computation that returns one constant, of the last of some types."""
    nodes = [["literal", len(types) - 1, 0], ["lambda", None, None, 0]]
    return pack({"name": "bomb", "nodes": nodes, "programs": [], "types": list(types)}, [data])


def expressions(nodes: list[Any], types: list[Any]) -> bytes:
    return pack({"name": "bomb", "nodes": nodes, "programs": [], "types": types}, [])


def fields(count: int) -> list[Any]:
    return ["struct", [[None, 0]] * count, None]


def doubled(levels: int) -> list[Any]:
    nodes: list[Any] = [["placement", "CLIENTS"]]
    nodes += [["struct", [[None, i], [None, i]], None] for i in range(levels)]
    return [*nodes, ["lambda", None, None, levels]]


BOMBS: dict[str, Callable[[], bytes]] = {
    "a shape of 2**40": lambda: constant(f"float32[{2**40}]"),
    "a shape of 2**31 squared": lambda: constant(f"float32[{2**31 - 1},{2**31 - 1}]"),
    "a hundred dimensions": lambda: constant(f"float32[{','.join(['2'] * 100)}]"),
    "negative dimensions": lambda: constant("float32[-1,-1]", data=bytes(4)),
    "a million fields": lambda: enlarged(10**7),
    "a hundred thousand and one fields": lambda: constant("int32", fields(100_001)),
    "a name that occurs twice": lambda: constant("int32", ["struct", [["a", 0], ["a", 0]], None]),
    "a name of white space": lambda: constant("int32", ["struct", [["a b", 0]], None]),
    "types nested deeply": lambda: constant("int32", *[["struct", [[None, i]], None] for i in range(300)]),
    "types that double": lambda: constant("int32", *[["struct", [[None, i], [None, i]], None] for i in range(60)]),
    "expressions that double": lambda: expressions(doubled(60), []),
    "expressions nested deeply": lambda: expressions(
        [["placement", "SERVER"], *[["block", [], i] for i in range(5000)], ["lambda", None, None, 5000]], []
    ),
    "a large type many times": lambda: expressions(
        [["reference", "x", 1], ["struct", [[None, 0]] * 3000, None], ["lambda", "x", 1, 1]], ["int32", fields(10_000)]
    ),
    "an index of 2**70": lambda: expressions([["placement", "SERVER"], ["lambda", None, None, 2**70]], []),
}


def enlarged(size: int) -> bytes:
    """A frame with a header of this size, and with the right digest."""
    body = MAGIC + (1).to_bytes(4, "little") + size.to_bytes(4, "little") + (size + 56).to_bytes(8, "little")
    body += b"[" + b"0," * (size // 2 - 1) + b"]"
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_a_size_bomb_is_refused_before_it_takes_memory(bomb: str) -> None:
    """Declared sizes are checked before anything of that size is made: 10 MB, besides what the header takes as JSON."""
    data = BOMBS[bomb]()
    tracemalloc.start()
    try:
        with pytest.raises(SerializationError):
            deserialize(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 2**20 + 24 * min(len(data), 10**6)


def test_a_header_nested_deeply_or_not_in_ascii_is_refused() -> None:
    """What the reader of JSON cannot take is an error of the same class."""
    for text in (b"[" * 10**5, b'{"name":"\xc3\xa4"}', b'{"name":' + b"1" * 10**4 + b"}", b'{"a":1,"a":1}'):
        total = HEADER_OFFSET + len(text) + 32
        body = MAGIC + (1).to_bytes(4, "little") + len(text).to_bytes(4, "little") + total.to_bytes(8, "little") + text
        with pytest.raises(SerializationError):
            deserialize(body + hashlib.sha256(body).digest())


# --- no code ---------------------------------------------------------------------------------------------------------

_FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "marshal",
    "pickle",
    "os.",
    "subprocess",
    "ctypes",
    "socket",
    "open",
    "code.",
)
_recording: list[str] | None = None
_hooked: list[bool] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _recording is not None and event.startswith(_FORBIDDEN):
        _recording.append(f"{event} {str(arguments)[:80]}")


def test_loading_runs_no_code() -> None:
    """No audit event of executing, compiling, importing, unpickling, of files, processes or the network."""
    global _recording
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)
    data = [written(name) for name in sorted(zoo.MAKERS)]
    _recording = []
    try:
        for item in data:
            deserialize(item)
        found = list(_recording)
        compile("1 + 1", "<a test of the hook>", "eval")
        assert _recording != found
    finally:
        _recording = None
    assert found == []


# --- the tables ------------------------------------------------------------------------------------------------------


def read_back(type_: Type) -> Type:
    """The type that is read from the rows that are written for a type."""
    rows: list[Any] = []

    def position(part: Type) -> int:
        rows.append(type_row(part, position))
        return len(rows) - 1

    position(type_)
    reader = TypeReader()
    for row in json.loads(json.dumps(rows)):
        reader.read(row)
    return reader.types[-1]


@settings(deadline=None, max_examples=100)
@given(strategies.concrete_types())
def test_a_type_is_read_as_it_was_written(type_: Type) -> None:
    """Rows of types are the inverse of types."""
    assert read_back(type_) == type_


@settings(deadline=None, max_examples=100)
@given(strategies.tensor_trees(), st.sampled_from([dict, zoo.Moments, list, tuple, None]))
def test_a_container_is_read_as_it_was_written(inner: Type, container: Any) -> None:
    """Registered containers survive, outside and inside."""
    parts = [inner, StructType([inner], tuple)]
    if container in (dict, zoo.Moments):
        type_ = StructType(list(zip(("first", "second"), parts, strict=True)), container)
    else:
        type_ = StructType(parts, container)
    assert read_back(type_) == type_


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([name for name in strategies.DTYPE_NAMES if not name.startswith("key")]),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_a_constant_is_read_as_it_was_written(name: str, shape: list[int], seed: int) -> None:
    """All dtypes, all bits, also of arrays that are not contiguous."""
    type_ = TensorType(name, tuple(shape))
    raw = np.random.default_rng(seed).bytes(int(np.prod(shape, dtype=int)) * type_.dtype.itemsize)
    array = np.frombuffer(raw, np.uint8)
    if type_.dtype.name in ("bool", "int4", "uint4"):
        array = array & 1
    value = array.view(type_.dtype).reshape(shape)
    value = np.asfortranarray(value)
    assert read_constant(type_, memoryview(constant_bytes(value)), "nodes[0]").tobytes() == value.tobytes()


@pytest.mark.parametrize("name", ["bool", "int4", "uint4", "float4_e2m1fn"])
def test_bits_that_a_dtype_does_not_have_are_refused(name: str) -> None:
    """One value has one text, also where it fills its byte only partly."""
    with pytest.raises(SerializationError, match="bits"):
        read_constant(TensorType(name, (1,)), memoryview(b"\xf2"), "nodes[0]")
