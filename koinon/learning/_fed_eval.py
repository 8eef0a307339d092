"""Federated evaluation: the metrics of a model on the data of the clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from koinon._errors import KoinonTypeError
from koinon.aggregators import SumFactory, UnweightedAggregationFactory, as_weighted_aggregator
from koinon.computation import Computation, federated_broadcast, federated_computation, federated_map, federated_zip
from koinon.learning._client_work import ClientResult, ClientWorkProcess
from koinon.learning._compose import compose_learning_process
from koinon.learning._distribute import DistributionProcess, build_broadcast_process
from koinon.learning._finalize import build_identity_finalizer
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._local_training import BatchPlan, strong_types
from koinon.learning._metrics_aggregation import MetricFinalizers, SumThenFinalizeFactory
from koinon.learning._process import LearningProcess
from koinon.learning._training_work import ClientOutput, initial_weights_fn, result_types
from koinon.templates import MeasuredProcessOutput
from koinon.types import SequenceType, StructType, at_clients, at_server, infer_type


def build_fed_eval(
    model: FunctionalModel,
    *,
    batch_size: int,
    take: int | None = None,
    model_distributor: DistributionProcess | None = None,
    metrics_aggregator: Callable[[MetricFinalizers], UnweightedAggregationFactory] = SumThenFinalizeFactory,
) -> LearningProcess:
    """The process that evaluates a model on the data of a cohort, and remembers what earlier rounds saw.

    It has the form of a learning process and changes no weights: give it those of another process by
    `state = evaluation.set_model_weights(state, weights)`. Its metrics are in
    `metrics["client_work"]["eval"]`, as `current_round_metrics` and `total_rounds_metrics`.

    Type: `(<S@SERVER,{D*}@CLIENTS> -> <state=S@SERVER,metrics=M@SERVER>)`, where D is the type of an example.

    Args:
      model: the model.
      batch_size: the number of examples that a client computes at once; it does not change the metrics.
      take: the greatest number of examples of a client, the first ones; None for all.
      model_distributor: how the weights reach the clients; a broadcast if None.
      metrics_aggregator: makes the factory of the aggregation of metrics of their finalizers. Its result is a pair of
        the metrics of the round and of all rounds.

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: a size is not a positive int.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w * x, jnp.float32(1.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> evaluation = ko.learning.algorithms.build_fed_eval(model, batch_size=10)
      >>> clients = [[{"x": 1.0, "y": 3.0}], [{"x": 2.0, "y": 2.0}]]  # losses (1 - 3)^2 and 0
      >>> state, metrics = evaluation.next(evaluation.initialize(), clients)
      >>> float(metrics["client_work"]["eval"]["current_round_metrics"]["loss"])
      2.0
    """
    client_work = build_evaluation_client_work(model, BatchPlan(batch_size, take=take), metrics_aggregator)
    nothing = StructType([])
    if model_distributor is not None and not isinstance(model_distributor, DistributionProcess):
        raise KoinonTypeError(
            "The distributor must be a DistributionProcess.", found=f"{type(model_distributor).__name__}"
        )
    return compose_learning_process(
        initial_weights_fn(model),
        build_broadcast_process(model.weights_type) if model_distributor is None else model_distributor,
        client_work,
        as_weighted_aggregator(SumFactory()).create(*result_types(client_work)),
        build_identity_finalizer(model.weights_type, nothing),
    )


def build_evaluation_client_work(
    model: FunctionalModel,
    plan: BatchPlan,
    metrics_aggregator: Callable[[MetricFinalizers], UnweightedAggregationFactory],
) -> ClientWorkProcess:
    """The client work that computes metrics and returns no update."""
    factory = metrics_aggregator({name: metric.finalize for name, metric in model.metrics.items()})
    if not isinstance(factory, UnweightedAggregationFactory):
        raise KoinonTypeError(
            "The aggregator of an evaluation's metrics must be an unweighted factory.",
            found=f"{type(factory).__name__}: {factory!r}",
            hint="pass a class such as metrics.SumThenFinalizeFactory, called with the finalizers",
        )
    aggregation = factory.create(infer_type(model.initialize_metrics_state()))  # pyright: ignore[reportArgumentType]

    def evaluate(weights: Any, data: Any) -> ClientOutput:
        return ClientOutput(ClientResult((), ()), metrics_on_batches(model, weights, plan.batches(data, None)))

    data_type = at_clients(SequenceType(model.input_spec))

    @federated_computation(aggregation.state_type, at_clients(model.weights_type), data_type)
    def next_fn(state: Any, weights: Any, data: Any) -> Any:
        outputs = federated_map(evaluate, (weights, data))
        aggregated = aggregation.next(state, outputs.metrics)
        current, total = aggregated.result
        measurements = {"eval": {"current_round_metrics": current, "total_rounds_metrics": total}}
        return MeasuredProcessOutput(aggregated.state, outputs.result, federated_zip(measurements))

    return ClientWorkProcess(aggregation.initialize, next_fn)


def build_per_client_eval_computation(
    model: FunctionalModel, *, batch_size: int, take: int | None = None
) -> Computation:
    """The computation of the metrics of each client, for a look at how evenly a model serves them.

    In simulation; on devices these values would leave the clients one by one.

    Type: `(<model_weights=W@SERVER,data={D*}@CLIENTS> -> {M}@CLIENTS)`

    Args:
      model: the model.
      batch_size: the number of examples that a client computes at once; it does not change the metrics.
      take: the greatest number of examples of a client, the first ones; None for all.

    Raises:
      KoinonValueError: a size is not a positive int.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w * x, jnp.float32(1.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> metrics_of = ko.learning.algorithms.build_per_client_eval_computation(model, batch_size=10)
      >>> clients = [[{"x": 1.0, "y": 3.0}], [{"x": 2.0, "y": 2.0}]]
      >>> [float(metrics["loss"]) for metrics in metrics_of(model.initial_weights, clients)]
      [4.0, 0.0]
    """
    plan = BatchPlan(batch_size, take=take)

    def evaluate(weights: Any, data: Any) -> dict[str, Any]:
        return model.finalize_metrics(metrics_on_batches(model, weights, plan.batches(data, None)))

    @federated_computation(at_server(model.weights_type), at_clients(SequenceType(model.input_spec)))
    def per_client_metrics(model_weights: Any, data: Any) -> Any:
        return federated_map(evaluate, (federated_broadcast(model_weights), data))

    return per_client_metrics


def metrics_on_batches(model: FunctionalModel, weights: Any, batches: Any) -> dict[str, Any]:
    """The states of a model's metrics over a sequence of batches, by name."""

    def step(state: dict[str, Any], batch: Any) -> dict[str, Any]:
        outputs = model.forward(weights, batch.examples, batch.mask, training=False)
        return model.update_metrics_state(state, outputs.batch_output)

    return batches.reduce(strong_types(model.initialize_metrics_state()), step)
