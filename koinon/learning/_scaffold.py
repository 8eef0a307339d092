"""SCAFFOLD: control variates correct the drift of clients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError
from koinon.aggregators import SumFactory, UnweightedAggregationFactory
from koinon.aggregators._norms import all_finite
from koinon.computation import federated_computation, federated_eval, federated_map, federated_zip
from koinon.learning._averaging import as_weighted, compose_averaging
from koinon.learning._client_weighting import ClientWeighting, weight_of
from koinon.learning._distribute import DistributionProcess
from koinon.learning._fed_nova import divided_by_length, length_of_steps
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._local_training import BatchPlan, where
from koinon.learning._metrics_aggregation import MetricsAggregator
from koinon.learning._optimizer import as_optimizer
from koinon.learning._process import LearningProcess
from koinon.learning._training_work import (
    ClientInputs,
    Shared,
    Trained,
    build_training_work,
    initial_hparams,
    train_locally,
)
from koinon.types import SERVER, StructType, TensorType


def build_scaffold(
    model: FunctionalModel,
    client_optimizer: Any,
    server_optimizer: Any = None,
    *,
    num_clients: int,
    batch_size: int,
    epochs: int = 1,
    shuffle: bool = False,
    take: int | None = None,
    drop_remainder: bool = False,
    model_distributor: DistributionProcess | None = None,
    model_aggregator: Any = None,
    control_aggregator: UnweightedAggregationFactory | None = None,
    metrics_aggregator: MetricsAggregator | None = None,
    seed: int = 0,
) -> LearningProcess:
    """SCAFFOLD: each client corrects its gradients by how much they usually differ from everyone's.

        c_k = 0 for each client k, kept by the client from round to round;  c = 0 at the server
        for each round, with the clients k of its cohort:
            w_k = w
            for each batch b of k:  w_k <- optimizer step along (gradient of the loss of b at w_k) - c_k + c
            new c_k = c_k - c + (w - w_k) / (learning rate * number of steps)          # option II of the paper
            w  <- server optimizer step along the mean of w - w_k over the cohort
            c  <- c + sum_k (new c_k - c_k) / num_clients

    The result is the optimum of the mean of the clients' losses, whatever the numbers of their steps. Each client that
    has examples counts the same, as in the paper.

    Type: `(<S@SERVER,{C}@CLIENTS,{D*}@CLIENTS> -> <state=S@SERVER,client_state={C}@CLIENTS,metrics=M@SERVER>)`, where C
    is `<control=T>` for trainable weights T. `learning.programs.train` keeps the states of the clients, or see
    `koinon.program.ClientStateStore`.

    Args:
      model: the model.
      client_optimizer: SGD, also with momentum, of koinon or optax: an optimizer that is linear in gradients.
      server_optimizer: an optimizer; SGD with learning rate 1 if None.
      num_clients: the number of all clients of the federation, N in the paper.
      batch_size: the number of examples of a batch.
      epochs: how often a client goes through its examples in a round.
      shuffle: whether each epoch of each client is in a random order of its own.
      take: the greatest number of examples of an epoch; None for all.
      drop_remainder: whether partial batches are left out.
      model_distributor: how the weights reach the clients; a broadcast if None.
      model_aggregator: a weighted or an unweighted factory; `aggregators.MeanFactory()` if None.
      control_aggregator: sums the changes of the control variates; `aggregators.SumFactory()` if None.
      metrics_aggregator: makes the aggregation of metrics of their finalizers; `metrics.sum_then_finalize` if None.
      seed: where the randomness of shuffling and of the model begins.

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: a number is not a positive int.

    Example:
      >>> import jax.numpy as jnp, koinon as ko, optax
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w * x, jnp.float32(0.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> process = ko.learning.algorithms.build_scaffold(model, optax.sgd(0.1), num_clients=2, batch_size=1)
      >>> str(process.client_state_type)
      '<control=float32>'
      >>> clients = [[{"x": 1.0, "y": 0.0}] * 9, [{"x": 1.0, "y": 4.0}]]  # the mean loss is least at 2
      >>> state, kept = process.initialize(), [process.initialize_client_state()] * 2
      >>> for _ in range(60):
      ...     state, kept, _ = process.next(state, kept, clients)
      >>> round(float(process.get_model_weights(state).trainable), 3)
      2.0

    References:
      Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020,
      https://arxiv.org/abs/1910.06378, algorithm 1.
    """
    check_num_clients(num_clients)
    optimizer = as_optimizer(client_optimizer)
    plan = BatchPlan(batch_size, epochs, shuffle, take, drop_remainder)

    def train(inputs: ClientInputs) -> Trained:
        control, everyones = inputs.own["control"], inputs.shared

        def correct(gradients: Any, trainable: Any) -> Any:
            del trainable
            return jax.tree.map(lambda g, own, all_: g - own + all_, gradients, control, everyones)

        trained = train_locally(model, optimizer, plan, inputs, correct)
        delta = jax.tree.map(jnp.subtract, inputs.weights.trainable, trained.weights.trainable)
        length = length_of_steps(optimizer, inputs.hparams, plan.num_batches(inputs.data))
        mean_step = divided_by_length(delta, length)
        moved = jax.tree.map(lambda own, all_, g: own - all_ + g, control, everyones, mean_step)
        new_control = where(length > 0, moved, control)
        change = jax.tree.map(jnp.subtract, new_control, control)
        weight = weight_of(ClientWeighting.UNIFORM, plan.num_examples(inputs.data))
        non_trainable = trained.weights.non_trainable
        return Trained(delta, weight, non_trainable, trained.metrics, change, {"control": new_control})

    work = build_training_work(
        model,
        train,
        hparams=initial_hparams(optimizer, model),
        needs_key=plan.shuffle or model.uses_key,
        metrics_aggregator=metrics_aggregator,
        seed=seed,
        shared=_shared_control(model, num_clients, control_aggregator),
        own_fn=lambda: {"control": jax.tree.map(jnp.zeros_like, model.initial_weights.trainable)},
    )
    return compose_averaging(model, work, server_optimizer, model_distributor, as_weighted(model_aggregator))


def check_num_clients(num_clients: Any) -> None:
    """Checks the number of all clients of a federation.

    Raises:
      KoinonValueError: it is not a positive int.
    """
    if not isinstance(num_clients, int) or isinstance(num_clients, bool) or num_clients < 1:
        raise KoinonValueError(
            "`num_clients` must be a positive int.", found=repr(num_clients), hint="pass the size of the population"
        )


def _shared_control(
    model: FunctionalModel, num_clients: int, aggregator: UnweightedAggregationFactory | None
) -> Shared:
    """The server's control variate, which moves by the changes of the clients'."""
    control_type = model.weights_type["trainable"]
    assert isinstance(control_type, TensorType | StructType)
    aggregation = (SumFactory() if aggregator is None else aggregator).create(control_type)

    @federated_computation
    def initialize() -> Any:
        zeros = federated_eval(lambda: jax.tree.map(jnp.zeros_like, model.initial_weights.trainable), SERVER)
        return federated_zip({"aggregator": aggregation.initialize(), "control": zeros})

    def move(control: Any, changes: Any) -> Any:
        moved = jax.tree.map(lambda c, change: c + change / num_clients, control, changes)
        return where(all_finite(changes), moved, control)

    def update(state: Any, outputs: Any) -> tuple[Any, dict[str, Any]]:
        summed = aggregation.next(state.shared["aggregator"], outputs.shared)
        control = federated_map(move, (state.shared["control"], summed.result))
        new = federated_zip({"aggregator": summed.state, "control": control})
        return new, {"control_aggregator": summed.measurements}

    return Shared(initialize, lambda shared: shared["control"], update)
