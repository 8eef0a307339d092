"""Tasks: what they train with, how they judge, and that the one of the demo learns."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.errors import KoinonValueError, UnknownHparamError
from koinon.learning.programs import train
from koinon.simulation import ClientData
from koinon.simulation.tasks import TASKS, Task, digits


@pytest.fixture(scope="module")
def task() -> Task:
    return digits()


@pytest.fixture(scope="module")
def linear() -> Task:
    """A task in which the model sees one number and must return it; the weights that do are 1."""
    model = ko.learning.models.functional(
        lambda weights, x: weights * x,
        jnp.float32(0.0),
        example_spec={"x": jnp.float32, "y": jnp.float32},
        loss=ko.learning.losses.squared_error,
    )
    x = np.arange(8, dtype=np.float32)
    data = ClientData.from_arrays({"x": x, "y": x}, list("aabbbccc"))
    return Task(name="linear", model=model, train=data, hyperparameters={"client_learning_rate": 0.01, "batch_size": 2})


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_what_its_name_says(name: str) -> None:
    """Each named task has that name, a description, and cohorts that its clients can fill."""
    task = TASKS[name](seed=3)

    assert task.name == name
    assert task.description
    assert task.clients_per_round <= len(task.train.client_ids)


def test_the_digits_are_real_and_in_one_place_each(task: Task) -> None:
    """1,797 images: those of the clients to train with, of the clients to test with, and at the server."""
    assert task.test is not None
    assert task.test_clients is not None
    train_ids, test_ids = set(task.train.client_ids), set(task.test_clients.client_ids)
    sizes = [sum(map(data.num_examples, data.client_ids)) for data in (task.train, task.test_clients)]

    assert (len(train_ids), len(test_ids), train_ids & test_ids) == (80, 20, set())
    assert sum(sizes) + len(task.test["y"]) == 1797


def test_a_seed_changes_the_initial_weights_and_not_the_data(task: Task) -> None:
    """Runs with several seeds tell how much chance there is in training, not in the data."""
    other = digits(seed=1)
    kernels = [each.model.initial_weights.trainable["dense_0"]["kernel"] for each in (task, other, digits(seed=1))]

    assert not np.array_equal(kernels[0], kernels[1])
    assert np.array_equal(kernels[1], kernels[2])
    assert task.test is not None
    assert other.test is not None
    assert np.array_equal(task.test["x"], other.test["x"])
    assert task.train.client_ids == other.train.client_ids


def test_initial_kernels_have_the_variance_of_he(task: Task) -> None:
    """Their entries have the variance 2 / inputs; with n of them the estimate is off by about sqrt(2 / n)."""
    for layer, inputs in (("dense_0", 64), ("dense_1", 200)):
        kernel = np.asarray(task.model.initial_weights.trainable[layer]["kernel"])

        assert kernel.var() * inputs / 2 == pytest.approx(1.0, abs=5 * np.sqrt(2 / kernel.size))


def test_evaluation_is_that_of_the_test_set_and_of_each_test_client(task: Task) -> None:
    """Accuracies equal those computed with NumPy from the model's predictions."""
    weights = task.model.initial_weights
    assert task.test is not None
    assert task.test_clients is not None

    def accuracy(arrays: Any) -> float:
        hidden, output = (jax.device_get(weights.trainable[f"dense_{i}"]) for i in range(2))
        activations = np.maximum(arrays["x"] @ hidden["kernel"] + hidden["bias"], 0)
        return float(np.mean(np.argmax(activations @ output["kernel"] + output["bias"], 1) == arrays["y"]))

    metrics = task.evaluate(weights)
    per_client = [accuracy(task.test_clients.dataset(client)) for client in task.test_clients.client_ids]

    assert metrics["test"]["accuracy"] == pytest.approx(accuracy(task.test), abs=1e-6)
    assert set(metrics["test"]) == {"accuracy", "loss"}
    assert task.evaluate_clients(weights) == pytest.approx(np.array(per_client), abs=1e-6)
    assert metrics["clients"]["accuracy_p25"] == pytest.approx(np.quantile(per_client, 0.25), abs=1e-6)
    assert metrics["clients"]["accuracy_mean"] == pytest.approx(np.mean(per_client), abs=1e-6)


def test_a_test_client_without_examples_is_left_out(linear: Task) -> None:
    """It has no loss, and says nothing about how evenly a model serves the clients."""
    clients = ClientData.from_clients(
        {
            "empty": {"x": np.zeros(0, np.float32), "y": np.zeros(0, np.float32)},
            "other": {"x": np.ones(2, np.float32), "y": np.float32([1.0, 3.0])},
        }
    )
    task = dataclasses.replace(linear, test_clients=clients)

    assert task.evaluate_clients(task.model.initial_weights).tolist() == [5.0]
    assert task.evaluate(task.model.initial_weights)["clients"]["loss_p90"] == 5.0
    assert linear.evaluate(linear.model.initial_weights) == {}
    assert (linear.metric, digits().metric) == ("loss", "accuracy")


def test_hyperparameters_can_be_replaced_and_not_invented(linear: Task) -> None:
    """`process` takes those that the task has, and names those that it has when given another."""
    result = train(linear.process(client_learning_rate=0.0), linear.train, rounds=1, clients_per_round=3)
    assert float(linear.process().get_model_weights(result.state).trainable) == 0.0
    with pytest.raises(UnknownHparamError, match=r"no hyperparameter 'lr'(.|\n)*client_learning_rate, batch_size"):
        linear.process(lr=0.1)


def test_a_task_needs_a_round(linear: Task) -> None:
    """A number that no run could use is an error of the task."""
    with pytest.raises(KoinonValueError, match="rounds=0"):
        dataclasses.replace(linear, rounds=0)


def digits_accuracy(seed: int) -> float:
    """The test accuracy after the default number of rounds, all else by default."""
    task = digits(seed)
    result = train(
        task.process(seed=seed),
        task.train,
        rounds=task.rounds,
        clients_per_round=task.clients_per_round,
        seed=seed,
        evaluate=task.evaluate,
        evaluate_every=task.rounds,
    )
    return result.history.last()["evaluation/test/accuracy"]


def test_the_digits_are_learnt() -> None:
    """The default run reaches the accuracy that the demo promises."""
    assert digits_accuracy(seed=0) >= 0.95


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 5))
def test_the_digits_are_learnt_with_every_seed(seed: int) -> None:
    """The promise does not hang on the seed."""
    assert digits_accuracy(seed) >= 0.95
