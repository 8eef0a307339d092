"""Programs of JAX as the reference engine runs them: folds over sequences step by step in Python.

What lies between two folds runs as one piece, compiled on its own, because operations compiled one by one would take
longer than all the rest. No piece spans two clients, two examples or two operators of the language.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from koinon.computation import _ir as ir
from koinon.computation._flat import flatten, unflatten
from koinon.computation._local import apply_local
from koinon.computation._sequence_primitives import reduce_p
from koinon.computation._symbolic import specialize


def run_in_pieces(local: ir.Local, argument: Any) -> Any:
    """Runs a program on a value in koinon's own form."""
    parameter = local.type.parameter
    leaves = [] if parameter is None else flatten(parameter, argument)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return apply_local(local, argument)
    program = specialize(local.program, leaves)
    scope: dict[Any, Any] = dict(zip(program.jaxpr.invars, leaves, strict=True))
    scope.update(zip(program.jaxpr.constvars, program.consts, strict=True))
    for run, inputs, outputs in _pieces(program):
        scope.update(zip(outputs, run([_read(atom, scope) for atom in inputs]), strict=True))
    return unflatten(local.type.result, [jnp.asarray(_read(atom, scope)) for atom in program.jaxpr.outvars])


def _read(atom: Any, scope: dict[Any, Any]) -> Any:
    return atom.val if isinstance(atom, Literal) else scope[atom]


Piece = tuple[Callable[[list[Any]], Sequence[Any]], list[Any], list[Any]]


@ir.kept_with_program
def _pieces(program: ClosedJaxpr) -> list[Piece]:
    """The program as pieces to run in order, each with the variables that it reads and those that it makes."""
    jaxpr = program.jaxpr
    pieces: list[Piece] = []
    between: list[Any] = []
    later = list(jaxpr.eqns)

    def finish() -> None:
        if between:
            used_later = {atom for eqn in later for atom in _variables(eqn.invars)} | set(_variables(jaxpr.outvars))
            pieces.append(_compiled(jaxpr, between, used_later))
            between.clear()

    while later:
        eqn = later.pop(0)
        if eqn.primitive is reduce_p:
            later.insert(0, eqn)
            finish()
            later.pop(0)
            pieces.append((_fold(eqn), list(eqn.invars), list(eqn.outvars)))
        else:
            between.append(eqn)
    finish()
    return pieces


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def _compiled(jaxpr: Jaxpr, eqns: list[Any], used_later: set[Any]) -> Piece:
    made = [var for eqn in eqns for var in eqn.outvars]
    inputs = list(dict.fromkeys(var for eqn in eqns for var in _variables(eqn.invars) if var not in set(made)))
    outputs = [var for var in made if var in used_later]
    piece = jaxpr.replace(
        constvars=[],
        invars=inputs,
        outvars=outputs,
        eqns=list(eqns),
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    run = jax.jit(jaxpr_as_fun(ClosedJaxpr(piece, [])))
    return (lambda values: run(*values)), inputs, outputs


def _fold(eqn: Any) -> Callable[[list[Any]], Sequence[Any]]:
    step = jax.jit(jaxpr_as_fun(eqn.params["jaxpr"]))
    num_consts = eqn.params["num_consts"]

    def run(values: list[Any]) -> Sequence[Any]:
        length, consts, carry = values[0], values[1 : 1 + num_consts], values[1 + num_consts :]
        for index in range(int(length)):
            carry = step(*consts, jnp.int32(index), *carry)
        return carry

    return run
