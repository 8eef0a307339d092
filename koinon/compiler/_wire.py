"""The frame of a serialized computation: what is where, how long it is, and a digest over everything.

    offset  bytes
         0      8  magic: 0x89, "KOINON", a newline
         8      4  version of the format; all numbers are unsigned and little-endian
        12      4  length of the header
        16      8  length of the whole
        24         header: JSON in ASCII, keys sorted, no white space, no fractions; "blobs" has the length of each blob
                   blobs, back to back
       -32     32  SHA-256 of everything before

Magic, lengths and digest mean the same in every version, and are checked before anything else is read, so that damage
is told from novelty. The digest protects against damage, not against an author: who can write a file can sign it with
its digest. So everything behind the digest is read as if an adversary had written it, too.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from koinon._errors import KoinonTypeError, SerializationError

MAGIC = b"\x89KOINON\n"
VERSION = 1
MAX_HEADER = 4 * 2**20
_PREFIX = struct.Struct("<8sIIQ")
HEADER_OFFSET = _PREFIX.size
_DIGEST = hashlib.sha256().digest_size


def refuse(
    what: str, *, at: int | str, expected: object = None, found: object = None, hint: str | None = None
) -> NoReturn:
    """Raises the error of bytes that cannot be loaded.

    Args:
      what: the reason, one sentence.
      at: the offset at which reading stopped, or the path of what is wrong inside the header.
      expected: what would have been right.
      found: what there is.
      hint: what to do.
    """
    place = f"byte {at}" if isinstance(at, int) else f"{at} in the header, which starts at byte {HEADER_OFFSET}"
    raise SerializationError(what, expected=expected, found=found, differs=place, hint=hint)


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def pack(header: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:
    """A header and blobs as one framed sequence of bytes."""
    text = canonical_json({**header, "blobs": [len(blob) for blob in blobs]})
    if len(text) > MAX_HEADER:
        raise SerializationError(
            "A computation is too large to be serialized.",
            expected=f"a header of at most {MAX_HEADER} bytes",
            found=f"{len(text)} bytes",
            hint="use fewer and larger arrays, for example one array for all layers of a kind",
        )
    total = HEADER_OFFSET + len(text) + sum(map(len, blobs)) + _DIGEST
    body = b"".join([_PREFIX.pack(MAGIC, VERSION, len(text), total), text, *blobs])
    return body + hashlib.sha256(body).digest()


def fingerprint_of(data: bytes) -> str:
    """The digest of a serialized computation, in hexadecimal."""
    return data[-_DIGEST:].hex()


def unpack(data: bytes | bytearray | memoryview) -> tuple[dict[str, Any], list[memoryview]]:
    """The header and the blobs of framed bytes.

    Raises:
      SerializationError: where the bytes are no computation, are damaged, or come from another version.
      KoinonTypeError: where `data` is not made of bytes.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise KoinonTypeError("Only bytes can be deserialized.", expected="bytes", found=type(data).__name__)
    view = memoryview(data).cast("B")
    header_end = _check_frame(view)
    header = _read_header(bytes(view[HEADER_OFFSET:header_end]))
    blobs, position, end = [], header_end, len(view) - _DIGEST
    for i, size in enumerate(header.pop("blobs")):
        if size > end - position:
            refuse("A blob reaches past the end.", at=f"blobs[{i}]", expected=f"at most {end - position}", found=size)
        blobs.append(view[position : position + size])
        position += size
    if position != end:
        refuse("There are bytes that belong to nothing.", at=position, found=f"{end - position} bytes")
    return header, blobs


def _check_frame(view: memoryview) -> int:
    """The end of the header, once the bytes are known to be whole and of this version."""
    if bytes(view[: len(MAGIC)]) != MAGIC[: len(view)]:
        refuse("The bytes are not a serialized computation.", at=0, expected=MAGIC, found=bytes(view[: len(MAGIC)]))
    if len(view) < HEADER_OFFSET + _DIGEST:
        refuse("The computation is truncated.", at=len(view), expected=f"at least {HEADER_OFFSET + _DIGEST} bytes")
    _, version, header_size, total = _PREFIX.unpack_from(view)
    if total != len(view):
        what = "is truncated" if len(view) < total else "has bytes after its end"
        refuse(
            f"The computation {what}.", at=min(len(view), total), expected=f"{total} bytes", found=f"{len(view)} bytes"
        )
    if header_size > MAX_HEADER:
        refuse("The header is too large.", at=len(MAGIC) + 4, expected=f"at most {MAX_HEADER}", found=header_size)
    if hashlib.sha256(view[:-_DIGEST]).digest() != bytes(view[-_DIGEST:]):
        refuse("The computation is damaged: its digest does not match.", at=len(view) - _DIGEST)
    if version != VERSION:
        refuse(
            "The computation was serialized in a version of the format that is not known here.",
            at=len(MAGIC),
            expected=VERSION,
            found=version,
            hint="use the version of koinon that wrote it, or serialize it again",
        )
    room = len(view) - HEADER_OFFSET - _DIGEST
    if header_size > room:
        refuse("The header reaches past the end.", at=len(MAGIC) + 4, expected=f"at most {room}", found=header_size)
    return HEADER_OFFSET + header_size


def _read_header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("ascii"))
        canonical = canonical_json(header)
    except (ValueError, RecursionError) as error:
        refuse(f"The header is no JSON: {error}.", at=HEADER_OFFSET)
    if canonical != text:
        refuse("The header is not in canonical form.", at=HEADER_OFFSET)
    if not isinstance(header, dict):
        refuse("The header is no object.", at=HEADER_OFFSET, found=type(header).__name__)
    sizes = header.get("blobs")
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        refuse("The lengths of the blobs are no list of numbers.", at="blobs")
    return header
