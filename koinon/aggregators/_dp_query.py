"""What a differentially private aggregation is made of: a query, and the events that say what noise it added."""

from __future__ import annotations

import abc
import importlib
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError, MissingDependencyError
from koinon.types import register_container


class GaussianEvent(NamedTuple):
    """One round of Gaussian noise.

    Attributes:
      noise_multiplier: the deviation over the sensitivity, float32.
    """

    noise_multiplier: Any

    def to_dp_event(self) -> Any:
        """The event in the words of `dp_accounting`."""
        return _package().GaussianDpEvent(float(self.noise_multiplier))


class GaussianPairEvent(NamedTuple):
    """One round of Gaussian noise on the values, and of other noise on the number of clients below a norm.

    Attributes:
      noise_multiplier: of the values, float32.
      count_noise_multiplier: of the number, float32.
    """

    noise_multiplier: Any
    count_noise_multiplier: Any

    def to_dp_event(self) -> Any:
        """The event in the words of `dp_accounting`."""
        package = _package()
        return package.ComposedDpEvent([package.GaussianDpEvent(float(multiplier)) for multiplier in self])


class TreeEvent(NamedTuple):
    """All rounds so far of sums that binary trees make private, for clients that are in each tree at most once.

    Attributes:
      noise_multiplier: of a node of the tree, float32.
      first_steps: how many rounds the first tree has, int32.
      later_steps: how many rounds each later tree has, int32.
      rounds: how many rounds there were, int32.
    """

    noise_multiplier: Any
    first_steps: Any
    later_steps: Any
    rounds: Any

    def to_dp_event(self) -> Any:
        """The event in the words of `dp_accounting`."""
        package = _package()
        rounds, first, later = int(self.rounds), int(self.first_steps), int(self.later_steps)
        trees = [min(rounds, first), *(min(later, rounds - begun) for begun in range(first, rounds, later))]
        multiplier = float(self.noise_multiplier)
        return package.ComposedDpEvent(
            [package.SingleEpochTreeAggregationDpEvent(multiplier, steps) for steps in trees]
        )


class BandedEvent(NamedTuple):
    """All rounds so far of noise correlated by a banded matrix, for clients whose rounds are far enough apart.

    Attributes:
      noise_multiplier: for one participation, float32.
      separation: the least distance between two rounds of one client, int32.
      rounds: how many rounds there were, int32.
    """

    noise_multiplier: Any
    separation: Any
    rounds: Any

    def to_dp_event(self) -> Any:
        """The event in the words of `dp_accounting`."""
        package = _package()
        participations = -(-int(self.rounds) // int(self.separation))
        return package.SelfComposedDpEvent(package.GaussianDpEvent(float(self.noise_multiplier)), participations)


class ConcentratedEvent(NamedTuple):
    """One round whose Rényi divergence of every order `a` is at most `xi + rho * a`.

    Attributes:
      rho: float32.
      xi: float32.
    """

    rho: Any
    xi: Any

    def to_dp_event(self) -> Any:
        """The event in the words of `dp_accounting`."""
        return _package().ZCDpEvent(rho=float(self.rho), xi=float(self.xi))


for _event in (GaussianEvent, GaussianPairEvent, TreeEvent, BandedEvent, ConcentratedEvent):
    register_container(f"koinon.{_event.__name__}", _event)


class Decoded(NamedTuple):
    """What a query makes of a sum.

    Attributes:
      vector: float32[d], the estimate.
      state: the new state of the query.
      event: one of the events above, with what was added.
    """

    vector: jax.Array
    state: Any
    event: Any


class DPQuery(abc.ABC):
    """A question about vectors of the clients whose answer is differentially private.

    All vectors are flat, `float32[d]`, and finite. The records that clients send are summed; each has a bounded
    influence on the sum.

    Attributes:
      client_noise: whether the clients add the noise themselves, for which they need keys.
    """

    client_noise: ClassVar[bool] = False

    @abc.abstractmethod
    def initialize(self, size: int) -> Any:
        """The state before the first round, for vectors of this many elements."""

    @abc.abstractmethod
    def params(self, state: Any) -> Any:
        """What the clients are told of the state."""

    @abc.abstractmethod
    def encode(self, params: Any, vector: jax.Array, is_included: jax.Array, key: jax.Array | None) -> Any:
        """The record of a client, a pytree to be summed; all zeros for a client that is not included.

        Args:
          params: what `params` returned.
          vector: float32[d], finite.
          is_included: whether the client counts.
          key: a typed key, where `client_noise` says so; else None.
        """

    @abc.abstractmethod
    def decode(self, state: Any, total: Any, clients: jax.Array) -> Decoded:
        """The answer.

        Args:
          state: that of the round.
          total: the sum of the records.
          clients: int32, how many clients were included.
        """

    @abc.abstractmethod
    def no_event(self) -> Any:
        """An event of the type that `decode` returns, of nothing."""

    @abc.abstractmethod
    def spent(self, state: Any, event: Any) -> tuple[Any, Any]:
        """`(rho, xi)` of all rounds up to a state and the event of its last, without amplification by sampling."""

    def client_key(self, state: Any) -> jax.Array:
        """The key of a round, of which each client gets its own, where `client_noise` says so."""
        raise NotImplementedError

    def metrics(self, state: Any) -> Mapping[str, Any]:
        """What is to be measured of a new state; it is released, and must be private too."""
        del state
        return {}

    @property
    def most_clients(self) -> int:
        """The number of clients whose records can be summed; a larger cohort is an error."""
        return 2**20 - 1

    @property
    def noise_multiplier(self) -> float | None:
        """That of one round, where all rounds are alike and independent, so that sampling can amplify it; else None."""
        return None


def only_if(is_included: jax.Array, record: Any) -> Any:
    """A record, or zeros."""
    return jax.tree.map(lambda leaf: jnp.where(is_included, leaf, jnp.zeros_like(leaf)), record)


def check_float(value: object, label: str, *, positive: bool = False, most: float | None = None) -> None:
    """Raises an error unless an argument is a finite float in its range; an int is none, as in TFF."""
    if not isinstance(value, float):
        is_int = isinstance(value, int) and not isinstance(value, bool)
        hint = f"write {value}.0, not {value}" if is_int else f"pass a Python float, `float({label})`"
        raise KoinonTypeError(f"`{label}` must be a float.", found=repr(value), hint=hint)
    is_large_enough = value > 0.0 if positive else value >= 0.0
    if not is_large_enough or value == math.inf or (most is not None and value > most):
        range_ = "positive and finite" if positive else "finite and not negative"
        limit = "" if most is None else f", and at most {most:.15g}"
        raise KoinonValueError(f"`{label}` must be {range_}{limit}.", found=value)


def _package() -> Any:
    try:
        return importlib.import_module("dp_accounting")
    except ImportError:
        raise MissingDependencyError("dp-accounting", extra="dp", purpose="An event of privacy") from None
