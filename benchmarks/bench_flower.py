"""Flower: its simulation on Ray with two actors, the strategy `FedAvg`, clients with a compiled step of JAX.

    python bench_flower.py W1 [rounds] [actors=2]

There are as many virtual nodes as a cohort has clients; a message says whose data a node trains on, so that all
contestants see the same cohorts. The simulation owns the main thread, the measurement runs beside it. The first round
waits for Ray and for the actors, which make the data and compile. The line's `cpu` and `peak_mb` are the server's
alone; `compare.py` adds the memory of all processes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")

import jax.numpy as jnp
import numpy as np
from flower_client import client_app, config_of
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from jax_models import MODELS, example_losses
from measure import measure
from workloads import WORKLOADS, Workload


class CohortFedAvg(FedAvg):
    """Federated averaging over given clients instead of sampled ones."""

    def __init__(self, name: str, workload: Workload) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.name = name
        self.workload = workload
        self.round_number = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message to a node for each client of the cohort."""
        cohort = self.workload.cohort_of(self.round_number)
        return [
            Message(
                RecordDict({"arrays": arrays, "config": config_of(self.name, int(client))}),
                dst_node_id=node,
                message_type=MessageType.TRAIN,
            )
            for node, client in zip(grid.get_node_ids(), cohort, strict=True)
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The weighted mean, of all clients or of none: a failed one is an error and not left out."""
        replies = list(replies)
        errors = [reply.error.reason for reply in replies if reply.has_error()]
        if errors or len(replies) < self.workload.cohort:
            raise RuntimeError(f"{len(replies)} of {self.workload.cohort} clients replied, with errors {errors[:1]}.")
        return super().aggregate_train(server_round, replies)


def main(name: str, rounds: int, actors: int = 2) -> None:
    """Times Flower on one workload."""
    workload = WORKLOADS[name]()
    asked, ready, finished = threading.Event(), threading.Event(), threading.Event()
    grids: list[Grid] = []
    failures: list[BaseException] = []
    state: list[ArrayRecord] = []
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        grids[:] = [grid]
        while len(list(grid.get_node_ids())) < workload.cohort:
            time.sleep(0.01)
        ready.set()
        finished.wait()

    def build() -> Any:
        asked.set()
        ready.wait()
        strategy = CohortFedAvg(name, workload)
        state[:] = [ArrayRecord([np.asarray(array) for array in workload.weights.values()])]

        def run(number: int) -> None:
            strategy.round_number = number
            result = strategy.start(grids[0], state[0], num_rounds=1)
            state[0] = result.arrays

        return run

    def loss() -> float:
        weights = dict(zip(workload.weights, state[0].to_numpy_ndarrays(), strict=True))
        logits = MODELS[workload.model](weights, workload.x[:500])
        return float(example_losses(logits, jnp.asarray(workload.y[:500])).mean())

    def timed() -> None:
        try:
            measure("flower", workload, build, loss, rounds)
        except BaseException as error:
            failures.append(error)
        finally:
            asked.set()
            finished.set()

    timer = threading.Thread(target=timed, daemon=True)
    timer.start()
    asked.wait()
    try:
        run_simulation(
            server_app,
            client_app,
            num_supernodes=workload.cohort,
            backend_config={
                "init_args": {"num_cpus": actors, "include_dashboard": False},
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            },
        )
    except BaseException:
        finished.set()  # and the timer, which waits for replies that never come, ends with the process
        raise
    timer.join()
    if failures:
        raise failures[0]


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]) if len(sys.argv) > 2 else 10,
        **{key: int(value) for key, value in (option.split("=") for option in sys.argv[3:])},
    )
