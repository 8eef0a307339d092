"""Floating-point operations of a program, as XLA counts them, with loops counted as often as they run.

XLA's cost analysis counts the body of a loop once. So a program is cut at its loops: what is between them is compiled
and counted, and each body is counted by itself, times its steps. Steps are known where they follow from lengths that
are known; a loop whose end depends on values is counted once, and a branch as its more expensive side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

from koinon._jax import scan_counts
from koinon.compiler._abstract import called_program

_LOOPS = frozenset({"scan", "while", "cond", "sequence_reduce"})
_MAX_KNOWN = 1024  # elements of an array that is computed while counting


@dataclasses.dataclass
class Flops:
    """A count.

    Attributes:
      total: floating-point operations.
      steps: the steps of each fold over a sequence, in the order in which they are met.
      open_loops: how many loops were counted once because their end depends on values.
    """

    total: float = 0.0
    steps: list[int] = dataclasses.field(default_factory=list)
    open_loops: int = 0

    def add(self, other: Flops, times: int) -> None:
        """Adds a part that runs several times."""
        self.total += other.total * times
        self.steps += other.steps
        self.open_loops += other.open_loops


def count_flops(program: ClosedJaxpr, known: Sequence[Any]) -> Flops:
    """Counts the operations of a program.

    Args:
      program: the program, with no unknown dimension.
      known: for each argument its value where it is known, else None.
    """
    values = {
        var: value
        for var, value in zip([*program.jaxpr.constvars, *program.jaxpr.invars], [*program.consts, *known], strict=True)
        if value is not None
    }
    return _Counter(values, program.jaxpr).count()


class _Counter:
    def __init__(self, values: dict[Any, Any], jaxpr: Jaxpr) -> None:
        self.values = values
        self.jaxpr = jaxpr
        self.debug_info = jaxpr.debug_info.with_unknown_names()
        self.flops = Flops()

    def count(self) -> Flops:
        jaxpr = self.jaxpr
        straight: list[Any] = []
        needed = [atom for atom in jaxpr.outvars if isinstance(atom, Var)]
        for eqn in jaxpr.eqns:
            if self._evaluate(eqn):
                continue
            if eqn.primitive.name in _LOOPS:
                needed += [atom for atom in eqn.invars if isinstance(atom, Var)]
                self._loop(eqn)
            elif (called := called_program(eqn)) is not None and _has_loop(called.jaxpr):
                needed += [atom for atom in eqn.invars if isinstance(atom, Var)]
                self.flops.add(count_flops(called, self._known(eqn.invars)), 1)
            else:
                straight.append(eqn)
        self.flops.total += self._straight_flops(straight, needed)
        return self.flops

    def _read(self, atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else self.values.get(atom)

    def _known(self, atoms: Sequence[Any]) -> list[Any]:
        return [self._read(atom) for atom in atoms]

    def _evaluate(self, eqn: Any) -> bool:
        """Computes an equation on small known values, so that lengths are known that follow from others."""
        inputs = self._known(eqn.invars)
        sizes = [int(np.prod(var.aval.shape)) for var in eqn.outvars]
        if any(value is None for value in inputs) or sum(sizes) > _MAX_KNOWN or eqn.effects:
            return False
        variables = {atom: value for atom, value in zip(eqn.invars, inputs, strict=True) if isinstance(atom, Var)}
        alone = Jaxpr(constvars=[], invars=list(variables), outvars=eqn.outvars, eqns=[eqn], debug_info=self.debug_info)
        outputs = jaxpr_as_fun(ClosedJaxpr(alone, []))(*variables.values())
        self.values.update(zip(eqn.outvars, outputs, strict=True))
        return True

    def _loop(self, eqn: Any) -> None:
        known = self._known(eqn.invars)
        match eqn.primitive.name:
            case "scan":
                fixed, _ = scan_counts(eqn.params)
                body: ClosedJaxpr = eqn.params["jaxpr"]
                self.flops.add(self._body(body, known[:fixed]), eqn.params["length"])
            case "sequence_reduce":
                length, operands = known[0], known[1:]
                part = self._body(eqn.params["jaxpr"], operands[: eqn.params["num_consts"]])
                if length is None:
                    part.open_loops += 1
                else:
                    part.steps.insert(0, int(length))
                self.flops.add(part, 1 if length is None else int(length))
            case "while":
                tests, steps = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
                self.flops.add(self._body(eqn.params["cond_jaxpr"], known[:tests]), 1)
                self.flops.add(self._body(eqn.params["body_jaxpr"], known[tests : tests + steps]), 1)
                self.flops.open_loops += 1
            case _:
                branches = [count_flops(branch, known[1:]) for branch in eqn.params["branches"]]
                self.flops.add(max(branches, key=lambda branch: branch.total), 1)

    def _body(self, body: ClosedJaxpr, constants: list[Any]) -> Flops:
        unknown = [None] * (len(body.jaxpr.invars) - len(constants))
        return count_flops(body, [*constants, *unknown])

    def _straight_flops(self, eqns: list[Any], needed: list[Any]) -> float:
        """What XLA counts for equations without loops, as one program."""
        made = {var for eqn in eqns for var in eqn.outvars}
        outputs = [var for var in dict.fromkeys(needed) if var in made]
        if not outputs:
            return 0.0
        inputs = dict.fromkeys(
            atom for eqn in eqns for atom in eqn.invars if isinstance(atom, Var) and atom not in made
        )
        alone = Jaxpr(constvars=[], invars=list(inputs), outvars=outputs, eqns=eqns, debug_info=self.debug_info)
        avals: list[Any] = [var.aval for var in inputs]
        arguments = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        compiled = jax.jit(jaxpr_as_fun(ClosedJaxpr(alone, []))).lower(*arguments).compile()
        analysis: Any = compiled.cost_analysis()
        return max(0.0, float((analysis or {}).get("flops", 0.0)))


def _has_loop(jaxpr: Jaxpr) -> bool:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _LOOPS:
            return True
        called = called_program(eqn)
        if called is not None and _has_loop(called.jaxpr):
            return True
    return False
