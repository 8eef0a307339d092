"""Partitioners: how the examples of a centralized dataset are dealt out to clients.

Each returns the indices of each client's examples, which together are every index once: what
`ClientData.from_partition` takes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError

_MAX_DRAWS = 1000


def iid(num_examples: int, num_clients: int, seed: int | None = None) -> list[np.ndarray]:
    """Deals examples out at random; the numbers of examples of two clients differ by one at most.

    Args:
      num_examples: the number of examples.
      num_clients: the number of clients.
      seed: the same seed gives the same partition; None for another one each time.

    Returns:
      One int64 array of indices for each client.

    Raises:
      KoinonValueError: if `num_clients` is not positive.

    Example:
      >>> sorted(len(part) for part in iid(10, 3, seed=0))
      [3, 3, 4]
    """
    return by_sizes(_shares(np.ones(_positive(num_clients)), num_examples), seed)


def dirichlet_labels(
    labels: Any, num_clients: int, alpha: float, seed: int | None = None, *, min_size: int = 0
) -> list[np.ndarray]:
    """Deals each label out in proportions drawn from a Dirichlet distribution: clients differ in labels and in size.

    Args:
      labels: int `[n]`, the label of each example.
      num_clients: the number of clients.
      alpha: the concentration, positive: towards 0 a label goes to one client, towards infinity to all alike.
      seed: the same seed gives the same partition; None for another one each time.
      min_size: the least number of examples of a client; the proportions are drawn again until all clients have it.

    Returns:
      One int64 array of indices for each client, in random order.

    Raises:
      KoinonValueError: if `alpha` or `num_clients` is not positive, or `min_size` was not reached in 1,000 draws.

    References:
      Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", 2019, section 4; the same
      proportions of labels for clients of equal size are in Hsu et al., "Measuring the Effects of Non-Identical Data
      Distribution for Federated Visual Classification", 2019.

    Example:
      >>> parts = dirichlet_labels(np.arange(1000) % 10, 20, alpha=0.3, seed=0, min_size=5)
      >>> sum(map(len, parts)), min(map(len, parts)) >= 5
      (1000, True)
    """
    groups = by_label(labels)
    if alpha <= 0:
        raise KoinonValueError("The concentration of a Dirichlet distribution is positive.", found=f"alpha={alpha}")
    rng = np.random.default_rng(seed)
    for _ in range(_MAX_DRAWS):
        # The cuts between clients, for each label: where the proportions of the clients before add up to.
        shares = rng.dirichlet(np.full(_positive(num_clients), alpha), len(groups)).cumsum(1)[:, :-1]
        cuts = [(share * len(group)).astype(np.int64) for share, group in zip(shares, groups, strict=True)]
        sizes = sum(np.diff(cut, prepend=0, append=len(group)) for cut, group in zip(cuts, groups, strict=True))
        if np.min(sizes, initial=min_size) >= min_size and (min_size <= 0 or len(groups)):
            pieces = [np.split(rng.permutation(group), cut) for cut, group in zip(cuts, groups, strict=True)]
            parts = [_joined(client) for client in zip(*pieces, strict=True)] or [_joined(())] * num_clients
            return [rng.permutation(part) for part in parts]
    raise KoinonValueError(
        f"{_MAX_DRAWS} draws did not give every client {min_size} examples.",
        found=f"{sum(map(len, groups))} examples, {num_clients} clients, alpha={alpha}",
        hint="lower `min_size` or `num_clients`, or raise `alpha`",
    )


def dirichlet_sizes(num_examples: int, num_clients: int, alpha: float, seed: int | None = None) -> list[np.ndarray]:
    """Deals examples out at random to clients whose sizes are in proportions drawn from a Dirichlet distribution.

    Args:
      num_examples: the number of examples.
      num_clients: the number of clients.
      alpha: the concentration, positive: the smaller, the more unequal.
      seed: the same seed gives the same partition; None for another one each time.

    Returns:
      One int64 array of indices for each client; it may be empty.

    Raises:
      KoinonValueError: if `alpha` or `num_clients` is not positive.
    """
    if alpha <= 0:
        raise KoinonValueError("The concentration of a Dirichlet distribution is positive.", found=f"alpha={alpha}")
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(_positive(num_clients), alpha))
    return by_sizes(_shares(weights, num_examples), int(rng.integers(2**63)))


def linear_sizes(num_examples: int, num_clients: int, seed: int | None = None) -> list[np.ndarray]:
    """Deals examples out at random to clients of linearly growing size: the k-th has k times as many as the first.

    Args:
      num_examples: the number of examples.
      num_clients: the number of clients.
      seed: the same seed gives the same partition; None for another one each time.

    Returns:
      One int64 array of indices for each client.

    Raises:
      KoinonValueError: if `num_clients` is not positive.

    Example:
      >>> [len(part) for part in linear_sizes(60, 3, seed=0)]
      [10, 20, 30]
    """
    return by_sizes(_shares(np.arange(1.0, _positive(num_clients) + 1), num_examples), seed)


def exponential_sizes(
    num_examples: int, num_clients: int, seed: int | None = None, *, ratio: float = 100.0
) -> list[np.ndarray]:
    """Deals examples out at random to clients of exponentially growing size.

    Args:
      num_examples: the number of examples.
      num_clients: the number of clients.
      seed: the same seed gives the same partition; None for another one each time.
      ratio: how many times as many examples as the first client the last one has; positive.

    Returns:
      One int64 array of indices for each client.

    Raises:
      KoinonValueError: if `num_clients` or `ratio` is not positive.

    Example:
      >>> [len(part) for part in exponential_sizes(210, 3, seed=0, ratio=16)]
      [10, 40, 160]
    """
    if ratio <= 0:
        raise KoinonValueError("The ratio of two sizes is positive.", found=f"ratio={ratio}")
    exponents = np.arange(_positive(num_clients)) / max(1, num_clients - 1)
    return by_sizes(_shares(np.float64(ratio) ** exponents, num_examples), seed)


def shards(labels: Any, num_clients: int, shards_per_client: int = 2, seed: int | None = None) -> list[np.ndarray]:
    """Sorts examples by label, cuts them into shards of equal size, and deals these out: few labels for each client.

    Args:
      labels: int `[n]`, the label of each example.
      num_clients: the number of clients.
      shards_per_client: the number of shards of each client, which is about the number of its labels.
      seed: the same seed gives the same partition; None for another one each time.

    Returns:
      One int64 array of indices for each client; sizes differ by `shards_per_client` at most.

    Raises:
      KoinonValueError: if `num_clients` or `shards_per_client` is not positive.

    References:
      McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017, section 3.
    """
    order = _joined(by_label(labels))
    rng = np.random.default_rng(seed)
    pieces = np.array_split(order, _positive(num_clients) * _positive(shards_per_client, "shards_per_client"))
    dealt = rng.permutation(len(pieces)).reshape(num_clients, shards_per_client)
    return [_joined([pieces[piece] for piece in hand]) for hand in dealt]


def by_label(labels: Any) -> list[np.ndarray]:
    """Makes one client of each label, in ascending order.

    Args:
      labels: int `[n]`, the label of each example.

    Returns:
      One int64 array of ascending indices for each label that occurs.

    Raises:
      KoinonTypeError: if `labels` is no vector of integers.

    Example:
      >>> by_label([7, 3, 7])
      [array([1]), array([0, 2])]
    """
    array = np.asarray(labels)
    if array.size == 0:
        return []
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise KoinonTypeError(
            "Labels are given as one integer for each example.",
            expected="a vector of integers",
            found=f"dtype {array.dtype}, shape {array.shape}",
            hint="for other keys, use `by_key`; for one-hot labels, `labels.argmax(1)`",
        )
    _, counts = np.unique(array, return_counts=True)
    return np.split(np.argsort(array, kind="stable"), np.cumsum(counts)[:-1])


def by_key(keys: Sequence[Hashable] | np.ndarray) -> dict[Any, np.ndarray]:
    """Makes one client of each key: of an author, a device, a hospital, for example.

    Args:
      keys: the key of each example; anything hashable.

    Returns:
      For each key, in the order of the first occurrences, an int64 array of ascending indices.

    Example:
      >>> by_key(["ann", "bob", "ann"])
      {'ann': array([0, 2]), 'bob': array([1])}
    """
    items: list[Any] = keys.tolist() if isinstance(keys, np.ndarray) else list(keys)
    index = {key: number for number, key in enumerate(dict.fromkeys(items))}
    codes = np.fromiter(map(index.__getitem__, items), np.int64, len(items))
    return dict(zip(index, by_label(codes), strict=True))


def by_sizes(sizes: Sequence[int] | np.ndarray, seed: int | None = None) -> list[np.ndarray]:
    """Deals examples out at random to clients of given sizes.

    Args:
      sizes: int `[clients]`, the number of examples of each client; their sum is the number of examples.
      seed: the same seed gives the same partition; None for another one each time.

    Returns:
      One int64 array of indices for each client.

    Raises:
      KoinonValueError: if a size is negative.
    """
    sizes = np.asarray(sizes, np.int64)
    if np.any(sizes < 0):
        raise KoinonValueError("A client cannot have less than no examples.", found=f"sizes {sizes.tolist()[:10]}")
    order = np.random.default_rng(seed).permutation(int(sizes.sum()))
    return np.split(order, np.cumsum(sizes)[:-1]) if len(sizes) else []


def _shares(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers as close to the proportions as possible: rounded down, and the rest to the largest remainders."""
    if total < 0:
        raise KoinonValueError("There cannot be less than no examples.", found=str(total))
    exact = weights / weights.sum() * total
    sizes = np.floor(exact).astype(np.int64)
    missing = total - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:missing]] += 1
    return sizes


def _positive(number: int, name: str = "num_clients") -> int:
    if number < 1:
        raise KoinonValueError(f"`{name}` must be at least 1.", found=str(number))
    return number


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts])
