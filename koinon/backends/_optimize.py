"""Programs of JAX as the local engine runs them: specialised to their arguments, and rewritten for the platform."""

from __future__ import annotations

from typing import Any

import jax
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr

from koinon.backends._bounds import bound_folds
from koinon.backends._convolution import options_for_convolutions
from koinon.backends._estimate import has_convolutions, has_symbolic_results, largest_read
from koinon.backends._feed import NotOneProgramError
from koinon.backends._rewrite import CPU_RULES, read_in_bounds, rewrite
from koinon.backends._schedule import programs_of_step
from koinon.backends._transposes import transpose_carries
from koinon.compiler import Plan
from koinon.computation import Computation
from koinon.computation import _ir as ir
from koinon.computation._evaluate import operand_types
from koinon.computation._flat import flatten, unflatten
from koinon.computation._sequence import Sequence
from koinon.computation._symbolic import is_symbolic, specialize
from koinon.types import FunctionType, SequenceType, StructType, TensorType, Type, type_contains


def run_optimized(local: ir.Local, argument: Any) -> Any:
    """Runs a program on a value in koinon's own form."""
    parameter = local.type.parameter
    leaves = [] if parameter is None else flatten(parameter, argument)
    program = specialize(local.program, leaves)
    if not any(is_symbolic(jax.numpy.shape(leaf)) for leaf in leaves):
        padded = () if parameter is None else tuple(_padded(parameter, argument))
        program = _optimized(program, padded, jax.default_backend())
    return unflatten(local.type.result, _arrays(eval_jaxpr(program.jaxpr, program.consts, *leaves)))


def run_bounded(local: ir.Local, argument: Any) -> Any:
    """Runs a program on a value in koinon's own form so that reverse-mode differentiation can pass it."""
    parameter = local.type.parameter
    leaves = [] if parameter is None else flatten(parameter, argument)
    program = specialize(local.program, leaves)
    if parameter is not None:
        program = bound_folds(program, _greatest(parameter, argument))
    return unflatten(local.type.result, _arrays(eval_jaxpr(program.jaxpr, program.consts, *leaves)))


def _arrays(values: list[Any]) -> list[Any]:
    """The results of a program; one that is a constant comes as JAX writes numbers, which are no arrays."""
    return [
        value if hasattr(value, "astype") else jax.numpy.asarray(value, getattr(value, "dtype", None))
        for value in values
    ]


def _greatest(type_: Type, value: Any) -> list[int | None]:
    """For each leaf the greatest that it can be, where it is the length of a sequence."""
    if isinstance(type_, StructType):
        return [most for (_, field), v in zip(type_.items(), value, strict=True) for most in _greatest(field, v)]
    if isinstance(type_, SequenceType):
        view = value.packed()
        # While a program is exported the number of rows is a symbol, and no bound.
        rows = [buffer.shape[0] for buffer in view.buffers if not is_symbolic(buffer.shape[:1])]
        most = view.longest if view.longest is not None else min(rows, default=None)
        return [*[None] * (len(view.buffers) + 1), most]
    return [None]


def check_one_program(computation: Computation) -> None:
    """Checks that a computation can be compiled: no function enters or leaves it, and no accumulator grows."""
    whole = computation.type_signature
    if type_contains(whole, lambda type_: isinstance(type_, FunctionType) and type_ is not whole):
        raise NotOneProgramError("a function enters or leaves the computation")
    for node in ir.walk(computation.expression):
        if isinstance(node, ir.Intrinsic) and node.name == "federated_aggregate":
            accumulate = operand_types(node)[2]
            if type_contains(accumulate, lambda type_: isinstance(type_, TensorType) and not type_.is_fully_defined):
                raise NotOneProgramError("the accumulator of a federated_aggregate has no fixed shape")


def _padded(type_: Type, value: Any) -> list[bool]:
    """For each leaf, whether it is a buffer with room after its last row."""
    if isinstance(type_, StructType):
        return [flag for (_, field), v in zip(type_.items(), value, strict=True) for flag in _padded(field, v)]
    if isinstance(type_, SequenceType):
        assert isinstance(value, Sequence)
        view = value.packed()
        return [*[view.padded] * len(view.buffers), False, False]
    return [False]


@ir.kept_with_program
def _optimized(program: ClosedJaxpr, padded: tuple[bool, ...], platform: str) -> ClosedJaxpr:
    program = read_in_bounds(program, padded)
    return rewrite(transpose_carries(program), CPU_RULES) if platform == "cpu" else program


def compiler_options_of(plan: Plan) -> dict[str, Any] | None:
    """The options of XLA with which the programs of a plan are compiled.

    Returns:
      The options by name, as `jax.jit` takes them; None for the defaults, where no program has a convolution.
    """
    programs = [node for step in plan.steps() for node in programs_of_step(step)]
    if any(has_convolutions(node.program.jaxpr) for node in programs):
        return options_for_convolutions(jax.default_backend())
    return None


def keeps_rows(plan: Plan) -> bool:
    """Whether the clients' work makes something of as many rows as the buffers of a sequence have."""
    steps = [step for phase in plan.phases for step in phase.clients]
    programs = [node for step in steps for node in programs_of_step(step)]
    return any(has_symbolic_results(node.program.jaxpr) for node in programs)


def largest_read_of(plan: Plan) -> int:
    """The largest number of rows that a plan reads from a client's sequence at once."""
    programs = [node for step in plan.steps() for node in programs_of_step(step)]
    return max([largest_read(node.program.jaxpr) for node in programs], default=0)
