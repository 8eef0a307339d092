"""Sums to which the server adds noise on an integer grid, with a fixed or an adaptive clipping norm."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from koinon.aggregators._dp_query import (
    BandedEvent,
    Decoded,
    DPQuery,
    GaussianEvent,
    GaussianPairEvent,
    TreeEvent,
    only_if,
)
from koinon.computation import annotate_clip, annotate_noise
from koinon.privacy._chacha import noise_key, random_words
from koinon.privacy._grid import to_grid
from koinon.privacy._noise import BandedNoise, IndependentNoise, RoundNoise, TreeNoise
from koinon.privacy._samplers import IntegerSampler
from koinon.types import register_container

# A coordinate of a client, at most 2**22 steps, is sent as two halves, of which 2**20 clients can be summed in int32.
_LARGEST_GRID = 22
LOW_BITS = 11
_COUNT_UNITS = 1024
_COUNT_STREAM = 64  # the levels of a tree are the streams below


class CentralState(NamedTuple):
    """The state of a `CentralQuery`.

    Attributes:
      key: uint32[8], from which all noise is made.
      round: uint32, how many rounds there were.
      step: int32, how many of them since the noise started anew.
      tree: int32, how often it did.
      clip: float32, the clipping norm.
      estimate: float32, the norm that the clipping norm follows; `()` where it is fixed.
      noise: what the noise of the next rounds depends on.
      count_noise: the same for the number of clients below the estimate; `()` where the clipping norm is fixed.
    """

    key: Any
    round: Any
    step: Any
    tree: Any
    clip: Any
    estimate: Any
    noise: Any
    count_noise: Any


register_container("koinon.CentralState", CentralState)


class AdaptiveClip(NamedTuple):
    """How a clipping norm follows a quantile of the norms.

    Attributes:
      quantile: of the clients' norms, the share that is to be below.
      learning_rate: of the logarithm of the norm.
      clients: how many clients are expected.
      noise: on the number of clients below the norm, times 2, in units of 1/1024.
    """

    quantile: float
    learning_rate: float
    clients: float
    noise: RoundNoise


class Restarts(NamedTuple):
    """When correlated noise starts anew, and takes on the clipping norm that was estimated.

    Attributes:
      first: how many rounds it lasts the first time.
      later: how many each later time.
    """

    first: int
    later: int


@final
class CentralQuery(DPQuery):
    """The sum of clipped vectors plus noise, divided by a fixed number of clients.

    Args:
      clip: the clipping norm, or the first one.
      clients: the number that the sum is divided by.
      units: how many steps the grid has in a clipping norm, a power of two.
      make_noise: the noise, for a number of elements.
      adaptive: how the clipping norm changes; None if it does not.
      restarts: when the noise starts anew, and the clipping norm changes; None for never, and every round.
      separation: how far apart the rounds of one client are, for banded noise.
      seed: of the noise; None for the operating system's entropy.
      sampling: how the cohorts are drawn, for the privacy report.
    """

    def __init__(
        self,
        clip: float,
        clients: float,
        units: int,
        make_noise: Callable[[int], RoundNoise],
        *,
        adaptive: AdaptiveClip | None = None,
        restarts: Restarts | None = None,
        separation: int = 1,
        seed: int | None = None,
        sampling: str | None = None,
    ) -> None:
        self._clip = clip
        self._clients = clients
        self._units = units
        self._make_noise = make_noise
        self._adaptive = adaptive
        self._restarts = restarts
        self._separation = separation
        self._seed = seed
        self._sampling = sampling

    def initialize(self, size: int) -> CentralState:
        """See `DPQuery.initialize`."""
        adaptive = self._adaptive
        clip = jnp.float32(self._clip)
        return CentralState(
            key=jnp.asarray(noise_key(self._seed)),
            round=jnp.uint32(0),
            step=jnp.int32(0),
            tree=jnp.int32(0),
            clip=clip,
            estimate=() if adaptive is None else clip,
            noise=self._make_noise(size).initialize(size),
            count_noise=() if adaptive is None else adaptive.noise.initialize(1),
        )

    def params(self, state: CentralState) -> Any:
        """The clipping norm, and the estimate that clients compare their norm with."""
        return {"clip": state.clip, "estimate": state.estimate}

    def encode(self, params: Any, vector: jax.Array, is_included: jax.Array, key: jax.Array | None) -> Any:
        """The vector in steps of the grid, in two halves; and whether it was below the estimate, as 1 or -1."""
        del key
        point = to_grid(vector, params["clip"], self._units)
        halves = only_if(is_included, split(point.value))
        clip = self._clip if self._adaptive is None else params["clip"]
        record = OrderedDict(annotate_clip(halves, clip))
        if self._adaptive is not None:
            is_below = to_grid(vector, params["estimate"], self._units).is_short
            vote = jnp.where(is_below, _COUNT_UNITS, -_COUNT_UNITS)
            record["below"] = annotate_clip(only_if(is_included, vote), 1.0)
        return record

    def decode(self, state: CentralState, total: Any, clients: jax.Array) -> Decoded:
        """The sum with noise, in units of values, over the expected number of clients."""
        del clients  # How many there were is no public number.
        draw = _drawer(state.key, state.round)
        size = total["high"].shape[0]
        noise = self._make_noise(size)
        drawn, noise_state = noise.next(state.noise, state.step, draw(size, 0))
        noisy = self._annotated(_add(total, split(drawn)), noise)
        vector = join(noisy) * (state.clip / (self._units * self._clients))
        state = state._replace(noise=noise_state)
        if self._adaptive is not None:
            state = self._adapted(state, total["below"], draw)
        return Decoded(vector, self._advanced(state), self._event(state, noise))

    def _adapted(self, state: CentralState, below: jax.Array, draw: Any) -> CentralState:
        """The state with a new estimate of the quantile: a geometric step by the noisy share of clients below it."""
        adaptive = self._adaptive
        assert adaptive is not None
        drawn, count_noise = adaptive.noise.next(state.count_noise, state.step, draw(1, _COUNT_STREAM))
        votes = self._annotated(below + drawn[0], adaptive.noise)
        share = 0.5 + votes.astype(jnp.float32) / (2 * _COUNT_UNITS * adaptive.clients)
        estimate = state.estimate * jnp.exp(-adaptive.learning_rate * (share - adaptive.quantile))
        # Where a run of rounds pushes one way only, the norm stays one that float32 can divide by.
        return state._replace(estimate=jnp.clip(estimate, 1e-20, 1e20), count_noise=count_noise)

    def _annotated(self, value: Any, noise: RoundNoise) -> Any:
        return annotate_noise(
            value,
            mechanism="discrete_gaussian",
            noise_multiplier=noise.noise_multiplier,
            simulation_only=self._seed is not None,
            sampling=self._sampling,
        )

    def _advanced(self, state: CentralState) -> CentralState:
        """The state of the next round; where noise starts anew, so does all that depends on earlier noise."""
        state = state._replace(round=state.round + 1, step=state.step + 1)
        if self._restarts is None:
            return state if self._adaptive is None else state._replace(clip=state.estimate)
        limit = jnp.where(state.tree == 0, self._restarts.first, self._restarts.later)
        is_over = state.step >= limit
        fresh = state._replace(
            step=jnp.int32(0),
            tree=state.tree + 1,
            noise=jnp.zeros_like(state.noise),
            count_noise=jax.tree.map(jnp.zeros_like, state.count_noise),
            clip=state.clip if self._adaptive is None else state.estimate,
        )
        return jax.tree.map(lambda new, old: jnp.where(is_over, new, old), fresh, state)

    def _event(self, state: CentralState, noise: RoundNoise) -> Any:
        """What was added up to the round that this state is of."""
        multiplier = jnp.float32(noise.noise_multiplier)
        rounds = state.round.astype(jnp.int32) + 1
        if isinstance(noise, BandedNoise):
            return BandedEvent(multiplier, jnp.int32(self._separation), rounds)
        if self._restarts is not None:
            total = jnp.float32(self._total(noise))
            return TreeEvent(total, jnp.int32(self._restarts.first), jnp.int32(self._restarts.later), rounds)
        if self._adaptive is not None:
            return GaussianPairEvent(multiplier, jnp.float32(self._adaptive.noise.noise_multiplier))
        return GaussianEvent(multiplier)

    def no_event(self) -> Any:
        """See `DPQuery.no_event`."""
        state = self.initialize(1)
        return jax.tree.map(jnp.zeros_like, self._event(state, self._make_noise(1)))

    def spent(self, state: CentralState, event: Any) -> tuple[Any, Any]:
        """See `DPQuery.spent`."""
        if isinstance(event, BandedEvent):
            count = -(-event.rounds // event.separation)
            return _rho(float(self._make_noise(1).noise_multiplier)) * count.astype(jnp.float32), jnp.float32(0.0)
        per_round = _rho(self._total(self._make_noise(1)))
        if isinstance(event, TreeEvent):
            return per_round * self._depths(event).astype(jnp.float32), jnp.float32(0.0)
        return per_round * state.round.astype(jnp.float32), jnp.float32(0.0)

    def _depths(self, event: TreeEvent) -> jax.Array:
        """In how many nodes of all trees one client can be."""
        assert self._restarts is not None
        first, later = self._restarts
        after = jnp.maximum(event.rounds - first, 0)
        full, rest = after // later, after % later
        return _bit_length(jnp.minimum(event.rounds, first)) + full * later.bit_length() + _bit_length(rest)

    def _total(self, noise: RoundNoise) -> float:
        """The multiplier of one noise that is as good as that on the values and that on the count together."""
        if self._adaptive is None:
            return noise.noise_multiplier
        multipliers = [part.noise_multiplier for part in (noise, self._adaptive.noise)]
        if 0.0 in multipliers:
            return 0.0
        exact = math.fsum(multiplier**-2 for multiplier in multipliers) ** -0.5
        rounded = np.float32(exact)
        # An event must not claim more noise than there was.
        return float(rounded if rounded <= exact else np.nextafter(rounded, np.float32(0.0)))

    def metrics(self, state: CentralState) -> Mapping[str, Any]:
        """The clipping norm of the next round, where it adapts."""
        return {} if self._adaptive is None else {"current_clip": state.clip}

    @property
    def noise_multiplier(self) -> float | None:
        """See `DPQuery.noise_multiplier`."""
        noise = self._make_noise(1)
        return self._total(noise) if isinstance(noise, IndependentNoise) else None


def grid_units(noise_multiplier: float, largest_noise: int) -> int:
    """The finest grid: a power of two, at most 2**22, on which noise has a deviation of at most 2**largest_noise."""
    return 1 << max(0, min(_LARGEST_GRID, largest_noise - math.ceil(math.log2(max(noise_multiplier, 1.0)))))


def independent_query(noise_multiplier: float, clients: float, clip: float, **options: Any) -> CentralQuery:
    """Noise that is new in every round."""
    units = grid_units(noise_multiplier, 25)
    return CentralQuery(clip, clients, units, lambda size: IndependentNoise(noise_multiplier, units), **options)


def tree_query(
    noise_multiplier: float, clients: float, clip: float, restarts: Restarts, is_efficient: bool, **options: Any
) -> CentralQuery:
    """Noise of sums over rounds by binary trees."""
    units, steps = grid_units(noise_multiplier, 23), max(restarts)
    return CentralQuery(
        clip,
        clients,
        units,
        lambda size: TreeNoise(noise_multiplier, units, steps, is_efficient),
        restarts=restarts,
        **options,
    )


def banded_query(
    noise_multiplier: float, clients: float, clip: float, bands: int, separation: int, **options: Any
) -> CentralQuery:
    """Noise that is correlated over some rounds."""
    units = grid_units(noise_multiplier, 22)
    return CentralQuery(
        clip,
        clients,
        units,
        lambda size: BandedNoise(noise_multiplier, units, bands, size),
        separation=separation,
        **options,
    )


def adaptive_clip(
    quantile: float, learning_rate: float, clients: float, count_deviation: float, tree: tuple[int, bool] | None = None
) -> AdaptiveClip:
    """A norm that follows a quantile; `tree` is the number of rounds of a tree, and whether it is efficient."""
    multiplier = 2.0 * count_deviation
    noise = IndependentNoise(multiplier, _COUNT_UNITS) if tree is None else TreeNoise(multiplier, _COUNT_UNITS, *tree)
    return AdaptiveClip(quantile, learning_rate, clients, noise)


def split(value: jax.Array) -> dict[str, jax.Array]:
    """Integers as `high * 2**11 + low`, with `low` in [0, 2**11)."""
    return {"high": value >> LOW_BITS, "low": value & ((1 << LOW_BITS) - 1)}


def join(halves: Mapping[str, jax.Array]) -> jax.Array:
    """The float32 of sums of both halves."""
    high = halves["high"] + (halves["low"] >> LOW_BITS)
    low = halves["low"] & ((1 << LOW_BITS) - 1)
    return high.astype(jnp.float32) * 2.0**LOW_BITS + low.astype(jnp.float32)


def _add(total: Mapping[str, jax.Array], halves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: total[name] + half for name, half in halves.items()}


def _drawer(key: jax.Array, round_: jax.Array) -> Any:
    """Makes, of a size and a first stream, what draws vectors; every key, round and stream is a stream of its own."""

    def of_size(size: int, first_stream: int) -> Any:
        def draw(sampler: IntegerSampler, stream: Any) -> jax.Array:
            words = random_words(key, (round_, first_stream + stream, 0), sampler.words * size)
            return sampler(words.reshape(sampler.words, size))

        return draw

    return of_size


def _rho(noise_multiplier: float) -> Any:
    return jnp.float32(math.inf if noise_multiplier == 0.0 else 0.5 / noise_multiplier**2)


def _bit_length(number: jax.Array) -> jax.Array:
    return 32 - jax.lax.clz(number)
