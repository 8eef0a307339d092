"""The tensor container: how states, models and checkpoints are written as bytes.

    magic (8)  format version (u32)  header length (u64)  header  padding  buffers..  SHA-256 (32)

The header is canonical JSON (ASCII, sorted names, no spaces); buffers are little-endian, row-major and start at
multiples of 64 bytes; the digest covers everything before it. A container holds names and numbers and nothing that
could run: no pickle, no class, no import. Every size is checked against the bytes at hand before anything is
allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from koinon._errors import ProgramStateCorruptedError
from koinon.program._leaves import DTYPES, Leaf, check_header_leaf, decode_leaf, encode_leaf
from koinon.program._references import wait_for_values
from koinon.program._structure import check_node, flatten, nest, restore

_MAGIC = b"KOINON\r\n"
_FORMAT_VERSION = 1
_PREAMBLE = struct.Struct("<8sIQ")
_ALIGNMENT = 64
_DIGEST_SIZE = hashlib.sha256().digest_size
_MAX_HEADER_SIZE = 8 * 2**20


def pytree_to_bytes(tree: Any, *, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Writes a pytree of arrays as one self-contained, checksummed byte string.

    Leaves may be JAX and NumPy arrays of any numeric dtype (bfloat16 and the 8-bit floats too), typed PRNG keys, and
    Python's bool, int, float, complex and str. Containers are those of JAX: dicts, lists, tuples, NamedTuples, and
    registered classes, of which the field names are kept, not the class.

    Args:
      tree: the pytree.
      metadata: names and JSON values to keep beside it; `pytree_from_bytes` does not return them.

    Returns:
      The bytes; equal trees give equal bytes.

    Raises:
      UnsupportedTypeError: if a leaf is of another kind; the message has its path.

    Example:
      >>> import numpy as np
      >>> data = pytree_to_bytes({"w": np.ones(2, np.float32), "step": 3})
      >>> pytree_from_bytes(data)
      {'step': 3, 'w': array([1., 1.], dtype=float32)}
    """
    return b"".join(container_chunks(tree, metadata))


def pytree_from_bytes(data: Any, like: Any = None) -> Any:
    """Reads a pytree that `pytree_to_bytes` has written.

    Args:
      data: a bytes-like object.
      like: a pytree with the structure, shapes and dtypes to expect; leaves may be `jax.ShapeDtypeStruct`s. Its
        containers are those of the result, and a leaf comes back as what `like` has there: a JAX array, a NumPy
        array, or a Python scalar. Fields are matched by name.

    Returns:
      The pytree; without `like`, nested dicts and lists of NumPy arrays.

    Raises:
      ProgramStateCorruptedError: if `data` is no container, or any bit of it was changed.
      ProgramStateStructureError: if the container holds something else than `like`.
    """
    _, tree = decode_container(data, like)
    return tree


def container_chunks(tree: Any, metadata: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """The bytes of a container, piece by piece, so that a large state is not copied to be written."""
    values: list[tuple[str, Any]] = []
    node = flatten(wait_for_values(tree), values)
    leaves = [encode_leaf(value, path) for path, value in values]
    entries, offset = [], 0
    for entry, buffer in leaves:
        if buffer is not None:
            entry = {**entry, "offset": offset, "nbytes": buffer.nbytes}
            offset += _padded(buffer.nbytes)
        entries.append(entry)
    header = _canonical_json({"leaves": entries, "metadata": dict(metadata or {}), "tree": node})
    if len(header) > _MAX_HEADER_SIZE:
        raise ValueError(
            f"A container's header may have {_MAX_HEADER_SIZE} bytes, and this one has {len(header)}: "
            f"{len(entries)} leaves are too many; stack them into fewer arrays."
        )
    digest = hashlib.sha256()
    start = _PREAMBLE.pack(_MAGIC, _FORMAT_VERSION, len(header)) + header
    pieces = [(start, len(start)), *((buffer, buffer.nbytes) for _, buffer in leaves if buffer is not None)]
    for piece, size in pieces:
        padding = bytes(_padded(size) - size)
        digest.update(piece)
        digest.update(padding)
        yield piece
        yield padding
    yield digest.digest()


def decode_container(data: Any, like: Any = None) -> tuple[dict[str, Any], Any]:
    """Reads a container; returns its metadata and its tree, as `pytree_from_bytes` does."""
    view = memoryview(data).cast("B")
    header, body = _checked_header(view)
    leaves = [_leaf_at(body, entry) for entry in header["leaves"]]
    tree = nest(header["tree"], leaves) if like is None else restore(header["tree"], leaves, wait_for_values(like))
    return header["metadata"], tree


def _checked_header(view: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Checks a container as far as possible without allocating what it declares; returns its header and buffers."""
    if len(view) < _PREAMBLE.size + _DIGEST_SIZE:
        raise _corrupted("it is shorter than the shortest container", f"{len(view)} bytes")
    magic, version, header_size = _PREAMBLE.unpack_from(view)
    if magic != _MAGIC:
        raise _corrupted("it does not start like a container", repr(magic))
    content = view[:-_DIGEST_SIZE]
    if header_size > min(_MAX_HEADER_SIZE, len(content) - _PREAMBLE.size):
        raise _corrupted("its header is longer than the container or than is allowed", f"{header_size} bytes")
    if hashlib.sha256(content).digest() != bytes(view[-_DIGEST_SIZE:]):
        raise _corrupted("its contents do not have the SHA-256 digest at its end")
    if version != _FORMAT_VERSION:
        raise _corrupted(f"this koinon reads format version {_FORMAT_VERSION}", f"version {version}")
    header_end = _PREAMBLE.size + header_size
    header = _parsed(bytes(content[_PREAMBLE.size : header_end]))
    body_start = _padded(header_end)
    if len(content) < body_start or any(content[header_end:body_start]):
        raise _corrupted("the padding after its header is not zero")
    body = content[body_start:]
    _check_layout(header, len(body))
    return header, body


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("ascii"))
        # Equality with the canonical form excludes repeated names, other spellings of numbers, NaN and extra space.
        canonical = _canonical_json(header) == text
    except (ValueError, RecursionError) as error:
        raise _corrupted("its header is not canonical JSON", type(error).__name__) from None
    if not canonical or not isinstance(header, dict) or set(header) != {"leaves", "metadata", "tree"}:
        raise _corrupted("its header is not canonical JSON with leaves, metadata and tree")
    return header


def _check_layout(header: dict[str, Any], body_size: int) -> None:
    if not isinstance(header["leaves"], list) or not isinstance(header["metadata"], dict):
        raise _corrupted("its header is not laid out as a container's")
    end = 0
    for index, entry in enumerate(header["leaves"]):
        problem = check_header_leaf(entry)
        if problem is None and "nbytes" in entry:
            # In Python integers: what a malicious header declares must not overflow to something small.
            size = math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
            if entry["nbytes"] != size or entry["offset"] != end:
                problem = "does not lie where its shape, its dtype and its predecessors put it"
            end += _padded(size)
        if problem is not None:
            raise _corrupted(f"its leaf {index} {problem}", json.dumps(entry)[:200])
    if end != body_size:
        raise _corrupted("its leaves do not fill it", f"{end} bytes declared, {body_size} present")
    if (problem := check_node(header["tree"], len(header["leaves"]))) is not None:
        raise _corrupted(f"its tree {problem}")


def _leaf_at(body: memoryview, entry: dict[str, Any]) -> Leaf:
    buffer = None
    if "nbytes" in entry:
        start, size = entry["offset"], entry["nbytes"]
        buffer = np.frombuffer(body, np.uint8, size, start) if size else np.zeros(0, np.uint8)
    try:
        return decode_leaf(entry, buffer)
    except ValueError as error:
        raise _corrupted(f"a leaf cannot be read: {error}") from None


def _canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _corrupted(why: str, found: str | None = None) -> ProgramStateCorruptedError:
    return ProgramStateCorruptedError(f"The container is damaged or is none: {why}.", found=found)
