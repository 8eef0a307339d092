"""The client work of federated averaging: train on the own data, return how the weights changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from koinon.computation import (
    federated_broadcast,
    federated_computation,
    federated_eval,
    federated_map,
    federated_split_key,
    federated_zip,
    jax_computation,
)
from koinon.learning._client_weighting import ClientWeighting, Weighting, check_weighting, weight_of
from koinon.learning._client_work import ClientResult, ClientWorkProcess
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._local_training import BatchPlan, is_finite, strong_types, train_on_batches, where
from koinon.learning._metrics_aggregation import MetricsAggregator, sum_then_finalize
from koinon.learning._optimizer import Optimizer, as_optimizer
from koinon.learning._weights import ModelWeights
from koinon.templates import MeasuredProcessOutput
from koinon.types import SERVER, SequenceType, StructType, at_clients, at_server, strip_placement

NUM_NON_FINITE_CLIENTS_KEY = "num_non_finite_clients"


class LocalTrainingState(NamedTuple):
    """The state of a client work that trains.

    Attributes:
      hparams: the hyperparameters of the clients' optimizer, by name.
      key: a PRNG key, from which every client of every round has one of its own; `()` where nothing is random.
    """

    hparams: Any
    key: Any


class ClientOutput(NamedTuple):
    """What a client returns: its contribution, and its metrics before they are finalized."""

    result: ClientResult
    metrics: Any


def build_model_delta_client_work(
    model: FunctionalModel,
    optimizer: Any,
    *,
    batch_size: int,
    client_weighting: Weighting = ClientWeighting.NUM_EXAMPLES,
    epochs: int = 1,
    shuffle: bool = False,
    take: int | None = None,
    drop_remainder: bool = False,
    metrics_aggregator: MetricsAggregator | None = None,
    seed: int = 0,
) -> ClientWorkProcess:
    """The client work that trains and returns how the weights changed, a pseudo-gradient.

        w = initial
        for each epoch, for each batch b of the client's examples:
            w <- optimizer step along the gradient of the mean loss of b at w
        update = initial - w

    A client whose update is not finite returns zeros with weight 0 and no metrics, and is counted in
    `num_non_finite_clients`. Non-trainable weights change while a client trains and are then forgotten: the server
    keeps its own.

    Type: `(<S@SERVER,{W}@CLIENTS,{D*}@CLIENTS> ->
    <state=S@SERVER,result={<update=T,update_weight=float32>}@CLIENTS,measurements=<train=M>@SERVER>)`, where W is the
    type of the model's weights, T that of the trainable ones, and D the type of an example.

    Args:
      model: the model.
      optimizer: the clients' optimizer, a koinon `Optimizer` or an optax transformation. It starts anew in each round;
        its hyperparameters are those of the process.
      batch_size: the number of examples of a batch; the last batch of an epoch may be partial, and then its loss is the
        mean over the examples that it has.
      client_weighting: how much a client counts; a function of the number of its examples serves too.
      epochs: how often a client goes through its examples.
      shuffle: whether each epoch of each client is in a random order of its own.
      take: the greatest number of examples of an epoch: the first ones, or with `shuffle` random ones; None for all.
      drop_remainder: whether partial batches are left out, for models with batch normalization.
      metrics_aggregator: makes the aggregation of metrics of their finalizers; `metrics.sum_then_finalize` if None.
      seed: where the randomness of shuffling and of the model begins.

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: a size or a number of epochs is not a positive int.

    Example:
      >>> import jax.numpy as jnp, koinon as ko, optax
      >>> from koinon.learning import templates
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w * x, jnp.float32(0.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> work = templates.build_model_delta_client_work(model, optax.sgd(0.25), batch_size=1)
      >>> data = [[{"x": 1.0, "y": 2.0}]]  # one client with one example; the gradient is 2 (0 - 2)
      >>> work.next(work.initialize(), [model.initial_weights], data).result[0]
      ClientResult(update=Array(-1., dtype=float32), update_weight=Array(1., dtype=float32))

    References:
      McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
      https://arxiv.org/abs/1602.05629, algorithm 1 (ClientUpdate).
    """
    plan = BatchPlan(batch_size, epochs, shuffle, take, drop_remainder)
    return build_local_training(model, optimizer, plan, client_weighting, metrics_aggregator, seed)


def build_local_training(
    model: FunctionalModel,
    optimizer: Any,
    plan: BatchPlan,
    client_weighting: Weighting,
    metrics_aggregator: MetricsAggregator | None,
    seed: int,
    adjust_gradients: Callable[[Any, Any, Any], Any] | None = None,
) -> ClientWorkProcess:
    """The client work of federated averaging and its kin.

    Args:
      model: the model.
      optimizer: the clients' optimizer.
      plan: how a client goes through its examples.
      client_weighting: how much a client counts.
      metrics_aggregator: see `build_model_delta_client_work`.
      seed: see `build_model_delta_client_work`.
      adjust_gradients: `(initial_trainable, gradients, trainable) -> gradients`, applied before each step; None for the
        plain gradients.
    """
    optimizer = as_optimizer(optimizer)
    check_weighting(client_weighting)
    needs_key = plan.shuffle or model.uses_key
    aggregate_metrics = (metrics_aggregator or sum_then_finalize)(training_finalizers(model))
    weights_type, data_type = model.weights_type, SequenceType(model.input_spec)

    @jax_computation
    def initial_state() -> LocalTrainingState:
        hparams = optimizer.get_hparams(optimizer.initialize(model.initial_weights.trainable))
        return LocalTrainingState(strong_types(hparams), jax.random.key(seed) if needs_key else ())

    state_type = initial_state.type_signature.result

    def client_update(inputs: dict[str, Any]) -> ClientOutput:
        initial, data = inputs["weights"], inputs["data"]
        order_key, model_key = jax.random.split(inputs["key"]) if needs_key else (None, None)
        trained = train_on_batches(
            model,
            optimizer,
            initial,
            optimizer_state_with(optimizer, initial.trainable, inputs.get("hparams", {})),
            plan.batches(data, order_key),
            model_key,
            None if adjust_gradients is None else functools.partial(adjust_gradients, initial.trainable),
        )
        delta = jax.tree.map(jnp.subtract, initial.trainable, trained.weights.trainable)
        weight = weight_of(client_weighting, plan.num_examples(data))
        return without_non_finite(model, delta, weight, trained.metrics)

    @federated_computation
    def initialize_fn() -> Any:
        return federated_eval(initial_state, SERVER)

    @federated_computation(at_server(state_type), at_clients(weights_type), at_clients(data_type))
    def next_fn(state: Any, weights: Any, data: Any) -> Any:
        inputs = {"weights": weights, "data": data}
        if len(state_type["hparams"]):
            inputs["hparams"] = federated_broadcast(state.hparams)
        if needs_key:
            next_key, round_key = federated_map(lambda key: tuple(jax.random.split(key)), state.key)
            inputs["key"] = federated_split_key(round_key)
            state = federated_zip(LocalTrainingState(state.hparams, next_key))
        outputs = federated_map(client_update, inputs)
        measurements = federated_zip({"train": aggregate_metrics(outputs.metrics)})
        return MeasuredProcessOutput(state, outputs.result, measurements)

    return ClientWorkProcess(
        initialize_fn,
        next_fn,
        get_hparams_fn=jax_computation(state_type)(lambda state: state.hparams),
        set_hparams_fn=jax_computation(state_type, state_type["hparams"])(
            lambda state, hparams: state._replace(hparams=hparams)
        ),
    )


def optimizer_state_with(optimizer: Optimizer, trainable: Any, hparams: Any) -> Any:
    """The initial state of an optimizer for these weights, with these hyperparameters."""
    state = optimizer.initialize(trainable)
    return optimizer.set_hparams(state, hparams) if hparams else state


def without_non_finite(model: FunctionalModel, update: Any, weight: Any, metrics: dict[str, Any]) -> ClientOutput:
    """What a client returns; nothing but a count where its update is not finite."""
    finite = is_finite(update)
    metrics = where(finite, metrics, strong_types(model.initialize_metrics_state()))
    return ClientOutput(
        ClientResult(where(finite, update, jax.tree.map(jnp.zeros_like, update)), jnp.where(finite, weight, 0.0)),
        {**metrics, NUM_NON_FINITE_CLIENTS_KEY: jnp.where(finite, 0, 1).astype(jnp.int32)},
    )


def training_finalizers(model: FunctionalModel) -> dict[str, Callable[[Any], Any]]:
    """The finalizers of a model's metrics while it trains, by name."""
    finalizers = {name: metric.finalize for name, metric in model.metrics.items()}
    return {**finalizers, NUM_NON_FINITE_CLIENTS_KEY: lambda count: count}


def result_types(client_work: ClientWorkProcess) -> tuple[Any, Any]:
    """The types of the update and of the weight that a client returns."""
    output_type = client_work.next.type_signature.result
    assert isinstance(output_type, StructType)
    result_type = strip_placement(output_type["result"])
    assert isinstance(result_type, StructType)
    return result_type["update"], result_type["update_weight"]


def initial_weights_fn(model: FunctionalModel) -> Any:
    """The computation of a model's initial weights, `( -> W)`."""

    @jax_computation
    def initial_weights() -> ModelWeights:
        return model.initial_weights

    return initial_weights
