"""Programs of JAX as computations: tracing a Python function into a closed jaxpr over flat leaves, and running one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax.core import eval_jaxpr

from koinon._errors import ComputationReturnedNoneError, KoinonError, KoinonTypeError
from koinon.computation import _ir as ir
from koinon.computation._builder import not_building
from koinon.computation._computation import decorate
from koinon.computation._flat import flatten, from_user, leaf_types, to_user, unflatten
from koinon.computation._precision import check_precision
from koinon.computation._sequence import Sequence
from koinon.computation._symbolic import specialize, symbolic_avals
from koinon.types import (
    FunctionType,
    SequenceType,
    StructType,
    TensorType,
    Type,
    infer_type,
    type_contains_only,
)


def trace_local(
    fn: Callable[..., Any], parameter: Type | None, *, name: str, made_in: str | None, unpack: bool
) -> ir.Local:
    """Traces a function of JAX values.

    Args:
      fn: the function.
      parameter: the type of its one parameter, or None.
      name: what the program is called where it is printed.
      made_in: file and line of the function.
      unpack: whether the fields of the parameter are the arguments of `fn`.
    """
    if parameter is not None:
        check_local_type(parameter, made_in)
        check_precision(parameter, made_in)
    leaves = leaf_types(parameter) if parameter is not None else ()
    result_type: list[Type] = []

    def flat_fn(*arguments: Any) -> list[Any]:
        with not_building():
            if parameter is None:
                result = fn()
            else:
                argument = unflatten(parameter, arguments)
                if unpack and isinstance(parameter, StructType):
                    fields = [field for _, field in parameter.items()]
                    result = fn(*[to_user(field, part) for field, part in zip(fields, argument, strict=True)])
                else:
                    result = fn(to_user(parameter, argument))
        if result is None:
            raise ComputationReturnedNoneError(
                f"The function `{name}` returned None; a computation must return a value.",
                made_in=made_in,
                hint="add a return statement",
            )
        result = jax.tree.map(_dimension_as_array, result, is_leaf=lambda leaf: isinstance(leaf, Sequence))
        as_returned = result_type_of(result, name, made_in)
        own = from_user(as_returned, result, lambda _type, leaf, _path: _as_array(leaf))
        type_ = result_type_of(to_user(as_returned, own), name, made_in)
        result_type[:] = [type_]
        return flatten(type_, own)

    program = jax.make_jaxpr(flat_fn)(*symbolic_avals(leaves))
    return ir.Local(name, program, FunctionType(parameter, result_type[0]), made_in)


def _dimension_as_array(leaf: Any) -> Any:
    """A symbolic dimension, such as `x.shape[0]` is while tracing, as the number that it will be."""
    return jnp.asarray(leaf) if jax.export.is_symbolic_dim(leaf) else leaf


def _as_array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, Sequence) else jnp.asarray(leaf)


def result_type_of(result: Any, name: str, made_in: str | None) -> Type:
    """The type of what a traced function returned."""
    try:
        return infer_type(result)
    except (TypeError, ValueError) as error:
        inside = error.found if isinstance(error, KoinonError) else error
        raise KoinonTypeError(
            f"The function `{name}` must return arrays, in containers that koinon knows.",
            found=inside if inside is not None else error,
            made_in=made_in,
        ) from None


def check_local_type(type_: Type, made_in: str | None) -> None:
    """Checks that a type is made of tensors, structs and sequences: what a program of JAX can take."""
    if not type_contains_only(type_, lambda t: isinstance(t, (TensorType, StructType, SequenceType))):
        raise KoinonTypeError(
            "A jax_computation takes tensors, structs and sequences, nothing placed and no function.",
            found=type_,
            made_in=made_in,
            hint="declare the member type here, and apply the computation with ko.federated_map",
        )


def apply_local(local: ir.Local, argument: Any) -> Any:
    """Runs a program on a value in koinon's own form; traceable by JAX."""
    parameter = local.type.parameter
    leaves = [] if parameter is None else flatten(parameter, argument)
    program = specialize(local.program, leaves)
    results = eval_jaxpr(program.jaxpr, program.consts, *leaves)
    # Constants of the program come out as they are written in it, which is not always an array of JAX.
    return unflatten(local.type.result, [jnp.asarray(result) for result in results])


def jax_computation(*args: Any) -> Any:
    """Makes a computation of a Python function of JAX values: what runs at one place.

    Used as a decorator with the types of the parameters, `@ko.jax_computation(jnp.float32)`; bare, the function is
    traced anew for each type that it meets. The function is traced once: its parameters are arrays, in the containers
    of their types, and a `Sequence` for `T*`; it returns arrays in any containers. An unknown dimension is a symbolic
    dimension of JAX, so that one trace serves every size.

    Raises:
      KoinonTypeError: for a placed type, a parameter with a default value, a count of types that does not fit.
      UnsupportedTypeError: for a 64-bit type while JAX holds 32 bits.
      ComputationReturnedNoneError: where the function returns None.

    >>> import jax.numpy as jnp, koinon as ko
    >>> @ko.jax_computation(jnp.float32, jnp.float32)
    ... def hypotenuse(a, b):
    ...     return jnp.sqrt(a * a + b * b)
    >>> str(hypotenuse.type_signature)
    '(<a=float32,b=float32> -> float32)'
    >>> float(hypotenuse(3.0, 4.0))
    5.0
    """
    return decorate(trace_local, args)
