"""A learning process from its four pieces."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from koinon._errors import KoinonTypeError, TypeNotAssignableError
from koinon.computation import Computation, federated_computation, federated_eval, federated_zip
from koinon.learning._client_work import ClientWorkProcess
from koinon.learning._distribute import DistributionProcess
from koinon.learning._finalize import FinalizerProcess
from koinon.learning._process import ClientStateLearningOutput, LearningProcess, LearningProcessOutput
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._checks import check_computation, mismatch
from koinon.templates._signature import arguments_of, output_of
from koinon.types import (
    SERVER,
    FederatedType,
    StructType,
    Type,
    at_clients,
    at_server,
    register_container,
    strip_placement,
)


class LearningAlgorithmState(NamedTuple):
    """The state of a composed learning process.

    Attributes:
      global_model_weights: the weights of the model that is trained.
      distributor: the state of the distributor.
      client_work: the state of the client work.
      aggregator: the state of the aggregator.
      finalizer: the state of the finalizer.
    """

    global_model_weights: Any
    distributor: Any
    client_work: Any
    aggregator: Any
    finalizer: Any


register_container("koinon.LearningAlgorithmState", LearningAlgorithmState)


def compose_learning_process(
    initial_model_weights_fn: Computation,
    distributor: DistributionProcess,
    client_work: ClientWorkProcess,
    aggregator: AggregationProcess,
    finalizer: FinalizerProcess,
) -> LearningProcess:
    """The learning process whose round is: distribute the weights, work at the clients, aggregate, finalize.

        at_clients = distributor(weights)
        update, update_weight = client_work(at_clients, data)
        weights = finalizer(weights, aggregator(update, update_weight))

    Type: `(<LearningAlgorithmState@SERVER,{D*}@CLIENTS> -> <state=LearningAlgorithmState@SERVER,metrics=M@SERVER>)`

    The metrics are the measurements of the four pieces, `<distributor,client_work,aggregator,finalizer>`; the
    hyperparameters those of the client work and of the finalizer, `<client_work,finalizer>`. If the clients of the
    client work keep a state, those of the process do.

    Args:
      initial_model_weights_fn: a `Computation` `( -> W)` of the unplaced first weights.
      distributor: takes `W@SERVER`.
      client_work: takes what the distributor returns, and data at the clients.
      aggregator: a weighted aggregation of the updates of the client work.
      finalizer: takes `W@SERVER` and what the aggregator returns.

    Raises:
      TypeError: if a piece is not of its class, the first weights take a parameter or are placed, or the aggregator
        is not weighted.
      TypeNotAssignableError: if two pieces do not fit together; the message says which, and where their types differ.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> from koinon.learning import templates
      >>> from koinon.types import SequenceType, TensorType, at_clients, at_server, strip_placement
      >>> tensor = TensorType(jnp.float32)
      >>> @ko.federated_computation
      ... def no_state():
      ...     return ko.federated_value((), ko.SERVER)
      >>> def mean_of(weights, data):
      ...     total = data.reduce(jnp.float32(0.0), lambda carry, x: carry + x)
      ...     count = data.length.astype(jnp.float32)
      ...     return templates.ClientResult(weights - total / count, count)
      >>> data_type = at_clients(SequenceType(tensor))
      >>> @ko.federated_computation(no_state.type_signature.result, at_clients(tensor), data_type)
      ... def work(state, weights, data):
      ...     result = ko.federated_map(mean_of, (weights, data))
      ...     return ko.templates.MeasuredProcessOutput(state, result, ko.federated_value((), ko.SERVER))
      >>> @ko.federated_computation(no_state.type_signature.result, at_server(tensor), at_server(tensor))
      ... def subtract(state, weights, update):
      ...     new_weights = ko.federated_map(lambda w, u: w - u, (weights, update))
      ...     return ko.templates.MeasuredProcessOutput(state, new_weights, ko.federated_value((), ko.SERVER))
      >>> process = templates.compose_learning_process(
      ...     ko.jax_computation(lambda: jnp.float32(10.0)),
      ...     templates.build_broadcast_process(tensor),
      ...     templates.ClientWorkProcess(no_state, work),
      ...     ko.aggregators.MeanFactory().create(tensor, tensor),
      ...     templates.FinalizerProcess(no_state, subtract),
      ... )
      >>> state = process.next(process.initialize(), [[1.0, 2.0], [6.0]]).state
      >>> float(process.get_model_weights(state))
      3.0
    """
    weights_type = _check_initial_weights(initial_model_weights_fn)
    pieces = {"distributor": distributor, "client_work": client_work, "aggregator": aggregator, "finalizer": finalizer}
    _check_pieces(distributor, client_work, aggregator, finalizer)
    _check_fit(weights_type, distributor, client_work, aggregator, finalizer)

    @federated_computation
    def initialize_fn() -> Any:
        return federated_zip(
            LearningAlgorithmState(
                federated_eval(initial_model_weights_fn, SERVER),
                **{name: piece.initialize() for name, piece in pieces.items()},
            )
        )

    state_type = StructType(
        [
            ("global_model_weights", weights_type.member),
            *((name, strip_placement(piece.state_type)) for name, piece in pieces.items()),
        ],
        LearningAlgorithmState,
    )

    def play_round(state: Any, client_data: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        weights = state.global_model_weights
        distributed = distributor.next(state.distributor, weights)
        worked = client_work.next(state.client_work, distributed.result, *client_data)
        aggregate = aggregator.next(state.aggregator, worked.result.update, worked.result.update_weight)
        finalized = finalizer.next(state.finalizer, weights, aggregate.result)
        outputs = (distributed, worked, aggregate, finalized)
        new_state = LearningAlgorithmState(finalized.result, *(output.state for output in outputs))
        metrics = OrderedDict((name, output.measurements) for name, output in zip(pieces, outputs, strict=True))
        return federated_zip(new_state), worked, federated_zip(metrics)

    data_types = arguments_of(client_work.next.type_signature)[2:]
    if client_work.client_state_type is None:

        @federated_computation(at_server(state_type), *data_types)
        def next_fn(state: Any, client_data: Any) -> Any:
            new_state, _, metrics = play_round(state, (client_data,))
            return LearningProcessOutput(new_state, metrics)

    else:

        @federated_computation(at_server(state_type), *data_types)
        def next_fn(state: Any, client_state: Any, client_data: Any) -> Any:
            new_state, worked, metrics = play_round(state, (client_state, client_data))
            return ClientStateLearningOutput(new_state, worked.client_state, metrics)

    get_model_weights, set_model_weights = _model_weights_computations(state_type)
    get_hparams, set_hparams = _hparams_computations(state_type, client_work, finalizer)
    return LearningProcess(
        initialize_fn,
        next_fn,
        get_model_weights,
        set_model_weights,
        get_hparams_fn=get_hparams,
        set_hparams_fn=set_hparams,
        client_state_fn=client_work.initialize_client_state,
        parts=pieces,
    )


def _model_weights_computations(state_type: StructType) -> tuple[Computation, Computation]:
    @federated_computation(state_type)
    def get_model_weights(state: Any) -> Any:
        return state.global_model_weights

    @federated_computation(state_type, state_type["global_model_weights"])
    def set_model_weights(state: Any, weights: Any) -> Any:
        return _replace(state, global_model_weights=weights)

    return get_model_weights, set_model_weights


def _hparams_computations(
    state_type: StructType, client_work: ClientWorkProcess, finalizer: FinalizerProcess
) -> tuple[Computation, Computation]:
    @federated_computation(state_type)
    def get_hparams(state: Any) -> Any:
        return {
            "client_work": client_work.get_hparams(state.client_work),
            "finalizer": finalizer.get_hparams(state.finalizer),
        }

    @federated_computation(state_type, get_hparams.type_signature.result)
    def set_hparams(state: Any, hparams: Any) -> Any:
        return _replace(
            state,
            client_work=client_work.set_hparams(state.client_work, hparams["client_work"]),
            finalizer=finalizer.set_hparams(state.finalizer, hparams["finalizer"]),
        )

    return get_hparams, set_hparams


def _replace(state: Any, **changes: Any) -> LearningAlgorithmState:
    fields = {name: getattr(state, name) for name in LearningAlgorithmState._fields}
    return LearningAlgorithmState(**(fields | changes))


def _check_initial_weights(initial_model_weights_fn: Computation) -> FederatedType:
    """The type of the weights at the server, after checking the computation of the first ones."""
    check_computation(initial_model_weights_fn, "initial_model_weights_fn", "compose_learning_process")
    signature = initial_model_weights_fn.type_signature
    if signature.parameter is not None:
        raise KoinonTypeError(
            "The computation of the first weights must not take a parameter.", expected="( -> W)", found=signature
        )
    if isinstance(signature.result, FederatedType):
        raise KoinonTypeError(
            "The computation of the first weights must return them unplaced.",
            expected="( -> W)",
            found=signature,
            hint="make it a `jax_computation`",
        )
    return at_server(signature.result)


def _check_pieces(distributor: object, client_work: object, aggregator: object, finalizer: object) -> None:
    _check_instance(distributor, DistributionProcess, "distributor")
    _check_instance(client_work, ClientWorkProcess, "client_work")
    _check_instance(aggregator, AggregationProcess, "aggregator")
    if isinstance(aggregator, AggregationProcess) and not aggregator.is_weighted:
        raise KoinonTypeError(
            "The aggregator of a learning process must be weighted.",
            expected="a process whose `next` takes three arguments",
            found=aggregator.next.type_signature,
            hint="wrap its factory in `koinon.aggregators.as_weighted_aggregator`",
        )
    _check_instance(finalizer, FinalizerProcess, "finalizer")


def _check_instance(piece: object, template: type, label: str) -> None:
    if not isinstance(piece, template):
        raise KoinonTypeError(
            f"The {label} of a learning process must be a {template.__name__}.",
            expected=template.__name__,
            found=type(piece).__qualname__,
        )


def _check_fit(
    weights: FederatedType,
    distributor: DistributionProcess,
    client_work: ClientWorkProcess,
    aggregator: AggregationProcess,
    finalizer: FinalizerProcess,
) -> None:
    """Raises TypeNotAssignableError where one piece does not accept what another one returns."""
    sent, work = distributor.next.type_signature, client_work.next.type_signature
    aggregation, final = aggregator.next.type_signature, finalizer.next.type_signature
    client_result = strip_placement(output_of(work, "result"))
    assert isinstance(client_result, StructType)
    _, sent_value = arguments_of(sent)
    _, received, *_ = arguments_of(work)
    _, aggregated, aggregation_weight = arguments_of(aggregation)
    _, finalized, aggregate = arguments_of(final)
    update, weight = (at_clients(client_result[name]) for name in ("update", "update_weight"))
    _check_accepts(sent_value, weights, "distributor", "the model's weights")
    _check_accepts(received, output_of(sent, "result"), "client work", "the result of the distributor")
    _check_accepts(aggregated, update, "aggregator", "the update of the client work")
    _check_accepts(aggregation_weight, weight, "aggregator", "the weight of the client work")
    _check_accepts(finalized, weights, "finalizer", "the model's weights")
    _check_accepts(aggregate, output_of(aggregation, "result"), "finalizer", "the result of the aggregator")
    result = output_of(final, "result")
    if not weights.is_assignable_from(result):
        what = "The finalizer of a learning process must return the model's weights."
        raise mismatch(TypeNotAssignableError, what, weights, result)


def _check_accepts(target: Type, source: Type, piece: str, what: str) -> None:
    if not target.is_assignable_from(source):
        raise mismatch(
            TypeNotAssignableError,
            f"The {piece} of a learning process must accept {what}.",
            target,
            source,
            f"build the {piece} for the type that it is given",
        )
