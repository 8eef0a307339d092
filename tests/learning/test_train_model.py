"""The training program with TFF's arguments: what it releases, saves and evaluates, and that it can be stopped."""

from __future__ import annotations

import datetime
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.errors import KoinonTypeError, KoinonValueError
from koinon.learning.programs import EvaluationManager, ProgramState, TrainingInterrupted, train_model
from koinon.program import DatasetDataSource, FileProgramStateManager, MemoryReleaseManager, NativeFederatedContext

X = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)
DATA = ko.simulation.ClientData.from_arrays({"x": X, "y": X @ np.float32([1, -2])}, np.arange(24) % 6)
SOURCE = DatasetDataSource(DATA, seed=1)


@pytest.fixture(scope="module")
def model() -> Any:
    return ko.learning.models.functional(
        lambda weights, x: x @ weights,
        jnp.zeros(2),
        example_spec=DATA.element_type,
        loss=ko.learning.losses.squared_error,
    )


@pytest.fixture(scope="module")
def process(model: Any) -> Any:
    return ko.learning.algorithms.build_weighted_fed_avg(model, optax.sgd(0.05), batch_size=2, shuffle=True)


@pytest.fixture(scope="module")
def evaluation(model: Any) -> Any:
    return ko.learning.algorithms.build_fed_eval(model, batch_size=4)


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """SIGINT means what it means at a terminal; a shell starts what runs in its background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def bits(tree: Any) -> list[bytes]:
    """The bits of the leaves of a pytree, typed keys among them."""
    is_key = lambda leaf: isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves = [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]
    return [np.asarray(leaf).tobytes() for leaf in leaves]


class Parts:
    """Managers in memory and a directory of checkpoints, and a call of `train_model` with them."""

    def __init__(self, root: pathlib.Path, process: Any, evaluation: Any = None, **changed: Any) -> None:
        self.states = FileProgramStateManager(root, keep_total=0)
        self.models, self.metrics, self.evaluations = (MemoryReleaseManager() for _ in range(3))
        manager = None if evaluation is None else EvaluationManager(SOURCE, self.evaluations, evaluation, 3)
        self.arguments = {
            "train_process": process,
            "train_data_source": SOURCE,
            "train_per_round_clients": 2,
            "train_total_rounds": 12,
            "program_state_manager": self.states,
            "model_output_manager": self.models,
            "train_metrics_manager": self.metrics,
            "evaluation_manager": manager,
            **changed,
        }

    def train(self, **changed: Any) -> None:
        train_model(**{**self.arguments, **changed})


@pytest.mark.parametrize("context", ["plain", "references"])
def test_it_is_the_loop_that_one_would_write(
    tmp_path: pathlib.Path, process: Any, evaluation: Any, context: str
) -> None:
    """Rounds, evaluations and releases of a loop by hand, on a backend and where calls return references."""
    parts = Parts(tmp_path, process, evaluation, evaluation_periodicity=5)
    if context == "plain":
        parts.train()
    else:
        with ko.backends.use(NativeFederatedContext()):
            parts.train()

    chooser, state, states = SOURCE.iterator(), process.initialize(), {}
    losses = []
    for number in range(1, 13):
        state, metrics = process.next(state, chooser.select(2))
        losses.append(float(metrics["client_work"]["train"]["loss"]))
        states[number] = state
    assert [value["client_work"]["train"]["loss"] for value in parts.metrics.values().values()] == losses
    assert list(parts.models.values()) == ["training_checkpoint_round_10", "training_checkpoint_round_12"]
    assert bits(parts.models.values()["training_checkpoint_round_12"]) == bits(state)
    assert list(parts.evaluations.values()) == [5, 10, 12]
    for number, metrics in parts.evaluations.values().items():
        weights = process.get_model_weights(states[number])
        start = evaluation.set_model_weights(evaluation.initialize(), weights)
        expected = evaluation.next(start, SOURCE.iterator().select(3)).metrics
        assert jax.tree.leaves(metrics) == [leaf.item() for leaf in jax.tree.leaves(expected)]
    saved = parts.states.load(12, ProgramState(state, 0, 0, chooser.state))
    assert (saved.round_number, saved.data_iterator) == (12, chooser.state)
    assert bits(saved.state) == bits(state)


def test_a_stopped_program_goes_on_with_the_same_bits(tmp_path: pathlib.Path, process: Any, evaluation: Any) -> None:
    """A signal ends it after the round; the same call releases the rounds that are left, each once."""
    whole, stopped = Parts(tmp_path / "whole", process), Parts(tmp_path / "stopped", process, evaluation)
    whole.train()
    release = stopped.evaluations.release

    def interrupt(value: Any, key: Any) -> None:
        if key == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        release(value, key)

    stopped.evaluations.release = interrupt  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TrainingInterrupted, match="of 12; everything is saved"):
        stopped.train()
    assert 4 <= len(stopped.metrics.values()) < 12
    stopped.evaluations.release = release  # pyright: ignore[reportAttributeAccessIssue]
    stopped.train()

    assert repr(stopped.metrics.values()) == repr(whole.metrics.values())
    assert list(stopped.evaluations.values()) == list(range(1, 13))
    assert (tmp_path / "stopped/program_state_12").read_bytes() == (tmp_path / "whole/program_state_12").read_bytes()


def test_a_round_is_tried_again_with_other_clients(tmp_path: pathlib.Path, process: Any) -> None:
    """What `should_retry_round` refuses leaves no trace but the choice of clients."""
    seen: list[Any] = []

    def refuse(metrics: Any) -> bool:
        seen.append(metrics["client_work"]["train"]["loss"])
        return len(seen) == 2

    parts = Parts(tmp_path, process, train_total_rounds=3, should_retry_round=refuse)
    parts.train()
    losses = [value["client_work"]["train"]["loss"] for value in parts.metrics.values().values()]

    assert losses == [seen[0], *seen[2:]]
    assert len(seen) == 4
    chooser, state = SOURCE.iterator(), process.initialize()
    for attempt in range(1, 5):
        cohort = chooser.select(2)
        state = state if attempt == 2 else process.next(state, cohort).state
    assert bits(parts.models.values()["training_checkpoint_round_3"]) == bits(state)


def test_an_evaluation_may_be_due_by_time(tmp_path: pathlib.Path, process: Any, evaluation: Any) -> None:
    """The first round is evaluated, then none before the time is over, and the last one; a resumed program knows."""
    hour = datetime.timedelta(hours=1)
    parts = Parts(tmp_path, process, evaluation, evaluation_periodicity=hour, train_total_rounds=2)
    parts.train()
    parts.train(train_total_rounds=4)

    assert list(parts.evaluations.values()) == [1, 2, 4]


def test_it_may_begin_with_another_state(tmp_path: pathlib.Path, process: Any) -> None:
    """With `initial_train_state`, which a resumed program does not go back to."""
    state = process.next(process.initialize(), DATA.cohort()).state
    parts = Parts(tmp_path, process, train_total_rounds=1, initial_train_state=state)
    parts.train()
    expected = process.next(state, SOURCE.iterator().select(2)).state

    assert bits(parts.models.values()["training_checkpoint_round_1"]) == bits(expected)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"train_process": 3}, KoinonTypeError, "`train_process`"),
        ({"train_data_source": DATA}, KoinonTypeError, r"`train_data_source`(.|\n)*DatasetDataSource\(data\)"),
        ({"program_state_manager": None}, KoinonTypeError, "`program_state_manager`"),
        ({"model_output_manager": print}, KoinonTypeError, "`model_output_manager`"),
        ({"train_metrics_manager": []}, KoinonTypeError, "`train_metrics_manager`"),
        ({"evaluation_manager": print}, KoinonTypeError, "`evaluation_manager`"),
        ({"train_per_round_clients": 0}, KoinonValueError, "`train_per_round_clients`"),
        ({"train_total_rounds": True}, KoinonValueError, "`train_total_rounds`"),
        ({"evaluation_periodicity": 0}, KoinonValueError, "`evaluation_periodicity`"),
        ({"evaluation_periodicity": datetime.timedelta(0)}, KoinonValueError, "`evaluation_periodicity`"),
        (
            {"train_data_source": DatasetDataSource(DATA.preprocess(lambda e: {"x": e["x"]}))},
            KoinonTypeError,
            "does not have what the learning process takes",
        ),
    ],
)
def test_wrong_wiring_shows_before_any_work(
    tmp_path: pathlib.Path, process: Any, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The message names the argument, and nothing is saved."""
    parts = Parts(tmp_path, process, **changed)
    with pytest.raises(error, match=message):
        parts.train()

    assert parts.states.get_versions() is None
