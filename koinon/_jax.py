"""What differs between the versions of JAX that koinon runs on, and how programs of JAX are gone through."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

# What a CPU device asks of memory that it shares, in bytes.
_ALIGNMENT = 64

# To type checkers `jax.Device` is a variable and no type.
Device = Any


def evaluate(
    closed: ClosedJaxpr, arguments: Iterable[Any], apply: Callable[[Any, list[Any]], Sequence[Any]]
) -> list[Any]:
    """The results of a jaxpr, of which `apply` computes each equation from its inputs."""
    jaxpr = closed.jaxpr
    scope: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    scope.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else scope[atom]

    for eqn in jaxpr.eqns:
        outputs = apply(eqn, [read(atom) for atom in eqn.invars])
        scope.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(eqn: Any, inputs: list[Any], params: Mapping[str, Any]) -> Sequence[Any]:
    """The results of the primitive of an equation, of other inputs and with other parameters."""
    result = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(params))
    return result if eqn.primitive.multiple_results else [result]


def shapes_of(avals: Iterable[Any]) -> list[jax.ShapeDtypeStruct]:
    """The shapes and dtypes of abstract values, as functions of JAX take them."""
    return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """The number of constants and of carried values of a `scan` equation, from its parameters."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def greatest(values: jax.Array, initial: float | None = None) -> jax.Array:
    """The greatest element of an array, NaN where one is.

    `jnp.max` says so as well, but what the CPU compiler of JAX 0.10 to 0.12 makes of it overlooks NaN in arrays of some
    thousands of elements.
    """
    found = jnp.max(values, initial=initial)
    if not jnp.issubdtype(found.dtype, jnp.floating):
        return found
    return jnp.where(jnp.count_nonzero(values != values) > 0, jnp.nan, found)


def extremes(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least and the greatest element of an array, both NaN where one is; see `greatest`."""
    high = greatest(values)
    return jnp.where(high == high, jnp.min(values), high), high


def raveled(arrays: Iterable[Any]) -> jax.Array:
    """The elements of some arrays, of which there is at least one, one after the other in a vector."""
    return jnp.concatenate([jnp.ravel(array) for array in arrays])


def unraveled(vector: jax.Array, shapes: Iterable[Sequence[int]]) -> list[jax.Array]:
    """The arrays of some shapes whose elements a vector has one after the other: the inverse of `raveled`.

    XLA's CPU compiler ends the process where it takes nothing out of what it put together with an array without
    elements, so such an array is made anew.
    """
    arrays, start = [], 0
    for shape in shapes:
        stop = start + math.prod(shape)
        piece = jax.lax.slice_in_dim(vector, start, stop) if stop > start else jnp.zeros(0, vector.dtype)
        arrays.append(piece.reshape(shape))
        start = stop
    return arrays


def compiler_options(**options: Any) -> dict[str, Any]:
    """Those of some options of XLA's compiler that the installed version knows."""
    return {name: value for name, value in options.items() if _is_known(name, value)}


def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def aligned_empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array, not yet filled, that lies in memory as a CPU device wants it, so that the device need not copy it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
