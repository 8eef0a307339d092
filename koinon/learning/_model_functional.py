"""Models from plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.learning._functional_model import FunctionalModel, accepts_keyword
from koinon.learning._metric import Metric


def functional(
    apply_fn: Callable[..., Any],
    initial_weights: Any,
    *,
    example_spec: Any,
    loss: Callable[[Any, Any], Any],
    metrics: Mapping[str, Metric] | None = None,
    split_example: Callable[[Any], tuple[Any, Any]] | None = None,
    key: Any = None,
) -> FunctionalModel:
    """The model that a function of weights and inputs is.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> def initialize(key):
    ...     return {"kernel": 0.01 * jax.random.normal(key, (64, 10)), "bias": jnp.zeros(10)}
    >>> def apply(weights, x):
    ...     return x @ weights["kernel"] + weights["bias"]
    >>> ko.learning.models.functional(
    ...     apply,
    ...     initialize,
    ...     example_spec={"x": (jnp.float32, (64,)), "y": jnp.int32},
    ...     loss=ko.learning.losses.cross_entropy,
    ...     metrics={"accuracy": ko.learning.metrics.accuracy()},
    ...     key=jax.random.key(0),
    ... ).num_parameters
    650

    Args:
      apply_fn: called as `apply_fn(weights, x)`, and with `training` and `key` where it takes them by these names;
        returns predictions with leading dimension `batch`. A function with non-trainable weights makes a
        `FunctionalModel` instead.
      initial_weights: a pytree of arrays, all of them trained; or a function of a PRNG key that returns one.
      example_spec: the type of one example, see `FunctionalModel`.
      loss: the losses of single examples, called as `loss(predictions, y)`; any optax loss serves.
      metrics: metrics by name, besides `loss`, `num_examples` and `num_batches`.
      split_example: see `FunctionalModel`.
      key: a PRNG key for `initial_weights`, where that is a function.

    Raises:
      KoinonTypeError: `apply_fn` is no function, and see `FunctionalModel`.
      KoinonValueError: `initial_weights` is a function and there is no key, and see `FunctionalModel`.
    """
    if not callable(apply_fn):
        raise KoinonTypeError(
            "The first argument of `functional` is the function of weights and inputs, the second the weights.",
            expected="apply_fn(weights, x)",
            found=f"an object of class {type(apply_fn).__qualname__}",
        )
    if callable(initial_weights):
        if key is None:
            raise KoinonValueError(
                "A function that makes initial weights needs a PRNG key.", hint="pass key=jax.random.key(0)"
            )
        initial_weights = initial_weights(key)
    supported = [name for name in ("training", "key") if accepts_keyword(apply_fn, name)]

    def predict_on_batch(weights: Any, x: Any, *, training: bool, key: Any) -> Any:
        options = {"training": training, "key": key}
        return apply_fn(weights.trainable, x, **{name: options[name] for name in supported})

    return FunctionalModel(
        initial_weights=(initial_weights, ()),
        predict_on_batch_fn=predict_on_batch,
        loss_fn=loss,
        metrics_fns=metrics,
        input_spec=example_spec,
        split_example=split_example,
    )


def nest(paths: list[tuple[str, ...]], leaves: list[Any]) -> dict[str, Any]:
    """Nested dictionaries with one leaf at the end of each path of names."""
    tree: dict[str, Any] = {}
    for path, leaf in zip(paths, leaves, strict=True):
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def unnest(paths: list[tuple[str, ...]], tree: dict[str, Any]) -> list[Any]:
    """The leaves of nested dictionaries at these paths."""
    leaves: list[Any] = []
    for path in paths:
        node: Any = tree
        for name in path:
            node = node[name]
        leaves.append(node)
    return leaves


def name_paths(tree: Any) -> list[tuple[str, ...]]:
    """The paths of names to the leaves of a pytree, in the order of the leaves."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return [tuple(_entry_name(entry) for entry in path) or ("value",) for path in paths]


def _entry_name(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
