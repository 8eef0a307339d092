"""How much clients gain by a model of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators._reservoir import check_sample_size, constant_key, sample_clients
from koinon.computation import (
    Computation,
    federated_broadcast,
    federated_computation,
    federated_map,
    federated_split_key,
)
from koinon.learning._fed_eval import metrics_on_batches
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._local_training import BatchPlan, train_on_batches
from koinon.learning._optimizer import as_optimizer
from koinon.learning._weights import ModelWeights
from koinon.types import SequenceType, StructType, at_clients, at_server

BASELINE_METRICS_KEY = "baseline_metrics"

Personalize = Callable[..., Mapping[str, Any]]
"""`(model, weights, train_data, test_data, key) -> metrics`, what a client does and how it is judged."""


def build_personalization_eval_computation(
    model: FunctionalModel,
    personalize_fns: Mapping[str, Personalize],
    baseline_evaluate_fn: Callable[..., Mapping[str, Any]] | None = None,
    *,
    batch_size: int = 64,
    max_num_clients: int = 100,
    seed: int = 0,
) -> Computation:
    """The computation of the metrics of clients before, and after, each personalizes the model by its own data.

    Type: `(<model_weights=W@SERVER,data={<test_data=D*,train_data=D*>}@CLIENTS> ->
    <values=<baseline_metrics=B,<name>=M,...>,count=int32>@SERVER)`: a `ClientSample`, whose values have a row for each
    of at most `max_num_clients` clients, drawn uniformly. What a client is personalized to never leaves it.

    Args:
      model: the model.
      personalize_fns: by name, functions `(model, weights, train_data, test_data, key) -> metrics`, traced by JAX: the
        data are sequences of examples, the key is a PRNG key of this client and function. `build_fine_tuning_fn` makes
        the usual one.
      baseline_evaluate_fn: `(model, weights, test_data) -> metrics` of the model as it is; its own metrics if None.
      batch_size: the number of examples that the baseline's evaluation computes at once; it does not change the result.
      max_num_clients: the greatest number of clients of the result.
      seed: where the randomness of the sample and of the personalization begins; the same at each call.

    Raises:
      KoinonTypeError: the functions are no functions by name.
      KoinonValueError: one of them is named `baseline_metrics`, or a number is not a positive int.

    Example:
      >>> import jax.numpy as jnp, koinon as ko, optax
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w * x, jnp.float32(0.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> evaluate = ko.learning.algorithms.build_personalization_eval_computation(
      ...     model, {"sgd": ko.learning.algorithms.build_fine_tuning_fn(optax.sgd(0.5), batch_size=1)}
      ... )
      >>> data = [{"train_data": [{"x": 1.0, "y": 2.0}], "test_data": [{"x": 1.0, "y": 2.0}]}]
      >>> metrics = evaluate(model.initial_weights, data).values
      >>> float(metrics["baseline_metrics"]["loss"][0]), float(metrics["sgd"]["loss"][0])
      (4.0, 0.0)

    References:
      Wang et al., Federated Evaluation of On-device Personalization, 2019, https://arxiv.org/abs/1910.10252.
    """
    if not isinstance(personalize_fns, Mapping) or not all(callable(fn) for fn in personalize_fns.values()):
        raise KoinonTypeError(
            "Ways to personalize are functions by name.",
            found=repr(personalize_fns),
            hint='for instance {"sgd": build_fine_tuning_fn(optax.sgd(0.1), batch_size=10)}',
        )
    if BASELINE_METRICS_KEY in personalize_fns:
        raise KoinonValueError(
            f"`{BASELINE_METRICS_KEY}` is the name of the metrics without personalization.",
            found=", ".join(personalize_fns),
            hint="call the function by another name",
        )
    check_sample_size("max_num_clients", max_num_clients)
    plan = BatchPlan(batch_size)

    def evaluate_baseline(weights: Any, data: Any) -> Mapping[str, Any]:
        if baseline_evaluate_fn is not None:
            return baseline_evaluate_fn(model, weights, data)
        return model.finalize_metrics(metrics_on_batches(model, weights, plan.batches(data, None)))

    def evaluate_client(weights: Any, data: dict[str, Any], key: Any) -> dict[str, Any]:
        metrics: dict[str, Any] = {BASELINE_METRICS_KEY: evaluate_baseline(weights, data["test_data"])}
        for i, (name, personalize) in enumerate(personalize_fns.items()):
            own_key = jax.random.fold_in(key, i)
            metrics[name] = personalize(model, weights, data["train_data"], data["test_data"], own_key)
        return metrics

    sequence = SequenceType(model.input_spec)
    data_type = StructType([("test_data", sequence), ("train_data", sequence)], dict)

    @federated_computation(at_server(model.weights_type), at_clients(data_type))
    def personalization_eval(model_weights: Any, data: Any) -> Any:
        keys = federated_map(lambda key: tuple(jax.random.split(key)), constant_key(seed))
        own_keys = federated_split_key(keys[0])
        metrics = federated_map(evaluate_client, (federated_broadcast(model_weights), data, own_keys))
        return sample_clients(metrics, max_num_clients, keys[1])

    return personalization_eval


def build_fine_tuning_fn(
    optimizer: Any,
    *,
    batch_size: int,
    epochs: int = 1,
    shuffle: bool = False,
    take: int | None = None,
    drop_remainder: bool = False,
) -> Personalize:
    """The function that personalizes a model by training it on the client's data, for personalization evaluation.

    The metrics are those of the model on the test data after the last epoch.

    >>> import koinon as ko, optax
    >>> fine_tune = ko.learning.algorithms.build_fine_tuning_fn(optax.sgd(0.1), batch_size=10, epochs=3)

    Args:
      optimizer: a koinon `Optimizer` or an optax transformation.
      batch_size: the number of examples of a batch.
      epochs: how often the client goes through its examples.
      shuffle: whether each epoch is in a random order of its own.
      take: the greatest number of examples of an epoch; None for all.
      drop_remainder: whether partial batches are left out.

    Raises:
      KoinonTypeError: `optimizer` is no optimizer.
      KoinonValueError: a size or a number of epochs is not a positive int.
    """
    own_optimizer = as_optimizer(optimizer)
    plan, test_plan = BatchPlan(batch_size, epochs, shuffle, take, drop_remainder), BatchPlan(batch_size)

    def fine_tune(
        model: FunctionalModel, weights: ModelWeights, train_data: Any, test_data: Any, key: Any
    ) -> Mapping[str, Any]:
        order_key, model_key = jax.random.split(key)
        optimizer_state = own_optimizer.initialize(weights.trainable)
        batches = plan.batches(train_data, order_key)
        trained = train_on_batches(model, own_optimizer, weights, optimizer_state, batches, model_key)
        states = metrics_on_batches(model, trained.weights, test_plan.batches(test_data, None))
        return model.finalize_metrics(states)

    return fine_tune
