"""Federated averaging of a Flax network on handwritten digits, evaluated at a server and at clients held out.

Run it with `python examples/federated_averaging.py`; it needs `pip install 'koinon[flax,sim]'`.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import koinon as ko

ROUNDS, CLIENTS_PER_ROUND, SEED = 60, 20, 0


def build_model() -> ko.learning.models.FunctionalModel:
    """A network of one hidden layer for images of 64 pixels."""
    return ko.learning.models.from_flax(
        nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)]),
        {"x": (jnp.float32, (64,)), "y": jnp.int32},
        loss=ko.learning.losses.cross_entropy,
        metrics={"accuracy": ko.learning.metrics.accuracy()},
        key=jax.random.key(SEED),
    )


def main() -> None:
    """Trains and evaluates."""
    # Each of 100 clients has some of the digits, and much more of some than of others; 10 clients are held out.
    digits = ko.simulation.datasets.load_digits(num_clients=100, alpha=0.3, seed=SEED)
    model = build_model()
    process = ko.learning.algorithms.build_weighted_fed_avg(
        model, optax.sgd(0.3), batch_size=10, epochs=3, shuffle=True, seed=SEED
    )
    print(process, "\n")

    sample = ko.simulation.build_uniform_sampling_fn(digits.train.client_ids, seed=SEED)
    state = process.initialize()
    for round_number in range(1, ROUNDS + 1):
        cohort = digits.train.cohort(sample(round_number, CLIENTS_PER_ROUND))
        state, metrics = process.next(state, cohort)
        if round_number % 10 == 0:
            train = metrics["client_work"]["train"]
            print(f"round {round_number}: loss {train['loss']:.3f}, accuracy {train['accuracy']:.3f}")

    weights = process.get_model_weights(state)
    test = ko.learning.models.evaluate(model, weights, digits.centralized_test)
    evaluate_clients = ko.learning.algorithms.build_per_client_eval_computation(model, batch_size=32)
    accuracies = np.array([client["accuracy"] for client in evaluate_clients(weights, digits.test.cohort())])
    print(f"test accuracy {test['accuracy']:.3f}")
    print(f"accuracy of the worst and the median held-out client {accuracies.min():.3f} {np.median(accuracies):.3f}")


if __name__ == "__main__":
    main()
