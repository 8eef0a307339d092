"""Which clients take part in a round: functions of the round number alone, so that a run can be repeated and resumed.

Each function draws from a generator of its own for every round. It does not matter in which order, or how often, the
rounds are asked for.
"""

from __future__ import annotations

import operator
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from koinon._errors import KoinonValueError


def build_uniform_sampling_fn(
    population: Sequence[Any], replace: bool = False, seed: int | None = None
) -> Callable[[int, int], list[Any]]:
    """Builds a function `(round_num, size)` that draws `size` clients, each equally likely.

    Args:
      population: what to draw from: client ids, or a `range`.
      replace: whether a client may be drawn several times in a round.
      seed: a non-negative integer; the same seed draws the same clients in the same round. None for an arbitrary one.

    Returns:
      The function; it returns a list, and raises KoinonValueError if `size` is negative, or is greater than the
      population and `replace` is false.

    Raises:
      KoinonValueError: if `seed` is negative.

    Example:
      >>> sample = build_uniform_sampling_fn(range(100), seed=1)
      >>> sample(7, 3) == sample(7, 3), sample(7, 3) == sample(8, 3)
      (True, False)
    """
    generator_of = _round_generators(seed)

    def sample(round_num: int, size: int) -> list[Any]:
        _check_size(size, None if replace else len(population))
        chosen = generator_of(round_num).choice(len(population), size, replace) if size else ()
        return [population[index] for index in map(int, chosen)]

    return sample


def build_weighted_sampling_fn(
    population: Sequence[Any], weights: Any, replace: bool = False, seed: int | None = None
) -> Callable[[int, int], list[Any]]:
    """Builds a function `(round_num, size)` that draws `size` clients one after the other, in proportion to weights.

    Without replacement each draw is among the clients that are left, in proportion to their weights; so the
    probability to be in the cohort is not itself proportional to the weight.

    Args:
      population: what to draw from, for example client ids.
      weights: float `[population]`, non-negative, for example the numbers of examples.
      replace: whether a client may be drawn several times in a round.
      seed: a non-negative integer; the same seed draws the same clients in the same round. None for an arbitrary one.

    Returns:
      The function; it returns a list, and raises KoinonValueError if `size` is negative, or is greater than the
      number of clients of positive weight and `replace` is false.

    Raises:
      KoinonValueError: if there is not one finite, non-negative weight for each client, all weights are zero, or
        `seed` is negative.
    """
    weights = np.asarray(weights, np.float64)
    if weights.shape != (len(population),) or not np.all(np.isfinite(weights) & (weights >= 0)) or not weights.any():
        raise KoinonValueError(
            "Weighted sampling needs one weight for each client, and one at least that is not zero.",
            expected=f"{len(population)} finite numbers that are not negative",
            found=f"shape {weights.shape}, values {weights.ravel()[:5].tolist()}",
        )
    probabilities = weights / weights.sum()
    generator_of = _round_generators(seed)

    def sample(round_num: int, size: int) -> list[Any]:
        _check_size(size, None if replace else int(np.count_nonzero(probabilities)))
        chosen = generator_of(round_num).choice(len(population), size, replace, probabilities)
        return [population[index] for index in map(int, chosen)]

    return sample


def build_poisson_sampling_fn(
    population: Sequence[Any], probability: float, seed: int | None = None
) -> Callable[[int], list[Any]]:
    """Builds a function `(round_num)` that takes each client with the same probability, independently of the others.

    This is the sampling that amplification by subsampling in differential privacy assumes. The cohorts have different
    sizes, and may be empty. For deployments, where the sampled ids must stay unpredictable, leave `seed` None.

    Args:
      population: what to draw from, for example client ids.
      probability: the probability of each client to take part in a round.
      seed: a non-negative integer; the same seed draws the same clients in the same round. None for an arbitrary one.

    Returns:
      The function; it returns a list in the order of the population.

    Raises:
      KoinonValueError: if `probability` is not between 0 and 1, or `seed` is negative.

    References:
      Mironov, Talwar and Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", 2019, section 3.
    """
    if not 0 <= probability <= 1:
        raise KoinonValueError("A probability lies between 0 and 1.", found=str(probability))
    generator_of = _round_generators(seed)

    def sample(round_num: int) -> list[Any]:
        chosen = np.flatnonzero(generator_of(round_num).random(len(population)) < probability)
        return [population[index] for index in map(int, chosen)]

    return sample


def build_availability_sampling_fn(
    population: Sequence[Any], trace: Callable[[int], Any], seed: int | None = None
) -> Callable[[int, int], list[Any]]:
    """Builds a function `(round_num, size)` that draws uniformly among the clients that are available in a round.

    Args:
      population: what to draw from, for example client ids.
      trace: `(round_num)` to bool `[population]`, who is available in a round: `periodic_availability`, or a lookup in
        what was recorded, for example `lambda round_num: recorded[round_num % len(recorded)]`.
      seed: a non-negative integer; the same seed draws the same clients in the same round. None for an arbitrary one.

    Returns:
      The function; it returns a list of distinct clients. Where fewer than `size` are available it returns them all,
      as a server gets no more than there are. It raises KoinonValueError if `size` is negative, or the trace does not
      say of each client whether it is available.

    Raises:
      KoinonValueError: if `seed` is negative.

    Example:
      >>> at_night = periodic_availability(100, period=24, fraction=0.25, phases=0.0)
      >>> sample = build_availability_sampling_fn(range(100), at_night, seed=1)
      >>> [len(sample(hour, 10)) for hour in (0, 5, 6, 23, 24)]
      [10, 10, 0, 0, 10]
    """
    generator_of = _round_generators(seed)

    def sample(round_num: int, size: int) -> list[Any]:
        _check_size(size, None)
        is_available = np.asarray(trace(round_num))
        if is_available.dtype != bool or is_available.shape != (len(population),):
            raise KoinonValueError(
                "A trace must say of each client whether it is available.",
                expected=f"bool[{len(population)}]",
                found=f"{is_available.dtype}{list(is_available.shape)}",
            )
        available = np.flatnonzero(is_available)
        chosen = generator_of(round_num).choice(available, min(size, len(available)), replace=False)
        return [population[index] for index in map(int, chosen)]

    return sample


def periodic_availability(
    num_clients: int, period: float, fraction: float, *, phases: Any = None, seed: int = 0
) -> Callable[[int], np.ndarray]:
    """A trace in which each client is available for a part of each period: at night, while it charges.

    Client k is available in the rounds t in which `(t - phase_k) mod period < fraction * period`.

    Args:
      num_clients: the number of clients.
      period: the length of a day in rounds.
      fraction: the part of a period in which a client is available, from 0 to 1.
      phases: float `[clients]`, or one for all, the round in which a client becomes available; None draws them
        uniformly from a period, so that clients live in all time zones.
      seed: where drawing the phases begins.

    Returns:
      A function `(round_num)` to bool `[clients]`.

    Raises:
      KoinonValueError: if `period` is not positive, `fraction` not between 0 and 1, or there is not one phase for each
        client.

    References:
      Eichner et al., "Semi-Cyclic Stochastic Gradient Descent", 2019.
    """
    if not period > 0 or not 0 <= fraction <= 1:
        raise KoinonValueError(
            "A client is available for a part of a period.",
            expected="a positive period, and a fraction from 0 to 1",
            found=f"{period=}, {fraction=}",
        )
    if phases is None:
        phases = np.random.default_rng(seed).uniform(0, period, num_clients)
    phases = np.asarray(phases, np.float64)
    if phases.shape not in ((), (num_clients,)):
        raise KoinonValueError("Every client needs one phase.", expected=f"[{num_clients}]", found=f"{phases.shape}")
    phases = np.broadcast_to(phases, (num_clients,))

    def trace(round_num: int) -> np.ndarray:
        return (round_num - phases) % period < fraction * period

    return trace


def _round_generators(seed: int | None) -> Callable[[int], np.random.Generator]:
    """A function that gives each round a generator that depends on the seed and on the round only."""
    entropy = secrets.randbits(128) if seed is None else operator.index(seed)
    if entropy < 0:
        raise KoinonValueError("A seed must not be negative.", found=str(seed))

    def generator_of(round_num: int) -> np.random.Generator:
        if operator.index(round_num) < 0:
            raise KoinonValueError("A round number must not be negative.", found=str(round_num))
        return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(operator.index(round_num),)))

    return generator_of


def _check_size(size: int, available: int | None) -> None:
    if size < 0 or (available is not None and size > available):
        raise KoinonValueError(
            f"A cohort of {size} clients cannot be drawn.",
            expected="0 clients or more" if available is None else f"0 to {available} clients",
            hint="draw fewer, or build the function with `replace=True`" if size > 0 else None,
        )
