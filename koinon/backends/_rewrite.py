"""Rewrites of a jaxpr before it is compiled: a named table of rules, each exact up to the order of rounding.

A rule sees one equation and its inputs, and returns the outputs computed in a better way, or None to leave it alone.
`rewrite` applies the rules everywhere, also inside loops, branches and calls.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from koinon._jax import bind, evaluate, scan_counts, shapes_of
from koinon.backends._convolution import (
    canonical_convolution,
    convolution_of_few,
    has_few_inputs,
    has_separate_windows,
    other_layout,
    separate_windows,
)
from koinon.backends._elementwise import flat_function, has_flat_function
from koinon.backends._estimate import closed_jaxprs
from koinon.backends._products import has_narrow_gradient, narrow_gradient
from koinon.backends._transposes import carries_transposed
from koinon.backends._updates import has_late_updates, with_late_updates
from koinon.computation._sequence_primitives import read_run_p, reduce_p
from koinon.computation._symbolic import is_symbolic

# With fewer columns the product with a transpose is as fast as with the transposed matrix.
FEWEST_COLUMNS = 32

# What `jax.checkpoint` makes; a program within it is a part of the step like any other.
_CHECKPOINT = "remat2"

Rule = Callable[[Any, list[Any]], list[Any] | None]


def rewrite(closed: ClosedJaxpr, rules: Sequence[Rule]) -> ClosedJaxpr:
    """The jaxpr with the rules applied to every equation, at every depth."""

    def apply(eqn: Any, inputs: list[Any]) -> Sequence[Any]:
        for rule in rules:
            outputs = rule(eqn, inputs)
            if outputs is not None:
                return outputs
        params = {name: _rewrite_param(param, rules) for name, param in eqn.params.items()}
        if _has_open_step(eqn):
            params["jaxpr"] = _rewrite_open(eqn.params["jaxpr"], rules)
        return bind(eqn, inputs, params)

    avals = shapes_of(var.aval for var in closed.jaxpr.invars)
    return jax.make_jaxpr(lambda *arguments: evaluate(closed, arguments, apply))(*avals)


def _rewrite_param(param: Any, rules: Sequence[Rule]) -> Any:
    if isinstance(param, ClosedJaxpr):
        return rewrite(param, rules)
    if isinstance(param, tuple) and any(isinstance(item, ClosedJaxpr) for item in param):
        items = [_rewrite_param(item, rules) for item in param]
        return type(param)(*items) if hasattr(param, "_fields") else tuple(items)
    return param


def _has_open_step(eqn: Any) -> bool:
    """Whether an equation is what `jax.checkpoint` makes; since JAX 0.12 its jaxpr is no other than the rest."""
    return eqn.primitive.name == _CHECKPOINT and not isinstance(eqn.params["jaxpr"], ClosedJaxpr)


def _rewrite_open(jaxpr: Jaxpr, rules: Sequence[Rule]) -> Jaxpr:
    """An open jaxpr with the rules applied, unless they bring constants, for which it has no place."""
    rewritten_jaxpr = rewrite(ClosedJaxpr(jaxpr, ()), rules)
    return jaxpr if rewritten_jaxpr.consts else rewritten_jaxpr.jaxpr


# --- reads without a check of bounds ---------------------------------------------------------------------------------


def read_in_bounds(closed: ClosedJaxpr, padded: Sequence[bool]) -> ClosedJaxpr:
    """Reads runs of rows by one slice where the buffer has room for a whole run after its last row.

    Args:
      closed: the program.
      padded: for each input, whether it is such a buffer.
    """
    return ClosedJaxpr(_read_in_bounds(closed.jaxpr, padded), closed.consts)


def _read_in_bounds(jaxpr: Jaxpr, padded: Sequence[bool]) -> Jaxpr:
    known = {var for var, has_room in zip(jaxpr.invars, padded, strict=True) if has_room}
    if not known:
        return jaxpr
    eqns = []
    for eqn in jaxpr.eqns:
        flags = [not isinstance(atom, Literal) and atom in known for atom in eqn.invars]
        params = dict(eqn.params)
        match eqn.primitive.name:
            case read_run_p.name if flags[0]:
                params["in_bounds"] = True
            case reduce_p.name:
                consts = flags[1 : 1 + params["num_consts"]]
                inner = [*consts, False, *[False] * (len(flags) - 1 - len(consts))]
                params["jaxpr"] = read_in_bounds(params["jaxpr"], inner)
            case "jit" | "pjit":
                params["jaxpr"] = read_in_bounds(params["jaxpr"], flags)
            case "scan":
                consts = flags[: scan_counts(params)[0]]
                inner = [*consts, *[False] * (len(flags) - len(consts))]
                params["jaxpr"] = read_in_bounds(params["jaxpr"], inner)
            case "cond":
                params["branches"] = tuple([read_in_bounds(branch, flags[1:]) for branch in params["branches"]])
        eqns.append(eqn.replace(params=params))
    return jaxpr.replace(eqns=eqns)


# --- rules for CPUs --------------------------------------------------------------------------------------------------


def rewritten(jaxpr: Jaxpr) -> list[str]:
    """The names of the rules that have something to rewrite in a program, once for each place."""
    names = []
    for eqn in jaxpr.eqns:
        if not _has_unknown_shapes(eqn):
            names.extend(_rewritten_operation(eqn))
        if carries_transposed(eqn):
            names.append("transposed_carries")
        if has_late_updates(eqn):
            names.append("late_updates")
        if eqn.primitive.name == "scan":
            body = eqn.params["jaxpr"]
            num_consts, num_carry = scan_counts(eqn.params)
            found = _accumulated_products(body.jaxpr, num_consts, num_carry)
            if found:
                names.append("hoisted_weight_gradient")
                body = _without_products(body, found, num_consts)
            if _transposed_operands(body.jaxpr, num_consts):
                names.append("hoisted_transpose")
            names.extend(rewritten(body.jaxpr))
            continue
        if _has_open_step(eqn):
            names.extend(rewritten(eqn.params["jaxpr"]))
        for sub in closed_jaxprs(eqn):
            names.extend(rewritten(sub.jaxpr))
    return names


def _rewritten_operation(eqn: Any) -> Iterator[str]:
    """The names of the rules that rewrite one operation on arrays."""
    if has_few_inputs(eqn):
        yield "convolution_of_few"
    elif eqn.primitive.name == "conv_general_dilated" and other_layout(eqn) is not None:
        yield "canonical_convolution"
    if eqn.primitive.name == "select_and_scatter_add" and has_separate_windows(eqn):
        yield "separate_windows"
    if has_narrow_gradient(eqn):
        yield "narrow_gradient"
    if has_flat_function(eqn):
        yield "flat_function"


def _has_unknown_shapes(eqn: Any) -> bool:
    return any(is_symbolic(atom.aval.shape) for atom in (*eqn.invars, *eqn.outvars) if hasattr(atom.aval, "shape"))


def faster_scan(eqn: Any, inputs: list[Any]) -> list[Any] | None:
    """Takes out of a scan what need not be done in each of its steps, as the gradient of a recurrent layer does.

    Products that a scan only adds up: their operands are stacked, and multiplied once. The backward pass adds the
    gradient of the weights step by step, a product of a few rows each time; one product of all rows at once is far
    faster.

    Products with the transpose of a matrix that stays the same: it is transposed once. XLA's CPU compiler would
    transpose the weights in every step, which takes longer than the product.
    """
    if eqn.primitive.name != "scan":
        return None
    params = eqn.params
    body: ClosedJaxpr = params["jaxpr"]
    num_consts, num_carry = scan_counts(params)
    found = _accumulated_products(body.jaxpr, num_consts, num_carry)
    transposed = _transposed_operands(body.jaxpr, num_consts)
    if not found and not transposed:
        return None
    kept = [i for i in range(num_carry) if i not in found]
    consts = [*inputs[:num_consts], *[jnp.transpose(inputs[i]) for i in transposed]]
    carry = inputs[num_consts : num_consts + num_carry]
    step = rewrite(_with_transposed(_without_products(body, found, num_consts), num_consts, transposed), CPU_RULES)

    def scan_body(state: Any, slices: Any) -> Any:
        outputs = eval_jaxpr(step.jaxpr, step.consts, *consts, *state, *slices)
        return tuple(outputs[: len(kept)]), tuple(outputs[len(kept) :])

    final, stacked = jax.lax.scan(
        scan_body,
        tuple([carry[i] for i in kept]),
        tuple(inputs[num_consts + num_carry :]),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    num_ys = len(body.jaxpr.outvars) - num_carry
    operands = dict(zip(_operands(found), stacked[num_ys:], strict=True))
    # A slice of an input of the scan needs no stacking: the input has them all.
    operands.update(zip(body.jaxpr.invars[num_consts + num_carry :], inputs[num_consts + num_carry :], strict=True))
    results: dict[int, Any] = dict(zip(kept, final, strict=True))
    for index, (product, permutation) in found.items():
        left, right = [operands[atom] for atom in product.invars]
        results[index] = carry[index] + jnp.transpose(_stacked_product(product, left, right), permutation)
    return [*[results[i] for i in range(num_carry)], *stacked[:num_ys]]


def _transposed_operands(jaxpr: Jaxpr, num_consts: int) -> list[int]:
    """The constants of a scan that are the right factor of a product over their last dimension."""
    places: dict[Any, int] = {var: i for i, var in enumerate(jaxpr.invars[:num_consts])}
    return sorted({places[eqn.invars[1]] for eqn in jaxpr.eqns if _is_product_with_transpose(eqn, places)})


def _is_product_with_transpose(eqn: Any, constants: Any) -> bool:
    if eqn.primitive.name != "dot_general" or isinstance(eqn.invars[1], Literal) or eqn.invars[1] not in constants:
        return False
    (_, right), (batch, _) = eqn.params["dimension_numbers"]
    shape = eqn.invars[1].aval.shape
    return (
        len(shape) == 2 and not is_symbolic(shape) and tuple(right) == (1,) and not batch and shape[0] >= FEWEST_COLUMNS
    )


def _with_transposed(body: ClosedJaxpr, num_consts: int, transposed: list[int]) -> ClosedJaxpr:
    """The body of a scan with the transposes of some constants as further constants, and products with them."""
    jaxpr = body.jaxpr
    constants: list[Any] = [jaxpr.invars[i] for i in transposed]
    others: dict[Any, Any] = {var: Var(var.aval.update(shape=var.aval.shape[::-1])) for var in constants}
    eqns = []
    for eqn in jaxpr.eqns:
        if _is_product_with_transpose(eqn, others):
            (left, _), batch = eqn.params["dimension_numbers"]
            params = {**eqn.params, "dimension_numbers": ((left, (0,)), batch)}
            eqn = eqn.replace(invars=[eqn.invars[0], others[eqn.invars[1]]], params=params)
        eqns.append(eqn)
    invars = [*jaxpr.invars[:num_consts], *others.values(), *jaxpr.invars[num_consts:]]
    return ClosedJaxpr(
        jaxpr.replace(invars=invars, eqns=eqns, debug_info=jaxpr.debug_info.with_unknown_names()), body.consts
    )


def _accumulated_products(jaxpr: Jaxpr, num_consts: int, num_carry: int) -> dict[int, Any]:
    """The carries of a scan to which each step does nothing but add a product of two factors that change in it.

    Each with the equation of the product, and the permutation that transposes it before it is added.
    """
    varying = _varying(jaxpr, num_consts)
    uses: collections.Counter[Any] = collections.Counter(
        atom
        for atoms in (*[eqn.invars for eqn in jaxpr.eqns], jaxpr.outvars)
        for atom in atoms
        if not isinstance(atom, Literal)
    )
    makers: dict[Any, Any] = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    found = {}
    for index in range(num_carry):
        carried: Any = jaxpr.invars[num_consts + index]
        result: Any = jaxpr.outvars[index]
        adding = None if isinstance(result, Literal) else makers.get(result)
        if adding is None or adding.primitive.name not in ("add", "add_any"):
            continue
        left, right = adding.invars
        other: Any = right if left is carried else left if right is carried else None
        if other is None or isinstance(other, Literal) or uses[carried] != 1 or uses[result] != 1 or uses[other] != 1:
            continue
        product, permutation = makers.get(other), tuple(range(len(other.aval.shape)))
        if product is not None and product.primitive.name == "transpose" and uses[product.invars[0]] == 1:
            product, permutation = makers.get(product.invars[0]), product.params["permutation"]
        if product is None or product.primitive.name != "dot_general":
            continue
        _, (batch, _) = product.params["dimension_numbers"]
        # A factor that stays the same would be stacked as often as there are steps.
        if not batch and all(not isinstance(atom, Literal) and atom in varying for atom in product.invars):
            found[index] = (product, permutation)
    return found


def _varying(jaxpr: Jaxpr, num_consts: int) -> set[Any]:
    """What may change from one step of a scan to the next."""
    varying: set[Any] = set(jaxpr.invars[num_consts:])
    for eqn in jaxpr.eqns:
        if not varying.isdisjoint(_variables(eqn)):
            varying.update(eqn.outvars)
    return varying


def _operands(found: dict[int, Any]) -> list[Any]:
    """The operands of the products, each once."""
    return list(dict.fromkeys(atom for product, _ in found.values() for atom in product.invars))


def _without_products(body: ClosedJaxpr, found: dict[int, Any], num_consts: int) -> ClosedJaxpr:
    """The body of the scan without the carries found, with the operands of their products as further outputs."""
    jaxpr = body.jaxpr
    sums = {jaxpr.outvars[index] for index in found}
    carried = {jaxpr.invars[num_consts + index] for index in found}
    made = {var for product, _ in found.values() for var in product.outvars}
    products = {id(product) for product, _ in found.values()}
    eqns = [
        eqn
        for eqn in jaxpr.eqns
        if id(eqn) not in products and sums.isdisjoint(eqn.outvars) and made.isdisjoint(_variables(eqn))
    ]
    outvars = [var for i, var in enumerate(jaxpr.outvars) if i not in found] + _operands(found)
    invars = [var for var in jaxpr.invars if var not in carried]
    return ClosedJaxpr(
        jaxpr.replace(invars=invars, outvars=outvars, eqns=eqns, debug_info=jaxpr.debug_info.with_unknown_names()),
        body.consts,
    )


def _variables(eqn: Any) -> list[Any]:
    return [atom for atom in eqn.invars if not isinstance(atom, Literal)]


def _stacked_product(product: Any, left: Any, right: Any) -> Any:
    """The sum of the products of all steps, with the steps as one more dimension to contract."""
    (contract_left, contract_right), _ = product.params["dimension_numbers"]
    leading = tuple(range(len(contract_left)))
    dimensions = ((0, *[d + 1 for d in contract_left]), (0, *[d + 1 for d in contract_right]))
    if tuple(contract_left) == tuple(contract_right) == leading:
        # As matrices, so that XLA does not choose another layout for the stacks.
        left, right = [a.reshape(-1, *a.shape[1 + len(leading) :]) for a in (left, right)]
        dimensions = ((0,), (0,))
    return jax.lax.dot_general(
        left,
        right,
        (dimensions, ((), ())),
        precision=product.params["precision"],
        preferred_element_type=product.params["preferred_element_type"],
    )


def late_updates(eqn: Any, inputs: list[Any]) -> list[Any] | None:
    """Lets a fold update what it carries in place, after all that reads the old value."""
    if eqn.primitive is not reduce_p:
        return None
    step = with_late_updates(eqn.params["jaxpr"], eqn.params["num_consts"])
    return None if step is None else list(bind(eqn, inputs, {**eqn.params, "jaxpr": rewrite(step, CPU_RULES)}))


CPU_RULES: tuple[Rule, ...] = (
    convolution_of_few,
    canonical_convolution,
    separate_windows,
    faster_scan,
    narrow_gradient,
    flat_function,
    late_updates,
)
