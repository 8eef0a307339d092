"""Compressors that send each number in a few bits."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon._jax import extremes
from koinon.aggregators._compressor import Compressor, pack_codes, unpack_codes
from koinon.aggregators._norms import global_inf_norm, global_l2_norm


class UniformMessage(NamedTuple):
    """What `UniformQuantizer` sends.

    Attributes:
      codes: the packed codes.
      low: float32, what the code 0 stands for.
      high: float32, what the largest code stands for.
    """

    codes: Any
    low: Any
    high: Any


class NormMessage(NamedTuple):
    """What `QSGDQuantizer` sends.

    Attributes:
      codes: the packed codes.
      norm: float32, the norm of the vector.
    """

    codes: Any
    norm: Any


@final
class UniformQuantizer(Compressor):
    """Each number as one of `2 ** bits` levels between the least and the greatest of its vector.

        L = 2^bits - 1;   t = (x - min) / (max - min) * L
        code = floor(t) + (1 with probability t - floor(t), else 0),  or t rounded to the nearest, if not stochastic
        decoded: min + code / L * (max - min)

    Stochastic rounding is unbiased; the variance of a number is at most `((max - min) / L)^2 / 4`. Rounding to the
    nearest errs by at most half a level. The least and the greatest number are exact, and so is a constant vector.

    A message of `n` numbers has `ceil(n * bits / 8) + 8` bytes: the codes, and two floats.

    Args:
      bits: bits per number, 1 to 16.
      stochastic: whether rounding is random and unbiased; otherwise it is to the nearest level.

    Raises:
      ValueError: if `bits` is another number.
      TypeError: if `stochastic` is not a bool.

    References:
      Suresh et al., Distributed Mean Estimation with Limited Communication, ICML 2017, section 2.2.
      https://arxiv.org/abs/1611.00429

    Example:
      >>> import jax, jax.numpy as jnp, koinon as ko
      >>> quantizer = ko.aggregators.UniformQuantizer(2, stochastic=False)  # levels 0, 1, 2, 3
      >>> message = quantizer.encode(jnp.array([0.0, 1.2, 3.0]), jax.random.key(0))
      >>> quantizer.decode(message, 3).tolist(), quantizer.num_bytes(3)
      ([0.0, 1.0, 3.0], 9)
    """

    def __init__(self, bits: int = 8, stochastic: bool = True) -> None:
        _check_bits(bits, 1)
        if not isinstance(stochastic, bool):
            raise KoinonTypeError("`stochastic` must be a bool.", found=repr(stochastic))
        self._bits = bits
        self._levels = 2**bits - 1
        self.needs_key = stochastic
        self.is_unbiased = stochastic
        # What is kept has a range of at most two levels, or of one: with three levels and more it shrinks.
        self.allows_error_feedback = bits >= 2

    def __repr__(self) -> str:
        return f"UniformQuantizer({self._bits}, stochastic={self.needs_key})"

    def encode(self, vector: jax.Array, key: jax.Array) -> UniformMessage:
        """See `Compressor.encode`."""
        low, high = extremes(vector) if vector.size else (jnp.float32(0.0), jnp.float32(0.0))
        scale = _moderating(jnp.maximum(jnp.abs(low), jnp.abs(high)))
        range_ = high * scale - low * scale
        position = (vector * scale - low * scale) / jnp.where(range_ > 0, range_, 1.0) * self._levels
        codes = jnp.clip(_round(position, key if self.needs_key else None), 0, self._levels)
        return UniformMessage(pack_codes(codes.astype(jnp.uint32), self._bits), low, high)

    def decode(self, message: UniformMessage, size: int) -> jax.Array:
        """See `Compressor.decode`."""
        part = unpack_codes(message.codes, self._bits, size).astype(jnp.float32) / self._levels
        return message.low * (1.0 - part) + message.high * part


@final
class QSGDQuantizer(Compressor):
    """Each number as a sign and one of a few levels between zero and the norm of its vector, as in QSGD.

        s = 2^(bits-1) - 1;   t = |x| / norm * s
        level = floor(t) + (1 with probability t - floor(t), else 0)
        decoded: sign(x) * level / s * norm

    This is unbiased, and zeros are exact, so a vector of many zeros keeps them. With the infinity norm and 2 bits it
    is TernGrad.

    A message of `n` numbers has `ceil(n * bits / 8) + 4` bytes: sign and level of each in `bits` bits, and the norm;
    the paper codes them with fewer bits where most are zero, which is not counted here.

    Args:
      bits: bits per number, 2 to 16, the sign among them.
      norm: `"l2"`, as in the paper, or `"inf"`, which has less variance.

    Raises:
      ValueError: if `bits` is another number, or there is no such norm.

    References:
      Alistarh et al., QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, NeurIPS 2017,
      section 3.1. https://arxiv.org/abs/1610.02132
      Wen et al., TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning, NeurIPS 2017.
      https://arxiv.org/abs/1705.07878

    Example:
      >>> import jax, jax.numpy as jnp, koinon as ko
      >>> quantizer = ko.aggregators.QSGDQuantizer(3)  # levels 0, 1/3, 2/3, 1 of the norm
      >>> message = quantizer.encode(jnp.array([0.0, -2.0, 0.0]), jax.random.key(0))
      >>> quantizer.decode(message, 3).tolist(), quantizer.num_bytes(3)
      ([0.0, -2.0, 0.0], 6)
    """

    needs_key = True
    is_unbiased = True

    def __init__(self, bits: int = 8, norm: Literal["l2", "inf"] = "l2") -> None:
        _check_bits(bits, 2)
        if norm not in ("l2", "inf"):
            raise KoinonValueError("There is no norm of this name.", expected='"l2" or "inf"', found=repr(norm))
        self._bits = bits
        self._levels = 2 ** (bits - 1) - 1
        self._norm = norm
        # By the infinity norm no number errs by more than a level; by the other one, all do at once.
        self.allows_error_feedback = norm == "inf" and bits >= 3

    def __repr__(self) -> str:
        return f"QSGDQuantizer({self._bits}, norm={self._norm!r})"

    def encode(self, vector: jax.Array, key: jax.Array) -> NormMessage:
        """See `Compressor.encode`."""
        norm = global_l2_norm(vector) if self._norm == "l2" else global_inf_norm(vector)
        scale = _moderating(norm)
        level = _round(jnp.abs(vector) * scale / jnp.where(norm > 0, norm * scale, 1.0) * self._levels, key)
        codes = jnp.clip(jnp.sign(vector) * level + self._levels, 0, 2 * self._levels)
        return NormMessage(pack_codes(codes.astype(jnp.uint32), self._bits), norm)

    def decode(self, message: NormMessage, size: int) -> jax.Array:
        """See `Compressor.decode`."""
        codes = unpack_codes(message.codes, self._bits, size).astype(jnp.int32)
        return (codes - self._levels).astype(jnp.float32) / self._levels * message.norm


def _moderating(largest: jax.Array) -> jax.Array:
    """A power of two by which numbers up to this one have moderate exponents.

    So neither a difference of two of them overflows nor the reciprocal of one vanishes, and no digit is lost.
    """
    return jnp.exp2(-jnp.clip(jnp.frexp(largest)[1], -100, 100).astype(jnp.float32))


def _round(position: jax.Array, key: jax.Array | None) -> jax.Array:
    """Numbers that are not negative, rounded at random without bias, or to the nearest if there is no key."""
    below = jnp.floor(position)
    # The fraction is exact, where adding a random number to a large position would round.
    limit = 0.5 if key is None else jax.random.uniform(key, position.shape)
    return below + (position - below > limit)


def _check_bits(bits: object, least: int) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool) or not least <= bits <= 16:
        raise KoinonValueError(f"`bits` must be an int from {least} to 16.", found=repr(bits))
