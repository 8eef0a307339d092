"""FedNova: clients that take different numbers of steps agree on one objective."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from koinon.learning._averaging import as_weighted, compose_averaging
from koinon.learning._client_weighting import ClientWeighting, Weighting, check_weighting, weight_of
from koinon.learning._distribute import DistributionProcess
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._local_training import BatchPlan, strong_types
from koinon.learning._metrics_aggregation import MetricsAggregator
from koinon.learning._optimizer import Optimizer, as_optimizer
from koinon.learning._process import LearningProcess
from koinon.learning._training_work import (
    ClientInputs,
    Trained,
    build_training_work,
    initial_hparams,
    train_locally,
)


class NormalizedUpdate(NamedTuple):
    """A change in units of the gradients that made it.

    Attributes:
      direction: the change of the weights divided by `length`: a mean of gradients.
      length: float32, how far the client's steps go along a gradient of 1.
    """

    direction: Any
    length: Any


def build_fed_nova(
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
    model_aggregator: Any = None,
    metrics_aggregator: MetricsAggregator | None = None,
    seed: int = 0,
) -> LearningProcess:
    """FedNova, normalized averaging: each client's change counts by its direction, not by the number of its steps.

        for each round, with the clients k of its cohort, p_k = n_k / sum_j n_j:
            w_k = ClientUpdate(k, w)                      # as in federated averaging
            a_k = the length of k's steps                 # the learning rate times |a_k|_1 of the paper
            w  <- server optimizer step along (sum_k p_k a_k) sum_k p_k (w - w_k) / a_k

    With federated averaging, clients with more examples or epochs pull the result to their own optimum more than the
    objective `sum_k p_k F_k` says. Here they do not, up to the drift within a round, which vanishes with the rate.

    The length is found by running the client's optimizer on a gradient of 1: with SGD of rate `r` and `s` steps it is
    `r s`, with momentum more, as in section 4 of the paper. It is meant for optimizers that are linear in gradients.

    Type: `(<S@SERVER,{D*}@CLIENTS> -> <state=S@SERVER,metrics=M@SERVER>)`, where D is the type of an example.

    Args:
      model: the model.
      client_optimizer: a koinon `Optimizer` or an optax transformation, such as SGD with momentum.
      server_optimizer: an optimizer; SGD with learning rate 1, as in the paper, if None.
      batch_size: the number of examples of a batch.
      client_weighting: how much a client counts; by default as often as it has examples.
      epochs: how often a client goes through its examples in a round.
      shuffle: whether each epoch of each client is in a random order of its own.
      take: the greatest number of examples of an epoch; None for all.
      drop_remainder: whether partial batches are left out.
      model_distributor: how the weights reach the clients; a broadcast if None.
      model_aggregator: a weighted or an unweighted factory, for the directions and the lengths of the clients;
        `aggregators.MeanFactory()` if None.
      metrics_aggregator: makes the aggregation of metrics of their finalizers; `metrics.sum_then_finalize` if None.
      seed: where the randomness of shuffling and of the model begins.

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: a size is not a positive int.

    Example:
      >>> import jax.numpy as jnp, koinon as ko, optax
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w * x, jnp.float32(0.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=lambda prediction, y: prediction,
      ... )
      >>> process = ko.learning.algorithms.build_fed_nova(
      ...     model, optax.sgd(1.0), batch_size=1, client_weighting=ko.learning.ClientWeighting.UNIFORM
      ... )
      >>> clients = [[{"x": 1.0, "y": 0.0}] * 3, [{"x": -1.0, "y": 0.0}]]  # gradients 1 and -1: no common direction
      >>> float(process.get_model_weights(process.next(process.initialize(), clients).state).trainable)
      0.0

    References:
      Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, NeurIPS 2020,
      https://arxiv.org/abs/2007.07481, algorithm 1 and section 4.
    """
    optimizer = as_optimizer(client_optimizer)
    check_weighting(client_weighting)
    plan = BatchPlan(batch_size, epochs, shuffle, take, drop_remainder)

    def train(inputs: ClientInputs) -> Trained:
        trained = train_locally(model, optimizer, plan, inputs)
        length = length_of_steps(optimizer, inputs.hparams, plan.num_batches(inputs.data))
        delta = jax.tree.map(jnp.subtract, inputs.weights.trainable, trained.weights.trainable)
        update = NormalizedUpdate(divided_by_length(delta, length), length)
        weight = weight_of(client_weighting, plan.num_examples(inputs.data))
        return Trained(update, weight, trained.weights.non_trainable, trained.metrics)

    work = build_training_work(
        model,
        train,
        hparams=initial_hparams(optimizer, model),
        needs_key=plan.shuffle or model.uses_key,
        metrics_aggregator=metrics_aggregator,
        seed=seed,
    )

    def finish(update: NormalizedUpdate) -> Any:
        return jax.tree.map(lambda leaf: leaf * update.length.astype(leaf.dtype), update.direction)

    return compose_averaging(model, work, server_optimizer, model_distributor, as_weighted(model_aggregator), finish)


def length_of_steps(optimizer: Optimizer, hparams: Any, num_steps: Any) -> Any:
    """How far an optimizer goes along a gradient of 1 in so many steps, float32; the first state is a new one."""
    start = jnp.float32(0.0)
    state = optimizer.initialize(start)
    if hparams:
        state = optimizer.set_hparams(state, hparams)

    def step(_: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return strong_types(optimizer.next(*carry, jnp.float32(1.0)))

    return -jax.lax.fori_loop(0, num_steps, step, strong_types((state, start)))[1]


def divided_by_length(delta: Any, length: Any) -> Any:
    """A change in units of the gradients that made it; zero where no step was taken."""
    return jax.tree.map(lambda leaf: jnp.where(length > 0, leaf / length.astype(leaf.dtype), 0), delta)
