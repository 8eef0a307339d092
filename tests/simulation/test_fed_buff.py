"""FedBuff: equal to federated averaging without staleness, and to a simulation by hand with it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.learning.algorithms import build_unweighted_fed_avg, build_weighted_fed_avg
from koinon.simulation import ClientData, GeneratedClientData
from koinon.simulation.system import (
    BufferedSchedule,
    SystemModel,
    build_fed_buff_process,
    inverse_square_root,
    run_fed_buff,
)

EXAMPLE = {"x": (jnp.float32, (3,)), "y": jnp.float32}
LEARNING_RATE, SERVER_RATE = 0.1, 0.7
DATA = ClientData.from_clients(
    {
        client_id: {
            "x": np.random.default_rng([1, client_id]).normal(size=(2 + client_id % 4, 3)).astype(np.float32),
            "y": np.random.default_rng([2, client_id]).normal(size=2 + client_id % 4).astype(np.float32),
        }
        for client_id in range(12)
    }
)


def regression() -> ko.learning.models.FunctionalModel:
    return ko.learning.models.functional(
        lambda weights, x: x @ weights["w"],
        {"w": jnp.zeros(3)},
        example_spec=EXAMPLE,
        loss=ko.learning.losses.squared_error,
    )


def unweighted() -> Any:
    return build_unweighted_fed_avg(
        regression(), optax.sgd(LEARNING_RATE), optax.sgd(SERVER_RATE), batch_size=2, epochs=2
    )


def local_update(weights: np.ndarray, client_id: int) -> np.ndarray:
    """How a client's weights change: two epochs of SGD in batches of two on the squared error."""
    x, y = DATA.dataset(client_id)["x"].astype(float), DATA.dataset(client_id)["y"].astype(float)
    own = weights.copy()
    for _ in range(2):
        for start in range(0, len(y), 2):
            batch = slice(start, start + 2)
            residual = x[batch] @ own - y[batch]
            own -= LEARNING_RATE * 2 * (residual[:, None] * x[batch]).mean(0)
    return weights - own


def weights_of(process: Any, state: Any) -> np.ndarray:
    return np.asarray(process.get_model_weights(state).trainable["w"], float)


@pytest.mark.usefixtures("backend")
def test_every_step_is_that_of_the_algorithm() -> None:
    """Updates from old models, each over the root of one plus its staleness, averaged, and a step of the server."""
    process = build_fed_buff_process(unweighted(), max_staleness=4)
    system = SystemModel(seconds_per_example=1.0, compute_sigma=1.0, seed=5)
    schedule = BufferedSchedule(
        DATA.client_ids, system, DATA.num_examples, concurrency=4, buffer_size=2, max_staleness=4, seed=6
    )
    models = [np.zeros(3)]
    seen = 0
    for step in run_fed_buff(process, DATA, schedule, 6):
        updates = [
            local_update(models[-1 - stale], int(client_id)) / math.sqrt(1 + stale)
            for client_id, stale in zip(step.buffer.client_ids, step.buffer.staleness.tolist(), strict=True)
        ]
        models.append(models[-1] - SERVER_RATE * np.mean(updates, axis=0))
        np.testing.assert_allclose(weights_of(process, step.state), models[-1], rtol=1e-5, atol=1e-6)
        assert int(step.metrics["client_work"]["train"]["num_examples"]) == 2 * sum(
            DATA.num_examples(client_id) for client_id in step.buffer.client_ids
        )
        seen = max(seen, int(step.buffer.staleness.max()))
    assert seen >= 3


def test_without_staleness_it_is_federated_averaging() -> None:
    """With weights, momentum and metrics too, up to the rounding of two programs that XLA fuses differently."""

    def agree(found: Any, expected: Any) -> None:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)

    fed_avg = build_weighted_fed_avg(
        regression(), optax.sgd(LEARNING_RATE), optax.sgd(1.0, momentum=0.9), batch_size=2, shuffle=True, seed=7
    )
    process = build_fed_buff_process(fed_avg, max_staleness=0)
    state, expected = process.initialize(), fed_avg.initialize()
    for round_num in range(4):
        cohort = DATA.cohort([round_num, round_num + 3, round_num + 6])
        output = process.next(state, [0, 0, 0], cohort)
        state, metrics = output.state, output.metrics
        expected, expected_metrics = fed_avg.next(expected, cohort)
        jax.tree.map(agree, state.learning._replace(client_work=()), expected._replace(client_work=()))
        jax.tree.map(agree, metrics["client_work"], expected_metrics["client_work"])


def test_the_staleness_weight_is_the_users() -> None:
    """Constant weights make all updates count alike; the default is that of the paper."""
    assert [round(float(inverse_square_root(jnp.int32(stale))), 6) for stale in (0, 3, 8)] == [1.0, 0.5, 0.333333]
    process = build_fed_buff_process(unweighted(), max_staleness=2, staleness_weight=lambda stale: 1.0)
    state = process.next(process.initialize(), [2], DATA.cohort([3])).state
    np.testing.assert_allclose(
        weights_of(process, state), -SERVER_RATE * local_update(np.zeros(3), 3), rtol=1e-5, atol=1e-6
    )


def test_a_run_goes_on_where_it_was_interrupted_bit_for_bit() -> None:
    """With the state before a step, the rest of the steps are the same; the data may be streamed."""
    process = build_fed_buff_process(unweighted(), max_staleness=5)
    streamed = GeneratedClientData(12, DATA.dataset, num_examples_fn=DATA.num_examples)
    schedule = BufferedSchedule(
        DATA.client_ids,
        SystemModel(compute_sigma=1.0, seed=1),
        DATA.num_examples,
        concurrency=5,
        buffer_size=3,
        max_staleness=5,
    )
    whole = list(run_fed_buff(process, DATA, schedule, 8))
    rest = list(run_fed_buff(process, streamed, schedule, 8, state=whole[2].state, start=3))
    assert [step.buffer.seconds for step in rest] == [step.buffer.seconds for step in whole[3:]]
    for found, expected in zip(rest, whole[3:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, found.state, expected.state)


def test_models_that_are_too_old_are_refused() -> None:
    """A schedule must not be staler than the process remembers."""
    process = build_fed_buff_process(unweighted(), max_staleness=0)
    schedule = BufferedSchedule(DATA.client_ids, SystemModel(), lambda _: 1, concurrency=3, buffer_size=1)
    with pytest.raises(KoinonValueError, match="a staleness of 0 at most"):
        list(run_fed_buff(process, DATA, schedule, 5))
    with pytest.raises(KoinonValueError, match="must not be negative"):
        build_fed_buff_process(unweighted(), max_staleness=-1)


def test_only_composed_processes_become_asynchronous() -> None:
    """Their pieces must be known."""
    fed_avg = unweighted()
    bare = ko.learning.templates.LearningProcess(
        fed_avg.initialize, fed_avg.next, fed_avg.get_model_weights, fed_avg.set_model_weights
    )
    with pytest.raises(KoinonTypeError, match="whose pieces are known"):
        build_fed_buff_process(bare, max_staleness=1)


def test_asynchrony_reaches_a_loss_in_less_simulated_time() -> None:
    """With devices of very different speed, a server that waits for nobody is at the same loss earlier."""
    system = SystemModel(seconds_per_example=1.0, compute_sigma=1.5, seed=3)
    everything = {name: np.concatenate([DATA.dataset(i)[name] for i in range(12)]) for name in ("x", "y")}

    def loss(weights: np.ndarray) -> float:
        return float(np.mean((everything["x"] @ weights - everything["y"]) ** 2))

    sample = ko.simulation.build_uniform_sampling_fn(DATA.client_ids, seed=0)
    rounds = ko.simulation.system.SystemSimulation(sample, system, DATA.num_examples, epochs=2)
    fed_avg = unweighted()
    state = fed_avg.initialize()
    for round_num in range(8):
        state = fed_avg.next(state, DATA.cohort(rounds(round_num, 4))).state
    target, synchronous_time = loss(weights_of(fed_avg, state)), float(rounds.elapsed(range(8), 4)[-1])
    process = build_fed_buff_process(fed_avg, max_staleness=10)
    schedule = BufferedSchedule(
        DATA.client_ids, system, DATA.num_examples, concurrency=4, buffer_size=2, max_staleness=10, epochs=2
    )
    times = [
        step.buffer.seconds
        for step in run_fed_buff(process, DATA, schedule, 40)
        if loss(weights_of(process, step.state)) <= target
    ]
    assert times
    assert times[0] < synchronous_time
