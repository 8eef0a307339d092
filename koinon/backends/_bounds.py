"""Static bounds for folds, so that reverse-mode differentiation can pass them.

The number of steps of a fold follows from the lengths of sequences, by the integer arithmetic of `batch`, `take`,
`repeat` and the like. What is known of the lengths, the least and the greatest that each can be, is carried through
that arithmetic; the greatest number of steps that comes out is a bound whatever the lengths are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from koinon._jax import scan_counts
from koinon.computation._sequence_primitives import reduce_p

# The least and the greatest that an integer can be, or any element of an array; an infinity where nothing is known.
Interval = tuple[float, float]
ANY: Interval = (-math.inf, math.inf)
EITHER: Interval = (0, 1)


def bound_folds(closed: ClosedJaxpr, greatest: Sequence[int | None]) -> ClosedJaxpr:
    """Gives the folds of a program, at every depth, a static bound where one follows from the lengths.

    Args:
      closed: the program.
      greatest: for each input the greatest value of a length; None for an input that is no length.
    """
    inputs = [ANY if value is None else (0, value) for value in greatest]
    return _bounded(closed, inputs)[0]


def _bounded(closed: ClosedJaxpr, inputs: Sequence[Interval]) -> tuple[ClosedJaxpr, list[Interval]]:
    """A program with its folds bounded, and what is known of its results."""
    jaxpr = closed.jaxpr
    known: dict[Any, Interval] = dict(zip(jaxpr.constvars, map(_interval_of, closed.consts), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Interval:
        return _interval_of(atom.val) if isinstance(atom, Literal) else known[atom]

    eqns = []
    for eqn in jaxpr.eqns:
        params, outputs = _bounded_equation(eqn, [read(atom) for atom in eqn.invars])
        eqns.append(eqn if params is None else eqn.replace(params={**eqn.params, **params}))
        known.update(zip(eqn.outvars, outputs, strict=True))
    return ClosedJaxpr(jaxpr.replace(eqns=eqns), closed.consts), [read(atom) for atom in jaxpr.outvars]


def _bounded_equation(eqn: Any, inputs: list[Interval]) -> tuple[dict[str, Any] | None, list[Interval]]:
    """The parameters of an equation that change, and what is known of its outputs."""
    params = eqn.params
    nothing = [ANY] * len(eqn.outvars)
    match eqn.primitive.name:
        case reduce_p.name:
            (_, steps), consts = inputs[0], inputs[1 : 1 + params["num_consts"]]
            carry = [ANY] * (len(inputs) - 1 - len(consts))
            body, _ = _bounded(params["jaxpr"], [*consts, (0, max(0, steps - 1)), *carry])
            return {"jaxpr": body, "bound": max(0, int(steps)) if math.isfinite(steps) else None}, nothing
        case "jit" | "pjit":
            body, outputs = _bounded(params["jaxpr"], inputs)
            return {"jaxpr": body}, outputs
        case "cond":
            branches = [_bounded(branch, inputs[1:]) for branch in params["branches"]]
            outputs = [_union(cases) for cases in zip(*[known for _, known in branches], strict=True)]
            return {"branches": tuple([branch for branch, _ in branches])}, outputs
        case "scan":
            consts = inputs[: scan_counts(params)[0]]
            body, _ = _bounded(params["jaxpr"], [*consts, *[ANY] * (len(inputs) - len(consts))])
            return {"jaxpr": body}, nothing
        case "convert_element_type" if _is_integer(eqn.outvars[0].aval):
            return None, [_converted(inputs[0], eqn.outvars[0].aval.dtype)]
        case name if name in _RULES and _is_integer(eqn.outvars[0].aval):
            return None, [_in_range(_RULES[name](*inputs), eqn.outvars[0].aval.dtype)]
    return None, nothing


def _interval_of(value: Any) -> Interval:
    if np.ndim(value) or not _is_integer(value):
        return ANY
    return int(value), int(value)


def _is_integer(array: Any) -> bool:
    return getattr(getattr(array, "dtype", np.dtype(type(array))), "kind", None) in ("b", "i", "u")


def _converted(interval: Interval, dtype: np.dtype) -> Interval:
    if dtype != np.bool_:
        return _in_range(interval, dtype)
    least, greatest = interval
    return (0, 0) if least == greatest == 0 else EITHER if least <= 0 <= greatest else (1, 1)


def _in_range(interval: Interval, dtype: np.dtype) -> Interval:
    """What is known of a result; nothing where it may have left the numbers of its dtype, and come round."""
    least, greatest = (0, 1) if dtype == np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    leaves = any(math.isfinite(bound) and not least <= bound <= greatest for bound in interval)
    return ANY if leaves else interval


def _union(cases: Sequence[Interval]) -> Interval:
    return min(least for least, _ in cases), max(greatest for _, greatest in cases)


def _at_corners(fn: Callable[[float, float], float]) -> Callable[[Interval, Interval], Interval]:
    """The rule of a function that is monotone in each of two arguments: its extremes are where theirs are."""

    def rule(left: Interval, right: Interval) -> Interval:
        values = [fn(x, y) for x, y in itertools.product(left, right)]
        return min(values), max(values)

    return rule


def _unless_unknown(rule: Callable[..., Interval]) -> Callable[..., Interval]:
    """A rule for what comes round where it leaves the numbers of its dtype, as a number that is unknown may do."""

    def of_known(*inputs: Interval) -> Interval:
        return rule(*inputs) if all(map(math.isfinite, itertools.chain(*inputs))) else ANY

    return of_known


def _quotient(x: float, y: float) -> float:
    """Division that rounds to zero, as XLA divides integers."""
    if math.isinf(y):
        return 0
    return x * math.copysign(1, y) if math.isinf(x) else math.copysign(1, x) * math.copysign(1, y) * (abs(x) // abs(y))


def _div(left: Interval, right: Interval) -> Interval:
    return ANY if right[0] <= 0 <= right[1] else _at_corners(_quotient)(left, right)


def _rem(left: Interval, right: Interval) -> Interval:
    if right[0] <= 0 <= right[1]:
        return ANY
    most = max(abs(right[0]), abs(right[1])) - 1
    return max(min(left[0], 0), -most), min(max(left[1], 0), most)


def _compare(surely: Callable[[Interval, Interval], bool], never: Callable[[Interval, Interval], bool]) -> Any:
    return lambda x, y: (1, 1) if surely(x, y) else (0, 0) if never(x, y) else EITHER


def _select(which: Interval, *cases: Interval) -> Interval:
    known = which[0] == which[1] and 0 <= which[0] < len(cases)
    return cases[int(which[0])] if known else _union(cases)


def _clamp(least: Interval, value: Interval, greatest: Interval) -> Interval:
    return _RULES["min"](_RULES["max"](value, least), greatest)


def _same(value: Interval, *_: Interval) -> Interval:
    return value


def _are_equal(x: Interval, y: Interval) -> bool:
    return x == y and x[0] == x[1] and math.isfinite(x[0])


def _are_apart(x: Interval, y: Interval) -> bool:
    return x[1] < y[0] or y[1] < x[0]


def _logic(fn: Callable[[int, int], int]) -> Callable[[Interval, Interval], Interval]:
    def rule(x: Interval, y: Interval) -> Interval:
        if not all(0 <= bound <= 1 for bound in (*x, *y)):
            return ANY
        return fn(int(x[0]), int(y[0])), fn(int(x[1]), int(y[1]))

    return rule


_RULES: dict[str, Callable[..., Interval]] = {
    "add": _unless_unknown(lambda x, y: (x[0] + y[0], x[1] + y[1])),
    "sub": _unless_unknown(lambda x, y: (x[0] - y[1], x[1] - y[0])),
    "mul": _unless_unknown(_at_corners(lambda x, y: x * y)),
    "div": _div,
    "rem": _rem,
    "neg": _unless_unknown(lambda x: (-x[1], -x[0])),
    "sign": lambda x: (max(-1, min(1, x[0])), max(-1, min(1, x[1]))),
    "abs": _unless_unknown(lambda x: (max(0, x[0], -x[1]), max(-x[0], x[1]))),
    "max": lambda x, y: (max(x[0], y[0]), max(x[1], y[1])),
    "min": lambda x, y: (min(x[0], y[0]), min(x[1], y[1])),
    "clamp": _clamp,
    "select_n": _select,
    "eq": _compare(_are_equal, _are_apart),
    "ne": _compare(_are_apart, _are_equal),
    "lt": _compare(lambda x, y: x[1] < y[0], lambda x, y: x[0] >= y[1]),
    "le": _compare(lambda x, y: x[1] <= y[0], lambda x, y: x[0] > y[1]),
    "gt": _compare(lambda x, y: x[0] > y[1], lambda x, y: x[1] <= y[0]),
    "ge": _compare(lambda x, y: x[0] >= y[1], lambda x, y: x[1] < y[0]),
    "and": _logic(lambda x, y: x & y),
    "or": _logic(lambda x, y: x | y),
    **dict.fromkeys(("broadcast_in_dim", "copy", "reshape", "squeeze", "reduce_max", "reduce_min"), _same),
}
