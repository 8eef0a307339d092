"""DrJAX: federated averaging as one of its programs, clients padded to a common length and trained together.

    python bench_drjax.py W1 [rounds] [groups=1]     groups=8 is an expert's way

With one group, all clients of the cohort are rows of one padded array, as in DrJAX's documentation. With more, the
clients are sorted by size, each group is padded to its own longest and runs a program of its own, which cuts the
padding to a fraction; the sums of the groups are added at the end.

Where the cohort is everyone, the padded arrays are placed on the device once and stay there. Where it changes from
round to round, they are made of static shape (so that nothing is compiled again) and placed anew each round; a loop of
dynamic length stops at the longest of the cohort, or of the group.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import drjax
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax_models import MODELS, batch_loss, example_losses
from measure import measure
from workloads import WORKLOADS


def main(name: str, rounds: int, groups: int = 1) -> None:
    """Times DrJAX on one workload."""
    logging.set_verbosity(logging.ERROR)  # one device needs no mesh, of which DrJAX reminds at every trace
    workload = WORKLOADS[name]()
    model = MODELS[workload.model]
    size, rate = workload.batch_size, workload.learning_rate
    everyone = workload.cohort == len(workload.sizes)

    @functools.cache
    def program(clients: int) -> Any:
        """The weighted sum of the changes of so many clients."""

        @jax.jit
        @drjax.program(clients=clients)
        def group_sum(weights: Any, x: Any, y: Any, lengths: Any, steps: Any) -> Any:
            def train(w: Any, x: Any, y: Any, length: Any) -> Any:
                def step(batch: Any, w: Any) -> Any:
                    mask = jnp.arange(size) < length - batch * size
                    gradients = jax.grad(lambda v: batch_loss(model, v, x[batch], y[batch], mask))(w)
                    return jax.tree.map(lambda p, g: p - rate * g, w, gradients)

                trained = jax.lax.fori_loop(0, steps, step, w)
                return jax.tree.map(lambda a, b: length.astype(jnp.float32) * (a - b), w, trained)

            changes = drjax.map_fn(train, (drjax.broadcast(weights), x, y, lengths))
            return drjax.reduce_sum(changes), drjax.reduce_sum(lengths)

        return group_sum

    @jax.jit
    def server_update(weights: Any, sums: Any) -> Any:
        total = sum(n for _, n in sums).astype(jnp.float32)
        change = jax.tree.map(lambda *leaves: sum(leaves), *(s for s, _ in sums))
        return jax.tree.map(lambda w, d: w - d / total, weights, change)

    def place(clients: np.ndarray, batches: int) -> Any:
        """The padded arrays of a group: `[clients, batches, batch, ...]`, the lengths, the batches of the longest."""
        lengths = workload.sizes[clients]
        x = np.zeros((len(clients), batches * size, *workload.x.shape[1:]), workload.x.dtype)
        y = np.zeros((len(clients), batches * size, *workload.y.shape[1:]), workload.y.dtype)
        for row, client in enumerate(clients):
            x[row, : lengths[row]], y[row, : lengths[row]] = workload.client(client)
        shape = (len(clients), batches, size)
        return jax.device_put(
            (
                x.reshape(*shape, *x.shape[2:]),
                y.reshape(*shape, *y.shape[2:]),
                lengths.astype(np.int32),
                np.int32(batches_of(lengths)),
            )
        )

    def batches_of(lengths: np.ndarray) -> int:
        return int(-(-lengths.max() // size))

    def grouped(cohort: np.ndarray) -> list[np.ndarray]:
        by_size = cohort[np.argsort(workload.sizes[cohort], kind="stable")]
        return [group for group in np.array_split(by_size, groups) if len(group)]

    state: list[Any] = []

    def build() -> Any:
        state[:] = [jax.tree.map(jnp.asarray, workload.weights)]
        longest = batches_of(workload.sizes)
        cohort = workload.cohort_of(0)
        resident = [place(g, batches_of(workload.sizes[g])) for g in grouped(cohort)] if everyone else None

        def run(number: int) -> None:
            arguments = resident or [place(g, longest) for g in grouped(workload.cohort_of(number))]
            sums = [program(len(lengths))(state[0], x, y, lengths, steps) for x, y, lengths, steps in arguments]
            state[0] = jax.block_until_ready(server_update(state[0], sums))

        return run

    def loss() -> float:
        logits = model(state[0], workload.x[:500])
        return float(example_losses(logits, jnp.asarray(workload.y[:500])).mean())

    measure("drjax" if groups == 1 else f"drjax-{groups}-groups", workload, build, loss, rounds)


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]) if len(sys.argv) > 2 else 10,
        **{key: int(value) for key, value in (option.split("=") for option in sys.argv[3:])},
    )
