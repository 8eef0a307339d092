"""Mime Lite: the clients use the server's momentum, which only the server changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from koinon._errors import UnknownHparamError
from koinon.aggregators import MeanFactory, UnweightedAggregationFactory, WeightedAggregationFactory
from koinon.aggregators._norms import all_finite
from koinon.computation import (
    federated_computation,
    federated_eval,
    federated_map,
    federated_value,
    federated_zip,
    jax_computation,
)
from koinon.learning._averaging import as_unweighted, as_weighted, compose_averaging
from koinon.learning._client_weighting import ClientWeighting, Weighting, check_weighting, weight_of
from koinon.learning._distribute import DistributionProcess
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._local_training import BatchPlan, full_gradient, strong_types, train_on_batches, where
from koinon.learning._metrics_aggregation import MetricsAggregator
from koinon.learning._optimizer import LEARNING_RATE_KEY, Optimizer, as_optimizer
from koinon.learning._process import LearningProcess
from koinon.learning._training_work import (
    ClientInputs,
    Shared,
    Trained,
    build_training_work,
    initial_hparams,
    keys_of_client,
)
from koinon.types import SERVER, StructType, TensorType


def build_mime_lite(
    model: FunctionalModel,
    base_optimizer: Any,
    server_optimizer: Any = None,
    *,
    batch_size: int,
    learning_rate_fn: Callable[[Any], Any] | None = None,
    client_weighting: Weighting = ClientWeighting.NUM_EXAMPLES,
    epochs: int = 1,
    shuffle: bool = False,
    take: int | None = None,
    drop_remainder: bool = False,
    model_distributor: DistributionProcess | None = None,
    model_aggregator: Any = None,
    full_gradient_aggregator: Any = None,
    metrics_aggregator: MetricsAggregator | None = None,
    seed: int = 0,
) -> LearningProcess:
    """Mime Lite: clients step with the optimizer state of the server, which stays fixed while they do.

        for each round, with the clients k of its cohort, each of them n_k examples, and the optimizer's state s:
            w_k = w
            for each batch b of k:  w_k <- base optimizer step along the gradient of b at w_k, with s held fixed
            g_k = gradient of the mean loss over the examples of k at w
            w  <- server optimizer step along sum_k n_k (w - w_k) / sum_k n_k
            s  <- base optimizer's state after the gradient sum_k n_k g_k / sum_k n_k

    So momentum and adaptive scales are those of the whole federation, and do not drift with a client.

    Type: `(<S@SERVER,{D*}@CLIENTS> -> <state=S@SERVER,metrics=M@SERVER>)`, where D is the type of an example.

    Args:
      model: the model.
      base_optimizer: a koinon `Optimizer` or an optax transformation, with momentum or another state of gradients. Its
        state must depend on gradients alone, not on the weights.
      server_optimizer: an optimizer; SGD with learning rate 1, as in the paper, if None.
      batch_size: the number of examples of a batch.
      learning_rate_fn: traced by JAX, from the number of a round, int32 from 0, to the learning rate of the base
        optimizer, which then must have `learning_rate` among its hyperparameters; None to leave it alone.
      client_weighting: how much a client counts; by default as often as it has examples.
      epochs: how often a client goes through its examples in a round.
      shuffle: whether each epoch of each client is in a random order of its own.
      take: the greatest number of examples of an epoch; None for all.
      drop_remainder: whether partial batches are left out.
      model_distributor: how the weights reach the clients; a broadcast if None.
      model_aggregator: a weighted or an unweighted factory; `aggregators.MeanFactory()` if None.
      full_gradient_aggregator: likewise, for the gradients.
      metrics_aggregator: makes the aggregation of metrics of their finalizers; `metrics.sum_then_finalize` if None.
      seed: where the randomness of shuffling and of the model begins.

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: a size is not a positive int.
      UnknownHparamError: there is a schedule, and the base optimizer has no `learning_rate`.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w + 0 * x, jnp.float32(0.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> momentum = ko.learning.optimizers.build_sgdm(0.1, momentum=0.5)
      >>> process = ko.learning.algorithms.build_mime_lite(model, momentum, batch_size=1)
      >>> state = process.initialize()
      >>> for _ in range(30):
      ...     state, _ = process.next(state, [[{"x": 0.0, "y": 1.0}], [{"x": 0.0, "y": 3.0}]])
      >>> round(float(process.get_model_weights(state).trainable), 3)
      2.0

    References:
      Karimireddy et al., Breaking the Centralized Barrier for Cross-Device Federated Learning, NeurIPS 2021,
      https://arxiv.org/abs/2008.03606, algorithm 1 (MimeLite).
    """
    base = as_optimizer(base_optimizer)
    check_weighting(client_weighting)
    plan = BatchPlan(batch_size, epochs, shuffle, take, drop_remainder)
    one_epoch = BatchPlan(batch_size, take=take, drop_remainder=drop_remainder)

    def train(inputs: ClientInputs) -> Trained:
        order_key, model_key, _ = keys_of_client(inputs.key)
        initial, batches = inputs.weights, plan.batches(inputs.data, order_key)
        fixed_state = base.set_hparams(inputs.shared.optimizer, {**inputs.hparams, **inputs.shared.scheduled})
        trained = train_on_batches(model, _FixedState(base), initial, fixed_state, batches, model_key)
        gradients = full_gradient(model, initial, one_epoch.batches(inputs.data, None), model_key).gradients
        delta = jax.tree.map(jnp.subtract, initial.trainable, trained.weights.trainable)
        weight = weight_of(client_weighting, plan.num_examples(inputs.data))
        return Trained(delta, weight, trained.weights.non_trainable, trained.metrics, gradients)

    hparams = initial_hparams(base, model)
    if learning_rate_fn is not None and hparams.pop(LEARNING_RATE_KEY, None) is None:
        raise UnknownHparamError(
            f"A base optimizer with a schedule must keep `{LEARNING_RATE_KEY}` among its hyperparameters.",
            found=", ".join(hparams) or "no hyperparameters",
            hint="wrap an optax optimizer as optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)",
        )
    work = build_training_work(
        model,
        train,
        hparams=hparams,
        needs_key=plan.shuffle or model.uses_key,
        metrics_aggregator=metrics_aggregator,
        seed=seed,
        shared=_shared_optimizer(model, base, learning_rate_fn, as_weighted(full_gradient_aggregator)),
    )
    return compose_averaging(model, work, server_optimizer, model_distributor, as_weighted(model_aggregator))


class _SharedState(NamedTuple):
    """What the server keeps for the base optimizer: its state, that of the gradients' aggregation, and the round."""

    optimizer: Any
    aggregator: Any
    round_num: Any


class _Told(NamedTuple):
    """What the server tells: the state of the base optimizer, and the hyperparameters that follow a schedule."""

    optimizer: Any
    scheduled: dict[str, Any]


class _FixedState(Optimizer):
    """An optimizer whose state stays as it is, whatever gradients come."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def initialize(self, specs: Any) -> Any:
        return self._optimizer.initialize(specs)

    def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
        return state, self._optimizer.next(state, weights, gradients)[1]


def _shared_optimizer(
    model: FunctionalModel,
    base: Optimizer,
    learning_rate_fn: Callable[[Any], Any] | None,
    aggregator: WeightedAggregationFactory | None,
) -> Shared:
    """The base optimizer at the server, which learns from the clients' gradients at the server's weights."""
    gradient_type = model.weights_type["trainable"]
    assert isinstance(gradient_type, TensorType | StructType)
    aggregation = (MeanFactory() if aggregator is None else aggregator).create(gradient_type, TensorType(jnp.float32))

    @jax_computation
    def initial_optimizer() -> Any:
        return strong_types(base.initialize(model.initial_weights.trainable))

    @federated_computation
    def initialize() -> Any:
        optimizer, round_num = federated_eval(initial_optimizer, SERVER), federated_value(jnp.int32(0), SERVER)
        return federated_zip(_SharedState(optimizer, aggregation.initialize(), round_num))

    def scheduled(round_num: Any) -> dict[str, Any]:
        return {} if learning_rate_fn is None else {LEARNING_RATE_KEY: learning_rate_fn(round_num)}

    def tell(shared: Any) -> Any:
        return federated_map(
            lambda optimizer, round_num: _Told(optimizer, scheduled(round_num)), (shared.optimizer, shared.round_num)
        )

    def learn(state: Any, hparams: Any, round_num: Any, gradients: Any) -> tuple[Any, Any]:
        before = base.set_hparams(state, {**hparams, **scheduled(round_num)})
        # A state of gradients alone does not depend on the weights, and those of the server are not known here.
        after, _ = base.next(before, jax.tree.map(jnp.zeros_like, gradients), gradients)
        return where(all_finite(gradients), strong_types(after), state), round_num + 1

    def update(state: Any, outputs: Any) -> tuple[Any, dict[str, Any]]:
        shared = state.shared
        mean = aggregation.next(shared.aggregator, outputs.shared, outputs.result.update_weight)
        learned = federated_map(learn, (shared.optimizer, state.hparams, shared.round_num, mean.result))
        new = federated_zip(_SharedState(learned[0], mean.state, learned[1]))
        return new, {"full_gradient_aggregator": mean.measurements}

    return Shared(initialize, tell, update)


def build_weighted_mime_lite(
    model: FunctionalModel, base_optimizer: Any, server_optimizer: Any = None, **options: Any
) -> LearningProcess:
    """`build_mime_lite` by the name that it has in TensorFlow Federated."""
    return build_mime_lite(model, base_optimizer, server_optimizer, **options)


def build_unweighted_mime_lite(
    model: FunctionalModel,
    base_optimizer: Any,
    server_optimizer: Any = None,
    *,
    model_aggregator: UnweightedAggregationFactory | None = None,
    full_gradient_aggregator: UnweightedAggregationFactory | None = None,
    **options: Any,
) -> LearningProcess:
    """`build_mime_lite` in which every client counts the same, with unweighted aggregators."""
    return build_mime_lite(
        model,
        base_optimizer,
        server_optimizer,
        model_aggregator=as_unweighted(model_aggregator),
        full_gradient_aggregator=as_unweighted(full_gradient_aggregator),
        **options,
    )


def build_mime_lite_with_optimizer_schedule(
    model: FunctionalModel,
    learning_rate_fn: Callable[[Any], Any],
    base_optimizer: Any,
    server_optimizer: Any = None,
    **options: Any,
) -> LearningProcess:
    """`build_mime_lite` with a schedule, by the name that it has in TensorFlow Federated."""
    return build_mime_lite(model, base_optimizer, server_optimizer, learning_rate_fn=learning_rate_fn, **options)
