"""Sampling of clients: a function of the round alone, with the probabilities that it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon._errors import KoinonValueError
from koinon.simulation import (
    build_availability_sampling_fn,
    build_poisson_sampling_fn,
    build_uniform_sampling_fn,
    build_weighted_sampling_fn,
    periodic_availability,
)

IDS = [f"client {number}" for number in range(20)]

BUILDERS: dict[str, Any] = {
    "uniform": lambda seed: (lambda sample: lambda round_num: sample(round_num, 5))(
        build_uniform_sampling_fn(IDS, seed=seed)
    ),
    "weighted": lambda seed: (lambda sample: lambda round_num: sample(round_num, 5))(
        build_weighted_sampling_fn(IDS, np.arange(1, 21), seed=seed)
    ),
    "poisson": lambda seed: build_poisson_sampling_fn(IDS, 0.3, seed=seed),
    "availability": lambda seed: (lambda sample: lambda round_num: sample(round_num, 5))(
        build_availability_sampling_fn(IDS, periodic_availability(20, 24, 0.5), seed=seed)
    ),
}


@pytest.mark.parametrize("name", BUILDERS)
@given(rounds=st.lists(st.integers(0, 10**6), max_size=8), seed=st.integers(0, 2**70))
def test_a_round_is_the_same_whenever_it_is_asked_for(name: str, rounds: list[int], seed: int) -> None:
    """Neither the order nor the number of calls changes the cohort of a round."""
    first, second = BUILDERS[name](seed), BUILDERS[name](seed)
    cohorts = {round_num: first(round_num) for round_num in rounds}
    for round_num in reversed(rounds + rounds):
        assert second(round_num) == cohorts[round_num]


@pytest.mark.parametrize("name", BUILDERS)
def test_rounds_and_seeds_differ(name: str) -> None:
    """Other rounds and other seeds have other cohorts; without a seed two functions differ, each repeating itself."""
    sample = BUILDERS[name](0)
    assert len({tuple(sample(round_num)) for round_num in range(50)}) > 40
    assert len({tuple(BUILDERS[name](seed)(0)) for seed in range(50)}) > 40
    unseeded = BUILDERS[name](None)
    assert [unseeded(round_num) for round_num in range(9)] == [unseeded(round_num) for round_num in range(9)]
    assert [unseeded(round_num) for round_num in range(9)] != [BUILDERS[name](None)(number) for number in range(9)]


@pytest.mark.parametrize("name", BUILDERS)
def test_negative_rounds_and_seeds_are_refused(name: str) -> None:
    """Neither has a meaning."""
    with pytest.raises(KoinonValueError, match="round number"):
        BUILDERS[name](0)(-1)
    with pytest.raises(KoinonValueError, match="seed"):
        BUILDERS[name](-1)


@given(size=st.integers(0, 20), round_num=st.integers(0, 99))
def test_without_replacement_clients_are_distinct(size: int, round_num: int) -> None:
    """As many as asked for, each once, all of the population."""
    for sample in (build_uniform_sampling_fn(IDS, seed=1), build_weighted_sampling_fn(IDS, [1] * 20, seed=1)):
        cohort = sample(round_num, size)
        assert len(cohort) == len(set(cohort)) == size
        assert set(cohort) <= set(IDS)


def test_with_replacement_a_cohort_may_be_larger_than_the_population() -> None:
    """Clients repeat."""
    assert len(build_uniform_sampling_fn(range(3), replace=True, seed=0)(1, 10)) == 10
    assert len(build_weighted_sampling_fn("abc", [1, 2, 3], replace=True, seed=0)(1, 10)) == 10


@pytest.mark.parametrize("size", [-1, 21])
def test_impossible_sizes_are_refused(size: int) -> None:
    """More clients than there are, or less than none, are an error with the limits."""
    for sample in (build_uniform_sampling_fn(IDS, seed=1), build_weighted_sampling_fn(IDS, [1] * 20, seed=1)):
        with pytest.raises(KoinonValueError, match="0 to 20"):
            sample(0, size)
    with pytest.raises(KoinonValueError, match="0 clients or more"):
        build_uniform_sampling_fn(IDS, replace=True)(0, -1)


def test_an_empty_population_gives_empty_cohorts() -> None:
    """There is nobody to draw, and nobody was asked for."""
    assert build_uniform_sampling_fn([])(0, 0) == []
    assert build_uniform_sampling_fn([], replace=True)(0, 0) == []
    assert build_poisson_sampling_fn([], 0.5)(0) == []


def test_uniform_sampling_draws_each_client_equally_often() -> None:
    """In 4,000 rounds of 5 of 20, counts lie within five standard deviations of 1,000."""
    sample = build_uniform_sampling_fn(range(20), seed=0)
    counts = np.bincount([client for round_num in range(4000) for client in sample(round_num, 5)], minlength=20)
    assert np.all(abs(counts - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75))


def test_weighted_sampling_draws_in_proportion() -> None:
    """Single draws have the probabilities of the weights; clients of weight zero are never drawn."""
    sample = build_weighted_sampling_fn(range(4), [0, 1, 2, 7], seed=0)
    counts = np.bincount([sample(round_num, 1)[0] for round_num in range(5000)], minlength=4)
    probabilities = np.array([0, 0.1, 0.2, 0.7])
    assert counts[0] == 0
    assert np.all(abs(counts - 5000 * probabilities) <= 5 * np.sqrt(5000 * probabilities * (1 - probabilities)))
    with pytest.raises(KoinonValueError, match="0 to 3"):
        sample(0, 4)


@pytest.mark.parametrize("weights", [[1, 2], [1, 2, -1], [0, 0, 0], [1, 2, np.nan], [1, 2, np.inf], [[1, 2, 3]]])
def test_weights_are_finite_and_not_negative(weights: Any) -> None:
    """There is one for each client, and they are not all zero."""
    with pytest.raises(KoinonValueError, match="3 finite numbers"):
        build_weighted_sampling_fn("abc", weights)


def test_poisson_sampling_takes_clients_independently() -> None:
    """Counts, cohort sizes and pairs have the means of independent draws; the ends 0 and 1 take none and all."""
    sample = build_poisson_sampling_fn(range(20), 0.3, seed=0)
    taken = np.zeros((4000, 20))
    for round_num in range(4000):
        taken[round_num, sample(round_num)] = 1
    deviation = np.sqrt(0.3 * 0.7 / 4000)
    assert np.all(abs(taken.mean(0) - 0.3) < 5 * deviation)
    np.testing.assert_allclose(taken.sum(1).var(), 20 * 0.3 * 0.7, rtol=0.15)
    correlations = np.asarray(np.corrcoef(taken.T))[~np.eye(20, dtype=bool)]
    assert abs(correlations).max() < 5 / np.sqrt(4000)
    assert build_poisson_sampling_fn(IDS, 0.0)(3) == []
    assert build_poisson_sampling_fn(IDS, 1.0)(3) == IDS


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_probabilities_lie_between_zero_and_one(probability: float) -> None:
    """Others are an error."""
    with pytest.raises(KoinonValueError, match="between 0 and 1"):
        build_poisson_sampling_fn(IDS, probability)


@given(
    period=st.integers(1, 50),
    fraction=st.floats(0, 1),
    phases=st.lists(st.floats(-100, 100), min_size=1, max_size=5),
    round_num=st.integers(0, 200),
)
def test_clients_are_available_for_their_part_of_each_period(
    period: int, fraction: float, phases: list[float], round_num: int
) -> None:
    """A client is available from its phase on, again in every period, and at no other time."""
    trace = periodic_availability(len(phases), period, fraction, phases=phases)
    found = trace(round_num)
    for is_available, phase in zip(found, phases, strict=True):
        since_phase = (round_num - phase) % period
        assert is_available == (since_phase < fraction * period)
    assert trace(round_num).tolist() == trace(round_num + 7 * period).tolist() or not all(
        phase == int(phase) for phase in phases
    )


def test_phases_are_spread_over_a_period_and_belong_to_the_seed() -> None:
    """At any time the expected part of the clients is there; other seeds have other time zones."""
    trace = periodic_availability(4000, 24, 0.25, seed=1)
    counts = np.array([trace(hour).sum() for hour in range(24)])
    assert np.all(abs(counts - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75))
    assert trace(3).tolist() == periodic_availability(4000, 24, 0.25, seed=1)(3).tolist()
    assert trace(3).tolist() != periodic_availability(4000, 24, 0.25, seed=2)(3).tolist()
    assert periodic_availability(5, 24, 0.5, phases=12.0)(12).all()
    assert not periodic_availability(5, 24, 0.5, phases=12.0)(11).any()


def test_only_available_clients_are_drawn_each_equally_often() -> None:
    """Of a recorded trace; where fewer are there than wanted, all of them take part."""
    recorded = np.zeros((2, 20), bool)
    recorded[0, :10] = recorded[1, 10:13] = True
    sample = build_availability_sampling_fn(range(20), lambda round_num: recorded[round_num % 2], seed=0)
    counts = np.bincount([client for round_num in range(0, 4000, 2) for client in sample(round_num, 4)], minlength=20)
    assert counts[10:].sum() == 0
    assert np.all(abs(counts[:10] - 800) < 5 * np.sqrt(2000 * 0.4 * 0.6))
    assert sorted(sample(1, 4)) == [10, 11, 12]
    assert len(set(sample(0, 10))) == 10
    with pytest.raises(KoinonValueError, match="0 clients or more"):
        sample(0, -1)


@pytest.mark.parametrize("mask", [np.ones(3, bool), np.ones(20), [1] * 20])
def test_a_trace_says_of_each_client_whether_it_is_available(mask: Any) -> None:
    """Numbers, and masks of another population, are errors."""
    with pytest.raises(KoinonValueError, match=r"bool\[20\]"):
        build_availability_sampling_fn(IDS, lambda _: mask)(0, 1)


@pytest.mark.parametrize(
    ("period", "fraction", "phases"), [(0, 0.5, None), (24, 1.5, None), (24, float("nan"), None), (24, 0.5, [1, 2])]
)
def test_impossible_periods_are_refused(period: float, fraction: float, phases: Any) -> None:
    """A period is positive, a part of it between none and all, and every client has one phase."""
    with pytest.raises(KoinonValueError, match=r"part of a period|one phase"):
        periodic_availability(3, period, fraction, phases=phases)
