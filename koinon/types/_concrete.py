"""Whether a concrete type is an instance of a type with variables in it."""

from __future__ import annotations

import dataclasses

from koinon._errors import (
    MismatchedConcreteTypesError,
    MismatchedStructureError,
    MissingDefiningUsageError,
    NotConcreteTypeError,
    UnassignableConcreteTypesError,
)
from koinon.types._base import Type
from koinon.types._kinds import ABSTRACT
from koinon.types._struct import StructType
from koinon.types._types import AbstractType, FederatedType, FunctionType


@dataclasses.dataclass(frozen=True)
class _Usages:
    """What each type variable stands for, by where it occurs."""

    bindings: dict[str, Type] = dataclasses.field(default_factory=dict)
    uses: dict[str, list[Type]] = dataclasses.field(default_factory=dict)


def check_concrete_instance_of(concrete: Type, generic: Type) -> None:
    """Raises unless some substitution of the type variables of `generic` gives `concrete`.

    A variable is defined where a value of its type comes in, as part of the parameter of a function, and used where
    one goes out. All definitions of a variable have to be equivalent, and each use has to accept what is defined. A
    variable that is used once and defined nowhere may stand for anything.

    Args:
      concrete: a type without variables.
      generic: a type with variables, such as the signature of an intrinsic.

    Raises:
      NotConcreteTypeError: if `concrete` has variables itself.
      MismatchedStructureError: if the types differ in something else than variables.
      MismatchedConcreteTypesError: if the definitions of a variable differ.
      UnassignableConcreteTypesError: if a use of a variable does not accept what is defined.
      MissingDefiningUsageError: if a variable is used more than once and defined nowhere.

    >>> from koinon.types import parse
    >>> check_concrete_instance_of(parse("(<int32,int32> -> int32)"), parse("(<T,T> -> T)"))
    """
    if concrete.contains_kind(ABSTRACT):
        raise NotConcreteTypeError("A concrete type was expected.", found=concrete)
    usages = _Usages()
    _match(concrete, generic, usages, defining=False)
    for label, uses in usages.uses.items():
        bound = usages.bindings.get(label)
        if bound is None:
            if len(uses) > 1:
                raise MissingDefiningUsageError(
                    f"The type variable {label} is used and never defined.", expected=generic, found=concrete
                )
            continue
        for use in uses:
            if not use.is_assignable_from(bound):
                raise UnassignableConcreteTypesError(
                    f"The type variable {label} stands for a type that one of its uses does not accept.",
                    expected=use,
                    found=bound,
                )


def _match(concrete: Type, generic: Type, usages: _Usages, *, defining: bool) -> None:
    if isinstance(generic, AbstractType):
        _record(concrete, generic.label, usages, defining)
    elif not _same_outside(concrete, generic):
        raise MismatchedStructureError(
            "A type is no instance of a generic type, whatever its variables stand for.",
            expected=generic,
            found=concrete,
        )
    elif isinstance(generic, FunctionType) and generic.parameter is not None:
        # What a function takes in, its caller gives out: the roles change.
        parameter, result = concrete.children()
        _match(parameter, generic.parameter, usages, defining=not defining)
        _match(result, generic.result, usages, defining=defining)
    else:
        for inner, generic_inner in zip(concrete.children(), generic.children(), strict=True):
            _match(inner, generic_inner, usages, defining=defining)


def _record(concrete: Type, label: str, usages: _Usages, defining: bool) -> None:
    if not defining:
        usages.uses.setdefault(label, []).append(concrete)
        return
    bound = usages.bindings.setdefault(label, concrete)
    if not bound.is_equivalent_to(concrete):
        raise MismatchedConcreteTypesError(
            f"The type variable {label} would have to stand for two types.", expected=bound, found=concrete
        )


def _same_outside(concrete: Type, generic: Type) -> bool:
    if concrete.kind != generic.kind or len(concrete.children()) != len(generic.children()):
        return False
    if isinstance(generic, StructType) and isinstance(concrete, StructType):
        return generic.fields() == concrete.fields()
    if isinstance(generic, FederatedType) and isinstance(concrete, FederatedType):
        return generic.placement == concrete.placement and (concrete.all_equal or not generic.all_equal)
    return bool(generic.children()) or generic == concrete
