"""A computation as a plan: the steps of the server, of the clients, and the aggregations between them, in phases.

    Plan = [server | broadcast -> clients -> aggregate]*, server

A computation becomes a plan by evaluating it with operators that record themselves: calls, blocks, structs and
selections vanish, and what is left is a list of steps on placed values. The phase of a step is the number of
aggregations on the longest way to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from koinon._errors import NotCompilableError
from koinon.compiler._show import format_plan, mermaid
from koinon.compiler._steps import AGGREGATIONS, Phase, PlanValue, Step, plan_values, structure_leaves
from koinon.computation import INTRINSICS, Computation
from koinon.computation import _ir as ir
from koinon.computation._evaluate import Closure, Evaluator, Handler, LocalFunction, OperatorFunction
from koinon.computation._print import TYPE_WIDTH
from koinon.types import CLIENTS, SERVER, FederatedType, FunctionType, StructType, Type, contains_federated_types


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a computation does, in phases; the last phase has no clients' part, unless a result stays at the clients.

    Attributes:
      name: the name of the computation.
      type: its type.
      parameter: the plan values of the argument, in the structure of the parameter.
      phases: the phases in order.
      result: the plan values and constants of the result, in its structure.
    """

    name: str
    type: FunctionType
    parameter: Any
    phases: tuple[Phase, ...]
    result: Any

    def __str__(self) -> str:
        return self.formatted_representation()

    def formatted_representation(self, width: int | None = TYPE_WIDTH) -> str:
        """The plan as a page: for each phase what happens where, one line for each value.

        Args:
          width: at most about so many characters for the type of a value: structures that do not fit print as `<...>`.
            None for whole types.
        """
        return format_plan(self.name, self.type, self.parameter, self.phases, self.result, width)

    def mermaid(self) -> str:
        """The plan as a Mermaid flowchart, the server and the clients side by side."""
        return mermaid(self.type, self.parameter, self.phases, self.result)

    def steps(self) -> Iterator[Step]:
        """All steps, in an order in which they can run."""
        for phase in self.phases:
            yield from phase.server
            yield from phase.clients
            yield from phase.aggregations


def plan(computation: Computation) -> Plan:
    """The plan of a computation.

    Raises:
      NotCompilableError: where the computation takes or returns functions, or branches on placed values in a way that
        no plan can express; the message names the expression.
    """
    return _Recorder().record(computation)


class _Recorder:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.count = 0
        handlers: Mapping[str, Handler] = dict.fromkeys(INTRINSICS, self._operator)
        self.evaluator = Evaluator(handlers, self._local)

    def record(self, computation: Computation) -> Plan:
        type_ = computation.type_signature
        parameter = None if type_.parameter is None else self._values_of(type_.parameter, 0)
        result = self.evaluator.evaluate(computation.expression, {})(parameter)
        if any(isinstance(leaf, (Closure, LocalFunction, OperatorFunction)) for leaf in structure_leaves(result)):
            raise NotCompilableError(
                f"The computation `{computation.name}` returns a function, which has no plan.", found=type_
            )
        steps = needed_steps(self.steps, result)
        last = max([step.phase for step in steps] + [value.phase for value in plan_values(result)], default=0)
        phases = tuple([_phase(steps, number) for number in range(last + 1)])
        return Plan(computation.name, type_, parameter, phases, result)

    def _value(self, type_: Type, phase: int) -> PlanValue:
        self.count += 1
        return PlanValue(self.count - 1, type_, phase)

    def _values_of(self, type_: Type, phase: int) -> Any:
        """Values for a type: one for what is placed, else one for each leaf."""
        if isinstance(type_, StructType):
            return tuple([self._values_of(field, phase) for _, field in type_.items()])
        if isinstance(type_, FunctionType):
            raise NotCompilableError("A computation that takes a function has no plan of its own.", found=type_)
        return self._value(type_, phase)

    def _local(self, node: ir.Local, argument: Any) -> Any:
        phase = max([value.phase for value in plan_values(argument)], default=0)
        output = self._values_of(node.type.result, phase)
        self.steps.append(Step("local", node, argument, output, phase, SERVER, node.made_in))
        return output

    def _operator(self, node: ir.Intrinsic, argument: Any) -> Any:
        result_type = node.type.result
        phase = max([value.phase for value in plan_values(argument)], default=0)
        aggregates = node.name in AGGREGATIONS
        if aggregates or (isinstance(result_type, FederatedType) and result_type.placement is CLIENTS):
            placement = CLIENTS
        else:
            placement = SERVER
        if isinstance(result_type, StructType) and contains_federated_types(result_type):
            raise NotCompilableError(
                f"The operator {node.name} makes several placed values at once.", found=result_type
            )
        output = self._values_of(result_type, phase + aggregates)
        self.steps.append(Step(node.name, node, argument, output, phase, placement))
        return output


def needed_steps(steps: Sequence[Step], result: Any) -> list[Step]:
    """The steps that a result depends on, in their order."""
    wanted = {value.index for value in plan_values(result)}
    kept = []
    for step in reversed(steps):
        if any(value.index in wanted for value in plan_values(step.output)):
            kept.append(step)
            wanted.update(value.index for value in plan_values(step.operands))
    return kept[::-1]


def _phase(steps: list[Step], number: int) -> Phase:
    here = [step for step in steps if step.phase == number]
    return Phase(
        server=tuple([step for step in here if step.placement is SERVER]),
        clients=tuple([s for s in here if s.placement is CLIENTS and s.operator not in AGGREGATIONS]),
        aggregations=tuple([step for step in here if step.operator in AGGREGATIONS]),
    )
