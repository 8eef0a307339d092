"""What is read from the state of a differentially private aggregation: the noise that was added, the privacy spent."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import ExtractingDpEventFromInitialStateError, KoinonTypeError, KoinonValueError, PrivacyError
from koinon.aggregators._dp_central import CentralState
from koinon.aggregators._dp_clients import ClientNoiseState
from koinon.aggregators._dp_process import DPAggregatorState, contradicts
from koinon.aggregators._dp_query import GaussianEvent, GaussianPairEvent
from koinon.privacy._accounting import ORDERS, compute_epsilon, epsilon_of_event, epsilon_offsets
from koinon.privacy._chacha import noise_key
from koinon.privacy._cohorts import CohortSampling, NoSampling, PoissonSampling


def extract_dp_event_from_state(state: Any) -> Any:
    """The `DpEvent` of `dp_accounting` that the state after a round has: the noise that was added.

    For noise that is new in every round it is the event of that round; for correlated noise that of all rounds so far.
    Amplification by sampling is not in it: no state knows how its cohorts were drawn.

    Args:
      state: a `DPAggregatorState`, or a state that has one in it, such as that of a learning process.

    Raises:
      KoinonTypeError: where there is no such state in it, or several.
      ExtractingDpEventFromInitialStateError: where there was no round yet.
      MissingDependencyError: where the package `dp_accounting` is not installed.

    Example:
      >>> import koinon as ko
      >>> factory = ko.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(1.5, 10, clip=1.0)
      >>> process = factory.create(ko.types.TensorType("float32"))
      >>> ko.aggregators.extract_dp_event_from_state(process.next(process.initialize(), [0.5]).state)
      GaussianDpEvent(noise_multiplier=1.5)
    """
    found = _dp_state(state)
    if bool(found.is_init_state):
        raise ExtractingDpEventFromInitialStateError(
            "There is no event before the first round.", hint="pass a state that `next` returned"
        )
    return found.dp_event.to_dp_event()


def privacy_spent(state: Any, delta: float, sampling: CohortSampling | None = None) -> float:
    """The epsilon of all rounds up to a state, for a way in which their cohorts were drawn.

    Args:
      state: see `extract_dp_event_from_state`.
      delta: in (0, 1).
      sampling: how the cohorts were drawn; None, or `NoSampling()`, for any cohorts.

    Raises:
      PrivacyError: where the cohorts cannot have been drawn this way: those of Poisson sampling differ in size.
      KoinonValueError: where delta is out of its range, or the rounds are not alike, or clients made the noise, so
        that sampling does not amplify their privacy.
      KoinonTypeError, ExtractingDpEventFromInitialStateError, MissingDependencyError: see
        `extract_dp_event_from_state`.

    Example:
      >>> import koinon as ko
      >>> factory = ko.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(1.5, 10, clip=1.0)
      >>> process = factory.create(ko.types.TensorType("float32"))
      >>> state = process.next(process.initialize(), [0.5]).state
      >>> f"{ko.aggregators.privacy_spent(state, 1e-5, ko.privacy.PoissonSampling(0.01)):.2f}"
      '0.38'
    """
    found = _dp_state(state)
    event = extract_dp_event_from_state(found)
    rounds, least, most = (int(number) for number in found.cohorts)
    if sampling is not None and contradicts(sampling, found.cohorts):
        raise _not_drawn_so(sampling, rounds, least, most)
    alike = isinstance(found.dp_event, GaussianEvent | GaussianPairEvent)
    # Whoever sees the values with a client's own noise sees who takes part, so that sampling hides nobody.
    is_amplified = alike and not isinstance(found.query_state, ClientNoiseState)
    if sampling is None or isinstance(sampling, NoSampling):
        return _composed_epsilon(found, event, rounds, alike, delta)
    if not is_amplified:
        raise KoinonValueError(
            "Sampling amplifies the privacy of rounds that are independent and alike, with noise of the server, which "
            "these are not.",
            expected="NoSampling()",
            found=repr(sampling),
        )
    multipliers = [float(multiplier) for multiplier in found.dp_event]
    total = 0.0 if 0.0 in multipliers else math.fsum(m**-2 for m in multipliers) ** -0.5
    return compute_epsilon(total, rounds, delta, sampling)


def _not_drawn_so(sampling: CohortSampling, rounds: int, least: int, most: int) -> PrivacyError:
    if isinstance(sampling, PoissonSampling):
        return PrivacyError(
            "These cohorts were not drawn by Poisson sampling, so its epsilon does not hold for them.",
            expected="cohorts of different sizes",
            found=f"{rounds} cohorts of {least} clients each",
            hint="draw them with `ko.simulation.build_poisson_sampling_fn`, or account with `FixedSizeSampling`",
        )
    return PrivacyError(
        "A cohort is larger than the sampling claims, so its epsilon does not hold.",
        expected=repr(sampling),
        found=f"a cohort of {most} clients",
    )


def _composed_epsilon(state: DPAggregatorState, event: Any, rounds: int, alike: bool, delta: float) -> float:
    query_state = state.query_state
    if isinstance(query_state, ClientNoiseState):  # the noise of each round depended on its clients
        divergences = np.array(ORDERS) * float(query_state.rho) + float(query_state.xi)
        return float(max(np.min(divergences + epsilon_offsets(delta)), 0.0))
    return epsilon_of_event(event, delta, count=rounds if alike else 1)


def with_new_noise(state: Any, seed: int | None = None) -> Any:
    """A state whose later noise is drawn with a new key: what a run that is started again must have.

    Args:
      state: see `extract_dp_event_from_state`.
      seed: see `ko.privacy.noise_key`.

    Raises:
      KoinonTypeError: where the state has no noise of the server, or several.

    Example:
      >>> import koinon as ko
      >>> factory = ko.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(1.5, 10, clip=1.0)
      >>> process = factory.create(ko.types.TensorType("float32"))
      >>> state = process.initialize()
      >>> bool((ko.aggregators.with_new_noise(state).query_state.key == state.query_state.key).all())
      False
    """
    if not isinstance(_dp_state(state).query_state, CentralState):
        raise KoinonTypeError("This aggregation has no noise of the server on a grid.", found=type(state).__qualname__)
    key = jnp.asarray(noise_key(seed))

    def renew(part: Any) -> Any:
        return part._replace(key=key) if isinstance(part, CentralState) else part

    return jax.tree.map(renew, state, is_leaf=lambda part: isinstance(part, CentralState))


def _dp_state(state: Any) -> DPAggregatorState:
    """The one `DPAggregatorState` in a state."""
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, DPAggregatorState))
    found = [part for part in parts if isinstance(part, DPAggregatorState)]
    if len(found) != 1:
        raise KoinonTypeError(
            "There must be one state of a differentially private aggregation.",
            expected="a DPAggregatorState, or a state that contains one",
            found=f"{type(state).__qualname__} with {len(found)} of them",
        )
    return found[0]
