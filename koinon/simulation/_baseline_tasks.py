"""The usual benchmarks of federated learning as tasks; offline, on synthetic data unless a folder has the real ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import KoinonValueError
from koinon.learning.losses import cross_entropy
from koinon.learning.metrics import accuracy, mean
from koinon.learning.models import FunctionalModel, functional
from koinon.simulation import datasets
from koinon.simulation._baseline_data import (
    crop_images,
    scale_images,
    split_of,
    standardize_images,
    synthetic_images,
    synthetic_text,
)
from koinon.simulation._baseline_files import read_splits
from koinon.simulation._baseline_models import Architecture, char_lstm, cnn, cnn_dropout, resnet18
from koinon.simulation._client_data import ClientData
from koinon.simulation._tasks import Task

_IMAGE_MODELS: dict[str, Callable[[tuple[int, int, int], int], Architecture]] = {
    "cnn": cnn,
    "cnn_dropout": cnn_dropout,
    "cnn_dropout_free": lambda shape, num_classes: cnn_dropout(shape, num_classes, dropout=False),
    "resnet18": lambda shape, num_classes: resnet18(shape[2], num_classes),
    "small_resnet": lambda shape, num_classes: resnet18(shape[2], num_classes, width=16, blocks=(1, 1, 1)),
}


def synthetic(seed: int = 0, *, alpha: float = 1.0, beta: float = 1.0, num_clients: int = 30) -> Task:
    """Logistic regression on Synthetic(alpha, beta), whose clients differ in model, inputs and size.

    The data of `datasets.synthetic`; a tenth of each client's examples tests. The hyperparameters are those of the
    paper: 10 clients of 30, 20 epochs of batches of 10, and a learning rate of 0.01.

    Args:
      seed: of the initial weights; the data are the same for every seed.
      alpha: how much the models of the clients differ.
      beta: how much their inputs differ.
      num_clients: the number of clients.

    References:
      Li et al., "Federated Optimization in Heterogeneous Networks", 2020, section 5.1.
    """
    data = datasets.synthetic(alpha, beta, num_clients, seed=0)
    clients = {client_id: data.dataset(client_id) for client_id in data.client_ids}
    parts = [{}, {}]
    for client_id, arrays in clients.items():
        num_train = len(arrays["y"]) - len(arrays["y"]) // 10
        for part, rows in zip(parts, (slice(num_train), slice(num_train, None)), strict=True):
            part[client_id] = {name: array[rows] for name, array in arrays.items()}
    train, test_clients = map(ClientData.from_clients, parts)
    test = {name: np.concatenate([arrays[name] for arrays in parts[1].values()]) for name in ("x", "y")}
    regression = Architecture(
        lambda key: {"kernel": jnp.zeros((60, 10)), "bias": jnp.zeros(10)},
        lambda weights, x: x @ weights["kernel"] + weights["bias"],
    )
    return Task(
        name="synthetic",
        model=_classifier(regression, train, seed),
        train=train,
        test=test,
        test_clients=test_clients,
        hyperparameters={"client_learning_rate": 0.01, "batch_size": 10, "epochs": 20},
        rounds=200,
        clients_per_round=10,
        description=f"logistic regression on Synthetic({alpha:g}, {beta:g}), {num_clients} clients",
    )


def emnist(
    seed: int = 0,
    *,
    folder: str | os.PathLike[str] | None = None,
    only_digits: bool = False,
    model: str = "cnn_dropout",
    num_clients: int = 100,
) -> Task:
    """Handwritten characters by a convolutional network, each client a writer; synthetic images of that shape.

    Args:
      seed: of the initial weights; the data are the same for every seed.
      folder: a folder with the real images: LEAF's FEMNIST as its scripts write it, `train/*.json` and `test/*.json`;
        or `train.npz` and `test.npz`, each with `client_id` `[n]`, integers or strings; `x` `[n, 28, 28]`, uint8 from 0
        to 255 or float32 from 0 to 1; and `y` `[n]`, integers from 0 to 61.
      only_digits: whether to leave out letters, whose labels are 10 and greater.
      model: `"cnn_dropout"`, `"cnn_dropout_free"` for the same without dropout, or `"cnn"` for that of McMahan et al.
      num_clients: the number of clients of the synthetic data.

    Raises:
      KoinonValueError: if there is no such model, or a file of `folder` cannot be read.

    References:
      Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018. Reddi et al., "Adaptive Federated Optimization",
      ICLR 2021.
    """
    num_classes = 10 if only_digits else 62
    if folder is None:
        shape = (28, 28, 1)
        parts = synthetic_images(
            shape, num_classes, num_clients=num_clients, mean_size=60, alpha=1.0, noise=0.1, seed=0
        )
    else:
        parts = {name: _with_labels_below(num_classes, part) for name, part in read_splits(folder).items()}
    return _image_task(
        "emnist",
        {name: {**part, "x": scale_images(part["x"])} for name, part in parts.items()},
        model,
        num_classes,
        seed,
        hyperparameters={"client_learning_rate": 0.1, "batch_size": 20},
        rounds=200 if folder is None else 1500,
        description=f"{'synthetic images like EMNIST' if folder is None else 'EMNIST'}, {num_classes} classes, {model}",
    )


def cifar10(
    seed: int = 0, *, folder: str | os.PathLike[str] | None = None, model: str = "cnn_dropout", num_clients: int = 50
) -> Task:
    """Small photographs of 10 classes by a convolutional network; synthetic images of that shape.

    Args:
      seed: of the initial weights; the data are the same for every seed.
      folder: a folder with the real images: the binary version of the data set (`.bin` files), of which each client
        gets about a hundred images; or `train.npz` and `test.npz`, each with `client_id` `[n]`, integers or
        strings; `x` `[n, 32, 32, 3]`, uint8 from 0 to 255 or float32 from 0 to 1; and `y` `[n]`, integers from 0 to 9.
      model: see `cifar100`.
      num_clients: the number of clients of the synthetic data.

    Raises:
      KoinonValueError: if there is no such model, or a file of `folder` cannot be read.
    """
    return _cifar("cifar10", 10, seed, folder, model, num_clients, crop=None, learning_rate=0.1, rounds=1500)


def cifar100(
    seed: int = 0, *, folder: str | os.PathLike[str] | None = None, model: str = "resnet18", num_clients: int = 50
) -> Task:
    """Small photographs of 100 classes by a residual network with group normalization; synthetic images of that shape.

    Images are cropped to the 24x24 pixels in the middle, and standardized one by one.

    Args:
      seed: of the initial weights; the data are the same for every seed.
      folder: a folder with the real images: the binary version of the data set (`.bin` files), of which each client
        gets about a hundred images; or `train.npz` and `test.npz`, each with `client_id` `[n]`, integers or
        strings; `x` `[n, 32, 32, 3]`, uint8 from 0 to 255 or float32 from 0 to 1; and `y` `[n]`, integers from 0 to 99.
      model: `"resnet18"`, `"small_resnet"` with a hundredth of its weights, or one of the networks of `emnist`.
      num_clients: the number of clients of the synthetic data.

    Raises:
      KoinonValueError: if there is no such model, or a file of `folder` cannot be read.

    References:
      Reddi et al., "Adaptive Federated Optimization", ICLR 2021.
    """
    return _cifar("cifar100", 100, seed, folder, model, num_clients, crop=24, learning_rate=0.3, rounds=4000)


def shakespeare(seed: int = 0, *, folder: str | os.PathLike[str] | None = None, num_clients: int = 50) -> Task:
    """The next character by two layers of LSTM, each client a role of a play; synthetic text of that shape.

    The loss and the accuracy of an example are means over its characters, without those whose label is 0, padding.

    Args:
      seed: of the initial weights; the data are the same for every seed.
      folder: a folder with the real text: LEAF's Shakespeare as its scripts write it, `train/*.json` and
        `test/*.json`; or `train.npz` and `test.npz`, each with `client_id` `[n]`, integers or strings;
        `x` `[n, 80]`, integers from 0 to 89, the characters; and `y` `[n, 80]`, the character that follows each. 0 is
        padding.
      num_clients: the number of clients of the synthetic text.

    Raises:
      KoinonValueError: if a file of `folder` cannot be read.

    References:
      McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017. Reddi et al.,
      "Adaptive Federated Optimization", ICLR 2021.
    """
    vocabulary_size = 90
    if folder is None:
        parts = synthetic_text(vocabulary_size, 80, num_clients=num_clients, mean_size=40, seed=0)
    else:
        parts = {
            name: {**part, "x": part["x"].astype(np.int32), "y": part["y"].astype(np.int32)}
            for name, part in read_splits(folder).items()
        }
    split = split_of(parts)
    architecture = char_lstm(vocabulary_size)
    model = functional(
        architecture.apply,
        architecture.initialize,
        example_spec=split.train.element_type,
        loss=padded_cross_entropy,
        metrics={"accuracy": mean(_padded_accuracy)},
        key=jax.random.key(seed),
    )
    return Task(
        name="shakespeare",
        model=model,
        train=split.train,
        test=split.centralized_test,
        test_clients=split.test,
        hyperparameters={"client_learning_rate": 1.0, "batch_size": 4},
        rounds=200 if folder is None else 1200,
        clients_per_round=10,
        description=f"{'synthetic text like Shakespeare' if folder is None else 'Shakespeare'}, an LSTM",
    )


def padded_cross_entropy(logits: Any, labels: Any) -> Any:
    """The mean cross entropy over the characters of each example whose label is not 0; `[batch]`."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
    return _mean_without_padding(-chosen, labels)


def _padded_accuracy(logits: Any, labels: Any) -> Any:
    return _mean_without_padding((jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype), labels)


def _mean_without_padding(values: Any, labels: Any) -> Any:
    counts = labels != 0
    return jnp.sum(jnp.where(counts, values, 0), axis=-1) / jnp.maximum(jnp.sum(counts, axis=-1), 1)


def _cifar(
    name: str,
    num_classes: int,
    seed: int,
    folder: str | os.PathLike[str] | None,
    model: str,
    num_clients: int,
    *,
    crop: int | None,
    learning_rate: float,
    rounds: int,
) -> Task:
    if folder is None:
        shape = (32, 32, 3)
        parts = synthetic_images(
            shape, num_classes, num_clients=num_clients, mean_size=50, alpha=0.5, noise=0.3, seed=0
        )
    else:
        parts = {name: _with_labels_below(num_classes, part) for name, part in read_splits(folder).items()}
    for part in parts.values():
        images = scale_images(part["x"])
        part["x"] = standardize_images(images if crop is None else crop_images(images, crop))
    return _image_task(
        name,
        parts,
        model,
        num_classes,
        seed,
        hyperparameters={"client_learning_rate": learning_rate, "batch_size": 20},
        rounds=200 if folder is None else rounds,
        description=f"{f'synthetic images like {name}' if folder is None else name}, {model}",
    )


def _image_task(
    name: str, parts: dict[str, dict[str, np.ndarray]], model: str, num_classes: int, seed: int, **settings: Any
) -> Task:
    if model not in _IMAGE_MODELS:
        raise KoinonValueError(
            f"There is no model {model!r} for images.", expected=f"one of {', '.join(_IMAGE_MODELS)}"
        )
    split = split_of(parts)
    architecture = _IMAGE_MODELS[model](split.centralized_test["x"].shape[1:], num_classes)
    return Task(
        name=name,
        model=_classifier(architecture, split.train, seed),
        train=split.train,
        test=split.centralized_test,
        test_clients=split.test,
        clients_per_round=10,
        **settings,
    )


def _classifier(architecture: Architecture, data: ClientData, seed: int) -> FunctionalModel:
    return functional(
        architecture.apply,
        architecture.initialize,
        example_spec=data.element_type,
        loss=cross_entropy,
        metrics={"accuracy": accuracy()},
        key=jax.random.key(seed),
    )


def _with_labels_below(num_classes: int, part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = part["y"] < num_classes
    return {**{name: array[rows] for name, array in part.items()}, "y": part["y"][rows].astype(np.int32)}


BASELINE_TASKS: dict[str, Callable[..., Task]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "emnist": emnist,
    "shakespeare": shakespeare,
    "synthetic": synthetic,
}
"""The usual benchmarks: for each name what makes the task of a seed."""
