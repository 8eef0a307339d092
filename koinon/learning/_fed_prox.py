"""FedProx: federated averaging with a term that keeps clients near the server's weights."""

from __future__ import annotations

from typing import Any

import jax

from koinon._errors import KoinonValueError
from koinon.aggregators import UnweightedAggregationFactory
from koinon.learning._averaging import as_unweighted, as_weighted, compose_averaging
from koinon.learning._client_weighting import ClientWeighting, Weighting
from koinon.learning._distribute import DistributionProcess
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._local_training import BatchPlan
from koinon.learning._metrics_aggregation import MetricsAggregator
from koinon.learning._model_delta import build_local_training
from koinon.learning._process import LearningProcess


def build_fed_prox(
    model: FunctionalModel,
    proximal_strength: float,
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
    """FedProx: federated averaging in which each client adds `mu / 2 |w_k - w|^2` to its loss.

        for each round, with the clients k of its cohort, each of them n_k examples:
            w_k = w
            for each batch b of k:  w_k <- optimizer step along (gradient of the loss of b at w_k) + mu (w_k - w)
            w  <- server optimizer step along sum_k n_k (w - w_k) / sum_k n_k

    Type: `(<S@SERVER,{D*}@CLIENTS> -> <state=S@SERVER,metrics=M@SERVER>)`, where D is the type of an example.

    The proximal term pulls towards the server's weights, as in the paper. TensorFlow Federated adds it with the other
    sign (0.87 and later), which pushes away.

    Args:
      model: the model.
      proximal_strength: `mu`, a float that is not negative; 0.0 is federated averaging.
      client_optimizer: a koinon `Optimizer` or an optax transformation.
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
      ...     lambda w, x: w + 0 * x, jnp.float32(0.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> process = ko.learning.algorithms.build_fed_prox(model, 2.0, optax.sgd(0.25), batch_size=1, epochs=20)
      >>> state = process.next(process.initialize(), [[{"x": 0.0, "y": 1.0}]]).state
      >>> round(float(process.get_model_weights(state).trainable), 4)  # the minimum of (w - 1)^2 + 2 / 2 w^2
      0.5

    References:
      Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, https://arxiv.org/abs/1812.06127,
      algorithm 2.
    """
    if not isinstance(proximal_strength, float) or not proximal_strength >= 0:
        raise KoinonValueError(
            "`proximal_strength` must be a float that is not negative.",
            found=repr(proximal_strength),
            hint=f"pass {float(proximal_strength)}" if isinstance(proximal_strength, int) else None,
        )

    def add_proximal_term(initial: Any, gradients: Any, trainable: Any) -> Any:
        return jax.tree.map(lambda g, w, start: g + proximal_strength * (w - start), gradients, trainable, initial)

    plan = BatchPlan(batch_size, epochs, shuffle, take, drop_remainder)
    work = build_local_training(
        model, client_optimizer, plan, client_weighting, metrics_aggregator, seed, add_proximal_term
    )
    return compose_averaging(model, work, server_optimizer, model_distributor, as_weighted(model_aggregator))


def build_weighted_fed_prox(
    model: FunctionalModel,
    proximal_strength: float,
    client_optimizer: Any,
    server_optimizer: Any = None,
    **options: Any,
) -> LearningProcess:
    """`build_fed_prox` by the name that it has in TensorFlow Federated."""
    return build_fed_prox(model, proximal_strength, client_optimizer, server_optimizer, **options)


def build_unweighted_fed_prox(
    model: FunctionalModel,
    proximal_strength: float,
    client_optimizer: Any,
    server_optimizer: Any = None,
    *,
    model_aggregator: UnweightedAggregationFactory | None = None,
    **options: Any,
) -> LearningProcess:
    """`build_fed_prox` in which every client counts the same, with an unweighted `model_aggregator`."""
    aggregator = as_unweighted(model_aggregator)
    return build_fed_prox(
        model, proximal_strength, client_optimizer, server_optimizer, model_aggregator=aggregator, **options
    )
