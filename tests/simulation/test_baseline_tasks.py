"""Benchmark tasks: the promised data and models, on synthetic data and on files of a user, and rounds that learn."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon._errors import KoinonValueError
from koinon.simulation import _baseline_data as data
from koinon.simulation import baselines
from koinon.simulation._baseline_tasks import padded_cross_entropy

SMALL: dict[str, dict[str, Any]] = {
    "cifar10": {"num_clients": 5},
    "cifar100": {"num_clients": 5, "model": "small_resnet"},
    "emnist": {"num_clients": 5, "model": "cnn_dropout_free"},
    "synthetic": {"num_clients": 5},
}
EXAMPLES = {
    "cifar10": "<x=float32[32,32,3],y=int32>",
    "cifar100": "<x=float32[24,24,3],y=int32>",
    "emnist": "<x=float32[28,28,1],y=int32>",
    "shakespeare": "<x=int32[80],y=int32[80]>",
    "synthetic": "<x=float32[60],y=int32>",
}


def examples_of(clients: Any) -> set[bytes]:
    """The examples of all clients, in bytes, which can be compared and counted."""
    datasets = [clients.dataset(client_id) for client_id in clients.client_ids]
    return {x.tobytes() + y.tobytes() for dataset in datasets for x, y in zip(dataset["x"], dataset["y"], strict=True)}


@pytest.mark.parametrize("name", sorted(baselines.BASELINE_TASKS.keys() - {"shakespeare"}))
def test_a_task_has_data_of_its_shape_and_no_example_to_train_and_to_test(name: str) -> None:
    """The test clients are those that train, with other examples; the examples at the server are theirs."""
    task = baselines.BASELINE_TASKS[name](**SMALL[name])
    assert task.name == name
    assert str(task.train.element_type) == str(task.model.input_spec) == EXAMPLES[name]
    assert task.test_clients is not None
    assert set(task.test_clients.client_ids) == set(task.train.client_ids) == set(range(5))
    train, test = examples_of(task.train), examples_of(task.test_clients)
    assert not train & test
    at_server = {x.tobytes() + y.tobytes() for x, y in zip(task.test["x"], task.test["y"], strict=True)}
    assert at_server == test
    assert task.metric == "accuracy"


def test_the_seed_is_that_of_the_weights() -> None:
    """Other seeds have other first weights and the same data."""
    first, second = (baselines.emnist(seed, **SMALL["emnist"]) for seed in (0, 1))
    assert examples_of(first.train) == examples_of(second.train)
    kernels = [task.model.initial_weights.trainable["conv_0"]["kernel"] for task in (first, second)]
    assert not np.array_equal(*kernels)


def test_the_task_of_the_fedprox_paper_learns() -> None:
    """Five rounds of its federated averaging halve the loss of a model that knows nothing."""
    task = baselines.synthetic(num_clients=4)
    process = task.process(epochs=2)
    state = process.initialize()
    before = task.evaluate(process.get_model_weights(state))["test"]
    for _ in range(5):
        state = process.next(state, task.train.cohort()).state
    after = task.evaluate(process.get_model_weights(state))["test"]
    assert before["loss"] == pytest.approx(np.log(10), rel=1e-5)
    assert after["loss"] < 0.5 * before["loss"]


def save(folder: pathlib.Path, **parts: dict[str, Any]) -> None:
    for name, arrays in parts.items():
        np.savez(folder / f"{name}.npz", **arrays)


def test_real_images_are_read_scaled_and_grouped(tmp_path: pathlib.Path) -> None:
    """Bytes become numbers from 0 to 1 with a channel; letters are left out where only digits are wanted."""
    rng = np.random.default_rng(0)
    train = {
        "client_id": np.array(["ann", "bob", "ann", "cleo"]),
        "x": rng.integers(0, 256, (4, 28, 28), dtype=np.uint8),
        "y": np.array([3, 61, 10, 9], np.int64),
    }
    test = {name: array[:2] for name, array in train.items()}
    save(tmp_path, train=train, test=test)
    task = baselines.emnist(folder=tmp_path, model="cnn")
    assert task.train.client_ids == ("ann", "bob", "cleo")
    found = task.train.dataset("ann")
    np.testing.assert_allclose(found["x"][..., 0], train["x"][[0, 2]] / 255, rtol=1e-6)
    assert found["y"].tolist() == [3, 10]
    assert task.model.num_parameters == 1_663_370 + 52 * 513
    assert task.description.startswith("EMNIST")
    digits = baselines.emnist(folder=tmp_path, only_digits=True, model="cnn")
    assert digits.train.client_ids == ("ann", "cleo")
    assert digits.test["y"].tolist() == [3]
    assert task.rounds > baselines.emnist(**SMALL["emnist"]).rounds


def test_real_photographs_are_cropped_and_standardized_one_by_one(tmp_path: pathlib.Path) -> None:
    """The middle 24x24 pixels with mean 0 and deviation 1; a constant image is all zeros."""
    x = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    x[2] = 7
    part = {"client_id": np.array([5, 5, 6]), "x": x, "y": np.array([0, 99, 1])}
    save(tmp_path, train=part, test=part)
    task = baselines.cifar100(folder=tmp_path, model="small_resnet")
    found = task.train.dataset(5)["x"]
    middle = x[:2, 4:28, 4:28].astype(float)
    expected = (middle - middle.mean((1, 2, 3), keepdims=True)) / middle.std((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not task.train.dataset(6)["x"].any()


def test_real_text_is_read_as_it_is(tmp_path: pathlib.Path) -> None:
    """Numbers of characters in any integer dtype; the same task as for synthetic text, which is saved here."""
    parts = data.synthetic_text(90, 80, num_clients=5, mean_size=10, seed=0)
    save(tmp_path, **{name: {**part, "x": part["x"].astype(np.int64)} for name, part in parts.items()})
    task = baselines.shakespeare(folder=tmp_path)
    assert str(task.train.element_type) == str(task.model.input_spec) == EXAMPLES["shakespeare"]
    assert task.model.num_parameters == 820_522
    np.testing.assert_array_equal(task.test["y"], parts["test"]["y"])
    assert not examples_of(task.train) & examples_of(task.test_clients)


def test_files_that_are_missing_or_damaged_are_refused(tmp_path: pathlib.Path) -> None:
    """The error names the file and what it should hold."""
    part = {"client_id": np.zeros(2), "x": np.zeros((2, 28, 28)), "y": np.zeros(2, int)}
    save(tmp_path, train=part)
    with pytest.raises(KoinonValueError, match=r"test\.npz(.|\n)*`client_id`, `x` and `y`"):
        baselines.emnist(folder=tmp_path)
    save(tmp_path, test={"x": part["x"]})
    with pytest.raises(KoinonValueError, match=r"test\.npz' has no array 'client_id', 'y'"):
        baselines.emnist(folder=tmp_path)
    save(tmp_path, test={**part, "y": np.array([{}, {}], object)})
    with pytest.raises(KoinonValueError, match=r"test\.npz(.|\n)*allow_pickle"):
        baselines.emnist(folder=tmp_path)


def test_models_that_there_are_not_are_refused() -> None:
    """The error lists those that there are."""
    with pytest.raises(KoinonValueError, match=r"'vgg'(.|\n)*cnn_dropout_free"):
        baselines.cifar10(model="vgg", num_clients=2)


def test_padding_has_no_loss_and_no_gradient() -> None:
    """The mean is over the characters whose label is not 0; an example of nothing but padding has loss 0."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 5, 4)).astype(np.float32), rng.integers(1, 4, (3, 5))
    labels[0, 3:], labels[2] = 0, 0
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [
        -np.mean([log_probabilities[row, place, labels[row, place]] for place in range(5) if labels[row, place]])
        for row in (0, 1)
    ]
    np.testing.assert_allclose(padded_cross_entropy(logits, labels), [*expected, 0.0], rtol=1e-5)
    gradient = jax.grad(lambda x: padded_cross_entropy(x, labels).sum())(jnp.asarray(logits))
    assert np.array_equal(np.abs(gradient).sum(-1) > 0, labels != 0)


def test_synthetic_text_repeats_itself_as_promised() -> None:
    """Each character is followed by one of eight, most often by one of two; `y` is `x` one further; no padding."""
    parts = data.synthetic_text(20, 30, num_clients=40, mean_size=50, seed=0)
    followers: dict[int, dict[int, int]] = {character: {} for character in range(1, 20)}
    for part in parts.values():
        assert part["x"].min() > 0
        np.testing.assert_array_equal(part["x"][:, 1:], part["y"][:, :-1])
        for before, after in zip(part["x"].ravel().tolist(), part["y"].ravel().tolist(), strict=True):
            followers[before][after] = followers[before].get(after, 0) + 1
    for counts in followers.values():
        assert len(counts) <= 8
        assert sum(sorted(counts.values())[-2:]) > 0.6 * sum(counts.values())


def test_synthetic_images_can_be_told_apart() -> None:
    """The nearest mean image of the training examples names most of the test examples."""
    parts = data.synthetic_images((28, 28, 1), 10, num_clients=20, mean_size=60, alpha=1.0, noise=0.1, seed=0)
    train, test = parts["train"], parts["test"]
    means = np.stack([train["x"][train["y"] == label].mean(0) for label in range(10)]).reshape(10, -1)
    flat = test["x"].reshape(len(test["x"]), -1)
    nearest = np.argmin(((flat[:, None] - means) ** 2).sum(-1), axis=1)
    assert np.mean(nearest == test["y"]) > 0.8
    assert train["x"].min() >= 0
    assert train["x"].max() <= 1


@pytest.mark.soak
@pytest.mark.parametrize(("name", "rounds"), [("cifar10", 20), ("cifar100", 100), ("emnist", 40), ("shakespeare", 8)])
def test_every_task_learns_with_its_hyperparameters(name: str, rounds: int) -> None:
    """On the data and the model that a user gets; cifar100 with a smaller model, and more rounds than the others."""
    task = baselines.BASELINE_TASKS[name](**({"model": "small_resnet"} if name == "cifar100" else {}))
    process = task.process()
    sample = ko.simulation.build_uniform_sampling_fn(task.train.client_ids, seed=0)
    state = process.initialize()
    before = task.evaluate(process.get_model_weights(state))["test"]
    for round_num in range(rounds):
        state = process.next(state, task.train.cohort(sample(round_num, task.clients_per_round))).state
    after = task.evaluate(process.get_model_weights(state))["test"]
    assert after["loss"] < 0.95 * before["loss"]
