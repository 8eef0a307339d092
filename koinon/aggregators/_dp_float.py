"""Gaussian noise in floating point: what most libraries add. It hides nothing from who looks at bit patterns."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp

from koinon.aggregators._dp_query import Decoded, DPQuery, GaussianEvent, only_if
from koinon.aggregators._norms import global_l2_norm
from koinon.computation import annotate_clip, annotate_noise
from koinon.privacy._noise import at_least
from koinon.types import register_container


class FloatState(NamedTuple):
    """The state of a `FloatQuery`.

    Attributes:
      key: a typed key.
      round: int32, how many rounds there were.
    """

    key: Any
    round: Any


register_container("koinon.FloatState", FloatState)


@final
class FloatQuery(DPQuery):
    """The sum of clipped vectors plus `jax.random.normal` in float32, divided by a fixed number of clients.

    Args:
      clip: the clipping norm.
      clients: the number that the sum is divided by.
      noise_multiplier: the deviation of the noise over the clipping norm.
      seed: of the noise.
    """

    def __init__(self, clip: float, clients: float, noise_multiplier: float, seed: int) -> None:
        self._clip = clip
        self._clients = clients
        self._multiplier = at_least(noise_multiplier)
        self._seed = seed

    def initialize(self, size: int) -> FloatState:
        """See `DPQuery.initialize`."""
        del size
        return FloatState(jax.random.key(self._seed), jnp.int32(0))

    def params(self, state: FloatState) -> Any:
        """The clients are told nothing."""
        del state
        return ()

    def encode(self, params: Any, vector: jax.Array, is_included: jax.Array, key: jax.Array | None) -> Any:
        """The clipped vector."""
        del params, key
        exponent = jnp.frexp(jnp.max(jnp.abs(vector)))[1]
        mantissa = jnp.ldexp(vector, -exponent)  # its norm does not overflow
        norm = global_l2_norm(mantissa)
        shortest = jnp.minimum(jnp.ldexp(jnp.float32(1.0), exponent), self._clip / jnp.where(norm > 0.0, norm, 1.0))
        clipped = mantissa * shortest
        return OrderedDict(value=annotate_clip(only_if(is_included, clipped), self._clip))

    def decode(self, state: FloatState, total: Any, clients: jax.Array) -> Decoded:
        """The sum with noise, over the expected number of clients."""
        del clients
        key = jax.random.fold_in(state.key, state.round)
        noise = self._clip * self._multiplier * jax.random.normal(key, total["value"].shape, jnp.float32)
        noisy = annotate_noise(
            total["value"] + noise,
            mechanism="gaussian",
            noise_multiplier=self._multiplier,
            simulation_only=True,
            sampling=None,
        )
        event = GaussianEvent(jnp.float32(self._multiplier))
        return Decoded(noisy / self._clients, state._replace(round=state.round + 1), event)

    def no_event(self) -> Any:
        """See `DPQuery.no_event`."""
        return GaussianEvent(jnp.float32(0.0))

    def spent(self, state: FloatState, event: Any) -> tuple[Any, Any]:
        """See `DPQuery.spent`."""
        del event
        rho = math.inf if self._multiplier == 0.0 else 0.5 / self._multiplier**2
        return jnp.float32(rho) * state.round.astype(jnp.float32), jnp.float32(0.0)

    @property
    def noise_multiplier(self) -> float | None:
        """See `DPQuery.noise_multiplier`."""
        return self._multiplier
