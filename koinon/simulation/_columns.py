"""Examples as columns: a container of arrays whose first dimensions count the examples, and the type of one example."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from koinon._errors import ArgumentError, CardinalityError, KoinonTypeError, TypeNotAssignableError
from koinon.types import (
    StructType,
    TensorType,
    Type,
    from_container,
    infer_type,
    structure_from_tensor_type_tree,
)

_HINTS = {
    "O": "arrays of Python objects are often ragged: give all examples one shape, for example by padding",
    "U": "encode text as integers",
    "S": "encode text as integers",
    "M": "turn dates into numbers, for example with `.astype('int64')`",
    "m": "turn durations into numbers, for example with `.astype('int64')`",
}


class Columns(NamedTuple):
    """Examples as one array per leaf, in the order of the fields of their type."""

    element_type: Type
    leaves: list[np.ndarray]
    num_rows: int


def read_columns(value: Any, what: str, expected: Type | None = None) -> Columns:
    """Takes a container of stacked arrays apart.

    Args:
      value: the container, or a single array.
      what: what it is, for messages.
      expected: the type that an example must have, with fields in any order; None for any type.

    Raises:
      KoinonTypeError: if a leaf is no array of numbers or booleans, or has no dimension for the examples.
      CardinalityError: if the leaves have different numbers of examples.
      TypeNotAssignableError: if the examples have another type than `expected`.
    """
    if expected is not None and (columns := _at_once(value, expected)) is not None:
        return columns
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        _check_leaf(leaf, jax.tree_util.keystr(path), what)
    element_type = _element_type(infer_type(value)) if expected is None else expected
    try:
        leaves = [np.asarray(leaf) for leaf in _flat(element_type, value)]
        fits = [(leaf.dtype, leaf.shape[1:]) for leaf in leaves] == leaf_specs(element_type)
    except ArgumentError:
        leaves, fits = [], False
    if not fits:
        raise TypeNotAssignableError(
            f"{what} have another type than those of the clients before.",
            expected=element_type,
            found=_element_type(infer_type(value)),
            hint="give all clients the same fields, shapes and dtypes",
        )
    if not leaves:
        raise KoinonTypeError(f"{what} hold no arrays.", expected="at least one array", found=element_type)
    sizes = [len(leaf) for leaf in leaves]
    if len(set(sizes)) > 1:
        raise CardinalityError(
            f"{what} have different numbers of examples.",
            expected="arrays whose first dimensions are equal",
            found=f"first dimensions {', '.join(map(str, sizes))} for examples {element_type}",
            hint="the first dimension counts the examples, also in what a function for `preprocess` gets and returns",
        )
    return Columns(element_type, leaves, sizes[0])


def _at_once(value: Any, expected: Type) -> Columns | None:
    """The columns of a dict of NumPy arrays that is just as expected, as that of one client of thousands is."""
    fields = _dict_fields(expected)
    if fields is None or type(value) is not dict or value.keys() != fields.keys():
        return None
    leaves = [value[name] for name in fields]
    if not all(isinstance(leaf, np.ndarray) and leaf.ndim for leaf in leaves):
        return None
    if [(leaf.dtype, leaf.shape[1:]) for leaf in leaves] != list(fields.values()):
        return None
    rows = len(leaves[0])
    return Columns(expected, leaves, rows) if all(len(leaf) == rows for leaf in leaves) else None


@functools.lru_cache(maxsize=64)
def _dict_fields(type_: Type) -> dict[str, tuple[Any, Any]] | None:
    """The dtype and shape by name of a type whose values are dicts of arrays; None for another type."""
    if not isinstance(type_, StructType) or type_.container is not dict or not len(type_):
        return None
    if not all(isinstance(child, TensorType) for child in type_.children()):
        return None
    return {str(name): spec for (name, _), spec in zip(type_.items(), leaf_specs(type_), strict=True)}


def assemble(element_type: Type, leaves: Sequence[Any]) -> Any:
    """The container of stacked arrays that has these leaves."""
    iterator = iter(leaves)
    return structure_from_tensor_type_tree(lambda _: next(iterator), element_type)


def _flat(type_: Type, value: Any) -> list[Any]:
    if not isinstance(type_, StructType):
        return [value]
    children = zip(type_.children(), from_container(type_, value), strict=True)
    return [leaf for child_type, child in children for leaf in _flat(child_type, child)]


def leaf_specs(type_: Type) -> list[tuple[Any, Any]]:
    """The dtype and the shape of each leaf of an example, in the order of the fields."""
    if isinstance(type_, TensorType):
        return [(type_.dtype, type_.shape)]
    return [leaf for child in type_.children() for leaf in leaf_specs(child)]


def _element_type(stacked_type: Type) -> Type:
    if isinstance(stacked_type, StructType):
        fields = [(name, _element_type(child)) for name, child in stacked_type.items()]
        return StructType(fields, stacked_type.container)
    assert isinstance(stacked_type, TensorType)
    assert stacked_type.shape
    return TensorType(stacked_type.dtype, stacked_type.shape[1:])


def _check_leaf(leaf: Any, path: str, what: str) -> None:
    is_key = hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    if isinstance(leaf, np.ndarray | jax.Array) and leaf.ndim > 0 and not is_key:
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in _HINTS:
            raise KoinonTypeError(
                f"{what} hold an array whose elements are no numbers.",
                expected="an array of numbers or booleans",
                found=f"dtype {leaf.dtype}",
                differs=path or None,
                hint=_HINTS[leaf.dtype.kind],
            )
        return
    found = f"{type(leaf).__name__}, dtype {leaf.dtype}, shape {leaf.shape}" if hasattr(leaf, "dtype") else repr(leaf)
    raise KoinonTypeError(
        f"{what} hold something else than arrays of examples.",
        expected="NumPy or JAX arrays of numbers, the first dimension of which counts the examples",
        found=found[:200],
        differs=path or None,
        hint="stack the examples with `np.stack` or `np.asarray`",
    )
