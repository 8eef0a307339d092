"""The client work of federated averaging: train on the own data, return how the weights changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from koinon.learning._client_weighting import ClientWeighting, Weighting, check_weighting, weight_of
from koinon.learning._client_work import ClientWorkProcess
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._local_training import BatchPlan
from koinon.learning._metrics_aggregation import MetricsAggregator
from koinon.learning._optimizer import as_optimizer
from koinon.learning._training_work import (
    ClientInputs,
    Trained,
    build_training_work,
    initial_hparams,
    train_locally,
)


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
    `num_non_finite_clients`. What becomes of non-trainable weights is declared by the model, see
    `koinon.learning.models.NonTrainableRule`.

    Type: `(<S@SERVER,{W}@CLIENTS,{D*}@CLIENTS> ->
    <state=S@SERVER,result={<update=T,update_weight=float32>}@CLIENTS,measurements=<train=M>@SERVER>)`, where W is the
    type of the model's weights, T that of the trainable ones, and D the type of an example. If the server takes some
    of the non-trainable weights, the update is `<trainable=T,mean=...,max=...>`; if clients keep some, the process has
    a client state.

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

    def train(inputs: ClientInputs) -> Trained:
        initial = inputs.weights.trainable
        adjust = None if adjust_gradients is None else functools.partial(adjust_gradients, initial)
        trained = train_locally(model, optimizer, plan, inputs, adjust)
        delta = jax.tree.map(jnp.subtract, initial, trained.weights.trainable)
        weight = weight_of(client_weighting, plan.num_examples(inputs.data))
        return Trained(delta, weight, trained.weights.non_trainable, trained.metrics)

    return build_training_work(
        model,
        train,
        hparams=initial_hparams(optimizer, model),
        needs_key=plan.shuffle or model.uses_key,
        metrics_aggregator=metrics_aggregator,
        seed=seed,
    )
