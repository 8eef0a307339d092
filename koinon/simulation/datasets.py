"""Federated datasets to start with: one of real images that comes with scikit-learn, and synthetic ones."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np

from koinon._errors import KoinonValueError, MissingDependencyError
from koinon.computation import PackedSequences
from koinon.simulation._client_data import ClientData
from koinon.simulation._columns import read_columns
from koinon.simulation._partition import by_label, dirichlet_labels

__all__ = ["FederatedSplit", "load_digits", "synthetic", "synthetic_classification"]


class FederatedSplit(NamedTuple):
    """A dataset to train and to test with; no example is in two of its parts.

    Attributes:
      train: the clients to train with.
      test: other clients, to test how well a model serves those who did not train it.
      centralized_test: stacked arrays of examples that no client has.
    """

    train: ClientData
    test: ClientData
    centralized_test: dict[str, np.ndarray]


def load_digits(
    num_clients: int = 100,
    alpha: float = 0.3,
    seed: int = 0,
    *,
    num_test_clients: int = 10,
    test_fraction: float = 0.2,
) -> FederatedSplit:
    """Handwritten digits: 1,797 real images of 8x8 pixels, dealt out by label to clients of different size.

    An example is `{"x": float32[64], "y": int32}`: the pixels, row by row, from 0 to 1, and the digit. The
    centralized test set has the same share of every digit; the other images go to the clients by `dirichlet_labels`,
    so that each client has at least one.

    Args:
      num_clients: the number of clients, of which `num_test_clients` are held out.
      alpha: how evenly each digit is spread over clients, see `dirichlet_labels`.
      seed: the same seed gives the same split.
      num_test_clients: the number of test clients.
      test_fraction: the share of images in the centralized test set; at least 0 and less than 1.

    Returns:
      The training clients, the test clients, and the centralized test set.

    Raises:
      MissingDependencyError: if scikit-learn, which has the images, is not installed.
      KoinonValueError: if there are too many clients for the images, or more test clients than clients.

    References:
      Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """
    try:
        sklearn_datasets = importlib.import_module("sklearn.datasets")
    except ImportError:
        raise MissingDependencyError("scikit-learn", extra="sim", purpose="The digits dataset") from None
    if not 0 <= test_fraction < 1:
        raise KoinonValueError("A share of the images is at least 0 and less than 1.", found=str(test_fraction))
    bunch: Any = sklearn_datasets.load_digits()
    arrays = {"x": (bunch.data / 16).astype(np.float32), "y": bunch.target.astype(np.int32)}
    rng = np.random.default_rng(seed)
    is_test = np.zeros(len(arrays["y"]), bool)
    for indices in by_label(arrays["y"]):
        is_test[rng.permutation(indices)[: round(test_fraction * len(indices))]] = True
    rows = np.flatnonzero(~is_test)
    partition = dirichlet_labels(arrays["y"][rows], num_clients, alpha, seed, min_size=1)
    data = ClientData.from_partition(arrays, [rows[part] for part in partition])
    train, test = data.train_test_client_split(num_test_clients, seed)
    return FederatedSplit(train, test, {name: array[is_test] for name, array in arrays.items()})


def synthetic(
    alpha: float = 1.0,
    beta: float = 1.0,
    num_clients: int = 30,
    seed: int = 0,
    *,
    iid: bool = False,
    num_features: int = 60,
    num_classes: int = 10,
    max_size: int | None = None,
) -> ClientData:
    """The synthetic dataset of the FedProx paper, Synthetic(alpha, beta): clients differ in model, inputs and size.

    Client k has its own labels `y = argmax(softmax(x W_k + b_k))`, with the entries of `W_k` and `b_k` drawn from
    N(u_k, 1), and `u_k` from N(0, alpha); its inputs are drawn from N(v_k, S), with the entries of `v_k` from
    N(B_k, 1), `B_k` from N(0, beta), and S diagonal with `S_jj = j^-1.2`. As in the authors' program, alpha and beta
    are standard deviations, and a client has 50 examples and a log-normal number more.

    An example is `{"x": float32[num_features], "y": int32}`; the client ids are the integers from 0 on.

    Args:
      alpha: how much the models of the clients differ.
      beta: how much their inputs differ.
      num_clients: the number of clients.
      seed: the same seed gives the same data.
      iid: whether all clients have one model, drawn from N(0, 1), and inputs of mean zero.
      num_features: the number of inputs.
      num_classes: the number of labels.
      max_size: the greatest number of examples of a client; None for no limit, where a few have tens of thousands.

    Returns:
      The federated dataset.

    References:
      Li et al., "Federated Optimization in Heterogeneous Networks", 2020, section 5.1 and appendix C.1.
    """
    rng = np.random.default_rng(seed)
    sizes = np.floor(rng.lognormal(4.0, 2.0, num_clients)).astype(np.int64) + 50
    if max_size is not None:
        sizes = np.minimum(sizes, max_size)
    scales = np.arange(1, num_features + 1) ** -0.6
    shared = rng.normal(size=(num_features, num_classes)), rng.normal(size=num_classes)
    inputs, labels = [], []
    for size in sizes:
        model_mean, input_mean = rng.normal(0, alpha), rng.normal(0, beta)
        own = rng.normal(model_mean, 1, (num_features, num_classes)), rng.normal(model_mean, 1, num_classes)
        center = np.zeros(num_features) if iid else rng.normal(input_mean, 1, num_features)
        x = center + scales * rng.normal(size=(size, num_features))
        weights, bias = shared if iid else own
        inputs.append(x.astype(np.float32))
        labels.append(np.argmax(x @ weights + bias, axis=1).astype(np.int32))
    return _packed({"x": np.concatenate(inputs), "y": np.concatenate(labels)}, sizes)


def synthetic_classification(
    num_clients: int,
    seed: int = 0,
    *,
    shape: tuple[int, ...] = (100,),
    num_classes: int = 10,
    mean_size: float = 50.0,
    sigma: float = 1.0,
    max_size: int | None = 400,
) -> ClientData:
    """A large federated dataset to measure with: log-normal sizes, normal inputs, labels that a linear model can learn.

    An example is `{"x": float32[shape], "y": int32}`; the client ids are the integers from 0 on.

    Args:
      num_clients: the number of clients.
      seed: the same seed gives the same data.
      shape: the shape of an input.
      num_classes: the number of labels.
      mean_size: the mean number of examples of a client before the limits.
      sigma: the standard deviation of the logarithm of that number; 0 for equal sizes.
      max_size: the greatest number of examples of a client; None for no limit. The least is 1.

    Returns:
      The federated dataset.

    Example:
      >>> synthetic_classification(3, shape=(28, 28, 1), sigma=0.0, mean_size=4)
      ClientData(<x=float32[28,28,1],y=int32>*, 3 clients, 12 examples)
    """
    rng = np.random.default_rng(seed)
    drawn = np.rint(rng.lognormal(np.log(mean_size) - sigma**2 / 2, sigma, num_clients))
    sizes = np.clip(drawn, 1, max_size).astype(np.int64)
    x = rng.standard_normal((int(sizes.sum()), *shape), np.float32)
    teacher = rng.standard_normal((int(np.prod(shape)), num_classes), np.float32)
    y = np.argmax(x.reshape(len(x), -1) @ teacher, axis=1).astype(np.int32)
    return _packed({"x": x, "y": y}, sizes)


def _packed(arrays: dict[str, np.ndarray], sizes: np.ndarray) -> ClientData:
    """The data whose rows are those of the clients in turn, without a copy."""
    columns = read_columns(arrays, "The arrays of a dataset")
    for leaf in columns.leaves:
        leaf.flags.writeable = False
    packed = PackedSequences(columns.element_type, columns.leaves, np.cumsum(sizes) - sizes, sizes)
    return ClientData(packed, range(len(sizes)), np.arange(len(sizes), dtype=np.int32))
