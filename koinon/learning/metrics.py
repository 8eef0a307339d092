"""Metrics: pure functions of batches whose states are summed over batches and clients."""

from koinon.learning._metric import (
    BatchOutput,
    MeanState,
    Metric,
    accuracy,
    binary_accuracy,
    confusion_matrix,
    loss,
    mean,
    mean_absolute_error,
    mean_squared_error,
    num_batches,
    num_examples,
    perplexity,
    root_mean_squared_error,
    top_k_accuracy,
)
from koinon.learning._metrics_aggregation import SumThenFinalizeFactory, sum_then_finalize

__all__ = [
    "BatchOutput",
    "MeanState",
    "Metric",
    "SumThenFinalizeFactory",
    "accuracy",
    "binary_accuracy",
    "confusion_matrix",
    "loss",
    "mean",
    "mean_absolute_error",
    "mean_squared_error",
    "num_batches",
    "num_examples",
    "perplexity",
    "root_mean_squared_error",
    "sum_then_finalize",
    "top_k_accuracy",
]
