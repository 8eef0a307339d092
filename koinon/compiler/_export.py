"""From a closed jaxpr to a program of StableHLO, for every platform that it can be lowered for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax import export
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from koinon._errors import SerializationError
from koinon._jax import shapes_of
from koinon.compiler._program import Program, inexact, program_of
from koinon.compiler._stablehlo import canonical_module, check_module
from koinon.computation._flat import leaf_types
from koinon.types import FunctionType, SequenceType, StructType, Type

PLATFORMS = ("cpu", "cuda", "tpu")


def export_program(name: str, closed: ClosedJaxpr, type_: FunctionType) -> Program:
    """The program of a local computation.

    Args:
      name: what the local computation is called, for messages.
      closed: its jaxpr.
      type_: its type.

    Raises:
      SerializationError: where JAX cannot lower it for any platform, or it does something else than to compute.
    """
    loaded = program_of(closed)
    if loaded is not None:
        return loaded
    arguments = tuple(shapes_of(var.aval for var in closed.jaxpr.invars))
    results = tuple(shapes_of(closed.out_avals))
    rows = sequence_rows(type_.parameter)
    errors: list[Exception] = []
    for platforms in _platform_sets():
        try:
            module, convention = _lower(jaxpr_as_fun(closed), arguments, results, platforms)
        except Exception as error:  # JAX has no common class for what cannot be lowered
            errors.append(error)
            continue
        derivative = _derivative(closed, arguments, results, rows, platforms)
        return Program(module, platforms, convention, arguments, results, rows, derivative)
    # The last attempts were one for each platform; that for the first says best what is wrong with the program itself.
    cause = errors[-len(PLATFORMS)]
    raise SerializationError(
        f"The program `{name}` cannot be written as StableHLO: {cause}",
        found=type_,
        hint="leave out callbacks, such as jax.debug.print, and what only this machine can run",
    ) from cause


def _platform_sets() -> Iterator[tuple[str, ...]]:
    for size in range(len(PLATFORMS), 0, -1):
        yield from itertools.combinations(PLATFORMS, size)


def sequence_rows(parameter: Type | None) -> frozenset[int]:
    """The positions among the leaves of a parameter that are buffers of a sequence."""
    positions: list[int] = []

    def visit(type_: Type, start: int) -> None:
        if isinstance(type_, SequenceType):
            positions.extend(range(start, start + len(leaf_types(type_)) - 2))
        elif isinstance(type_, StructType):
            for field in type_.children():
                visit(field, start)
                start += len(leaf_types(field))

    if parameter is not None:
        visit(parameter, 0)
    return frozenset(positions)


def _lower(
    fn: Any,
    arguments: Sequence[jax.ShapeDtypeStruct],
    results: Sequence[jax.ShapeDtypeStruct],
    platforms: tuple[str, ...],
) -> tuple[bytes, int]:
    """The module of a function, and the version of its calling convention."""

    def program(*leaves: Any) -> Any:
        return fn(*leaves)

    exported = export.export(jax.jit(program, keep_unused=True), platforms=platforms)(*arguments)
    if exported.ordered_effects or exported.unordered_effects:
        raise SerializationError("A program has effects besides its result.", found=exported.unordered_effects)
    if exported.nr_devices != 1:
        raise SerializationError("A program runs on several devices.", found=f"{exported.nr_devices} devices")
    module = canonical_module(exported.mlir_module_serialized)
    check_module(module, arguments, results, len(platforms))
    return module, exported.calling_convention_version


def _derivative(
    closed: ClosedJaxpr,
    arguments: tuple[jax.ShapeDtypeStruct, ...],
    results: tuple[jax.ShapeDtypeStruct, ...],
    rows: frozenset[int],
    platforms: tuple[str, ...],
) -> Program | None:
    """The program of the vector-Jacobian product, None where there is none, as through a fold over a sequence."""
    inputs, outputs = inexact(arguments), inexact(results)
    if not inputs or not outputs:
        return None
    fn = jaxpr_as_fun(closed)

    def vector_jacobian(*leaves: Any) -> list[Any]:
        given = list(leaves[: len(arguments)])

        def of_inexact(*values: Any) -> list[Any]:
            chosen = list(given)
            for i, value in zip(inputs, values, strict=True):
                chosen[i] = value
            outcome = fn(*chosen)
            return [outcome[i] for i in outputs]

        _, pull = jax.vjp(of_inexact, *[given[i] for i in inputs])
        return list(pull(list(leaves[len(arguments) :])))

    takes = (*arguments, *[results[i] for i in outputs])
    gives = tuple([arguments[i] for i in inputs])
    try:
        module, convention = _lower(vector_jacobian, takes, gives, platforms)
    except Exception:  # whatever the reason, the program itself is none the worse
        return None
    return Program(module, platforms, convention, takes, gives, rows)
