"""The data flow of a plan, leaf by leaf: what every value depends on, and how clients' data comes to the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from koinon.compiler._abstract import AbstractSequence, Interpreter
from koinon.compiler._flows import (
    NOTHING,
    AggregationLeaf,
    ArgumentLeaf,
    FlowDomain,
    Flows,
    Marks,
    join_flows,
    weaker_marks,
)
from koinon.compiler._folds import Kept, LeafFold, leaf_folds
from koinon.compiler._paths import Leaf, leaves_of
from koinon.compiler._plan import Plan, plan
from koinon.compiler._show import header
from koinon.compiler._steps import AGGREGATIONS, PlanValue, Step, structure_leaves
from koinon.computation import INTRINSICS, Computation, Route
from koinon.computation import _ir as ir
from koinon.computation._evaluate import SEQUENCE_HANDLERS, operand_types
from koinon.computation._flat import leaf_types
from koinon.types import FederatedType, FunctionType, StructType, Type, strip_placement


@dataclasses.dataclass(frozen=True)
class Arrival:
    """How clients' values come to the server through one leaf of an aggregation.

    Attributes:
      step: the aggregation.
      operand: the number of the leaf of the clients' values that it takes; None for an accumulator of a user's fold.
      flows: what the clients' values depend on, with what was done to it before it left them.
      route: how much the server sees.
      fold: for an accumulator of a user's fold, what it keeps.
    """

    step: Step
    operand: int | None
    flows: Flows
    route: Route
    fold: LeafFold | None = None


@dataclasses.dataclass(frozen=True)
class Dependencies:
    """What the values of a plan depend on.

    Attributes:
      plan: the plan.
      values: for each plan value, by its index, what flows into its flat leaves.
      arrivals: for each leaf of each aggregation, how it came about.
      result: the flat leaves of the result with what flows into each.
    """

    plan: Plan
    values: Mapping[int, tuple[Flows, ...]]
    arrivals: Mapping[AggregationLeaf, Arrival]
    result: tuple[tuple[Leaf, Flows], ...]

    def releases(self, flows: Flows) -> dict[AggregationLeaf, Marks]:
        """The leaves of aggregations through which clients' data comes into a value, with what was done on the way.

        What comes through a later phase, by a broadcast of what an earlier one brought to the server, is among them.
        """
        found: dict[AggregationLeaf, Marks] = {}
        self._add_releases(flows, found)
        return found

    def _add_releases(self, flows: Flows, found: dict[AggregationLeaf, Marks]) -> None:
        for leaf, marks in flows.aggregations.items():
            old = found.get(leaf)
            new = marks if old is None else weaker_marks(old, marks)
            if new != old:
                found[leaf] = new
                self._add_releases(self.arrivals[leaf].flows, found)

    def sources(self, flows: Flows) -> frozenset[str]:
        """The leaves of the argument that a value depends on, directly and through aggregations."""
        through = [self.arrivals[leaf].flows for leaf in self.releases(flows)]
        return frozenset(s.path for flow in [flows, *through] for s in flow if isinstance(s, ArgumentLeaf))

    def __str__(self) -> str:
        lines = [
            f"{leaf.path or 'result'}: {leaf.placed_type} <- {', '.join(sorted(self.sources(flows))) or 'nothing'}"
            for leaf, flows in self.result
            if not leaf.is_offset
        ]
        return "\n".join([header(self.plan.name, self.plan.type), *lines])


def dependencies(computation: Computation | Plan) -> Dependencies:
    """The leaf-level data flow of a computation: which parts of the argument each part of every value depends on.

    Plumbing is exact: a field that is moved, swapped or selected keeps its own sources. Inside a program of JAX every
    equation's outputs depend on all of its inputs, but for calls, branches and loops, which are followed. What decides
    which branch runs, or how often a loop does, flows into what they compute.

    Raises:
      NotCompilableError: where the computation has no plan.

    >>> import jax.numpy as jnp, koinon as ko
    >>> @ko.federated_computation(ko.types.at_clients({"x": jnp.float32, "y": jnp.float32}))
    ... def only_x(data):
    ...     return ko.federated_sum(data["x"])
    >>> print(ko.compiler.dependencies(only_x))
    only_x: ({<x=float32,y=float32>}@CLIENTS -> float32@SERVER)
    result: float32@SERVER <- argument['x']
    """
    return _Analysis(computation if isinstance(computation, Plan) else plan(computation)).run()


class _Analysis:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.interpreter = Interpreter(FlowDomain())
        self.scope: dict[int, Any] = {}
        self.values: dict[int, tuple[Flows, ...]] = {}
        self.arrivals: dict[AggregationLeaf, Arrival] = {}
        self.count = 0

    def run(self) -> Dependencies:
        if self.plan.type.parameter is not None:
            leaves = [_source(leaf) for leaf in leaves_of(self.plan.type.parameter, "argument")]
            self._bind_leaves(self.plan.parameter, iter(leaves))
        for step in self.plan.steps():
            self._bind(step.output, self._step(step))
        result_type = self.plan.type.result
        resolved = self.interpreter.resolve(self.plan.result, self.scope)
        flows = self.interpreter.flatten(result_type, resolved)
        result = tuple(zip(leaves_of(result_type), flows, strict=True))
        return Dependencies(self.plan, self.values, self.arrivals, result)

    def _bind_leaves(self, parameter: Any, leaves: Iterator[Flows]) -> None:
        for value in structure_leaves(parameter):
            assert isinstance(value, PlanValue)
            width = len(leaf_types(value.type))
            self._bind(value, self.interpreter.unflatten(value.type, [next(leaves) for _ in range(width)]))

    def _bind(self, output: Any, value: Any) -> None:
        if isinstance(output, tuple):
            for part, part_value in zip(output, value, strict=True):
                self._bind(part, part_value)
        else:
            self.scope[output.index] = value
            self.values[output.index] = tuple(self.interpreter.flatten(output.type, value))

    def _step(self, step: Step) -> Any:
        operands = self.interpreter.resolve(step.operands, self.scope)
        if step.operator in AGGREGATIONS:
            return self._aggregation(step, operands)
        match step.operator:
            case "local":
                return self.interpreter.evaluator.evaluate(step.node, {})(operands)
            case "federated_map":
                return operands[0](operands[1])
            case "federated_eval_at_server" | "federated_eval_at_clients":
                return operands(None)
            case "federated_broadcast" | "federated_split_key":
                flows = self.interpreter.flatten(step.output.type, operands)
                return self.interpreter.unflatten(step.output.type, [_received(flow) for flow in flows])
            case "federated_select" | "federated_secure_select":
                return self._select(step, operands)
            case name if name in SEQUENCE_HANDLERS:
                unplaced = strip_placement(step.node.type)
                assert isinstance(unplaced, FunctionType)
                return self.interpreter.evaluator.evaluate(ir.Intrinsic(name, unplaced), {})(operands)
            case _:  # federated_zip, federated_value_at_*
                return operands

    def _select(self, step: Step, operands: Any) -> AbstractSequence:
        keys, _, server_value, function = operands
        keys_type, _, value_type, _ = operand_types(step.node)  # pyright: ignore[reportArgumentType]
        (key,) = self.interpreter.flatten(keys_type, keys)
        received = [_received(flow) for flow in self.interpreter.flatten(value_type, server_value)]
        piece = function((self.interpreter.unflatten(value_type, received), key))
        rows = self.interpreter.flatten(step.output.member.element, piece)
        return AbstractSequence([*rows, NOTHING, NOTHING])

    def _aggregation(self, step: Step, operands: Any) -> Any:
        number, self.count = self.count, self.count + 1
        result_type = step.node.type.result
        if step.operator == "federated_aggregate":
            return self._fold(step, number, operands)
        flows, route = self._arriving(step, operands), INTRINSICS[step.operator].route
        leaves = [
            self._arrive(AggregationLeaf(number, leaf), Arrival(step, leaf, flow, route))
            for leaf, flow in enumerate(flows)
        ]
        if step.operator == "federated_collect":
            # There are as many rows as clients, which is no client's secret.
            leaves += [NOTHING, NOTHING]
        return self.interpreter.unflatten(result_type, leaves)

    def _arriving(self, step: Step, operands: Any) -> list[Flows]:
        """What flows from the clients into each leaf of an aggregation."""
        parameter = step.node.type.parameter
        assert parameter is not None
        if isinstance(parameter, FederatedType):
            return self.interpreter.flatten(parameter, operands)
        assert isinstance(parameter, StructType)
        value, other = [
            self.interpreter.flatten(type_, operand)
            for (_, type_), operand in zip(parameter.items(), operands, strict=True)
        ]
        # A weight flows into every leaf; bounds and moduli are one for all leaves or one for each.
        return [join_flows([flow, other[min(leaf, len(other) - 1)]]) for leaf, flow in enumerate(value)]

    def _fold(self, step: Step, number: int, operands: Any) -> Any:
        value, zero, accumulate, _, report = operands
        _, _, accumulate_type, _, _ = operand_types(step.node)  # pyright: ignore[reportArgumentType]
        assert isinstance(accumulate_type, FunctionType)
        assert isinstance(accumulate_type.parameter, StructType)
        type_: Type = accumulate_type.parameter[0]

        def add(carry: Sequence[Flows]) -> list[Flows]:
            return self.interpreter.flatten(type_, accumulate((self.interpreter.unflatten(type_, carry), value)))

        start = self.interpreter.flatten(type_, zero)
        # The clip of one summand is seen where nothing was added before; the sources, after any number of additions.
        once = add([NOTHING] * len(start))
        always = self.interpreter.fixpoint(start, add)
        leaves = []
        for leaf, fold in enumerate(leaf_folds(step)):
            flows = _with_bounds_of(always[leaf], once[leaf]) if fold.kept is Kept.SUM else always[leaf]
            route = Route.PLAIN if fold.kept is Kept.SUM else Route.REVEALING
            leaves.append(self._arrive(AggregationLeaf(number, leaf), Arrival(step, None, flows, route, fold)))
        return report(self.interpreter.unflatten(type_, leaves))

    def _arrive(self, leaf: AggregationLeaf, arrival: Arrival) -> Flows:
        self.arrivals[leaf] = arrival
        return Flows({leaf: arriving_marks(arrival)})


def _source(leaf: Leaf) -> Flows:
    return NOTHING if leaf.is_offset else Flows({ArgumentLeaf(leaf.path, leaf.placement): Marks()})


def _received(flows: Flows) -> Flows:
    """What flows into a value that the server sends to the clients: what is theirs in it is no longer one client's."""
    return flows.without_bound("federated_broadcast")


def _with_bounds_of(flows: Flows, once: Flows) -> Flows:
    """The flows with the bounds, and what took them away, as in the flows of one summand."""

    def restore(source: Any, marks: Marks) -> Marks:
        one = once.marks.get(source, Marks())
        bound = one.bound if one.bound is None else dataclasses.replace(one.bound, shifted=False)
        return dataclasses.replace(marks, bound=bound, lost=one.lost)

    return flows.map_marks(restore)


def arriving_marks(arrival: Arrival) -> Marks:
    """What holds, on the server's side, of all that one leaf of an aggregation brings: the weakest of what came in."""
    clients = arrival.flows.clients
    weakest: Marks | None = None
    for marks in clients.values():
        bound = marks.bound
        if marks.noise is not None:
            bound = marks.noise_bound
        elif bound is not None and bound.shifted:
            marks, bound = dataclasses.replace(marks, lost="add"), None
        marks = dataclasses.replace(marks, bound=bound)
        weakest = marks if weakest is None else weaker_marks(weakest, marks)
    if weakest is None:
        return Marks()
    # A weighted mean multiplies what was clipped, and a single client's value is not made private by noise on it later.
    unbounded = arrival.route is Route.REVEALING or arrival.step.operator == "federated_weighted_mean"
    return weakest.without_bound(arrival.step.operator) if unbounded else weakest
