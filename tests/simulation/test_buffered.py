"""The schedule of buffered asynchronous aggregation: closed forms for equal devices, and laws that hold for any."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.simulation.system import BufferedSchedule, SystemModel

EQUAL = SystemModel(seconds_per_example=1.0)


@given(concurrency=st.integers(1, 8), waves=st.integers(1, 4), spare=st.integers(0, 3))
def test_equal_devices_with_a_buffer_for_all_are_synchronous(concurrency: int, waves: int, spare: int) -> None:
    """Every wave reports at once and fills the buffer, so that only its last report starts with the new model."""
    schedule = BufferedSchedule(
        range(concurrency + spare), EQUAL, lambda _: 10, concurrency=concurrency, buffer_size=concurrency
    )
    for wave, buffer in enumerate(schedule.buffers(waves), 1):
        assert buffer.seconds == 10.0 * wave
        # The first of a wave are replaced before the step that the last one completes.
        assert buffer.staleness.tolist() == ([0] if wave == 1 else [1])[: concurrency > 1] * (concurrency - 1) + [0]


@given(concurrency=st.integers(1, 8), steps=st.integers(0, 40))
def test_equal_devices_without_a_buffer_are_as_stale_as_there_are_others(concurrency: int, steps: int) -> None:
    """With a step for each report, M - 1 others report between a client's start and its report."""
    schedule = BufferedSchedule(range(20), EQUAL, lambda _: 10, concurrency=concurrency, buffer_size=1)
    buffers = list(schedule.buffers(steps))
    assert [int(buffer.staleness[0]) for buffer in buffers] == [min(i, concurrency - 1) for i in range(steps)]
    assert [buffer.seconds for buffer in buffers] == [10.0 * (1 + i // concurrency) for i in range(steps)]


@given(seed=st.integers(0, 99), concurrency=st.integers(1, 9), buffer_size=st.integers(1, 5))
def test_staleness_is_the_number_of_steps_between_start_and_report(
    seed: int, concurrency: int, buffer_size: int
) -> None:
    """Counted by playing the same participations with the times of their starts and ends written down."""
    system = SystemModel(seconds_per_example=1.0, compute_sigma=1.0, jitter_sigma=0.5, seed=seed)
    durations: list[float] = []

    class Recorded:
        def participate(self, client_ids: list[int], work: list[float], participation: int) -> object:
            outcome = system.participate(client_ids, work, participation)
            durations.append(float(outcome.seconds[0]))
            return outcome

    schedule = BufferedSchedule(
        range(9),
        Recorded(),  # pyright: ignore[reportArgumentType]
        lambda _: 10,
        concurrency=concurrency,
        buffer_size=buffer_size,
        seed=seed,
    )
    buffers = list(schedule.buffers(12))
    # By hand: participation i < M starts at 0; each later one when an earlier one ends, in the order of their ends.
    starts = [0.0] * concurrency
    finished: list[tuple[float, int]] = sorted((durations[i], i) for i in range(concurrency))
    reports: list[tuple[float, float]] = []
    for i in range(concurrency, len(durations)):
        end, who = finished.pop(0)
        reports.append((starts[who], end))
        starts.append(end)
        finished = sorted([*finished, (end + durations[i], i)])
    reports.append((starts[finished[0][1]], finished[0][0]))
    steps = [end for _, end in reports[buffer_size - 1 :: buffer_size]]
    expected = [
        [sum(begin < step < end for step in steps) for begin, end in chunk]
        for chunk in (reports[i : i + buffer_size] for i in range(0, 12 * buffer_size, buffer_size))
    ]
    assert [buffer.staleness.tolist() for buffer in buffers] == expected
    assert [buffer.seconds for buffer in buffers] == steps[:12]


def test_clients_at_work_are_different_and_all_get_their_turn() -> None:
    """With as many at work as there are, the one that reports is the one that starts; else all are drawn alike."""
    everybody = BufferedSchedule(range(3), EQUAL, lambda _: 10, concurrency=3, buffer_size=3)
    for buffer in everybody.buffers(5):
        assert sorted(buffer.client_ids) == [0, 1, 2]
    some = BufferedSchedule(range(20), EQUAL, lambda _: 10, concurrency=4, buffer_size=4, seed=1)
    clients = [client for buffer in some.buffers(1000) for client in buffer.client_ids]
    counts = np.bincount(clients, minlength=20)
    assert np.all(abs(counts - 200) < 5 * np.sqrt(4000 / 20))


def test_slow_clients_are_stale_and_fast_ones_report_more_often() -> None:
    """What the synchronous server would wait for."""
    schedule = BufferedSchedule(
        range(10), EQUAL, lambda client_id: 100 if client_id == 0 else 5, concurrency=5, buffer_size=2, seed=0
    )
    staleness: dict[bool, list[int]] = {True: [], False: []}
    for buffer in schedule.buffers(300):
        for client_id, stale in zip(buffer.client_ids, buffer.staleness.tolist(), strict=True):
            staleness[client_id == 0].append(stale)
    assert np.mean(staleness[True]) > 5 * np.mean(staleness[False])
    assert len(staleness[True]) < len(staleness[False]) / 9


def test_what_is_too_stale_is_thrown_away_and_counted() -> None:
    """With the same times, the reports of a limited schedule are at most as stale as allowed."""
    system = SystemModel(seconds_per_example=1.0, compute_sigma=1.5, seed=2)
    schedule = BufferedSchedule(range(30), system, lambda _: 10, concurrency=10, buffer_size=2, max_staleness=3, seed=0)
    buffers = list(schedule.buffers(200))
    assert max(int(buffer.staleness.max()) for buffer in buffers) == 3
    assert sum(buffer.num_too_stale for buffer in buffers) > 0


def test_clients_that_vanish_are_replaced_and_counted() -> None:
    """The server waits for no one; the rate is the declared one."""
    system = SystemModel(seconds_per_example=1.0, dropout_probability=0.5, seed=2)
    buffers = list(BufferedSchedule(range(30), system, lambda _: 10, concurrency=5, buffer_size=4).buffers(300))
    dropped = sum(buffer.num_dropped for buffer in buffers)
    share = dropped / (dropped + 4 * 300)
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(2400)
    assert all(later.seconds >= earlier.seconds for earlier, later in itertools.pairwise(buffers))


def test_a_schedule_goes_on_from_any_step() -> None:
    """What comes from a step on does not depend on where the playing began."""
    schedule = BufferedSchedule(
        range(30), SystemModel(compute_sigma=1.0), lambda _: 10, concurrency=5, buffer_size=3, seed=4
    )
    whole = [(buffer.client_ids, buffer.staleness.tolist(), buffer.seconds) for buffer in schedule.buffers(20)]
    for start in (0, 7, 20):
        rest = [(b.client_ids, b.staleness.tolist(), b.seconds) for b in schedule.buffers(20, start)]
        assert rest == whole[start:]


def test_a_schedule_draws_by_itself() -> None:
    """A sampling function, which other simulations take, is no population."""
    with pytest.raises(KoinonTypeError, match=r"data\.client_ids(.|\n)*function"):
        BufferedSchedule(lambda number, size: [], SystemModel(), len, concurrency=1, buffer_size=1)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("concurrency", "buffer_size", "max_staleness"), [(0, 1, None), (6, 1, None), (1, 0, None), (1, 1, -1)]
)
def test_impossible_schedules_are_refused(concurrency: int, buffer_size: int, max_staleness: int | None) -> None:
    """The error has the numbers."""
    with pytest.raises(KoinonValueError, match=f"concurrency={concurrency}"):
        BufferedSchedule(
            range(5),
            EQUAL,
            lambda _: 1,
            concurrency=concurrency,
            buffer_size=buffer_size,
            max_staleness=max_staleness,
        )
