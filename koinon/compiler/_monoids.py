"""Aggregations as four functions: zero, accumulate, merge and report, each a program over flat accumulators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from koinon.compiler._rebuild import expression_of
from koinon.compiler._steps import Step
from koinon.computation import _ir as ir
from koinon.computation._evaluate import operand_types, tensor_types
from koinon.types import FederatedType, FunctionType, StructType, TensorType, Type, strip_placement

Leaves = list[Any]


@dataclasses.dataclass(frozen=True)
class Monoid:
    """An aggregation as expressions.

    Attributes:
      accumulator: the type of the accumulator `A`.
      value: the type `T` of what it takes of one client.
      zero: an `A`.
      accumulate: `(<A,T> -> A)`.
      merge: `(<A,A> -> A)`.
      report: `(A -> R)`.
    """

    accumulator: Type
    value: Type
    zero: ir.Expression
    accumulate: ir.Expression
    merge: ir.Expression
    report: ir.Expression


def monoid_of(step: Step, steps: Sequence[Step]) -> Monoid:
    """The four functions of an aggregation that is a fold.

    Args:
      step: the aggregation.
      steps: what the server does before it, of which a user's operators may have captured something.
    """
    match step.operator:
        case "federated_sum":
            return _elementwise(step, jnp.add, lambda leaf: 0)
        case "federated_min":
            return _elementwise(step, jnp.minimum, lambda leaf: _limits(leaf.dtype).max)
        case "federated_max":
            return _elementwise(step, jnp.maximum, lambda leaf: _limits(leaf.dtype).min)
        case "federated_mean" | "federated_weighted_mean":
            return _mean(step)
        case "federated_aggregate":
            return _users(step, steps)
        case _:
            raise ValueError(f"{step.operator} is no fold of values that the server sees")


def _limits(dtype: Any) -> Any:
    return jnp.iinfo(dtype) if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype)


def _value_type(step: Step) -> Type:
    """What an aggregation takes of one client; with a weight, both."""
    parameter = step.node.type.parameter
    assert parameter is not None
    return strip_placement(parameter)


def _program(name: str, parameter: Type | None, result: Type, fn: Callable[..., Leaves]) -> ir.Local:
    """A program of a function over flat leaves."""
    types = [] if parameter is None else tensor_types(parameter)
    return ir.Local(name, jax.make_jaxpr(fn)(*types), FunctionType(parameter, result))


def _pair(first: Type, second: Type) -> StructType:
    return StructType([first, second])


def _elementwise(step: Step, op: Callable[[Any, Any], Any], start: Callable[[Any], Any]) -> Monoid:
    type_ = _value_type(step)
    leaves = tensor_types(type_)
    width = len(leaves)

    def combine(*both: Any) -> Leaves:
        return [op(a, b).astype(a.dtype) for a, b in zip(both[:width], both[width:], strict=True)]

    zero = _program("zero", None, type_, lambda: [jnp.full(leaf.shape, start(leaf), leaf.dtype) for leaf in leaves])
    combined = _program(op.__name__, _pair(type_, type_), type_, combine)
    identity = _program("identity", type_, type_, lambda *values: list(values))
    return Monoid(type_, type_, ir.Call(zero, None), combined, combined, identity)


def _mean(step: Step) -> Monoid:
    value = _value_type(step)
    weighted = step.operator == "federated_weighted_mean"
    result = strip_placement(step.node.type.result)
    leaves = tensor_types(result)
    width = len(leaves)
    # Sums of many small numbers lose too much in half precision.
    wide = [jnp.promote_types(leaf.dtype, jnp.float32) for leaf in leaves]
    totals = StructType([TensorType(dtype, leaf.shape) for dtype, leaf in zip(wide, leaves, strict=True)])
    weights = StructType([TensorType(dtype) for dtype in wide])
    accumulator = StructType([("totals", totals), ("weights", weights)])

    def zero() -> Leaves:
        shapes = [(leaf.shape, dtype) for leaf, dtype in zip(leaves, wide, strict=True)]
        return [*[jnp.zeros(shape, dtype) for shape, dtype in shapes], *[jnp.zeros((), dtype) for dtype in wide]]

    def accumulate(*operands: Any) -> Leaves:
        state, row = operands[: 2 * width], operands[2 * width : 3 * width]
        weight = operands[3 * width] if weighted else jnp.float32(1.0)
        added = [
            total + leaf.astype(dtype) * weight.astype(dtype)
            for total, leaf, dtype in zip(state[:width], row, wide, strict=True)
        ]
        counts = [total + weight.astype(dtype) for total, dtype in zip(state[width:], wide, strict=True)]
        return [*added, *counts]

    def merge(*both: Any) -> Leaves:
        return [a + b for a, b in zip(both[: 2 * width], both[2 * width :], strict=True)]

    def report(*state: Any) -> Leaves:
        return [
            (total / weight).astype(leaf.dtype)
            for total, weight, leaf in zip(state[:width], state[width:], leaves, strict=True)
        ]

    return Monoid(
        accumulator,
        value,
        ir.Call(_program("zero", None, accumulator, zero), None),
        _program("accumulate", _pair(accumulator, value), accumulator, accumulate),
        _program("merge", _pair(accumulator, accumulator), accumulator, merge),
        _program("report", accumulator, result, report),
    )


def _users(step: Step, steps: Sequence[Step]) -> Monoid:
    """The operators of the user, as they are."""
    _, zero, *functions = step.operands
    value_type, _, accumulate_type, _, _ = operand_types(step.node)  # pyright: ignore[reportArgumentType]
    assert isinstance(value_type, FederatedType)
    assert isinstance(accumulate_type, FunctionType)
    assert isinstance(accumulate_type.parameter, StructType)
    types = operand_types(step.node)[1:]  # pyright: ignore[reportArgumentType]
    parts = [expression_of(part, type_, steps) for part, type_ in zip([zero, *functions], types, strict=True)]
    return Monoid(accumulate_type.parameter[0], value_type.member, *parts)
