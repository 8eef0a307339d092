"""Evaluation of expressions: the lambda calculus itself, with the meaning of operators left to the caller.

Values are in koinon's own form (tuples for structs, arrays, `Sequence`s); functions are Python functions of such
values. Everything here is traceable by JAX, so that one evaluator serves engines that run and engines that compile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from koinon.computation import _ir as ir
from koinon.computation._flat import flatten, from_user, to_user, unflatten
from koinon.computation._local import apply_local
from koinon.computation._sequence import Sequence
from koinon.types import FunctionType, SequenceType, StructType, TensorType, Type

Handler = Callable[[ir.Intrinsic, Any], Any]


class Evaluator:
    """Evaluates expressions.

    Args:
      handlers: for each operator its meaning, a function of the operator (with its type) and the value of its operands.
      run_local: runs a program of JAX on a value.
    """

    def __init__(
        self, handlers: Mapping[str, Handler], run_local: Callable[[ir.Local, Any], Any] = apply_local
    ) -> None:
        self._handlers = handlers
        self._run_local = run_local

    def evaluate(self, node: ir.Expression, scope: Mapping[str, Any]) -> Any:
        """The value of an expression, given those of the names in scope."""
        match node:
            case ir.Reference():
                return scope[node.name]
            case ir.Struct():
                return tuple([self.evaluate(element, scope) for _, element in node.elements])
            case ir.Selection():
                return self.evaluate(node.source, scope)[node.index]
            case ir.Block():
                inner = dict(scope)
                for name, value in node.locals:
                    inner[name] = self.evaluate(value, inner)
                return self.evaluate(node.result, inner)
            case ir.Call():
                function = self.evaluate(node.function, scope)
                return function(None if node.argument is None else self.evaluate(node.argument, scope))
            case ir.Lambda():
                # A copy: names bound later in a block around it are none of its business.
                return Closure(self, node, dict(scope))
            case ir.Local():
                return LocalFunction(node, self._run_local)
            case ir.Intrinsic():
                return OperatorFunction(node, self._handlers[node.name])
            case ir.Literal():
                return jnp.asarray(node.value)
            case ir.Placement():
                return node.literal


class Closure:
    """The value of a lambda expression: a function, and the scope in which it was written."""

    __slots__ = ("__weakref__", "evaluator", "node", "scope")

    def __init__(self, evaluator: Evaluator, node: ir.Lambda, scope: Mapping[str, Any]) -> None:
        self.evaluator = evaluator
        self.node = node
        self.scope = scope

    def __call__(self, argument: Any) -> Any:
        name = self.node.parameter_name
        scope = self.scope if name is None else {**self.scope, name: argument}
        return self.evaluator.evaluate(self.node.body, scope)


class LocalFunction:
    """The value of a program of JAX: a function."""

    __slots__ = ("__weakref__", "node", "run")

    def __init__(self, node: ir.Local, run: Callable[[ir.Local, Any], Any]) -> None:
        self.node = node
        self.run = run

    def __call__(self, argument: Any) -> Any:
        return self.run(self.node, argument)


class OperatorFunction:
    """The value of an operator: a function."""

    __slots__ = ("__weakref__", "handler", "node")

    def __init__(self, node: ir.Intrinsic, handler: Handler) -> None:
        self.node = node
        self.handler = handler

    def __call__(self, argument: Any) -> Any:
        return self.handler(self.node, argument)


# --- operators on sequences that are not placed ----------------------------------------------------------------------


def sequence_map(intrinsic: ir.Intrinsic, argument: Any) -> Sequence:
    """The meaning of `sequence_map`."""
    function, sequence = argument
    function_type, _ = operand_types(intrinsic)
    assert isinstance(function_type, FunctionType)

    def on_elements(element: Any) -> Any:
        return to_user(function_type.result, function(own_form(sequence.element_type, element)))

    return sequence.map(on_elements)


def sequence_reduce(intrinsic: ir.Intrinsic, argument: Any) -> Any:
    """The meaning of `sequence_reduce`."""
    sequence, zero, op = argument
    result_type = intrinsic.type.result
    carry = flatten(result_type, zero)

    def step(leaves: Any, element: Any) -> Any:
        value = op((unflatten(result_type, leaves), own_form(sequence.element_type, element)))
        return flatten(result_type, value)

    return unflatten(result_type, sequence.reduce(carry, step))


def sequence_sum(intrinsic: ir.Intrinsic, argument: Any) -> Any:
    """The meaning of `sequence_sum`."""
    result_type = intrinsic.type.result
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tensor_types(result_type))

    def step(leaves: Any, element: Any) -> Any:
        return [
            a + b for a, b in zip(leaves, flatten(result_type, own_form(argument.element_type, element)), strict=True)
        ]

    return unflatten(result_type, argument.reduce(zeros, step))


SEQUENCE_HANDLERS: dict[str, Handler] = {
    "sequence_map": sequence_map,
    "sequence_reduce": sequence_reduce,
    "sequence_sum": sequence_sum,
}


def own_form(type_: Type, value: Any) -> Any:
    """What a user's function saw, in koinon's own form."""
    return from_user(type_, value, lambda _type, leaf, _path: leaf)


def operand_types(intrinsic: ir.Intrinsic) -> list[Type]:
    """The types of the operands of an operator that takes several."""
    parameter = intrinsic.type.parameter
    assert isinstance(parameter, StructType)
    return [operand for _, operand in parameter.items()]


def tensor_types(type_: Type) -> list[jax.ShapeDtypeStruct]:
    """The shapes and dtypes of the leaves of a value without sequences."""
    if isinstance(type_, TensorType):
        assert type_.shape is not None
        return [jax.ShapeDtypeStruct(type_.shape, type_.dtype)]
    if isinstance(type_, StructType):
        return [leaf for _, field in type_.items() for leaf in tensor_types(field)]
    raise TypeError(
        f"{type_} is not made of tensors" if not isinstance(type_, SequenceType) else f"{type_} is a sequence"
    )
