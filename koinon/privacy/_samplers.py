"""Noise on the integers: the discrete Gaussian and the Skellam distribution, drawn from uniform random words.

Floating-point noise betrays what it is added to: a normal number of float32 takes one of 2**23 values, so that most
sums have a bit pattern that no other summand could have given. Noise on a grid on which the summands lie too has no
such side channel.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from decimal import Decimal, localcontext
from fractions import Fraction

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError
from koinon.privacy._alias import WORDS_PER_DRAW, AliasTable, alias_table

_DIGITS = 60
# Values of less weight, relative to the most likely one, are left out; all of them together weigh less than 2**-68.
_NEGLIGIBLE = Decimal(2) ** -72
_LARGEST_TABLE = 1000**2  # the largest variance that is drawn from one table
_STEP, _STEP_DEVIATION = 256, 448  # 448 = 1.75 * 256: see `discrete_gaussian_sampler`
_LARGEST_VARIANCE = 2**54


@dataclasses.dataclass(frozen=True, eq=False)
class IntegerSampler:
    """Draws integers of one distribution, in the same number of operations for each.

    The distribution is within 2**-62 of the exact one in total variation, for one integer; for `d` integers, within
    `d * 2**-62`, which is to be added to a delta.

    Attributes:
      name: `discrete_gaussian` or `skellam`.
      variance: the parameter of the distribution, exactly. A discrete Gaussian of a parameter below 1 has a smaller
        variance; its privacy is that of the parameter.
      parts: tables, and the factors with which what is drawn from them is added up.
    """

    name: str
    variance: Fraction
    parts: tuple[tuple[int, AliasTable], ...]

    @property
    def words(self) -> int:
        """How many random words one integer takes."""
        return WORDS_PER_DRAW * len(self.parts)

    def __call__(self, words: jax.Array) -> jax.Array:
        """Integers from uniform random words: uint32 of shape `(words, ...)` to int32 of shape `(...)`."""
        total = jnp.zeros(words.shape[1:], jnp.int32)
        for number, (factor, table) in enumerate(self.parts):
            total += factor * table.draw(words[WORDS_PER_DRAW * number : WORDS_PER_DRAW * (number + 1)])
        return total


def discrete_gaussian(key: jax.Array, variance: float | Fraction, shape: tuple[int, ...] = ()) -> jax.Array:
    """Draws from the discrete Gaussian: `P(x)` in proportion to `exp(-x**2 / (2 * variance))` on the integers.

    Args:
      key: a typed key of JAX.
      variance: the parameter sigma squared, positive and at most 2**54, taken exactly.
      shape: the shape of the result.

    Returns:
      An int32 array.

    Raises:
      KoinonValueError: where the variance is out of its range.

    References:
      Clément L. Canonne, Gautam Kamath, Thomas Steinke: The Discrete Gaussian for Differential Privacy, 2020.
      https://arxiv.org/abs/2004.00010

    >>> import jax, koinon as ko
    >>> noise = ko.privacy.discrete_gaussian(jax.random.key(0), 4.0, (100_000,))
    >>> noise.dtype.name, round(float(noise.std()), 1)
    ('int32', 2.0)
    """
    return _draw(discrete_gaussian_sampler(Fraction(variance)), key, shape)


def skellam(key: jax.Array, variance: float | Fraction, shape: tuple[int, ...] = ()) -> jax.Array:
    """Draws the difference of two Poisson variables of the mean `variance / 2`: sums of it are of its kind again.

    Args:
      key: a typed key of JAX.
      variance: positive and at most 10**6, taken exactly.
      shape: the shape of the result.

    Returns:
      An int32 array.

    Raises:
      KoinonValueError: where the variance is out of its range.

    References:
      Naman Agarwal, Peter Kairouz, Ziyu Liu: The Skellam Mechanism for Differentially Private Federated Learning,
      2021. https://arxiv.org/abs/2110.04995

    >>> import jax, koinon as ko
    >>> noise = ko.privacy.skellam(jax.random.key(0), 9.0, (100_000,))
    >>> round(float(noise.std()), 1)
    3.0
    """
    return _draw(skellam_sampler(Fraction(variance)), key, shape)


def _draw(sampler: IntegerSampler, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return sampler(jax.random.bits(key, (sampler.words, *shape), jnp.uint32))


@functools.lru_cache(maxsize=64)
def discrete_gaussian_sampler(variance: Fraction) -> IntegerSampler:
    """The sampler of the discrete Gaussian with this parameter.

    Up to a standard deviation of 1000 it is one table. Beyond, it is `x + 256 * y` with `x` of standard deviation 448
    and `y` of the rest, `(variance - 448**2) / 256**2`. The probability of a sum is that of the exact discrete
    Gaussian times a sum over shifts that differs from a constant by a factor of at most `1 +- 2 exp(-2 pi^2 t)`, with
    `1 / t = 1 / var(y) + 1 / 1.75**2`; since `var(y) > 12`, that is `1 +- 2**-68`.

    References:
      Daniele Micciancio, Michael Walter: Gaussian Sampling over the Integers: Efficient, Generic, Constant-Time, 2017,
      section 3. https://eprint.iacr.org/2017/259
    """
    _check_variance(variance, _LARGEST_VARIANCE)
    parts: list[tuple[int, AliasTable]] = []
    factor, rest = 1, variance
    while rest > _LARGEST_TABLE:
        parts.append((factor, _gaussian_table(Fraction(_STEP_DEVIATION**2))))
        rest = (rest - _STEP_DEVIATION**2) / _STEP**2
        factor *= _STEP
    parts.append((factor, _gaussian_table(rest)))
    return IntegerSampler("discrete_gaussian", variance, tuple(parts))


@functools.lru_cache(maxsize=64)
def skellam_sampler(variance: Fraction) -> IntegerSampler:
    """The sampler of the Skellam distribution with this variance."""
    _check_variance(variance, _LARGEST_TABLE)
    with localcontext() as context:
        context.prec = _DIGITS
        half = _bessel_weights(_decimal(variance))
    return IntegerSampler("skellam", variance, ((1, _symmetric_table(half)),))


@functools.lru_cache(maxsize=64)
def _gaussian_table(variance: Fraction) -> AliasTable:
    with localcontext() as context:
        context.prec = _DIGITS
        base = (-1 / (2 * _decimal(variance))).exp()
        half, weight, ratio = [], Decimal(1), base
        while weight > _NEGLIGIBLE:
            half.append(weight)
            # exp(-(x + 1)**2 / 2v) = exp(-x**2 / 2v) * base**(2x + 1)
            weight *= ratio
            ratio *= base * base
        return _symmetric_table(half)


def _bessel_weights(variance: Decimal) -> list[Decimal]:
    """Numbers in proportion to the modified Bessel functions I_0, I_1, ... at `variance`, by backward recurrence."""
    start = 40 + 30 * math.isqrt(int(variance) + 1)
    above, here, weights = Decimal(0), Decimal(1), []
    for order in range(start, -1, -1):
        weights.append(here)
        above, here = here, above + 2 * order / variance * here
    weights.reverse()
    return [weight / weights[0] for weight in weights if weight > _NEGLIGIBLE * weights[0]]


def _symmetric_table(half: list[Decimal]) -> AliasTable:
    return alias_table([*reversed(half[1:]), *half], 1 - len(half))


def _decimal(number: Fraction) -> Decimal:
    return Decimal(number.numerator) / Decimal(number.denominator)


def _check_variance(variance: Fraction, largest: int) -> None:
    if not 0 < variance <= largest:
        raise KoinonValueError(
            "The variance of noise on the integers must be positive, and not too large for 32-bit integers.",
            expected=f"a number in (0, {largest}]",
            found=str(float(variance)),
            hint="use a coarser grid",
        )
