"""What a user's aggregation keeps of single clients, decided from what its operators do.

An accumulator that is only ever added to holds sums. One that takes the greater of itself and a client's value holds a
value of some client; and so may every accumulator that is written to in any other way. What cannot be seen to be a sum
counts as one that keeps single values.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from koinon.compiler._abstract import Domain, Interpreter
from koinon.compiler._steps import Step
from koinon.computation._evaluate import operand_types
from koinon.computation._flat import leaf_types
from koinon.types import FunctionType, StructType


class Kept(enum.Enum):
    """What an accumulator keeps of the clients' values."""

    SUM = "their sum"
    EXTREMUM = "the least or the greatest of them"
    SINGLE = "possibly single ones"


@dataclasses.dataclass(frozen=True)
class LeafFold:
    """What one leaf of an accumulator keeps, and why.

    Attributes:
      kept: what it keeps.
      why: what was found, in words; empty for a sum.
      by_data: whether a client's data chooses the slot that it is added to.
    """

    kept: Kept
    why: str = ""
    by_data: bool = False


class _Kind(enum.Enum):
    CONSTANT = enum.auto()  # depends on neither
    CLIENT = enum.auto()  # depends on the client's value
    SUM = enum.auto()  # an accumulator leaf, with or without something added to it
    EXTREMUM = enum.auto()  # the greatest, or least, of an accumulator leaf and something
    OTHER = enum.auto()


@dataclasses.dataclass(frozen=True)
class _Part:
    """How a value is made of the leaves of an accumulator and of a client's value."""

    kind: _Kind
    leaf: int = -1
    operation: str = ""
    by_data: bool = False

    @property
    def is_free(self) -> bool:
        """Whether no accumulator is in it."""
        return self.kind in (_Kind.CONSTANT, _Kind.CLIENT)


_CONSTANT = _Part(_Kind.CONSTANT)
_CLIENT = _Part(_Kind.CLIENT)
_COPIES = frozenset({"copy", "copy_p", "stop_gradient", "annotate"})
_SUMS = frozenset({"add", "add_any", "sub"})
_EXTREMA = frozenset({"max", "min", "or", "and"})
_SCATTERED_EXTREMA = {"scatter-max": "max", "scatter-min": "min"}


class _FoldDomain(Domain[_Part]):
    @property
    def constant(self) -> _Part:
        return _CONSTANT

    def join(self, first: _Part, second: _Part) -> _Part:
        if first == second:
            return first
        if first.is_free and second.is_free:
            return _CLIENT
        for part in (first, second):
            if part.kind is _Kind.OTHER:
                return part
        if first.leaf == second.leaf:
            by_data = first.by_data or second.by_data
            kinds = {first.kind, second.kind}
            if kinds == {_Kind.SUM}:
                return dataclasses.replace(first, by_data=by_data)
            operation = first.operation or second.operation
            # An untouched leaf counts as a sum, and it is the start of an extremum as well.
            if {first.operation, second.operation} <= {"", operation}:
                return _Part(_Kind.EXTREMUM, first.leaf, operation)
        return _Part(_Kind.OTHER, operation="a choice between an accumulator and something else")

    def controlled(self, fact: _Part, control: _Part) -> _Part:
        if not control.is_free:
            return _Part(_Kind.OTHER, operation="a choice that depends on the accumulator")
        return _CLIENT if fact == _CONSTANT and control == _CLIENT else fact

    def computed(self, inputs: Sequence[_Part], operation: str) -> _Part:
        if all(part == _CONSTANT for part in inputs):
            return _CONSTANT
        if all(part.is_free for part in inputs):
            return _CLIENT
        return _Part(_Kind.OTHER, operation=f"`{operation}` of the accumulator")

    def equation(self, eqn: Any, inputs: list[_Part]) -> list[_Part]:
        name = eqn.primitive.name
        if name == "select_n":
            predicate, *cases = inputs
            chosen = cases[0]
            for case in cases[1:]:
                chosen = self.join(chosen, case)
            return [self.controlled(chosen, predicate)]
        if name in _COPIES or (name == "convert_element_type" and _keeps_all(eqn)):
            return inputs
        operand, *others = inputs if inputs else [_CONSTANT]
        if name in ("add", "add_any", "max", "min", "or", "and") and operand.is_free:
            operand, others = others[0], [operand]
        if not operand.is_free and all(part.is_free for part in others):
            if operand.kind is _Kind.SUM and (name in _SUMS or name == "scatter-add"):
                by_data = name == "scatter-add" and others[0] == _CLIENT
                return [dataclasses.replace(operand, by_data=operand.by_data or by_data)]
            extremum = name if name in _EXTREMA else _SCATTERED_EXTREMA.get(name)
            # The start of an extremum is an accumulator that nothing was done to yet: it looks like a sum.
            if extremum is not None and operand.operation in ("", extremum) and operand.kind is not _Kind.OTHER:
                return [_Part(_Kind.EXTREMUM, operand.leaf, extremum)]
        return super().equation(eqn, inputs)


def _keeps_all(eqn: Any) -> bool:
    """Whether a conversion of an accumulator leaves a sum: a later summand would stand out of one that was cut off."""
    old, new = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    both_floating = jnp.issubdtype(old, jnp.floating) and jnp.issubdtype(new, jnp.floating)
    return both_floating or jnp.promote_types(old, new) == new


def leaf_folds(step: Step) -> list[LeafFold]:
    """What each leaf of the accumulator of a `federated_aggregate` keeps."""
    _, _, accumulate_type, _, _ = operand_types(step.node)  # pyright: ignore[reportArgumentType]
    _, _, accumulate, merge, _ = step.operands
    assert isinstance(accumulate_type, FunctionType)
    assert isinstance(accumulate_type.parameter, StructType)
    accumulator, member = accumulate_type.parameter[0], accumulate_type.parameter[1]
    interpreter = Interpreter(_FoldDomain())
    width = len(leaf_types(accumulator))
    start = [_Part(_Kind.SUM, leaf) for leaf in range(width)]

    def run(function: Any, value_type: Any) -> list[_Part]:
        value = interpreter.unflatten(value_type, [_CLIENT] * len(leaf_types(value_type)))
        # What a function has captured is the server's, and so a constant here.
        resolved = interpreter.resolve(function, collections.defaultdict(lambda: None))
        return interpreter.flatten(accumulator, resolved((interpreter.unflatten(accumulator, start), value)))

    folds = zip(run(accumulate, member), run(merge, accumulator), strict=True)
    return [_worse(_verdict(i, a, "accumulate"), _verdict(i, m, "merge")) for i, (a, m) in enumerate(folds)]


def _verdict(leaf: int, part: _Part, function: str) -> LeafFold:
    match part.kind:
        case _Kind.CONSTANT:
            return LeafFold(Kept.SUM)
        case _Kind.CLIENT:
            return LeafFold(Kept.SINGLE, f"`{function}` overwrites the accumulator with a client's value")
        case _Kind.OTHER:
            return LeafFold(Kept.SINGLE, f"`{function}` uses {part.operation}")
        case _ if part.leaf != leaf:
            return LeafFold(Kept.SINGLE, f"`{function}` puts a leaf of the accumulator in the place of another")
        case _Kind.EXTREMUM:
            return LeafFold(Kept.EXTREMUM, f"`{function}` takes the {part.operation} with a client's value")
        case _:
            return LeafFold(Kept.SUM, by_data=part.by_data)


_ORDER = [Kept.SUM, Kept.EXTREMUM, Kept.SINGLE]


def _worse(first: LeafFold, second: LeafFold) -> LeafFold:
    worse = max(first, second, key=lambda fold: _ORDER.index(fold.kept))
    return dataclasses.replace(worse, by_data=first.by_data or second.by_data)
