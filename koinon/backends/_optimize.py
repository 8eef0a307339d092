"""Programs of JAX as the local engine runs them: specialised to their arguments, and rewritten for the platform."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr

from koinon.backends._convolution import options_for_convolutions
from koinon.backends._estimate import has_convolutions, has_symbolic_results, largest_read
from koinon.backends._feed import NotOneProgramError
from koinon.backends._rewrite import CPU_RULES, bound_folds, read_in_bounds, rewrite
from koinon.backends._schedule import programs_of
from koinon.backends._transposes import transpose_carries
from koinon.compiler import Plan
from koinon.computation import Computation
from koinon.computation import _ir as ir
from koinon.computation._evaluate import operand_types
from koinon.computation._flat import flatten, leaf_types, unflatten
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


def run_bounded(local: ir.Local, argument: Any, *, longest: int) -> Any:
    """Runs a program so that reverse-mode differentiation can pass it.

    Args:
      local: the program.
      argument: its argument in koinon's own form.
      longest: the largest number of examples of a client.
    """
    parameter = local.type.parameter
    leaves = [] if parameter is None else flatten(parameter, argument)
    program = specialize(local.program, leaves)
    if parameter is not None:
        program = bound_folds(program, _length_positions(parameter), longest)
    return unflatten(local.type.result, _arrays(eval_jaxpr(program.jaxpr, program.consts, *leaves)))


def _arrays(values: list[Any]) -> list[Any]:
    """The results of a program; one that is a constant comes as JAX writes numbers, which are no arrays."""
    return [
        value if hasattr(value, "astype") else jax.numpy.asarray(value, getattr(value, "dtype", None))
        for value in values
    ]


def _length_positions(type_: Type) -> list[int]:
    """The places of the lengths of sequences among the leaves of a type."""
    positions, place = [], 0

    def visit(part: Type) -> None:
        nonlocal place
        if isinstance(part, StructType):
            for field in part.children():
                visit(field)
            return
        place += len(leaf_types(part))
        if isinstance(part, SequenceType):
            positions.append(place - 1)

    visit(type_)
    return positions


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


@functools.lru_cache(maxsize=256)
def _optimized(program: ClosedJaxpr, padded: tuple[bool, ...], platform: str) -> ClosedJaxpr:
    program = read_in_bounds(program, padded)
    return rewrite(transpose_carries(program), CPU_RULES) if platform == "cpu" else program


def compiler_options_of(plan: Plan) -> dict[str, Any] | None:
    """The options of XLA with which the programs of a plan are compiled."""
    programs = [node for step in plan.steps() for node in programs_of(step.operands)]
    if any(has_convolutions(node.program.jaxpr) for node in programs):
        return options_for_convolutions(jax.default_backend())
    return None


def keeps_rows(plan: Plan) -> bool:
    """Whether the clients' work makes something of as many rows as the buffers of a sequence have."""
    steps = [step for phase in plan.phases for step in phase.clients]
    programs = [node for step in steps for node in programs_of(step.operands)]
    return any(has_symbolic_results(node.program.jaxpr) for node in programs)


def largest_read_of(plan: Plan) -> int:
    """The largest number of rows that a plan reads from a client's sequence at once."""
    programs = [node for step in plan.steps() for node in programs_of(step.operands)]
    return max([largest_read(node.program.jaxpr) for node in programs], default=0)
