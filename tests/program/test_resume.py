"""A program that is stopped between any two rounds and started again ends with the same bits."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.program import CSVFileReleaseManager, FileProgramStateManager, JSONLinesReleaseManager

ROUNDS = 5


class State(NamedTuple):
    weights: Any
    momentum: Any
    key: Any
    round_num: Any


@ko.jax_computation
def initialize() -> Any:
    """The state before the first round."""
    return State({"w": jnp.zeros(3, jnp.bfloat16)}, jnp.zeros(3), jax.random.key(5), jnp.int32(0))


STATE_TYPE = initialize.type_signature.result


@ko.jax_computation
def update(state: Any, mean: Any) -> Any:
    """A step with momentum and noise."""
    key, noise_key = jax.random.split(state.key)
    momentum = 0.9 * state.momentum + mean + jax.random.normal(noise_key, (3,))
    weights = {"w": state.weights["w"] + momentum.astype(jnp.bfloat16)}
    return State(weights, momentum, key, state.round_num + 1)


@ko.federated_computation(ko.types.at_server(STATE_TYPE), ko.types.at_clients(ko.types.TensorType("float32", (3,))))
def run_round(state: Any, values: Any) -> Any:
    """One round: the mean of the clients moves the weights."""
    return ko.federated_map(update, (state, ko.federated_mean(values)))


def run(root: pathlib.Path, until: int) -> Any:
    """Runs the program from its latest state to the end of round `until`, with a checkpoint and releases each round."""
    manager = FileProgramStateManager(root / "states")
    releases = [CSVFileReleaseManager(root / "metrics.csv"), JSONLinesReleaseManager(root / "metrics.jsonl")]
    state, last_round = manager.load_latest(initialize())
    if state is None:
        state = initialize()
    for round_num in range(last_round + 1, until + 1):
        cohort = np.random.default_rng(round_num).normal(size=(4, 3)).astype(np.float32)
        state = run_round(state, list(cohort))
        for manager_of_releases in releases:
            manager_of_releases.release({"momentum": state.momentum, "round": state.round_num}, round_num)
        if round_num != until or until == ROUNDS:
            manager.save(state, round_num)
    return state


def bits(state: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))]


@pytest.mark.parametrize("stop", range(1, ROUNDS))
def test_a_stopped_program_ends_with_the_same_bits(tmp_path: pathlib.Path, stop: int) -> None:
    """State and released files equal those of a program that ran through, wherever it stopped.

    The first part stops after it has released a round and before it has saved it.
    """
    whole = run(tmp_path / "whole", ROUNDS)
    run(tmp_path / "parts", stop)
    resumed = run(tmp_path / "parts", ROUNDS)
    assert jax.tree.structure(resumed) == jax.tree.structure(whole)
    assert bits(resumed) == bits(whole)
    for name in ("metrics.csv", "metrics.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
