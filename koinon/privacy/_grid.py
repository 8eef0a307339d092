"""Clipping onto an integer grid: what a client sends has at most the clipping norm after its last rounding.

A norm that is computed in float32, and rounding after clipping, can both let a client exceed the sensitivity that its
noise was made for. Here the bound holds for the integers that are sent, as real numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError

# A sum in levels of 32 makes at most 7 * 31 roundings of 2**-24 for 2**35 elements; with the others around it, the
# relative error of a norm is below 2**-16. Four times that is kept between a norm and its bound.
_LEVEL = 32
_MARGIN = 2.0**-14
_ATTEMPTS = 4


class GridPoint(NamedTuple):
    """A vector on the grid.

    Attributes:
      value: int32, in units of the grid.
      is_short: whether the norm of the vector was at most the clipping norm.
    """

    value: jax.Array
    is_short: jax.Array


def to_grid(vector: jax.Array, clip: jax.Array | float, units: int) -> GridPoint:
    """Clips a finite vector to an L2 norm, and rounds it to the nearest point of a grid with `units` steps per norm.

    The norm of the result is at most `units`, whatever the vector: to leave room for rounding, vectors are clipped to
    `units * (1 - 2**-14) - sqrt(d) / 2` steps.

    Args:
      vector: float32[d], finite.
      clip: the clipping norm, positive.
      units: a power of two, at most 2**24.

    Raises:
      KoinonValueError: where the grid is too coarse for so many elements.
    """
    room = math.sqrt(vector.size) / 2
    scaled, is_short = _scaled_to(vector, clip, units, _target(units, room, vector.size))
    return GridPoint(jnp.rint(scaled).astype(jnp.int32), is_short)


def to_grid_at_random(vector: jax.Array, clip: jax.Array | float, units: int, key: jax.Array) -> GridPoint:
    """As `to_grid`, with randomized rounding, which has the right mean where the grid is coarse.

    Each element is rounded up with the probability of its fractional part, and all are rounded anew until the norm is
    at most `units`; after four times, which happens to less than one vector in 100,000, they are rounded toward zero.

    Args:
      vector: float32[d], finite.
      clip: the clipping norm, positive.
      units: the number of steps of the grid in a clipping norm, at most 2**24.
      key: a typed key of JAX.

    References:
      Peter Kairouz, Ziyu Liu, Thomas Steinke: The Distributed Discrete Gaussian Mechanism for Federated Learning with
      Secure Aggregation, 2021, section 4.1 (conditional rounding). https://arxiv.org/abs/2102.06387
    """
    size = vector.size
    # Rounding at random adds at most d / 4 to the mean of the squared norm, with a deviation of about the norm.
    room = units - math.sqrt(max(units**2 - size / 4 - 3 * units - math.sqrt(size), 0.0))
    scaled, is_short = _scaled_to(vector, clip, units, _target(units, room, size))
    low = jnp.floor(scaled)
    fraction = scaled - low
    largest = units * (1.0 - _MARGIN / 2)

    def fails(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        attempt, rounded = carry
        return (attempt < _ATTEMPTS) & (_norm(rounded) > largest)

    def round_again(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        attempt, _ = carry
        uniform = jax.random.uniform(jax.random.fold_in(key, attempt), scaled.shape)
        return attempt + 1, low + (uniform < fraction)

    first = round_again((jnp.int32(0), low))
    _, rounded = jax.lax.while_loop(fails, round_again, first)
    rounded = jnp.where(_norm(rounded) > largest, jnp.trunc(scaled), rounded)
    return GridPoint(rounded.astype(jnp.int32), is_short)


def _target(units: int, room: float, size: int) -> float:
    target = units * (1.0 - _MARGIN) - room
    if not 0 < units <= 2**24 or target < units / 2:
        raise KoinonValueError(
            "The grid is too coarse for a vector of so many elements: rounding alone would take half of the clip.",
            expected=f"more than {math.ceil(math.sqrt(size))} and at most {2**24} steps in a clipping norm",
            found=f"{units} steps, {size} elements",
            hint="give the grid more bits",
        )
    return target


def _scaled_to(vector: jax.Array, clip: jax.Array | float, units: int, target: float) -> tuple[jax.Array, jax.Array]:
    """The vector in steps of the grid, of the norm `target` at most, and whether its norm is at most the clip."""
    # A power of two is exact to scale with, and brings squares into the range of float32.
    exponent = jnp.frexp(jnp.max(jnp.abs(vector), initial=0.0))[1]
    mantissa = jnp.ldexp(vector, -exponent)
    norm = _norm(mantissa)
    wanted = jnp.ldexp(units / jnp.asarray(clip, jnp.float32), exponent)
    factor = jnp.minimum(wanted, target / jnp.where(norm > 0.0, norm, 1.0))
    return mantissa * factor, jnp.ldexp(norm, exponent) <= clip


def _norm(vector: jax.Array) -> jax.Array:
    """The L2 norm in float32, within a factor of `1 +- 2**-16`; elements are at most 2**24, so no square overflows."""
    total = jnp.square(vector)
    while total.size > 1:
        width = min(_LEVEL, total.size)
        total = jnp.pad(total, (0, -total.size % width)).reshape(-1, width).sum(axis=1)
    return jnp.sqrt(total.sum())
