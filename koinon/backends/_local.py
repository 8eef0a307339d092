"""The local engine: a whole round is one XLA program on this machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import KoinonError
from koinon.backends._feed import ClientsFeeder, ServerFeeder, bucket, result_builder
from koinon.backends._program import ClientsArgument, Program, Rows
from koinon.backends._reference import ReferenceBackend
from koinon.backends._results import result_to_user
from koinon.backends._secure import input_out_of_range, total_out_of_range
from koinon.compiler import PlanValue, plan
from koinon.computation import Computation
from koinon.computation._arguments import Unpacked
from koinon.computation._flat import flatten, leaf_types, unflatten
from koinon.computation._transfer import fields_of, num_clients
from koinon.types import (
    CLIENTS,
    FederatedType,
    FunctionType,
    StructType,
    Type,
    contains_federated_types,
    to_container,
    type_contains,
)


class LocalBackend:
    """Runs a computation as one compiled program; a second call with arguments of the same shapes compiles nothing.

    Args:
      default_num_clients: how many clients there are in a call that has no argument placed at the clients.
    """

    def __init__(self, *, default_num_clients: int = 0) -> None:
        self.default_num_clients = default_num_clients
        self._executables: weakref.WeakKeyDictionary[Computation, Executable] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"LocalBackend(default_num_clients={self.default_num_clients})"

    def invoke(self, computation: Computation, argument: Any) -> Any:
        """Runs a computation on an argument given in a user's containers."""
        executable = self._executables.get(computation)
        if executable is None:
            if type_contains(computation.type_signature, _is_inner_function(computation.type_signature)):
                # A function cannot enter or leave a compiled program.
                return ReferenceBackend(default_num_clients=self.default_num_clients).invoke(computation, argument)
            executable = self._executables[computation] = Executable(computation, self.default_num_clients)
        return executable(argument)


def _is_inner_function(whole: FunctionType) -> Callable[[Type], bool]:
    return lambda type_: isinstance(type_, FunctionType) and type_ is not whole


class Executable:
    """A computation, planned, with the compiled programs for the shapes that it met.

    Args:
      computation: the computation.
      default_num_clients: how many clients there are where no argument tells.
    """

    def __init__(self, computation: Computation, default_num_clients: int) -> None:
        self._plan = plan(computation)
        self._default_num_clients = default_num_clients
        self._program = Program(self._plan)
        self._type = computation.type_signature
        self._server: list[tuple[ServerFeeder, PlanValue]] = []
        self._clients: list[tuple[ClientsFeeder, PlanValue]] = []
        self._pick: Callable[[Any], list[Any]] = lambda _: []
        if self._type.parameter is not None:
            self._pick = self._feeders_of(self._type.parameter, self._plan.parameter, "")
        self._results: list[PlanValue | Any] = []
        self._build = self._builder_of(self._type.result, self._plan.result)
        self._run = jax.jit(self._flat_run, static_argnums=(3,))

    def __call__(self, argument: Any) -> Any:
        """Runs the computation."""
        values = self._pick(argument)
        server = [feeder.feed(values[i]) for i, (feeder, _) in enumerate(self._server)]
        client_values = values[len(self._server) :]
        count = self._default_num_clients
        if self._clients:
            counts = [
                (feeder.path, feeder.count(value))
                for (feeder, _), value in zip(self._clients, client_values, strict=True)
            ]
            count = num_clients(counts, count)
        capacity = bucket(count)
        clients = [
            feeder.feed(value, capacity) for (feeder, _), value in zip(self._clients, client_values, strict=True)
        ]
        leaves, flags = self._run(server, clients, np.int32(count), capacity)
        if flags:
            self._raise_flags(jax.device_get(flags))
        return self._build(iter(leaves), count, client_values)

    # --- arguments ---------------------------------------------------------------------------------------------------

    def _feeders_of(self, type_: Type, value: Any, path: str) -> Callable[[Any], list[Any]]:
        """Makes the feeders for a parameter; returns what picks their values out of an argument, server's first."""
        places: list[tuple[tuple[int, ...], bool]] = []

        def visit(field: Type, planned: Any, field_path: str, place: tuple[int, ...]) -> None:
            if isinstance(field, FederatedType) and field.placement is CLIENTS and not field.all_equal:
                self._clients.append((ClientsFeeder(field, field_path), planned))
                places.append((place, True))
            elif isinstance(field, StructType) and (not place or contains_federated_types(field)):
                for i, (name, inner) in enumerate(field.items()):
                    inner_path = f"{field_path}.{name}" if name is not None else f"{field_path}[{i}]"
                    visit(inner, planned[i], inner_path, (*place, i))
            else:
                self._server.append((ServerFeeder(field, field_path), planned))
                places.append((place, False))

        visit(type_, value, path, ())
        ordered = [place for place, at_clients in places if not at_clients]
        ordered += [place for place, at_clients in places if at_clients]
        if all(len(place) == 1 for place in ordered) and isinstance(type_, StructType):
            order = [place[0] for place in ordered]
            return lambda argument: _top_fields(type_, argument, order)
        return lambda argument: [_at(type_, argument, place) for place in ordered]

    def _flat_run(self, server: list[Any], clients: list[Any], count: Any, capacity: int) -> Any:
        """The program: from the leaves of the argument to those of the result and the error flags."""
        server_scope: dict[int, Any] = {}
        for (feeder, planned), leaves in zip(self._server, server, strict=True):
            _bind_tree(planned, unflatten(feeder.member, leaves), server_scope)
        client_scope = {
            planned.index: ClientsArgument(feeder.type, leaves)
            for (feeder, planned), leaves in zip(self._clients, clients, strict=True)
        }
        scope, rows, flags = self._program.run(server_scope, client_scope, jnp.asarray(count, jnp.int32), capacity)
        leaves: list[Any] = []
        for type_, result in self._results:
            if isinstance(result, PlanValue) and result.index in rows:
                leaves.extend(_rows_of(rows[result.index]))
            else:
                leaves.extend(flatten(type_, _from_scope(result, scope)))
        return leaves, flags

    # --- results -----------------------------------------------------------------------------------------------------

    def _builder_of(self, type_: Type, value: Any) -> Callable[[Any, int, list[Any]], Any]:
        """What builds the result of a type from an iterator over leaves, the cohort's size and the clients' arguments."""
        if isinstance(type_, StructType) and contains_federated_types(type_):
            builders = [self._builder_of(field, value[i]) for i, (_, field) in enumerate(type_.items())]
            return lambda leaves, count, given: to_container(type_, [build(leaves, count, given) for build in builders])
        if isinstance(type_, FederatedType) and type_.placement is CLIENTS and not type_.all_equal:
            arguments = [planned.index for _, planned in self._clients]
            if value.index in arguments:
                place = arguments.index(value.index)
                return lambda leaves, count, given: _as_given(type_, given[place])
            self._results.append((type_.member, value))
            return lambda leaves, count, given: _client_results(type_.member, leaves, count)
        member = type_.member if isinstance(type_, FederatedType) else type_
        self._results.append((member, value))
        build, size = result_builder(member), len(leaf_types(member))
        return lambda leaves, count, given: build([next(leaves) for _ in range(size)])

    def _raise_flags(self, flags: list[Any]) -> None:
        for (operator, kind), raised in zip(self._program.flags, flags, strict=True):
            if raised:
                error: KoinonError = (
                    input_out_of_range(operator, "a client of the cohort")
                    if kind == "input"
                    else total_out_of_range(operator, self._dtype_of(operator))
                )
                raise error

    def _dtype_of(self, operator: str) -> Any:
        for step in self._plan.steps():
            if step.operator == operator:
                return leaf_types(step.output.member)[0].dtype
        raise KeyError(operator)


def _top_fields(type_: StructType, argument: Any, order: list[int]) -> list[Any]:
    """The fields of an argument in an order, checked by name where they came in a container."""
    if isinstance(argument, Unpacked):
        fields = argument.arguments
    else:
        fields = [value for _, _, value in fields_of(type_, argument)]
    return [fields[i] for i in order]


def _at(type_: Type, argument: Any, place: tuple[int, ...]) -> Any:
    for i in place:
        _, type_, argument = fields_of(type_, argument)[i]
    return argument


def _bind_tree(planned: Any, value: Any, scope: dict[int, Any]) -> None:
    if isinstance(planned, tuple):
        for part, part_value in zip(planned, value, strict=True):
            _bind_tree(part, part_value, scope)
    else:
        scope[planned.index] = value


def _from_scope(value: Any, scope: dict[int, Any]) -> Any:
    if isinstance(value, tuple):
        return tuple([_from_scope(field, scope) for field in value])
    return scope[value.index] if isinstance(value, PlanValue) else value


def _rows_of(rows: Rows) -> list[Any]:
    return rows.leaves


def _client_results(type_: Type, leaves: Any, count: int) -> list[Any]:
    """Each client's result, from stacked leaves."""
    stacked = [next(leaves) for _ in leaf_types(type_)]
    return [result_to_user(type_, unflatten(type_, [leaf[i] for leaf in stacked])) for i in range(count)]


def _as_given(type_: FederatedType, value: Any) -> list[Any]:
    """The clients' arguments, where they are the result unchanged."""
    return list(ReferenceBackend().pass_through(type_, value))
