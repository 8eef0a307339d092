"""Vectors of integers modulo a number, and masks for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from koinon._errors import KoinonTypeError, SecureMessageError, SecureSumRangeError
from koinon.secure._crypto import Stream

# The sum of two residues must fit uint64.
LARGEST_MODULUS = 2**63


def add(left: np.ndarray, right: np.ndarray, modulus: int) -> np.ndarray:
    """The sum of two vectors of residues."""
    total = left + right
    return np.where(total >= modulus, total - np.uint64(modulus), total)


def subtract(left: np.ndarray, right: np.ndarray, modulus: int) -> np.ndarray:
    """The difference of two vectors of residues."""
    return np.where(left >= right, left - right, left + (np.uint64(modulus) - right))


def expand(key: bytes, modulus: int, length: int) -> np.ndarray:
    """A vector of residues that is uniform to whoever does not know the key.

    The words of the stream that are not below the modulus, cut to its bits, are left out, so that every residue is
    exactly as likely as every other.

    Args:
      key: 32 bytes, used for nothing else.
      modulus: from 1 to `LARGEST_MODULUS`.
      length: how many.
    """
    stream = Stream(key)
    bits = (modulus - 1).bit_length()
    word = np.dtype("<u4" if bits <= 32 else "<u8")
    mask = word.type(2**bits - 1)
    found, missing = [np.zeros(0, np.uint64)], length
    while missing > 0:
        words = np.frombuffer(stream.read(missing * word.itemsize), word) & mask
        kept = words[words < modulus] if modulus < 2**bits else words
        found.append(kept.astype(np.uint64))
        missing -= len(kept)
    return np.concatenate(found)


def to_residues(values: Any, max_input: int, length: int) -> np.ndarray:
    """A client's vector as uint64.

    Raises:
      KoinonTypeError: it is no vector of integers, or of another length.
      SecureSumRangeError: an integer is out of the range.
    """
    array = np.asarray(values)
    is_integers = array.dtype.kind in "iu" or (array.dtype == object and all(isinstance(v, int) for v in array.flat))
    if array.shape != (length,) or not (is_integers or array.size == 0):
        raise KoinonTypeError(
            "A client brings a vector of integers to a secure sum.",
            expected=f"{length} integers",
            found=f"{array.dtype} of the shape {array.shape}",
            hint="flatten and quantize the values",
        )
    if array.size and (int(array.min()) < 0 or int(array.max()) > max_input):
        raise SecureSumRangeError(
            "A client's integer is outside the range of the secure sum.",
            expected=f"integers from 0 to {max_input}",
            found=f"from {int(array.min())} to {int(array.max())}",
            hint="clip the values before they are summed",
        )
    return array.astype(np.uint64)


def to_wire(residues: np.ndarray, modulus: int) -> bytes:
    """Residues as little-endian integers of as many bytes as the modulus needs."""
    return residues.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : width(modulus)].tobytes()


def from_wire(data: bytes, modulus: int, length: int) -> np.ndarray:
    """The residues that `to_wire` wrote.

    Raises:
      SecureMessageError: there are more or fewer, or one is not below the modulus.
    """
    if len(data) != length * width(modulus):
        raise SecureMessageError(
            "A masked vector has another length than the sum.",
            expected=f"{length * width(modulus)} bytes",
            found=f"{len(data)} bytes",
        )
    padded = np.zeros((length, 8), np.uint8)
    padded[:, : width(modulus)] = np.frombuffer(data, np.uint8).reshape(length, -1)
    residues = padded.reshape(-1).view("<u8").astype(np.uint64)
    if int(residues.max()) >= modulus:
        raise SecureMessageError("A masked vector has a number that is not below the modulus.", expected=f"< {modulus}")
    return residues


def width(modulus: int) -> int:
    """How many bytes a residue takes on the wire."""
    return ((modulus - 1).bit_length() + 7) // 8
