"""Metrics: each against numpy over exact examples, with masks and in several batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon._errors import KoinonValueError
from koinon.learning import losses, metrics

LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 2.5], [1.0, 0.5, 2.0], [0.1, 0.3, 0.2], [9.0, 9.0, 9.0]], np.float32)
LABELS = np.array([0, 2, 2, 1, 1], np.int32)
MASK = np.array([True, True, True, True, False])


def cross_entropies() -> np.ndarray:
    logits = LOGITS.astype(np.float64)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(5), LABELS]


def value_of(metric: metrics.Metric, predictions=LOGITS, labels=LABELS, splits=((0, 5),), mask=MASK) -> np.ndarray:
    """The metric of the examples, fed in batches of the given rows."""
    values = losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    state = metric.initialize()
    for low, high in splits:
        rows = slice(low, high)
        batch = metrics.BatchOutput(
            values[rows], jnp.asarray(predictions)[rows], jnp.asarray(labels)[rows], jnp.asarray(mask)[rows]
        )
        state = jax.jit(metric.update)(state, batch)
    return np.asarray(metric.finalize(state))


PREDICTIONS = np.array([0.5, -1.0, 2.0, -0.25, 100.0], np.float32)
TARGETS = np.array([1.0, 0.0, 0.0, 1.0, -7.0], np.float32)

CASES = {
    "loss": (metrics.loss(), LOGITS, LABELS, cross_entropies()[:4].mean()),
    "perplexity": (metrics.perplexity(), LOGITS, LABELS, np.exp(cross_entropies()[:4].mean())),
    "accuracy": (metrics.accuracy(), LOGITS, LABELS, 3 / 4),
    "top 1": (metrics.top_k_accuracy(1), LOGITS, LABELS, 3 / 4),
    "top 2": (metrics.top_k_accuracy(2), LOGITS, LABELS, 4 / 4),
    "examples": (metrics.num_examples(), LOGITS, LABELS, 4),
    "confusion": (metrics.confusion_matrix(3), LOGITS, LABELS, np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]])),
    "squared": (metrics.mean_squared_error(), PREDICTIONS, TARGETS, ((PREDICTIONS - TARGETS)[:4] ** 2).mean()),
    "root": (
        metrics.root_mean_squared_error(),
        PREDICTIONS,
        TARGETS,
        np.sqrt(((PREDICTIONS - TARGETS)[:4] ** 2).mean()),
    ),
    "absolute": (metrics.mean_absolute_error(), PREDICTIONS, TARGETS, np.abs((PREDICTIONS - TARGETS)[:4]).mean()),
    "binary": (metrics.binary_accuracy(), PREDICTIONS, TARGETS, 2 / 4),
    "own": (metrics.mean(lambda p, y: p - y), PREDICTIONS, TARGETS, (PREDICTIONS - TARGETS)[:4].mean()),
}


@pytest.mark.parametrize("splits", [((0, 5),), ((0, 2), (2, 5)), ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5))])
@pytest.mark.parametrize("name", CASES)
def test_a_metric_is_that_of_the_examples_that_the_mask_keeps(name: str, splits) -> None:
    """However the examples are batched, the value is numpy's over the first four."""
    metric, predictions, labels, expected = CASES[name]

    np.testing.assert_allclose(value_of(metric, predictions, labels, splits), expected, rtol=1e-6)


def test_batches_count_where_they_hold_an_example() -> None:
    """A batch of masked rows alone is no batch."""
    assert int(value_of(metrics.num_batches(), splits=((0, 2), (2, 4), (4, 5)))) == 2


def test_a_mean_of_no_examples_is_not_a_number() -> None:
    """A mask without any example gives NaN, not 0."""
    assert np.isnan(value_of(metrics.accuracy(), mask=np.zeros(5, bool)))


def test_masked_rows_may_hold_what_is_not_a_number() -> None:
    """NaN in a masked row does not reach the mean."""
    predictions = np.where(MASK, PREDICTIONS, np.nan)

    np.testing.assert_allclose(
        value_of(metrics.mean(lambda p, y: p), predictions, TARGETS), PREDICTIONS[:4].mean(), rtol=1e-6
    )


def test_predictions_of_several_positions_count_as_one_example() -> None:
    """The accuracy of a sequence is the mean over its positions, and an example weighs 1."""
    logits = jnp.asarray(np.stack([LOGITS[:2], LOGITS[2:4]]))  # [2 examples, 2 positions, 3 classes]
    labels = jnp.asarray(LABELS[:4].reshape(2, 2))
    metric = metrics.accuracy()
    batch = metrics.BatchOutput(jnp.zeros(2), logits, labels, jnp.array([True, False]))
    state = metric.update(metric.initialize(), batch)

    # Of the first example's two positions one is right.
    assert float(metric.finalize(state)) == 0.5
    assert float(state.count) == 1.0


@pytest.mark.parametrize("build", [metrics.top_k_accuracy, metrics.confusion_matrix])
def test_counts_must_be_positive(build) -> None:
    """A k or a number of classes below 1 is refused."""
    with pytest.raises(KoinonValueError, match="positive int"):
        build(0)


LOSS_CASES = {
    "cross entropy": (losses.cross_entropy, LOGITS, LABELS, cross_entropies()),
    "squared": (losses.squared_error, PREDICTIONS, TARGETS, (PREDICTIONS - TARGETS) ** 2),
    "squared, extra dimension": (losses.squared_error, PREDICTIONS[:, None], TARGETS, (PREDICTIONS - TARGETS) ** 2),
    "absolute": (losses.absolute_error, PREDICTIONS, TARGETS, np.abs(PREDICTIONS - TARGETS)),
    "binary": (
        losses.binary_cross_entropy,
        PREDICTIONS[:, None],
        np.array([1, 0, 0, 1, 0]),
        -np.log(1 / (1 + np.exp(-PREDICTIONS.astype(np.float64) * np.array([1, -1, -1, 1, -1])))),
    ),
}


@pytest.mark.parametrize("name", LOSS_CASES)
def test_a_loss_gives_one_number_for_each_example(name: str) -> None:
    """The losses equal numpy's in float64, without mixing examples."""
    loss, predictions, labels, expected = LOSS_CASES[name]

    np.testing.assert_allclose(loss(jnp.asarray(predictions), jnp.asarray(labels)), expected, rtol=1e-5)


def test_a_binary_loss_of_huge_logits_is_finite() -> None:
    """Logits of plus and minus 1000 neither overflow nor lose the gradient."""
    logits, labels = jnp.array([1000.0, -1000.0]), jnp.array([0, 0])

    np.testing.assert_allclose(losses.binary_cross_entropy(logits, labels), [1000.0, 0.0])
    np.testing.assert_allclose(jax.grad(lambda z: losses.binary_cross_entropy(z, labels).sum())(logits), [1.0, 0.0])
