"""The training loop with TFF's arguments: its rounds, keys, resumption and signals."""

from __future__ import annotations

import os
import pathlib
import signal
from typing import Any

import jax.numpy as jnp
import pytest

import koinon as ko
from koinon.errors import KoinonTypeError, KoinonValueError
from koinon.program import FileProgramStateManager, MemoryReleaseManager
from koinon.simulation import run_training_process


@pytest.fixture(scope="module")
def process() -> Any:
    """Adds what clients send to its state."""

    @ko.federated_computation
    def initialize() -> Any:
        return ko.federated_value(0.0, ko.SERVER)

    @ko.federated_computation(ko.types.at_server(jnp.float32), ko.types.at_clients(jnp.float32))
    def next_fn(total: Any, values: Any) -> Any:
        sent = ko.federated_sum(values)
        return ko.federated_map(lambda a, b: a + b, (total, sent)), {"sent": sent}

    return ko.templates.IterativeProcess(initialize, next_fn)


def select(number: int) -> list[float]:
    """The clients of a round, of which there are two."""
    return [float(number), 10.0]


def test_round_zero_is_that_of_the_initial_state(tmp_path: pathlib.Path, process: Any) -> None:
    """It is evaluated, released and saved; later rounds are evaluated and saved as often as asked for."""
    memory, states = MemoryReleaseManager(), FileProgramStateManager(tmp_path, keep_total=0)
    state = run_training_process(
        process,
        select,
        5,
        evaluation_fn=lambda state, data: {"error": data - float(state)},
        evaluation_selection_fn=lambda number: 100.0 + number,
        rounds_per_evaluation=2,
        program_state_manager=states,
        rounds_per_saving_program_state=3,
        metrics_managers=[memory],
    )
    released = memory.values()

    assert float(state) == 1 + 2 + 3 + 4 + 5 + 50
    assert states.get_versions() == [0, 3]
    assert list(released) == [0, 1, 2, 3, 4, 5]
    assert set(released[0]) == {"evaluation/error", "evaluation/evaluation_time_in_seconds"}
    assert set(released[1]) == {"sent", "round_number", "training_time_in_seconds"}
    assert (released[2]["sent"], released[2]["round_number"]) == (12.0, 2)
    assert released[2]["evaluation/error"] == 102 - (11 + 12)
    assert released[2]["training_time_in_seconds"] > 0


def test_a_program_goes_on_after_the_saved_round(tmp_path: pathlib.Path, process: Any) -> None:
    """No round is run twice, none is left out, and round 0 is not evaluated again."""
    memory, states = MemoryReleaseManager(), FileProgramStateManager(tmp_path)
    run_training_process(process, select, 2, program_state_manager=states)
    state = run_training_process(
        process,
        select,
        4,
        evaluation_fn=lambda state, data: {},
        evaluation_selection_fn=select,
        program_state_manager=states,
        metrics_managers=[memory],
    )

    assert list(memory.values()) == [3, 4]
    assert float(state) == 1 + 2 + 3 + 4 + 40


def test_a_signal_saves_and_ends_the_loop(tmp_path: pathlib.Path, process: Any) -> None:
    """The state after the round is saved, whether or not it was its turn."""
    states = FileProgramStateManager(tmp_path)

    def interrupt(number: int) -> list[float]:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return select(number)

    with pytest.raises(KeyboardInterrupt, match="after round 2 of 9"):
        run_training_process(process, interrupt, 9, program_state_manager=states, rounds_per_saving_program_state=5)

    assert states.get_versions() == [0, 2]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"total_rounds": 0}, "total_rounds=0"),
        ({"total_rounds": 2.5}, r"`total_rounds` must be a positive integer(.|\n)*total_rounds=2\.5"),
        ({"rounds_per_evaluation": 0}, "rounds_per_evaluation=0"),
        ({"rounds_per_saving_program_state": "2"}, "rounds_per_saving_program_state='2'"),
        ({"metrics_managers": MemoryReleaseManager()}, r"try +put it in a list"),
        ({"evaluation_fn": lambda state, data: {}}, "both `evaluation_fn` and"),
    ],
)
def test_a_loop_that_cannot_run_says_so(process: Any, changed: dict[str, Any], message: str) -> None:
    """Numbers are positive integers, an evaluation is whole, and managers are a list."""
    with pytest.raises((KoinonValueError, KoinonTypeError), match=message):
        run_training_process(process, select, **{"total_rounds": 1, **changed})
