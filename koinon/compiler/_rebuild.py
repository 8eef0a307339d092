"""Steps of a plan as functions again: expressions without placements, for the work of one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import NotCompilableError
from koinon.compiler._plan import needed_steps
from koinon.compiler._steps import PlanValue, Step
from koinon.computation import _ir as ir
from koinon.computation._check import check
from koinon.computation._evaluate import SEQUENCE_HANDLERS, Closure, LocalFunction, OperatorFunction
from koinon.types import FunctionType, StructType, Type, strip_placement

_PARAMETER = "argument"

Given = Mapping[int, ir.Expression]


def function_of(
    parameter: Type | None,
    given: Callable[[ir.Expression], Given],
    steps: Iterable[Step],
    result: Any,
    result_type: Type,
) -> ir.Lambda:
    """The function that some steps of a plan compute.

    Args:
      parameter: the type of its parameter, None if it takes none.
      given: from the parameter to the plan values that it brings, by their index.
      steps: the steps, in an order in which they can run.
      result: the plan values and constants of the result.
      result_type: the type of the result, without placements.
    """
    argument = None if parameter is None else ir.Reference(_PARAMETER, parameter)
    rebuilder = _Rebuilder({} if argument is None else given(argument))
    for step in steps:
        rebuilder.add(step)
    body = rebuilder.expression(result, result_type)
    if rebuilder.locals:
        body = ir.Block(tuple(rebuilder.locals), body)
    function = ir.Lambda(None if parameter is None else _PARAMETER, parameter, body)
    check(function)
    return function


def expression_of(value: Any, type_: Type, steps: Sequence[Step]) -> ir.Expression:
    """The expression of a plan's constant or function, with those of the steps that it needs."""
    rebuilder = _Rebuilder({})
    for step in needed_steps(steps, value):
        rebuilder.add(step)
    expression = rebuilder.expression(value, type_)
    return ir.Block(tuple(rebuilder.locals), expression) if rebuilder.locals else expression


class _Rebuilder:
    def __init__(self, given: Given) -> None:
        self.values: dict[int, ir.Expression] = dict(given)
        self.locals: list[tuple[str, ir.Expression]] = []

    def add(self, step: Step) -> None:
        """Binds what a step makes."""
        expression = self._step(step)
        name = f"step{len(self.locals)}"
        self.locals.append((name, expression))
        self._bind(step.output, ir.Reference(name, expression.type))

    def _bind(self, output: Any, expression: ir.Expression) -> None:
        if isinstance(output, tuple):
            for index, part in enumerate(output):
                self._bind(part, ir.Selection(expression, index))
        else:
            self.values[output.index] = expression

    def _step(self, step: Step) -> ir.Expression:
        parameter = step.node.type.parameter
        type_ = None if parameter is None else strip_placement(parameter)
        if step.operator == "local":
            argument = None if type_ is None else self.expression(step.operands, type_)
            return ir.Call(step.node, argument, made_in=step.made_in)
        assert type_ is not None
        match step.operator:
            case "federated_map":
                assert isinstance(type_, StructType)
                function, value = step.operands
                return ir.Call(self._function(function), self.expression(value, type_[1]))
            case "federated_eval_at_server" | "federated_eval_at_clients":
                return ir.Call(self._function(step.operands), None)
            case "federated_zip" | "federated_value_at_server" | "federated_value_at_clients":
                return self.expression(step.operands, type_)
            case name if name in SEQUENCE_HANDLERS:
                unplaced = strip_placement(step.node.type)
                assert isinstance(unplaced, FunctionType)
                return ir.Call(ir.Intrinsic(name, unplaced), self.expression(step.operands, type_))
            case _:
                raise NotCompilableError(f"The operator {step.operator} is no work of one place.")

    def expression(self, value: Any, type_: Type) -> ir.Expression:
        """The expression of operands."""
        if isinstance(value, PlanValue):
            return self.values[value.index]
        if isinstance(value, tuple):
            assert isinstance(type_, StructType)
            elements = [
                (name, self.expression(part, field)) for (name, field), part in zip(type_.items(), value, strict=True)
            ]
            return ir.Struct(tuple(elements), type_.container)
        if isinstance(value, (Closure, LocalFunction, OperatorFunction)):
            return self._function(value)
        if not hasattr(value, "dtype"):
            raise NotCompilableError("A constant of a plan is no tensor.", found=repr(value))
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.extended)
        return ir.Literal(value if is_key else np.asarray(value), type_)

    def _function(self, value: Any) -> ir.Expression:
        if not isinstance(value, Closure):
            return value.node
        function: ir.Expression = value.node
        references = {node.name: node.type for node in ir.walk(value.node) if isinstance(node, ir.Reference)}
        for name in sorted(ir.free_names(value.node)):
            # What a function has captured becomes an argument of a function around it.
            captured = self.expression(value.scope[name], strip_placement(references[name]))
            function = ir.Call(ir.Lambda(name, references[name], function), captured)
        return function
