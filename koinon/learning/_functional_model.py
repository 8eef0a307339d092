"""A model as pure functions and a pytree of weights: the one form in which koinon trains and evaluates."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.learning import _metric
from koinon.learning._losses import masked_mean
from koinon.learning._metric import BatchOutput, Metric
from koinon.learning._model_checks import blaming, check_loss_and_metrics, example_type
from koinon.learning._non_trainable import resolve_rules
from koinon.learning._weights import ModelWeights
from koinon.types import (
    StructType,
    TensorType,
    Type,
    from_container,
    infer_type,
    to_container,
)

_ABOUT_EXAMPLES = "the type of an example has no batch dimension, and the rest of it is what the model takes"
_MODEL = "a model of a batch of examples"
_LOSS = "loss(predictions, y), the losses of single examples"
_ABOUT_LOSSES = "a loss that takes them in the other order is wrapped: lambda predictions, y: loss(y, predictions)"


class ModelOutput(NamedTuple):
    """What a model that changes its non-trainable weights returns, such as one with batch normalization.

    Attributes:
      predictions: the output for the batch, leaves `[batch, ...]`.
      non_trainable: the new non-trainable weights, of the type of the old ones.
    """

    predictions: Any
    non_trainable: Any


class Forward(NamedTuple):
    """A forward pass over a batch.

    Attributes:
      loss: float scalar, the mean loss of the examples that count.
      batch_output: what metrics are computed from.
      non_trainable: the non-trainable weights after it.
    """

    loss: Any
    batch_output: BatchOutput
    non_trainable: Any


class FunctionalModel:
    """A model: initial weights, a prediction, a loss for each example, metrics, and the type of an example.

    Losses and metrics are masked means over single examples, so that the partial last batch of a client counts for
    what it holds. `koinon.learning.models` builds models from functions and from Flax, Equinox and Keras modules.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> regression = ko.learning.models.FunctionalModel(
    ...     initial_weights=(jnp.zeros(3), ()),
    ...     predict_on_batch_fn=lambda weights, x: x @ weights.trainable,
    ...     loss_fn=ko.learning.losses.squared_error,
    ...     input_spec={"x": (jnp.float32, (3,)), "y": jnp.float32},
    ... )
    >>> print(regression)
    FunctionalModel(<x=float32[3],y=float32>, 3 trainable parameters, metrics loss, num_examples, num_batches)

    Args:
      initial_weights: `ModelWeights`, or a pair, of the trainable and the non-trainable weights: pytrees of arrays.
      predict_on_batch_fn: called as `predict_on_batch_fn(weights, x)`, and with the keyword arguments `training` (a
        Python bool) and `key` (a PRNG key while training, None otherwise) where it takes them. Returns predictions
        with leading dimension `batch`, or a `ModelOutput` of them and of new non-trainable weights.
      loss_fn: called as `loss_fn(predictions, y)`, returns the losses of single examples, `[batch]`.
      metrics_fns: metrics by name, see `koinon.learning.metrics`. `loss`, `num_examples` and `num_batches` are always
        there.
      input_spec: what `koinon.types.to_type` reads as the type of one example, without a batch dimension.
      split_example: takes a batch of examples to `(x, y)`; by default an example has fields `x` and `y`, or is a pair.
      non_trainable_rules: what becomes of the non-trainable weights when clients train: a `NonTrainableRule`, or a
        pytree of them in the structure of the weights or of the top of it. None, also within the pytree, means the
        default: floats that the model changes are averaged, PRNG keys folded with a key of the client, and all else
        stays as at the server.

    Raises:
      KoinonTypeError: the parts do not fit: no `x` and `y`, a loss of another shape than `[batch]`, weights that are no
        arrays, a metric whose state changes its type, a rule for non-trainable weights that cannot follow it.
      KoinonValueError: the model, the loss or a metric cannot be computed for a batch of examples.
    """

    def __init__(
        self,
        *,
        initial_weights: Any,
        predict_on_batch_fn: Callable[..., Any],
        loss_fn: Callable[[Any, Any], Any],
        metrics_fns: Mapping[str, Metric] | None = None,
        input_spec: Any,
        split_example: Callable[[Any], tuple[Any, Any]] | None = None,
        non_trainable_rules: Any = None,
    ) -> None:
        check_loss_and_metrics(loss_fn, metrics_fns)
        self.initial_weights = _as_weights(initial_weights)
        self.input_spec = example_type(input_spec)
        self.metrics: dict[str, Metric] = {
            "loss": _metric.loss(),
            **(metrics_fns or {}),
            "num_examples": _metric.num_examples(),
            "num_batches": _metric.num_batches(),
        }
        self._predict = _call_with_supported(predict_on_batch_fn)
        self._loss = loss_fn
        self.split_example = split_example or _split_by_name(self.input_spec)
        self.uses_key, is_changed = _check_and_see_what_is_used(self)
        self.non_trainable_rules = resolve_rules(self.initial_weights.non_trainable, non_trainable_rules, is_changed)

    @functools.cached_property
    def weights_type(self) -> StructType:
        """The type of the weights, `<trainable=...,non_trainable=...>`."""
        weights_type = infer_type(self.initial_weights)
        assert isinstance(weights_type, StructType)
        return weights_type

    @property
    def num_parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.initial_weights.trainable))

    def predict_on_batch(self, weights: Any, x: Any, training: bool = False, key: Any = None) -> Any:
        """The predictions for a batch of inputs, leaves `[batch, ...]`."""
        return self._call(ModelWeights(*weights), x, training, key).predictions

    def loss(self, predictions: Any, y: Any, mask: Any = None) -> Any:
        """The mean loss of the examples of a batch that a bool mask `[batch]` keeps; of all without a mask."""
        losses = self._loss(predictions, y)
        return masked_mean(losses, jnp.ones(losses.shape[:1], bool) if mask is None else mask)

    def forward(self, weights: Any, examples: Any, mask: Any, *, training: bool, key: Any = None) -> Forward:
        """Predictions, losses and new non-trainable weights of a batch of examples.

        Args:
          weights: `ModelWeights`.
          examples: a batch, of the type of an example with a leading dimension.
          mask: bool `[batch]`, the rows that count.
          training: whether the model is to behave as in training.
          key: a PRNG key, needed where the model uses one.
        """
        x, y = self.split_example(examples)
        predictions, non_trainable = self._call(ModelWeights(*weights), x, training, key)
        losses = self._loss(predictions, y)
        return Forward(masked_mean(losses, mask), BatchOutput(losses, predictions, y, mask), non_trainable)

    def initialize_metrics_state(self) -> dict[str, Any]:
        """The states of the metrics before any example, by name."""
        return _metric.initialize_all(self.metrics)

    def update_metrics_state(self, state: dict[str, Any], batch_output: BatchOutput) -> dict[str, Any]:
        """The states after a batch."""
        return _metric.update_all(self.metrics, state, batch_output)

    def finalize_metrics(self, state: dict[str, Any]) -> dict[str, Any]:
        """The values of the metrics, by name."""
        return _metric.finalize_all(self.metrics, state)

    def _call(self, weights: ModelWeights, x: Any, training: bool, key: Any) -> ModelOutput:
        output = self._predict(weights, x, training=training, key=key)
        return output if isinstance(output, ModelOutput) else ModelOutput(output, weights.non_trainable)

    @functools.cached_property
    def _evaluate(self) -> Callable[..., dict[str, Any]]:
        @functools.partial(jax.jit, static_argnames="batch_size")
        def evaluate(weights: Any, data: Any, *, batch_size: int) -> dict[str, Any]:
            count = jax.tree.leaves(data)[0].shape[0]

            def step(i: Any, state: Any) -> Any:
                rows = i * batch_size + jnp.arange(batch_size)
                examples = jax.tree.map(lambda leaf: leaf[jnp.minimum(rows, count - 1)], data)
                outputs = self.forward(weights, examples, rows < count, training=False)
                return self.update_metrics_state(state, outputs.batch_output)

            state = self.initialize_metrics_state()
            if count:
                state = jax.lax.fori_loop(0, -(-count // batch_size), step, state)
            return self.finalize_metrics(state)

        return evaluate

    def __repr__(self) -> str:
        return (
            f"FunctionalModel({self.input_spec}, {self.num_parameters:,} trainable parameters, "
            f"metrics {', '.join(self.metrics)})"
        )


def weights_type_from_model(model: FunctionalModel) -> StructType:
    """The type of a model's weights, `<trainable=...,non_trainable=...>`."""
    return model.weights_type


def evaluate(model: FunctionalModel, weights: Any, data: Any, *, batch_size: int = 256) -> dict[str, Any]:
    """The metrics of a model on examples in one place, such as a test set at the server.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> model = ko.learning.models.functional(
    ...     lambda w, x: w * x, jnp.float32(2.0),
    ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
    ... )
    >>> data = {"x": jnp.array([1.0, 2.0, 3.0]), "y": jnp.array([2.0, 4.0, 9.0])}
    >>> float(ko.learning.models.evaluate(model, model.initial_weights, data, batch_size=2)["loss"])  # (0 + 0 + 9) / 3
    3.0

    Args:
      model: the model.
      weights: `ModelWeights`.
      data: all examples stacked: the type of an example with a leading dimension, the same for every leaf.
      batch_size: the number of examples that are computed at once; it does not change the result.

    Raises:
      KoinonTypeError: the data are not of the type of the model's examples.
    """
    stacked = _stacked_examples(model.input_spec, data, "")
    counts = {leaf.shape[0] for leaf in jax.tree.leaves(stacked)}
    if len(counts) != 1:
        raise KoinonTypeError("Stacked examples must all have the same number of rows.", found=f"{sorted(counts)} rows")
    return model._evaluate(ModelWeights(*weights), stacked, batch_size=batch_size)


def _stacked_examples(type_: Type, data: Any, path: str) -> Any:
    """The data in the containers of the type of one example, each array checked against its type."""
    if isinstance(type_, StructType):
        names = [f".{name}" if name else f"[{i}]" for i, (name, _) in enumerate(type_.items())]
        children = from_container(type_, data)
        return to_container(
            type_,
            [
                _stacked_examples(child, value, path + name)
                for child, value, name in zip(type_, children, names, strict=True)
            ],
        )
    array = data if isinstance(data, (jax.Array, np.ndarray)) else np.asarray(data)
    found = TensorType(array.dtype, array.shape[1:]) if array.ndim else TensorType(array.dtype)
    if not array.ndim or not type_.is_assignable_from(found):
        raise KoinonTypeError(
            "The examples are not of the type that the model takes.",
            expected=f"{type_} for each example, with a leading dimension for all of them",
            found=f"{array.dtype}{list(array.shape)}",
            differs=path or None,
        )
    return array


def batch_shapes(input_spec: Type, batch_size: int) -> Any:
    """The `jax.ShapeDtypeStruct`s of a batch of examples; an unknown dimension counts as 1."""
    if isinstance(input_spec, StructType):
        return to_container(input_spec, [batch_shapes(child, batch_size) for child in input_spec])
    assert isinstance(input_spec, TensorType)
    shape = [1 if size is None else size for size in input_spec.shape or ()]
    return jax.ShapeDtypeStruct((batch_size, *shape), input_spec.dtype)


def example_inputs(input_spec: Type, split_example: Callable[[Any], tuple[Any, Any]] | None) -> Any:
    """A batch of one input of zeros, from which modules initialize themselves."""
    examples = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), batch_shapes(input_spec, 1))
    return (split_example or _split_by_name(input_spec))(examples)[0]


def accepts_keyword(fn: Callable[..., Any], name: str) -> bool:
    """Whether a function can be called with this keyword argument; False where Python cannot tell."""
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return False
    return any(
        p.kind is p.VAR_KEYWORD or (p.name == name and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
        for p in parameters.values()
    )


def _call_with_supported(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, called with those of the keyword arguments `training` and `key` that it takes."""
    supported = [name for name in ("training", "key") if accepts_keyword(fn, name)]

    def call(weights: Any, x: Any, **options: Any) -> Any:
        return fn(weights, x, **{name: options[name] for name in supported})

    return call


def _as_weights(weights: Any) -> ModelWeights:
    if not (isinstance(weights, tuple) and len(weights) == 2):
        raise KoinonTypeError(
            "Initial weights are a pair of the trainable and the non-trainable weights.",
            expected="ModelWeights(trainable, non_trainable)",
            found=f"a {type(weights).__name__}",
            hint="pass (weights, ()) for a model without non-trainable weights",
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float)):
            raise KoinonTypeError(
                "Initial weights are pytrees of arrays.",
                found=f"a {type(leaf).__name__} at {jax.tree_util.keystr(path)}",
            )
    # JAX rebuilds dictionaries with sorted keys. Doing so at once gives the weights one type wherever they go.
    return ModelWeights(*jax.tree.map(jnp.asarray, tuple(weights)))


def _split_by_name(input_spec: Type) -> Callable[[Any], tuple[Any, Any]]:
    """What takes a batch of examples of a type to `(x, y)`, by the names of their fields or as a pair."""

    def split(examples: Any) -> tuple[Any, Any]:
        if isinstance(examples, Mapping) and "x" in examples and "y" in examples:
            return examples["x"], examples["y"]
        if isinstance(examples, (tuple, list)):
            if {"x", "y"} <= set(getattr(examples, "_fields", ())):
                return getattr(examples, "x"), getattr(examples, "y")  # noqa: B009 - a field, not a known attribute
            if len(examples) == 2:
                return examples[0], examples[1]
        raise KoinonTypeError(
            "An example has the fields `x` and `y`, or is a pair (x, y).",
            found=input_spec,
            hint='pass for instance split_example=lambda example: (example["image"], example["label"])',
        )

    return split


def _check_and_see_what_is_used(model: FunctionalModel) -> tuple[bool, list[bool]]:
    """Traces a training step's forward pass once, which shows mistakes where the model is made, not in a round.

    Returns:
      Whether the model uses its key, and for each leaf of its non-trainable weights whether it ever changes it.
    """
    examples = batch_shapes(model.input_spec, 2)
    mask = jax.ShapeDtypeStruct((2,), bool)

    def losses(key: Any, weights: Any, examples: Any) -> Any:
        x, y = model.split_example(examples)
        inputs = f"x of type {infer_type(x)}, which is a batch of 2"
        with blaming("The model does not take its examples.", expected=_MODEL, found=inputs, hint=_ABOUT_EXAMPLES):
            predictions, non_trainable = model._call(weights, x, True, key)
        outputs = f"predictions {infer_type(predictions)} and labels {infer_type(y)} of a batch of 2"
        with blaming("The loss cannot be computed.", expected=_LOSS, found=outputs, hint=_ABOUT_LOSSES):
            loss = model._loss(predictions, y)
        return loss, predictions, y, non_trainable

    jaxpr, outputs = jax.make_jaxpr(losses, return_shape=True)(jax.random.key(0), model.initial_weights, examples)
    loss, predictions, y, non_trainable = outputs
    if not isinstance(loss, jax.ShapeDtypeStruct) or loss.shape != (2,) or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise KoinonTypeError(
            "The loss function must return one loss for each example.",
            expected="floats of shape [batch]",
            found=f"{infer_type(loss)} for a batch of 2",
            hint="do not average over the batch; average over other dimensions, see koinon.learning.losses",
        )
    if infer_type(non_trainable) != model.weights_type["non_trainable"]:
        raise KoinonTypeError(
            "A model must return non-trainable weights of the type that it takes.",
            expected=model.weights_type["non_trainable"],
            found=infer_type(non_trainable),
        )
    for name, metric in model.metrics.items():
        _check_metric(name, metric, BatchOutput(loss, predictions, y, mask))
    key, *inputs = jaxpr.jaxpr.invars
    trainable, old = (jax.tree.leaves(part) for part in model.initial_weights)
    before = inputs[len(trainable) : len(trainable) + len(old)]
    after = jaxpr.jaxpr.outvars[len(jaxpr.jaxpr.outvars) - len(old) :]
    uses_key = any(key is used for equation in jaxpr.jaxpr.eqns for used in equation.invars)
    return uses_key, [new is not old for old, new in zip(before, after, strict=True)]


def _check_metric(name: str, metric: Metric, batch: BatchOutput) -> None:
    if not isinstance(metric, Metric):
        raise KoinonTypeError(
            f"The metric {name!r} is no Metric.",
            expected="Metric(initialize, update, finalize)",
            found=repr(metric),
            hint="for instance koinon.learning.metrics.accuracy(), with the parentheses"
            if inspect.isroutine(metric) or isinstance(metric, type)
            else "see koinon.learning.metrics",
        )
    try:
        initial = jax.eval_shape(metric.initialize)
        updated = jax.eval_shape(metric.update, initial, batch)
    except (TypeError, ValueError, IndexError) as error:
        raise KoinonValueError(
            f"The metric {name!r} cannot be computed from what the model returns.",
            expected="a metric that takes these predictions and labels",
            found=f"predictions {infer_type(batch.predictions)} and labels {infer_type(batch.labels)} of a batch of 2; "
            f"{error}",
        ) from error
    if any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(metric.initialize())):
        raise KoinonValueError(
            f"The state of the metric {name!r} must begin with zeros, since the states of clients are added.",
            found=repr(metric.initialize()),
        )
    if infer_type(initial) != infer_type(updated):
        raise KoinonTypeError(
            f"The metric {name!r} must keep the type of its state.",
            expected=infer_type(initial),
            found=infer_type(updated),
            hint="give sums the dtype with which `initialize` starts them",
        )
