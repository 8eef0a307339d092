"""The table of the language's operators: one row for each, with its type rule and its meaning.

A type rule maps the type of the operands, a struct where there are several, to the type of the result, and raises a
typed error where the operands have no meaning. The same rules serve tracing, the checker and the docs.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

import numpy as np

from koinon._errors import OperandError, PlacementError
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
    is_structure_of_integers,
    to_type,
)


class Route(enum.Enum):
    """How values of single clients reach the server through an operator."""

    NONE = "nothing leaves the clients"
    PLAIN = "each client's value is visible to the server until it is aggregated"
    SECURE = "the server sees the sum alone"
    REVEALING = "the server keeps values of single clients"


@dataclasses.dataclass(frozen=True)
class IntrinsicRow:
    """An operator of the language.

    Attributes:
      name: the name under which users call it.
      signature: its type, with type variables.
      rule: from the type of the operands to the type of the result.
      route: how clients' values reach the server through it.
      meaning: what it computes, in one sentence.
    """

    name: str
    signature: str
    rule: Callable[[Type], Type]
    route: Route
    meaning: str


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
            hint="place a constant with ko.federated_value, or zip a struct with ko.federated_zip",
        )
    if placement is not None and type_.placement is not placement:
        raise PlacementError(
            f"The {what} should be placed at {placement}, but it is placed at {type_.placement}.",
            expected=f"a value placed at {placement}",
            found=type_,
            hint="bring a value to the clients with ko.federated_broadcast"
            if placement is CLIENTS
            else "bring a value to the server with an aggregation, such as ko.federated_sum",
        )
    return type_


def _function(type_: Type, what: str) -> FunctionType:
    if not isinstance(type_, FunctionType):
        raise OperandError(f"The {what} must be a function.", expected="a function", found=type_)
    return type_


def _with_parameter(function: FunctionType, what: str) -> Type:
    if function.parameter is None:
        raise OperandError(f"The {what} must take a parameter.", found=function)
    return function.parameter


def _accepts(target: Type, source: Type, what: str) -> None:
    target.check_assignable_from(source, what=what)


# --- the rules -------------------------------------------------------------------------------------------------------


def _broadcast(type_: Type) -> Type:
    value = _placed(type_, "value to be broadcast", SERVER)
    if not value.all_equal:
        raise PlacementError("The value to be broadcast must be one value of the server.", found=value)
    return FederatedType(value.member, CLIENTS, True)


def _map(type_: Type) -> Type:
    function_type, value_type = _operands(type_, 2)
    function = _function(function_type, "mapping function")
    parameter = _with_parameter(function, "mapping function")
    value = _placed(value_type, "value to be mapped", None)
    if not parameter.is_assignable_from(value.member):
        _accepts(
            parameter,
            value.member,
            f"The mapping function expects a parameter of type {parameter}, the value to be mapped is of type {value}.",
        )
    return FederatedType(function.result, value.placement, False if value.placement is CLIENTS else value.all_equal)


def _sum(type_: Type) -> Type:
    value = _placed(type_, "value to be summed", CLIENTS)
    check_sum_compatible(value.member)
    return FederatedType(value.member, SERVER)


def _mean(type_: Type) -> Type:
    value = _placed(type_, "value to be averaged", CLIENTS)
    check_mean_compatible(value.member)
    return FederatedType(value.member, SERVER)


def _weighted_mean(type_: Type) -> Type:
    value_type, weight_type = _operands(type_, 2)
    result = _mean(value_type)
    weight = _placed(weight_type, "weight", CLIENTS).member
    if not (
        isinstance(weight, TensorType)
        and weight.shape == ()
        and (np.issubdtype(weight.dtype, np.integer) or weight.dtype.kind in "fV")
        and weight.dtype != np.bool_
    ):
        raise OperandError(
            "The weight of a mean must be one number for each client.",
            expected="a scalar of an integer or floating dtype",
            found=weight,
        )
    return result


def _extremum(type_: Type) -> Type:
    value = _placed(type_, "value to be compared", CLIENTS)
    check_min_max_compatible(value.member)
    return FederatedType(value.member, SERVER)


def _aggregate(type_: Type) -> Type:
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
    _accepts(accumulator, accumulate.result, "The operator `accumulate` must return an accumulator that it takes.")
    _accepts(
        parameters[1], StructType([accumulator, accumulator]), "The operator `merge` must take two accumulators."
    )
    _accepts(accumulator, merge.result, "The operator `merge` must return an accumulator.")
    _accepts(parameters[2], accumulator, "The operator `report` must take an accumulator.")
    return FederatedType(report.result, SERVER)


def _first_of_two(parameter: Type, name: str) -> Type:
    if not isinstance(parameter, StructType) or len(parameter) != 2:
        raise OperandError(f"The operator `{name}` must take two parameters.", found=parameter)
    return parameter[0]


def _eval(type_: Type, placement: PlacementLiteral) -> Type:
    function = _function(type_, "function to be evaluated")
    if function.parameter is not None:
        raise OperandError("The function to be evaluated must take no parameter.", found=function)
    _check_unplaced(function.result, "result of the function to be evaluated")
    return FederatedType(function.result, placement, placement is SERVER)


def _value(type_: Type, placement: PlacementLiteral) -> Type:
    _check_unplaced(type_, "value to be placed")
    return FederatedType(type_, placement, True)


def _check_unplaced(type_: Type, what: str) -> None:
    if contains_federated_types(type_):
        raise PlacementError(f"The {what} must not be placed already.", expected="an unplaced value", found=type_)


def _zip(type_: Type) -> Type:
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
        raise PlacementError("All values to be zipped must have one placement.", found=type_)
    return FederatedType(zipped, placements[0])


def _collect(type_: Type) -> Type:
    return FederatedType(SequenceType(_placed(type_, "value to be collected", CLIENTS).member), SERVER)


def _split_key(type_: Type) -> Type:
    key = _placed(type_, "key to be split", SERVER)
    if not isinstance(key.member, TensorType) or key.member.shape != () or not str(key.member).startswith("key<"):
        raise OperandError(
            "Only a typed PRNG key can be split over the clients.",
            expected="a key of type key<fry>, as jax.random.key makes it",
            found=key.member,
        )
    return FederatedType(key.member, CLIENTS)


def _secure_sum(type_: Type) -> Type:
    value_type, bound = _operands(type_, 2)
    value = _placed(value_type, "value to be summed", CLIENTS)
    check_is_structure_of_integers(value.member)
    if not is_structure_of_integers(bound) or contains_federated_types(bound):
        raise OperandError("The bound of a secure sum must be made of integers.", found=bound)
    if not isinstance(bound, TensorType):
        bound_shape = StructType([*bound.items()]) if isinstance(bound, StructType) else bound
        if type_structure(bound_shape) != type_structure(value.member):
            raise OperandError(
                "The bound of a secure sum must be one integer, or a struct with one for each tensor of the value.",
                expected=value.member,
                found=bound,
            )
    return FederatedType(value.member, SERVER)


def type_structure(type_: Type) -> object:
    """The nesting of a type, without its dtypes and shapes."""
    if isinstance(type_, StructType):
        return tuple((name, type_structure(field)) for name, field in type_.items())
    return None


def _select(type_: Type) -> Type:
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


def _sequence_map(type_: Type) -> Type:
    function_type, sequence_type = _operands(type_, 2)
    function = _function(function_type, "mapping function")
    parameter = _with_parameter(function, "mapping function")
    sequence, place = _sequence_of(sequence_type, "value to be mapped")
    _accepts(parameter, sequence.element, "The mapping function must take an element of the sequence.")
    return place(SequenceType(function.result))


def _sequence_reduce(type_: Type) -> Type:
    sequence_type, zero, op_type = _operands(type_, 3)
    sequence, place = _sequence_of(sequence_type, "value to be reduced")
    op = _function(op_type, "operator of the reduction")
    parameter = _with_parameter(op, "operator of the reduction")
    accumulator = zero.member if isinstance(zero, FederatedType) else zero
    _accepts(
        parameter, StructType([accumulator, sequence.element]), "The operator must take an accumulator and an element."
    )
    _accepts(accumulator, op.result, "The operator must return an accumulator of the type of the zero.")
    return place(op.result)


def _sequence_sum(type_: Type) -> Type:
    sequence, place = _sequence_of(type_, "value to be summed")
    check_sum_compatible(sequence.element)
    return place(sequence.element)


# --- the table -------------------------------------------------------------------------------------------------------

_ROWS = (
    ("federated_broadcast", "T@SERVER -> T@CLIENTS", _broadcast, Route.NONE, "Sends the server's value to every client."),
    ("federated_map", "<(T -> U),{T}@P> -> {U}@P", _map, Route.NONE, "Applies a function to every placed value."),
    ("federated_zip", "<{T}@P,{U}@P> -> {<T,U>}@P", _zip, Route.NONE, "Turns a struct of placed values into a placed struct."),
    ("federated_eval_at_clients", "( -> T) -> {T}@CLIENTS", lambda t: _eval(t, CLIENTS), Route.NONE, "Runs a function at every client."),
    ("federated_eval_at_server", "( -> T) -> T@SERVER", lambda t: _eval(t, SERVER), Route.NONE, "Runs a function at the server."),
    ("federated_value_at_clients", "T -> T@CLIENTS", lambda t: _value(t, CLIENTS), Route.NONE, "Places a constant at the clients."),
    ("federated_value_at_server", "T -> T@SERVER", lambda t: _value(t, SERVER), Route.NONE, "Places a constant at the server."),
    ("federated_sum", "{T}@CLIENTS -> T@SERVER", _sum, Route.PLAIN, "Sums over the clients."),
    ("federated_mean", "{T}@CLIENTS -> T@SERVER", _mean, Route.PLAIN, "Averages over the clients."),
    ("federated_weighted_mean", "<{T}@CLIENTS,{W}@CLIENTS> -> T@SERVER", _weighted_mean, Route.PLAIN, "Averages over the clients, weighted."),
    ("federated_min", "{T}@CLIENTS -> T@SERVER", _extremum, Route.REVEALING, "The least over the clients, per element."),
    ("federated_max", "{T}@CLIENTS -> T@SERVER", _extremum, Route.REVEALING, "The greatest over the clients, per element."),
    ("federated_aggregate", "<{T}@CLIENTS,U,(<U,T> -> U),(<U,U> -> U),(U -> R)> -> R@SERVER", _aggregate, Route.PLAIN, "Folds over the clients with operators of the user."),
    ("federated_collect", "{T}@CLIENTS -> T*@SERVER", _collect, Route.REVEALING, "Gives the server every client's value."),
    ("federated_secure_sum", "<{T}@CLIENTS,M> -> T@SERVER", _secure_sum, Route.SECURE, "Sums integers from 0 to a maximum, the server sees the sum alone."),
    ("federated_secure_sum_bitwidth", "<{T}@CLIENTS,B> -> T@SERVER", _secure_sum, Route.SECURE, "Sums integers of a bit width, the server sees the sum alone."),
    ("federated_secure_modular_sum", "<{T}@CLIENTS,M> -> T@SERVER", _secure_sum, Route.SECURE, "Sums integers modulo a number, the server sees the sum alone."),
    ("federated_split_key", "key<K>@SERVER -> {key<K>}@CLIENTS", _split_key, Route.NONE, "Gives every client an independent key derived from the server's."),
    ("federated_select", "<{int32[N]}@CLIENTS,int32@SERVER,S@SERVER,(<S,int32> -> U)> -> {U*}@CLIENTS", _select, Route.NONE, "Sends every client the slices of a server value that it asks for."),
    ("federated_secure_select", "<{int32[N]}@CLIENTS,int32@SERVER,S@SERVER,(<S,int32> -> U)> -> {U*}@CLIENTS", _select, Route.NONE, "As federated_select, the server learns no keys."),
    ("sequence_map", "<(T -> U),T*> -> U*", _sequence_map, Route.NONE, "Applies a function to every element of a sequence."),
    ("sequence_reduce", "<T*,U,(<U,T> -> U)> -> U", _sequence_reduce, Route.NONE, "Folds over the elements of a sequence."),
    ("sequence_sum", "T* -> T", _sequence_sum, Route.NONE, "Sums the elements of a sequence."),
)

INTRINSICS: dict[str, IntrinsicRow] = {row[0]: IntrinsicRow(*row) for row in _ROWS}
