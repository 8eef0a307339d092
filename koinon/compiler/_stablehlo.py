"""StableHLO modules as bytes: one text for one program, and what a module must be before it is run.

A module has a public function `main` of the leaves of an argument, with the index of the platform before them where
the program was lowered for several. Unknown dimensions are dynamic (`?`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import mlir as portable
from jax.extend.mlir import ir, passmanager
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from koinon._errors import SerializationError

_LAPACK = "potrf geqrf orgqr ungqr syevd heevd geev gesdd getrf sytrd hetrd gehrd gees trsm gtsv".split()

CUSTOM_CALLS = frozenset(
    [
        *[f"lapack_{letter}{routine}_ffi" for letter in "sdcz" for routine in _LAPACK],
        *[f"cusolver_{routine}_ffi" for routine in "getrf geqrf orgqr potrf syevd gesvd gesvdj sytrd".split()],
        "cusparse_gtsv2_ffi",
        "cu_lu_pivots_to_permutation",
        "cu_threefry2x32_ffi",
        *["Eigh", "Qr", "ProductOfElementaryHouseholderReflectors", "LuDecomposition", "ApproxTopK"],
        *[f"stablehlo.dynamic_{name}" for name in ("approx_top_k", "reduce_window", "rng_bit_generator", "top_k")],
    ]
)
"""Code outside a module that it may call: linear algebra, random bits, selection; nothing that takes an address, calls
back into Python, carries machine code, or reads memory that was not written."""

_DIALECTS = frozenset(["chlo", "func", "stablehlo"])
# Operations that reach outside the program: other devices, the host, the order of effects.
_FORBIDDEN = frozenset(
    f"stablehlo.{name}"
    for name in (
        "after_all all_gather all_reduce all_to_all async_start async_done collective_broadcast collective_permute "
        "create_token cross-replica-sum infeed outfeed partition_id recv reduce_scatter replica_id send"
    ).split()
)

# The attributes by which an operation refers to functions.
_REFERENCES = frozenset(["callee", "called_computations", "decomposition"])


def operations(op: Any) -> Iterator[Any]:
    """The operation and all inside it, outermost first."""
    pending = [op]
    while pending:
        current = pending.pop()
        yield current
        pending.extend(inner.operation for region in current.regions for block in region for inner in block.operations)


def parse_module(data: bytes) -> Any:
    """The module that bytes denote, within the context of the caller.

    Raises:
      SerializationError: where they denote none.
    """
    try:
        return portable.deserialize_portable_artifact(data)
    except Exception as error:  # the reader of MLIR raises whatever it likes
        raise SerializationError(f"A program is no StableHLO module: {error}") from None


def canonical_module(data: bytes) -> bytes:
    """The same program without anything that says where it was written, how it was sharded, or which shapes to assert.

    JAX asserts that no unknown dimension is zero; the program does without: it meets empty arrays.
    """
    with mlir.make_ir_context(), ir.Location.unknown():
        module = parse_module(data)
        for op in list(operations(module.operation)):
            if op.name == "sdy.sharding_constraint":
                op.results[0].replace_all_uses_with(op.operands[0])
                op.erase()
            elif op.name == "sdy.mesh" or _call_target(op) == "shape_assertion":
                op.erase()
            elif op.name == "func.func":
                for name in ("arg_attrs", "res_attrs"):
                    if name in op.attributes:
                        del op.attributes[name]
        for name in list(module.operation.attributes):
            del module.operation.attributes[name]
        passmanager.PassManager.parse("builtin.module(strip-debuginfo,symbol-dce)").run(module.operation)
        # What consumers of the last four weeks can read, as JAX itself has it.
        version = stablehlo.get_version_from_compatibility_requirement(
            stablehlo.StablehloCompatibilityRequirement.WEEK_4
        )
        return portable.serialize_portable_artifact(module, version)


def check_module(
    data: bytes, arguments: Sequence[jax.ShapeDtypeStruct], results: Sequence[jax.ShapeDtypeStruct], platforms: int
) -> None:
    """Checks that bytes are a module of this signature that computes, and does nothing else.

    Args:
      data: the module.
      arguments: the shapes and dtypes of its arguments.
      results: those of its results.
      platforms: the number of platforms that it was lowered for.

    Raises:
      SerializationError: where they are not; the message has the reason.
    """
    with mlir.make_ir_context(), ir.Location.unknown():
        module = parse_module(data)
        functions: dict[str, Any] = {}
        for op in module.body.operations:
            if op.operation.name != "func.func":
                raise SerializationError("A module may define functions, and nothing else.", found=op.operation.name)
            functions[ir.StringAttr(op.operation.attributes["sym_name"]).value] = op.operation
        calls = {name: _check_function(function) for name, function in functions.items()}
        _check_acyclic(calls)
        main = functions.get("main")
        if main is None:
            raise SerializationError("A module has no function `main`.", found=", ".join(functions) or "no function")
        expected = ir.FunctionType.get(
            [*_index_types(platforms), *map(tensor_type, arguments)], [*map(tensor_type, results)]
        )
        found = ir.TypeAttr(main.attributes["function_type"]).value
        if str(found) != str(expected):
            raise SerializationError("A program does not fit its declared type.", expected=expected, found=found)


def _check_function(function: Any) -> set[str]:
    """Checks the operations of a function; returns the functions that it calls."""
    called = set()
    for op in itertools.islice(operations(function), 1, None):
        dialect = op.name.partition(".")[0]
        if dialect not in _DIALECTS or op.name in _FORBIDDEN:
            raise SerializationError("A program has an operation that does not only compute.", found=op.name)
        target = _call_target(op)
        if target is not None and target not in CUSTOM_CALLS:
            raise SerializationError("A program calls code that it may not call.", found=f"custom call {target!r}")
        called.update(_symbols(op))
    return called


def _call_target(op: Any) -> str | None:
    if op.name != "stablehlo.custom_call":
        return None
    return ir.StringAttr(op.attributes["call_target_name"]).value


def _symbols(op: Any) -> Iterator[str]:
    """The functions that an operation refers to."""
    for name in _REFERENCES & set(op.attributes):
        value = op.attributes[name]
        values = list(value) if isinstance(value, ir.ArrayAttr) else [value]
        for item in values:
            if isinstance(item, ir.FlatSymbolRefAttr):
                yield item.value
            elif isinstance(item, ir.SymbolRefAttr):
                raise SerializationError("A program refers to a function inside another.", found=str(item))


def _check_acyclic(calls: dict[str, set[str]]) -> None:
    """Checks that no function calls itself, however indirectly: a compiler that inlines calls would not end."""
    remaining = {name: called & calls.keys() for name, called in calls.items()}
    while remaining:
        done = {name for name, called in remaining.items() if not called}
        if not done:
            raise SerializationError("Functions of a program call each other in a circle.", found=", ".join(remaining))
        remaining = {name: called - done for name, called in remaining.items() if name not in done}


def physical(aval: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The array that holds an array: for typed PRNG keys, the words of their data."""
    if not jnp.issubdtype(aval.dtype, jax.dtypes.extended):
        return aval
    return jax.eval_shape(jax.random.key_data, aval)


def tensor_type(aval: jax.ShapeDtypeStruct) -> Any:
    """The type that a module has for an array, within the context of the caller."""
    held = physical(aval)
    dynamic = ir.ShapedType.get_dynamic_size()
    shape = [int(dim) if isinstance(dim, (int, np.integer)) else dynamic for dim in held.shape]
    return ir.RankedTensorType.get(shape, mlir.dtype_to_ir_type(np.dtype(held.dtype)))


def _index_types(platforms: int) -> list[Any]:
    return [ir.RankedTensorType.get([], ir.IntegerType.get_signless(32))] if platforms > 1 else []
