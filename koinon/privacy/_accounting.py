"""What privacy a run has spent, and how much noise a budget needs: by the package `dp_accounting`."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from koinon._errors import KoinonValueError, MissingDependencyError
from koinon.privacy._cohorts import (
    CohortSampling,
    FixedSizeSampling,
    NoSampling,
    PoissonSampling,
    check_cohort_sampling,
    check_real,
)

AccountantName: TypeAlias = Literal["rdp", "pld"]

# The orders of Rényi divergences that `dp_accounting` takes by default.
ORDERS = (*(1.0 + x / 10.0 for x in range(1, 100)), *map(float, range(11, 64)), 128.0, 256.0, 512.0, 1024.0)


def dp_accounting() -> Any:
    """The package `dp_accounting`.

    Raises:
      MissingDependencyError: where it is not installed.
    """
    try:
        return importlib.import_module("dp_accounting")
    except ImportError:
        raise MissingDependencyError("dp-accounting", extra="dp", purpose="Accounting for privacy") from None


def dp_event(noise_multiplier: float, rounds: int, sampling: CohortSampling) -> Any:
    """The `DpEvent` of rounds of a Gaussian mechanism.

    Args:
      noise_multiplier: the standard deviation of the noise over the clipping norm.
      rounds: how many rounds there are.
      sampling: how the cohorts are drawn.

    Raises:
      MissingDependencyError: where the package `dp_accounting` is not installed.
      KoinonTypeError, KoinonValueError: where an argument is of another type, or negative.

    >>> import koinon as ko
    >>> ko.privacy.dp_event(1.0, 100, ko.privacy.PoissonSampling(0.01)).count
    100
    """
    check_cohort_sampling(sampling)
    check_real(noise_multiplier, "A noise multiplier")
    check_real(rounds, "A number of rounds")
    _check(noise_multiplier >= 0.0, "A noise multiplier must not be negative.", noise_multiplier)
    _check(rounds >= 0, "A number of rounds must not be negative.", rounds)
    package = dp_accounting()
    if rounds == 0:
        return package.NoOpDpEvent()
    if noise_multiplier == 0.0:
        return package.NonPrivateDpEvent()
    match sampling:
        case PoissonSampling(probability):
            event = package.PoissonSampledDpEvent(probability, package.GaussianDpEvent(noise_multiplier))
        case FixedSizeSampling(cohort, population):
            inner = package.GaussianDpEvent(noise_multiplier / 2)
            event = package.SampledWithoutReplacementDpEvent(population, cohort, inner)
        case NoSampling():
            event = package.GaussianDpEvent(noise_multiplier)
    return package.SelfComposedDpEvent(event, rounds)


def compute_epsilon(
    noise_multiplier: float,
    rounds: int,
    delta: float,
    sampling: CohortSampling,
    accountant: AccountantName = "rdp",
) -> float:
    """The epsilon of rounds of a Gaussian mechanism, an upper bound.

    Where cohorts are sampled, there are settings of much sampling and little noise, with epsilons of hundreds, in which
    `dp_accounting` leaves out orders that it cannot compute. The bound holds, but is not the best.

    Args:
      noise_multiplier: the standard deviation of the noise over the clipping norm.
      rounds: how many rounds there are.
      delta: in (0, 1).
      sampling: how the cohorts are drawn.
      accountant: `rdp`, Rényi differential privacy; or `pld`, privacy loss distributions, tighter and slower.

    Returns:
      Infinity where there is no noise, 0 where there is no round.

    Raises:
      MissingDependencyError: where the package `dp_accounting` is not installed.
      KoinonTypeError, KoinonValueError: where an argument is of another type or out of its range, or the accountant
        does not know this sampling.

    References:
      Ilya Mironov, Kunal Talwar, Li Zhang: Rényi Differential Privacy of the Sampled Gaussian Mechanism, 2019.
      https://arxiv.org/abs/1908.10530

    >>> import koinon as ko
    >>> print(f"{ko.privacy.compute_epsilon(1.0, 1000, 1e-5, ko.privacy.PoissonSampling(0.01)):.2f}")
    2.10
    >>> print(f"{ko.privacy.compute_epsilon(1.0, 1000, 1e-5, ko.privacy.FixedSizeSampling(10, 1000)):.2f}")
    20.99
    """
    _check_delta(delta)
    return epsilon_of_event(dp_event(noise_multiplier, rounds, sampling), delta, accountant)


def epsilon_of_event(event: Any, delta: float, accountant: AccountantName = "rdp", *, count: int = 1) -> float:
    """The epsilon of a `DpEvent` that happened `count` times, for the neighbours that it is defined for.

    Raises:
      MissingDependencyError: where the package `dp_accounting` is not installed.
      KoinonValueError: where delta is out of its range, or the accountant does not know the event.
    """
    _check_delta(delta)
    made = _accountant(event, accountant)
    if not made.supports(event):
        raise KoinonValueError(
            f"The accountant `{accountant}` does not know this event.", found=event, hint="take the other accountant"
        )
    with _quiet():
        return float(made.compose(event, count).get_epsilon(delta))


def calibrate_noise_multiplier(
    epsilon: float, delta: float, rounds: int, sampling: CohortSampling, accountant: AccountantName = "rdp"
) -> float:
    """The least noise multiplier, within a factor of 1 + 10**-6, whose epsilon is at most the one given.

    Args:
      epsilon: positive.
      delta: in (0, 1).
      rounds: how many rounds there will be, at least 1.
      sampling: how the cohorts will be drawn.
      accountant: see `compute_epsilon`.

    Raises:
      MissingDependencyError: where the package `dp_accounting` is not installed.
      KoinonTypeError, KoinonValueError: where an argument is of another type or out of its range.

    >>> import koinon as ko
    >>> sampling = ko.privacy.PoissonSampling(0.01)
    >>> z = ko.privacy.calibrate_noise_multiplier(2.0, 1e-5, 1000, sampling)
    >>> ko.privacy.compute_epsilon(z, 1000, 1e-5, sampling) <= 2.0
    True
    """
    check_real(epsilon, "An epsilon")
    check_real(rounds, "A number of rounds")
    _check(0.0 < epsilon < math.inf, "An epsilon to be spent must be positive and finite.", epsilon)
    _check(rounds >= 1, "There must be at least one round.", rounds)

    def spends_too_much(noise_multiplier: float) -> bool:
        return compute_epsilon(noise_multiplier, rounds, delta, sampling, accountant) > epsilon

    low, high = 2.0**-6, 1.0
    while spends_too_much(high):
        low, high = high, 2.0 * high
        _check(high < 2.0**40, "No noise gives this epsilon with this delta.", epsilon)
    while high > low * (1.0 + 1e-6):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spends_too_much(middle) else (low, middle)
    return high


def rdp_per_round(noise_multiplier: float, sampling: CohortSampling) -> np.ndarray:
    """The Rényi divergence of one round, for each of `ORDERS`; without sampling this needs no package.

    Raises:
      MissingDependencyError: where the package `dp_accounting` is needed and not installed.
    """
    check_cohort_sampling(sampling)
    if noise_multiplier == 0.0:
        return np.full(len(ORDERS), np.inf)
    if isinstance(sampling, NoSampling):
        return np.array(ORDERS) / (2.0 * noise_multiplier**2)
    event = dp_event(noise_multiplier, 1, sampling)
    with _quiet():
        return np.asarray(_accountant(event, "rdp").compose(event).rdp)


def epsilon_offsets(delta: float) -> np.ndarray:
    """What is added to a Rényi divergence, for each of `ORDERS`, to make an epsilon of it; the least counts.

    References:
      Clément L. Canonne, Gautam Kamath, Thomas Steinke: The Discrete Gaussian for Differential Privacy, 2020,
      proposition 12. https://arxiv.org/abs/2004.00010
    """
    _check_delta(delta)
    orders = np.array(ORDERS)
    return np.log1p(-1.0 / orders) - np.log(delta * orders) / (orders - 1.0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the package's warnings about orders that it leaves out: the epsilon of the others is a bound too."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _accountant(event: Any, name: AccountantName) -> Any:
    package = dp_accounting()
    relation = _relation(package, event)
    if name == "rdp":
        return importlib.import_module("dp_accounting.rdp").RdpAccountant(list(ORDERS), relation)
    if name == "pld":
        return importlib.import_module("dp_accounting.pld").PLDAccountant(relation)
    raise KoinonValueError("There is no such accountant.", expected="'rdp' or 'pld'", found=repr(name))


def _relation(package: Any, event: Any) -> Any:
    """The relation of neighbours that an event is defined for."""
    relations = package.NeighboringRelation
    if isinstance(event, package.SelfComposedDpEvent):
        return _relation(package, event.event)
    if isinstance(event, package.ComposedDpEvent):
        return _relation(package, event.events[0]) if event.events else relations.ADD_OR_REMOVE_ONE
    if isinstance(event, package.SampledWithoutReplacementDpEvent):
        return relations.REPLACE_ONE
    if isinstance(event, package.SingleEpochTreeAggregationDpEvent):
        return relations.REPLACE_SPECIAL
    return relations.ADD_OR_REMOVE_ONE


def _check_delta(delta: float) -> None:
    check_real(delta, "A delta")
    _check(0.0 < delta < 1.0, "A delta must be in (0, 1).", delta)


def _check(is_right: bool, what: str, found: object) -> None:
    if not is_right:
        raise KoinonValueError(what, found=found)
