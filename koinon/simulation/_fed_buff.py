"""FedBuff: a learning process whose server steps with every few reports, however old the models behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.computation import (
    Computation,
    federated_broadcast,
    federated_computation,
    federated_map,
    federated_zip,
    jax_computation,
)
from koinon.learning.templates import ClientResult, LearningProcess, LearningProcessOutput
from koinon.simulation._buffered import Buffer, BufferedSchedule
from koinon.simulation._client_data import FederatedDataset
from koinon.templates import IterativeProcess
from koinon.types import StructType, TensorType, Type, at_clients, at_server, strip_placement


class FedBuffState(NamedTuple):
    """The state of a buffered asynchronous process.

    Attributes:
      learning: the state of the learning process, with the newest model.
      history: the models that clients may still be at work with: leaves `[max_staleness + 1, ...]`, a ring.
      position: int32, where the newest model is in the ring.
    """

    learning: Any
    history: Any
    position: Any


class FedBuffStep(NamedTuple):
    """A step of `run_fed_buff`.

    Attributes:
      state: the state after it.
      metrics: what the learning process has to say about it.
      buffer: what arrived, and when.
    """

    state: FedBuffState
    metrics: Any
    buffer: Buffer


def inverse_square_root(staleness: Any) -> Any:
    """`1 / sqrt(1 + staleness)`, how Nguyen et al. weigh an update."""
    return 1.0 / jnp.sqrt(1.0 + staleness)


@final
class FedBuffProcess(IterativeProcess):
    """A learning process for clients that began with models of different age; `build_fed_buff_process` makes it.

    Type: `next (<S@SERVER,{int32}@CLIENTS,{D*}@CLIENTS> -> <state=S@SERVER,metrics=M@SERVER>)`, where the second
    argument is the staleness of each client.

    Attributes:
      max_staleness: the greatest staleness that a client may have.
    """

    def __init__(
        self, initialize_fn: Computation, next_fn: Computation, get_model_weights: Computation, max_staleness: int
    ) -> None:
        super().__init__(initialize_fn, next_fn, next_is_multi_arg=True)
        self.max_staleness = max_staleness
        self._get_model_weights = get_model_weights

    @property
    def get_model_weights(self) -> Computation:
        """The computation of the newest model's weights from the unplaced state."""
        return self._get_model_weights


def build_fed_buff_process(
    process: LearningProcess,
    *,
    max_staleness: int,
    staleness_weight: Callable[[Any], Any] = inverse_square_root,
) -> FedBuffProcess:
    """Makes a learning process asynchronous, with a buffer.

        for each buffer, with the updates u_k of clients that began s_k steps ago:
            u_k    = client work from the model of s_k steps ago
            delta  = aggregate of staleness_weight(s_k) u_k
            model <- finalizer step along delta

    With a mean over uniform weights, and clients and a server that do SGD, this is FedBuff. Any client work,
    aggregator and finalizer will do; the distributor is not used, since clients have their models from earlier steps.

    Args:
      process: a composed learning process, whose clients keep no state.
      max_staleness: the greatest staleness; the state holds one model more than that.
      staleness_weight: int32 to a float by which an update is multiplied, a function of JAX; 1 for staleness 0.

    Raises:
      KoinonTypeError: if `process` is not composed of the four pieces, or its clients keep a state.
      KoinonValueError: if `max_staleness` is negative.

    Example:
      >>> import jax.numpy as jnp, koinon as ko, optax
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w + 0 * x, jnp.float32(0.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> fed_avg = ko.learning.algorithms.build_unweighted_fed_avg(model, optax.sgd(0.5), batch_size=1)
      >>> process = build_fed_buff_process(fed_avg, max_staleness=3)
      >>> client = [{"x": 0.0, "y": 4.0}]  # one step leads from 0 to 4, by an update of -4
      >>> state, _ = process.next(process.initialize(), [0], [client])
      >>> state, _ = process.next(state, [1], [client])  # the same update again, times 1 / sqrt(2)
      >>> round(float(process.get_model_weights(state).trainable), 4)  # 4 + 4 / sqrt(2)
      6.8284

    References:
      Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
      https://arxiv.org/abs/2106.06639, algorithms 1 and 2, and the staleness scaling of section 5.
    """
    _check(process, max_staleness)
    client_work, aggregator, finalizer = (process.parts[name] for name in ("client_work", "aggregator", "finalizer"))
    learning_type = strip_placement(process.state_type)
    assert isinstance(learning_type, StructType)
    weights_type = learning_type["global_model_weights"]

    @jax_computation(learning_type)
    def start(learning: Any) -> FedBuffState:
        history = jax.tree.map(lambda leaf: jnp.stack([leaf] * (max_staleness + 1)), learning.global_model_weights)
        return FedBuffState(learning, history, jnp.int32(0))

    @federated_computation
    def initialize_fn() -> Any:
        return federated_map(start, process.initialize())

    state_type = strip_placement(initialize_fn.type_signature.result)
    assert isinstance(state_type, StructType)

    @jax_computation(state_type["history"], TensorType(jnp.int32), TensorType(jnp.int32))
    def model_of(history: Any, position: Any, staleness: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[(position - staleness) % (max_staleness + 1)], history)

    @jax_computation(_client_result_type(client_work), TensorType(jnp.int32))
    def discount(result: ClientResult, staleness: Any) -> ClientResult:
        weight = jnp.asarray(staleness_weight(staleness))
        return result._replace(update=jax.tree.map(lambda leaf: leaf * weight.astype(leaf.dtype), result.update))

    @jax_computation(state_type["history"], TensorType(jnp.int32), weights_type)
    def remember(history: Any, position: Any, weights: Any) -> tuple[Any, Any]:
        position = (position + 1) % (max_staleness + 1)
        return jax.tree.map(lambda leaf, new: leaf.at[position].set(new), history, weights), position

    data_type = process.next.type_signature.parameter[1]  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]

    @federated_computation(at_server(state_type), at_clients(jnp.int32), data_type)
    def next_fn(state: Any, staleness: Any, client_data: Any) -> Any:
        learning = state.learning
        models = (federated_broadcast(state.history), federated_broadcast(state.position), staleness)
        worked = client_work.next(learning.client_work, federated_map(model_of, models), client_data)
        result = federated_map(discount, (worked.result, staleness))
        aggregate = aggregator.next(learning.aggregator, result.update, result.update_weight)
        finalized = finalizer.next(learning.finalizer, learning.global_model_weights, aggregate.result)
        new_learning = _replace(
            learning,
            global_model_weights=finalized.result,
            client_work=worked.state,
            aggregator=aggregate.state,
            finalizer=finalized.state,
        )
        history, position = federated_map(remember, (state.history, state.position, finalized.result))
        metrics = {
            "client_work": worked.measurements,
            "aggregator": aggregate.measurements,
            "finalizer": finalized.measurements,
        }
        new_state = FedBuffState(federated_zip(new_learning), history, position)
        return LearningProcessOutput(federated_zip(new_state), federated_zip(metrics))

    @federated_computation(state_type)
    def get_model_weights(state: Any) -> Any:
        return state.learning.global_model_weights

    return FedBuffProcess(initialize_fn, next_fn, get_model_weights, max_staleness)


def run_fed_buff(
    process: FedBuffProcess,
    data: FederatedDataset,
    schedule: BufferedSchedule,
    steps: int,
    *,
    state: Any = None,
    start: int = 0,
) -> Iterator[FedBuffStep]:
    """Yields the steps of a simulation of buffered asynchronous learning; the next cohort is prefetched meanwhile.

    Args:
      process: the process; its `max_staleness` must be that of the schedule or greater.
      data: the clients' examples.
      schedule: who reports when.
      steps: the number of the step to stop before.
      state: the state before step `start`; None for the initial one.
      start: the first step, where a run goes on that was interrupted.

    Raises:
      KoinonValueError: if a client is staler than the process allows.
    """
    state = process.initialize() if state is None else state
    buffers = schedule.buffers(steps, start)
    cohorts = data.prefetch(buffer.client_ids for buffer in schedule.buffers(steps, start))
    for buffer, cohort in zip(buffers, cohorts, strict=True):
        if buffer.staleness.max() > process.max_staleness:
            raise KoinonValueError(
                "A client reports that began with a model that the process no longer has.",
                expected=f"a staleness of {process.max_staleness} at most",
                found=str(buffer.staleness.max()),
                hint="give the schedule the same `max_staleness`, or the process a greater one",
            )
        output = process.next(state, buffer.staleness.tolist(), cohort)
        state = output.state
        yield FedBuffStep(state, output.metrics, buffer)


def _client_result_type(client_work: IterativeProcess) -> Type:
    output = client_work.next.type_signature.result
    assert isinstance(output, StructType)
    return strip_placement(output["result"])


def _replace(state: Any, **changes: Any) -> Any:
    """A traced struct with other fields, in its container."""
    container = state.type_signature.member.container
    return container(**({name: getattr(state, name) for name in container._fields} | changes))


def _check(process: LearningProcess, max_staleness: int) -> None:
    pieces = {"client_work", "aggregator", "finalizer"}
    if not isinstance(process, LearningProcess) or not pieces <= process.parts.keys():
        raise KoinonTypeError(
            "Only a learning process whose pieces are known can be made asynchronous.",
            expected="what `compose_learning_process` returns, such as federated averaging",
            found=f"{type(process).__name__} of {sorted(getattr(process, 'parts', {}))}",
        )
    if process.client_state_type is not None:
        raise KoinonTypeError("A learning process whose clients keep a state cannot be made asynchronous.")
    if max_staleness < 0:
        raise KoinonValueError("The greatest staleness must not be negative.", found=str(max_staleness))
