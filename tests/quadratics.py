"""Clients whose losses are parabolas, for which the fixed points of algorithms have closed forms."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import koinon as ko


class Parabola(NamedTuple):
    """A client with the loss `curvature / 2 (w - optimum)^2`, and so many equal examples of it.

    With batches of one example the number of examples is the number of its steps.
    """

    curvature: float
    optimum: float
    examples: int

    def data(self) -> dict[str, np.ndarray]:
        """The client's examples for `model()`: the loss is (s w - s optimum)^2 with s^2 = curvature / 2."""
        s = np.full(self.examples, np.sqrt(self.curvature / 2), np.float32)
        return {"x": s, "y": (s * np.float32(self.optimum)).astype(np.float32)}


def model(initial: float = 0.0) -> ko.learning.models.FunctionalModel:
    """The model with one weight that parabolas are losses of."""
    return ko.learning.models.functional(
        lambda w, x: w * x,
        jnp.float32(initial),
        example_spec={"x": jnp.float32, "y": jnp.float32},
        loss=ko.learning.losses.squared_error,
    )


def run(process: Any, clients: list[Parabola], rounds: int) -> float:
    """The weight after so many rounds with all clients, whose states are kept where they have any."""
    state, data = process.initialize(), [client.data() for client in clients]
    fresh = process.initialize_client_state
    kept = None if fresh is None else [fresh()] * len(clients)
    for _ in range(rounds):
        output = process.next(state, data) if kept is None else process.next(state, kept, data)
        state, kept = output.state, None if kept is None else list(output.client_state)
    return float(process.get_model_weights(state).trainable)


def weighted_optimum(clients: list[Parabola], weights: list[float]) -> float:
    """The point where the weighted sum of pulls towards the clients' optima vanishes."""
    return float(np.dot(weights, [c.optimum for c in clients]) / np.sum(weights))
