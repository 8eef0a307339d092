"""Noise for a sequence of rounds, on the integers: independent, from a binary tree, or correlated by a banded matrix.

Correlated noise cancels in sums over rounds, which is what a model is. Every process here is such that the noisy
rounds are a function of a discrete Gaussian mechanism's output, in exact arithmetic: shifting what is noised by
integers shifts the noise that would hide it by integers.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from koinon.privacy._samplers import IntegerSampler, discrete_gaussian_sampler

Draw = Callable[[IntegerSampler, Any], jax.Array]
"""Draws a vector from a sampler; the second argument, an integer, tells the draws of one round apart."""


def at_least(number: float) -> float:
    """The smallest float32 that is no smaller, so that a state that holds it says exactly what was used."""
    rounded = np.float32(number)
    return float(rounded if float(rounded) >= number else np.nextafter(rounded, np.float32(np.inf)))


class RoundNoise(abc.ABC):
    """What adds noise to one integer vector a round.

    Attributes:
      sensitivity: by how much, in the L2 norm, one client in one round can shift the vectors that are drawn.
      noise_multiplier: the deviation of these vectors over the sensitivity, a float32.
    """

    sensitivity: int
    noise_multiplier: float

    @property
    def sampler(self) -> IntegerSampler:
        """What is drawn from; there is none for the multiplier 0."""
        return discrete_gaussian_sampler((Fraction(self.noise_multiplier) * self.sensitivity) ** 2)

    def drawn(self, draw: Draw, stream: Any, like: jax.Array) -> jax.Array:
        """One vector of independent noise."""
        return draw(self.sampler, stream) if self.noise_multiplier > 0.0 else jnp.zeros_like(like)

    @abc.abstractmethod
    def initialize(self, size: int) -> Any:
        """The state before the first round, for vectors of this size."""

    @abc.abstractmethod
    def next(self, state: Any, step: jax.Array, draw: Draw) -> tuple[jax.Array, Any]:
        """The noise of the round number `step`, from 0 on, and the new state."""


@final
class IndependentNoise(RoundNoise):
    """A discrete Gaussian vector for each round, independent of the others.

    Args:
      noise_multiplier: the standard deviation over the sensitivity.
      units: the sensitivity in steps of the grid.
    """

    def __init__(self, noise_multiplier: float, units: int) -> None:
        self.noise_multiplier = at_least(noise_multiplier)
        self.sensitivity = units

    def initialize(self, size: int) -> Any:
        """There is nothing to remember but the size."""
        return jnp.zeros((0, size), jnp.int32)

    def next(self, state: Any, step: jax.Array, draw: Draw) -> tuple[jax.Array, Any]:
        """A new vector."""
        del step
        return self.drawn(draw, 0, jnp.zeros(state.shape[1], jnp.int32)), state


@final
class TreeNoise(RoundNoise):
    """The noise of one round in sums over rounds that a binary tree makes private.

    The sum of the first `t` rounds is put together from the sums over the nodes of a binary tree, each with its own
    noise; a round gets the noise of its sum minus that of the sum before.

    Args:
      noise_multiplier: the standard deviation of the noise of a node, over the sensitivity of a node.
      units: the sensitivity in steps of the grid.
      steps: how many rounds a tree has.
      is_efficient: whether the sum over a node is estimated from the nodes below it too, which lowers its variance to
        `1 / (2 - 2**-level)` of that of its own noise.

    References:
      Peter Kairouz, Brendan McMahan, Shuang Song, Om Thakkar, Abhradeep Thakurta, Zheng Xu: Practical and Private
      (Deep) Learning without Sampling or Shuffling, 2021. https://arxiv.org/abs/2103.00039
      James Honaker: Efficient Use of Differentially Private Binary Trees, 2015 (the estimate from below).
    """

    def __init__(self, noise_multiplier: float, units: int, steps: int, is_efficient: bool) -> None:
        self.noise_multiplier = at_least(noise_multiplier)
        self.sensitivity = units
        self.levels = steps.bit_length()
        # Of the variances 1 of a node's own noise and 2v of its children's, the best weights are 2v and 1.
        weights, variance = [0.0], 1.0
        for _ in range(1, self.levels):
            weights.append(2 * variance / (2 * variance + 1))
            variance = weights[-1]
        self._own_weights = weights if is_efficient else [1.0] * self.levels

    def initialize(self, size: int) -> Any:
        """The noise of the finished nodes that the next sums are put together from, one for each level."""
        return jnp.zeros((self.levels, size), jnp.int32)

    def next(self, state: Any, step: jax.Array, draw: Draw) -> tuple[jax.Array, Any]:
        """The noise of the sum up to this round minus that of the sum before."""
        count = step + 1
        top = jax.lax.population_count((count & -count) - 1)
        own_weights = jnp.asarray(self._own_weights, jnp.float32)
        like = state[0]

        def finish(level: jax.Array, below: jax.Array) -> jax.Array:
            own = self.drawn(draw, level, like)
            children = state[level - 1] + below
            # An integer that depends on the difference alone, in which the sum over the node cancels: so the rounding
            # of this product cannot tell what was summed.
            correction = jnp.rint(own_weights[level] * (own - children).astype(jnp.float32)).astype(jnp.int32)
            return children + correction

        node = jax.lax.fori_loop(1, top + 1, finish, self.drawn(draw, 0, like))
        level = jnp.arange(self.levels, dtype=jnp.int32)[:, None]
        new_state = jnp.where(level < top, 0, jnp.where(level == top, node[None], state))
        return new_state.sum(axis=0) - state.sum(axis=0), new_state


@final
class BandedNoise(RoundNoise):
    """Noise that is correlated over `bands` rounds: `C^-1 Z`, for independent `Z` and a banded Toeplitz matrix `C`.

    `C` has the first coefficients of the square root of the matrix of prefix sums, which is the best matrix for sums
    over rounds up to a constant. Of a client that takes part in rounds at least `bands` apart, each round is hidden by
    noise of its own.

    The noise of a round is `z - round(sum_j c_j * earlier noise_j)`, with `c_j` multiples of 2**-10 and the rounding
    exact. A shift of one round by an integer vector `v` is thus hidden by a shift of the drawn `z` by `c_j v`, plus
    less than 1 for each element and band: that is the sensitivity here.

    Args:
      noise_multiplier: the standard deviation of `Z` over the sensitivity of `C`, for one participation.
      units: the sensitivity of one round in steps of the grid.
      bands: how many rounds are correlated.
      size: the number of elements of a vector.

    References:
      Nikita Kalinin, Christoph Lampert: Banded Square Root Matrix Factorization for Differentially Private Model
      Training, 2024. https://arxiv.org/abs/2405.13763
      Christopher Choquette-Choo et al.: (Amplified) Banded Matrix Factorization: A unified approach to private
      training, 2023. https://arxiv.org/abs/2306.08153
    """

    _BITS = 10
    _LOW_BITS = 12

    def __init__(self, noise_multiplier: float, units: int, bands: int, size: int) -> None:
        self.noise_multiplier = at_least(noise_multiplier)
        self.coefficients = band_coefficients(bands, self._BITS)
        norm = math.sqrt(math.fsum(float(c) ** 2 for c in self.coefficients))
        self.sensitivity = math.ceil(units * norm + math.sqrt(size * (bands - 1)))
        scaled = [int(c * 2**self._BITS) for c in self.coefficients]
        self._earlier = np.array(scaled[1:], np.int32)

    def initialize(self, size: int) -> Any:
        """The noise of the latest rounds, each in the row that its number chooses."""
        return jnp.zeros((len(self._earlier), size), jnp.int32)

    def next(self, state: Any, step: jax.Array, draw: Draw) -> tuple[jax.Array, Any]:
        """New noise minus what the correlation takes from that of the latest rounds."""
        rows = len(self._earlier)
        if rows == 0:
            return self.drawn(draw, 0, jnp.zeros(state.shape[1], jnp.int32)), state
        ages = (step - 1 - jnp.arange(rows, dtype=jnp.int32)) % rows
        weights = jnp.asarray(self._earlier)[ages][:, None]
        # In two halves, so that no product leaves 32 bits.
        high = (weights * (state >> self._LOW_BITS)).sum(axis=0)
        low = (weights * (state & (2**self._LOW_BITS - 1))).sum(axis=0)
        half = 1 << (self._BITS - 1)
        predicted = (high << (self._LOW_BITS - self._BITS)) + ((low + half) >> self._BITS)
        noise = self.drawn(draw, 0, state[0]) - predicted
        return noise, state.at[step % rows].set(noise)


def band_coefficients(bands: int, bits: int) -> list[Fraction]:
    """The first coefficients of the power series of `(1 - x)**-0.5`, as multiples of `2**-bits`.

    >>> [str(c) for c in band_coefficients(4, 10)]
    ['1', '1/2', '3/8', '5/16']
    """
    exact = [Fraction(math.comb(2 * j, j), 4**j) for j in range(bands)]
    return [Fraction(round(c * 2**bits), 2**bits) for c in exact]
