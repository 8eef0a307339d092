"""Programs that were loaded: StableHLO modules as JAX functions that trace, batch and differentiate.

Two primitives: a program, which is called with arguments of whatever sizes its type allows, and the module inside it.
JAX's own way to call an exported function is not taken, because it neither batches nor admits empty arrays.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Primitive
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import func, stablehlo
from jax.interpreters import ad, batching, mlir

from koinon._errors import KoinonValueError, NoDerivativeError
from koinon.compiler._stablehlo import parse_module, tensor_type


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A StableHLO module and what is known of it.

    Attributes:
      module: the module, a portable artifact.
      platforms: the platforms that it was lowered for.
      convention: the version of JAX's calling convention that it follows.
      arguments: the shapes and dtypes of its arguments; unknown dimensions are variables.
      results: those of its results, with dimensions over the same variables.
      rows: the positions of the arguments whose leading dimension is the room of a sequence: it may hold more rows than
        the sequence has.
      derivative: the program that takes the arguments and a cotangent for each inexact result to a cotangent for each
        inexact argument; None where there is none.
    """

    module: bytes
    platforms: tuple[str, ...]
    convention: int
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    results: tuple[jax.ShapeDtypeStruct, ...]
    rows: frozenset[int] = frozenset()
    derivative: Program | None = None

    @functools.cached_property
    def compiled(self) -> Callable[..., list[Any]]:
        """The program as a function that is compiled at its first call."""
        return jax.jit(lambda *arguments: _run(*arguments, program=self))

    @functools.cached_property
    def differentiable(self) -> Callable[..., list[Any]]:
        """The program as a function of which JAX knows the derivative."""
        return _with_derivative(self)

    def closed_jaxpr(self) -> ClosedJaxpr:
        """The jaxpr that calls the program."""
        return jax.make_jaxpr(lambda *arguments: program_p.bind(*arguments, program=self))(*self.arguments)

    def results_for(self, arguments: Sequence[Any]) -> list[ShapedArray]:
        """The shapes and dtypes of the results for arguments of these shapes."""
        sizes: dict[str, Any] = {}
        for declared, given in zip(self.arguments, arguments, strict=True):
            for dim, size in zip(declared.shape, given.shape, strict=True):
                if not isinstance(dim, (int, np.integer)):
                    sizes[str(dim)] = size
        return [
            ShapedArray(tuple([_evaluate(dim, sizes) for dim in result.shape]), result.dtype) for result in self.results
        ]


def inexact(avals: Sequence[Any]) -> list[int]:
    """The positions of the arrays that have derivatives."""
    return [i for i, aval in enumerate(avals) if jnp.issubdtype(aval.dtype, np.inexact)]


def program_of(closed: ClosedJaxpr) -> Program | None:
    """The program that a jaxpr calls, where it does nothing else."""
    jaxpr = closed.jaxpr
    if closed.consts or len(jaxpr.eqns) != 1 or jaxpr.eqns[0].primitive is not program_p:
        return None
    (eqn,) = jaxpr.eqns
    same = list(eqn.invars) == list(jaxpr.invars) and list(eqn.outvars) == list(jaxpr.outvars)
    return eqn.params["program"] if same else None


def _evaluate(dim: Any, sizes: dict[str, Any]) -> Any:
    if isinstance(dim, (int, np.integer)):
        return int(dim)
    size = dim._evaluate(sizes)
    return int(size) if isinstance(size, (int, np.integer)) else size


# --- a program -------------------------------------------------------------------------------------------------------

program_p = Primitive("stablehlo_program")
program_p.multiple_results = True


def _run(*arguments: Any, program: Program) -> list[Any]:
    # A sequence without room is given room for one row, which nobody reads: XLA refuses to compile a loop whose body,
    # though it never runs, reads a row of a buffer that has none.
    held = [
        jnp.empty((1, *argument.shape[1:]), argument.dtype)
        if i in program.rows and argument.shape[0] == 0
        else argument
        for i, argument in enumerate(arguments)
    ]
    operands = held
    if len(program.platforms) > 1:
        index = jax.lax.platform_dependent(
            default=lambda: jnp.int32(0),
            **{name: functools.partial(jnp.int32, i) for i, name in enumerate(program.platforms)},
        )
        operands = [index, *held]
    outputs = module_p.bind(*operands, program=program)
    wanted = [aval.shape for aval in program.results_for(arguments)]
    return [
        output if output.shape == shape else output[tuple([slice(size) for size in shape])]
        for output, shape in zip(outputs, wanted, strict=True)
    ]


@program_p.def_abstract_eval
def _(*arguments: Any, program: Program) -> list[ShapedArray]:
    return program.results_for(arguments)


@program_p.def_impl
def _(*arguments: Any, program: Program) -> list[Any]:
    return program.compiled(*arguments)


mlir.register_lowering(program_p, mlir.lower_fun(_run, multiple_results=True))


def _batch(arguments: Any, dims: Any, *, program: Program) -> Any:
    """One after the other: a module says nothing of how to compute many at once."""
    mapped = [i for i, dim in enumerate(dims) if dim is not None]
    stacked = [jnp.moveaxis(arguments[i], dims[i], 0) for i in mapped]

    def one(rows: list[Any]) -> list[Any]:
        chosen = list(arguments)
        for i, row in zip(mapped, rows, strict=True):
            chosen[i] = row
        return program_p.bind(*chosen, program=program)

    outputs = jax.lax.map(one, stacked)
    return outputs, [0] * len(outputs)


def _jvp(primals: Any, tangents: Any, *, program: Program) -> Any:
    if program.derivative is None:
        raise NoDerivativeError(
            "A program that was loaded has no derivative: it folds over a sequence, or is a derivative itself.",
            found=f"a program of {len(program.arguments)} arguments",
            hint="differentiate before serializing, so that the gradient is a part of the program",
        )
    return jax.jvp(program.differentiable, tuple(primals), tuple([ad.instantiate_zeros(t) for t in tangents]))


def _with_derivative(program: Program) -> Callable[..., list[Any]]:
    derivative = program.derivative
    assert derivative is not None
    inputs, outputs = inexact(program.arguments), inexact(program.results)

    @jax.custom_vjp
    def call(*arguments: Any) -> list[Any]:
        return program_p.bind(*arguments, program=program)

    def forward(*arguments: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return call(*arguments), arguments

    def backward(arguments: tuple[Any, ...], cotangents: Sequence[Any]) -> tuple[Any, ...]:
        gradients = program_p.bind(*arguments, *[cotangents[i] for i in outputs], program=derivative)
        by_position = dict(zip(inputs, gradients, strict=True))
        return tuple([by_position.get(i) for i in range(len(arguments))])

    call.defvjp(forward, backward)
    return call


batching.primitive_batchers[program_p] = _batch
ad.primitive_jvps[program_p] = _jvp

# --- the module inside -----------------------------------------------------------------------------------------------

module_p = Primitive("stablehlo_module")
module_p.multiple_results = True


@module_p.def_abstract_eval
def _(*operands: Any, program: Program) -> list[ShapedArray]:
    return program.results_for(operands[len(operands) - len(program.arguments) :])


def _lower(ctx: Any, *operands: Any, program: Program) -> list[Any]:
    context = ctx.module_context
    unknown = [platform for platform in context.platforms if platform not in program.platforms]
    if unknown:
        raise KoinonValueError(
            "A program that was loaded does not run on this platform.",
            expected=f"one of {', '.join(program.platforms)}",
            found=", ".join(unknown),
            hint="serialize the computation on a machine with this platform",
        )
    # JAX then puts the sizes of the arguments, and the platform, into the module before it gives it to XLA.
    context.shape_poly_state.uses_dim_vars = True
    with context.module.context:
        module = parse_module(program.module)
        signature: Any = ir.SymbolTable(module.operation)["main"]
        signature = signature.type
        name = mlir.merge_mlir_modules(context.module, "stablehlo_program", module, dst_symtab=context.symbol_table)
        given = [_converted(operand, type_) for operand, type_ in zip(operands, signature.inputs, strict=True)]
        call = func.CallOp(signature.results, ir.FlatSymbolRefAttr.get(name), given)
        return [_converted(result, tensor_type(aval)) for result, aval in zip(call.results, ctx.avals_out, strict=True)]


def _converted(value: Any, type_: Any) -> Any:
    """The value with its sizes forgotten, or known, as the type has it."""
    return value if value.type == type_ else stablehlo.convert(type_, value)


mlir.register_lowering(module_p, _lower)
