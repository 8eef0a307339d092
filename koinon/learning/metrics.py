"""Metrics: pure functions of batches whose states are summed over batches and clients."""

from koinon.aggregators._reservoir import ClientSample
from koinon.learning._client_metrics import (
    ClientDistribution,
    FinalizeThenSampleFactory,
    combine_metrics_aggregators,
    finalize_then_describe,
    finalize_then_sample,
)
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
from koinon.learning._secure_metrics import SecureSumFactory, secure_sum_then_finalize

__all__ = [
    "BatchOutput",
    "ClientDistribution",
    "ClientSample",
    "FinalizeThenSampleFactory",
    "MeanState",
    "Metric",
    "SecureSumFactory",
    "SumThenFinalizeFactory",
    "accuracy",
    "binary_accuracy",
    "combine_metrics_aggregators",
    "confusion_matrix",
    "finalize_then_describe",
    "finalize_then_sample",
    "loss",
    "mean",
    "mean_absolute_error",
    "mean_squared_error",
    "num_batches",
    "num_examples",
    "perplexity",
    "root_mean_squared_error",
    "secure_sum_then_finalize",
    "sum_then_finalize",
    "top_k_accuracy",
]
