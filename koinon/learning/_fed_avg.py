"""Federated averaging, weighted and unweighted."""

from __future__ import annotations

from typing import Any

from koinon.aggregators import UnweightedAggregationFactory, WeightedAggregationFactory
from koinon.learning._averaging import as_unweighted, compose_averaging
from koinon.learning._client_weighting import ClientWeighting, Weighting
from koinon.learning._distribute import DistributionProcess
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._metrics_aggregation import MetricsAggregator
from koinon.learning._model_delta import build_model_delta_client_work
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
