"""Aggregations as folds over the clients: how each starts, takes a client's value, and ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from koinon.compiler import Step
from koinon.computation._evaluate import operand_types, tensor_types
from koinon.computation._flat import flatten, unflatten
from koinon.types import strip_placement


@dataclasses.dataclass(frozen=True)
class Fold:
    """An aggregation as a fold.

    Attributes:
      zero: the empty accumulator, a list of arrays.
      add: the accumulator with the operands of one client, which is at an index of the cohort.
      merge: two accumulators as one, as if their clients had come one after the other.
      finish: the result, in koinon's own form, and a dictionary of error flags, from the accumulator.
      addend: where the accumulator is a sum, what the operands of one client add to it.
    """

    zero: list[Any]
    add: Callable[[list[Any], Any, Any], list[Any]]
    merge: Callable[[list[Any], list[Any]], list[Any]]
    finish: Callable[[list[Any]], tuple[Any, dict[str, Any]]]
    addend: Callable[[Any], list[Any]] | None = None


_SUMS = ("federated_sum", "federated_mean", "federated_weighted_mean")


def is_sum(step: Step) -> bool:
    """Whether an aggregation adds up what each client contributes."""
    return step.operator in _SUMS


def fold_of(step: Step, constants: Any) -> Fold:
    """The fold of an aggregation step.

    Args:
      step: the step.
      constants: its operands that are not at the clients, resolved; None in the place of clients' values.
    """
    match step.operator:
        case "federated_sum":
            return _sum(step)
        case "federated_mean" | "federated_weighted_mean":
            return _mean(step)
        case "federated_min":
            return _extremum(step, jnp.minimum, 1)
        case "federated_max":
            return _extremum(step, jnp.maximum, -1)
        case "federated_aggregate":
            return _aggregate(step, constants)
        case "federated_secure_sum" | "federated_secure_sum_bitwidth":
            return _secure_sum(step, constants)
        case "federated_secure_modular_sum":
            return _secure_modular_sum(step, constants)
        case _:
            raise ValueError(f"{step.operator} is no fold")


def _sums(left: list[Any], right: list[Any]) -> list[Any]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _sum(step: Step) -> Fold:
    member = strip_placement(step.node.type.result)
    return Fold(
        zero=[jnp.zeros(leaf.shape, leaf.dtype) for leaf in tensor_types(member)],
        add=lambda total, value, _: _sums(total, flatten(member, value)),
        merge=_sums,
        finish=lambda total: (unflatten(member, total), {}),
        addend=lambda value: flatten(member, value),
    )


def _mean(step: Step) -> Fold:
    member = strip_placement(step.node.type.result)
    leaves = tensor_types(member)
    # Sums of many small numbers lose too much in half precision.
    wide = [jnp.promote_types(leaf.dtype, jnp.float32) for leaf in leaves]
    weight_dtypes = list(dict.fromkeys(wide))
    weighted = step.operator == "federated_weighted_mean"

    def addend(operands: Any) -> list[Any]:
        value, weight = operands if weighted else (operands, jnp.float32(1.0))
        rows = flatten(member, value)
        weights = {dtype: weight.astype(dtype) for dtype in weight_dtypes}
        return [*[row.astype(d) * weights[d] for row, d in zip(rows, wide, strict=True)], *weights.values()]

    def finish(state: list[Any]) -> tuple[Any, dict[str, Any]]:
        weights = dict(zip(weight_dtypes, state[len(leaves) :], strict=True))
        means = [
            (total / weights[dtype]).astype(leaf.dtype)
            for total, dtype, leaf in zip(state[: len(leaves)], wide, leaves, strict=True)
        ]
        return unflatten(member, means), {}

    zero = [jnp.zeros(leaf.shape, dtype) for leaf, dtype in zip(leaves, wide, strict=True)]
    return Fold(
        zero=[*zero, *[jnp.zeros((), dtype) for dtype in weight_dtypes]],
        add=lambda state, operands, _: _sums(state, addend(operands)),
        merge=_sums,
        finish=finish,
        addend=addend,
    )


def _extremum(step: Step, op: Callable[[Any, Any], Any], end: int) -> Fold:
    """The least (`end` 1) or greatest (`end` -1); without clients the number at that end of the dtype."""
    member = strip_placement(step.node.type.result)
    leaves = tensor_types(member)

    def merge(left: list[Any], right: list[Any]) -> list[Any]:
        return [left[0] | right[0], *[op(a, b) for a, b in zip(left[1:], right[1:], strict=True)]]

    def finish(state: list[Any]) -> tuple[Any, dict[str, Any]]:
        found = [
            jnp.where(state[0], best, _end_of(leaf.dtype, end)) for best, leaf in zip(state[1:], leaves, strict=True)
        ]
        return unflatten(member, found), {}

    def beyond(dtype: Any) -> Any:
        return end * jnp.inf if jnp.issubdtype(dtype, jnp.floating) else _end_of(dtype, end)

    return Fold(
        zero=[jnp.asarray(False), *[jnp.full(leaf.shape, beyond(leaf.dtype), leaf.dtype) for leaf in leaves]],
        add=lambda state, value, _: merge(state, [jnp.asarray(True), *flatten(member, value)]),
        merge=merge,
        finish=finish,
    )


def _end_of(dtype: Any, end: int) -> Any:
    limits = jnp.iinfo(dtype) if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype)
    return jnp.asarray(limits.max if end > 0 else limits.min, dtype)


def _aggregate(step: Step, constants: Any) -> Fold:
    _, zero, accumulate, merge, report = constants
    _, _, accumulate_type, _, _ = operand_types(step.node)  # pyright: ignore[reportArgumentType]
    accumulator = accumulate_type.parameter[0]  # pyright: ignore[reportAttributeAccessIssue]
    leaves = tensor_types(accumulator)
    start = [jnp.asarray(x, leaf.dtype) for x, leaf in zip(flatten(accumulator, zero), leaves, strict=True)]
    return Fold(
        zero=start,
        add=lambda state, operands, _: flatten(accumulator, accumulate((unflatten(accumulator, state), operands[0]))),
        merge=lambda left, right: flatten(
            accumulator, merge((unflatten(accumulator, left), unflatten(accumulator, right)))
        ),
        finish=lambda state: (report(unflatten(accumulator, state)), {}),
    )


# A total is held in digits of sixteen bits, of which the last takes all that is left, up to a number that no dtype
# holds, and of which the double does not overflow: what is too large stays too large, for any number of clients.
_DIGIT = 16
_TOO_LARGE = 2**29


def _to_digits(value: Any) -> list[Any]:
    bits = jnp.iinfo(value.dtype).bits
    if bits < 32:
        value = value.astype(jnp.uint32 if jnp.issubdtype(value.dtype, jnp.unsignedinteger) else jnp.int32)
        bits = 32
    digits = []
    for _ in range(bits // _DIGIT - 1):
        digits.append((value & 0xFFFF).astype(jnp.int32))
        value = value >> _DIGIT
    return [*digits, value.astype(jnp.int32)]


def _carry(digits: list[Any]) -> list[Any]:
    carried, carry = [], jnp.zeros_like(digits[0])
    for digit in digits[:-1]:
        digit = digit + carry
        carried.append(digit & 0xFFFF)
        carry = digit >> _DIGIT
    return [*carried, jnp.minimum(digits[-1] + carry, _TOO_LARGE)]


def _from_digits(digits: list[Any], dtype: Any) -> tuple[Any, Any]:
    """The integer, and whether its dtype holds it."""
    bits = max(32, jnp.iinfo(dtype).bits)
    wide = jnp.dtype(f"{'u' if jnp.issubdtype(dtype, jnp.unsignedinteger) else ''}int{bits}")
    value = digits[-1].astype(wide)
    for digit in reversed(digits[:-1]):
        value = (value << _DIGIT) | digit.astype(wide)
    top = digits[-1]
    fits = (top >> _DIGIT == 0) if jnp.issubdtype(wide, jnp.unsignedinteger) else (top == (top << 16) >> 16)
    if wide != dtype:
        limits = jnp.iinfo(dtype)
        fits = fits & (value >= limits.min) & (value <= limits.max)
    return value.astype(dtype), jnp.all(fits)


def _bounds(step: Step, constants: Any) -> list[Any]:
    value_type, bound_type = operand_types(step.node)  # pyright: ignore[reportArgumentType]
    leaves = tensor_types(strip_placement(value_type))
    bounds = [jnp.asarray(bound) for bound in flatten(bound_type, constants[1])]
    return [bounds[min(i, len(bounds) - 1)] for i in range(len(leaves))]


def _largest_of_bits(bits: Any, dtype: Any) -> Any:
    """The largest integer of so many bits that the dtype holds."""
    largest = jnp.asarray(np.iinfo(dtype).max, dtype)
    width = int(np.iinfo(dtype).max).bit_length()
    # Clipped before it is subtracted: the difference of an unsigned number of bits would wrap around.
    return largest >> (width - jnp.clip(bits, 0, width)).astype(dtype)


def _clipped_to(number: Any, dtype: Any) -> Any:
    """A number of any integer dtype in another one: the nearest that is not negative and that both hold."""
    largest = jnp.asarray(min(np.iinfo(dtype).max, np.iinfo(number.dtype).max), number.dtype)
    return jnp.clip(number, 0, largest).astype(dtype)


def _exceeds(value: Any, bound: Any) -> Any:
    """Whether integers exceed a bound of any integer dtype."""
    return (value > _clipped_to(bound, value.dtype)) | (bound < 0)


def _first(conditions: list[Any]) -> Any:
    """The number of the first condition that holds, counted from 1; 0 where none does."""
    found = jnp.int32(0)
    for number, condition in reversed([*enumerate(conditions, 1)]):
        found = jnp.where(condition, number, found)
    return found


_NO_CLIENT = 2**31 - 1


def _secure_sum(step: Step, constants: Any) -> Fold:
    member = strip_placement(step.node.type.result)
    leaves = tensor_types(member)
    bounds = _bounds(step, constants)
    if step.operator.endswith("bitwidth"):
        bounds = [_largest_of_bits(bits, leaf.dtype) for bits, leaf in zip(bounds, leaves, strict=True)]
    widths = [len(_to_digits(jnp.zeros((), leaf.dtype))) for leaf in leaves]

    def add(state: list[Any], operands: Any, index: Any) -> list[Any]:
        rows = flatten(member, operands[0])
        bad, position = state[0], 1
        result: list[Any] = []
        for row, bound, width in zip(rows, bounds, widths, strict=True):
            bad = jnp.minimum(bad, jnp.where(jnp.any((row < 0) | _exceeds(row, bound)), index, _NO_CLIENT))
            digits = _sums(state[position : position + width], _to_digits(row))
            result.extend(_carry(digits))
            position += width
        return [bad, *result]

    def merge(left: list[Any], right: list[Any]) -> list[Any]:
        position, result = 1, [jnp.minimum(left[0], right[0])]
        for width in widths:
            digits = _sums(left[position : position + width], right[position : position + width])
            result.extend(_carry(digits))
            position += width
        return result

    def finish(state: list[Any]) -> tuple[Any, dict[str, Any]]:
        position, totals, too_large = 1, [], []
        for leaf, width in zip(leaves, widths, strict=True):
            total, fits = _from_digits(state[position : position + width], leaf.dtype)
            totals.append(total)
            too_large.append(~fits)
            position += width
        outside = jnp.where(state[0] == _NO_CLIENT, 0, state[0] + 1)
        return unflatten(member, totals), {"input": outside, "total": _first(too_large)}

    zero: list[Any] = [jnp.int32(_NO_CLIENT)]
    for leaf, width in zip(leaves, widths, strict=True):
        zero.extend([jnp.zeros(leaf.shape, jnp.int32) for _ in range(width)])
    return Fold(zero, add, merge, finish)


def _secure_modular_sum(step: Step, constants: Any) -> Fold:
    member = strip_placement(step.node.type.result)
    dtypes = [leaf.dtype for leaf in tensor_types(member)]
    moduli = _bounds(step, constants)
    # A modulus may be one more than the dtype of the values holds; the largest result never is.
    largest = [_clipped_to(modulus - 1, dtype) for modulus, dtype in zip(moduli, dtypes, strict=True)]
    too_large = [(top.astype(modulus.dtype) != modulus - 1) for top, modulus in zip(largest, moduli, strict=True)]

    def merge(left: list[Any], right: list[Any]) -> list[Any]:
        return [_modular_sum(a, b, top) for a, b, top in zip(left, right, largest, strict=True)]

    def add(state: list[Any], operands: Any, _: Any) -> list[Any]:
        rows = flatten(member, operands[0])
        return merge(state, [_residue(row, top) for row, top in zip(rows, largest, strict=True)])

    def finish(state: list[Any]) -> tuple[Any, dict[str, Any]]:
        flags = {"modulus": _first([modulus < 1 for modulus in moduli]), "total": _first(too_large)}
        return unflatten(member, state), flags

    return Fold([jnp.zeros(leaf.shape, leaf.dtype) for leaf in tensor_types(member)], add, merge, finish)


def _residue(value: Any, largest: Any) -> Any:
    """Integers modulo one more than the largest residue, which their dtype need not hold."""
    limit = jnp.asarray(np.iinfo(value.dtype).max, value.dtype)
    # A modulus that the dtype does not hold is a power of two: a residue is the lower bits, of a negative number too.
    return jnp.where(largest == limit, value & limit, jnp.mod(value, jnp.minimum(largest, limit - 1) + 1))


def _modular_sum(left: Any, right: Any, largest: Any) -> Any:
    """The sum of two residues modulo one more than the largest; nothing on the way to it leaves the dtype."""
    room = largest - right
    return jnp.where(left > room, left - room - 1, left + right)
