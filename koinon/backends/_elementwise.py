"""Functions of each element as XLA's CPU compiler is fast for them: a rule of `_rewrite`."""

from __future__ import annotations

import math
from typing import Any

import jax

from koinon._jax import bind
from koinon.computation._symbolic import is_symbolic

# A vector register holds so many numbers; over fewer columns there is no vector code.
FEW_COLUMNS = 16

# With fewer elements the vector code is not worth its beginning.
FEWEST_ELEMENTS = 64

_FUNCTIONS = frozenset(("exp", "expm1", "log", "log1p", "tanh", "logistic", "erf"))


def flat_function(eqn: Any, inputs: list[Any]) -> list[Any] | None:
    """Takes a function of each element of an array with few columns on the flat array.

    XLA's CPU compiler makes vector code of the loop along the last dimension. A softmax over ten classes would take its
    exponentials one by one.
    """
    if not has_flat_function(eqn):
        return None
    # Without the barrier the array would get its shape back.
    flat = jax.lax.optimization_barrier(inputs[0].reshape(-1))
    return [bind(eqn, [flat], eqn.params)[0].reshape(eqn.outvars[0].aval.shape)]


def has_flat_function(eqn: Any) -> bool:
    """Whether an equation is a function of each element of an array with few columns and many rows."""
    if eqn.primitive.name not in _FUNCTIONS:
        return False
    shape = eqn.outvars[0].aval.shape
    return (
        len(shape) > 1
        and not is_symbolic(shape)
        and 1 < shape[-1] < FEW_COLUMNS
        and math.prod(shape) >= FEWEST_ELEMENTS
    )
