"""What makes a compressor: how a client sends a vector of floats in fewer bytes."""

from __future__ import annotations

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.types import TensorType


class Compressor(abc.ABC):
    """A way to send a vector of floats in fewer bytes: a message is made at the client, and read at the server.

    A compressor has options and no state. Both methods are traced by JAX; the message is any pytree of arrays whose
    shapes depend on the size of the vector alone, and the bytes of these arrays are what is counted as sent. Nothing
    is assumed of entropy coding or of a transport that compresses.

    Attributes:
      needs_key: whether `encode` draws random numbers.
      is_unbiased: whether the mean over these draws of what is decoded is the vector that was encoded.
      allows_error_feedback: whether what a client did not send, and adds to what it sends the next time, stays bounded.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> class Half(ko.aggregators.Compressor):
      ...     allows_error_feedback = True
      ...     def encode(self, vector, key):
      ...         return vector.astype(jnp.float16)
      ...     def decode(self, message, size):
      ...         return message.astype(jnp.float32)
      >>> Half().num_bytes(10)
      20
    """

    needs_key: bool = False
    is_unbiased: bool = False
    allows_error_feedback: bool = False

    @abc.abstractmethod
    def encode(self, vector: jax.Array, key: jax.Array) -> Any:
        """The message of a client.

        Args:
          vector: float32 `[size]`.
          key: a PRNG key of this client, this round and this vector, if `needs_key`; otherwise some key.
        """

    @abc.abstractmethod
    def decode(self, message: Any, size: int) -> jax.Array:
        """The vector that a message stands for, float32 `[size]`.

        Args:
          message: what `encode` returned.
          size: the size of the vector.
        """

    def num_bytes(self, size: int) -> int:
        """How many bytes the message of a vector of this size has."""
        vector, key = jax.ShapeDtypeStruct((size,), jnp.float32), jax.eval_shape(jax.random.key, 0)
        return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(jax.eval_shape(self.encode, vector, key)))


def leaf_bytes(leaf: Any) -> int:
    """How many bytes an array has, of which the shape and the dtype are known; a PRNG key those of its words."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def key_type() -> TensorType:
    """The type of a PRNG key."""
    return TensorType(jax.eval_shape(jax.random.key, 0).dtype)


def check_compressor(compressor: object, label: str = "compressor") -> None:
    """Raises a TypeError unless an argument is a `Compressor`."""
    if not isinstance(compressor, Compressor):
        raise KoinonTypeError(
            f"`{label}` must be a compressor.",
            expected="Compressor",
            found=f"{type(compressor).__qualname__} {compressor!r}",
            hint="pass for example `UniformQuantizer(8)`, made already, not its class",
        )


def check_count(value: object, label: str, least: int) -> None:
    """Raises a ValueError unless a number is an int that is large enough."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise KoinonValueError(f"`{label}` must be an int of at least {least}.", found=repr(value))


def pack_codes(codes: jax.Array, bits: int) -> jax.Array:
    """Codes of so many bits in as few bytes as hold them, the first code in the lowest bits.

    Args:
      codes: unsigned integers below `2 ** bits`.
      bits: 1 to 16.

    Returns:
      uint8, or uint16 for 16 bits.
    """
    if bits in (8, 16):
        return codes.astype(jnp.uint8 if bits == 8 else jnp.uint16)
    num_bytes = -(-codes.shape[0] * bits // 8)
    # So many codes fill whole bytes.
    group = 8 // math.gcd(bits, 8)
    rows = jnp.pad(codes.astype(jnp.uint32), (0, -codes.shape[0] % group)).reshape(-1, group)
    if bits < 8 and 8 % bits == 0:
        return jnp.sum(rows << np.arange(0, 8, bits, dtype=np.uint32), axis=1, dtype=jnp.uint32).astype(jnp.uint8)
    ones = (rows[:, :, None] >> np.arange(bits, dtype=np.uint32)) & 1
    packed = jnp.sum(ones.reshape(-1, 8) << np.arange(8, dtype=np.uint32), axis=1, dtype=jnp.uint32)
    return packed.astype(jnp.uint8)[:num_bytes]


def unpack_codes(packed: jax.Array, bits: int, size: int) -> jax.Array:
    """The codes that `pack_codes` packed, uint32 `[size]`."""
    words = packed.astype(jnp.uint32)
    if bits in (8, 16):
        return words
    if bits < 8 and 8 % bits == 0:
        codes = (words[:, None] >> np.arange(0, 8, bits, dtype=np.uint32)) & np.uint32(2**bits - 1)
        return codes.ravel()[:size]
    group = 8 // math.gcd(bits, 8)
    words = jnp.pad(words, (0, -(-size // group) * group * bits // 8 - words.shape[0]))
    ones = ((words[:, None] >> np.arange(8, dtype=np.uint32)) & 1).reshape(-1, bits)
    return jnp.sum(ones << np.arange(bits, dtype=np.uint32), axis=1, dtype=jnp.uint32)[:size]
