"""The learning processes that fulfil the contract of algorithms: one row for each, and what the tests run them on.

`python -m tests.contracts.algorithms` prints the types that `algorithm_types.txt` holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from koinon.learning import algorithms, losses, models, optimizers
from koinon.learning.models import NonTrainableRule
from koinon.program import ClientStateStore
from koinon.simulation import ClientData

# Clients with examples, clients without any, and one with a number that is none.
USUAL, EMPTY, BROKEN = (0, 1, 2, 3), (4, 5, 6, 7), 8
_SIZES = (1, 3, 2, 2, 0, 0, 0, 0, 1)
EXAMPLE = {"x": (jnp.float32, (2,)), "y": jnp.float32}


def make_model() -> models.FunctionalModel:
    """Linear regression with two weights."""
    return models.functional(
        lambda w, x: x @ w, jnp.array([0.5, -0.25]), example_spec=EXAMPLE, loss=losses.squared_error
    )


def make_model_with_statistics() -> models.FunctionalModel:
    """The same with a statistic, a counter, and a number that each client keeps."""

    def predict(weights: Any, x: Any) -> Any:
        mean, count, own = weights.non_trainable
        new = 0.5 * mean + 0.5 * x.mean(), count + 1, own + x.mean()
        return models.ModelOutput(x @ weights.trainable + mean + own, new)

    return models.FunctionalModel(
        initial_weights=(jnp.array([0.5, -0.25]), (jnp.float32(0.0), jnp.int32(0), jnp.float32(0.0))),
        predict_on_batch_fn=predict,
        loss_fn=losses.squared_error,
        input_spec=EXAMPLE,
        non_trainable_rules=(NonTrainableRule.MEAN, NonTrainableRule.MAX, NonTrainableRule.KEEP_CLIENT),
    )


SGD = optax.sgd(0.1)
MOMENTUM = optimizers.build_sgdm(0.1, momentum=0.5)

ALGORITHMS: dict[str, Callable[[], Any]] = {
    "ditto": lambda: algorithms.build_ditto(make_model(), 0.5, SGD, batch_size=2),
    "fed_adam": lambda: algorithms.build_fed_adam(make_model(), SGD, batch_size=2),
    "fed_eval": lambda: algorithms.build_fed_eval(make_model(), batch_size=2),
    "fed_kmeans": lambda: algorithms.build_fed_kmeans(2, (2,), batch_size=2),
    "fed_nova": lambda: algorithms.build_fed_nova(make_model(), MOMENTUM, batch_size=1),
    "fed_prox": lambda: algorithms.build_fed_prox(make_model(), 0.5, SGD, MOMENTUM, batch_size=2),
    "fed_sgd": lambda: algorithms.build_fed_sgd(make_model(), batch_size=2),
    "mime_lite": lambda: algorithms.build_mime_lite(make_model(), MOMENTUM, batch_size=2),
    "scaffold": lambda: algorithms.build_scaffold(make_model(), SGD, num_clients=9, batch_size=1),
    "unweighted_fed_avg": lambda: algorithms.build_unweighted_fed_avg(make_model(), SGD, batch_size=2),
    "weighted_fed_avg": lambda: algorithms.build_weighted_fed_avg(
        make_model(), MOMENTUM, batch_size=2, epochs=2, shuffle=True
    ),
    "weighted_fed_avg_with_optimizer_schedule": lambda: algorithms.build_weighted_fed_avg_with_optimizer_schedule(
        make_model(), lambda t: 0.1 / (1 + t), optax.sgd, batch_size=2
    ),
    "weighted_fed_avg_with_statistics": lambda: algorithms.build_weighted_fed_avg(
        make_model_with_statistics(), SGD, batch_size=1
    ),
}


@functools.cache
def make_process(name: str) -> Any:
    """The process of a row; the same object each time, so that its programs are compiled once."""
    return ALGORITHMS[name]()


@functools.cache
def make_data(name: str) -> ClientData:
    """The clients' data for a row: points for k-means, examples for all others."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(sum(_SIZES), 2)).astype(np.float32)
    x[-1] = np.nan
    y = (x.sum(axis=1) + rng.normal(size=len(x))).astype(np.float32)
    starts = np.cumsum((0, *_SIZES))
    arrays = x if name == "fed_kmeans" else {"x": x, "y": y}
    parts = {i: np.arange(starts[i], starts[i + 1]) for i in range(len(_SIZES))}
    return ClientData.from_partition(arrays, parts)


class Run:
    """A run of a process: its state, and those of its clients.

    Attributes:
      process: the process.
      data: the data of its clients.
      state: its state.
      clients: the states of its clients; None if they keep none.
      metrics: those of the last round.
    """

    def __init__(self, name: str, process: Any = None) -> None:
        self.process = make_process(name) if process is None else process
        self.data = make_data(name)
        self.state = self.process.initialize()
        fresh = self.process.initialize_client_state
        self.clients = None if fresh is None else ClientStateStore(fresh, self.data.client_ids)
        self.metrics: Any = None

    def play(self, ids: tuple[int, ...]) -> Run:
        """Plays a round."""
        cohort = self.data.cohort(ids)
        if self.clients is None:
            self.state, self.metrics = self.process.next(self.state, cohort)
        else:
            self.state, kept, self.metrics = self.process.next(self.state, self.clients.rows(ids), cohort)
            self.clients.update(ids, kept)
        return self

    @property
    def weights(self) -> Any:
        """The model's weights."""
        return self.process.get_model_weights(self.state)

    @property
    def saved(self) -> Any:
        """All that a checkpoint holds."""
        return self.state, () if self.clients is None else self.clients.state

    @saved.setter
    def saved(self, value: Any) -> None:
        self.state, clients = value
        if self.clients is not None:
            self.clients.state = clients


def golden_types() -> str:
    """The types of `next` of all rows, as they are kept in `algorithm_types.txt`."""
    return "".join(f"{name}\n  {make_process(name).next.type_signature}\n" for name in ALGORITHMS)


if __name__ == "__main__":
    print(golden_types(), end="")
