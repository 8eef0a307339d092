"""Federated SGD: one gradient for each client and round."""

from __future__ import annotations

from typing import Any

from koinon.learning._averaging import as_weighted, compose_averaging
from koinon.learning._client_weighting import ClientWeighting, Weighting, check_weighting, weight_of
from koinon.learning._client_work import ClientWorkProcess
from koinon.learning._distribute import DistributionProcess
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._local_training import BatchPlan, full_gradient
from koinon.learning._metrics_aggregation import MetricsAggregator
from koinon.learning._optimizer_rules import build_sgdm
from koinon.learning._process import LearningProcess
from koinon.learning._training_work import ClientInputs, Trained, build_training_work, keys_of_client


def build_fed_sgd(
    model: FunctionalModel,
    server_optimizer: Any = None,
    *,
    batch_size: int,
    client_weighting: Weighting = ClientWeighting.NUM_EXAMPLES,
    take: int | None = None,
    model_distributor: DistributionProcess | None = None,
    model_aggregator: Any = None,
    metrics_aggregator: MetricsAggregator | None = None,
    seed: int = 0,
) -> LearningProcess:
    """Federated SGD: clients send the gradient over all their examples, the server steps along the weighted mean.

        for each round, with the clients k of its cohort, each of them n_k examples:
            g_k = gradient of the mean loss over the examples of k at w
            w  <- server optimizer step along sum_k n_k g_k / sum_k n_k

    If the whole population takes part and clients count by their examples, a round is one step of gradient descent on
    all data.

    Type: `(<S@SERVER,{D*}@CLIENTS> -> <state=S@SERVER,metrics=M@SERVER>)`, where D is the type of an example.

    Args:
      model: the model.
      server_optimizer: a koinon `Optimizer` or an optax transformation; SGD with learning rate 0.1 if None.
      batch_size: the number of examples whose gradient a client computes at once; it does not change the result.
      client_weighting: how much a client counts; by default as often as it has examples.
      take: the greatest number of examples of a client, the first ones; None for all.
      model_distributor: how the weights reach the clients; a broadcast if None.
      model_aggregator: a weighted or an unweighted factory; `aggregators.MeanFactory()` if None.
      metrics_aggregator: makes the aggregation of metrics of their finalizers; `metrics.sum_then_finalize` if None.
      seed: where the randomness of the model begins.

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: a size is not a positive int.

    Example:
      >>> import jax.numpy as jnp, koinon as ko, optax
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w * x, jnp.float32(0.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> process = ko.learning.algorithms.build_fed_sgd(model, optax.sgd(0.5), batch_size=10)
      >>> clients = [[{"x": 1.0, "y": 2.0}], [{"x": 1.0, "y": 5.0}] * 2]  # gradients -4 and -10 at 0
      >>> state = process.next(process.initialize(), clients).state
      >>> float(process.get_model_weights(state).trainable)  # 0.5 (1 * 4 + 2 * 10) / 3
      4.0

    References:
      McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
      https://arxiv.org/abs/1602.05629, section 2 (FederatedSGD).
    """
    work = build_gradient_client_work(
        model,
        BatchPlan(batch_size, take=take),
        client_weighting=client_weighting,
        metrics_aggregator=metrics_aggregator,
        seed=seed,
    )
    optimizer = build_sgdm(0.1) if server_optimizer is None else server_optimizer
    return compose_averaging(model, work, optimizer, model_distributor, as_weighted(model_aggregator))


def build_gradient_client_work(
    model: FunctionalModel,
    plan: BatchPlan,
    *,
    client_weighting: Weighting,
    metrics_aggregator: MetricsAggregator | None,
    seed: int,
) -> ClientWorkProcess:
    """The client work that takes no step and returns the gradient over all examples."""
    check_weighting(client_weighting)

    def train(inputs: ClientInputs) -> Trained:
        _, model_key, _ = keys_of_client(inputs.key)
        full = full_gradient(model, inputs.weights, plan.batches(inputs.data, None), model_key)
        weight = weight_of(client_weighting, plan.num_examples(inputs.data))
        return Trained(full.gradients, weight, full.non_trainable, full.metrics)

    return build_training_work(
        model, train, hparams={}, needs_key=model.uses_key, metrics_aggregator=metrics_aggregator, seed=seed
    )
