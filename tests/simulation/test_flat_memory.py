"""Long runs: after the first rounds nothing is compiled, and memory does not grow."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.simulation import ClientData, GeneratedClientData, build_uniform_sampling_fn

SIZES = (5, 6, 8)


def examples_of(client_id: int) -> dict[str, np.ndarray]:
    """Clients of 1 to 40 examples."""
    rng = np.random.default_rng(client_id)
    size = 1 + client_id * 7 % 40
    return {"x": rng.normal(size=(size, 5)).astype(np.float32), "y": rng.normal(size=size).astype(np.float32)}


def population(kind: str) -> Any:
    if kind == "streamed":
        return GeneratedClientData(1000, examples_of)
    return ClientData.from_clients({client_id: examples_of(client_id) for client_id in range(200)})


def averaging(example_spec: Any) -> Any:
    model = ko.learning.models.functional(
        lambda weights, x: x @ weights,
        jnp.zeros(5),
        example_spec=example_spec,
        loss=ko.learning.losses.squared_error,
    )
    return ko.learning.algorithms.build_weighted_fed_avg(
        model, optax.sgd(0.01), optax.adam(0.01), batch_size=4, epochs=2, shuffle=True
    )


class Compilations:
    """Counts what XLA compiles."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, event: str, duration: float, **attributes: Any) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def counting_compilations() -> Iterator[Compilations]:
    compilations = Compilations()
    jax.monitoring.register_event_duration_secs_listener(compilations)
    try:
        yield compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(compilations)


def play(data: Any, process: Any, rounds: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yields the number of each round when it is over, and the sizes that decide what is compiled for it."""
    sample = build_uniform_sampling_fn(data.client_ids, seed=0)
    state = process.initialize()
    selections = (sample(round_num, SIZES[round_num % len(SIZES)]) for round_num in range(rounds))
    for round_num, cohort in enumerate(data.prefetch(selections)):
        state, metrics = process.next(state, cohort)
        assert float(metrics["client_work"]["train"]["num_examples"]) == 2 * cohort.lengths.sum()
        yield round_num, (SIZES[round_num % len(SIZES)], cohort.packed.on_device()[0].shape[0])
        del cohort, metrics


@pytest.mark.parametrize("kind", ["in memory", "streamed"])
def test_three_hundred_rounds_of_different_cohorts_compile_nothing_after_the_first(kind: str) -> None:
    """Every combination of sizes occurs in the first 100 rounds; from then on nothing is compiled, nothing is kept."""
    data = population(kind)
    process = averaging(data.element_type)
    seen: tuple[set[Any], set[Any]] = set(), set()
    live: list[int] = []
    with counting_compilations() as compilations:
        for round_num, sizes in play(data, process, 300):
            seen[round_num >= 100].add(sizes)
            if round_num == 99:
                warm = compilations.count
                assert warm > 0
            if round_num % 50 == 49:
                gc.collect()
                live.append(len(jax.live_arrays()))
        assert seen[1] <= seen[0]
        assert compilations.count == warm
    # The cohort that is prefetched, and the state of the round, may be there or not yet at the moment of counting.
    assert max(live[2:]) - min(live[2:]) <= 4


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["in memory", "streamed"])
def test_ten_thousand_rounds_take_no_more_memory_than_five_hundred(kind: str) -> None:
    """It grows by less than 1 KB a round and 20 MB in all; only a size that never was before is compiled after that."""
    data = population(kind)
    process = averaging(data.element_type)
    seen: tuple[set[Any], set[Any]] = set(), set()
    resident: list[int] = []
    with counting_compilations() as compilations:
        for round_num, sizes in play(data, process, 10_000):
            seen[round_num >= 500].add(sizes)
            if round_num == 499:
                warm = compilations.count
            if round_num >= 499 and (round_num + 1) % 100 == 0:
                gc.collect()
                resident.append(resident_bytes())
        assert compilations.count - warm <= len(seen[1] - seen[0]) <= 2
    rounds = 100 * np.arange(len(resident))
    slope = np.polyfit(rounds, resident, 1)[0]
    assert slope < 1024
    assert resident[-1] - resident[0] < 20 * 2**20
