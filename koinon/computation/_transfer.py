"""Arguments from Python to koinon, and results back: checked, and converted without narrowing anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from koinon._errors import ArgumentError, CardinalityError, InvalidNonAllEqualValueError, KoinonValueError
from koinon.computation import _ir as ir
from koinon.computation._arguments import Unpacked
from koinon.computation._data import ClientRows, Cohort
from koinon.computation._flat import fields_at, from_user, leaf_types
from koinon.computation._precision import check_precision
from koinon.computation._sequence import Sequence
from koinon.computation._value import specialized
from koinon.computation._views import PackedView
from koinon.types import (
    CLIENTS,
    FederatedType,
    FunctionType,
    SequenceType,
    StructType,
    TensorType,
    Type,
)

_PYTHON_NUMBERS = (bool, int, float, complex)


def tensor(type_: TensorType, value: Any, path: str) -> Any:
    """An argument as an array of JAX of a declared dtype and shape; see `checked_array`."""
    return jnp.asarray(checked_array(type_, value, path))


def checked_array(type_: TensorType, value: Any, path: str) -> Any:
    """An argument as an array, of numpy or JAX, of a declared dtype and shape.

    Python numbers, and lists of them, take the declared dtype where they fit into it; arrays must have it.
    """
    if isinstance(value, jax.Array):
        array: Any = value
    elif isinstance(value, (np.ndarray, np.generic)):
        array = value
        if array.dtype == type_.dtype:
            check_precision(type_, None)
    else:
        array = _from_python(type_, value, path)
    if array.dtype != type_.dtype or not _shape_fits(type_, array.shape):
        raise ArgumentError(
            "An argument does not have the declared dtype and shape.",
            expected=type_,
            found=TensorType(array.dtype, array.shape),
            differs=path or None,
            hint=_hint(type_, array),
        )
    return array


def _hint(type_: TensorType, array: Any) -> str:
    if array.dtype == type_.dtype:
        return "declare None for a dimension that is not the same in every call"
    if jax.dtypes.issubdtype(type_.dtype, jax.dtypes.extended):
        return "make keys with jax.random.key(seed)"
    return f"convert it where it is made, as in jnp.asarray(x, '{type_.dtype}')"


def _shape_fits(type_: TensorType, shape: tuple[int, ...]) -> bool:
    if type_.shape is None:
        return True
    return len(shape) == len(type_.shape) and all(
        expected is None or expected == found for expected, found in zip(type_.shape, shape, strict=True)
    )


def _from_python(type_: TensorType, value: Any, path: str) -> Any:
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "biufc" or not isinstance(value, (*_PYTHON_NUMBERS, list, tuple)):
        raise ArgumentError(
            "An argument is not a tensor.",
            expected=type_,
            found=f"{type(value).__name__} {value!r:.80}",
            differs=path or None,
        )
    check_precision(type_, None)
    fitted = _fitted(array, type_.dtype)
    if fitted is None:
        raise ArgumentError(
            "A Python number does not fit the declared dtype.",
            expected=type_,
            found=f"{type(value).__name__} {value!r:.80}",
            differs=path or None,
        )
    return fitted


def _fitted(array: np.ndarray, dtype: Any) -> np.ndarray | None:
    """Python numbers in a dtype: an int may stand for a float, never a float for an int, and nothing out of range."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return None
    kind = array.dtype.kind if array.size else "b" if dtype == np.bool_ else "i"
    if kind == "b" or dtype == np.bool_:
        return array.astype(dtype) if kind == "b" and dtype == np.bool_ else None
    if jnp.issubdtype(dtype, np.integer):
        limits = jnp.iinfo(dtype)
        inside = kind in "iu" and (not array.size or limits.min <= int(array.min()) <= int(array.max()) <= limits.max)
        return array.astype(dtype) if inside else None
    if kind == "c" and not jnp.issubdtype(dtype, np.complexfloating):
        return None
    with np.errstate(over="ignore"):
        fitted = array.astype(dtype)
    overflown = np.isfinite(array) & ~np.isfinite(fitted)
    return None if overflown.any() else fitted


def columns(type_: SequenceType, value: Any, path: str) -> tuple[list[Any], int]:
    """One client's examples as stacked leaves, in the order of the type, and their number.

    Args:
      type_: the type of the sequence.
      value: a list of examples, or one structure like an example whose leaves have a leading dimension.
      path: where the value sits in the whole, for messages.
    """
    element = type_.element
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields") and not _is_stacked(element, value):
        examples = [_example_leaves(element, example, f"{path}[{i}]") for i, example in enumerate(value)]
        if not examples:
            return [_no_rows(leaf) for leaf in leaf_types(element)], 0
        return [_stack(rows, path) for rows in zip(*examples, strict=True)], len(examples)
    leaves: list[Any] = []
    from_user(element, value, lambda t, leaf, p: leaves.append(_stacked_leaf(t, leaf, p)), path)
    lengths = {leaf.shape[0] for leaf in leaves}
    if len(lengths) > 1:
        raise ArgumentError(
            "The leaves of a client's examples must have one leading dimension.",
            expected="as many rows in every leaf",
            found=f"{sorted(lengths)} rows",
            differs=path or None,
        )
    return leaves, lengths.pop() if lengths else 0


def _is_stacked(element: Type, value: Any) -> bool:
    """Whether a list or tuple is a structure of stacked arrays: an example that is a structure is no array."""
    return isinstance(element, StructType) and any(isinstance(part, (np.ndarray, jax.Array)) for part in value)


def _stack(rows: Any, path: str) -> Any:
    shapes = {np.shape(row) for row in rows}
    if len(shapes) > 1:
        raise ArgumentError(
            "The examples of one client must have one shape.",
            expected="as many elements in every dimension",
            found=" and ".join(str(list(shape)) for shape in sorted(shapes)),
            differs=path or None,
        )
    return jnp.stack(rows) if any(isinstance(row, jax.Array) for row in rows) else np.stack(rows)


def _example_leaves(element: Type, example: Any, path: str) -> list[Any]:
    leaves: list[Any] = []

    def add(type_: Type, leaf: Any, leaf_path: str) -> None:
        assert isinstance(type_, TensorType)
        array = checked_array(type_, leaf, leaf_path)
        on_host = not jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended) and not isinstance(array, Tracer)
        leaves.append(np.asarray(array) if on_host else array)

    from_user(element, example, add, path)
    return leaves


def _no_rows(type_: TensorType) -> Any:
    shape = (0, *[dim or 0 for dim in type_.shape or ()])
    if jax.dtypes.issubdtype(type_.dtype, jax.dtypes.extended):
        return jnp.empty(shape, type_.dtype)
    return np.empty(shape, type_.dtype)


def _stacked_leaf(type_: Type, leaf: Any, path: str) -> Any:
    assert isinstance(type_, TensorType)
    stacked = TensorType(type_.dtype, None if type_.shape is None else (None, *type_.shape))
    if isinstance(leaf, np.ndarray) and leaf.dtype == type_.dtype and _shape_fits(stacked, leaf.shape):
        check_precision(type_, None)
        return leaf
    return checked_array(stacked, leaf, path)


def local_value(type_: Type, value: Any, path: str = "") -> Any:
    """A value that is not placed, or is placed at the server, in koinon's own form."""

    def leaf(leaf_type: Type, leaf_value: Any, leaf_path: str) -> Any:
        if isinstance(leaf_type, TensorType):
            return tensor(leaf_type, leaf_value, leaf_path)
        if isinstance(leaf_type, SequenceType):
            if isinstance(leaf_value, Sequence):
                leaf_type.check_assignable_from(leaf_value.type_signature, what="A sequence has other elements.")
                return leaf_value
            stacked, count = columns(leaf_type, leaf_value, leaf_path)
            return Sequence(packed_view(leaf_type, stacked, count))
        if isinstance(leaf_type, FunctionType):
            return function_expression(leaf_type, leaf_value, leaf_path)
        raise ArgumentError(f"A value of type {leaf_type} cannot be an argument.", differs=leaf_path or None)

    return from_user(type_, value, leaf, path)


def packed_view(type_: SequenceType, stacked: list[Any], count: int) -> PackedView:
    """The rows of one client as a view of its own; there is one row at least, so that a program can read one."""
    buffers = []
    for leaf, leaf_type in zip(stacked, leaf_types(type_.element), strict=True):
        shape = (1, *[dim or 0 for dim in leaf_type.shape or ()])
        buffers.append(jnp.asarray(leaf) if count else jnp.empty(shape, leaf_type.dtype))
    return PackedView(type_.element, tuple(buffers), jnp.int32(0), jnp.int32(count))


def sequence_of_rows(type_: SequenceType, rows: list[list[Any]]) -> Sequence:
    """The sequence whose elements have these flat leaves, one list for each element."""
    stacked = (
        [jnp.stack(column) for column in zip(*rows, strict=True)] if rows else [None] * len(leaf_types(type_.element))
    )
    return Sequence(packed_view(type_, stacked, len(rows)))


def function_expression(type_: FunctionType, value: Any, path: str) -> ir.Expression:
    """The expression of an argument that is a computation."""
    expression = getattr(specialized(value, type_), "expression", None)
    if not isinstance(expression, ir.Expression):
        raise ArgumentError(
            "An argument must be a computation.",
            expected=type_,
            found=f"{type(value).__name__}",
            differs=path or None,
            hint="a Python function becomes a computation by @ko.jax_computation" if callable(value) else None,
        )
    type_.check_assignable_from(expression.type, what="The computation given as an argument does not fit.")
    return expression


def clients_values(type_: FederatedType, value: Any, path: str) -> list[Any] | Cohort | ClientRows:
    """The values of the clients: one for each, as the user gave them, a cohort of a packed dataset, or stacked rows."""
    if isinstance(value, Cohort):
        check_cohort(type_, value, path)
        return value
    if isinstance(value, ClientRows):
        which = f"The rows given as {path}" if path else "The rows"
        type_.check_assignable_from(FederatedType(value.type, CLIENTS), what=f"{which} do not have the declared type.")
        return value
    if not isinstance(value, (list, tuple)) or hasattr(value, "_fields"):
        hint = None
        if isinstance(value, Mapping):
            hint = "give list(values.values()), one value for each client"
        elif callable(getattr(value, "cohort", None)):
            hint = "give data.cohort() for all clients of a dataset, or data.cohort(ids) for some"
        raise InvalidNonAllEqualValueError(
            "The values of the clients must be a list or tuple with one entry for each client, or a cohort.",
            expected=type_,
            found=f"{type(value).__name__}",
            differs=path or None,
            hint=hint,
        )
    return list(value)


def check_cohort(type_: FederatedType, cohort: Cohort, path: str) -> None:
    """Checks that the examples of a cohort have the declared type."""
    member = type_.member
    element = member.element if isinstance(member, SequenceType) else None
    if element is None or not element.is_assignable_from(cohort.packed.element_type):
        found = FederatedType(SequenceType(cohort.packed.element_type), CLIENTS)
        which = f"The cohort given as {path}" if path else "The cohort"
        type_.check_assignable_from(found, what=f"{which} does not have the declared type.")


def default_count(option: Any) -> int:
    """The option `default_num_clients` of an engine, an int of Python or NumPy that is not negative."""
    if not isinstance(option, (int, np.integer)) or isinstance(option, bool) or option < 0:
        raise KoinonValueError("The option `default_num_clients` must be an int, and not negative.", found=repr(option))
    return int(option)


def num_clients(counts: list[tuple[str, int]], default: int) -> int:
    """The one number of clients that all arguments agree on."""
    sizes = {count for _, count in counts}
    if len(sizes) > 1:
        text = " vs ".join(str(count) for _, count in counts)
        raise CardinalityError(
            f"Conflicting cardinalities for CLIENTS: {text}.",
            expected="as many values in every argument placed at the clients",
            found=", ".join(f"{count} at {path or 'the argument'}" for path, count in counts),
        )
    return sizes.pop() if sizes else default


def fields_of(parameter: Type, argument: Any) -> list[tuple[str, Type, Any]]:
    """The argument as a list of path, type and value: its top fields where it is a struct, else itself."""
    if isinstance(argument, Unpacked):
        argument = argument.arguments
    return fields_at(parameter, argument, "") if isinstance(parameter, StructType) else [("", parameter, argument)]
