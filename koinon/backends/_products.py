"""Products of matrices as XLA's CPU compiler is fast for them: a rule of `_rewrite`."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

# With more rows than this the copies cost what the faster product gains.
MOST_ROWS = 512

# From so many columns on the code that is replaced is as fast.
WIDE = 32


def narrow_gradient(eqn: Any, inputs: list[Any]) -> list[Any] | None:
    """Takes a product that sums over the rows of both factors, one of which is narrow, the other way round.

    XLA's CPU compiler has fast kernels for the product of an untransposed matrix with another. The gradient of a
    layer's weights, `xᵀ g` for a batch of a few rows, goes a slow way instead, three times slower if there are ten
    classes: the narrow factor makes the inner loop. So that one is copied transposed, and the other makes it.
    """
    if not has_narrow_gradient(eqn):
        return None
    rows = len(eqn.params["dimension_numbers"][0][0])
    left, right = [x.reshape(-1, math.prod(x.shape[rows:])) for x in inputs]
    if left.shape[1] < right.shape[1]:
        result = _product(eqn, left, right)
    else:
        result = _product(eqn, right, left).T
    return [result.reshape(eqn.outvars[0].aval.shape)]


def has_narrow_gradient(eqn: Any) -> bool:
    """Whether an equation is a product over the leading dimensions of both factors, one of which is narrow."""
    if eqn.primitive.name != "dot_general":
        return False
    (left, right), (batch, _) = eqn.params["dimension_numbers"]
    leading = tuple(range(len(left)))
    if batch or not leading or tuple(left) != leading or tuple(right) != leading:
        return False
    shapes = [atom.aval.shape for atom in eqn.invars]
    columns = min(math.prod(shape[len(leading) :]) for shape in shapes)
    return (
        1 < math.prod(shapes[0][: len(leading)]) <= MOST_ROWS
        and 1 < columns < WIDE
        and all(atom.aval.dtype == jnp.float32 for atom in (*eqn.invars, *eqn.outvars))
    )


def _product(eqn: Any, narrow: jax.Array, wide: jax.Array) -> jax.Array:
    """The product of the transpose of a matrix with another, which the compiler must not turn round again."""
    params = {**eqn.params, "dimension_numbers": (((1,), (0,)), ((), ()))}
    return jax.lax.optimization_barrier(eqn.primitive.bind(jax.lax.optimization_barrier(narrow.T), wide, **params))
