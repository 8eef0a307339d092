"""The protocol buffer `tf.train.Example`, read as what is in it: named vectors of numbers, and bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_INT64_BYTES = 10
Feature = np.ndarray | list[bytes]


def parse_example(message: bytes) -> dict[str, Feature]:
    """The features of an example: float32 or int64 vectors, or lists of bytes, by name.

    Args:
      message: an `Example` as TensorFlow serializes it.

    Raises:
      ValueError: if the bytes are no such message.
    """
    features: dict[str, Feature] = {}
    for entry in _submessages(message, 1, 1):
        name, feature = b"", np.zeros(0, np.float32)
        for number, value in _fields(entry):
            if number == 1:
                name = _as_bytes(value)
            elif number == 2:
                feature = _feature(_as_bytes(value))
        features[name.decode("utf-8")] = feature
    return features


def _feature(message: bytes) -> Feature:
    """The one list of a feature; that of a feature without any has no numbers."""
    result: Feature = np.zeros(0, np.float32)
    for kind, content in _fields(message):
        values = [value for number, value in _fields(_as_bytes(content)) if number == 1]
        if kind == _BYTES_LIST:
            result = [_as_bytes(value) for value in values]
        elif kind == _FLOAT_LIST:
            result = np.frombuffer(b"".join(map(_as_bytes, values)), "<f4").astype(np.float32)
        elif kind == _INT64_LIST:
            # Packed, as all writers of today write them, or one by one.
            parts = [np.array([value], np.uint64) if isinstance(value, int) else _varints(value) for value in values]
            result = np.concatenate([np.zeros(0, np.uint64), *parts]).view(np.int64)
    return result


def _submessages(message: bytes, outer: int, inner: int) -> Iterator[bytes]:
    """The fields `inner` of the fields `outer` of a message."""
    for number, value in _fields(message):
        if number == outer:
            yield from (_as_bytes(part) for name, part in _fields(_as_bytes(value)) if name == inner)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in their order: the number of each, and its integer or its bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == _LENGTH_DELIMITED:
            size, at = _varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if at + size > len(message):
            raise ValueError("a field that is longer than what is there")
        yield tag >> 3, message[at : at + size]
        at += size


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("an integer where a message was expected")
    return value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The integer that begins at a position, and the position after it."""
    value = 0
    for i, byte in enumerate(message[at : at + _INT64_BYTES]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & (2**64 - 1), at + i + 1
    raise ValueError("an integer that does not end")


def _varints(packed: bytes) -> np.ndarray:
    """All integers of a packed list, uint64: seven bits of each byte, the lowest first; the last byte is below 128."""
    data = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(data < 0x80) + 1
    if not len(ends):
        if len(data):
            raise ValueError("an integer that does not end")
        return np.zeros(0, np.uint64)
    starts = np.concatenate([[0], ends[:-1]])
    if ends[-1] != len(data) or (ends - starts).max() > _INT64_BYTES:
        raise ValueError("an integer that does not end")
    shifts = 7 * (np.arange(len(data)) - np.repeat(starts, ends - starts))
    return np.add.reduceat((data & 0x7F).astype(np.uint64) << shifts.astype(np.uint64), starts)
