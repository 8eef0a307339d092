"""Computations of one exchange in the classical forms: map and reduce, or distribute and aggregate.

A form takes a round `(<state@SERVER,{data}@CLIENTS> -> <state@SERVER,...>)` apart into computations that can each be
called, sent elsewhere and put together again. A round that talks to its clients more than once has a plan, and no form.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

from koinon._errors import NotCompilableError
from koinon.compiler._checks import (
    check_aggregate_not_dependent_on_aggregate,
    check_broadcast_not_dependent_on_aggregate,
)
from koinon.compiler._plan import Plan, plan
from koinon.compiler._show import step_texts
from koinon.compiler._split import Splitter
from koinon.computation import (
    Computation,
    Value,
    federated_aggregate,
    federated_broadcast,
    federated_computation,
    federated_map,
    federated_secure_modular_sum,
    federated_secure_sum,
    federated_secure_sum_bitwidth,
    federated_split_key,
    federated_value,
    federated_zip,
)
from koinon.computation import _ir as ir
from koinon.types import (
    CLIENTS,
    SERVER,
    FederatedType,
    FunctionType,
    StructType,
    Type,
    contains_federated_types,
    preorder_types,
)

_SECURE_SUMS = {
    "federated_secure_sum": federated_secure_sum,
    "federated_secure_sum_bitwidth": federated_secure_sum_bitwidth,
    "federated_secure_modular_sum": federated_secure_modular_sum,
}


@dataclasses.dataclass(frozen=True)
class MapReduceForm:
    """A round as functions without placements, all of them computations.

    `S` is the state, `D` the data of a client, `B` what is sent to all clients, `K` the keys of which every client gets
    its own, `W` what a client gives to be aggregated, and `R` the result.

    Attributes:
      type_signature: the type of the round.
      prepare: `(S -> <broadcast=B,keys=K>)`, at the server.
      work: `(<data=D,broadcast=B,keys=K> -> <folded=W,secure=V>)`, at each client.
      zero: `( -> A)`, the accumulator of what is folded in the open.
      accumulate: `(<A,W> -> A)`.
      merge: `(<A,A> -> A)`.
      report: `(A -> F)`.
      secure_operators: the names of the secure sums, in the order of the fields of `V`.
      secure_bounds: `( -> <...>)`, their bit widths, maxima and moduli, in the same order.
      update: `(<state=S,folded=F,secure=V> -> R)`, at the server.
    """

    type_signature: FunctionType
    prepare: Computation
    work: Computation
    zero: Computation
    accumulate: Computation
    merge: Computation
    report: Computation
    secure_operators: tuple[str, ...]
    secure_bounds: Computation
    update: Computation

    def __str__(self) -> str:
        names = ("prepare", "work", "zero", "accumulate", "merge", "report", "secure_bounds", "update")
        lines = [f"{name}: {getattr(self, name).type_signature}" for name in names]
        return "\n".join([f"round: {self.type_signature}", *lines])


@dataclasses.dataclass(frozen=True)
class DistributeAggregateForm:
    """A round as computations over placed values, in the order in which they run.

    Attributes:
      type_signature: the type of the round.
      server_prepare: from the state to what is sent, and what the server keeps for itself.
      server_to_client_broadcast: from what is sent to what the clients receive.
      client_work: from the clients' data and what they received to what they give.
      client_to_server_aggregation: from what they give to its aggregates.
      server_result: from what the server kept and the aggregates to the result of the round.
    """

    type_signature: FunctionType
    server_prepare: Computation
    server_to_client_broadcast: Computation
    client_work: Computation
    client_to_server_aggregation: Computation
    server_result: Computation


def check_computation_compatible_with_map_reduce_form(computation: Computation) -> None:
    """Checks that a computation is a round of one exchange, from a state to a state.

    Its parameter is a state at the server, then the clients' values; its result is the new state, then more values of
    the server. It aggregates by folds alone, and sends its clients nothing that depends on what they gave.

    Raises:
      NotCompilableError: naming the type or the expression that does not fit.
    """
    _check(computation, plan(computation))


def _check(computation: Computation, lowered: Plan) -> None:
    _check_type(computation)
    for step in lowered.steps():
        if step.operator in ("federated_collect", "federated_select", "federated_secure_select"):
            raise NotCompilableError(
                f"The computation `{computation.name}` uses {step.operator}, which is no fold over clients.",
                expected="broadcasts, maps, and aggregations that fold",
                found=step_texts(lowered.type, lowered.parameter, lowered.phases)[step],
            )
    check_broadcast_not_dependent_on_aggregate(lowered)
    check_aggregate_not_dependent_on_aggregate(lowered)


def _check_type(computation: Computation) -> None:
    type_ = computation.type_signature
    parameter, result = type_.parameter, type_.result

    def refuse(what: str, found: object) -> NotCompilableError:
        return NotCompilableError(
            f"The computation `{computation.name}` is no round from a state to a state: {what}.",
            expected="(<S@SERVER,{D}@CLIENTS> -> <S@SERVER,...>)",
            found=found,
        )

    if not isinstance(parameter, StructType) or len(parameter) < 2:
        raise refuse("it does not take a state and the clients' values", parameter)
    for number, field in enumerate(parameter):
        if not isinstance(field, FederatedType) or field.placement is not (CLIENTS if number else SERVER):
            raise refuse(f"its argument {number} is not placed at {CLIENTS if number else SERVER}", field)
    if not isinstance(result, StructType) or not len(result):
        raise refuse("it does not return a struct that begins with a state", result)
    for inner in preorder_types(result):
        if isinstance(inner, FederatedType) and inner.placement is not SERVER:
            raise refuse("a part of its result is not at the server", inner)
    for inner in _unplaced_leaves(result):
        raise refuse("a part of its result is not placed", inner)
    if not parameter[0].is_assignable_from(result[0]):
        raise refuse("the state that it returns is not one that it takes", result[0])


def _unplaced_leaves(type_: Type) -> list[Type]:
    if isinstance(type_, StructType):
        return [leaf for field in type_ for leaf in _unplaced_leaves(field)]
    return [] if isinstance(type_, FederatedType) else [type_]


def get_map_reduce_form_for_computation(computation: Computation) -> MapReduceForm:
    """Takes a round of one exchange apart into the functions that make it.

    Raises:
      NotCompilableError: naming the type or the expression that does not fit.

    References:
      Keith Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019, where a server of this
      form selects, configures and reports. https://arxiv.org/abs/1902.01046

    >>> import jax.numpy as jnp, koinon as ko
    >>> @ko.federated_computation(ko.types.at_server(jnp.float32), ko.types.at_clients(jnp.float32))
    ... def add_total(state, values):
    ...     return ko.federated_map(lambda a, b: a + b, (state, ko.federated_sum(values))), ko.federated_sum(values)
    >>> form = ko.compiler.get_map_reduce_form_for_computation(add_total)
    >>> str(form.work.type_signature)
    '(<data=float32,broadcast=<>,keys=<>> -> <folded=<float32,float32>,secure=<>>)'
    """
    lowered = plan(computation)
    _check(computation, lowered)
    parts = Splitter(lowered)

    def named(name: str, expression: ir.Expression) -> Computation:
        return Computation(expression, name=f"{computation.name}.{name}")

    return MapReduceForm(
        lowered.type,
        prepare=named("prepare", parts.prepare()),
        work=named("work", parts.work()),
        zero=named("zero", parts.zero()),
        accumulate=named("accumulate", parts.accumulate()),
        merge=named("merge", parts.merge()),
        report=named("report", parts.report()),
        secure_operators=tuple(step.operator for step in parts.secure),
        secure_bounds=named("secure_bounds", parts.bounds()),
        update=named("update", parts.update()),
    )


def get_state_initialization_computation(process: Any) -> Computation:
    """The computation that makes the first state of a process, which a form of its `next` starts from.

    Args:
      process: an object with a computation `initialize`, such as an iterative process.

    Raises:
      NotCompilableError: where `initialize` takes a parameter, or makes a value that is not at the server.
    """
    initialize: Computation = process.initialize
    type_ = initialize.type_signature
    if type_.parameter is not None:
        raise NotCompilableError("The initialization of a state takes no parameter.", found=type_)
    if not isinstance(type_.result, FederatedType) or type_.result.placement is not SERVER:
        raise NotCompilableError("The initialization of a state makes one value of the server.", found=type_)
    return initialize


def get_computation_for_map_reduce_form(form: MapReduceForm) -> Computation:
    """Puts a round together from the functions that make it; the inverse of `get_map_reduce_form_for_computation`."""
    return get_computation_for_distribute_aggregate_form(_distribute_aggregate_form(form))


def get_distribute_aggregate_form_for_computation(computation: Computation) -> DistributeAggregateForm:
    """Takes a round of one exchange apart into the computations over placed values that make it.

    Raises:
      NotCompilableError: naming the type or the expression that does not fit.
    """
    return _distribute_aggregate_form(get_map_reduce_form_for_computation(computation))


def _distribute_aggregate_form(form: MapReduceForm) -> DistributeAggregateForm:
    parameter = form.type_signature.parameter
    assert isinstance(parameter, StructType)
    state_type, *data_types = parameter

    @federated_computation(state_type)
    def server_prepare(state: Any) -> Any:
        return OrderedDict(sent=federated_map(form.prepare, state), kept=state)

    sent_type = FederatedType(form.prepare.type_signature.result, SERVER)

    @federated_computation(sent_type)
    def server_to_client_broadcast(sent: Any) -> Any:
        keys = tuple(federated_split_key(key) for key in sent["keys"])
        own_keys = federated_zip(keys) if keys else federated_value((), CLIENTS)
        return OrderedDict(broadcast=federated_broadcast(sent["broadcast"]), keys=own_keys)

    received_type = server_to_client_broadcast.type_signature.result

    @federated_computation(StructType(data_types), received_type)
    def client_work(data: Any, received: Any) -> Any:
        own = data[0] if len(data) == 1 else federated_zip(tuple(data))
        return federated_map(form.work, (own, received["broadcast"], received["keys"]))

    @federated_computation(client_work.type_signature.result)
    def client_to_server_aggregation(given: Any) -> Any:
        folded = federated_aggregate(given["folded"], form.zero(), form.accumulate, form.merge, form.report)
        bounds = form.secure_bounds()
        sums = tuple(
            _SECURE_SUMS[operator](value, bound)
            for operator, value, bound in zip(form.secure_operators, given["secure"], bounds, strict=True)
        )
        return OrderedDict(folded=folded, secure=federated_zip(sums) if sums else federated_value((), SERVER))

    result_type = form.type_signature.result

    @federated_computation(state_type, client_to_server_aggregation.type_signature.result)
    def server_result(kept: Any, aggregated: Any) -> Any:
        updated = federated_map(form.update, (kept, aggregated["folded"], aggregated["secure"]))
        return _placed_parts(result_type, updated)

    return DistributeAggregateForm(
        form.type_signature,
        server_prepare,
        server_to_client_broadcast,
        client_work,
        client_to_server_aggregation,
        server_result,
    )


def _placed_parts(type_: Type, value: Value) -> Value:
    """A placed struct as a struct of placed values, of a type."""
    if not isinstance(type_, StructType) or not contains_federated_types(type_):
        return value
    elements = tuple((name, _placed_parts(field, value[i]).expression) for i, (name, field) in enumerate(type_.items()))
    return Value(ir.Struct(elements, type_.container))


def get_computation_for_distribute_aggregate_form(form: DistributeAggregateForm) -> Computation:
    """Puts a round together from the computations over placed values that make it."""

    @federated_computation(form.type_signature.parameter)
    def next_fn(argument: Any) -> Any:
        state, *data = argument
        prepared = form.server_prepare(state)
        received = form.server_to_client_broadcast(prepared["sent"])
        given = form.client_work(tuple(data), received)
        return form.server_result(prepared["kept"], form.client_to_server_aggregation(given))

    return next_fn
