"""Models from Keras 3, on its JAX backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from koinon._errors import KoinonValueError, MissingDependencyError
from koinon.learning._functional_model import FunctionalModel, ModelOutput, example_inputs
from koinon.learning._metric import Metric
from koinon.learning._model_checks import example_type, not_a_module
from koinon.learning._model_functional import nest, unnest
from koinon.learning._non_trainable import NonTrainableRule

_SEED = "seed_generator_state"


def from_keras(
    module: Any,
    example_spec: Any,
    *,
    loss: Callable[[Any, Any], Any],
    metrics: Mapping[str, Metric] | None = None,
    split_example: Callable[[Any], tuple[Any, Any]] | None = None,
    non_trainable_rules: Any = None,
) -> FunctionalModel:
    """The model that a Keras model or layer is, with the JAX backend of Keras 3.

    It is called without side effects (`stateless_call`), and stays as it is. Weights are nested dictionaries of arrays,
    by the paths of the variables. What a model draws, such as the masks of dropout, differs from client to client and
    from round to round: its seeds follow `NonTrainableRule.SEED`.

    The losses and metrics are koinon's, or any function; those that the model was compiled with are not used.

    Args:
      module: a `keras.Model` or `keras.Layer`. One that is not built yet is built for the type of the examples.
      example_spec: the type of one example, see `FunctionalModel`.
      loss: the losses of single examples, called as `loss(predictions, y)`.
      metrics: metrics by name, besides `loss`, `num_examples` and `num_batches`.
      split_example: see `FunctionalModel`.
      non_trainable_rules: what becomes of batch statistics and the like, see `FunctionalModel`; by default the server's
        are averaged over the clients, and seeds are folded with a key of the client.

    Raises:
      MissingDependencyError: Keras is not installed.
      KoinonValueError: Keras runs on another backend than JAX, and see `FunctionalModel`.
      KoinonTypeError: `module` is neither a model nor a layer of Keras, and see `FunctionalModel`.
    """
    try:
        keras = importlib.import_module("keras")
    except ImportError as error:
        raise MissingDependencyError("keras", extra="keras", purpose="A model from Keras") from error
    backend = keras.config.backend()
    if backend != "jax":
        raise KoinonValueError(
            "Keras must run on JAX to be a part of a federated computation.",
            expected="the backend jax",
            found=f"the backend {backend}",
            hint='set os.environ["KERAS_BACKEND"] = "jax" before Keras is imported for the first time',
        )
    if not isinstance(module, keras.Layer):
        raise not_a_module(module, "keras", "This is no model of Keras.", "a keras.Model or a keras.Layer")
    if not module.built or not module.variables:
        module(example_inputs(example_type(example_spec), split_example))
    paths = _distinct_paths(module.trainable_variables)
    other_paths = _distinct_paths(module.non_trainable_variables)

    def predict_on_batch(weights: Any, x: Any, *, training: bool) -> ModelOutput:
        others = unnest(other_paths, weights.non_trainable)
        predictions, changed = module.stateless_call(unnest(paths, weights.trainable), others, x, training=training)
        # Keras may return a variable in another dtype or as a weakly typed array.
        kept = [jnp.asarray(new, old.dtype) for old, new in zip(others, changed, strict=True)]
        return ModelOutput(predictions, nest(other_paths, kept))

    rules = [NonTrainableRule.SEED if path[-1].startswith(_SEED) else None for path in other_paths]
    return FunctionalModel(
        initial_weights=(
            nest(paths, [jnp.array(variable.value) for variable in module.trainable_variables]),
            nest(other_paths, [jnp.array(variable.value) for variable in module.non_trainable_variables]),
        ),
        predict_on_batch_fn=predict_on_batch,
        loss_fn=loss,
        metrics_fns=metrics,
        input_spec=example_spec,
        split_example=split_example,
        non_trainable_rules=nest(other_paths, rules) if non_trainable_rules is None else non_trainable_rules,
    )


def _distinct_paths(variables: list[Any]) -> list[tuple[str, ...]]:
    """The paths of variables as names of nested dictionaries; equal ones are numbered, since layers may share names."""
    paths: list[tuple[str, ...]] = []
    for variable in variables:
        *outer, name = variable.path.split("/")
        number, path = 0, (*outer, name)
        while path in paths:
            number += 1
            path = (*outer, f"{name}_{number}")
        paths.append(path)
    return paths
