"""Federated averaging, weighted and unweighted."""

from __future__ import annotations

from typing import Any

from koinon._errors import KoinonTypeError
from koinon.aggregators import (
    MeanFactory,
    UnweightedAggregationFactory,
    UnweightedMeanFactory,
    WeightedAggregationFactory,
    as_weighted_aggregator,
)
from koinon.learning._client_weighting import ClientWeighting, Weighting
from koinon.learning._client_work import ClientWorkProcess
from koinon.learning._compose import compose_learning_process
from koinon.learning._distribute import DistributionProcess, build_broadcast_process
from koinon.learning._finalize import build_apply_optimizer_finalizer
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._metrics_aggregation import MetricsAggregator
from koinon.learning._model_delta import build_model_delta_client_work, initial_weights_fn, result_types
from koinon.learning._optimizer_rules import build_sgdm
from koinon.learning._process import LearningProcess


def build_weighted_fed_avg(
    model: FunctionalModel,
    client_optimizer: Any,
    server_optimizer: Any = None,
    *,
    batch_size: int,
    client_weighting: Weighting = ClientWeighting.NUM_EXAMPLES,
    epochs: int = 1,
    shuffle: bool = False,
    take: int | None = None,
    drop_remainder: bool = False,
    model_distributor: DistributionProcess | None = None,
    model_aggregator: WeightedAggregationFactory | None = None,
    metrics_aggregator: MetricsAggregator | None = None,
    seed: int = 0,
) -> LearningProcess:
    """Federated averaging: clients train on their own data, the server steps along the weighted mean of the changes.

        for each round, with the clients k of its cohort, each of them n_k examples:
            w_k   = ClientUpdate(k, w)                  # epochs of batches, one optimizer step for each
            delta = sum_k n_k (w - w_k) / sum_k n_k
            w    <- server optimizer step along delta   # SGD with rate 1: w becomes the mean of the w_k

    An adaptive optimizer at the server makes it FedAdam, FedYogi or FedAdagrad; one with momentum FedAvgM.

    Type: `(<S@SERVER,{D*}@CLIENTS> -> <state=S@SERVER,metrics=M@SERVER>)`, where D is the type of an example of the
    model. The metrics of the clients are in `metrics["client_work"]["train"]`.

    Args:
      model: the model; its initial weights are those of the process.
      client_optimizer: a koinon `Optimizer` or an optax transformation.
      server_optimizer: likewise; SGD with learning rate 1 if None.
      batch_size: the number of examples of a batch.
      client_weighting: how much a client counts; by default as often as it has examples.
      epochs: how often a client goes through its examples in a round.
      shuffle: whether each epoch of each client is in a random order of its own.
      take: the greatest number of examples of an epoch; None for all.
      drop_remainder: whether partial batches are left out, for models with batch normalization.
      model_distributor: how the weights reach the clients; a broadcast if None.
      model_aggregator: aggregates the changes; `aggregators.MeanFactory()` if None.
      metrics_aggregator: makes the aggregation of metrics of their finalizers; `metrics.sum_then_finalize` if None.
      seed: where the randomness of shuffling and of the model begins.

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: a size or a number of epochs is not a positive int.

    Example:
      >>> import jax.numpy as jnp, koinon as ko, optax
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w * x, jnp.float32(0.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> process = ko.learning.algorithms.build_weighted_fed_avg(model, optax.sgd(0.1), batch_size=2, epochs=5)
      >>> clients = [[{"x": 1.0, "y": 3.0}], [{"x": 2.0, "y": 6.0}, {"x": 1.0, "y": 3.0}]]  # both know that y = 3 x
      >>> state = process.initialize()
      >>> for _ in range(10):
      ...     state, metrics = process.next(state, clients)
      >>> round(float(process.get_model_weights(state).trainable), 3)
      3.0

    References:
      McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
      https://arxiv.org/abs/1602.05629. Reddi et al., Adaptive Federated Optimization, ICLR 2021,
      https://arxiv.org/abs/2003.00295, algorithm 1.
    """
    client_work = build_model_delta_client_work(
        model,
        client_optimizer,
        batch_size=batch_size,
        client_weighting=client_weighting,
        epochs=epochs,
        shuffle=shuffle,
        take=take,
        drop_remainder=drop_remainder,
        metrics_aggregator=metrics_aggregator,
        seed=seed,
    )
    return compose_averaging(model, client_work, server_optimizer, model_distributor, model_aggregator)


def build_unweighted_fed_avg(
    model: FunctionalModel,
    client_optimizer: Any,
    server_optimizer: Any = None,
    *,
    batch_size: int,
    epochs: int = 1,
    shuffle: bool = False,
    take: int | None = None,
    drop_remainder: bool = False,
    model_distributor: DistributionProcess | None = None,
    model_aggregator: UnweightedAggregationFactory | None = None,
    metrics_aggregator: MetricsAggregator | None = None,
    seed: int = 0,
) -> LearningProcess:
    """Federated averaging in which every client of a cohort counts the same, also one without examples.

    Differential privacy needs this form, since there the mean must not depend on a client but by its update.

    The same as `build_weighted_fed_avg` with uniform weights, but `model_aggregator` is an unweighted factory,
    `aggregators.UnweightedMeanFactory()` if None; see there for the other arguments.

    >>> import jax.numpy as jnp, koinon as ko, optax
    >>> model = ko.learning.models.functional(
    ...     lambda w, x: w + 0 * x, jnp.float32(0.0),
    ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
    ... )
    >>> process = ko.learning.algorithms.build_unweighted_fed_avg(model, optax.sgd(0.5), batch_size=10)
    >>> clients = [[{"x": 0.0, "y": 1.0}], [{"x": 0.0, "y": 4.0}] * 8]  # one step leads to the mean of each
    >>> state = process.next(process.initialize(), clients).state
    >>> float(process.get_model_weights(state).trainable)
    2.5

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: a size or a number of epochs is not a positive int.
    """
    client_work = build_model_delta_client_work(
        model,
        client_optimizer,
        batch_size=batch_size,
        client_weighting=ClientWeighting.UNIFORM,
        epochs=epochs,
        shuffle=shuffle,
        take=take,
        drop_remainder=drop_remainder,
        metrics_aggregator=metrics_aggregator,
        seed=seed,
    )
    aggregator = as_unweighted(model_aggregator)
    return compose_averaging(model, client_work, server_optimizer, model_distributor, aggregator)


def compose_averaging(
    model: FunctionalModel,
    client_work: ClientWorkProcess,
    server_optimizer: Any,
    model_distributor: DistributionProcess | None,
    model_aggregator: WeightedAggregationFactory | None,
) -> LearningProcess:
    """The learning process that distributes weights, runs a client work, averages, and steps along the mean.

    Args:
      model: where the weights begin.
      client_work: takes the model's weights, returns a pseudo-gradient and a weight.
      server_optimizer: SGD with learning rate 1 if None.
      model_distributor: a broadcast if None.
      model_aggregator: a weighted mean if None.
    """
    aggregator = MeanFactory() if model_aggregator is None else model_aggregator
    if not isinstance(aggregator, WeightedAggregationFactory):
        raise KoinonTypeError(
            "The aggregator of a weighted algorithm must be a weighted factory.",
            expected="WeightedAggregationFactory",
            found=f"{type(aggregator).__name__}: {aggregator!r}",
            hint="use the unweighted algorithm, or wrap the factory in aggregators.as_weighted_aggregator",
        )
    if model_distributor is not None and not isinstance(model_distributor, DistributionProcess):
        raise KoinonTypeError(
            "The distributor must be a DistributionProcess.", found=f"{type(model_distributor).__name__}"
        )
    return compose_learning_process(
        initial_weights_fn(model),
        build_broadcast_process(model.weights_type) if model_distributor is None else model_distributor,
        client_work,
        aggregator.create(*result_types(client_work)),
        build_apply_optimizer_finalizer(
            build_sgdm(1.0) if server_optimizer is None else server_optimizer, model.weights_type
        ),
    )


def as_unweighted(model_aggregator: UnweightedAggregationFactory | None) -> WeightedAggregationFactory:
    """The aggregator of an unweighted algorithm, in the form that composition takes."""
    factory = UnweightedMeanFactory() if model_aggregator is None else model_aggregator
    if not isinstance(factory, UnweightedAggregationFactory):
        raise KoinonTypeError(
            "The aggregator of an unweighted algorithm must be an unweighted factory.",
            expected="UnweightedAggregationFactory",
            found=f"{type(factory).__name__}: {factory!r}",
            hint="use the weighted algorithm for a weighted factory",
        )
    return as_weighted_aggregator(factory)
