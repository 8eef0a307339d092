"""Arguments from Python to koinon, and results back: checked, and converted without narrowing anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import ArgumentError, CardinalityError, InvalidNonAllEqualValueError
from koinon.computation import _ir as ir
from koinon.computation._arguments import Unpacked
from koinon.computation._data import Cohort
from koinon.computation._flat import from_user, leaf_types
from koinon.computation._local import check_precision
from koinon.computation._sequence import PackedView, Sequence
from koinon.types import (
    CLIENTS,
    FederatedType,
    FunctionType,
    SequenceType,
    StructType,
    TensorType,
    Type,
    from_container,
)

_PYTHON_NUMBERS = (bool, int, float, complex)


def tensor(type_: TensorType, value: Any, path: str) -> Any:
    """An argument as an array of a declared dtype and shape.

    Python numbers, and lists of them, take the declared dtype where they lose nothing by it; arrays must have it.
    """
    if isinstance(value, jax.Array):
        array: Any = value
    elif isinstance(value, (np.ndarray, np.generic)):
        array = value
        if array.dtype == type_.dtype:
            check_precision([type_], None)
    else:
        array = _from_python(type_, value, path)
    if array.dtype != type_.dtype or not _shape_fits(type_, array.shape):
        raise ArgumentError(
            "An argument does not have the declared dtype and shape.",
            expected=type_,
            found=TensorType(array.dtype, array.shape),
            differs=path or None,
            hint="convert it where it is made, as in jnp.asarray(x, dtype)",
        )
    return jnp.asarray(array)


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
    check_precision([type_], None)
    target = np.dtype(type_.dtype) if not jax.dtypes.issubdtype(type_.dtype, jax.dtypes.extended) else None
    if target is None or not _number_fits(array, target):
        raise ArgumentError(
            "A Python number does not fit the declared dtype.",
            expected=type_,
            found=f"{type(value).__name__} {value!r:.80}",
            differs=path or None,
        )
    return array.astype(target)


def _number_fits(array: np.ndarray, target: Any) -> bool:
    """Whether Python numbers may stand for a dtype: an int for a float, never a float for an int, nothing out of range."""
    if array.size == 0:
        return True
    if array.dtype.kind == "b":
        return target == np.bool_
    if jnp.issubdtype(target, np.integer):
        limits = jnp.iinfo(target)
        return array.dtype.kind in "iu" and int(array.min()) >= limits.min and int(array.max()) <= limits.max
    if jnp.issubdtype(target, np.floating):
        return array.dtype.kind in "iuf"
    return jnp.issubdtype(target, np.complexfloating)


def columns(type_: SequenceType, value: Any, path: str) -> tuple[list[Any], int]:
    """One client's examples as stacked leaves, in the order of the type, and their number.

    Args:
      type_: the type of the sequence.
      value: a list of examples, or one structure like an example whose leaves have a leading dimension.
      path: where the value sits in the whole, for messages.
    """
    element = type_.element
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        examples = [_example_leaves(element, example, f"{path}[{i}]") for i, example in enumerate(value)]
        leaves = leaf_types(element)
        stacked = [np.stack(leaf) for leaf in zip(*examples, strict=True)] if examples else [_no_rows(t) for t in leaves]
        return stacked, len(examples)
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


def _example_leaves(element: Type, example: Any, path: str) -> list[Any]:
    leaves: list[Any] = []

    def add(type_: Type, leaf: Any, leaf_path: str) -> None:
        assert isinstance(type_, TensorType)
        array = tensor(type_, leaf, leaf_path)
        leaves.append(array if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended) else np.asarray(array))

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
        check_precision([type_], None)
        return leaf
    return tensor(stacked, leaf, path)


def local_value(type_: Type, value: Any, path: str = "") -> Any:
    """A value that is not placed, or is placed at the server, in koinon's own form."""

    def leaf(leaf_type: Type, leaf_value: Any, leaf_path: str) -> Any:
        if isinstance(leaf_type, TensorType):
            return tensor(leaf_type, leaf_value, leaf_path)
        if isinstance(leaf_type, SequenceType):
            if isinstance(leaf_value, Sequence):
                return leaf_value
            stacked, count = columns(leaf_type, leaf_value, leaf_path)
            return Sequence(packed_view(leaf_type, stacked, count))
        if isinstance(leaf_type, FunctionType):
            return function_expression(leaf_type, leaf_value, leaf_path)
        raise ArgumentError(f"A value of type {leaf_type} cannot be an argument.", differs=leaf_path or None)

    return from_user(type_, value, leaf, path)


def packed_view(type_: SequenceType, stacked: list[Any], count: int) -> PackedView:
    """The rows of one client as a view of its own."""
    buffers = tuple(jnp.asarray(leaf) for leaf in stacked)
    return PackedView(type_.element, buffers, jnp.int32(0), jnp.int32(count))


def function_expression(type_: FunctionType, value: Any, path: str) -> ir.Expression:
    """The expression of an argument that is a computation."""
    expression = getattr(value, "expression", None)
    if not isinstance(expression, ir.Expression):
        raise ArgumentError(
            "An argument must be a computation.", expected=type_, found=f"{type(value).__name__}", differs=path or None
        )
    type_.check_assignable_from(expression.type, what="The computation given as an argument does not fit.")
    return expression


def clients_values(type_: FederatedType, value: Any, path: str) -> list[Any] | Cohort:
    """The values of the clients: one for each, as the user gave them, or a cohort of a packed dataset."""
    if isinstance(value, Cohort):
        check_cohort(type_, value, path)
        return value
    if not isinstance(value, (list, tuple)) or hasattr(value, "_fields"):
        hint = None
        if isinstance(value, Mapping):
            hint = "give list(values.values()), one value for each client"
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
        type_.check_assignable_from(
            found, what=f"The cohort given {'as ' + path if path else ''} does not have the declared type."
        )


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
        values: list[Any] = list(argument.arguments)
    elif isinstance(parameter, StructType):
        values = from_container(parameter, argument)
    else:
        return [("", parameter, argument)]
    assert isinstance(parameter, StructType)
    return [
        (f".{name}" if name is not None else f"[{i}]", field, value)
        for i, ((name, field), value) in enumerate(zip(parameter.items(), values, strict=True))
    ]


