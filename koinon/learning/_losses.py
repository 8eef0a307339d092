"""Losses of single examples, and the masked mean that makes one number of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def masked_mean(values: Any, mask: Any) -> Any:
    """The mean of the values of those examples that a mask keeps; 0 where it keeps none.

    Averages over any further dimensions of an example first.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> float(ko.learning.losses.masked_mean(jnp.array([1.0, 3.0, 100.0]), jnp.array([True, True, False])))
    2.0

    Args:
      values: `[batch, ...]`.
      mask: bool `[batch]`.
    """
    values = per_example(values)
    # `where` and not a product: what stands in a row that does not count may be anything, also not a number.
    total = jnp.sum(jnp.where(mask, values, 0))
    return total / jnp.maximum(jnp.sum(mask), 1).astype(total.dtype)


def per_example(values: Any) -> Any:
    """One number for each example: the mean over all dimensions but the first."""
    values = jnp.asarray(values)
    return values.mean(axis=tuple(range(1, values.ndim))) if values.ndim > 1 else values


def cross_entropy(logits: Any, labels: Any) -> Any:
    """The cross entropy of each example's label under the softmax of its logits.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> round(float(ko.learning.losses.cross_entropy(jnp.zeros((1, 10)), jnp.array([3]))[0]), 4)  # ln 10
    2.3026

    Args:
      logits: floats `[batch, ..., classes]`.
      labels: integers `[batch, ...]`.

    Returns:
      Floats `[batch]`, the mean over any dimensions between.
    """
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
    return per_example(-chosen)


def binary_cross_entropy(logits: Any, labels: Any) -> Any:
    """The cross entropy of each example's binary label under the sigmoid of its logit.

    Args:
      logits: floats `[batch, ...]`.
      labels: `[batch, ...]` in [0, 1], of any dtype; a last dimension of size 1 of the logits may be missing.

    Returns:
      Floats `[batch]`.
    """
    labels = match_rank(labels, logits).astype(jnp.result_type(logits))
    losses = jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return per_example(losses)


def squared_error(predictions: Any, targets: Any) -> Any:
    """The squared error of each example, a mean over its dimensions.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> ko.learning.losses.squared_error(jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 1.0]])).tolist()  # (1 + 4) / 2
    [2.5]

    Args:
      predictions: floats `[batch, ...]`.
      targets: `[batch, ...]`; a last dimension of size 1 of the predictions may be missing.

    Returns:
      Floats `[batch]`.
    """
    return per_example((predictions - match_rank(targets, predictions)) ** 2)


def absolute_error(predictions: Any, targets: Any) -> Any:
    """The absolute error of each example, a mean over its dimensions; arguments as of `squared_error`."""
    return per_example(jnp.abs(predictions - match_rank(targets, predictions)))


def match_rank(targets: Any, predictions: Any) -> Any:
    """The targets with a last dimension of size 1 added where only the predictions have one.

    Without it `[batch, 1]` less `[batch]` would silently be a matrix.
    """
    targets = jnp.asarray(targets)
    if predictions.ndim == targets.ndim + 1 and predictions.shape[-1] == 1:
        return targets[..., None]
    return targets
