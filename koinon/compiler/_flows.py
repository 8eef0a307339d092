"""What flows into a value: the sources that it depends on, and what was done to each on the way.

A source carries marks along its path: whether the clients' values were clipped, and whether noise was added to what
was clipped. Where two paths of one source meet, what holds of one of them only does not hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from koinon.compiler._abstract import Domain
from koinon.computation._annotations import ClipNote, NoiseNote, annotate_p
from koinon.types import CLIENTS, PlacementLiteral


@dataclasses.dataclass(frozen=True)
class ArgumentLeaf:
    """A leaf of the argument of a computation.

    Attributes:
      path: where it is, such as `argument.data.x`; `len(argument.data)` is the length of a sequence.
      placement: where it lives; what is not placed is the server's.
    """

    path: str
    placement: PlacementLiteral


@dataclasses.dataclass(frozen=True)
class AggregationLeaf:
    """A leaf of what an aggregation brings to the server; of a fold with a user's operators, of its accumulator.

    Attributes:
      step: the number of the aggregation in its plan.
      leaf: the number of the leaf.
    """

    step: int
    leaf: int


Source = ArgumentLeaf | AggregationLeaf


@dataclasses.dataclass(frozen=True)
class Bound:
    """A clipping norm that still bounds how much one client can change a value.

    Attributes:
      norm: the norm; None where it is known only when the computation runs.
      shifted: whether something that is no client's was added since, so that the value itself may be longer.
    """

    norm: float | None
    shifted: bool = False


@dataclasses.dataclass(frozen=True)
class Marks:
    """What was done to a source on all its paths to a value.

    Attributes:
      bound: the clipping norm that holds.
      lost: the operation after which a clipping norm held no longer.
      noise: the noise that was added while a clipping norm held.
      noise_bound: that norm.
      stray_noise: whether noise was added where no clipping norm held.
    """

    bound: Bound | None = None
    lost: str | None = None
    noise: NoiseNote | None = None
    noise_bound: Bound | None = None
    stray_noise: bool = False

    def without_bound(self, operation: str) -> Marks:
        """The marks after an operation that keeps no norm."""
        return self if self.bound is None else dataclasses.replace(self, bound=None, lost=self.lost or operation)


def weaker_marks(first: Marks, second: Marks) -> Marks:
    """What holds on both of two paths."""
    if first == second:
        return first
    bound = _larger(first.bound, second.bound)
    lost = first.lost or second.lost
    stray = first.stray_noise or second.stray_noise
    if first.noise is None or second.noise is None:
        return Marks(bound, lost, None, None, stray)
    less = first if _strength(first.noise) <= _strength(second.noise) else second
    return Marks(bound, lost, less.noise, _larger(first.noise_bound, second.noise_bound), stray)


def _larger(first: Bound | None, second: Bound | None) -> Bound | None:
    if first is None or second is None:
        return None
    norm = None if first.norm is None or second.norm is None else max(first.norm, second.norm)
    return Bound(norm, first.shifted or second.shifted)


def _strength(note: NoiseNote) -> tuple[Any, ...]:
    unknown = note.noise_multiplier is None
    return (not note.simulation_only, 0.0 if unknown else note.noise_multiplier, note.mechanism, note.sampling or "")


class Flows:
    """The sources of a value, each with its marks. Immutable."""

    __slots__ = ("marks",)

    def __init__(self, marks: Mapping[Source, Marks]) -> None:
        self.marks = marks

    def __iter__(self) -> Iterator[Source]:
        return iter(self.marks)

    def __bool__(self) -> bool:
        return bool(self.marks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flows) and self.marks == other.marks

    def __hash__(self) -> int:
        return hash(frozenset(self.marks.items()))

    def __repr__(self) -> str:
        return f"Flows({dict(self.marks)})"

    @property
    def clients(self) -> dict[ArgumentLeaf, Marks]:
        """Those that are clients' parts of the argument."""
        return {s: m for s, m in self.marks.items() if isinstance(s, ArgumentLeaf) and s.placement is CLIENTS}

    @property
    def aggregations(self) -> dict[AggregationLeaf, Marks]:
        """Those that are leaves of aggregations."""
        return {s: m for s, m in self.marks.items() if isinstance(s, AggregationLeaf)}

    @property
    def are_clients(self) -> bool:
        """Whether anything of clients is among them."""
        return any(isinstance(s, AggregationLeaf) or s.placement is CLIENTS for s in self.marks)

    def map_marks(self, fn: Callable[[Source, Marks], Marks]) -> Flows:
        """The same sources with other marks."""
        return Flows({source: fn(source, marks) for source, marks in self.marks.items()})

    def without_bound(self, operation: str) -> Flows:
        """What flows through an operation that keeps no norm."""
        if all(marks.bound is None for marks in self.marks.values()):
            return self
        return self.map_marks(lambda _, marks: marks.without_bound(operation))


NOTHING = Flows({})


def join_flows(flows: Iterable[Flows]) -> Flows:
    """What flows into a value that all of these flow into."""
    distinct = list({id(flow): flow for flow in flows if flow}.values())
    if len(distinct) <= 1:
        return distinct[0] if distinct else NOTHING
    marks: dict[Source, Marks] = dict(distinct[0].marks)
    for flow in distinct[1:]:
        for source, new in flow.marks.items():
            old = marks.get(source)
            marks[source] = new if old is None else weaker_marks(old, new)
    return Flows(marks)


# Operations that move the entries of a value, and change none but by a sign.
_MOVES = frozenset({"reshape", "squeeze", "expand_dims", "transpose", "rev", "copy", "slice", "neg", "stop_gradient"})
_ADDITIONS = frozenset({"add", "add_any", "sub"})


class FlowDomain(Domain[Flows]):
    """How sources and their marks pass through programs."""

    @property
    def constant(self) -> Flows:
        return NOTHING

    def join(self, first: Flows, second: Flows) -> Flows:
        return join_flows([first, second])

    def controlled(self, fact: Flows, control: Flows) -> Flows:
        if not control:
            return fact
        return join_flows([fact.without_bound("a choice by data"), control.without_bound("a choice by data")])

    def computed(self, inputs: Sequence[Flows], operation: str) -> Flows:
        return join_flows(inputs).without_bound(operation)

    def equation(self, eqn: Any, inputs: list[Flows]) -> list[Flows]:
        name = eqn.primitive.name
        if eqn.primitive is annotate_p:
            return [annotated(inputs[0], eqn.params["note"])]
        if name in _MOVES or _is_exact_conversion(eqn) or _adds_dimensions(eqn):
            return inputs[:1]
        if name in _ADDITIONS:
            first, second = inputs
            if not (first.are_clients and second.are_clients):
                return [join_flows([_shifted(first), _shifted(second)])]
        return super().equation(eqn, inputs)


def _is_exact_conversion(eqn: Any) -> bool:
    if eqn.primitive.name != "convert_element_type":
        return False
    old, new = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    return jnp.promote_types(old, new) == new


def _adds_dimensions(eqn: Any) -> bool:
    """Whether a broadcast repeats nothing."""
    if eqn.primitive.name != "broadcast_in_dim":
        return False
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return [str(size) for size in old if str(size) != "1"] == [str(size) for size in new if str(size) != "1"]


def _shifted(flows: Flows) -> Flows:
    def shift(_: Source, marks: Marks) -> Marks:
        return marks if marks.bound is None else dataclasses.replace(marks, bound=Bound(marks.bound.norm, True))

    return flows.map_marks(shift)


def annotated(flows: Flows, note: ClipNote | NoiseNote) -> Flows:
    """What flows through an annotation."""

    def clip(source: Source, marks: Marks) -> Marks:
        if not isinstance(source, ArgumentLeaf) or source.placement is not CLIENTS:
            # What was aggregated is many clients' already: no norm of it bounds what one of them did.
            return marks
        return dataclasses.replace(marks, bound=Bound(note.norm), lost=None)  # pyright: ignore

    def noise(_: Source, marks: Marks) -> Marks:
        if marks.noise is not None:
            return marks
        if marks.bound is None:
            return dataclasses.replace(marks, stray_noise=True)
        return dataclasses.replace(marks, noise=note, noise_bound=marks.bound)

    return flows.map_marks(clip if isinstance(note, ClipNote) else noise)
