"""Losses of single examples; models average them over a batch, leaving out what is no example."""

from koinon.learning._losses import (
    absolute_error,
    binary_cross_entropy,
    cross_entropy,
    masked_mean,
    squared_error,
)

__all__ = ["absolute_error", "binary_cross_entropy", "cross_entropy", "masked_mean", "squared_error"]
