"""Programs as rows of a header: their modules are blobs, their shapes follow from the types of the expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from koinon._errors import SerializationError
from koinon.compiler._export import PLATFORMS, sequence_rows
from koinon.compiler._program import Program, inexact
from koinon.compiler._stablehlo import check_module
from koinon.compiler._wire import refuse
from koinon.computation._flat import leaf_types
from koinon.computation._symbolic import symbolic_avals
from koinon.types import FunctionType, TensorType

# A dimension as JAX writes one: a sum of products of variables and of functions of such sums. Parentheses stand after
# the name of a function alone, and exponents are small, so that no sum is ever multiplied out.
_DIMENSION = re.compile(r"(?:(?:floordiv|mod|max|min)\(|d[0-9]{1,4}|[0-9]{1,10}|\^[0-9](?![0-9])|[ ,)*+-])*")
_MAX_DIMENSION = 500
_VARIABLE = re.compile(r"d[0-9]+")


def program_row(program: Program, blob: Callable[[bytes], int]) -> dict[str, Any]:
    """The row of a program.

    Args:
      program: the program.
      blob: the position of some bytes among the blobs.
    """
    derivative = program.derivative
    unknown = [dim for aval in program.results for dim in aval.shape if not isinstance(dim, (int, np.integer))]
    return {
        "convention": program.convention,
        "derivative": None if derivative is None else blob(derivative.module),
        "dimensions": [str(dim) for dim in unknown],
        "module": blob(program.module),
        "platforms": list(program.platforms),
    }


def read_program(row: Any, type_: FunctionType, blob: Callable[[Any], memoryview], at: str) -> Program:
    """The program of a row.

    Args:
      row: what the header has.
      type_: the type of the local computation that runs it.
      blob: the blob at a position that the row names.
      at: where the header has it, for messages.

    Raises:
      SerializationError: where the row is malformed, or a module does not fit the type, or does more than to compute.
    """
    keys = ("convention", "derivative", "dimensions", "module", "platforms")
    if not isinstance(row, dict) or tuple(sorted(row)) != keys:
        refuse("A program has other parts than it should.", at=at, expected=", ".join(keys))
    convention, platforms = _read_convention(row["convention"], at), _read_platforms(row["platforms"], at)
    arguments = tuple(symbolic_avals(leaf_types(type_.parameter) if type_.parameter is not None else ()))
    results = _read_results(leaf_types(type_.result), row["dimensions"], arguments, at)
    rows = sequence_rows(type_.parameter)

    def module(position: Any, takes: Sequence[Any], gives: Sequence[Any]) -> bytes:
        data = bytes(blob(position))
        try:
            check_module(data, takes, gives, len(platforms))
        except SerializationError as error:
            refuse(error.what, at=at, expected=error.expected, found=error.found)
        return data

    derivative = None
    if row["derivative"] is not None:
        takes = (*arguments, *[results[i] for i in inexact(results)])
        gives = tuple([arguments[i] for i in inexact(arguments)])
        if len(takes) == len(arguments) or not gives:
            refuse("A program that has no derivative names one.", at=at)
        derivative = Program(module(row["derivative"], takes, gives), platforms, convention, takes, gives, rows)
    return Program(
        module(row["module"], arguments, results), platforms, convention, arguments, results, rows, derivative
    )


def _read_convention(convention: Any, at: str) -> int:
    first = export.minimum_supported_calling_convention_version
    last = export.maximum_supported_calling_convention_version
    if type(convention) is not int or not first <= convention <= last:
        refuse(
            "A program follows a calling convention that the installed JAX does not know.",
            at=at,
            expected=f"a version from {first} to {last}",
            found=repr(convention)[:100],
            hint="use a version of JAX nearer to the one that wrote it, or serialize the computation again",
        )
    return convention


def _read_platforms(platforms: Any, at: str) -> tuple[str, ...]:
    known = [name for name in PLATFORMS if isinstance(platforms, list) and name in platforms]
    if not known or platforms != known:
        refuse("A program names its platforms.", at=at, expected=", ".join(PLATFORMS), found=repr(platforms)[:100])
    return tuple(known)


def _read_results(
    types: Sequence[TensorType], dimensions: Any, arguments: Sequence[jax.ShapeDtypeStruct], at: str
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shapes of results, with an expression over the dimensions of the arguments for each unknown dimension."""
    if any(leaf.shape is None for leaf in types):
        refuse("The results of a program have a known rank.", at=at)
    unknown = [(i, axis) for i, leaf in enumerate(types) for axis, dim in enumerate(leaf.shape or ()) if dim is None]
    if not isinstance(dimensions, list) or len(dimensions) != len(unknown):
        refuse("A program tells each unknown dimension of its results.", at=at, expected=f"{len(unknown)} dimensions")
    variables = [dim for argument in arguments for dim in argument.shape if export.is_symbolic_dim(dim)]
    shapes: list[list[Any]] = [list(leaf.shape or ()) for leaf in types]
    for (i, axis), text in zip(unknown, dimensions, strict=True):
        shapes[i][axis] = _read_dimension(text, variables, at)
    return tuple([jax.ShapeDtypeStruct(tuple(shape), leaf.dtype) for shape, leaf in zip(shapes, types, strict=True)])


def _read_dimension(text: Any, variables: Sequence[Any], at: str) -> Any:
    if not isinstance(text, str) or len(text) > _MAX_DIMENSION or not _DIMENSION.fullmatch(text):
        refuse("A dimension is an expression over those of the arguments.", at=at, found=repr(text)[:100])
    names = {str(variable) for variable in variables}
    if not names.issuperset(_VARIABLE.findall(text)) or not variables:
        refuse("A dimension refers to one that no argument has.", at=at, expected=", ".join(names), found=text)
    try:
        shape = export.symbolic_shape(text, scope=variables[0].scope)
    except Exception as error:  # the parser of JAX raises whatever it likes
        refuse(f"A dimension is malformed: {error}", at=at, found=text)
    if len(shape) != 1 or not export.is_symbolic_dim(shape[0]) or str(shape[0]) != text:
        refuse("A dimension is not in canonical form.", at=at, found=text)
    return shape[0]
