"""Error feedback: what compression leaves out of a client's update, the client keeps and adds to its next one."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators import (
    Compressor,
    EncodedSumFactory,
    MeanFactory,
    WeightedAggregationFactory,
    excluding_non_finite_factory,
)
from koinon.aggregators._compressor import check_compressor
from koinon.aggregators._encoded_sum import LeafCodec
from koinon.aggregators._factory import ValueType, check_floats, prints_as_called
from koinon.aggregators._norms import all_finite
from koinon.computation import (
    federated_aggregate,
    federated_computation,
    federated_eval,
    federated_map,
    federated_split_key,
    federated_value,
    federated_zip,
    jax_computation,
)
from koinon.learning._client_work import ClientResult, ClientStateWorkOutput, ClientWorkProcess
from koinon.learning._local_training import where
from koinon.learning._training_work import result_types
from koinon.templates import AggregationProcess, MeasuredProcessOutput
from koinon.templates._signature import arguments_of
from koinon.types import SERVER, StructType, at_clients, at_server, register_container, strip_placement, to_type


class ErrorFeedbackState(NamedTuple):
    """The state of a client work with error feedback.

    Attributes:
      work: the state of the client work without it.
      key: a PRNG key, of which every client of every round has one of its own; `()` if the compressor draws nothing.
    """

    work: Any
    key: Any


class ErrorFeedbackClientState(NamedTuple):
    """What a client keeps.

    Attributes:
      error: the sum of all that it meant to send and did not, of the type of an update.
      work: what it keeps for the client work without error feedback; `()` if nothing.
    """

    error: Any
    work: Any


register_container("koinon.ErrorFeedbackState", ErrorFeedbackState)
register_container("koinon.ErrorFeedbackClientState", ErrorFeedbackClientState)


@final
class ErrorFeedbackFactory(WeightedAggregationFactory):
    """What `error_feedback_aggregator` returns; algorithms recognize it, and give it client state."""

    def __init__(self, compressor: Compressor, threshold: int, seed: int) -> None:
        self._sum = EncodedSumFactory(compressor, threshold, seed)
        self.compressor = compressor
        self.threshold = threshold
        self.seed = seed

    def create(self, value_type: ValueType, weight_type: ValueType) -> AggregationProcess:
        """The mean of compressed values, without feedback, since an aggregation has no state at the clients."""
        mean = MeanFactory(self._sum, no_nan_division=True)
        return excluding_non_finite_factory(mean).create(value_type, weight_type)


@prints_as_called
def error_feedback_aggregator(compressor: Compressor, *, threshold: int = 0, seed: int = 0) -> ErrorFeedbackFactory:
    """The weighted mean of compressed updates, where each client makes up for what it could not send.

        e_k = 0 for each client k, kept by the client from round to round
        for each round, with the clients k of its cohort and their updates u_k and weights w_k:
            k sends m_k = encode(u_k + e_k), and keeps  e_k <- u_k + e_k - decode(m_k)
            update = sum_k w_k decode(m_k) / sum_k w_k

    So nothing is lost, only late, and a biased compressor such as `TopKSparsifier` leads where no compression does.

    It is passed as `model_aggregator` to an algorithm that takes a weighted one. The learning process then has a client
    state, `ErrorFeedbackClientState`: `learning.programs.train` keeps the states of the clients, or see
    `koinon.program.ClientStateStore`. A client of weight 0, or whose update is not finite, sends nothing and keeps
    what it had. The measurements of the aggregator are `bytes_per_client`, `uncompressed_bytes_per_client` and
    `non_finite_clients`, as of `koinon.aggregators.EncodedSumFactory`. Elsewhere it is a mean without feedback.

    Args:
      compressor: how a leaf is sent; one with `allows_error_feedback`.
      threshold: leaves of at most so many elements are sent as they are.
      seed: where the randomness of the compressor begins.

    Raises:
      TypeError: if the compressor is none, or the seed no int.
      ValueError: if the compressor has errors that would grow, or the threshold is negative.

    References:
      Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML 2019.
      https://arxiv.org/abs/1901.09847

    Example:
      >>> import jax.numpy as jnp, koinon as ko, optax
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: x @ w, jnp.zeros(4),
      ...     example_spec={"x": (jnp.float32, (4,)), "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> process = ko.learning.algorithms.build_weighted_fed_avg(
      ...     model, optax.sgd(0.1), batch_size=1,
      ...     model_aggregator=ko.learning.error_feedback_aggregator(ko.aggregators.TopKSparsifier(0.25)),
      ... )
      >>> str(process.client_state_type)
      '<error=float32[4],work=<>>'
      >>> data = [[{"x": jnp.array([1.0, 2.0, 0.0, 0.0]), "y": 10.0}]]
      >>> state, kept, metrics = process.next(process.initialize(), [process.initialize_client_state()], data)
      >>> process.get_model_weights(state).trainable.tolist(), kept[0].error.tolist()  # the gradient is -20 x
      ([0.0, 4.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0])
      >>> float(metrics["aggregator"]["bytes_per_client"])
      6.0
    """
    check_compressor(compressor)
    if not compressor.allows_error_feedback:
        raise KoinonValueError(
            "Error feedback needs a compressor whose errors stay bounded when they are added up.",
            expected="a compressor with `allows_error_feedback`",
            found=repr(compressor),
            hint="such as `TopKSparsifier(0.01)`, or `RandomKSparsifier(0.01, unbiased=False)`",
        )
    return ErrorFeedbackFactory(compressor, threshold, seed)


def add_error_feedback(
    client_work: ClientWorkProcess, feedback: ErrorFeedbackFactory
) -> tuple[ClientWorkProcess, WeightedAggregationFactory]:
    """A client work that sends compressed updates, and the mean that reads them.

    Args:
      client_work: its updates are made of floats.
      feedback: what `error_feedback_aggregator` returned.

    Returns:
      The client work, with a client state, and the factory of the aggregation for the types of its results.

    Raises:
      TypeError: if an argument is of another class, or an update has a leaf that is no float.
    """
    if not isinstance(client_work, ClientWorkProcess) or not isinstance(feedback, ErrorFeedbackFactory):
        raise KoinonTypeError(
            "Error feedback is added to a client work, as an error feedback aggregator says.",
            expected="ClientWorkProcess, ErrorFeedbackFactory",
            found=f"{type(client_work).__qualname__}, {type(feedback).__qualname__}",
            hint="add_error_feedback(client_work, ko.learning.error_feedback_aggregator(compressor))",
        )
    update_type, _ = result_types(client_work)
    check_floats(update_type, "Error feedback")
    codec = LeafCodec(feedback.compressor, feedback.threshold, update_type)
    return _compressing_work(client_work, codec, feedback), _MessageMeanFactory(codec)


def _compressing_work(
    client_work: ClientWorkProcess, codec: LeafCodec, feedback: ErrorFeedbackFactory
) -> ClientWorkProcess:
    needs_key, seed = feedback.compressor.needs_key, feedback.seed
    _, weights_type, *_, data_type = arguments_of(client_work.next.type_signature)
    initialize_own = client_work.initialize_client_state

    @jax_computation
    def error_of_new_client() -> Any:
        return codec.zeros()

    @federated_computation
    def client_state_fn() -> Any:
        return ErrorFeedbackClientState(error_of_new_client(), () if initialize_own is None else initialize_own())

    def send(result: ClientResult, error: Any, key: Any) -> tuple[ClientResult, Any]:
        corrected = jax.tree.map(jnp.add, result.update, error)
        messages = codec.encode(corrected, key)
        left = jax.tree.map(jnp.subtract, corrected, codec.decode(messages))
        is_sent = (result.update_weight > 0) & all_finite((left, result.update_weight))
        weight = jnp.where(is_sent, result.update_weight, jnp.zeros_like(result.update_weight))
        return ClientResult(messages, weight), where(is_sent, left, error)

    @federated_computation
    def initialize_fn() -> Any:
        key = federated_eval(lambda: jax.random.key(seed) if needs_key else (), SERVER)
        return federated_zip(ErrorFeedbackState(client_work.initialize(), key))

    state_type = initialize_fn.type_signature.result
    own_type = client_state_fn.type_signature.result

    @federated_computation(state_type, weights_type, at_clients(own_type), data_type)
    def next_fn(state: Any, weights: Any, client_state: Any, data: Any) -> Any:
        own = () if initialize_own is None else (client_state.work,)
        worked = client_work.next(state.work, weights, *own, data)
        key = state.key
        if needs_key:
            key, round_key = federated_map(lambda key: tuple(jax.random.split(key)), key)
            sent = federated_map(send, (worked.result, client_state.error, federated_split_key(round_key)))
        else:
            send_without_key = lambda result, error: send(result, error, None)  # noqa: E731 - a computation's function
            sent = federated_map(send_without_key, (worked.result, client_state.error))
        kept = ErrorFeedbackClientState(sent[1], client_state.work if initialize_own is None else worked.client_state)
        new_state = federated_zip(ErrorFeedbackState(worked.state, key))
        return ClientStateWorkOutput(new_state, federated_zip(kept), sent[0], worked.measurements)

    member = strip_placement(state_type)
    assert isinstance(member, StructType)

    @federated_computation(member)
    def get_hparams(state: Any) -> Any:
        return client_work.get_hparams(state.work)

    @federated_computation(member, get_hparams.type_signature.result)
    def set_hparams(state: Any, hparams: Any) -> Any:
        return ErrorFeedbackState(client_work.set_hparams(state.work, hparams), state.key)

    return ClientWorkProcess(
        initialize_fn,
        next_fn,
        get_hparams_fn=get_hparams,
        set_hparams_fn=set_hparams,
        client_state_fn=client_state_fn,
        parts={"work": client_work},
    )


@final
class _MessageMeanFactory(WeightedAggregationFactory):
    """The weighted mean of what messages stand for, zeros where there is no weight."""

    def __init__(self, codec: LeafCodec) -> None:
        self._codec = codec

    def create(self, value_type: ValueType, weight_type: ValueType) -> AggregationProcess:
        codec = self._codec

        def accumulate(total: Any, client: Any) -> Any:
            messages, weight = client
            value = codec.decode(messages)
            is_kept = all_finite((value, weight))
            weight = jnp.where(is_kept, weight, jnp.zeros_like(weight)).astype(jnp.float32)
            summed = jax.tree.map(
                lambda sum_, leaf: sum_ + jnp.where(is_kept, leaf, 0) * weight.astype(leaf.dtype), total["sum"], value
            )
            return {
                "sum": summed,
                "weight": total["weight"] + weight,
                "non_finite": total["non_finite"] + jnp.where(is_kept, 0, 1),
            }

        def report(total: Any) -> tuple[Any, jax.Array]:
            divisor = jnp.where(total["weight"] > 0, total["weight"], 1.0)
            return jax.tree.map(lambda leaf: leaf / divisor.astype(leaf.dtype), total["sum"]), total["non_finite"]

        @jax_computation
        def zero() -> Any:
            return {"sum": codec.zeros(), "weight": jnp.float32(0.0), "non_finite": jnp.int32(0)}

        def merge(total: Any, other: Any) -> Any:
            return jax.tree.map(jnp.add, total, other)

        @federated_computation
        def initialize_fn() -> Any:
            return federated_value((), SERVER)

        @federated_computation(at_server(to_type(())), at_clients(value_type), at_clients(weight_type))
        def next_fn(state: Any, value: Any, weight: Any) -> Any:
            mean, non_finite = federated_aggregate(federated_zip((value, weight)), zero(), accumulate, merge, report)
            measurements = codec.measurements()
            measurements["non_finite_clients"] = non_finite
            return MeasuredProcessOutput(state, mean, federated_zip(measurements))

        return AggregationProcess(initialize_fn, next_fn, allow_type_change=True)
