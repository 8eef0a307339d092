"""The intermediate representation: a typed lambda calculus over placed values.

    expression ::= Reference                  a name in scope
                 | Lambda                     (name -> expression)
                 | Call                       function(argument)
                 | Block                      (let name=expression,... in expression)
                 | Struct                     <name=expression,...>
                 | Selection                  expression.name  or  expression[index]
                 | Intrinsic                  an operator of the language, such as federated_sum
                 | Literal                    a constant
                 | Placement                  CLIENTS or SERVER
                 | Local                      a program of JAX, a closed jaxpr over flat leaves

Nodes are immutable, know their type, and hold no Python closure. Names are unique within a computation.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
from jax.extend.core import ClosedJaxpr

from koinon.types import FunctionType, PlacementLiteral, PlacementType, StructType, Type

# For how many sizes of arguments what was made of one program is kept.
_SIZES = 512

_Made = TypeVar("_Made")


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A name in scope."""

    name: str
    type: Type


@dataclasses.dataclass(frozen=True, eq=False)
class Lambda:
    """A function of one parameter, or of none."""

    parameter_name: str | None
    parameter_type: Type | None
    body: Expression
    made_in: str | None = None

    @functools.cached_property
    def type(self) -> FunctionType:
        """`(parameter -> body)`."""
        return FunctionType(self.parameter_type, self.body.type)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A function applied to its argument."""

    function: Expression
    argument: Expression | None
    made_in: str | None = None

    @functools.cached_property
    def type(self) -> Type:
        """The result type of the function."""
        return cast(FunctionType, self.function.type).result


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Local names, each visible to the later ones and to the result."""

    locals: tuple[tuple[str, Expression], ...]
    result: Expression

    @functools.cached_property
    def type(self) -> Type:
        """The type of the result."""
        return self.result.type


@dataclasses.dataclass(frozen=True, eq=False)
class Struct:
    """A struct of expressions, and the Python container that it comes back in."""

    elements: tuple[tuple[str | None, Expression], ...]
    container: Any = None

    @functools.cached_property
    def type(self) -> StructType:
        """The struct of the types of the elements."""
        return StructType(
            [(name, element.type) if name is not None else element.type for name, element in self.elements],
            self.container,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """A field of a struct."""

    source: Expression
    index: int

    @functools.cached_property
    def type(self) -> Type:
        """The type of the field."""
        return cast(StructType, self.source.type)[self.index]


@dataclasses.dataclass(frozen=True, eq=False)
class Intrinsic:
    """An operator of the language at one concrete type; `koinon.computation._intrinsics` has the table."""

    name: str
    type: FunctionType


@dataclasses.dataclass(frozen=True, eq=False)
class Literal:
    """A constant tensor."""

    value: np.ndarray
    type: Type


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """A placement as a value."""

    literal: PlacementLiteral

    @property
    def type(self) -> PlacementType:
        """`placement`."""
        return PlacementType()


@dataclasses.dataclass(frozen=True, eq=False)
class Local:
    """A program of JAX: a closed jaxpr from the flat leaves of its parameter to those of its result."""

    name: str
    program: ClosedJaxpr
    type: FunctionType
    made_in: str | None = None


Expression = Reference | Lambda | Call | Block | Struct | Selection | Intrinsic | Literal | Placement | Local


def children(node: Expression) -> Iterator[Expression]:
    """The direct subexpressions, in the order in which they are written."""
    match node:
        case Lambda():
            yield node.body
        case Call():
            yield node.function
            if node.argument is not None:
                yield node.argument
        case Block():
            for _, value in node.locals:
                yield value
            yield node.result
        case Struct():
            for _, element in node.elements:
                yield element
        case Selection():
            yield node.source
        case _:
            return


def walk(node: Expression) -> Iterator[Expression]:
    """The expression and all its subexpressions, parents first."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(reversed(list(children(current))))


def free_names(node: Expression) -> frozenset[str]:
    """The names that the expression refers to and does not bind."""
    match node:
        case Reference():
            return frozenset([node.name])
        case Lambda():
            return free_names(node.body) - {node.parameter_name or ""}
        case Block():
            names = free_names(node.result)
            for name, value in reversed(node.locals):
                names = (names - {name}) | free_names(value)
            return names
        case _:
            return frozenset().union(*[free_names(child) for child in children(node)])


def kept_with_program(make: Callable[..., _Made]) -> Callable[..., _Made]:
    """A function of a program that makes something once, and keeps it for as long as the program lives.

    A program holds the arrays that its Python function captured, and what is made of the program holds them too. A
    cache of its own would keep them when the computation is gone.

    Args:
      make: makes something of a closed jaxpr and of hashable arguments. What it makes may hold the parts of the closed
        jaxpr, but not the closed jaxpr itself, which would then never go.
    """
    kept: weakref.WeakKeyDictionary[ClosedJaxpr, Callable[..., _Made]] = weakref.WeakKeyDictionary()

    @functools.wraps(make)
    def made_once(program: ClosedJaxpr, *arguments: Any) -> _Made:
        made = kept.get(program)
        if made is None:
            made = kept[program] = _kept_with(make, weakref.ref(program))
        return made(*arguments)

    return made_once


def _kept_with(make: Callable[..., _Made], program: weakref.ref[ClosedJaxpr]) -> Callable[..., _Made]:
    return functools.lru_cache(_SIZES)(lambda *arguments: make(program(), *arguments))
