"""How much work a program is, from its jaxpr alone: a rule of thumb for the choice of a strategy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

from koinon.computation._sequence_primitives import read_run_p, reduce_p
from koinon.computation._symbolic import is_symbolic

# What a dimension that is not known yet counts as.
_UNKNOWN = 64


def _size(shape: Any) -> int:
    return math.prod([dim if isinstance(dim, int) else _UNKNOWN for dim in shape])


def operations(jaxpr: Jaxpr) -> int:
    """The arithmetic operations of one run; a loop of unknown length counts as one step."""
    total = 0
    for eqn in jaxpr.eqns:
        repeat = _size([eqn.params["length"]]) if eqn.primitive.name == "scan" else 1
        inner = sum(operations(sub) for sub in sub_jaxprs(eqn))
        total += repeat * inner if inner else _operations_of(eqn)
    return total


def _operations_of(eqn: Any) -> int:
    outputs = sum(_size(var.aval.shape) for var in eqn.outvars if hasattr(var.aval, "shape"))
    if eqn.primitive.name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        return 2 * outputs * _size([eqn.invars[0].aval.shape[d] for d in contract])
    if eqn.primitive.name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        features = _size([kernel[eqn.params["dimension_numbers"].rhs_spec[0]]])
        return 2 * outputs * _size(kernel) // max(1, features)
    return outputs


def sub_jaxprs(eqn: Any) -> Iterator[Jaxpr]:
    """The jaxprs among the parameters of an equation."""
    for param in _params(eqn):
        if isinstance(param, ClosedJaxpr):
            yield param.jaxpr
        elif isinstance(param, Jaxpr):
            yield param


def closed_jaxprs(eqn: Any) -> Iterator[ClosedJaxpr]:
    """Those of the jaxprs among the parameters of an equation that bring their constants along."""
    return (param for param in _params(eqn) if isinstance(param, ClosedJaxpr))


def _params(eqn: Any) -> Iterator[Any]:
    for param in eqn.params.values():
        yield from param if isinstance(param, (tuple, list)) else (param,)


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """The equations of a jaxpr and of all jaxprs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in sub_jaxprs(eqn):
            yield from equations(sub)


def largest_read(jaxpr: Jaxpr) -> int:
    """The largest number of rows that the program reads from a sequence at once."""
    return max((eqn.params["size"] for eqn in equations(jaxpr) if eqn.primitive is read_run_p), default=0)


def has_convolutions(jaxpr: Jaxpr) -> bool:
    """Whether there is a convolution in the program."""
    return any(eqn.primitive.name == "conv_general_dilated" for eqn in equations(jaxpr))


def has_symbolic_results(jaxpr: Jaxpr) -> bool:
    """Whether an equation makes an array whose shape depends on that of an input."""
    return any(
        is_symbolic(var.aval.shape) for eqn in equations(jaxpr) for var in eqn.outvars if hasattr(var.aval, "shape")
    )


def step_operations(jaxpr: Jaxpr) -> int | None:
    """The operations of the largest step of a fold over a sequence; None where there is no fold."""
    steps = [operations(sub) for eqn in equations(jaxpr) if eqn.primitive is reduce_p for sub in sub_jaxprs(eqn)]
    return max(steps, default=None)
