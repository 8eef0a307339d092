"""Devices, deadlines and simulated time: closed forms where there are any, and events played one by one elsewhere."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon._errors import KoinonValueError
from koinon.simulation import build_uniform_sampling_fn
from koinon.simulation.system import SystemModel, SystemSimulation

MODEL = SystemModel(
    seconds_per_example=0.5,
    compute_sigma=0.8,
    download_bytes=1e6,
    upload_bytes=2e6,
    download_rate=4e5,
    upload_rate=1e5,
    network_sigma=0.5,
    jitter_sigma=0.2,
    dropout_probability=0.25,
    seed=3,
)


def test_without_randomness_a_participation_takes_what_its_parts_take() -> None:
    """Download, work and upload, one after the other."""
    system = SystemModel(
        seconds_per_example=0.5, download_bytes=3e6, download_rate=1e6, upload_bytes=1e6, upload_rate=2e5
    )
    found = system.participate(["a", "b"], [4, 0], participation=9)
    assert found.seconds.tolist() == [3 + 4 * 0.5 + 5, 3 + 5]
    assert found.reports.all()


def test_speeds_belong_to_the_client_and_jitter_to_the_participation() -> None:
    """A device is the same in every round; its time varies by the factor that all its examples share."""
    steady = SystemModel(seconds_per_example=2.0, compute_sigma=0.7, seed=1)
    for client_id in ("a", 5, ("b", 1)):
        expected = 10 * steady.device(client_id).seconds_per_example
        for participation in range(3):
            assert steady.participate([client_id], [10], participation).seconds.tolist() == pytest.approx([expected])
    shaky = SystemModel(seconds_per_example=2.0, jitter_sigma=0.3, seed=1)
    times = np.array([shaky.participate(["a"], [10], round_num).seconds[0] for round_num in range(2000)])
    logs = np.log(times / 20)
    assert abs(logs.mean()) < 5 * 0.3 / math.sqrt(2000)
    assert abs(logs.std() - 0.3) < 5 * 0.3 / math.sqrt(4000)


def test_speeds_are_log_normal_over_the_population_and_independent() -> None:
    """Medians and spreads are the declared ones; the three speeds of a device are not correlated."""
    devices = np.log([MODEL.device(client_id) for client_id in range(4000)])
    medians, sigmas = np.log([0.5, 4e5, 1e5]), np.array([0.8, 0.5, 0.5])
    assert np.all(abs(devices.mean(0) - medians) < 5 * sigmas / math.sqrt(4000))
    assert np.all(abs(devices.std(0) - sigmas) < 5 * sigmas / math.sqrt(8000))
    correlations = np.corrcoef(devices.T)[~np.eye(3, dtype=bool)]
    assert abs(correlations).max() < 5 / math.sqrt(4000)


def test_clients_vanish_as_often_as_declared_at_any_moment() -> None:
    """The moment is uniform in the time that the client would have taken."""
    always = SystemModel(seconds_per_example=1.0, seed=3)
    drops = SystemModel(seconds_per_example=1.0, dropout_probability=0.3, seed=3)
    ids, work = list(range(4000)), [10.0] * 4000
    found, whole = drops.participate(ids, work, 0), always.participate(ids, work, 0)
    assert abs((~found.reports).mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 4000)
    assert np.array_equal(found.seconds[found.reports], whole.seconds[found.reports])
    moments = (found.seconds / whole.seconds)[~found.reports]
    quantiles = np.quantile(moments, [0.1, 0.5, 0.9])
    assert np.all(abs(quantiles - [0.1, 0.5, 0.9]) < 5 * 0.5 / math.sqrt(len(moments)))


def test_the_outcome_is_a_function_of_seed_client_and_round_in_every_process() -> None:
    """Neither the others that take part nor Python's hash seed change it; another seed does."""
    together = MODEL.participate(["a", "b", 7], [5, 6, 7], 4).seconds.tolist()
    assert MODEL.participate([np.int64(7)], [7], 4).seconds.tolist() == together[2:]
    assert MODEL.participate(["7"], [7], 4).seconds.tolist() != together[2:]
    assert MODEL.participate(["a"], [5], 5).seconds.tolist() != together[:1]
    code = (
        "from koinon.simulation.system import SystemModel\n"
        "system = SystemModel(compute_sigma=1.0, jitter_sigma=1.0)\n"
        "print(system.participate(['a', ('b', 2)], [1, 2], 3).seconds.tolist())"
    )
    here = SystemModel(compute_sigma=1.0, jitter_sigma=1.0).participate(["a", ("b", 2)], [1, 2], 3).seconds.tolist()
    there = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "99"}, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == str(here)


@pytest.mark.parametrize(
    "arguments",
    [
        {"seconds_per_example": -1.0},
        {"compute_sigma": -0.1},
        {"jitter_sigma": math.inf},
        {"upload_rate": 0.0},
        {"upload_bytes": math.nan},
        {"dropout_probability": 1.0},
    ],
)
def test_impossible_systems_are_refused(arguments: dict[str, float]) -> None:
    """The error names the number."""
    with pytest.raises(KoinonValueError, match=next(iter(arguments))):
        SystemModel(**arguments)  # pyright: ignore[reportArgumentType]


def played_round(
    seconds: list[float], reports: list[bool], size: int, deadline: float | None
) -> tuple[set[int], set[int], float]:
    """A round event by event: the clients that are counted, those that vanish in time, and how long it takes."""
    counted: set[int] = set()
    vanished: set[int] = set()
    now = 0.0
    for time, client in sorted((time, client) for client, time in enumerate(seconds)):
        if len(counted) == size:
            break
        if deadline is not None and time > deadline:
            return counted, vanished, deadline
        now = time
        (counted if reports[client] else vanished).add(client)
    return counted, vanished, now if size else 0.0


class GivenTimes:
    """A system whose participations are given."""

    def __init__(self, seconds: list[float], reports: list[bool]) -> None:
        self.outcome = np.array(seconds), np.array(reports, bool)

    def participate(self, client_ids: Any, num_examples: Any, participation: int) -> Any:
        return self.outcome


@given(
    outcomes=st.lists(st.tuples(st.integers(1, 1000), st.booleans()), max_size=12, unique_by=lambda o: o[0]),
    size=st.integers(0, 12),
    deadline=st.none() | st.integers(1, 1000),
)
def test_a_round_ends_as_if_it_were_played_event_by_event(
    outcomes: list[tuple[int, bool]], size: int, deadline: int | None
) -> None:
    """The same clients count and vanish, and the round takes the same time; everybody is one of three."""
    seconds, reports = [float(time) for time, _ in outcomes], [does for _, does in outcomes]
    simulation = SystemSimulation(
        lambda round_num, size: list(range(len(outcomes))),
        GivenTimes(seconds, reports),  # pyright: ignore[reportArgumentType]
        lambda client_id: 1,
        deadline=deadline,
    )
    outcome = simulation.outcome(0, size)
    counted, vanished, now = played_round(seconds, reports, size, deadline)
    assert set(outcome.reported) == counted
    assert outcome.seconds == now
    assert sorted([*outcome.reported, *outcome.dropped, *outcome.late]) == outcome.selected
    if size:
        assert set(outcome.dropped) >= vanished
        assert {client for client in outcome.dropped if seconds[client] < now} == {
            c for c in vanished if seconds[c] < now
        }


def test_over_selection_cuts_off_the_slowest() -> None:
    """With n clients of independent exponential times, the round takes as long as the k-th order statistic."""
    population = range(10_000)
    sizes = np.random.default_rng(0).exponential(1.0, len(population))
    system = SystemModel(seconds_per_example=1.0)
    times = {}
    for over_selection in (1.0, 1.3):
        rounds = SystemSimulation(
            build_uniform_sampling_fn(population, seed=1),
            system,
            lambda client_id: float(sizes[client_id]),
            over_selection=over_selection,
        )
        outcomes = [rounds.outcome(round_num, 20) for round_num in range(400)]
        assert all(len(outcome.reported) == 20 for outcome in outcomes)
        assert all(len(outcome.selected) == round(20 * over_selection) for outcome in outcomes)
        times[over_selection] = np.array([outcome.seconds for outcome in outcomes])
        # E of the k-th of n exponential times: sum over i < k of 1 / (n - i); its variance the sum of the squares.
        n = round(20 * over_selection)
        steps = 1 / (n - np.arange(20))
        assert abs(times[over_selection].mean() - steps.sum()) < 5 * math.sqrt((steps**2).sum() / 400)
    assert times[1.3].mean() < 0.5 * times[1.0].mean()


def test_rounds_with_too_few_reports_are_abandoned() -> None:
    """They take their time, and count nobody."""
    system = SystemModel(seconds_per_example=1.0)
    sizes = {"a": 1.0, "b": 2.0, "c": 30.0}
    rounds = SystemSimulation(lambda r, size: list(sizes), system, sizes.get, deadline=10.0, min_reports=3)
    outcome = rounds.outcome(0, 3)
    assert (outcome.reported, outcome.late, outcome.seconds) == ([], ["c"], 10.0)
    enough = SystemSimulation(lambda r, size: list(sizes), system, sizes.get, deadline=10.0, min_reports=2)
    assert enough(0, 3) == ["a", "b"]
    assert SystemSimulation(lambda r, size: list(sizes), system, sizes.get, epochs=2).outcome(0, 3).seconds == 60.0


def test_elapsed_time_is_the_sum_of_the_rounds_in_whatever_order_they_are_asked_for() -> None:
    """Each round is a function of its number."""
    rounds = SystemSimulation(
        build_uniform_sampling_fn(range(100), seed=0), MODEL, lambda client_id: 20, over_selection=1.3, deadline=60.0
    )
    durations = [rounds.outcome(round_num, 10).seconds for round_num in reversed(range(5))][::-1]
    np.testing.assert_allclose(rounds.elapsed(range(5), 10), np.cumsum(durations))
    assert rounds(3, 10) == rounds.outcome(3, 10).reported


@pytest.mark.parametrize("arguments", [{"over_selection": 0.9}, {"deadline": 0.0}, {"min_reports": -1}])
def test_impossible_rounds_are_refused(arguments: dict[str, float]) -> None:
    """The error names the number."""
    with pytest.raises(KoinonValueError, match=next(iter(arguments))):
        SystemSimulation(lambda r, size: [], MODEL, lambda _: 1, **arguments)  # pyright: ignore[reportArgumentType]
