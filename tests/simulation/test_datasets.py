"""The datasets to start with: real digits dealt out without a leak, and synthetic data that follow their recipes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from koinon._errors import KoinonValueError, MissingDependencyError
from koinon.simulation import ClientData, datasets


def rows_of(data: ClientData) -> np.ndarray:
    """All examples of a federated dataset, one row each."""
    parts = [data.dataset(client_id) for client_id in data.client_ids]
    return np.concatenate([np.concatenate([part["x"], part["y"][:, None]], axis=1) for part in parts])


def test_digits_are_the_images_of_scikit_learn_each_once() -> None:
    """The three parts together are the 1,797 images with their labels; no image is in two parts."""
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    split = datasets.load_digits()
    bunch: Any = sklearn_datasets.load_digits()
    expected = np.concatenate([bunch.data / 16, bunch.target[:, None]], axis=1).astype(np.float32)
    test = split.centralized_test
    found = np.concatenate([rows_of(split.train), rows_of(split.test), np.c_[test["x"], test["y"]]])
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))


def test_digits_have_the_promised_types_and_sizes() -> None:
    """100 clients, 10 of them held out, all with examples; pixels from 0 to 1; a fifth of each digit is central."""
    pytest.importorskip("sklearn")
    split = datasets.load_digits()
    assert str(split.train.element_type) == str(split.test.element_type) == "<x=float32[64],y=int32>"
    assert (len(split.train), len(split.test)) == (90, 10)
    assert not set(split.train.client_ids) & set(split.test.client_ids)
    sizes = np.concatenate([split.train.describe().sizes, split.test.describe().sizes])
    assert sizes.min() >= 1
    assert sizes.max() > 2 * np.median(sizes)
    x, y = split.centralized_test["x"], split.centralized_test["y"]
    assert (x.dtype, y.dtype) == (np.float32, np.int32)
    assert (x.min(), x.max()) == (0, 1)
    everything = np.bincount(np.concatenate([rows_of(split.train)[:, -1], rows_of(split.test)[:, -1], y]).astype(int))
    assert np.bincount(y).tolist() == [round(0.2 * count) for count in everything]


def test_digits_can_be_dealt_out_otherwise() -> None:
    """Numbers of clients, of test clients, and the central share are as asked for; a seed repeats the split."""
    pytest.importorskip("sklearn")
    options = {"num_clients": 12, "alpha": 100.0, "num_test_clients": 3, "test_fraction": 0.0}
    first, again, other = (datasets.load_digits(seed=seed, **options) for seed in (1, 1, 2))
    assert (len(first.train), len(first.test), len(first.centralized_test["y"])) == (9, 3, 0)
    np.testing.assert_array_equal(rows_of(first.train), rows_of(again.train))
    assert first.test.client_ids != other.test.client_ids or not np.array_equal(
        rows_of(first.train), rows_of(other.train)
    )
    with pytest.raises(KoinonValueError, match="less than 1"):
        datasets.load_digits(test_fraction=1.0)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: Any) -> None:
    """The error has the command."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"koinon\[sim\]"):
        datasets.load_digits()


def client_means(data: ClientData) -> np.ndarray:
    return np.array([data.dataset(client_id)["x"].mean(0) for client_id in data.client_ids])


def test_synthetic_inputs_have_the_covariance_of_the_recipe() -> None:
    """Within a client, input j has the variance j^-1.2, and inputs are uncorrelated."""
    data = datasets.synthetic(num_clients=40, num_features=10, max_size=4000, seed=1)
    centered = np.concatenate(
        [data.dataset(client_id)["x"] - data.dataset(client_id)["x"].mean(0) for client_id in data.client_ids]
    )
    covariance = np.cov(centered.T)
    scale = np.arange(1, 11) ** -0.6
    np.testing.assert_allclose(covariance / np.outer(scale, scale), np.eye(10), atol=0.1)


def test_synthetic_clients_differ_by_alpha_and_beta() -> None:
    """The mean of a client's inputs varies by 1 + beta^2 around zero, and not at all for identical clients."""
    for beta in (0.0, 2.0):
        data = datasets.synthetic(0.0, beta, num_clients=600, num_features=5, max_size=60)
        noise = np.arange(1, 6) ** -1.2 / 60
        np.testing.assert_allclose(client_means(data).var(0), 1 + beta**2 + noise, rtol=0.25)
    identical = datasets.synthetic(1.0, 1.0, num_clients=600, num_features=5, max_size=60, iid=True)
    np.testing.assert_allclose(client_means(identical).var(0), np.arange(1, 6) ** -1.2 / 55, rtol=0.25)


def test_synthetic_sizes_are_log_normal_above_fifty() -> None:
    """The logarithm of the size less 50 has mean 4 and standard deviation 2, up to rounding down."""
    sizes = datasets.synthetic(num_clients=2000, num_features=2, max_size=None, iid=True).describe().sizes
    assert sizes.min() >= 50
    large = np.sort(np.log(sizes - 50 + 0.5))
    np.testing.assert_allclose(np.median(large), 4.0, atol=0.2)
    np.testing.assert_allclose((large[1682] - large[317]) / 2, 2.0, rtol=0.1)  # the quantiles at one deviation
    assert datasets.synthetic(num_clients=50, max_size=70).describe().sizes.max() <= 70


def test_synthetic_labels_of_identical_clients_come_from_one_linear_model() -> None:
    """A linear model fitted to some clients predicts the labels of others; for clients that differ it cannot."""

    def accuracy(iid: bool) -> float:
        data = datasets.synthetic(1.0, 1.0, num_clients=40, num_features=8, num_classes=3, max_size=300, iid=iid)
        rows = rows_of(data.subset(data.client_ids[:30])), rows_of(data.subset(data.client_ids[30:]))
        x, held_out = (np.c_[part[:, :-1], np.ones(len(part))] for part in rows)
        weights = np.linalg.lstsq(x, np.eye(3)[rows[0][:, -1].astype(int)], rcond=None)[0]
        return float(((held_out @ weights).argmax(1) == rows[1][:, -1]).mean())

    assert accuracy(iid=True) > 0.8
    assert accuracy(iid=False) < accuracy(iid=True)


@pytest.mark.parametrize("make", [datasets.synthetic, datasets.synthetic_classification])
def test_a_seed_repeats_the_data(make: Any) -> None:
    """Equal seeds give equal data, others do not."""
    first, again, other = (make(num_clients=5, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(rows_of(first), rows_of(again))
    assert rows_of(first).shape != rows_of(other).shape or not np.array_equal(rows_of(first), rows_of(other))


def test_classification_data_have_log_normal_sizes_and_learnable_labels() -> None:
    """Sizes have the mean and spread asked for; least squares finds the labels."""
    data = datasets.synthetic_classification(3000, shape=(4, 2), num_classes=3, mean_size=30, sigma=0.5, max_size=None)
    assert str(data.element_type) == "<x=float32[4,2],y=int32>"
    assert data.client_ids == tuple(range(3000))
    sizes = data.describe().sizes
    np.testing.assert_allclose(sizes.mean(), 30, rtol=0.05)
    np.testing.assert_allclose(np.log(sizes).std(), 0.5, rtol=0.05)
    part = data.dataset(0)
    x = np.concatenate([data.dataset(client_id)["x"] for client_id in range(200)]).reshape(-1, 8)
    y = np.concatenate([data.dataset(client_id)["y"] for client_id in range(200)])
    weights = np.linalg.lstsq(x, np.eye(3)[y], rcond=None)[0]
    assert ((part["x"].reshape(-1, 8) @ weights).argmax(1) == part["y"]).mean() > 0.75


def test_classification_sizes_are_limited() -> None:
    """No client has more than the limit or less than one."""
    sizes = datasets.synthetic_classification(500, shape=(1,), mean_size=3, sigma=2.0, max_size=9).describe().sizes
    assert (sizes.min(), sizes.max()) == (1, 9)
