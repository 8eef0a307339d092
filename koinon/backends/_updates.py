"""Updates of what a fold carries, in place: a rule of `_rewrite`."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from koinon._jax import bind, evaluate, shapes_of
from koinon.computation._sequence_primitives import reduce_p
from koinon.computation._symbolic import is_symbolic

# The copy of fewer elements takes no longer than to find out that it is not needed.
FEWEST_ELEMENTS = 16_384


def with_late_updates(body: ClosedJaxpr, num_consts: int) -> ClosedJaxpr | None:
    """The step of a fold in which a large carry is replaced only after all that reads its old value.

    A layer's weights are read once more on the way back, for the gradient of its input, on which their own gradient
    does not depend. XLA then copies the weights in every step, in case they are overwritten before they are read. Here
    the new value depends on what was read, by a choice that always falls the same way, which nobody but us knows.

    Args:
      body: the step, of constants, an index and the carries.
      num_consts: the number of constants.

    Returns:
      The new step, of the same results; None where there is nothing to wait for.
    """
    readers = _readers_to_wait_for(body.jaxpr, num_consts + 1)
    if not readers:
        return None

    def step(*arguments: Any) -> list[Any]:
        read: dict[Any, Any] = {}

        def apply(eqn: Any, inputs: list[Any]) -> Any:
            outputs = bind(eqn, inputs, eqn.params)
            read.update(zip(eqn.outvars, outputs, strict=True))
            return outputs

        outputs = evaluate(body, arguments, apply)
        is_step = arguments[num_consts] >= 0
        for place, variables in readers.items():
            first = [jax.lax.slice_in_dim(jnp.ravel(read[var]), 0, 1).reshape(()) for var in variables]
            # A reduction is a kernel of its own, so that the update itself remains vector code.
            happens = jnp.any(jnp.stack([is_step, *[element != element for element in first]]))
            old = arguments[num_consts + 1 + place]
            outputs[place] = jax.lax.select(jnp.broadcast_to(happens, old.shape), outputs[place], old)
        return outputs

    return jax.make_jaxpr(step)(*shapes_of(var.aval for var in body.jaxpr.invars))


def has_late_updates(eqn: Any) -> bool:
    """Whether an equation is a fold with updates that have to wait."""
    return eqn.primitive is reduce_p and bool(
        _readers_to_wait_for(eqn.params["jaxpr"].jaxpr, eqn.params["num_consts"] + 1)
    )


def _readers_to_wait_for(jaxpr: Jaxpr, first: int) -> dict[int, list[Any]]:
    """For each large carry that is replaced, what is made of its old value and not needed for the new one."""
    makers: dict[Any, Any] = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    used = {atom for atoms in (*[eqn.invars for eqn in jaxpr.eqns], jaxpr.outvars) for atom in atoms if _is_var(atom)}

    def needed_for(atom: Any) -> set[Any]:
        needed: set[Any] = set()
        pending = [atom]
        while pending:
            var = pending.pop()
            if var not in needed:
                needed.add(var)
                pending.extend(filter(_is_var, makers[var].invars if var in makers else ()))
        return needed

    found: dict[int, list[Any]] = {}
    for place, (old, new) in enumerate(zip(jaxpr.invars[first:], jaxpr.outvars, strict=True)):
        if not _is_var(new) or new is old or not _is_large(old.aval):
            continue
        needed = needed_for(new)
        read = [
            next((var for var in eqn.outvars if var in used and _has_numbers(var.aval)), None)
            for eqn in jaxpr.eqns
            if any(atom is old for atom in eqn.invars) and needed.isdisjoint(eqn.outvars)
        ]
        waiting = [var for var in read if var is not None and new not in needed_for(var)]
        if waiting:
            found[place] = waiting
    return found


def _is_large(aval: Any) -> bool:
    return (
        jnp.issubdtype(aval.dtype, jnp.floating)
        and not is_symbolic(aval.shape)
        and math.prod(aval.shape) >= FEWEST_ELEMENTS
    )


def _is_var(atom: Any) -> bool:
    return not isinstance(atom, Literal)


def _has_numbers(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.number) and not is_symbolic(aval.shape) and 0 not in aval.shape
