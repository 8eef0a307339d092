"""A plan as one function of JAX: what the local engine compiles.

The clients of a phase run one after the other in a loop with a dynamic trip count. Aggregations accumulate in the
loop's carry, so that memory does not grow with the cohort; what a later phase or the result needs of each client is
kept in rows, one for each client.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import NotCompilableError
from koinon.backends._aggregate import fold_of
from koinon.compiler import Phase, Plan, PlanValue, Step
from koinon.compiler._steps import plan_values
from koinon.computation import _ir as ir
from koinon.computation._evaluate import (
    SEQUENCE_HANDLERS,
    Closure,
    Evaluator,
    LocalFunction,
    OperatorFunction,
)
from koinon.computation._flat import flatten, unflatten
from koinon.computation._local import apply_local
from koinon.computation._sequence import PackedView, Sequence
from koinon.types import FederatedType, SequenceType, StructType, Type, strip_placement


def _unplaced_only(node: Any, argument: Any) -> Any:
    raise NotCompilableError(f"The operator {node.name} cannot be used inside a function that is mapped.")


_RUNTIME = Evaluator(
    {
        **SEQUENCE_HANDLERS,
        **{name: _unplaced_only for name in ("federated_map", "federated_zip")},
    }
)

Scope = Mapping[int, Any]


def resolve(value: Any, scope: Scope) -> Any:
    """Operands with plan values replaced by what they are, and functions that run on those."""
    if isinstance(value, tuple):
        return tuple([resolve(field, scope) for field in value])
    if isinstance(value, PlanValue):
        return scope.get(value.index)
    if isinstance(value, Closure):
        names = ir.free_names(value.node)
        return Closure(_RUNTIME, value.node, {name: resolve(value.scope[name], scope) for name in names})
    if isinstance(value, LocalFunction):
        return LocalFunction(value.node, apply_local)
    if isinstance(value, OperatorFunction):
        return _RUNTIME.evaluate(value.node, {})
    return value


@dataclasses.dataclass(frozen=True)
class ClientsArgument:
    """The values of the clients as the program takes them.

    Attributes:
      type: `{T}@CLIENTS`.
      leaves: for each leaf of a member that is made of tensors, its values stacked over the clients; of a sequence its
        buffers, then the clients' offsets and lengths.
    """

    type: FederatedType
    leaves: Any

    def at(self, index: Any) -> Any:
        """The value of one client."""
        return _client_value(self.type.member, iter(self.leaves), index)


def _client_value(type_: Type, leaves: Any, index: Any) -> Any:
    if isinstance(type_, StructType):
        return tuple([_client_value(field, leaves, index) for _, field in type_.items()])
    if isinstance(type_, SequenceType):
        buffers, offsets, lengths = next(leaves)
        return Sequence(PackedView(type_.element, buffers, offsets[index], lengths[index]))
    return next(leaves)[index]


class Rows:
    """Values of the clients of an earlier phase, one row for each."""

    def __init__(self, type_: Type, leaves: list[Any]) -> None:
        self.type = type_
        self.leaves = leaves

    def at(self, index: Any) -> Any:
        """The value of one client."""
        return unflatten(self.type, [leaf[index] for leaf in self.leaves])


class Program:
    """A plan as a function of flat arguments.

    Args:
      plan: the plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.flags: list[tuple[str, str]] = []

    def run(
        self, server: Mapping[int, Any], clients: Mapping[int, ClientsArgument], count: Any, capacity: int
    ) -> tuple[dict[int, Any], dict[int, Rows], list[Any]]:
        """Runs the plan.

        Args:
          server: the parts of the argument that are the server's, by the index of their plan value.
          clients: the parts that are the clients', likewise.
          count: int32, the number of clients.
          capacity: the number of rows that hold values of clients, at least `count`.

        Returns:
          The values of the server, rows of the clients that the result needs, and error flags (see `flags`).
        """
        scope: dict[int, Any] = dict(server)
        at_clients: dict[int, Any] = dict(clients)
        flags: list[Any] = []
        self.flags = []
        for number, phase in enumerate(self.plan.phases):
            for step in phase.server:
                _bind(step.output, self._server_step(step, scope), scope)
            self._run_clients(phase, self._kept(number), scope, at_clients, count, capacity, flags)
        return scope, {i: rows for i, rows in at_clients.items() if isinstance(rows, Rows)}, flags

    def _server_step(self, step: Step, scope: Scope) -> Any:
        operands = resolve(step.operands, scope)
        match step.operator:
            case "local":
                return LocalFunction(step.node, apply_local)(operands)  # pyright: ignore[reportArgumentType]
            case "federated_map":
                return operands[0](operands[1])
            case "federated_eval_at_server":
                return operands(None)
            case "federated_zip" | "federated_value_at_server":
                return operands
            case _:
                return self._sequence_step(step, operands)

    def _sequence_step(self, step: Step, operands: Any) -> Any:
        return SEQUENCE_HANDLERS[step.operator](_without_placements(step), operands)

    def _kept(self, number: int) -> list[PlanValue]:
        """The clients' values of a phase that a later phase or the result needs."""
        made = {
            value.index: value for step in self.plan.phases[number].clients for value in plan_values(step.output)
        }
        later = [step.operands for phase in self.plan.phases[number + 1 :] for step in (*phase.clients, *phase.aggregations)]
        needed = {value.index for value in plan_values((*later, self.plan.result))}
        broadcasts = {
            value.index
            for step in self.plan.phases[number].clients
            if step.operator in ("federated_broadcast", "federated_value_at_clients")
            for value in plan_values(step.output)
        }
        return [value for index, value in made.items() if index in needed and index not in broadcasts]

    def _run_clients(
        self,
        phase: Phase,
        kept: list[PlanValue],
        scope: dict[int, Any],
        at_clients: dict[int, Any],
        count: Any,
        capacity: int,
        flags: list[Any],
    ) -> None:
        for step in phase.clients:
            # What every client has in common is computed once.
            if step.operator in ("federated_broadcast", "federated_value_at_clients"):
                scope[step.output.index] = resolve(step.operands, scope)
        folds = [
            (step, fold_of(step, resolve(step.operands, scope)))
            for step in phase.aggregations
            if step.operator != "federated_collect"
        ]
        collected = [step for step in phase.aggregations if step.operator == "federated_collect"]
        if not folds and not collected and not kept:
            return
        in_rows = [*kept, *[step.operands for step in collected]]

        def one_client(index: Any) -> dict[int, Any]:
            local = dict(scope)
            for value_index, argument in at_clients.items():
                local[value_index] = argument.at(index)
            for step in phase.clients:
                if step.operator not in ("federated_broadcast", "federated_value_at_clients"):
                    _bind(step.output, self._client_step(step, local, index), local)
            return local

        def body(index: Any, carry: Any) -> Any:
            states, rows = carry
            local = one_client(index)
            states = [
                fold.add(state, resolve(step.operands, local)) for (step, fold), state in zip(folds, states, strict=True)
            ]
            new_rows = [flatten(value.member, local[value.index]) for value in in_rows]
            rows = [
                [jax.lax.dynamic_update_index_in_dim(old, new, index, 0) for old, new in zip(leaves, row, strict=True)]
                for leaves, row in zip(rows, new_rows, strict=True)
            ]
            return states, rows

        row_shapes = (
            jax.eval_shape(lambda: [flatten(v.member, one_client(jnp.int32(0))[v.index]) for v in in_rows])
            if in_rows
            else []
        )
        rows = [[jnp.zeros((capacity, *leaf.shape), leaf.dtype) for leaf in leaves] for leaves in row_shapes]
        states, rows = jax.lax.fori_loop(0, count, body, ([fold.zero for _, fold in folds], rows))
        for (step, fold), state in zip(folds, states, strict=True):
            result, raised = fold.finish(state)
            scope[step.output.index] = result
            for name, flag in raised.items():
                self.flags.append((step.operator, name))
                flags.append(flag)
        for value, leaves in zip(kept, rows, strict=False):
            at_clients[value.index] = Rows(value.member, leaves)
        for step, leaves in zip(collected, rows[len(kept) :], strict=True):
            element = step.operands.member
            view = PackedView(element, tuple(leaves), jnp.int32(0), jnp.asarray(count, jnp.int32))
            scope[step.output.index] = Sequence(view)

    def _client_step(self, step: Step, local: Scope, index: Any) -> Any:
        operands = resolve(step.operands, local)
        match step.operator:
            case "federated_map":
                return operands[0](operands[1])
            case "federated_zip":
                return operands
            case "federated_eval_at_clients":
                return operands(None)
            case "federated_split_key":
                return jax.random.fold_in(operands, index)
            case "federated_select" | "federated_secure_select":
                keys, _, value, function = operands
                sequence_type = step.output.member
                rows = jax.vmap(lambda key: flatten(sequence_type.element, function((value, key))))(keys)
                return Sequence(
                    PackedView(sequence_type.element, tuple(rows), jnp.int32(0), jnp.int32(keys.shape[0]))
                )
            case _:
                return self._sequence_step(step, operands)


def _without_placements(step: Step) -> Any:
    type_ = strip_placement(step.node.type)
    return ir.Intrinsic(step.operator, type_)  # pyright: ignore[reportArgumentType]


def _bind(output: Any, value: Any, scope: dict[int, Any]) -> None:
    if isinstance(output, tuple):
        for part, part_value in zip(output, value, strict=True):
            _bind(part, part_value, scope)
    else:
        scope[output.index] = value

