"""Programs of JAX as computations: tracing a Python function into a closed jaxpr over flat leaves, and running one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import ComputationReturnedNoneError, KoinonTypeError, UnsupportedTypeError
from koinon.computation import _ir as ir
from koinon.computation._flat import flatten, from_user, leaf_types, to_user, unflatten
from koinon.computation._sequence import Sequence
from koinon.computation._symbolic import specialize, symbolic_avals
from koinon.computation._value import not_building
from koinon.types import (
    FunctionType,
    SequenceType,
    StructType,
    TensorType,
    Type,
    from_container,
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
    leaves = leaf_types(parameter) if parameter is not None else ()
    check_precision(leaves, made_in)
    result_type: list[Type] = []

    def flat_fn(*arguments: Any) -> list[Any]:
        with not_building():
            if parameter is None:
                result = fn()
            else:
                argument = to_user(parameter, unflatten(parameter, arguments))
                result = fn(*from_container(parameter, argument)) if unpack else fn(argument)
        if result is None:
            raise ComputationReturnedNoneError(
                f"The function `{name}` returned None; a computation must return a value.",
                made_in=made_in,
                hint="add a return statement",
            )
        result = jax.tree.map(_as_array, result, is_leaf=lambda leaf: isinstance(leaf, Sequence))
        type_ = result_type_of(result, name, made_in)
        result_type[:] = [type_]
        return flatten(type_, from_user(type_, result, lambda _type, leaf, _path: leaf))

    program = jax.make_jaxpr(flat_fn)(*symbolic_avals(leaves))
    return ir.Local(name, program, FunctionType(parameter, result_type[0]), made_in)


def _as_array(leaf: Any) -> Any:
    if isinstance(leaf, (bool, int, float, complex, np.ndarray, np.generic)):
        return jnp.asarray(leaf)
    return leaf


def result_type_of(result: Any, name: str, made_in: str | None) -> Type:
    """The type of what a traced function returned."""
    try:
        type_ = infer_type(result)
    except (TypeError, NotImplementedError) as error:
        raise KoinonTypeError(
            f"The function `{name}` must return arrays in containers that koinon knows.",
            found=f"{type(result).__name__}: {error}",
            made_in=made_in,
        ) from None
    if not isinstance(type_, Type):
        raise KoinonTypeError(f"The function `{name}` returned no value.", found=repr(result), made_in=made_in)
    return type_


def check_local_type(type_: Type, made_in: str | None) -> None:
    """Checks that a type is made of tensors, structs and sequences: what a program of JAX can take."""
    if not type_contains_only(type_, lambda t: isinstance(t, (TensorType, StructType, SequenceType))):
        raise KoinonTypeError(
            "A jax_computation takes tensors, structs and sequences, nothing placed and no function.",
            found=type_,
            made_in=made_in,
            hint="declare the member type here, and apply the computation with ko.federated_map",
        )


def check_precision(leaves: Iterable[TensorType], made_in: str | None) -> None:
    """Checks that JAX, as it is configured, holds these dtypes without narrowing them."""
    for leaf in leaves:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            continue
        held = jax.dtypes.canonicalize_dtype(leaf.dtype)
        if held != leaf.dtype:
            raise UnsupportedTypeError(
                f"JAX holds no {leaf.dtype} as it is configured now, and koinon narrows no value silently.",
                expected=str(leaf),
                found=f"an array of JAX would be {held}",
                made_in=made_in,
                hint=f"declare {held}, or set jax.config.update('jax_enable_x64', True) before anything else",
            )


def apply_local(local: ir.Local, argument: Any) -> Any:
    """Runs a program on a value in koinon's own form; traceable by JAX."""
    parameter = local.type.parameter
    leaves = [] if parameter is None else flatten(parameter, argument)
    program = specialize(local.program, leaves)
    return unflatten(local.type.result, jax.core.eval_jaxpr(program.jaxpr, program.consts, *leaves))
