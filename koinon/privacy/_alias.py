"""Tables from which a distribution on the integers is drawn by integer operations, in the same time for every value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from decimal import Decimal, localcontext
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

WORDS_PER_DRAW = 3
_THRESHOLD_BITS = 64
_DIGITS = 60


@dataclasses.dataclass(frozen=True, eq=False)
class AliasTable:
    """An alias table: a slot is chosen uniformly, and gives its own value or that of another slot.

    Attributes:
      first: the value of slot 0; slot `i` has the value `first + i`.
      threshold: for each slot, which of the 2**64 outcomes of a second choice leave its own value, as uint32 halves.
      other: for each slot, the slot whose value it gives else.
    """

    first: int
    threshold: tuple[np.ndarray, np.ndarray]
    other: np.ndarray

    @property
    def index_bits(self) -> int:
        """The binary logarithm of the number of slots."""
        return len(self.other).bit_length() - 1

    def draw(self, words: jax.Array) -> jax.Array:
        """Draws from uniform random words, uint32 of shape `(3, ...)`; int32 of shape `(...)`.

        No random bit is used twice.
        """
        if self.index_bits:
            slot = (words[0] >> (32 - self.index_bits)).astype(jnp.int32)
        else:
            slot = jnp.zeros(words.shape[1:], jnp.int32)
        high, low = (jnp.asarray(half)[slot] for half in self.threshold)
        is_own = (words[1] < high) | ((words[1] == high) & (words[2] < low))
        return jnp.where(is_own, slot, jnp.asarray(self.other)[slot]) + self.first

    def probabilities(self) -> list[Fraction]:
        """The exact probability of each value, from `first` on."""
        slots = len(self.other)
        units = [0] * slots
        for slot, (high, low, other) in enumerate(zip(*self.threshold, self.other, strict=True)):
            own = (int(high) << 32) | int(low)
            units[slot] += own
            units[int(other)] += (1 << _THRESHOLD_BITS) - own
        return [Fraction(unit, slots << _THRESHOLD_BITS) for unit in units]


def alias_table(weights: Sequence[Decimal], first: int) -> AliasTable:
    """The table of the values `first`, `first + 1`, ... with these weights.

    Each probability is a multiple of `1 / (slots * 2**64)`; the total variation distance to the weights is below
    2**-64.

    References:
      A. J. Walker: An Efficient Method for Generating Discrete Random Variables with General Distributions, 1977.
      https://doi.org/10.1145/355744.355749
    """
    slots = 1 << (len(weights) - 1).bit_length()
    units = _units([*weights, *[Decimal(0)] * (slots - len(weights))], slots << _THRESHOLD_BITS)
    full = 1 << _THRESHOLD_BITS
    own, other = list(units), list(range(slots))
    small = [slot for slot, unit in enumerate(units) if unit < full]
    large = [slot for slot, unit in enumerate(units) if unit > full]
    while small:
        slot, giver = small.pop(), large[-1]
        other[slot] = giver
        own[giver] -= full - own[slot]
        if own[giver] <= full:
            large.pop()
            if own[giver] < full:
                small.append(giver)
    # A slot that keeps all 2**64 outcomes is its own other, so that the largest threshold fits 64 bits.
    own = [min(unit, full - 1) for unit in own]
    high, low = (np.array([unit >> shift & 0xFFFFFFFF for unit in own], np.uint32) for shift in (32, 0))
    return AliasTable(first, (high, low), np.array(other, np.int32))


def _units(weights: list[Decimal], total: int) -> list[int]:
    """Integers in proportion to the weights that add up to `total`; what rounding leaves goes to the largest."""
    with localcontext() as context:
        context.prec = _DIGITS
        scale = Decimal(total) / sum(weights, Decimal(0))
        units = [int(weight * scale) for weight in weights]
    units[max(range(len(units)), key=units.__getitem__)] += total - sum(units)
    return units
