"""Models from Flax modules, of both of its libraries: Linen and NNX."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError, MissingDependencyError
from koinon.learning._functional_model import FunctionalModel, ModelOutput, accepts_keyword, example_inputs
from koinon.learning._metric import Metric
from koinon.learning._model_checks import check_key, example_type, not_a_module
from koinon.learning._model_functional import name_paths, nest, unnest

_TRUE_WHILE_TRAINING = ("training", "train", "is_training")
_FALSE_WHILE_TRAINING = ("deterministic", "use_running_average")


def from_flax(
    module: Any,
    example_spec: Any,
    *,
    loss: Callable[[Any, Any], Any],
    metrics: Mapping[str, Metric] | None = None,
    key: Any = None,
    split_example: Callable[[Any], tuple[Any, Any]] | None = None,
    trainable: Any = None,
    non_trainable_rules: Any = None,
) -> FunctionalModel:
    """The model that a Flax module is, of Linen or NNX.

    A module whose `__call__` takes `training`, `train` or `is_training` is told whether it is training, one that takes
    `deterministic` or `use_running_average` the opposite; NNX modules are also switched as by `module.train()` and
    `module.eval()`. Every random draw of a module (dropout) gets a fresh key at each step of each client.

    Weights are nested dictionaries of arrays, with the names that Flax gives them.

    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> ko.learning.models.from_flax(
    ...     nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)]),
    ...     {"x": (jnp.float32, (64,)), "y": jnp.int32},
    ...     loss=ko.learning.losses.cross_entropy,
    ...     metrics={"accuracy": ko.learning.metrics.accuracy()},
    ...     key=jax.random.key(0),
    ... ).num_parameters
    2410

    Args:
      module: a `flax.linen.Module`, or a `flax.nnx.Module`, which is copied and stays as it is.
      example_spec: the type of one example, see `FunctionalModel`.
      loss: the losses of single examples, called as `loss(predictions, y)`.
      metrics: metrics by name, besides `loss`, `num_examples` and `num_batches`.
      key: a PRNG key to initialize a Linen module; NNX modules are initialized already.
      split_example: see `FunctionalModel`.
      trainable: which variables of an NNX module are trained, an NNX filter; `nnx.Param` by default, `nnx.LoRAParam`
        to train adapters alone.
      non_trainable_rules: what becomes of batch statistics and the like, see `FunctionalModel`; by default the server's
        are averaged over the clients.

    Raises:
      MissingDependencyError: Flax is not installed.
      KoinonTypeError: `module` is no Flax module, `key` no key, and see `FunctionalModel`.
      KoinonValueError: a Linen module comes without a key, or an NNX filter with a Linen module; see `FunctionalModel`.
    """
    try:
        linen, nnx = importlib.import_module("flax.linen"), importlib.import_module("flax.nnx")
    except ImportError as error:
        raise MissingDependencyError("flax", extra="flax", purpose="A model from a Flax module") from error
    if isinstance(module, linen.Module):
        if key is None:
            raise KoinonValueError(
                "A Linen module is initialized from a PRNG key, and none is given.", hint="pass key=jax.random.key(0)"
            )
        check_key(key, "A Linen module is initialized from a PRNG key.")
        if trainable is not None:
            raise KoinonValueError(
                "All parameters of a Linen module are trained; an NNX filter chooses those of an NNX module.",
                found=f"trainable={trainable!r}",
                hint="leave out `trainable`, or write the module with flax.nnx",
            )
        inputs = example_inputs(example_type(example_spec), split_example)
        initial_weights, predict_on_batch = _from_linen(linen, module, inputs, key)
    elif isinstance(module, nnx.Module):
        initial_weights, predict_on_batch = _from_nnx(nnx, module, nnx.Param if trainable is None else trainable)
    else:
        raise not_a_module(module, "flax", "This is no Flax module.", "a flax.linen.Module or a flax.nnx.Module")
    return FunctionalModel(
        initial_weights=initial_weights,
        predict_on_batch_fn=predict_on_batch,
        loss_fn=loss,
        metrics_fns=metrics,
        input_spec=example_spec,
        split_example=split_example,
        non_trainable_rules=non_trainable_rules,
    )


def _from_linen(linen: Any, module: Any, inputs: Any, key: Any) -> tuple[Any, Callable[..., Any]]:
    mode = _mode_arguments(type(module).__call__)
    variables = linen.meta.unbox(module.init(key, inputs, **mode(False)))
    collections = sorted(name for name in variables if name != "params")

    def predict_on_batch(weights: Any, x: Any, *, training: bool, key: Any) -> Any:
        variables = {"params": weights.trainable, **weights.non_trainable}
        if not training:
            return module.apply(variables, x, **mode(False))
        rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(("default", "dropout", "params"))}
        predictions, changed = module.apply(variables, x, **mode(True), rngs=rngs, mutable=collections)
        return ModelOutput(predictions, {name: changed.get(name, variables[name]) for name in collections})

    return (variables.get("params", {}), {name: variables[name] for name in collections}), predict_on_batch


def _from_nnx(nnx: Any, module: Any, trainable: Any) -> tuple[Any, Callable[..., Any]]:
    mode = _mode_arguments(type(module).__call__)
    module = nnx.clone(module)
    module.train()
    train_graph, params, rng_state, rest = nnx.split(module, trainable, nnx.RngState, ...)
    module.eval()
    eval_graph = nnx.split(module, trainable, nnx.RngState, ...)[0]
    param_paths, rest_paths = _variable_paths(params), _variable_paths(rest)

    def predict_on_batch(weights: Any, x: Any, *, training: bool, key: Any) -> Any:
        graph = train_graph if training else eval_graph
        own_params = _replace_leaves(params, unnest(param_paths, weights.trainable))
        own_rest = _replace_leaves(rest, unnest(rest_paths, weights.non_trainable))
        own_rng_state = _with_fresh_keys(rng_state, key) if training else rng_state
        # A copy, since NNX refuses to change variables that it was given from outside a JAX transformation.
        merged = nnx.merge(graph, own_params, own_rng_state, own_rest, copy=True)
        predictions = merged(x, **mode(training))
        if not training:
            return predictions
        changed = nnx.split(merged, trainable, nnx.RngState, ...)[3]
        by_path = dict(zip(_variable_paths(changed), jax.tree.leaves(changed), strict=True))
        return ModelOutput(predictions, nest(rest_paths, [by_path[path] for path in rest_paths]))

    initial_weights = (nest(param_paths, jax.tree.leaves(params)), nest(rest_paths, jax.tree.leaves(rest)))
    return initial_weights, predict_on_batch


def _variable_paths(state: Any) -> list[tuple[str, ...]]:
    # A variable is a pytree node with one leaf, its value; the name of the variable is enough.
    return [path[:-1] if len(path) > 1 and path[-1] == "value" else path for path in name_paths(state)]


def _replace_leaves(tree: Any, leaves: list[Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _with_fresh_keys(rng_state: Any, key: Any) -> Any:
    """The state of NNX's random streams with keys of this step; their counters start anew."""
    leaves = jax.tree.leaves(rng_state)
    fresh = [
        jax.random.fold_in(key, i) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for i, leaf in enumerate(leaves)
    ]
    return _replace_leaves(rng_state, fresh)


def _mode_arguments(call: Callable[..., Any]) -> Callable[[bool], dict[str, bool]]:
    """The keyword arguments by which a module is told whether it is training."""
    true = [name for name in _TRUE_WHILE_TRAINING if accepts_keyword(call, name)]
    false = [name for name in _FALSE_WHILE_TRAINING if accepts_keyword(call, name)]
    if len(true) == len(_TRUE_WHILE_TRAINING) and len(false) == len(_FALSE_WHILE_TRAINING):
        # Every name is accepted, so `__call__` takes arbitrary keyword arguments and none of these is meant.
        return lambda training: {}
    return lambda training: {**dict.fromkeys(true, training), **dict.fromkeys(false, not training)}
