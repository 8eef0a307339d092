"""An aggregator of one's own: the clients vote on the sign of every coordinate, and no client shouts.

signSGD with majority vote: Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with Majority Vote is Communication
Efficient and Fault Tolerant", ICLR 2019, https://arxiv.org/abs/1810.05291, algorithm 1.

Run it with `python examples/own_aggregator.py`; it needs no extra.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import koinon as ko


class MajorityVoteFactory(ko.aggregators.UnweightedAggregationFactory):
    """Aggregates to `step * sign(sum of the signs of the clients' values)`, coordinate by coordinate."""

    def __init__(self, step: float) -> None:
        self._step = step

    def create(self, value_type: Any) -> ko.templates.AggregationProcess:
        """The process for one type of value."""

        @ko.federated_computation
        def initialize() -> Any:
            return ko.federated_value((), ko.SERVER)  # it remembers nothing between rounds

        @ko.federated_computation(initialize.type_signature.result, ko.types.at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            votes = ko.federated_sum(ko.federated_map(lambda v: jax.tree.map(jnp.sign, v), value))
            result = ko.federated_map(lambda v: jax.tree.map(lambda x: self._step * jnp.sign(x), v), votes)
            nothing = ko.federated_value((), ko.SERVER)
            return ko.templates.MeasuredProcessOutput(state, result, nothing)

        return ko.templates.AggregationProcess(initialize, next_fn)


def main() -> None:
    """Fits a line at ten clients, one of which lies, with a mean and with the vote."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 20)).astype(np.float32)
    y = 3 * x + 1
    y[0] = -1000 * x[0]  # the liar
    clients = [{"x": x[i], "y": y[i]} for i in range(10)]

    model = ko.learning.models.functional(
        lambda weights, x: weights["slope"] * x + weights["offset"],
        {"slope": jnp.float32(0.0), "offset": jnp.float32(0.0)},
        example_spec={"x": jnp.float32, "y": jnp.float32},
        loss=ko.learning.losses.squared_error,
    )
    for name, aggregator in [("mean", ko.aggregators.UnweightedMeanFactory()), ("vote", MajorityVoteFactory(0.05))]:
        process = ko.learning.algorithms.build_unweighted_fed_avg(
            model, optax.sgd(0.05), batch_size=20, model_aggregator=aggregator
        )
        state = process.initialize()
        for _ in range(100):
            state, _ = process.next(state, clients)
        fitted = process.get_model_weights(state).trainable
        print(f"{name}: y = {fitted['slope']:.1f} x + {fitted['offset']:.1f}")


if __name__ == "__main__":
    main()
