"""Compressors that send few of the numbers, and nothing for the others."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators._compressor import Compressor, check_compressor

_LEAST_NORMAL = 1 << 23  # the bit pattern of the least normal positive float32
_NUM_NORMAL = 254 << 23  # how many there are up to the largest finite one


class SparseMessage(NamedTuple):
    """What `TopKSparsifier` sends.

    Attributes:
      values: float32 `[k]`, or the message of a compressor for them.
      indices: where they stand, uint16 `[k]`, or uint32 in vectors of more than 65536 numbers.
    """

    values: Any
    indices: Any


class SampledMessage(NamedTuple):
    """What `RandomKSparsifier` sends.

    Attributes:
      values: float32 `[k]`, or the message of a compressor for them.
      key: a PRNG key, of which the server draws where they stand, as the client did.
    """

    values: Any
    key: Any


class _Sparsifier(Compressor):
    """What the two share: how many numbers are sent, and how these numbers are."""

    def __init__(self, fraction: float, values: Compressor | None) -> None:
        if not isinstance(fraction, float):
            raise KoinonTypeError("`fraction` must be a float.", found=repr(fraction), hint="write 0.01")
        if not 0.0 < fraction <= 1.0:
            raise KoinonValueError("`fraction` must be in (0, 1].", found=fraction)
        if values is not None:
            check_compressor(values, "values")
        self._fraction = fraction
        self._values = values

    def count(self, size: int) -> int:
        """How many numbers of a vector of this size are sent: the fraction of them, and at least one."""
        return min(size, max(1, round(self._fraction * size)))

    def _encode_values(self, values: jax.Array, key: jax.Array) -> Any:
        return values if self._values is None else self._values.encode(values, key)

    def _decode_values(self, message: Any, size: int) -> jax.Array:
        return message if self._values is None else self._values.decode(message, self.count(size))


@final
class TopKSparsifier(_Sparsifier):
    """The numbers of the largest absolute values, and where they stand.

    This is biased: small numbers are never sent. With error feedback, `koinon.learning.error_feedback_aggregator`,
    what was not sent is kept at the client and added the next time, so that nothing is lost.

    A message of `k` of `n` numbers has `4 k` bytes for the numbers, or those of the compressor of the values, and `2 k`
    for where they stand, `4 k` if `n` is above 65536.

    Args:
      fraction: how many of the numbers of a vector are sent, in (0, 1]; always at least one.
      values: compresses the numbers that are sent; as they are if None.

    Raises:
      TypeError: if the fraction is not a float, or `values` no compressor.
      ValueError: if the fraction is out of its range.

    References:
      Stich, Cordonnier, Jaggi: Sparsified SGD with Memory, NeurIPS 2018. https://arxiv.org/abs/1809.07599

    Example:
      >>> import jax, jax.numpy as jnp, koinon as ko
      >>> sparsifier = ko.aggregators.TopKSparsifier(0.5)
      >>> message = sparsifier.encode(jnp.array([0.1, -3.0, 2.0, 0.5]), jax.random.key(0))
      >>> sparsifier.decode(message, 4).tolist(), sparsifier.num_bytes(4)
      ([0.0, -3.0, 2.0, 0.0], 12)
    """

    def __init__(self, fraction: float, values: Compressor | None = None) -> None:
        super().__init__(fraction, values)
        self.needs_key = values is not None and values.needs_key
        self.allows_error_feedback = values is None or values.allows_error_feedback

    def __repr__(self) -> str:
        return f"TopKSparsifier({self._fraction}, values={self._values!r})"

    def encode(self, vector: jax.Array, key: jax.Array) -> SparseMessage:
        """See `Compressor.encode`."""
        _, indices = jax.lax.top_k(jnp.abs(vector), self.count(vector.size))
        # In ascending order the indices do not tell which numbers are the largest; of equal ones the first is taken.
        indices = jnp.sort(indices)
        values = self._encode_values(vector[indices], key)
        return SparseMessage(values, indices.astype(jnp.uint16 if vector.size <= 2**16 else jnp.uint32))

    def decode(self, message: SparseMessage, size: int) -> jax.Array:
        """See `Compressor.decode`."""
        values = self._decode_values(message.values, size)
        return jnp.zeros((size,), jnp.float32).at[message.indices.astype(jnp.int32)].set(values)


@final
class RandomKSparsifier(_Sparsifier):
    """Numbers at random places, which the server draws from the same key.

    Scaled by `n / k`, this is unbiased: each of the `n` numbers is among the `k` equally often. For error feedback the
    numbers must be sent unscaled, so that what is kept does not grow.

    A message of `k` numbers has `4 k + 8` bytes, or those of the compressor of the values and 8: the numbers, and the
    key.

    Args:
      fraction: how many of the numbers of a vector are sent, in (0, 1]; always at least one.
      unbiased: whether the numbers are scaled.
      values: compresses the numbers that are sent; as they are if None.

    Raises:
      TypeError: if the fraction is not a float, `unbiased` not a bool, or `values` no compressor.
      ValueError: if the fraction is out of its range.

    References:
      Konečný et al., Federated Learning: Strategies for Improving Communication Efficiency, 2016, section 3, on
      random masks. https://arxiv.org/abs/1610.05492

    Example:
      >>> import jax, jax.numpy as jnp, koinon as ko
      >>> sparsifier = ko.aggregators.RandomKSparsifier(0.25)
      >>> message = sparsifier.encode(jnp.ones(8), jax.random.key(0))
      >>> sorted(sparsifier.decode(message, 8).tolist()), sparsifier.num_bytes(8)
      ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 4.0], 16)
    """

    needs_key = True

    def __init__(self, fraction: float, unbiased: bool = True, values: Compressor | None = None) -> None:
        super().__init__(fraction, values)
        if not isinstance(unbiased, bool):
            raise KoinonTypeError("`unbiased` must be a bool.", found=repr(unbiased))
        self._is_scaled = unbiased
        self.is_unbiased = unbiased and (values is None or values.is_unbiased)
        self.allows_error_feedback = not unbiased and (values is None or values.allows_error_feedback)

    def __repr__(self) -> str:
        return f"RandomKSparsifier({self._fraction}, unbiased={self._is_scaled}, values={self._values!r})"

    def encode(self, vector: jax.Array, key: jax.Array) -> SampledMessage:
        """See `Compressor.encode`."""
        places_key, values_key = jax.random.split(key)
        values = vector[self._places(places_key, vector.size)]
        return SampledMessage(self._encode_values(values, values_key), places_key)

    def decode(self, message: SampledMessage, size: int) -> jax.Array:
        """See `Compressor.decode`."""
        values = self._decode_values(message.values, size)
        scale = size / max(self.count(size), 1) if self._is_scaled else 1.0
        return jnp.zeros((size,), jnp.float32).at[self._places(message.key, size)].set(values * scale)

    def _places(self, key: jax.Array, size: int) -> jax.Array:
        # The largest of so many random numbers. They are spread over the bit patterns of the normal positive floats,
        # which are in the order of these floats: XLA finds the largest of floats much faster than it permutes.
        patterns = jnp.uint32(_LEAST_NORMAL) + jax.random.bits(key, (size,), jnp.uint32) % jnp.uint32(_NUM_NORMAL)
        return jax.lax.top_k(jax.lax.bitcast_convert_type(patterns, jnp.float32), self.count(size))[1]
