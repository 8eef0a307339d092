"""A computation as the local engine runs it: one compiled program, or a few that cores and devices share."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from koinon._jax import Device
from koinon._threads import run_all
from koinon.backends._explain import Explanation, aggregation_notes, rewrites_of, row_notes
from koinon.backends._feed import ClientsFeeder, ServerFeeder, bucket, result_builder
from koinon.backends._optimize import (
    check_one_program,
    compiler_options_of,
    keeps_rows,
    largest_read_of,
    run_bounded,
    run_optimized,
)
from koinon.backends._options import LocalOptions
from koinon.backends._program import ClientsArgument, Program, Rows, Segment, State
from koinon.backends._reference import ReferenceBackend
from koinon.backends._results import result_to_user
from koinon.backends._schedule import (
    choose_lanes,
    choose_threads,
    clients_work,
    only_regroups,
    ordered_segments,
    segments,
)
from koinon.backends._secure import input_out_of_range, modulus_not_positive, total_out_of_range
from koinon.compiler import PlanValue, plan
from koinon.compiler._steps import plan_values
from koinon.computation import ClientRows, Cohort, Computation
from koinon.computation._arguments import Unpacked
from koinon.computation._flat import flatten, leaf_types, unflatten
from koinon.computation._transfer import fields_of, num_clients
from koinon.types import (
    CLIENTS,
    FederatedType,
    StructType,
    Type,
    contains_federated_types,
    is_structure_of_tensors,
    to_container,
)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the clients of a cohort are dealt out.

    Attributes:
      lanes: how many run side by side.
      threads: how many parts run at once on a device.
      devices: how many devices take part.
      parts: the parts, each of which runs by itself.
    """

    lanes: int
    threads: int
    devices: int
    parts: list[Segment]


class Executable:
    """A computation, planned, with the compiled programs for the shapes that it met.

    Args:
      computation: the computation.
      options: the options of the engine.
    """

    def __init__(self, computation: Computation, options: LocalOptions) -> None:
        check_one_program(computation)
        self._plan = plan(computation)
        self._options = options
        self._program = Program(self._plan, run_optimized)
        self._work = clients_work(self._plan)
        self._room = largest_read_of(self._plan)
        self._keeps_rows = keeps_rows(self._plan)
        self._type = computation.type_signature
        self._server: list[tuple[ServerFeeder, PlanValue]] = []
        self._clients: list[tuple[ClientsFeeder, PlanValue]] = []
        self._pick: Callable[[Any], list[Any]] = lambda _: []
        if self._type.parameter is not None:
            self._pick = self._feeders_of(self._type.parameter, self._plan.parameter, "")
        self._results: list[tuple[Type, Any]] = []
        self._build = self._builder_of(self._type.result, self._plan.result)
        self._stages = [number for number in range(len(self._plan.phases)) if self._program.has_clients(number)]
        self._has_start = bool(self._stages) and not all(
            only_regroups(step) for phase in self._plan.phases[: self._stages[0] + 1] for step in phase.server
        )
        self._can_thread = bool(self._stages) and not any(self._program.has_rows(n) for n in self._stages)
        jit = functools.partial(jax.jit, compiler_options=compiler_options_of(self._plan))
        self._whole = jit(self._run_whole, static_argnums=(4, 5, 6))
        self._server_stage = jit(self._run_server_stage, static_argnums=(0,))
        self._clients_stage = jit(self._run_clients_stage, static_argnums=(0, 4, 5))

    def __call__(self, argument: Any) -> Any:
        """Runs the computation."""
        values = self._pick(argument)
        server = [feeder.feed(values[i]) for i, (feeder, _) in enumerate(self._server)]
        given = values[len(self._server) :]
        count = self._count(given)
        capacity = bucket(count)
        clients = self._feed(given, capacity)
        if any(map(isinstance, jax.tree.leaves((server, clients)), itertools.repeat(Tracer))):
            return self._build(iter(self._run_traced(server, clients, count, capacity)), count, given)
        schedule = self._schedule(given, clients, count, capacity)
        window = self._window(given, clients) if self._keeps_rows else None
        if len(schedule.parts) == 1:
            leaves, flags = self._whole(
                server, clients, schedule.parts[0], np.int32(count), capacity, schedule.lanes, window
            )
        else:
            devices = self._options.homes[1 : schedule.devices]
            placed = [clients, *map(functools.partial(self._feed, given, capacity), devices)]
            leaves, flags = self._run_parts(server, placed, schedule, window)
        if flags:
            self._raise_flags(jax.device_get(flags))
        return self._build(iter(leaves), count, given)

    def _feed(self, given: list[Any], capacity: int, device: Device | None = None) -> list[Any]:
        """The leaves of the clients' arguments."""
        return [
            feeder.feed(value, capacity, self._room, device)
            for (feeder, _), value in zip(self._clients, given, strict=True)
        ]

    def explain(self, argument: Any) -> Explanation:
        """How the computation would run on an argument."""
        values = self._pick(argument)
        given = values[len(self._server) :]
        count = self._count(given)
        capacity = bucket(count)
        clients = self._feed(given, capacity)
        lengths, schedule = _lengths(clients), self._schedule(given, clients, count, capacity)
        return Explanation(
            computation=self._plan.name,
            reason=None,
            clients=count,
            examples=None if lengths is None else int(lengths[:count].sum()),
            lanes=schedule.lanes,
            threads=schedule.threads,
            devices=schedule.devices,
            step_operations=self._work.step,
            rewrites=rewrites_of(self._plan),
            aggregations=tuple(aggregation_notes(self._plan)),
            rows=tuple(row_notes(self._plan, self._program)),
        )

    def _count(self, given: list[Any]) -> int:
        """The number of clients that the arguments agree on."""
        counts = [(feeder.path, feeder.count(value)) for (feeder, _), value in zip(self._clients, given, strict=True)]
        return num_clients(counts, self._options.default_num_clients)

    def _window(self, given: list[Any], clients: list[Any]) -> int:
        """Room for the examples of any client, of the whole dataset where there is one, so that it stays the same."""
        longest = [value.packed.longest for value in given if isinstance(value, Cohort)]
        longest += [_longest(leaf) or 0 for leaves in clients for leaf in leaves]
        return bucket(max(longest, default=0))

    def _examples(self, given: list[Any], clients: list[Any], capacity: int) -> int | None:
        """About how many examples a cohort has: the same for all cohorts of a dataset that share a program."""
        for value, leaves in zip(given, clients, strict=True):
            for leaf in leaves:
                if isinstance(leaf, tuple):
                    if isinstance(value, Cohort):
                        return value.packed.expected_examples(capacity)
                    return leaf[0][0].shape[0] if leaf[0] else 0
        return None

    def _schedule(self, given: list[Any], clients: list[Any], count: int, capacity: int) -> Schedule:
        """How the clients of a cohort are dealt out; in as many parts for all cohorts that share a program."""
        options, lengths = self._options, _lengths(clients)
        lanes = choose_lanes(self._work, capacity, options.lanes)
        can_share = self._can_thread and lengths is not None
        examples = self._examples(given, clients, capacity) if can_share else None
        is_worth_it = examples is not None and self._work.is_worth_sharing(examples)
        threads = options.threads or choose_threads(self._work, capacity, is_worth_it)
        workers = min(max(threads, len(options.homes)), capacity)
        if options.deterministic and is_worth_it and lengths is not None:
            parts = ordered_segments(lengths, count, capacity)
        elif can_share and not options.deterministic and (is_worth_it or options.threads is not None):
            parts = segments(lengths, count, capacity, lanes, workers, self._work.rows)
        else:
            parts = segments(lengths, count, capacity, lanes, threads=1)
        return Schedule(lanes, min(threads, len(parts)), min(len(options.homes), len(parts)), parts)

    # --- the compiled programs ---------------------------------------------------------------------------------------

    def _run_whole(
        self,
        server: list[Any],
        clients: list[Any],
        segment: Segment,
        count: Any,
        capacity: int,
        lanes: int,
        window: int | None,
    ) -> Any:
        """All in one program: the leaves of the result and the error flags."""
        clients, segment = _arrays((clients, segment))
        state = State(self._server_scope(server), self._client_scope(clients, window), {})
        for number in range(len(self._plan.phases)):
            self._program.begin(number, state)
            if number in self._stages:
                part = self._program.run_clients(number, state, segment, capacity, lanes)
                self._program.end(number, state, [part], count)
        return self._result_leaves(state), state.flags

    def _run_traced(self, server: list[Any], clients: list[Any], count: int, capacity: int) -> list[Any]:
        """The round as a part of a larger program that JAX is tracing: folds have static bounds."""
        program = Program(self._plan, run_bounded)
        (segment,) = segments(_lengths(clients), count, capacity, lanes=1, threads=1)
        longest = [tuple(map(_longest, leaves)) for leaves in clients]
        server, clients, segment = _arrays((server, clients, segment))
        scope = {
            index: dataclasses.replace(argument, longest=most)
            for (index, argument), most in zip(self._client_scope(clients, None).items(), longest, strict=True)
        }
        state = State(self._server_scope(server), scope, {})
        for number in range(len(self._plan.phases)):
            program.begin(number, state)
            if number in self._stages:
                part = program.run_clients(number, state, segment, capacity, lanes=1, bound=count)
                program.end(number, state, [part], count)
        if state.flags:
            # The flags have no values before the larger program runs, in which there is nobody to raise an error.
            jax.debug.callback(lambda flags: self._raise_flags(jax.device_get(flags)), state.flags)
        return self._result_leaves(state)

    def _run_parts(
        self, server: list[Any], clients: list[list[Any]], schedule: Schedule, window: int | None
    ) -> tuple[list[Any], dict[str, Any]]:
        """One program for each stretch of the server's work, and one for the clients' that every part runs.

        Args:
          server: the leaves of the server's arguments.
          clients: for each device, the leaves of the clients' arguments.
          schedule: how the clients are dealt out.
          window: the most examples of a client, where a client's work depends on it.
        """
        homes, parts = self._options.homes[: schedule.devices], schedule.parts
        # Where there are several devices, what a round gives is bound to the first; what the first round takes must be
        # as well, else the second one would be compiled anew.
        scope: Any = server if len(homes) == 1 else jax.device_put(server, jax.local_devices()[0])
        flags: dict[str, Any] = {}
        done: list[Any] | None = None
        for stage, number in enumerate(self._stages):
            if stage or self._has_start:
                scope, raised = self._server_stage(stage, scope, done)
                flags |= raised
            scopes = [scope, *map(functools.partial(jax.device_put, scope), homes[1:])]

            def run(index: int, number: int = number, scopes: list[Any] = scopes) -> Any:
                home = index % len(homes)
                part = self._clients_stage(number, scopes[home], clients[home], parts[index], schedule.lanes, window)
                # What one thread starts, JAX runs in order: a thread waits for its part, so that no other gets it.
                return jax.block_until_ready(part if home == 0 else jax.device_put(part, jax.local_devices()[0]))

            done = run_all(run, len(parts), max(schedule.threads, len(homes)))
        leaves, raised = self._server_stage(len(self._stages), scope, done)
        return leaves, flags | raised

    def _run_server_stage(self, stage: int, scope: Any, parts: list[Any] | None) -> Any:
        """From the end of one part at the clients to the begin of the next, or to the result."""
        state, begun = self._started(scope), self._stages[max(0, stage - 1)]
        if parts is not None:
            self._program.end(begun, state, parts, None)
        is_last = stage == len(self._stages)
        last = len(self._plan.phases) - 1 if is_last else self._stages[stage]
        for number in range(begun + 1, last + 1):
            self._program.begin(number, state)
        if is_last:
            return self._result_leaves(state), state.flags
        needed = self._needed_from(last)
        return {index: value for index, value in state.scope.items() if index in needed}, state.flags

    def _run_clients_stage(
        self, number: int, scope: Any, clients: list[Any], segment: Segment, lanes: int, window: int | None
    ) -> Any:
        clients, segment = _arrays((clients, segment))
        state = dataclasses.replace(self._started(scope), clients=self._client_scope(clients, window))
        return self._program.run_clients(number, state, segment, 1, lanes)

    def _started(self, scope: Any) -> State:
        """The server's values where a stage begins: they are given, or follow from its arguments."""
        if isinstance(scope, dict):
            return State(dict(scope), {}, {})
        state = State(self._server_scope(scope), {}, {})
        for number in range(self._stages[0] + 1):
            self._program.begin(number, state)
        return state

    def _needed_from(self, number: int) -> set[int]:
        """The values of the server that the phases from this one on, or the result, need."""
        later = [
            step.operands
            for phase in self._plan.phases[number:]
            for step in (*phase.server, *phase.clients, *phase.aggregations)
        ]
        made = [step.output for step in self._plan.phases[number].clients]
        return {value.index for value in plan_values((*later, *made, self._plan.result))}

    def _server_scope(self, server: list[Any]) -> dict[int, Any]:
        scope: dict[int, Any] = {}
        for (feeder, planned), leaves in zip(self._server, server, strict=True):
            _bind_tree(planned, unflatten(feeder.member, leaves), scope)
        return scope

    def _client_scope(self, clients: list[Any], window: int | None) -> dict[int, Any]:
        return {
            planned.index: ClientsArgument(feeder.type, leaves, window)
            for (feeder, planned), leaves in zip(self._clients, clients, strict=True)
        }

    def _result_leaves(self, state: State) -> list[Any]:
        leaves: list[Any] = []
        for type_, result in self._results:
            rows = state.clients.get(result.index) if isinstance(result, PlanValue) else None
            leaves.extend(rows.leaves if isinstance(rows, Rows) else flatten(type_, _from_scope(result, state.scope)))
        return leaves

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

    # --- results -----------------------------------------------------------------------------------------------------

    def _builder_of(self, type_: Type, value: Any) -> Callable[[Any, int, list[Any]], Any]:
        """What builds a result from an iterator over leaves, the size of the cohort and the clients' arguments."""
        if isinstance(type_, StructType) and contains_federated_types(type_):
            builders = [self._builder_of(field, value[i]) for i, (_, field) in enumerate(type_.items())]
            return lambda leaves, count, given: to_container(type_, [build(leaves, count, given) for build in builders])
        if isinstance(type_, FederatedType) and type_.placement is CLIENTS and not type_.all_equal:
            arguments = [planned.index for _, planned in self._clients]
            if value.index in arguments:
                place = arguments.index(value.index)
                return lambda leaves, count, given: _as_given(type_, given[place], given)
            self._results.append((type_.member, value))
            member, size, stacks = type_.member, len(leaf_types(type_.member)), is_structure_of_tensors(type_.member)

            def build_clients(leaves: Any, count: int, given: list[Any]) -> list[Any] | ClientRows:
                stacked = list(itertools.islice(leaves, size))
                if stacks and _has_rows(given):
                    return ClientRows.trusted(member, stacked, count)
                return _each_client(member, stacked, count)

            return build_clients
        local_type = type_.member if isinstance(type_, FederatedType) else type_
        self._results.append((local_type, value))
        build, length = result_builder(local_type), len(leaf_types(local_type))
        return lambda leaves, count, given: build(list(itertools.islice(leaves, length)))

    def _raise_flags(self, flags: dict[str, Any]) -> None:
        # JAX sorts the names; what a user is told of is the first in the order of the program.
        for index, kind, raised in sorted((int(name.split()[0]), name.split()[1], int(flags[name])) for name in flags):
            if raised:
                step = next(step for step in self._plan.steps() if step.output.index == index)
                if kind == "input":
                    raise input_out_of_range(step.operator, f"the client at position {raised - 1} of the cohort")
                if kind == "modulus":
                    raise modulus_not_positive(step.operator)
                raise total_out_of_range(step.operator, leaf_types(step.output.member)[raised - 1].dtype)


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


def _lengths(clients: list[Any]) -> np.ndarray | None:
    """The number of examples of each client, in all its sequences, where the arguments have any."""
    lengths = [leaf[2] for leaves in clients for leaf in leaves if isinstance(leaf, tuple)]
    return functools.reduce(np.add, lengths) if lengths else None


def _longest(leaf: Any) -> int | None:
    """The most examples of a client, where a leaf of the clients' arguments is a packed sequence."""
    return int(leaf[2].max(initial=0)) if isinstance(leaf, tuple) else None


def _arrays(values: Any) -> Any:
    """Arguments as arrays of JAX, which they are not yet where JAX runs a function without compiling it."""
    return jax.tree.map(jnp.asarray, values)


def _each_client(type_: Type, stacked: list[Any], count: int) -> list[Any]:
    """Each client's result, from stacked leaves."""
    return [result_to_user(type_, unflatten(type_, [leaf[i] for leaf in stacked])) for i in range(count)]


def _as_given(type_: FederatedType, value: Any, given: list[Any]) -> list[Any] | ClientRows:
    """The clients' arguments, where they are the result unchanged."""
    if isinstance(value, ClientRows):
        return value
    return ReferenceBackend().pass_through(type_, value, as_rows=_has_rows(given))


def _has_rows(given: list[Any]) -> bool:
    return any(map(isinstance, given, itertools.repeat(ClientRows)))
