"""The client of `bench_flower.py`, in a module of its own because Ray's actors import it by name.

Each actor makes the workload and compiles the step once; a message brings the weights and says whose data to train on.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from jax_models import MODELS, batch_loss
from workloads import WORKLOADS, Workload

client_app = ClientApp()


@functools.cache
def workload_named(name: str) -> Workload:
    """A workload, once for each process."""
    return WORKLOADS[name]()


@functools.cache
def step_of(name: str) -> Any:
    """The compiled step of SGD of a workload, over a batch with its mask."""
    workload = workload_named(name)
    model, rate = MODELS[workload.model], workload.learning_rate

    @functools.partial(jax.jit, donate_argnums=0)
    def step(weights: Any, x: Any, y: Any, mask: Any) -> Any:
        gradients = jax.grad(lambda v: batch_loss(model, v, x, y, mask))(weights)
        return jax.tree.map(lambda p, g: p - rate * g, weights, gradients)

    return step


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One epoch over a client's data, its last batch padded and masked."""
    config = message.content["config"]
    name = str(config["workload"])
    workload, step = workload_named(name), step_of(name)
    x, y = workload.client(int(config["client"]))
    size, count = workload.batch_size, len(x)
    padding = -count % size
    x = np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    y = np.pad(y, [(0, padding)] + [(0, 0)] * (y.ndim - 1))
    mask = np.arange(len(x)) < count
    arrays = message.content["arrays"].to_numpy_ndarrays()
    weights = dict(zip(workload.weights, map(jnp.asarray, arrays), strict=True))
    for start in range(0, len(x), size):
        batch = slice(start, start + size)
        weights = step(weights, x[batch], y[batch], mask[batch])
    trained = ArrayRecord([np.asarray(weights[key]) for key in workload.weights])
    metrics = MetricRecord({"num-examples": count})
    return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)


def config_of(name: str, client: int) -> ConfigRecord:
    """What a message tells: which workload, and whose data."""
    return ConfigRecord({"workload": name, "client": client})
