"""Unknown dimensions: JAX's symbolic dimensions while a computation is traced, numbers when it runs.

`symbolic_avals` gives every `?` of a type a dimension variable of its own. `specialize` puts the dimensions of actual
arguments in the place of those variables, through a whole jaxpr, so that it runs, differentiates and batches like one
traced for these shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from koinon._errors import ArgumentError, UnsupportedTypeError
from koinon._jax import shapes_of
from koinon.computation._ir import kept_with_program
from koinon.types import TensorType


def symbolic_avals(types: Sequence[TensorType]) -> list[jax.ShapeDtypeStruct]:
    """The abstract arrays of these tensor types, with a variable for each unknown dimension."""
    count = sum(dim is None for type_ in types for dim in _shape_of(type_))
    names = ",".join(f"d{i}" for i in range(count))
    variables = iter(export.symbolic_shape(names) if count else ())
    return [
        jax.ShapeDtypeStruct(tuple([next(variables) if dim is None else dim for dim in _shape_of(type_)]), type_.dtype)
        for type_ in types
    ]


def _shape_of(type_: TensorType) -> tuple[int | None, ...]:
    if type_.shape is None:
        raise UnsupportedTypeError(
            "A jax_computation cannot take a tensor of unknown rank.",
            found=type_,
            hint="give the rank, with `?` (None) for each unknown dimension",
        )
    return type_.shape


def is_symbolic(shape: Sequence[Any]) -> bool:
    """Whether a dimension of the shape is a variable or an expression of variables."""
    return not all(isinstance(dim, (int, np.integer)) for dim in shape)


def specialize(closed: ClosedJaxpr, arguments: Sequence[Any]) -> ClosedJaxpr:
    """The jaxpr with its dimension variables replaced by the dimensions of the arguments.

    Args:
      closed: a jaxpr whose inputs have shapes as `symbolic_avals` makes them.
      arguments: one array, or what has a shape, for each input; their dimensions may be variables of another trace.

    Returns:
      The jaxpr for these shapes, made once for each assignment of sizes; `closed` itself where nothing is unknown.

    Raises:
      ArgumentError: if a dimension has two sizes in these arguments.
    """
    dims: dict[str, Any] = {}
    for struct, argument in zip(shapes_of(var.aval for var in closed.jaxpr.invars), arguments, strict=True):
        for expected, found in zip(struct.shape, np.shape(argument), strict=True):
            if isinstance(expected, (int, np.integer)):
                continue
            known = dims.setdefault(str(expected), found)
            if known != found:
                raise ArgumentError(
                    f"The dimension {expected} cannot have two sizes in one call.", expected=known, found=found
                )
    if not dims:
        return closed
    return _specialize_cached(closed, tuple(dims.items()))


@kept_with_program
def _specialize_cached(closed: ClosedJaxpr, dims: tuple[tuple[str, Any], ...]) -> ClosedJaxpr:
    return _Specializer(dict(dims)).closed_jaxpr(closed)


class _Specializer:
    """Rewrites jaxprs under one assignment of sizes to dimension variables."""

    def __init__(self, dims: dict[str, Any]) -> None:
        self.dims = dims

    def closed_jaxpr(self, closed: ClosedJaxpr) -> ClosedJaxpr:
        return ClosedJaxpr(self.jaxpr(closed.jaxpr), closed.consts)

    def jaxpr(self, jaxpr: Jaxpr) -> Jaxpr:
        variables: dict[Any, Any] = {}

        def define(var: Any) -> Any:
            new = type(var)(self.value(var.aval))
            variables[var] = new
            return new

        def read(atom: Any) -> Any:
            return atom if isinstance(atom, Literal) else variables[atom]

        constvars = [define(var) for var in jaxpr.constvars]
        invars = [define(var) for var in jaxpr.invars]
        eqns = []
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dim_as_value":
                size = self.value(eqn.params["dim"])
                if isinstance(size, (int, np.integer)):
                    aval: Any = eqn.outvars[0].aval
                    variables[eqn.outvars[0]] = Literal(np.asarray(size, aval.dtype), aval.update(weak_type=False))
                    continue
            new_invars = [read(var) for var in eqn.invars]
            new_params = {name: self.value(param) for name, param in eqn.params.items()}
            eqns.append(eqn.replace(invars=new_invars, outvars=[define(var) for var in eqn.outvars], params=new_params))
        outvars = [read(var) for var in jaxpr.outvars]
        return jaxpr.replace(constvars=constvars, invars=invars, outvars=outvars, eqns=eqns)

    def value(self, value: Any) -> Any:
        """A parameter of an equation, with every dimension in it replaced."""
        if isinstance(value, ClosedJaxpr):
            return self.closed_jaxpr(value)
        if isinstance(value, Jaxpr):
            return self.jaxpr(value)
        if isinstance(value, ShapedArray):
            return value.update(shape=self.value(value.shape)) if is_symbolic(value.shape) else value
        if export.is_symbolic_dim(value):
            result = value._evaluate(self.dims)
            return int(result) if isinstance(result, (int, np.integer)) else result
        if type(value) is tuple:
            return tuple([self.value(item) for item in value])
        if type(value) is list:
            return [self.value(item) for item in value]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*[self.value(item) for item in value])
        return value
