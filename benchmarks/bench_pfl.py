"""pfl-research: `FederatedAveraging` on its `SimulatedBackend`, with models of PyTorch.

    python bench_pfl.py W1 [rounds] [threads=2]

The modules are what a user of PyTorch writes: `Conv2d` on NCHW images, the fused `LSTM`, the loss of `functional`.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from measure import measure
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn import functional as F
from workloads import WORKLOADS


class Network(nn.Module):
    """A module with the loss and the metrics that pfl asks for."""

    def loss(self, x: Any, y: Any) -> Any:
        """The mean cross-entropy, over the positions of an example too where it has several."""
        return F.cross_entropy(self(x).flatten(0, y.ndim - 1), y.flatten())

    def metrics(self, x: Any, y: Any) -> dict[str, Any]:
        """Nothing: evaluation is not part of what is measured."""
        return {}


class Sequence(Network):
    """A chain of layers, whose parameters are given weights by the layers' order."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Any) -> Any:
        """The logits."""
        return self.layers(x)


class CharacterLSTM(Network):
    """An embedding, the fused LSTM, a dense layer: logits for every position."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.dense = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Any) -> Any:
        """The logits."""
        hidden, _ = self.lstm(self.embedding(tokens))
        return self.dense(hidden)


def network_of(model: str, weights: dict[str, np.ndarray]) -> Network:
    """The module of a workload, with the workload's initial weights."""
    if model == "logistic":
        network: Network = Sequence(nn.Linear(100, 10))
        arrays = [weights["w"].T, weights["b"]]
    elif model == "mlp":
        network = Sequence(nn.Linear(*weights["w1"].shape), nn.ReLU(), nn.Linear(*weights["w2"].shape))
        arrays = [weights["w1"].T, weights["b1"], weights["w2"].T, weights["b2"]]
    elif model == "cnn":
        network = Sequence(
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12 * 12 * 64, 128),
            nn.ReLU(),
            nn.Linear(128, 62),
        )
        # The rows of the first dense layer are pixels with their channels; here they are channels with their pixels.
        d1 = weights["d1"].reshape(12, 12, 64, 128).transpose(3, 2, 0, 1).reshape(128, -1)
        kernels = [weights[name].transpose(3, 2, 0, 1) for name in ("c1", "c2")]
        arrays = [kernels[0], weights["cb1"], kernels[1], weights["cb2"], d1, weights["db1"], weights["d2"].T]
        arrays.append(weights["db2"])
    else:
        network = CharacterLSTM(*weights["emb"].shape, weights["wh"].shape[0])
        # PyTorch has two biases whose sum counts. The workload's one bias learns, the other stays zero.
        network.lstm.bias_hh_l0.requires_grad_(False)
        arrays = [weights["emb"], weights["wx"].T, weights["wh"].T, weights["b"], np.zeros_like(weights["b"])]
        arrays += [weights["wo"].T, weights["bo"]]
    with torch.no_grad():
        for parameter, array in zip(network.parameters(), arrays, strict=True):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))
    return network


def main(name: str, rounds: int, threads: int = 2) -> None:
    """Times pfl on one workload."""
    torch.set_num_threads(threads)
    asyncio.set_event_loop(asyncio.new_event_loop())  # pfl's loop asks for the current one
    workload = WORKLOADS[name]()
    network = network_of(workload.model, workload.weights)

    def tensors(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if workload.model == "cnn" else x
        return torch.from_numpy(x), torch.from_numpy(y).long()

    def sampled() -> Iterator[int]:
        for number in itertools.count():
            yield from workload.cohort_of(number).tolist()

    def build() -> Any:
        users = [PyTorchTensorDataset(tensors(*workload.client(i)), user_id=str(i)) for i in range(len(workload.sizes))]
        sampler = sampled()
        dataset = FederatedDataset(users.__getitem__, lambda: next(sampler))
        backend = SimulatedBackend(training_data=dataset, val_data=dataset, postprocessors=[WeightByDatapoints()])
        model = PyTorchModel(
            network,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0),
        )
        algorithm = FederatedAveraging()
        train = NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=workload.learning_rate, local_batch_size=workload.batch_size
        )

        def run(number: int) -> None:
            # `run` goes on where it stopped. Its evaluation, in the first round alone, computes nothing.
            algorithm.run(
                NNAlgorithmParams(
                    central_num_iterations=number + 1,
                    evaluation_frequency=2**62,
                    train_cohort_size=workload.cohort,
                    val_cohort_size=0,
                ),
                backend,
                model,
                train,
                send_metrics_to_platform=False,
            )

        return run

    def loss() -> float:
        x, y = tensors(workload.x[:500], workload.y[:500])
        with torch.no_grad():
            return float(network.loss(x, y))

    measure(f"pfl-{threads}", workload, build, loss, rounds)


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]) if len(sys.argv) > 2 else 10,
        **{key: int(value) for key, value in (option.split("=") for option in sys.argv[3:])},
    )
