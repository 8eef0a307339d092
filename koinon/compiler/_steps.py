"""The vocabulary of plans: values, steps and phases."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from koinon.computation import _ir as ir
from koinon.computation._evaluate import Closure
from koinon.types import SERVER, FederatedType, PlacementLiteral, Type

AGGREGATIONS = frozenset(
    [
        "federated_sum",
        "federated_mean",
        "federated_weighted_mean",
        "federated_min",
        "federated_max",
        "federated_aggregate",
        "federated_collect",
        "federated_secure_sum",
        "federated_secure_sum_bitwidth",
        "federated_secure_modular_sum",
    ]
)


@dataclasses.dataclass(frozen=True, eq=False)
class PlanValue:
    """A value that a step makes, or a part of the argument.

    Attributes:
      index: its number in the plan.
      type: its type; a value that is not placed counts as the server's.
      phase: the number of aggregations on the longest way to it.
    """

    index: int
    type: Type
    phase: int

    @property
    def placement(self) -> PlacementLiteral:
        """Where the value is."""
        return self.type.placement if isinstance(self.type, FederatedType) else SERVER

    @property
    def member(self) -> Type:
        """The type without its placement."""
        return self.type.member if isinstance(self.type, FederatedType) else self.type


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One operation of a plan.

    Attributes:
      operator: the name of the operator; `local` for a program of JAX at the server.
      node: the operator with its type, or the program.
      operands: its operands: plan values, constants and functions, structs as tuples.
      output: the value that it makes, or a tuple of them.
      phase: the phase in which it runs.
      placement: where it runs; aggregations run between the clients and the server, and count as the clients'.
    """

    operator: str
    node: ir.Intrinsic | ir.Local
    operands: Any
    output: Any
    phase: int
    placement: PlacementLiteral
    made_in: str | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
    """One exchange between the server and the clients.

    Attributes:
      server: what the server does first.
      clients: what every client does, with broadcasts among its operands.
      aggregations: how the clients' values come to the server.
    """

    server: tuple[Step, ...]
    clients: tuple[Step, ...]
    aggregations: tuple[Step, ...]


def structure_leaves(value: Any) -> Iterator[Any]:
    """What is in a structure of tuples."""
    if isinstance(value, tuple):
        for field in value:
            yield from structure_leaves(field)
    else:
        yield value


def plan_values(value: Any) -> Iterator[PlanValue]:
    """The plan values that operands depend on, those that functions have captured among them."""
    for leaf in structure_leaves(value):
        if isinstance(leaf, PlanValue):
            yield leaf
        elif isinstance(leaf, Closure):
            for name in ir.free_names(leaf.node):
                yield from plan_values(leaf.scope[name])
