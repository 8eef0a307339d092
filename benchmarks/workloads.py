"""The workloads of the benchmarks: data and initial weights, as numpy alone, the same bytes for every contestant.

    W1  a perceptron 64-128-10, 100 clients of very different sizes (Dirichlet(0.3) by label), batches of 20;
        W1-32 to W1-32768 have so many hidden units instead of 128, which makes 2,410 to 2,457,610 parameters
    W2  a convolutional network of 1.2 M parameters on 28x28 images, cohorts of 10 of 200 clients, batches of 20
    W3  logistic regression 100 -> 10, cohorts of 100 to 100,000 clients, batches of 10
    W4  a character LSTM of 256 units over 80 steps, cohorts of 10 of 60 clients, batches of 4

A round is federated averaging: one epoch of SGD at every client, exact partial last batches, the mean of the changes
weighted by examples, server rate 1.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Workload:
    """One workload.

    Attributes:
      name: its name.
      model: which model of `bench_*.py` it trains: "mlp", "cnn", "logistic" or "lstm".
      x: the inputs of all clients, back to back.
      y: the targets, likewise.
      sizes: the number of examples of each client.
      cohort: the number of clients of a round.
      weights: the initial weights by name.
      batch_size: the number of examples of a batch.
      learning_rate: the clients' learning rate.
    """

    name: str
    model: str
    x: np.ndarray
    y: np.ndarray
    sizes: np.ndarray
    cohort: int
    weights: dict[str, np.ndarray]
    batch_size: int
    learning_rate: float = 0.05

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """The row at which each client's examples start."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)

    def client(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The inputs and targets of one client."""
        start = self.offsets[index]
        return self.x[start : start + self.sizes[index]], self.y[start : start + self.sizes[index]]

    def cohort_of(self, round_number: int) -> np.ndarray:
        """The clients of a round: all of them, or another choice for each round."""
        if self.cohort == len(self.sizes):
            return np.arange(self.cohort)
        return np.random.default_rng([7, round_number]).choice(len(self.sizes), self.cohort, replace=False)

    def steps(self, cohort: np.ndarray) -> int:
        """The number of batches of a round."""
        return int(np.ceil(self.sizes[cohort] / self.batch_size).sum())


def _dense(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


def _log_normal_sizes(rng: np.random.Generator, count: int, mean: float, sigma: float, cap: int) -> np.ndarray:
    sizes = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(np.round(sizes), 1, cap).astype(np.int64)


def w1(hidden: int = 128) -> Workload:
    """The perceptron: 100 clients, all of them in every round, the same data whatever the number of hidden units."""
    rng = np.random.default_rng(1)
    proportions = rng.dirichlet(np.full(100, 0.3), size=10)
    per_label = np.stack([rng.multinomial(850, p) for p in proportions])
    sizes = np.maximum(per_label.sum(0), 4)
    labels = np.concatenate(
        [
            np.concatenate([np.repeat(np.arange(10), per_label[:, k]), rng.integers(0, 10, 4)])[: sizes[k]]
            for k in range(100)
        ]
    )
    centers = rng.normal(size=(10, 64)).astype(np.float32)
    x = (centers[labels] + rng.normal(size=(len(labels), 64))).astype(np.float32)
    weights = {
        "w1": _dense(rng, 64, hidden),
        "b1": np.zeros(hidden, np.float32),
        "w2": _dense(rng, hidden, 10),
        "b2": np.zeros(10, np.float32),
    }
    name = "W1" if hidden == 128 else f"W1-{hidden}"
    return Workload(name, "mlp", x, labels.astype(np.int32), sizes, 100, weights, 20, learning_rate=0.05 * 128 / hidden)


def w2() -> Workload:
    """The convolutional network: 10 of 200 clients."""
    rng = np.random.default_rng(2)
    sizes = _log_normal_sizes(rng, 200, 110, 0.8, 400)
    total = int(sizes.sum())
    y = rng.integers(0, 62, total).astype(np.int32)
    x = rng.random((total, 28, 28, 1), np.float32)
    weights = {
        "c1": _dense(rng, 3, 3, 1, 32),
        "cb1": np.zeros(32, np.float32),
        "c2": _dense(rng, 3, 3, 32, 64),
        "cb2": np.zeros(64, np.float32),
        "d1": _dense(rng, 12 * 12 * 64, 128),
        "db1": np.zeros(128, np.float32),
        "d2": _dense(rng, 128, 62),
        "db2": np.zeros(62, np.float32),
    }
    return Workload("W2", "cnn", x, y, sizes, 10, weights, 20)


def w3(clients: int = 1000) -> Workload:
    """Logistic regression: as many clients as one likes, all of them in every round."""
    rng = np.random.default_rng(3)
    sizes = _log_normal_sizes(rng, clients, 50, 0.6, 1000)
    total = int(sizes.sum())
    y = rng.integers(0, 10, total).astype(np.int32)
    x = rng.standard_normal((total, 100), np.float32)
    weights = {"w": np.zeros((100, 10), np.float32), "b": np.zeros(10, np.float32)}
    return Workload(f"W3-{clients}", "logistic", x, y, sizes, clients, weights, 10)


def w4() -> Workload:
    """The character LSTM: 10 of 60 clients; the target of a character is the next one."""
    rng = np.random.default_rng(4)
    sizes = _log_normal_sizes(rng, 60, 40, 0.3, 80)
    text = rng.integers(0, 90, (int(sizes.sum()), 81)).astype(np.int32)
    weights = {
        "emb": _dense(rng, 90, 8),
        "wx": _dense(rng, 8, 1024),
        "wh": _dense(rng, 256, 1024),
        "b": np.zeros(1024, np.float32),
        "wo": _dense(rng, 256, 90),
        "bo": np.zeros(90, np.float32),
    }
    return Workload("W4", "lstm", text[:, :-1], text[:, 1:], sizes, 10, weights, 4)


WORKLOADS: dict[str, Any] = {
    "W1": w1,
    **{f"W1-{hidden}": functools.partial(w1, hidden) for hidden in (32, 512, 2048, 8192, 32768)},
    "W2": w2,
    "W3-100": lambda: w3(100),
    "W3": w3,
    "W3-10000": lambda: w3(10_000),
    "W3-100000": lambda: w3(100_000),
    "W4": w4,
}
