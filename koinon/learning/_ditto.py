"""Ditto: a global model, and for each client a model of its own near it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError
from koinon.learning._averaging import as_weighted, compose_averaging
from koinon.learning._client_weighting import ClientWeighting, Weighting, check_weighting, weight_of
from koinon.learning._distribute import DistributionProcess
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._local_training import BatchPlan
from koinon.learning._metrics_aggregation import MetricsAggregator
from koinon.learning._optimizer import as_optimizer
from koinon.learning._process import LearningProcess
from koinon.learning._training_work import (
    ClientInputs,
    Trained,
    build_training_work,
    initial_hparams,
    train_locally,
)
from koinon.learning._weights import ModelWeights


def build_ditto(
    model: FunctionalModel,
    personal_strength: float,
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
    model_aggregator: Any = None,
    metrics_aggregator: MetricsAggregator | None = None,
    seed: int = 0,
) -> LearningProcess:
    """Ditto: federated averaging, beside which each client trains a personal model that is pulled to the global one.

        v_k = the model's initial weights for each client k, kept by the client from round to round
        for each round, with the clients k of its cohort:
            w_k = ClientUpdate(k, w)                      # as in federated averaging
            for each batch b of k:  v_k <- optimizer step along (gradient of the loss of b at v_k) + strength (v_k - w)
            w  <- server optimizer step along the weighted mean of w - w_k

    The personal models never leave their clients; the global one is that of federated averaging, to the bit. With
    strength 0.0 each client learns alone, and the greater it is, the nearer are personal models to the global one.

    The metrics of the global model while it trains have the model's names, those of the personal ones begin with
    `personal_`.

    Type: `(<S@SERVER,{C}@CLIENTS,{D*}@CLIENTS> -> <state=S@SERVER,client_state={C}@CLIENTS,metrics=M@SERVER>)`, where C
    is `<personal=T>` for trainable weights T. `learning.programs.train` keeps the states of the clients, or see
    `koinon.program.ClientStateStore`.

    Args:
      model: the model.
      personal_strength: lambda in the paper, a float that is not negative.
      client_optimizer: a koinon `Optimizer` or an optax transformation, for both models; it starts anew in each round.
      server_optimizer: likewise; SGD with learning rate 1 if None.
      batch_size: the number of examples of a batch.
      client_weighting: how much a client counts; by default as often as it has examples.
      epochs: how often a client goes through its examples in a round.
      shuffle: whether each epoch of each client is in a random order of its own.
      take: the greatest number of examples of an epoch; None for all.
      drop_remainder: whether partial batches are left out.
      model_distributor: how the weights reach the clients; a broadcast if None.
      model_aggregator: a weighted or an unweighted factory; `aggregators.MeanFactory()` if None.
      metrics_aggregator: makes the aggregation of metrics of their finalizers; `metrics.sum_then_finalize` if None.
      seed: where the randomness of shuffling and of the model begins.

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: the strength is not a float or is negative, or a size is not a positive int.

    Example:
      >>> import jax.numpy as jnp, koinon as ko, optax
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w * x, jnp.float32(0.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> process = ko.learning.algorithms.build_ditto(model, 2.0, optax.sgd(0.1), batch_size=1)
      >>> clients = [[{"x": 1.0, "y": 0.0}], [{"x": 1.0, "y": 4.0}]]  # the global model ends at 2
      >>> state, kept = process.initialize(), [process.initialize_client_state()] * 2
      >>> for _ in range(100):
      ...     state, kept, _ = process.next(state, kept, clients)
      >>> [round(float(own["personal"]), 3) for own in kept]  # half way between 2 and the own optimum
      [1.0, 3.0]

    References:
      Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021,
      https://arxiv.org/abs/2012.04221, algorithm 1.
    """
    if not isinstance(personal_strength, float) or not personal_strength >= 0:
        raise KoinonValueError(
            "`personal_strength` must be a float that is not negative.", found=repr(personal_strength)
        )
    optimizer = as_optimizer(client_optimizer)
    check_weighting(client_weighting)
    plan = BatchPlan(batch_size, epochs, shuffle, take, drop_remainder)

    def train(inputs: ClientInputs) -> Trained:
        global_ = inputs.weights.trainable
        trained = train_locally(model, optimizer, plan, inputs)

        def pull(gradients: Any, personal: Any) -> Any:
            return jax.tree.map(lambda g, v, w: g + personal_strength * (v - w), gradients, personal, global_)

        start = ModelWeights(inputs.own["personal"], inputs.weights.non_trainable)
        personal = train_locally(model, optimizer, plan, inputs._replace(weights=start), pull)
        return Trained(
            jax.tree.map(jnp.subtract, global_, trained.weights.trainable),
            weight_of(client_weighting, plan.num_examples(inputs.data)),
            trained.weights.non_trainable,
            {**trained.metrics, **{f"personal_{name}": state for name, state in personal.metrics.items()}},
            own={"personal": personal.weights.trainable},
        )

    finalizers = {name: metric.finalize for name, metric in model.metrics.items()}
    work = build_training_work(
        model,
        train,
        hparams=initial_hparams(optimizer, model),
        needs_key=plan.shuffle or model.uses_key,
        metrics_aggregator=metrics_aggregator,
        seed=seed,
        finalizers={**finalizers, **{f"personal_{name}": finalize for name, finalize in finalizers.items()}},
        own_fn=lambda: {"personal": model.initial_weights.trainable},
    )
    return compose_averaging(model, work, server_optimizer, model_distributor, as_weighted(model_aggregator))
