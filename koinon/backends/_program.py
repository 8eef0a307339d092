"""A plan as functions of JAX: what the local engine compiles.

The clients of a phase run in a loop with a dynamic trip count, one after the other or in lanes, a few side by side.
Aggregations accumulate in the loop's carry, so that memory does not grow with the cohort; what a later phase or the
result needs of each client is kept in rows, one for each client.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import NotCompilableError
from koinon.backends._aggregate import Fold, fold_of
from koinon.backends._packing import Packing
from koinon.compiler import Plan, PlanValue, Step
from koinon.compiler._steps import plan_values
from koinon.computation import INTRINSICS
from koinon.computation import _ir as ir
from koinon.computation._evaluate import (
    SEQUENCE_HANDLERS,
    Closure,
    Evaluator,
    LocalFunction,
    OperatorFunction,
)
from koinon.computation._flat import flatten, unflatten
from koinon.computation._sequence import PackedView, Sequence
from koinon.types import CLIENTS, FederatedType, FunctionType, SequenceType, StructType, Type, strip_placement

_COMMON = ("federated_broadcast", "federated_value_at_clients")

Scope = Mapping[int, Any]
RunLocal = Callable[[ir.Local, Any], Any]


@dataclasses.dataclass(frozen=True)
class ClientsArgument:
    """The values of the clients as the program takes them.

    Attributes:
      type: `{T}@CLIENTS`.
      leaves: for each leaf of a member that is made of tensors, its values stacked over the clients; for a sequence
        its buffers, and the clients' offsets and lengths.
      window: the most examples of a client, where a client's work depends on how many rows the buffers have; it sees
        so many then. None where it does not.
      longest: for each leaf the most examples of a client, where it is a sequence and that is a constant of the
        program; None where it is not.
    """

    type: FederatedType
    leaves: Any
    window: int | None = None
    longest: tuple[int | None, ...] | None = None

    def at(self, index: Any) -> Any:
        """The value of one client."""
        longest = self.longest or (None,) * len(self.leaves)
        return _client_value(self.type.member, zip(self.leaves, longest, strict=True), index, self.window)


def _client_value(type_: Type, leaves: Iterator[tuple[Any, int | None]], index: Any, window: int | None) -> Any:
    if isinstance(type_, StructType):
        return tuple([_client_value(field, leaves, index, window) for _, field in type_.items()])
    leaf, longest = next(leaves)
    if isinstance(type_, SequenceType):
        buffers, offsets, lengths = leaf
        offset, length = offsets[index], lengths[index]
        if window is None or any(buffer.shape[0] <= window for buffer in buffers):
            return Sequence(PackedView(type_.element, buffers, offset, length, padded=True, longest=longest))
        start = jnp.minimum(offset, min([buffer.shape[0] for buffer in buffers], default=0) - window)
        own = tuple([jax.lax.dynamic_slice_in_dim(buffer, start, window) for buffer in buffers])
        return Sequence(PackedView(type_.element, own, offset - start, length))
    return leaf[index]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Values of the clients of an earlier phase, one row for each."""

    type: Type
    leaves: list[Any]

    def at(self, index: Any) -> Any:
        """The value of one client."""
        return unflatten(self.type, [leaf[index] for leaf in self.leaves])


jax.tree_util.register_dataclass(Rows, data_fields=["leaves"], meta_fields=["type"])
jax.tree_util.register_dataclass(ClientsArgument, data_fields=["leaves"], meta_fields=["type", "window", "longest"])


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of the cohort that one loop runs over.

    Attributes:
      order: int32 `[clients]`, positions in the cohort.
      start: int32, the first entry of `order` to run.
      stop: int32, the end of the entries to run.
    """

    order: Any
    start: Any
    stop: Any


jax.tree_util.register_dataclass(Segment, data_fields=["order", "start", "stop"], meta_fields=[])


@dataclasses.dataclass
class State:
    """What has been computed so far.

    Attributes:
      scope: the values of the server, and what all clients have in common, by the index of their plan value.
      clients: the values of the clients, arguments and rows, likewise.
      flags: error flags that were raised on the way, by operator and kind.
    """

    scope: dict[int, Any]
    clients: dict[int, Any]
    flags: dict[str, Any]


jax.tree_util.register_dataclass(State, data_fields=["scope", "clients", "flags"], meta_fields=[])


class Program:
    """The stages of a plan.

    For each phase: `begin` runs the server's part, `run_clients` the clients' on a segment of the cohort, and `end`
    makes the aggregates of what the segments accumulated.

    Args:
      plan: the plan.
      run_local: how a program of JAX runs on a value.
    """

    def __init__(self, plan: Plan, run_local: RunLocal) -> None:
        self.plan = plan
        self._run_local = run_local
        handlers = dict.fromkeys(INTRINSICS, _refuse_placed) | SEQUENCE_HANDLERS
        self._evaluator = Evaluator(handlers, run_local)
        self._kept = [self._find_kept(number) for number in range(len(plan.phases))]

    # --- what a phase consists of ------------------------------------------------------------------------------------

    def has_clients(self, number: int) -> bool:
        """Whether the clients have anything to do in a phase."""
        return bool(self.plan.phases[number].aggregations or self._kept[number])

    def kept(self, number: int) -> list[PlanValue]:
        """The clients' values of a phase that a later phase or the result needs."""
        return self._kept[number]

    def has_rows(self, number: int) -> bool:
        """Whether a phase keeps something of each single client."""
        collects = any(step.operator == "federated_collect" for step in self.plan.phases[number].aggregations)
        return collects or bool(self._kept[number])

    def _find_kept(self, number: int) -> list[PlanValue]:
        """The clients' values of a phase that a later phase or the result needs."""
        phase = self.plan.phases[number]
        made = [v for step in phase.clients if step.operator not in _COMMON for v in plan_values(step.output)]
        later = [s.operands for p in self.plan.phases[number + 1 :] for s in (*p.clients, *p.aggregations)]
        needed = {value.index for value in plan_values((*later, self.plan.result))}
        return [value for value in made if value.index in needed]

    # --- the server's part -------------------------------------------------------------------------------------------

    def begin(self, number: int, state: State) -> None:
        """Runs the server's part of a phase, and what all clients have in common."""
        phase = self.plan.phases[number]
        for step in phase.server:
            _bind(step.output, self._server_step(step, state.scope), state.scope)
        for step in phase.clients:
            if step.operator in _COMMON:
                state.scope[step.output.index] = self._resolve(step.operands, state.scope)

    def _server_step(self, step: Step, scope: Scope) -> Any:
        operands = self._resolve(step.operands, scope)
        match step.operator:
            case "local":
                assert isinstance(step.node, ir.Local)
                return self._run_local(step.node, operands)
            case "federated_map":
                return operands[0](operands[1])
            case "federated_eval_at_server":
                return operands(None)
            case "federated_zip" | "federated_value_at_server":
                return operands
            case _:
                return _on_sequences(step, operands)

    # --- the clients' part -------------------------------------------------------------------------------------------

    def run_clients(
        self, number: int, state: State, segment: Segment, capacity: int, lanes: int, bound: int | None = None
    ) -> Any:
        """Runs the clients' part of a phase on a segment of the cohort.

        Args:
          number: the phase.
          state: what has been computed before.
          segment: the clients to run.
          capacity: the number of rows for values that are kept of each client.
          lanes: how many clients run side by side.
          bound: the number of clients, where the loop must have a static one so that reverse mode can pass it.

        Returns:
          The sums, the accumulators of the other aggregations, and the rows.
        """
        phase = self.plan.phases[number]
        folds = self._folds(number, state.scope)
        collected = [step.operands for step in phase.aggregations if step.operator == "federated_collect"]
        in_rows: list[PlanValue] = [*self._kept[number], *collected]
        wanted = {v.index for step, _ in folds for v in plan_values(step.operands) if v.placement is CLIENTS}
        wanted |= {value.index for value in in_rows}

        def one_client(index: Any) -> dict[int, Any]:
            scope = dict(state.scope)
            for value_index, argument in state.clients.items():
                scope[value_index] = argument.at(index)
            for step in phase.clients:
                if step.operator not in _COMMON:
                    _bind(step.output, self._client_step(step, scope, index), scope)
            return {value_index: scope[value_index] for value_index in wanted}

        sums = Sums([(step.operands, fold) for step, fold in folds if fold.addend is not None])
        others = [(step, fold) for step, fold in folds if fold.addend is None]

        def operands_of(operands: Any, values: dict[int, Any]) -> Any:
            return self._resolve(operands, {**state.scope, **values})

        def accumulate(accumulators: list[Any], values: dict[int, Any], index: Any) -> list[Any]:
            return [
                fold.add(accumulator, operands_of(step.operands, values), index)
                for (step, fold), accumulator in zip(others, accumulators, strict=True)
            ]

        def rows_of(values: dict[int, Any]) -> list[list[Any]]:
            return [flatten(value.member, values[value.index]) for value in in_rows]

        def run_one(position: Any, carry: Any) -> Any:
            totals, accumulators, rows = carry
            index = segment.order[position]
            values = one_client(index)
            totals = [a + b for a, b in zip(totals, sums.addend(values, operands_of), strict=True)]
            return totals, accumulate(accumulators, values, index), _put(rows, rows_of(values), index)

        def run_lanes(group: Any, carry: Any) -> Any:
            totals, accumulators, rows = carry
            first = segment.start + group * lanes
            positions = first + jnp.arange(lanes, dtype=jnp.int32)
            indices = segment.order[jnp.minimum(positions, segment.stop - 1)]
            values = jax.vmap(one_client)(indices)
            runs = positions < segment.stop
            addends = jax.vmap(lambda v: sums.addend(v, operands_of))(values)
            totals = [total + _sum_where(runs, rows) for total, rows in zip(totals, addends, strict=True)]
            accumulators = (
                jax.lax.fori_loop(
                    0,
                    jnp.minimum(lanes, segment.stop - first),
                    lambda lane, a: accumulate(a, jax.tree.map(lambda leaf: leaf[lane], values), indices[lane]),
                    accumulators,
                )
                if others
                else []
            )
            # Rows of lanes without a client go nowhere.
            places = jnp.where(runs, indices, capacity)
            stacked = jax.vmap(rows_of)(values) if in_rows else []
            return (
                totals,
                accumulators,
                jax.tree.map(lambda old, new: old.at[places].set(new, mode="drop"), rows, stacked),
            )

        shapes = jax.eval_shape(lambda: rows_of(one_client(jnp.int32(0)))) if in_rows else []
        rows = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)
        initial = (sums.zero, [fold.zero for _, fold in others], rows)
        if bound is not None:
            positions = jnp.arange(bound, dtype=jnp.int32)
            return jax.lax.scan(lambda carry, position: (run_one(position, carry), None), initial, positions)[0]
        if lanes == 1:
            return jax.lax.fori_loop(segment.start, segment.stop, run_one, initial)
        groups = (segment.stop - segment.start + lanes - 1) // lanes
        return jax.lax.fori_loop(0, groups, run_lanes, initial)

    def _folds(self, number: int, scope: Scope) -> list[tuple[Step, Fold]]:
        """The aggregations of a phase that are folds; operands at the clients are not known here, and are None."""
        return [
            (step, fold_of(step, self._resolve(step.operands, scope)))
            for step in self.plan.phases[number].aggregations
            if step.operator != "federated_collect"
        ]

    def _client_step(self, step: Step, scope: Scope, index: Any) -> Any:
        operands = self._resolve(step.operands, scope)
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
                element = step.output.member.element
                rows = jax.vmap(lambda key: flatten(element, function((value, key))))(keys)
                return Sequence(PackedView(element, tuple(rows), jnp.int32(0), jnp.int32(keys.shape[0])))
            case _:
                return _on_sequences(step, operands)

    def end(self, number: int, state: State, parts: list[Any], count: Any) -> None:
        """Makes the aggregates of a phase from what each segment accumulated; rows come from a single segment."""
        phase = self.plan.phases[number]
        folds = self._folds(number, state.scope)
        summed = [(step, fold) for step, fold in folds if fold.addend is not None]
        others = [(step, fold) for step, fold in folds if fold.addend is None]
        totals, accumulators, rows = parts[0]
        for more_totals, more, _ in parts[1:]:
            totals = [a + b for a, b in zip(totals, more_totals, strict=True)]
            accumulators = [fold.merge(a, b) for (_, fold), a, b in zip(others, accumulators, more, strict=True)]
        folds = summed + others
        accumulators = Sums([(step.operands, fold) for step, fold in summed]).split(totals) + accumulators
        for (step, fold), accumulator in zip(folds, accumulators, strict=True):
            state.scope[step.output.index], raised = fold.finish(accumulator)
            for kind, flag in raised.items():
                state.flags[f"{step.output.index} {kind}"] = flag
        kept = self._kept[number]
        for value, leaves in zip(kept, rows[: len(kept)], strict=True):
            state.clients[value.index] = Rows(value.member, leaves)
        collects = [step for step in phase.aggregations if step.operator == "federated_collect"]
        for step, leaves in zip(collects, rows[len(kept) :], strict=True):
            view = PackedView(step.operands.member, tuple(leaves), jnp.int32(0), jnp.asarray(count, jnp.int32))
            state.scope[step.output.index] = Sequence(view)

    # --- operands ----------------------------------------------------------------------------------------------------

    def _resolve(self, value: Any, scope: Scope) -> Any:
        """Operands with plan values replaced by what they are, and functions that run on those."""
        if isinstance(value, tuple):
            return tuple([self._resolve(field, scope) for field in value])
        if isinstance(value, PlanValue):
            return scope.get(value.index)
        if isinstance(value, Closure):
            names = ir.free_names(value.node)
            captured = {name: self._resolve(value.scope[name], scope) for name in names}
            return Closure(self._evaluator, value.node, captured)
        if isinstance(value, LocalFunction):
            return LocalFunction(value.node, self._run_local)
        if isinstance(value, OperatorFunction):
            return self._evaluator.evaluate(value.node, {})
        return value


class Sums:
    """All aggregations of a phase that are sums, taken together.

    Args:
      folds: the operands of each, in the plan, and its fold.
    """

    def __init__(self, folds: list[tuple[Any, Fold]]) -> None:
        self._folds = folds
        zeros = [leaf for _, fold in folds for leaf in fold.zero]
        self._packing = Packing(zeros)
        self.zero = self._packing.pack(zeros)

    def addend(self, values: dict[int, Any], operands_of: Callable[[Any, dict[int, Any]], Any]) -> list[Any]:
        """What one client adds."""
        addends: list[Any] = []
        for operands, fold in self._folds:
            assert fold.addend is not None
            leaves = fold.addend(operands_of(operands, values))
            addends.extend(leaf.astype(zero.dtype) for leaf, zero in zip(leaves, fold.zero, strict=True))
        return self._packing.pack(addends)

    def split(self, totals: list[Any]) -> list[list[Any]]:
        """The accumulator of each aggregation."""
        leaves = iter(self._packing.unpack(totals))
        return [[next(leaves) for _ in fold.zero] for _, fold in self._folds]


def _sum_where(mask: Any, rows: Any) -> Any:
    """The sum of the rows where the mask is true; the others count as zero, whatever they hold."""
    return jnp.where(mask.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0).sum(0, dtype=rows.dtype)


def _refuse_placed(node: ir.Intrinsic, argument: Any) -> Any:
    raise NotCompilableError(
        f"The operator {node.name} cannot be used inside a function that is mapped over placed values.",
        found=node.type,
    )


def _on_sequences(step: Step, operands: Any) -> Any:
    """An operator on placed sequences, where they are."""
    type_ = strip_placement(step.node.type)
    assert isinstance(type_, FunctionType)
    return SEQUENCE_HANDLERS[step.operator](ir.Intrinsic(step.operator, type_), operands)


def _bind(output: Any, value: Any, scope: dict[int, Any]) -> None:
    if isinstance(output, tuple):
        for part, part_value in zip(output, value, strict=True):
            _bind(part, part_value, scope)
    else:
        scope[output.index] = value


def _put(rows: list[Any], values: list[Any], index: Any) -> list[Any]:
    return jax.tree.map(lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new, index, 0), rows, values)
