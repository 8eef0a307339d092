"""The usual benchmarks of federated learning: tasks on synthetic or real data, and architectures of models."""

from koinon.simulation._baseline_models import Architecture, char_lstm, cnn, cnn_dropout, resnet18
from koinon.simulation._baseline_tasks import BASELINE_TASKS, cifar10, cifar100, emnist, shakespeare, synthetic

__all__ = [
    "BASELINE_TASKS",
    "Architecture",
    "char_lstm",
    "cifar10",
    "cifar100",
    "cnn",
    "cnn_dropout",
    "emnist",
    "resnet18",
    "shakespeare",
    "synthetic",
]
