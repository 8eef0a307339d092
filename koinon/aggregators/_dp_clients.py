"""Sums whose noise the clients add themselves: all together, under a secure sum; or each enough for itself.

The keys of the clients come from the server, which could take the noise away again: this noise is for simulations.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from fractions import Fraction
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError
from koinon.aggregators._dp_central import join, split
from koinon.aggregators._dp_query import ConcentratedEvent, Decoded, DPQuery, GaussianEvent, only_if
from koinon.aggregators._factory import UnweightedAggregationFactory, ValueType
from koinon.computation import (
    annotate_clip,
    annotate_noise,
    federated_computation,
    federated_secure_modular_sum,
    federated_value,
)
from koinon.privacy._grid import to_grid, to_grid_at_random
from koinon.privacy._noise import at_least
from koinon.privacy._samplers import IntegerSampler, discrete_gaussian_sampler, skellam_sampler
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import SERVER, at_clients, at_server, register_container, to_type

Mechanism: TypeAlias = Literal["discrete_gaussian", "skellam"]
# A client's noise reaches no further, but for once in 2**72 draws.
_TAIL = 10
_LARGEST_SKELLAM_DEVIATION = 1000
# Sums of discrete Gaussians of at least this variance cannot be told from a discrete Gaussian.
_LEAST_VARIANCE = 4


class ClientNoiseState(NamedTuple):
    """The state of a query whose noise the clients add.

    Attributes:
      key: a typed key, from which those of the clients are made.
      round: int32, how many rounds there were.
      rho: float32, what was spent so far: of each order `a`, the Rényi divergence is at most `xi + rho * a`.
      xi: float32.
    """

    key: Any
    round: Any
    rho: Any
    xi: Any


register_container("koinon.ClientNoiseState", ClientNoiseState)


class _ClientNoiseQuery(DPQuery):
    """What the two queries below share: the state, and the keys."""

    client_noise: ClassVar[bool] = True

    def __init__(self, clip: float, clients: float, noise_multiplier: float, seed: int) -> None:
        self._clip = clip
        self._clients = clients
        self._multiplier = at_least(noise_multiplier)
        self._seed = seed

    def initialize(self, size: int) -> ClientNoiseState:
        """See `DPQuery.initialize`."""
        self.check_size(size)
        zero = jnp.float32(0.0)
        return ClientNoiseState(jax.random.key(self._seed), jnp.int32(0), zero, zero)

    def check_size(self, size: int) -> None:
        """Raises an error where vectors of this size do not fit the grid."""

    def params(self, state: ClientNoiseState) -> Any:
        """The clients are told nothing."""
        del state
        return ()

    def client_key(self, state: ClientNoiseState) -> jax.Array:
        """See `DPQuery.client_key`."""
        return jax.random.fold_in(state.key, state.round)

    def spent(self, state: ClientNoiseState, event: Any) -> tuple[Any, Any]:
        """See `DPQuery.spent`."""
        del event
        return state.rho, state.xi

    def annotated(self, record: Any, mechanism: str) -> Any:
        """A record with notes that it is a clipped vector with noise, which no analysis of its halves could find."""
        clipped = annotate_clip(record, self._clip)
        return annotate_noise(
            clipped, mechanism=mechanism, noise_multiplier=self._multiplier, simulation_only=True, sampling=None
        )


@final
class LocalQuery(_ClientNoiseQuery):
    """Every client adds noise that hides its vector among all vectors it might have sent, also from the server.

    Args:
      clip: the clipping norm.
      clients: the number that the sum is divided by.
      noise_multiplier: the deviation of a client's noise over the clipping norm.
      seed: of the keys.
    """

    def __init__(self, clip: float, clients: float, noise_multiplier: float, seed: int) -> None:
        super().__init__(clip, clients, noise_multiplier, seed)
        # A noisy coordinate has at most 2**22 steps, so that its halves can be summed over 2**20 clients.
        self._units = 1 << (22 - math.ceil(math.log2(1.0 + (_TAIL + 1) * self._multiplier)))

    @property
    def sampler(self) -> IntegerSampler:
        """The noise of a client."""
        return discrete_gaussian_sampler((Fraction(self._multiplier) * self._units) ** 2)

    def encode(self, params: Any, vector: jax.Array, is_included: jax.Array, key: jax.Array | None) -> Any:
        """The vector on the grid with noise, in two halves."""
        del params
        value = to_grid(vector, self._clip, self._units).value
        if self._multiplier > 0.0:
            words = jax.random.bits(_given(key), (self.sampler.words, vector.size), jnp.uint32)
            value = value + self.sampler(words)
        return self.annotated(only_if(is_included, split(value)), "local_discrete_gaussian")

    def decode(self, state: ClientNoiseState, total: Any, clients: jax.Array) -> Decoded:
        """The sum over the expected number of clients."""
        del clients
        multiplier = self._multiplier / 2
        rho = jnp.float32(math.inf if multiplier == 0.0 else 0.5 / multiplier**2)
        vector = join(total) * (self._clip / (self._units * self._clients))
        new_state = state._replace(round=state.round + 1, rho=state.rho + rho)
        return Decoded(vector, new_state, GaussianEvent(jnp.float32(multiplier)))

    def no_event(self) -> Any:
        """See `DPQuery.no_event`; any two vectors are neighbours, so that the multiplier counts half."""
        return GaussianEvent(jnp.float32(0.0))


@final
class DistributedQuery(_ClientNoiseQuery):
    """Every client adds a share of the noise, and the server sees the sum alone.

    The shares of those that took part are what the event tells: where clients drop out, it says less noise.

    Args:
      clip: the clipping norm.
      clients: the number that the sum is divided by, and that the noise and the modulus are sized for.
      noise_multiplier: the deviation of the noise of that many clients over the clipping norm.
      bits: the modulus of the sum is `2**bits`.
      mechanism: `discrete_gaussian` or `skellam`.
      seed: of the keys.
    """

    def __init__(
        self, clip: float, clients: float, noise_multiplier: float, bits: int, mechanism: Mechanism, seed: int
    ) -> None:
        super().__init__(clip, clients, noise_multiplier, seed)
        self._mechanism: Mechanism = mechanism
        self._bits = bits
        self._units = self._fitting_units()
        self._check_field()

    @property
    def most_clients(self) -> int:
        """A cohort that is drawn at random is rarely larger than this."""
        return math.ceil(self._clients + 8 * math.sqrt(self._clients))

    @property
    def modulus(self) -> int:
        """Of the sum."""
        return 1 << self._bits

    @property
    def sampler(self) -> IntegerSampler:
        """The noise of a client."""
        make = skellam_sampler if self._mechanism == "skellam" else discrete_gaussian_sampler
        return make(self._variance)

    @property
    def _variance(self) -> Fraction:
        return (Fraction(self._multiplier) * self._units) ** 2 / Fraction(self._clients)

    def _fitting_units(self) -> int:
        """The finest grid on which sums of clipped vectors with their noise do not leave the modulus."""
        half = 1 << (self._bits - 1)
        share = self._multiplier / math.sqrt(self._clients)
        units = (half - 1) / (self.most_clients + _TAIL * share * math.sqrt(self.most_clients))
        if self._mechanism == "skellam" and share > 0.0:
            units = min(units, _LARGEST_SKELLAM_DEVIATION / share)
        return min(math.floor(units), 1 << 22)

    def _check_field(self) -> None:
        if self._units < 1 or (self._multiplier > 0.0 and self._variance < _LEAST_VARIANCE):
            raise KoinonValueError(
                f"A modulus of {self._bits} bits is too small for the sum of so many clients with their noise.",
                expected=f"a grid on which a client's noise has a variance of at least {_LEAST_VARIANCE}",
                found=f"{max(self._units, 0)} steps in a clipping norm for {self.most_clients} clients"
                f" and the noise multiplier {self._multiplier:g}",
                hint=f"take more bits than {self._bits}, fewer clients or more noise",
            )

    def check_size(self, size: int) -> None:
        """Checks that rounding leaves at least half of the clip."""
        steps = self._units
        zeros = jax.ShapeDtypeStruct((size,), jnp.float32)
        jax.eval_shape(lambda vector: to_grid_at_random(vector, self._clip, steps, jax.random.key(0)), zeros)

    def encode(self, params: Any, vector: jax.Array, is_included: jax.Array, key: jax.Array | None) -> Any:
        """The vector on the grid with a share of the noise, modulo the modulus."""
        del params
        rounding_key, share_key = jax.random.split(_given(key))
        value = to_grid_at_random(vector, self._clip, self._units, rounding_key).value
        if self._multiplier > 0.0:
            value = value + self.sampler(jax.random.bits(share_key, (self.sampler.words, vector.size), jnp.uint32))
        residue = only_if(is_included, value & (self.modulus - 1))
        return OrderedDict(value=self.annotated(residue, f"distributed_{self._mechanism}"))

    def decode(self, state: ClientNoiseState, total: Any, clients: jax.Array) -> Decoded:
        """The sum, as integers around zero, over the expected number of clients."""
        residue = total["value"]
        signed = jnp.where(residue >= self.modulus // 2, residue - self.modulus, residue)
        vector = signed.astype(jnp.float32) * (self._clip / (self._units * self._clients))
        event = self._event(clients.astype(jnp.float32), residue.size)
        new_state = state._replace(round=state.round + 1, rho=state.rho + event.rho, xi=state.xi + event.xi)
        return Decoded(vector, new_state, event)

    def _event(self, clients: jax.Array, size: int) -> ConcentratedEvent:
        """What the shares of so many clients are worth.

        References:
          Peter Kairouz, Ziyu Liu, Thomas Steinke: The Distributed Discrete Gaussian Mechanism, 2021, theorem 1.
          https://arxiv.org/abs/2102.06387
          Naman Agarwal, Peter Kairouz, Ziyu Liu: The Skellam Mechanism, 2021, theorem 3.5 (its terms in the order are
          collected in rho, the negative one is left out). https://arxiv.org/abs/2110.04995
        """
        units, per_client = float(self._units), float(self._variance)
        variance = clients * per_client
        if self._mechanism == "skellam":
            longest = min(math.sqrt(size) * units, units**2)  # in the L1 norm, for integers
            rho = units**2 / (2 * variance) * (1 + 1 / variance)
            xi = 6 * longest / (4 * variance) / variance
            return ConcentratedEvent(rho, xi)
        closeness = 10 * clients * math.exp(-(math.pi**2) * per_client)
        epsilon = units / jnp.sqrt(variance) + closeness * math.sqrt(size)
        return ConcentratedEvent(epsilon**2 / 2, jnp.float32(0.0))

    def no_event(self) -> Any:
        """See `DPQuery.no_event`."""
        return ConcentratedEvent(jnp.float32(0.0), jnp.float32(0.0))


@final
class ModularSumFactory(UnweightedAggregationFactory):
    """Sums integers modulo a number by a secure sum.

    Args:
      modulus: the number.
    """

    def __init__(self, modulus: int) -> None:
        self._modulus = modulus

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`."""
        modulus = self._modulus

        @federated_computation
        def initialize_fn() -> Any:
            return federated_value((), SERVER)

        @federated_computation(at_server(to_type(())), at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            total = federated_secure_modular_sum(value, modulus)
            return MeasuredProcessOutput(state, total, federated_value((), SERVER))

        return AggregationProcess(initialize_fn, next_fn)


def _given(key: jax.Array | None) -> jax.Array:
    assert key is not None
    return key
