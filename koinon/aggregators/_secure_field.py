"""The integers that secure sums are made of: how values become them, and how many clients they are enough for.

A float is a signed number of steps, of at most 32 bits, and a sum of such needs up to 62. It is computed by two modular
sums, modulo 2**31 and modulo 2**31 - 1. Together they determine the sum, by the Chinese remainder theorem, and tell
nothing else; sums of its digits would. Since 2**31 is 1 modulo 2**31 - 1, putting it together takes one subtraction.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError, SecureSumFieldError

LOW_MODULUS = np.uint32(2**31)
HIGH_MODULUS = np.uint32(2**31 - 1)
STEP_BITS = 32
# The field is split in two halves, for sums of either sign.
_FIELD_BITS = 62
MOST_CLIENTS_OF_FLOATS = (2**61 - 2**31) // 2**STEP_BITS
MOST_CLIENTS = 2**31 - 1


# --- floats ----------------------------------------------------------------------------------------------------------


def to_residues(value: jax.Array, lower: jax.Array, upper: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A finite float, clipped to a range, in steps from the point of the range that is closest to zero.

    Returns:
      The number of steps modulo the two moduli, uint32 of the shape of the value.
    """
    origin, exponent = _grid(lower, upper)
    distance = jnp.clip(value, lower, upper) - origin
    # Scaling by a power of two is exact, so this rounds once, and a number of 2**23 steps or more not at all.
    steps = jnp.rint(jnp.abs(distance) * _power(-exponent, value.dtype))
    largest = jnp.nextafter(jnp.asarray(2.0**STEP_BITS, value.dtype), jnp.asarray(0.0, value.dtype))
    magnitude = jnp.minimum(steps, jnp.floor(largest)).astype(jnp.uint32)
    low = magnitude & (LOW_MODULUS - np.uint32(1))
    high = _modulo_high((magnitude & HIGH_MODULUS) + (magnitude >> 31))
    is_negative = distance < 0
    low = jnp.where(is_negative & (low > 0), LOW_MODULUS - low, low)
    high = jnp.where(is_negative & (high > 0), HIGH_MODULUS - high, high)
    return low, high


def from_residues(low: jax.Array, high: jax.Array, lower: jax.Array, upper: jax.Array, clients: jax.Array) -> jax.Array:
    """The sum of floats from the sums of their residues over so many clients, in the dtype of the bounds."""
    dtype = lower.dtype
    origin, exponent = _grid(lower, upper)
    is_negative, above, below = signed_sum(low, high)
    # In parts of at most 23 bits, which a float32 holds, so that only the last two additions round.
    middle = ((above & 0x7F) << 14) | (below >> 17)
    total = (below & 0x1FFFF).astype(dtype) + middle.astype(dtype) * 2.0**17
    total = (above >> 7).astype(dtype) * 2.0**38 + total
    return jnp.where(is_negative, -total, total) * _power(exponent, dtype) + clients.astype(dtype) * origin


def signed_sum(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A sum from its residues, for a magnitude below 2**61: whether it is negative, and its magnitude in two parts.

    Returns:
      A bool, and uint32 numbers of which the magnitude is `first * 2**31 + second`.
    """
    # The sum is `low + 2**31 * k` modulo the product of the moduli, and 2**31 is 1 modulo the second.
    reduced = _modulo_high(low)
    k = jnp.where(high >= reduced, high - reduced, high + (HIGH_MODULUS - reduced))
    is_negative = k >= 2**30
    borrow = (low > 0).astype(jnp.uint32)
    above = jnp.where(is_negative, HIGH_MODULUS - k - borrow, k)
    below = jnp.where(is_negative & (low > 0), LOW_MODULUS - low, low)
    return is_negative, above, below


def _modulo_high(number: jax.Array) -> jax.Array:
    """A number of at most `2 * HIGH_MODULUS`, modulo it, once subtracted."""
    return jnp.where(number >= HIGH_MODULUS, number - HIGH_MODULUS, number)


def _grid(lower: jax.Array, upper: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where steps are counted from, and the exponent of two of a step; a range has less than 2**32 of them."""
    half = upper / 2 - lower / 2  # the whole may be more than the dtype holds
    exponent = jnp.frexp(half)[1] + 1 - STEP_BITS
    origin = jnp.clip(jnp.zeros_like(lower), lower, upper)
    return origin, jnp.maximum(exponent, int(jnp.finfo(lower.dtype).minexp))


def _power(exponent: jax.Array, dtype: Any) -> jax.Array:
    return jnp.ldexp(jnp.ones((), dtype), exponent)


# --- integers --------------------------------------------------------------------------------------------------------


def carrier_of(dtype: Any) -> np.dtype:
    """The unsigned dtype in which integers of a dtype are summed, as their distance from the lower bound."""
    return np.dtype(np.uint64 if np.dtype(dtype).itemsize > 4 else np.uint32)


def to_offset(value: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """An integer, clipped to a range, as its distance from the lower bound."""
    carrier = carrier_of(value.dtype)
    # Modulo 2**32 or 2**64, in which the distance is right even where the difference overflows the dtype.
    return jnp.clip(value, lower, upper).astype(carrier) - lower.astype(carrier)


def from_offset(total: jax.Array, lower: jax.Array, clients: jax.Array) -> jax.Array:
    """The sum of integers from that of their distances from the lower bound, in the dtype of the bound."""
    carrier = carrier_of(lower.dtype)
    wrapped = total + clients.astype(carrier) * lower.astype(carrier)
    signed = jax.lax.bitcast_convert_type(wrapped, np.dtype(carrier.name.removeprefix("u")))
    return (signed if jnp.issubdtype(lower.dtype, jnp.signedinteger) else wrapped).astype(lower.dtype)


def capacity(dtype: Any, lower: int, upper: int) -> int:
    """For how many clients with integers in a range the sum fits their dtype, at least 1."""
    return min(max(1, int(np.iinfo(dtype).max) // max(abs(lower), abs(upper), 1)), MOST_CLIENTS)


def capacity_at_run_time(lower: jax.Array, upper: jax.Array) -> jax.Array:
    """As `capacity`, for bounds that are known only at run time; uint32."""
    carrier = carrier_of(lower.dtype)
    zero = jnp.zeros((), carrier)
    magnitudes = [jnp.where(b < 0, zero - b.astype(carrier), b.astype(carrier)).max() for b in (lower, upper)]
    largest = jnp.asarray(np.iinfo(lower.dtype).max, carrier)
    most = largest // jnp.maximum(jnp.maximum(*magnitudes), jnp.ones((), carrier))
    return jnp.clip(most, 1, MOST_CLIENTS).astype(jnp.uint32)


# --- clients ---------------------------------------------------------------------------------------------------------


def share_of(most: Any) -> Any:
    """What each client adds to a sum in int32, such that the sum of more clients than `most` does not fit it.

    Args:
      most: a Python integer, or uint32.
    """
    share = MOST_CLIENTS // most
    return share + (share <= MOST_CLIENTS // (most + 1))


def check_max_clients(max_clients: object) -> None:
    """Raises an error unless this is a positive number of clients, or None."""
    if max_clients is None:
        return
    if not isinstance(max_clients, int) or isinstance(max_clients, bool):
        raise KoinonTypeError("`max_clients` must be an integer.", found=repr(max_clients))
    if max_clients < 1:
        raise KoinonValueError("`max_clients` must be positive.", found=max_clients)


def check_field(most: int, max_clients: int | None, dtype: Any, lower: Any, upper: Any) -> None:
    """Checks that the sum over a cohort fits, before anything runs.

    Args:
      most: for how many clients it does.
      max_clients: the size of the cohort; None for any, so that more than `most` are an error at run time.
      dtype: that of the values.
      lower: their least value.
      upper: their greatest.

    Raises:
      SecureSumFieldError: it does not.
    """
    allowed = MOST_CLIENTS // share_of(most)
    if max_clients is None or max_clients <= allowed:
        return
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        available = f"the {_FIELD_BITS} bits of the field, a sign among them"
        needed = (max_clients * 2**STEP_BITS).bit_length() + 1
    else:
        is_signed = dtype.kind == "i"
        available = f"the {dtype.itemsize * 8} bits of {dtype}" + (", a sign among them" if is_signed else "")
        needed = (max_clients * max(abs(int(lower)), abs(int(upper)))).bit_length() + is_signed
    raise SecureSumFieldError(
        f"The sum over {max_clients} clients does not fit.",
        expected=f"at most {available}",
        found=f"{needed} bits for {max_clients} clients with values from {lower} to {upper}; {allowed} clients are"
        " allowed",
        hint="take a narrower range, fewer clients or a wider dtype",
    )
