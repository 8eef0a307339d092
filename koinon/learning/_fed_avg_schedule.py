"""Federated averaging in which the clients' learning rate changes from round to round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError
from koinon.computation import federated_computation, federated_map, federated_value
from koinon.learning._averaging import as_weighted, compose_averaging
from koinon.learning._client_weighting import ClientWeighting, Weighting, check_weighting, weight_of
from koinon.learning._distribute import DistributionProcess
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._local_training import BatchPlan
from koinon.learning._metrics_aggregation import MetricsAggregator
from koinon.learning._optimizer import as_optimizer
from koinon.learning._process import LearningProcess
from koinon.learning._training_work import ClientInputs, Shared, Trained, build_training_work, train_locally
from koinon.types import SERVER


def build_weighted_fed_avg_with_optimizer_schedule(
    model: FunctionalModel,
    client_learning_rate_fn: Callable[[Any], Any],
    client_optimizer_fn: Callable[[Any], Any],
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
    """Federated averaging whose clients use in round t, counted from 0, the optimizer for the learning rate of t.

        for each round t:
            optimizer = client_optimizer_fn(client_learning_rate_fn(t))
            one round of federated averaging with it, see `build_weighted_fed_avg`

    The rate is `metrics["client_work"]["learning_rate"]`. For a schedule within a client's training, or of the server,
    give `build_weighted_fed_avg` optimizers with `optimizers.schedule_learning_rate` or with a schedule of optax.

    Type: `(<S@SERVER,{D*}@CLIENTS> -> <state=S@SERVER,metrics=M@SERVER>)`, where D is the type of an example.

    Args:
      model: the model.
      client_learning_rate_fn: traced by JAX, from the number of a round, int32, to a rate; any optax schedule serves.
      client_optimizer_fn: from a rate, which is traced, to a koinon `Optimizer` or an optax transformation.
      server_optimizer: an optimizer; SGD with learning rate 1 if None.
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
      KoinonValueError: a size is not a positive int.

    Example:
      >>> import jax.numpy as jnp, koinon as ko, optax
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w * x, jnp.float32(0.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=lambda prediction, y: prediction,
      ... )
      >>> process = ko.learning.algorithms.build_weighted_fed_avg_with_optimizer_schedule(
      ...     model, lambda t: 0.5**t, optax.sgd, batch_size=1
      ... )
      >>> state = process.initialize()
      >>> for _ in range(3):
      ...     state, metrics = process.next(state, [[{"x": -1.0, "y": 0.0}]])  # the gradient is -1
      >>> float(process.get_model_weights(state).trainable), float(metrics["client_work"]["learning_rate"])
      (1.75, 0.25)
    """
    check_weighting(client_weighting)
    for name, fn in (
        ("client_learning_rate_fn", client_learning_rate_fn),
        ("client_optimizer_fn", client_optimizer_fn),
    ):
        if not callable(fn):
            raise KoinonTypeError(
                f"`{name}` must be a function.",
                found=repr(fn),
                hint="for instance `lambda t: 0.1 / (1 + t)` and `optax.sgd`",
            )
    as_optimizer(client_optimizer_fn(0.1))  # so that a mistake shows here, and not in a trace
    plan = BatchPlan(batch_size, epochs, shuffle, take, drop_remainder)

    def rate_of(round_num: Any) -> Any:
        return jnp.asarray(client_learning_rate_fn(round_num), jnp.float32)

    def train(inputs: ClientInputs) -> Trained:
        optimizer = as_optimizer(client_optimizer_fn(inputs.shared))
        trained = train_locally(model, optimizer, plan, inputs)
        delta = jax.tree.map(jnp.subtract, inputs.weights.trainable, trained.weights.trainable)
        weight = weight_of(client_weighting, plan.num_examples(inputs.data))
        return Trained(delta, weight, trained.weights.non_trainable, trained.metrics)

    @federated_computation
    def first_round() -> Any:
        return federated_value(jnp.int32(0), SERVER)

    def next_round(state: Any, outputs: Any) -> tuple[Any, dict[str, Any]]:
        del outputs
        return federated_map(lambda t: t + 1, state.shared), {"learning_rate": federated_map(rate_of, state.shared)}

    work = build_training_work(
        model,
        train,
        hparams={},
        needs_key=plan.shuffle or model.uses_key,
        metrics_aggregator=metrics_aggregator,
        seed=seed,
        shared=Shared(first_round, lambda round_num: federated_map(rate_of, round_num), next_round),
    )
    return compose_averaging(model, work, server_optimizer, model_distributor, as_weighted(model_aggregator))
