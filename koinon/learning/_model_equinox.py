"""Models from Equinox modules."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError, MissingDependencyError
from koinon.learning._functional_model import FunctionalModel, ModelOutput, accepts_keyword
from koinon.learning._metric import Metric
from koinon.learning._model_checks import not_a_module
from koinon.learning._model_functional import name_paths, nest, unnest

_STATE = "module, state = equinox.nn.make_with_state(Module)(...), then pass the module and state=state"


def from_equinox(
    module: Any,
    example_spec: Any,
    *,
    loss: Callable[[Any, Any], Any],
    metrics: Mapping[str, Metric] | None = None,
    state: Any = None,
    split_example: Callable[[Any], tuple[Any, Any]] | None = None,
    non_trainable_rules: Any = None,
) -> FunctionalModel:
    """The model that an Equinox module is.

    As is usual with Equinox, the module takes a single example, and is mapped over the batch by `jax.vmap`, with the
    axis name `batch`, which `equinox.nn.BatchNorm` needs. A module whose `__call__` takes `key` gets a fresh one for
    each example of each step, and is in inference mode outside of training.

    Its floating arrays are trained, its other arrays are non-trainable. Weights are nested dictionaries of arrays, with
    the names of the module's fields.

    >>> import equinox as eqx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> ko.learning.models.from_equinox(
    ...     eqx.nn.MLP(64, 10, width_size=32, depth=1, key=jax.random.key(0)),
    ...     {"x": (jnp.float32, (64,)), "y": jnp.int32},
    ...     loss=ko.learning.losses.cross_entropy,
    ...     metrics={"accuracy": ko.learning.metrics.accuracy()},
    ... ).num_parameters
    2410

    Args:
      module: an `equinox.Module`.
      example_spec: the type of one example, see `FunctionalModel`.
      loss: the losses of single examples, called as `loss(predictions, y)`.
      metrics: metrics by name, besides `loss`, `num_examples` and `num_batches`.
      state: the `equinox.nn.State` of a module that has one, such as one with batch normalization, as made by
        `equinox.nn.make_with_state`; such a module is called with it, and returns it beside its output.
      split_example: see `FunctionalModel`.
      non_trainable_rules: what becomes of the state and of other arrays, see `FunctionalModel`; the weights that it
        refers to are `{"state": (...), "arrays": {...}}`.

    Raises:
      MissingDependencyError: Equinox is not installed.
      KoinonTypeError: `module` is no Equinox module or cannot be called, and see `FunctionalModel`.
      KoinonValueError: a module with a state comes without it, and see `FunctionalModel`.
    """
    try:
        eqx = importlib.import_module("equinox")
    except ImportError as error:
        raise MissingDependencyError("equinox", extra="equinox", purpose="A model from an Equinox module") from error
    if not isinstance(module, eqx.Module):
        raise not_a_module(module, "equinox", "This is no Equinox module.", "an equinox.Module", pair_hint=_STATE)
    if not callable(module):
        raise KoinonTypeError(
            f"The Equinox module {type(module).__qualname__} cannot be called.",
            expected="a module with a method `__call__`, which takes a single example",
        )
    indices = jax.tree.leaves(module, is_leaf=lambda node: isinstance(node, eqx.nn.StateIndex))
    if state is None and any(isinstance(leaf, eqx.nn.StateIndex) for leaf in indices):
        raise KoinonValueError("The Equinox module has a state, and none is given.", hint=_STATE)
    arrays, training_rest = eqx.partition(eqx.nn.inference_mode(module, value=False), eqx.is_array)
    _, inference_rest = eqx.partition(eqx.nn.inference_mode(module), eqx.is_array)
    params, others = eqx.partition(arrays, eqx.is_inexact_array)
    param_paths, other_paths = name_paths(params), name_paths(others)
    state_leaves, state_structure = jax.tree.flatten(state)
    takes_key = accepts_keyword(type(module).__call__, "key")

    def predict_on_batch(weights: Any, x: Any, *, training: bool, key: Any) -> ModelOutput:
        own_params = _with_leaves(params, unnest(param_paths, weights.trainable))
        own_others = _with_leaves(others, unnest(other_paths, weights.non_trainable["arrays"]))
        own = eqx.combine(own_params, own_others, training_rest if training else inference_rest)
        size = jax.tree.leaves(x)[0].shape[0]
        keys = jax.random.split(key, size) if takes_key and training else None
        options = {"key": keys} if takes_key else {}

        if state is None:
            predictions = jax.vmap(lambda x, options: own(x, **options), axis_name="batch")(x, options)
            return ModelOutput(predictions, weights.non_trainable)
        own_state = jax.tree.unflatten(state_structure, weights.non_trainable["state"])
        mapped = jax.vmap(
            lambda x, state, options: own(x, state, **options),
            axis_name="batch",
            in_axes=(0, None, 0),
            out_axes=(0, None),
        )
        predictions, own_state = mapped(x, own_state, options)
        return ModelOutput(predictions, {**weights.non_trainable, "state": tuple(jax.tree.leaves(own_state))})

    non_trainable = {
        "arrays": nest(other_paths, jax.tree.leaves(others)),
        "state": tuple(jnp.asarray(leaf) for leaf in state_leaves),
    }
    return FunctionalModel(
        initial_weights=(nest(param_paths, jax.tree.leaves(params)), non_trainable),
        predict_on_batch_fn=predict_on_batch,
        loss_fn=loss,
        metrics_fns=metrics,
        input_spec=example_spec,
        split_example=split_example,
        non_trainable_rules=non_trainable_rules,
    )


def _with_leaves(tree: Any, leaves: list[Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
