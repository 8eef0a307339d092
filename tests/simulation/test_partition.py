"""Partitioners: every index exactly once, in the proportions that were asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.simulation import (
    by_key,
    by_label,
    by_sizes,
    dirichlet_labels,
    dirichlet_sizes,
    exponential_sizes,
    iid,
    linear_sizes,
    shards,
)

PARTITIONERS: dict[str, Callable[[np.ndarray, int, int], list[np.ndarray]]] = {
    "iid": lambda labels, clients, seed: iid(len(labels), clients, seed),
    "dirichlet_labels": lambda labels, clients, seed: dirichlet_labels(labels, clients, 0.3, seed),
    "dirichlet_sizes": lambda labels, clients, seed: dirichlet_sizes(len(labels), clients, 0.5, seed),
    "linear_sizes": lambda labels, clients, seed: linear_sizes(len(labels), clients, seed),
    "exponential_sizes": lambda labels, clients, seed: exponential_sizes(len(labels), clients, seed),
    "shards": lambda labels, clients, seed: shards(labels, clients, 2, seed),
}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(PARTITIONERS)),
    labels=st.lists(st.integers(0, 5), max_size=60),
    clients=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_every_index_is_dealt_out_once(name: str, labels: list[int], clients: int, seed: int) -> None:
    """The parts are as many as clients, and together a permutation of all indices; a seed repeats them."""
    parts = PARTITIONERS[name](np.array(labels, int), clients, seed)
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and part.ndim == 1 for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == [*range(len(labels))]
    again = PARTITIONERS[name](np.array(labels, int), clients, seed)
    assert [part.tolist() for part in again] == [part.tolist() for part in parts]


@pytest.mark.parametrize("name", sorted(PARTITIONERS))
def test_seeds_matter_and_clients_are_positive(name: str) -> None:
    """Another seed gives another partition; no clients are an error."""
    labels = np.arange(200) % 10
    first, second = (np.concatenate(PARTITIONERS[name](labels, 5, seed)).tolist() for seed in (0, 1))
    assert first != second
    with pytest.raises(KoinonValueError, match="num_clients"):
        PARTITIONERS[name](labels, 0, 0)


@given(st.lists(st.sampled_from([3, -1, 0, 7])))
def test_by_label_groups_in_ascending_order(labels: list[int]) -> None:
    """Each label that occurs has a part with the ascending indices of its examples."""
    expected = [[i for i, label in enumerate(labels) if label == wanted] for wanted in sorted(set(labels))]
    assert [part.tolist() for part in by_label(labels)] == expected


@given(st.lists(st.sampled_from(["b", "a", 1, None, (2,)])))
def test_by_key_groups_in_the_order_of_occurrence(keys: list[Any]) -> None:
    """Each key has the ascending indices of its examples."""
    expected = {key: [i for i, other in enumerate(keys) if other == key] for key in dict.fromkeys(keys)}
    found = by_key(keys)
    assert {key: part.tolist() for key, part in found.items()} == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize("labels", [[0.5], ["a"], [[1, 2]]])
def test_labels_are_vectors_of_integers(labels: Any) -> None:
    """Other labels are an error that names the way out."""
    with pytest.raises(KoinonTypeError, match="by_key"):
        by_label(labels)


def test_iid_sizes_differ_by_one() -> None:
    """Of 103 examples, 10 clients have 10 or 11."""
    sizes = [len(part) for part in iid(103, 10, 0)]
    assert sorted(sizes) == [10] * 7 + [11] * 3


def test_iid_clients_have_all_labels_alike() -> None:
    """A label's count at a client lies within five standard deviations of the hypergeometric mean."""
    labels = np.arange(10_000) % 10
    counts = np.array([np.bincount(labels[part], minlength=10) for part in iid(10_000, 10, 0)])
    deviation = np.sqrt(1000 * 0.1 * 0.9 * (9000 / 9999))
    assert np.all(abs(counts - 100) < 5 * deviation)


def test_dirichlet_proportions_have_the_mean_and_variance_of_their_distribution() -> None:
    """A client's share of a label is Beta(alpha, (K - 1) alpha): mean 1/K, variance (K - 1) / K^2 (K alpha + 1)."""
    clients, alpha, labels = 20, 0.3, np.repeat(np.arange(200), 1000)
    parts = dirichlet_labels(labels, clients, alpha, seed=0)
    shares = np.array([np.bincount(labels[part], minlength=200) for part in parts]) / 1000
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
    np.testing.assert_allclose(shares.sum(0), 1)
    np.testing.assert_allclose(shares.mean(), 1 / clients)
    np.testing.assert_allclose(shares.var(), variance, rtol=0.15)


def test_a_small_alpha_gives_each_label_to_few_clients() -> None:
    """Heterogeneity falls with alpha: the mean largest share of a label goes from near 1 to near 1/K."""
    labels = np.arange(10_000) % 50

    def largest_share(alpha: float) -> float:
        parts = dirichlet_labels(labels, 10, alpha, 0, min_size=100)
        counts = np.array([np.bincount(labels[part], minlength=50) for part in parts])
        return float((counts.max(0) / counts.sum(0)).mean())

    shares = [largest_share(alpha) for alpha in (0.05, 0.5, 5.0, 5000.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.7
    assert shares[-1] < 0.13


def test_dirichlet_labels_keeps_a_least_size_or_says_that_it_cannot() -> None:
    """All clients reach the least size; an impossible one is an error, also without examples."""
    labels = np.arange(300) % 10
    assert min(len(part) for part in dirichlet_labels(labels, 20, 0.3, 0, min_size=3)) >= 3
    with pytest.raises(KoinonValueError, match="31 examples"):
        dirichlet_labels(labels, 10, 0.3, 0, min_size=31)
    with pytest.raises(KoinonValueError, match="1 examples"):
        dirichlet_labels([], 10, 0.3, 0, min_size=1)


@pytest.mark.parametrize("alpha", [0, -1])
def test_concentrations_are_positive(alpha: float) -> None:
    """Neither labels nor sizes can be drawn with another alpha."""
    with pytest.raises(KoinonValueError, match="positive"):
        dirichlet_labels([0, 1], 2, alpha)
    with pytest.raises(KoinonValueError, match="positive"):
        dirichlet_sizes(2, 2, alpha)


def test_linear_and_exponential_sizes_follow_their_law() -> None:
    """Sizes are within one example of k / (1 + .. + K), and of a geometric progression with the given ratio."""
    linear = np.array([len(part) for part in linear_sizes(1000, 7, 0)])
    assert np.all(abs(linear - 1000 * np.arange(1, 8) / 28) < 1)
    exponential = np.array([len(part) for part in exponential_sizes(1000, 5, 0, ratio=50)])
    law = 50 ** (np.arange(5) / 4)
    assert np.all(abs(exponential - 1000 * law / law.sum()) < 1)
    with pytest.raises(KoinonValueError, match="ratio"):
        exponential_sizes(10, 2, ratio=0)


def test_dirichlet_sizes_spread_with_a_small_alpha() -> None:
    """The coefficient of variation of the sizes is sqrt((K - 1) / (K alpha + 1)), up to sampling."""
    clients, alpha = 2000, 0.5
    sizes = np.array([len(part) for part in dirichlet_sizes(2_000_000, clients, alpha, 0)])
    np.testing.assert_allclose(sizes.std() / sizes.mean(), np.sqrt((clients - 1) / (clients * alpha + 1)), rtol=0.1)


def test_shards_give_few_labels_to_each_client() -> None:
    """With two shards of the size of a label each client has two labels at most, and all have the same size."""
    labels = np.random.default_rng(0).permutation(np.arange(1000) % 10)
    parts = shards(labels, 5, 2, seed=0)
    assert [len(part) for part in parts] == [200] * 5
    assert max(len(set(labels[part].tolist())) for part in parts) <= 2
    with pytest.raises(KoinonValueError, match="shards_per_client"):
        shards(labels, 5, 0)


def test_by_sizes_gives_the_sizes_asked_for() -> None:
    """Sizes are exact, empty ones too; negative ones are an error."""
    parts = by_sizes([3, 0, 4], 0)
    assert [len(part) for part in parts] == [3, 0, 4]
    assert sorted(np.concatenate(parts).tolist()) == [*range(7)]
    assert by_sizes([]) == []
    with pytest.raises(KoinonValueError, match="less than no"):
        by_sizes([2, -1])


def test_a_negative_number_of_examples_is_refused() -> None:
    """There is nothing to deal out."""
    with pytest.raises(KoinonValueError, match="less than no"):
        iid(-1, 2)
