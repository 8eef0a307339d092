"""The type rules of the language's operators.

A rule maps the type of the operands, a struct where there are several, to the type of the result, and raises a typed
error where the operands have no meaning. The same rules serve tracing, the checker and the docs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from koinon._errors import OperandError, PlacementError, TypeNotAssignableError
from koinon.types import (
    CLIENTS,
    SERVER,
    FederatedType,
    FunctionType,
    PlacementLiteral,
    SequenceType,
    StructType,
    TensorType,
    Type,
    check_is_structure_of_integers,
    check_mean_compatible,
    check_min_max_compatible,
    check_sum_compatible,
    contains_federated_types,
    is_structure_of_floats,
    is_structure_of_integers,
    is_structure_of_tensors,
    preorder_types,
    to_type,
)

# A longer type would hide the sentence that it stands in.
WIDTH_IN_SENTENCES = 100

# --- checks that the rules share -------------------------------------------------------------------------------------


def _operands(type_: Type, count: int) -> list[Type]:
    if not isinstance(type_, StructType) or len(type_) != count:
        raise OperandError(f"The operator takes {count} operands.", found=type_)
    return [operand for _, operand in type_.items()]


def _placed(type_: Type, what: str, placement: PlacementLiteral | None) -> FederatedType:
    if not isinstance(type_, FederatedType):
        raise PlacementError(
            f"The {what} must be a placed value.",
            expected=f"a value placed at {placement or 'CLIENTS or SERVER'}",
            found=type_,
            hint=f"place a constant with ko.federated_value(value, ko.{placement or 'CLIENTS'})"
            if isinstance(type_, TensorType)
            else "zip a struct of placed values with ko.federated_zip",
        )
    if placement is not None and type_.placement is not placement:
        raise PlacementError(
            f"The {what} should be placed at {placement}, but it is placed at {type_.placement}.",
            expected=f"a value placed at {placement}",
            found=type_,
            hint=_hint(type_, placement),
        )
    return type_


def _hint(type_: FederatedType, placement: PlacementLiteral) -> str:
    if placement is CLIENTS:
        return "bring a value to the clients with ko.federated_broadcast"
    if type_.all_equal:
        return "all clients have this value already: use what was broadcast, or the value that it was made of"
    return "bring a value to the server with an aggregation, such as ko.federated_sum"


def _function(type_: Type, what: str) -> FunctionType:
    if not isinstance(type_, FunctionType):
        raise OperandError(f"The {what} must be a function.", expected="a function", found=type_)
    return type_


def _with_parameter(function: FunctionType, what: str) -> Type:
    if function.parameter is None:
        raise OperandError(f"The {what} must take a parameter.", found=function)
    return function.parameter


def _accepts(target: Type, source: Type, what: str, hint: str | None = None) -> None:
    try:
        target.check_assignable_from(source, what=what)
    except TypeNotAssignableError as error:
        raise TypeNotAssignableError(
            error.what, expected=error.expected, found=error.found, differs=error.differs, hint=hint
        ) from None


_LIKE_ZERO = "give the zero the dtypes, shapes and structure of what the operator returns: 0.0 is a float32, 0 an int32"


# --- the rules -------------------------------------------------------------------------------------------------------


def broadcast(type_: Type) -> Type:
    """`T@SERVER` to `T@CLIENTS`."""
    value = _placed(type_, "value to be broadcast", SERVER)
    if not value.all_equal:
        raise PlacementError("The value to be broadcast must be one value of the server.", found=value)
    return FederatedType(value.member, CLIENTS, True)


def map_(type_: Type) -> Type:
    """`<(T -> U),{T}@P>` to `{U}@P`; a value that is the same at all clients need not stay so."""
    function_type, value_type = _operands(type_, 2)
    function = _function(function_type, "mapping function")
    parameter = _with_parameter(function, "mapping function")
    value = _placed(value_type, "value to be mapped", None)
    if contains_federated_types(parameter):
        raise OperandError(
            "The mapping function takes a placed value, and so cannot be applied to what is inside of one.",
            expected=f"a function of {value.member}",
            found=function,
            hint="call it with the value: fn(value)",
        )
    if not parameter.is_assignable_from(value.member):
        of_elements = isinstance(value.member, SequenceType) and parameter.is_assignable_from(value.member.element)
        _accepts(
            parameter,
            value.member,
            f"The mapping function expects a parameter of type {parameter.compact_representation(WIDTH_IN_SENTENCES)}, "
            f"the value to be mapped is of type {value.compact_representation(WIDTH_IN_SENTENCES)}.",
            "apply a function to each element with ko.sequence_map" if of_elements else None,
        )
    return FederatedType(function.result, value.placement, False if value.placement is CLIENTS else value.all_equal)


def sum_(type_: Type) -> Type:
    """`{T}@CLIENTS` to `T@SERVER`, for numbers."""
    value = _placed(type_, "value to be summed", CLIENTS)
    check_sum_compatible(value.member)
    return FederatedType(value.member, SERVER)


def mean(type_: Type) -> Type:
    """`{T}@CLIENTS` to `T@SERVER`, for floating and complex numbers."""
    value = _placed(type_, "value to be averaged", CLIENTS)
    check_mean_compatible(value.member)
    return FederatedType(value.member, SERVER)


def weighted_mean(type_: Type) -> Type:
    """`<{T}@CLIENTS,{W}@CLIENTS>` to `T@SERVER`, with one number `W` for each client."""
    value_type, weight_type = _operands(type_, 2)
    result = mean(value_type)
    weight = _placed(weight_type, "weight", CLIENTS).member
    if not (
        isinstance(weight, TensorType)
        and weight.shape == ()
        and (is_structure_of_floats(weight) or is_structure_of_integers(weight))
    ):
        raise OperandError(
            "The weight of a mean must be one number for each client.",
            expected="a scalar of an integer or floating dtype",
            found=weight,
        )
    return result


def extremum(type_: Type) -> Type:
    """`{T}@CLIENTS` to `T@SERVER`, for numbers that have an order."""
    value = _placed(type_, "value to be compared", CLIENTS)
    check_min_max_compatible(value.member)
    return FederatedType(value.member, SERVER)


def aggregate(type_: Type) -> Type:
    """`<{T}@CLIENTS,U,(<U,T> -> U),(<U,U> -> U),(U -> R)>` to `R@SERVER`."""
    value_type, zero, *function_types = _operands(type_, 5)
    value = _placed(value_type, "value to be aggregated", CLIENTS)
    if contains_federated_types(zero):
        raise OperandError("The zero of an aggregation must not be placed.", found=zero)
    names = ("accumulate", "merge", "report")
    functions = [_function(t, f"operator `{name}`") for name, t in zip(names, function_types, strict=True)]
    parameters = [_with_parameter(f, f"operator `{name}`") for name, f in zip(names, functions, strict=True)]
    accumulate, merge, report = functions
    accumulator = _first_of_two(parameters[0], "accumulate")
    _accepts(accumulator, zero, "The zero must be an accumulator that the operator `accumulate` takes.")
    _accepts(
        parameters[0],
        StructType([accumulator, value.member]),
        "The operator `accumulate` must take an accumulator and a value of a client.",
    )
    _accepts(
        accumulator,
        accumulate.result,
        "The operator `accumulate` must return an accumulator that it takes.",
        _LIKE_ZERO,
    )
    _accepts(parameters[1], StructType([accumulator, accumulator]), "The operator `merge` must take two accumulators.")
    _accepts(accumulator, merge.result, "The operator `merge` must return an accumulator.")
    _accepts(parameters[2], accumulator, "The operator `report` must take an accumulator.")
    return FederatedType(report.result, SERVER)


def _first_of_two(parameter: Type, name: str) -> Type:
    if not isinstance(parameter, StructType) or len(parameter) != 2:
        raise OperandError(f"The operator `{name}` must take two parameters.", found=parameter)
    return parameter[0]


def eval_(type_: Type, placement: PlacementLiteral) -> Type:
    """`( -> T)` to `T` at the placement."""
    function = _function(type_, "function to be evaluated")
    if function.parameter is not None:
        raise OperandError("The function to be evaluated must take no parameter.", found=function)
    _check_unplaced(function.result, "result of the function to be evaluated")
    return FederatedType(function.result, placement, placement is SERVER)


def value(type_: Type, placement: PlacementLiteral) -> Type:
    """`T` to `T` at the placement, the same everywhere."""
    _check_unplaced(type_, "value to be placed")
    return FederatedType(type_, placement, True)


def _check_unplaced(type_: Type, what: str) -> None:
    if contains_federated_types(type_):
        raise PlacementError(
            f"The {what} must not be placed already.",
            expected="an unplaced value",
            found=type_,
            hint="use a value that is placed already as it is",
        )


def zip_(type_: Type) -> Type:
    """A struct of values with one placement to one placed struct."""
    placements: list[PlacementLiteral] = []

    def member(t: Type, path: str) -> Type:
        if isinstance(t, StructType):
            fields = [
                (name, member(field, f"{path}.{name}" if name is not None else f"{path}[{i}]"))
                for i, (name, field) in enumerate(t.items())
            ]
            return StructType([(n, f) if n is not None else f for n, f in fields], t.container)
        placed = _placed(t, f"field {path} of the struct to be zipped", None)
        placements.append(placed.placement)
        return placed.member

    if not isinstance(type_, StructType):
        raise OperandError("Only a struct of placed values can be zipped.", found=type_)
    zipped = member(type_, "")
    if not placements:
        raise OperandError("A struct without any placed value cannot be zipped.", found=type_)
    if any(placement is not placements[0] for placement in placements):
        raise PlacementError(
            "All values to be zipped must have one placement.",
            expected="values that are all placed at CLIENTS, or all at SERVER",
            found=type_,
            hint="bring those of the server to the clients with ko.federated_broadcast",
        )
    return FederatedType(zipped, placements[0])


def collect(type_: Type) -> Type:
    """`{T}@CLIENTS` to `T*@SERVER`."""
    member = _placed(type_, "value to be collected", CLIENTS).member
    if not is_structure_of_tensors(member):
        raise OperandError("Sequences cannot be collected.", expected="a structure of tensors", found=type_)
    return FederatedType(SequenceType(member), SERVER)


def split_key(type_: Type) -> Type:
    """`key<K>@SERVER` to `{key<K>}@CLIENTS`."""
    key = _placed(type_, "key to be split", SERVER)
    if not isinstance(key.member, TensorType) or key.member.shape != () or not str(key.member).startswith("key<"):
        raise OperandError(
            "Only a typed PRNG key can be split over the clients.",
            expected="a key of type key<fry>, as jax.random.key makes it",
            found=key.member,
        )
    return FederatedType(key.member, CLIENTS)


def secure_sum(type_: Type) -> Type:
    """`<{T}@CLIENTS,M>` to `T@SERVER`, for integers `T` and a bound `M` for all or for each of them."""
    value_type, bound = _operands(type_, 2)
    value = _placed(value_type, "value to be summed", CLIENTS)
    check_is_structure_of_integers(value.member)
    if not is_structure_of_integers(bound) or contains_federated_types(bound):
        raise OperandError("The bound of a secure sum must be made of integers.", found=bound)
    is_for_each = isinstance(bound, StructType) and type_structure(bound) == type_structure(value.member)
    of_scalars = all(part.shape == () for part in preorder_types(bound) if isinstance(part, TensorType))
    if not of_scalars or not (is_for_each or isinstance(bound, TensorType)):
        raise OperandError(
            "The bound of a secure sum must be one integer, or a struct with one for each tensor of the value.",
            expected=value.member if isinstance(value.member, StructType) else "one integer",
            found=bound,
        )
    return FederatedType(value.member, SERVER)


def type_structure(type_: Type) -> object:
    """The nesting of a type, without its dtypes and shapes."""
    if isinstance(type_, StructType):
        return tuple((name, type_structure(field)) for name, field in type_.items())
    return None


def select(type_: Type) -> Type:
    """`<{int32[N]}@CLIENTS,int32@SERVER,S@SERVER,(<S,int32> -> U)>` to `{U*}@CLIENTS`."""
    keys_type, max_key_type, value_type, function_type = _operands(type_, 4)
    keys = _placed(keys_type, "keys of the clients", CLIENTS)
    int32 = to_type(np.int32)
    if not (
        isinstance(keys.member, TensorType)
        and keys.member.dtype == np.int32
        and keys.member.shape is not None
        and len(keys.member.shape) == 1
        and keys.member.shape[0] is not None
    ):
        raise OperandError("The keys must be a vector of a fixed number of int32.", found=keys.member)
    max_key = _placed(max_key_type, "largest key", SERVER)
    if max_key.member != int32:
        raise OperandError("The largest key must be one int32.", found=max_key.member)
    value = _placed(value_type, "value to be selected from", SERVER)
    function = _function(function_type, "selecting function")
    parameter = _with_parameter(function, "selecting function")
    _accepts(parameter, StructType([value.member, int32]), "The selecting function must take the value and a key.")
    return FederatedType(SequenceType(function.result), CLIENTS)


def _sequence_of(type_: Type, what: str) -> tuple[SequenceType, Callable[[Type], Type]]:
    """The sequence type of a sequence, placed or not, and how to place a result likewise."""
    if isinstance(type_, SequenceType):
        return type_, lambda result: result
    if isinstance(type_, FederatedType) and isinstance(type_.member, SequenceType):
        return type_.member, lambda result: FederatedType(result, type_.placement)
    raise OperandError(f"The {what} must be a sequence.", found=type_)


def sequence_map(type_: Type) -> Type:
    """`<(T -> U),T*>` to `U*`, placed as the sequence is."""
    function_type, sequence_type = _operands(type_, 2)
    function = _function(function_type, "mapping function")
    parameter = _with_parameter(function, "mapping function")
    sequence, place = _sequence_of(sequence_type, "value to be mapped")
    _accepts(parameter, sequence.element, "The mapping function must take an element of the sequence.")
    return place(SequenceType(function.result))


def sequence_reduce(type_: Type) -> Type:
    """`<T*,U,(<U,T> -> U)>` to `U`, placed as the sequence is."""
    sequence_type, zero, op_type = _operands(type_, 3)
    sequence, place = _sequence_of(sequence_type, "value to be reduced")
    op = _function(op_type, "operator of the reduction")
    parameter = _with_parameter(op, "operator of the reduction")
    accumulator = zero.member if isinstance(zero, FederatedType) else zero
    if isinstance(zero, FederatedType) and place(zero.member) != FederatedType(zero.member, zero.placement):
        raise PlacementError(
            "The zero of a reduction must be where the sequence is.", expected=place(zero.member), found=zero
        )
    _accepts(
        parameter, StructType([accumulator, sequence.element]), "The operator must take an accumulator and an element."
    )
    _accepts(accumulator, op.result, "The operator must return an accumulator of the type of the zero.", _LIKE_ZERO)
    return place(op.result)


def sequence_sum(type_: Type) -> Type:
    """`T*` to `T`, placed as the sequence is, for numbers."""
    sequence, place = _sequence_of(type_, "value to be summed")
    check_sum_compatible(sequence.element)
    return place(sequence.element)
