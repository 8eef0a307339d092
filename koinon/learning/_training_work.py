"""The frame of every client work that trains: what clients are given, what they return, and what the server keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from koinon.aggregators._norms import all_finite
from koinon.computation import (
    Computation,
    federated_broadcast,
    federated_computation,
    federated_eval,
    federated_map,
    federated_split_key,
    federated_zip,
    jax_computation,
)
from koinon.learning._client_work import ClientResult, ClientStateWorkOutput, ClientWorkProcess
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._local_training import (
    BatchPlan,
    TrainingResult,
    strong_types,
    train_on_batches,
    where,
)
from koinon.learning._metrics_aggregation import MetricsAggregator, sum_then_finalize
from koinon.learning._non_trainable import NonTrainableRule, leaves_with, starting_values, update_of
from koinon.learning._optimizer import Optimizer
from koinon.learning._weights import ModelWeights
from koinon.templates import MeasuredProcessOutput
from koinon.types import SERVER, SequenceType, StructType, at_clients, at_server, strip_placement

NUM_NON_FINITE_CLIENTS_KEY = "num_non_finite_clients"
NON_TRAINABLE_KEY = "non_trainable"


class LocalTrainingState(NamedTuple):
    """The state of a client work that trains.

    Attributes:
      hparams: the hyperparameters of the clients' optimizer, by name.
      key: a PRNG key, from which every client of every round has one of its own; `()` where nothing is random.
    """

    hparams: Any
    key: Any


class SharedTrainingState(NamedTuple):
    """The state of a client work that trains, and whose server tells the clients more than weights.

    Attributes:
      hparams: as of `LocalTrainingState`.
      key: as of `LocalTrainingState`.
      shared: what the server tells, and what it needs to find it.
    """

    hparams: Any
    key: Any
    shared: Any


class ClientInputs(NamedTuple):
    """What a client trains with.

    Attributes:
      weights: the `ModelWeights` to begin with.
      data: the client's examples, a sequence.
      hparams: the hyperparameters of the client's optimizer, by name.
      key: a PRNG key of this client and this round; None where nothing is random.
      shared: what the server tells besides the weights; `()` if nothing.
      own: what the algorithm keeps of the client, by name; `{}` if nothing.
    """

    weights: ModelWeights
    data: Any
    hparams: Any
    key: Any
    shared: Any
    own: Any


class Trained(NamedTuple):
    """What training at a client leads to.

    Attributes:
      update: the update of the trainable weights.
      weight: float32, how much it counts.
      non_trainable: the non-trainable weights after it.
      metrics: the states of metrics, by name.
      shared: what the server adds to what it tells; `()` if nothing.
      own: what the algorithm keeps of the client, by name; `()` if nothing.
    """

    update: Any
    weight: Any
    non_trainable: Any
    metrics: dict[str, Any]
    shared: Any = ()
    own: Any = ()


class ClientOutput(NamedTuple):
    """What a client returns: its contribution, its metrics before they are finalized, and what further parts need."""

    result: ClientResult
    metrics: Any
    shared: Any = ()
    own: Any = ()


@dataclasses.dataclass(frozen=True)
class Shared:
    """What a server tells its clients besides the weights, and how it changes by what they answer.

    Attributes:
      initialize: a `Computation` `( -> P@SERVER)` of the first state of it.
      tell: from the state at the server to what is broadcast.
      update: from the whole `SharedTrainingState` at the server and the clients' `ClientOutput` to the new state, and a
        dict of measurements at the server.
    """

    initialize: Computation
    tell: Callable[[Any], Any]
    update: Callable[[Any, Any], tuple[Any, dict[str, Any]]]


def build_training_work(
    model: FunctionalModel,
    train: Callable[[ClientInputs], Trained],
    *,
    hparams: Any,
    needs_key: bool,
    metrics_aggregator: MetricsAggregator | None,
    seed: int,
    finalizers: dict[str, Callable[[Any], Any]] | None = None,
    shared: Shared | None = None,
    own_fn: Callable[[], dict[str, Any]] | None = None,
) -> ClientWorkProcess:
    """The client work that trains a model by a function of one client.

    A client whose training is not finite returns zeros with weight 0 and no metrics, keeps what it had, and is counted
    in `num_non_finite_clients`. Non-trainable weights follow the rules of the model.

    Args:
      model: the model.
      train: what a client does, traced by JAX.
      hparams: the hyperparameters of the clients' optimizer, by name.
      needs_key: whether `train` draws random numbers; the model's own seeds do not count.
      metrics_aggregator: makes the aggregation of metrics of their finalizers; `metrics.sum_then_finalize` if None.
      seed: where the randomness begins.
      finalizers: those of the metrics that `train` returns; those of the model if None.
      shared: what the server tells besides the weights, if anything.
      own_fn: the first state that the algorithm keeps of a client, by name; None if it keeps nothing.
    """
    rules = model.non_trainable_rules
    needs_key = needs_key or NonTrainableRule.SEED in rules
    finalizers = {name: metric.finalize for name, metric in model.metrics.items()} if finalizers is None else finalizers
    aggregate_metrics = (metrics_aggregator or sum_then_finalize)(
        {**finalizers, NUM_NON_FINITE_CLIENTS_KEY: lambda count: count}
    )
    weights_type, data_type = model.weights_type, SequenceType(model.input_spec)
    keeps_leaves = NonTrainableRule.KEEP_CLIENT in rules
    client_state_fn = _client_state_fn(model, own_fn) if keeps_leaves or own_fn is not None else None

    @jax_computation
    def initial_state() -> LocalTrainingState:
        return LocalTrainingState(strong_types(hparams), jax.random.key(seed) if needs_key else ())

    state_type = initial_state.type_signature.result
    assert isinstance(state_type, StructType)
    if shared is not None:
        shared_type = strip_placement(shared.initialize.type_signature.result)
        state_type = StructType([*state_type.items(), ("shared", shared_type)], SharedTrainingState)

    def work_at_client(inputs: dict[str, Any]) -> ClientOutput:
        served, kept = inputs["weights"], dict(inputs.get("own", {}))
        seed_key = keys_of_client(inputs.get("key"))[2]
        kept_leaves = kept.pop(NON_TRAINABLE_KEY, ())
        start = starting_values(rules, served.non_trainable, model.initial_weights.non_trainable, kept_leaves, seed_key)
        weights = ModelWeights(served.trainable, start)
        trained = train(
            ClientInputs(
                weights, inputs["data"], inputs.get("hparams", {}), inputs.get("key"), inputs.get("shared", ()), kept
            )
        )
        update = update_of(rules, trained.update, start, trained.non_trainable)
        own: Any = ()
        if client_state_fn is not None:
            own = dict(trained.own or {})
            if keeps_leaves:
                own[NON_TRAINABLE_KEY] = tuple(leaves_with(rules, NonTrainableRule.KEEP_CLIENT, trained.non_trainable))
        finite = all_finite((update, trained.shared, own))
        nothing = update_of(rules, jax.tree.map(jnp.zeros_like, trained.update), start, start)
        metrics = where(finite, trained.metrics, jax.tree.map(jnp.zeros_like, trained.metrics))
        return ClientOutput(
            ClientResult(where(finite, update, nothing), jnp.where(finite, trained.weight, 0.0)),
            {**metrics, NUM_NON_FINITE_CLIENTS_KEY: jnp.where(finite, 0, 1).astype(jnp.int32)},
            where(finite, trained.shared, jax.tree.map(jnp.zeros_like, trained.shared)),
            own if client_state_fn is None else where(finite, own, dict(inputs["own"])),
        )

    def work(state: Any, weights: Any, data: Any, own: Any = None) -> tuple[Any, Any, Any]:
        inputs = {"weights": weights, "data": data}
        hparams, key = state.hparams, state.key
        if len(hparams.type_signature.member):
            inputs["hparams"] = federated_broadcast(hparams)
        if needs_key:
            key, round_key = federated_map(lambda key: tuple(jax.random.split(key)), key)
            inputs["key"] = federated_split_key(round_key)
        if shared is not None:
            inputs["shared"] = federated_broadcast(shared.tell(state.shared))
        if own is not None:
            inputs["own"] = own
        outputs = federated_map(work_at_client, inputs)
        measurements = {"train": aggregate_metrics(outputs.metrics)}
        if shared is None:
            new_state = LocalTrainingState(hparams, key)
        else:
            told, measured = shared.update(state, outputs)
            new_state = SharedTrainingState(hparams, key, told)
            measurements |= measured
        return federated_zip(new_state), outputs, federated_zip(measurements)

    @federated_computation
    def initialize_fn() -> Any:
        state = federated_eval(initial_state, SERVER)
        if shared is None:
            return state
        return federated_zip(SharedTrainingState(state.hparams, state.key, shared.initialize()))

    types = at_server(state_type), at_clients(weights_type), at_clients(data_type)
    if client_state_fn is None:

        @federated_computation(*types)
        def next_fn(state: Any, weights: Any, data: Any) -> Any:
            new_state, outputs, measurements = work(state, weights, data)
            return MeasuredProcessOutput(new_state, outputs.result, measurements)

    else:
        own_type = client_state_fn.type_signature.result

        @federated_computation(*types[:2], at_clients(own_type), types[2])
        def next_fn(state: Any, weights: Any, client_state: Any, data: Any) -> Any:
            new_state, outputs, measurements = work(state, weights, data, client_state)
            return ClientStateWorkOutput(new_state, outputs.own, outputs.result, measurements)

    return ClientWorkProcess(
        initialize_fn,
        next_fn,
        get_hparams_fn=jax_computation(state_type)(lambda state: state.hparams),
        set_hparams_fn=jax_computation(state_type, state_type["hparams"])(
            lambda state, hparams: state._replace(hparams=hparams)
        ),
        client_state_fn=client_state_fn,
    )


def keys_of_client(key: Any) -> tuple[Any, Any, Any]:
    """The keys of a client's order of examples, of its model, and of its seeds; None where it has no key."""
    if key is None:
        return None, None, None
    order_key, model_key, seed_key = jax.random.split(key, 3)
    return order_key, model_key, seed_key


def initial_hparams(optimizer: Optimizer, model: FunctionalModel) -> dict[str, Any]:
    """The hyperparameters with which an optimizer of a model's weights begins, by name."""
    return optimizer.get_hparams(optimizer.initialize(model.initial_weights.trainable))


def train_locally(
    model: FunctionalModel,
    optimizer: Optimizer,
    plan: BatchPlan,
    inputs: ClientInputs,
    adjust_gradients: Callable[[Any, Any], Any] | None = None,
) -> TrainingResult:
    """Trains on a client's data with an optimizer that starts anew.

    Args:
      model: the model.
      optimizer: what makes steps of gradients.
      plan: how the client goes through its examples.
      inputs: what the client is given.
      adjust_gradients: see `train_on_batches`.
    """
    order_key, model_key, _ = keys_of_client(inputs.key)
    optimizer_state = optimizer.initialize(inputs.weights.trainable)
    if inputs.hparams:
        optimizer_state = optimizer.set_hparams(optimizer_state, inputs.hparams)
    batches = plan.batches(inputs.data, order_key)
    return train_on_batches(model, optimizer, inputs.weights, optimizer_state, batches, model_key, adjust_gradients)


def result_types(client_work: ClientWorkProcess) -> tuple[Any, Any]:
    """The types of the update and of the weight that a client returns."""
    output_type = client_work.next.type_signature.result
    assert isinstance(output_type, StructType)
    result_type = strip_placement(output_type["result"])
    assert isinstance(result_type, StructType)
    return result_type["update"], result_type["update_weight"]


def initial_weights_fn(model: FunctionalModel) -> Computation:
    """The computation of a model's initial weights, `( -> W)`."""

    @jax_computation
    def initial_weights() -> ModelWeights:
        return model.initial_weights

    return initial_weights


def _client_state_fn(model: FunctionalModel, own_fn: Callable[[], dict[str, Any]] | None) -> Computation:
    """The computation of what a client keeps before it has taken part: what the algorithm does, and what the model."""
    kept = leaves_with(model.non_trainable_rules, NonTrainableRule.KEEP_CLIENT, model.initial_weights.non_trainable)

    @jax_computation
    def client_state() -> dict[str, Any]:
        own = {} if own_fn is None else own_fn()
        return {**own, **({NON_TRAINABLE_KEY: tuple(kept)} if kept else {})}

    return client_state
