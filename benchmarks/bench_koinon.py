"""koinon: the whole learning process of `build_weighted_fed_avg`, driven by `process.next(state, data.cohort(ids))`.

python bench_koinon.py W1 [rounds] [option=value ...]     options: threads, lanes, devices, deterministic, fresh

With `fresh=1` the examples are not resident: every round reads the examples of its clients one by one from NumPy
arrays, packs them, and copies them to the device, in the background while the round before computes.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax_models import MODELS, example_losses
from measure import measure
from workloads import WORKLOADS

import koinon as ko


def main(name: str, rounds: int, fresh: int = 0, devices: int = 1, **options: int) -> None:
    """Times koinon on one workload."""
    jax.config.update("jax_num_cpu_devices", devices)
    workload = WORKLOADS[name]()
    forward = MODELS[workload.model]
    ko.backends.set_default(ko.backends.LocalBackend(devices=devices, **options))
    state: list[Any] = []

    def build() -> Any:
        data: ko.simulation.FederatedDataset
        if fresh:
            data = ko.simulation.GeneratedClientData(
                len(workload.sizes),
                lambda client: dict(zip("xy", workload.client(client), strict=True)),
                num_examples_fn=lambda client: int(workload.sizes[client]),
            )
        else:
            data = ko.simulation.ClientData.from_partition(
                {"x": workload.x, "y": workload.y},
                [np.arange(o, o + n) for o, n in zip(workload.offsets, workload.sizes, strict=True)],
            )
        model = ko.learning.models.functional(
            forward, workload.weights, example_spec=data.element_type, loss=example_losses
        )
        process = ko.learning.algorithms.build_weighted_fed_avg(
            model, ko.learning.optimizers.build_sgdm(workload.learning_rate), batch_size=workload.batch_size
        )
        ids = np.asarray(data.client_ids, object)
        state[:] = [process.initialize(), process]
        selections = (ids[workload.cohort_of(number)].tolist() for number in range(rounds + 1))
        cohorts = data.prefetch(selections) if fresh else map(data.cohort, selections)

        def run(_: int) -> None:
            output = process.next(state[0], next(cohorts))
            state[0] = jax.block_until_ready(output.state)

        return run

    def loss() -> float:
        weights = state[1].get_model_weights(state[0]).trainable
        return float(example_losses(forward(weights, workload.x[:500]), jnp.asarray(workload.y[:500])).mean())

    measure("koinon-fresh" if fresh else "koinon", workload, build, loss, rounds)


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]) if len(sys.argv) > 2 else 10,
        **{key: int(value) for key, value in (option.split("=") for option in sys.argv[3:])},
    )
