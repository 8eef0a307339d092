"""Training on the data of one client: batches, epochs, and the loop over them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError
from koinon.computation import Batch, Sequence
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._optimizer import Optimizer
from koinon.learning._weights import ModelWeights


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """How a client goes through its examples.

    Attributes:
      batch_size: the number of examples of a batch; the last batch of an epoch may be partial.
      epochs: how often the client goes through its examples.
      shuffle: whether each epoch is in an order of its own; if not, the order is that of the data.
      take: the greatest number of examples of an epoch: the first ones, or with `shuffle` random ones; None for all.
      drop_remainder: whether partial batches are left out, for models in which the examples of a batch see each other.

    Raises:
      KoinonValueError: a number is not a positive int.
    """

    batch_size: int
    epochs: int = 1
    shuffle: bool = False
    take: int | None = None
    drop_remainder: bool = False

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("epochs", self.epochs), ("take", self.take)):
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not is_count and not (name == "take" and value is None):
                raise KoinonValueError(f"`{name}` must be a positive int.", found=repr(value))

    def batches(self, data: Sequence, key: Any) -> Sequence:
        """The sequence of a client's batches over all epochs; `key` decides the order where it is shuffled."""
        if self.epochs == 1:
            return self._epoch(data, key)
        if not self.shuffle:
            return self._epoch(data, None).repeat(self.epochs)
        return data.repeat(self.epochs, lambda epoch, data: self._epoch(data, jax.random.fold_in(key, epoch)))

    def num_examples(self, data: Sequence) -> Any:
        """The number of different examples of a client that take part, int32."""
        count = data.length if self.take is None else jnp.minimum(data.length, self.take)
        return count // self.batch_size * self.batch_size if self.drop_remainder else count

    def num_batches(self, data: Sequence) -> Any:
        """The number of batches over all epochs, int32."""
        count = self.num_examples(data)
        return self.epochs * -(-count // self.batch_size)

    def _epoch(self, data: Sequence, key: Any) -> Sequence:
        if self.shuffle:
            data = data.shuffle(key)
        if self.take is not None:
            data = data.take(self.take)
        if self.drop_remainder:
            everything = jnp.ones((self.batch_size,), bool)
            return data.batch(self.batch_size, drop_remainder=True).map(lambda examples: Batch(examples, everything))
        return data.batch(self.batch_size)


class TrainingResult(NamedTuple):
    """What training on a client's data leads to.

    Attributes:
      weights: the `ModelWeights` after it.
      optimizer_state: the state of the optimizer after it.
      metrics: the states of the model's metrics, over all batches, each as the model was before it learned from it.
    """

    weights: ModelWeights
    optimizer_state: Any
    metrics: dict[str, Any]


def train_on_batches(
    model: FunctionalModel,
    optimizer: Optimizer,
    weights: ModelWeights,
    optimizer_state: Any,
    batches: Sequence,
    key: Any,
    adjust_gradients: Callable[[Any, Any], Any] | None = None,
) -> TrainingResult:
    """Steps once for each batch.

    Args:
      model: the model.
      optimizer: what makes steps of gradients.
      weights: the `ModelWeights` to begin with.
      optimizer_state: the state to begin with.
      batches: a sequence of `Batch`.
      key: a PRNG key, where the model uses one.
      adjust_gradients: `(gradients, trainable) -> gradients`, for algorithms that change the direction of a step.
    """

    def step(carry: tuple[TrainingResult, Any], batch: Batch) -> tuple[TrainingResult, Any]:
        (weights, optimizer_state, metrics), count = carry
        step_key = jax.random.fold_in(key, count) if model.uses_key else None
        gradients, outputs = gradients_of_batch(model, weights, batch, step_key)
        if adjust_gradients is not None:
            gradients = adjust_gradients(gradients, weights.trainable)
        optimizer_state, trainable = optimizer.next(optimizer_state, weights.trainable, gradients)
        metrics = model.update_metrics_state(metrics, outputs.batch_output)
        return TrainingResult(ModelWeights(trainable, outputs.non_trainable), optimizer_state, metrics), count + 1

    initial = TrainingResult(ModelWeights(*weights), optimizer_state, model.initialize_metrics_state())
    result, _ = batches.reduce(strong_types((initial, jnp.int32(0))), step)
    return result


class FullGradient(NamedTuple):
    """The gradient over all of a client's examples.

    Attributes:
      gradients: those of the mean loss; zeros where there are no examples.
      non_trainable: the non-trainable weights after all batches.
      metrics: the states of the model's metrics.
    """

    gradients: Any
    non_trainable: Any
    metrics: dict[str, Any]


def full_gradient(model: FunctionalModel, weights: ModelWeights, batches: Sequence, key: Any) -> FullGradient:
    """The gradient of the mean loss over all examples of a sequence of batches, without any step.

    Args:
      model: the model.
      weights: the `ModelWeights` at which it is taken.
      batches: a sequence of `Batch`.
      key: a PRNG key, where the model uses one.
    """

    def add(carry: tuple[FullGradient, Any, Any], batch: Batch) -> tuple[FullGradient, Any, Any]:
        (total, non_trainable, metrics), num_examples, count = carry
        batch_key = jax.random.fold_in(key, count) if model.uses_key else None
        own_weights = ModelWeights(weights.trainable, non_trainable)
        gradients, outputs = gradients_of_batch(model, own_weights, batch, batch_key)
        examples = jnp.sum(batch.mask, dtype=jnp.float32)
        total = jax.tree.map(lambda t, g: t + examples.astype(g.dtype) * g, total, gradients)
        metrics = model.update_metrics_state(metrics, outputs.batch_output)
        return FullGradient(total, outputs.non_trainable, metrics), num_examples + examples, count + 1

    nothing = jax.tree.map(jnp.zeros_like, weights.trainable)
    initial = FullGradient(nothing, weights.non_trainable, model.initialize_metrics_state())
    result, num_examples, _ = batches.reduce(strong_types((initial, jnp.float32(0), jnp.int32(0))), add)
    divisor = jnp.maximum(num_examples, 1)
    return result._replace(gradients=jax.tree.map(lambda total: total / divisor.astype(total.dtype), result.gradients))


def gradients_of_batch(model: FunctionalModel, weights: ModelWeights, batch: Batch, key: Any) -> tuple[Any, Any]:
    """The gradients of the mean loss of a batch in the trainable weights, and the forward pass."""

    def loss(trainable: Any) -> tuple[Any, Any]:
        own_weights = ModelWeights(trainable, weights.non_trainable)
        outputs = model.forward(own_weights, batch.examples, batch.mask, training=True, key=key)
        return outputs.loss, outputs

    return jax.grad(loss, has_aux=True)(weights.trainable)


def strong_types(tree: Any) -> Any:
    """The arrays without JAX's weak types, which a loop could not keep."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.result_type(leaf)), tree)


def where(condition: Any, if_true: Any, if_false: Any) -> Any:
    """One pytree or another, leaf by leaf, for a bool scalar."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)
