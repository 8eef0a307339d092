"""What a metric is, and the ones that most models need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from koinon._errors import KoinonValueError
from koinon.learning._losses import absolute_error, match_rank, per_example, squared_error


class BatchOutput(NamedTuple):
    """What a model made of a batch: what metrics are computed from.

    Attributes:
      losses: floats `[batch]`, the loss of each example.
      predictions: the output of the model, leaves `[batch, ...]`.
      labels: the labels, leaves `[batch, ...]`.
      mask: bool `[batch]`, False in the rows that are no examples.
    """

    losses: Any
    predictions: Any
    labels: Any
    mask: Any


class Metric(NamedTuple):
    """A metric as three pure functions, traced by JAX.

    States of different batches and clients are added, so a state is a pytree of sums; `finalize` makes the number of
    the sum. A metric of your own must give rows with a False mask no weight.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> largest_class = ko.learning.metrics.Metric(
    ...     initialize=lambda: jnp.zeros(10),
    ...     update=lambda counts, batch: counts.at[batch.labels].add(batch.mask.astype(jnp.float32)),
    ...     finalize=lambda counts: counts.max() / counts.sum(),
    ... )

    Attributes:
      initialize: `() -> state`, the state of no examples.
      update: `(state, BatchOutput) -> state`, of the same structure, shapes and dtypes.
      finalize: `state -> value`.
    """

    initialize: Callable[[], Any]
    update: Callable[[Any, BatchOutput], Any]
    finalize: Callable[[Any], Any]


class MeanState(NamedTuple):
    """A mean before the division.

    Attributes:
      total: float32, the weighted sum.
      count: float32, the sum of the weights.
    """

    total: Any
    count: Any


def mean(fn: Callable[[Any, Any], Any]) -> Metric:
    """The mean over examples of `fn(predictions, labels)`.

    The mean of no examples is not a number.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> metric = ko.learning.metrics.mean(lambda predictions, labels: predictions > labels)

    Args:
      fn: takes the predictions and the labels of a batch, and returns one number for each example, `[batch]`, or
        `[batch, ...]` for the mean over the other dimensions.
    """
    return _mean_of(lambda batch: fn(batch.predictions, batch.labels))


def loss() -> Metric:
    """The mean loss over examples."""
    return _mean_of(lambda batch: batch.losses)


def perplexity() -> Metric:
    """The exponential of the mean loss; the perplexity where the loss is a cross entropy."""
    return _mean_of(lambda batch: batch.losses)._replace(finalize=lambda state: jnp.exp(_divide(state)))


def accuracy() -> Metric:
    """The part of the examples whose label has the greatest logit; labels are class numbers.

    Takes logits `[batch, ..., classes]` and integer labels `[batch, ...]`.
    """
    return mean(lambda logits, labels: jnp.argmax(logits, axis=-1) == labels)


def top_k_accuracy(k: int) -> Metric:
    """The part of the examples whose label is among the `k` greatest logits.

    A logit that equals the label's counts as smaller.

    Raises:
      KoinonValueError: `k` is not a positive int.
    """
    if not isinstance(k, int) or k < 1:
        raise KoinonValueError("`k` must be a positive int.", found=repr(k))

    def is_in_top_k(logits: Any, labels: Any) -> Any:
        own = jnp.take_along_axis(logits, labels[..., None], axis=-1)
        return jnp.sum(logits > own, axis=-1) < k

    return mean(is_in_top_k)


def binary_accuracy(threshold: float = 0.0) -> Metric:
    """The part of the examples whose prediction is above the threshold just where the label is 1.

    Args:
      threshold: 0 for logits, 0.5 for probabilities.
    """
    return mean(lambda predictions, labels: (predictions > threshold) == (match_rank(labels, predictions) > 0.5))


def mean_squared_error() -> Metric:
    """The mean squared error of the predictions."""
    return mean(squared_error)


def root_mean_squared_error() -> Metric:
    """The root of the mean squared error over all examples."""
    return mean(squared_error)._replace(finalize=lambda state: jnp.sqrt(_divide(state)))


def mean_absolute_error() -> Metric:
    """The mean absolute error of the predictions."""
    return mean(absolute_error)


def num_examples() -> Metric:
    """The number of examples, int32; an example counts each time that it is processed."""
    return Metric(
        initialize=lambda: jnp.int32(0),
        update=lambda count, batch: count + _count(batch),
        finalize=lambda count: count,
    )


def num_batches() -> Metric:
    """The number of batches, int32."""
    return Metric(
        initialize=lambda: jnp.int32(0),
        update=lambda count, batch: count + (_count(batch) > 0).astype(jnp.int32),
        finalize=lambda count: count,
    )


def confusion_matrix(num_classes: int) -> Metric:
    """How many examples of each label (row) the model gives each class (column), int32 `[classes, classes]`.

    Takes logits `[batch, classes]` and integer labels `[batch]`.

    Raises:
      KoinonValueError: `num_classes` is not a positive int.
    """
    if not isinstance(num_classes, int) or num_classes < 1:
        raise KoinonValueError("`num_classes` must be a positive int.", found=repr(num_classes))

    def update(counts: Any, batch: BatchOutput) -> Any:
        chosen = jnp.argmax(batch.predictions, axis=-1)
        return counts.at[batch.labels, chosen].add(batch.mask.astype(jnp.int32))

    return Metric(
        initialize=lambda: jnp.zeros((num_classes, num_classes), jnp.int32),
        update=update,
        finalize=lambda counts: counts,
    )


def _mean_of(values_of: Callable[[BatchOutput], Any]) -> Metric:
    def update(state: MeanState, batch: BatchOutput) -> MeanState:
        values = per_example(jnp.asarray(values_of(batch)).astype(jnp.float32))
        total = jnp.sum(jnp.where(batch.mask, values, 0))
        return MeanState(state.total + total, state.count + _count(batch).astype(jnp.float32))

    return Metric(
        initialize=lambda: MeanState(jnp.float32(0), jnp.float32(0)),
        update=update,
        finalize=_divide,
    )


def _count(batch: BatchOutput) -> Any:
    """The number of examples of a batch, written the same way everywhere, so that it is counted only once."""
    return jnp.sum(batch.mask, dtype=jnp.int32)


def _divide(state: MeanState) -> Any:
    return jnp.where(state.count > 0, state.total / jnp.where(state.count > 0, state.count, 1), jnp.nan)


def initialize_all(metrics: dict[str, Metric]) -> dict[str, Any]:
    """The states of no examples, by name."""
    return {name: metric.initialize() for name, metric in metrics.items()}


def update_all(metrics: dict[str, Metric], states: dict[str, Any], batch: BatchOutput) -> dict[str, Any]:
    """The states after a batch."""
    return {name: metric.update(states[name], batch) for name, metric in metrics.items()}


def finalize_all(metrics: dict[str, Metric], states: dict[str, Any]) -> dict[str, Any]:
    """The values of the metrics, by name."""
    return {name: metric.finalize(states[name]) for name, metric in metrics.items()}
