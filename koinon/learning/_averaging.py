"""From a client work to the learning process that averages what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators import (
    MeanFactory,
    UnweightedAggregationFactory,
    UnweightedMeanFactory,
    WeightedAggregationFactory,
    as_weighted_aggregator,
)
from koinon.computation import federated_computation, federated_map, federated_max
from koinon.learning._client_work import ClientWorkProcess
from koinon.learning._compose import compose_learning_process
from koinon.learning._distribute import DistributionProcess, build_broadcast_process
from koinon.learning._error_feedback import ErrorFeedbackFactory, add_error_feedback
from koinon.learning._finalize import build_apply_optimizer_finalizer
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._non_trainable import ModelUpdate
from koinon.learning._optimizer_rules import build_sgdm
from koinon.learning._process import LearningProcess
from koinon.learning._training_work import initial_weights_fn, result_types
from koinon.templates import AggregationProcess, MeasuredProcessOutput
from koinon.types import StructType, Type, at_clients


def compose_averaging(
    model: FunctionalModel,
    client_work: ClientWorkProcess,
    server_optimizer: Any,
    model_distributor: DistributionProcess | None,
    model_aggregator: WeightedAggregationFactory | None,
    finish: Callable[[Any], Any] | None = None,
) -> LearningProcess:
    """The learning process that distributes weights, runs a client work, averages, and steps along the mean.

    Args:
      model: where the weights begin.
      client_work: takes the model's weights, returns a pseudo-gradient and a weight.
      server_optimizer: SGD with learning rate 1 if None.
      model_distributor: a broadcast if None.
      model_aggregator: a weighted mean if None.
      finish: from the aggregate of the trainable weights' updates to their pseudo-gradient, traced by JAX; None if it
        is one.
    """
    aggregator = MeanFactory() if model_aggregator is None else model_aggregator
    if not isinstance(aggregator, WeightedAggregationFactory):
        raise KoinonTypeError(
            "The aggregator of a weighted algorithm must be a weighted factory.",
            expected="WeightedAggregationFactory",
            found=f"{type(aggregator).__name__}: {aggregator!r}",
            hint=_call_of(aggregator)
            or "use the unweighted algorithm, or wrap the factory in aggregators.as_weighted_aggregator",
        )
    if model_distributor is not None and not isinstance(model_distributor, DistributionProcess):
        raise KoinonTypeError(
            "The distributor must be a DistributionProcess.", found=f"{type(model_distributor).__name__}"
        )
    if isinstance(aggregator, ErrorFeedbackFactory):
        client_work, aggregator, finish = _with_error_feedback(client_work, aggregator, finish)
    return compose_learning_process(
        initial_weights_fn(model),
        build_broadcast_process(model.weights_type) if model_distributor is None else model_distributor,
        client_work,
        _create_aggregation(aggregator, *result_types(client_work), finish),
        build_apply_optimizer_finalizer(
            build_sgdm(1.0) if server_optimizer is None else server_optimizer,
            model.weights_type,
            non_trainable_rules=model.non_trainable_rules,
        ),
    )


def _call_of(factory: Any) -> str | None:
    """What to do where the class of a factory, or a function that makes one, was given in its place."""
    return f"call it: {factory.__name__}()" if isinstance(factory, type) or inspect.isfunction(factory) else None


def _with_error_feedback(
    client_work: ClientWorkProcess, feedback: ErrorFeedbackFactory, finish: Callable[[Any], Any] | None
) -> tuple[ClientWorkProcess, WeightedAggregationFactory, Callable[[Any], Any] | None]:
    """A client work that compresses, the mean of its messages, and how the mean is finished."""
    update_type, _ = result_types(client_work)
    with_others = isinstance(update_type, StructType) and update_type.container is ModelUpdate
    if with_others and len(_children(update_type["max"])) > 0:
        raise KoinonValueError(
            "Error feedback is for sums, so it cannot serve weights of which the maximum is taken.",
            found="non-trainable weights with the rule `NonTrainableRule.MAX`",
            hint="declare another rule for them, or take another aggregator",
        )
    finish_all = finish
    if with_others and finish is not None:
        finish_all = lambda update: update._replace(trainable=finish(update.trainable))  # noqa: E731 - as one value
    return *add_error_feedback(client_work, feedback), finish_all


def as_unweighted(model_aggregator: UnweightedAggregationFactory | None) -> WeightedAggregationFactory:
    """The aggregator of an unweighted algorithm, in the form that composition takes."""
    factory = UnweightedMeanFactory() if model_aggregator is None else model_aggregator
    if not isinstance(factory, UnweightedAggregationFactory):
        raise KoinonTypeError(
            "The aggregator of an unweighted algorithm must be an unweighted factory.",
            expected="UnweightedAggregationFactory",
            found=f"{type(factory).__name__}: {factory!r}",
            hint=_call_of(factory) or "use the weighted algorithm for a weighted factory",
        )
    return as_weighted_aggregator(factory)


def as_weighted(model_aggregator: Any) -> WeightedAggregationFactory | None:
    """The aggregator of an algorithm that takes either kind; an unweighted one ignores the weights of the clients."""
    if isinstance(model_aggregator, UnweightedAggregationFactory):
        return as_weighted_aggregator(model_aggregator)
    return model_aggregator


def _create_aggregation(
    factory: WeightedAggregationFactory, update_type: Any, weight_type: Any, finish: Callable[[Any], Any] | None
) -> AggregationProcess:
    """The aggregation of updates: by the factory, but for the non-trainable leaves of which the maximum is taken."""
    with_others = isinstance(update_type, StructType) and update_type.container is ModelUpdate
    with_max = with_others and len(_children(update_type["max"])) > 0
    if not with_max and finish is None:
        return factory.create(update_type, weight_type)
    inner_type = update_type
    if with_max:
        fields = [(name, StructType([], tuple) if name == "max" else type_) for name, type_ in update_type.items()]
        inner_type = StructType(fields, ModelUpdate)
    inner = factory.create(inner_type, weight_type)

    def finished(update: Any) -> Any:
        if finish is None:
            return update
        return update._replace(trainable=finish(update.trainable)) if with_others else finish(update)

    @federated_computation(inner.state_type, at_clients(update_type), at_clients(weight_type))
    def next_fn(state: Any, update: Any, weight: Any) -> Any:
        averaged = federated_map(lambda update: update._replace(max=()), update) if with_max else update
        output = inner.next(state, averaged, weight)
        result = output.result
        if with_max:
            greatest = federated_max(update.max)
            result = federated_map(lambda update, greatest: update._replace(max=greatest), (result, greatest))
        if finish is not None:
            result = federated_map(finished, result)
        return MeasuredProcessOutput(output.state, result, output.measurements)

    return AggregationProcess(inner.initialize, next_fn, allow_type_change=True, parts={"model_aggregator": inner})


def _children(type_: Type) -> tuple[Type, ...]:
    assert isinstance(type_, StructType)
    return type_.children()
