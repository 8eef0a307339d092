"""FedJAX: its federated averaging, with the padded batches that it recommends instead of the ones it fills up.

    python bench_fedjax.py W1 [rounds]

`fedjax.algorithms.fed_avg.federated_averaging` fills the last batch of a client with examples drawn again, which is
another algorithm than the one measured. So its parts are put together as it does, `create_train_for_each_client` on the
backend "jit" and a mean by `tree_util`, but over `ClientDataset.padded_batch`, whose masks `fedjax.grad` understands.
"""

from __future__ import annotations

import sys
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
from fedjax.algorithms import fed_avg
from jax_models import MODELS, example_losses
from measure import measure
from workloads import WORKLOADS


def main(name: str, rounds: int) -> None:
    """Times FedJAX on one workload."""
    workload = WORKLOADS[name]()
    model = MODELS[workload.model]
    state: list[Any] = []

    def per_example_loss(params: Any, batch: Any, rng: Any) -> Any:
        del rng
        return example_losses(model(params, batch["x"]), batch["y"])

    def build() -> Any:
        fedjax.set_for_each_client_backend("jit")
        clients = []
        for index in range(len(workload.sizes)):
            x, y = workload.client(index)
            clients.append(fedjax.ClientDataset({"x": x, "y": y}))
        hparams = fedjax.PaddedBatchHParams(batch_size=workload.batch_size)
        train = fed_avg.create_train_for_each_client(
            fedjax.grad(per_example_loss), fedjax.optimizers.sgd(workload.learning_rate)
        )
        server = fedjax.optimizers.sgd(1.0)
        weights = jax.tree_util.tree_map(jnp.asarray, workload.weights)
        state[:] = [fed_avg.ServerState(weights, server.init(weights))]
        unused_key = jax.random.PRNGKey(0)

        def run(number: int) -> None:
            cohort = [(i, clients[i].padded_batch(hparams), unused_key) for i in workload.cohort_of(number)]
            changes = train(state[0].params, cohort)
            mean = fedjax.tree_util.tree_mean((change, float(len(clients[i]))) for i, change in changes)
            opt_state, params = server.apply(mean, state[0].opt_state, state[0].params)
            state[0] = jax.block_until_ready(fed_avg.ServerState(params, opt_state))

        return run

    def loss() -> float:
        logits = model(state[0].params, workload.x[:500])
        return float(example_losses(logits, jnp.asarray(workload.y[:500])).mean())

    measure("fedjax", workload, build, loss, rounds)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10)
