"""The operators as users call them, inside a function decorated with `@ko.federated_computation`.

Where an operator wants a placed value, a struct of values with one placement serves as well: it is zipped. Where it
wants a function, a computation serves, or a plain Python function, which is traced for the type that it meets.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from koinon._errors import KoinonError, OperandError, PlacementError
from koinon.computation import _ir as ir
from koinon.computation._builder import current_builder, user_location
from koinon.computation._computation import (
    Computation,
    PolymorphicComputation,
    parameter_names,
    with_plain_parameters,
    wrap,
)
from koinon.computation._flat import leaf_types
from koinon.computation._intrinsics import INTRINSICS
from koinon.computation._local import trace_local
from koinon.computation._value import Value, to_value, zip_expression
from koinon.types import (
    CLIENTS,
    FederatedType,
    FunctionType,
    PlacementLiteral,
    SequenceType,
    StructType,
    TensorType,
    Type,
    contains_federated_types,
    is_structure_of_integers,
)


def _apply(name: str, *operands: ir.Expression) -> Value:
    """The call of an operator, after its type rule."""
    argument = operands[0] if len(operands) == 1 else ir.Struct(tuple((None, operand) for operand in operands))
    intrinsic = ir.Intrinsic(name, FunctionType(argument.type, _result_type(name, argument.type)))
    return Value(current_builder(name).bind(ir.Call(intrinsic, argument, made_in=user_location())))


def _result_type(name: str, argument: Type) -> Type:
    """The type that an operator gives for its operands; an error says where the user called it."""
    try:
        return INTRINSICS[name].rule(argument)
    except KoinonError as error:
        if error.made_in is not None:
            raise
        raise type(error)(
            error.what,
            expected=error.expected,
            found=error.found,
            differs=error.differs,
            made_in=user_location(),
            hint=error.hint,
        ) from None


def _placed(obj: Any, operator: str) -> ir.Expression:
    """The expression of a placed operand; a struct of placed values is zipped."""
    current_builder(operator)
    expression = to_value(obj).expression
    if isinstance(expression.type, StructType):
        zipped = zip_expression(expression)
        if zipped is not None:
            return zipped
        if contains_federated_types(expression.type):
            _result_type("federated_zip", expression.type)
    return expression


def _as_function(fn: Any, argument_type: Type | None, what: str) -> ir.Expression:
    """The expression of an operand that is a function: a computation, or Python code traced for an argument type."""
    if isinstance(fn, (Computation, Value)):
        return to_value(fn).expression
    if not callable(fn):
        raise OperandError(
            f"The {what} must be a function.",
            expected="a computation, or a Python function of JAX values",
            found=f"{type(fn).__name__} {fn!r}",
            made_in=user_location(),
        )
    made = fn if isinstance(fn, PolymorphicComputation) else wrap(with_plain_parameters(fn), (), trace_local)
    if isinstance(made, Computation):
        return made.expression
    names = parameter_names(made)
    if argument_type is None:
        raise OperandError(
            f"The {what} must take no parameter.",
            expected="a function without parameters",
            found=repr(fn),
            made_in=user_location(),
        )
    if len(names) > 1 and not (isinstance(argument_type, StructType) and len(argument_type) == len(names)):
        raise OperandError(
            f"The {what} has {len(names)} parameters, and what it is applied to has not as many fields.",
            expected=f"a struct with a field for each of ({', '.join(names)})",
            found=argument_type,
            made_in=user_location(),
            hint="give several values as one tuple, such as ko.federated_map(fn, (first, second))",
        )
    return made.fn_for_argument_type(argument_type).expression


def _check_order(fn: Any, value: Any, operator: str) -> None:
    """Checks that a function was not given in the place of the value that it is to be applied to."""
    if isinstance(value, Value) or not callable(value) or not isinstance(fn, Value):
        return
    if not isinstance(fn.type_signature, FunctionType):
        raise OperandError(
            f"`{operator}` takes the function first, and then the value.",
            expected="a function and a value",
            found=f"{fn!r} and a function",
            made_in=user_location(),
            hint=f"exchange them: ko.{operator}(fn, value)",
        )


def _member(expression: ir.Expression, what: str) -> Type:
    type_ = expression.type
    if not isinstance(type_, FederatedType):
        raise PlacementError(
            f"The {what} must be a placed value.",
            expected="a value placed at CLIENTS or SERVER",
            found=type_,
            made_in=user_location(),
            hint="place a constant with ko.federated_value; a computation is called with a value that is not placed",
        )
    return type_.member


def federated_broadcast(value: Any) -> Value:
    """Sends a value of the server to every client: `T@SERVER` to `T@CLIENTS`.

    Raises:
      PlacementError: where the value is not placed at the server.
    """
    return _apply("federated_broadcast", _placed(value, "federated_broadcast"))


def federated_map(fn: Any, value: Any) -> Value:
    """Applies a function to every placed value: `(T -> U)` and `{T}@P` to `{U}@P`.

    Args:
      fn: a computation, or a Python function of JAX values; with several parameters it takes the fields of the value.
      value: a placed value, or a struct (tuple, dict) of values with one placement.

    Raises:
      PlacementError: where the value is not placed.
      TypeNotAssignableError: where the function does not take the value.
      OperandError: where `fn` is no function, or takes no parameter.
    """
    _check_order(fn, value, "federated_map")
    placed = _placed(value, "federated_map")
    member = _member(placed, "value to be mapped")
    return _apply("federated_map", _as_function(fn, member, "mapping function"), placed)


def federated_sum(value: Any) -> Value:
    """Sums over the clients: `{T}@CLIENTS` to `T@SERVER`; zero where there are no clients.

    Raises:
      PlacementError: where the value is not placed at the clients.
      SumIncompatibleError: where it cannot be summed.
    """
    return _apply("federated_sum", _placed(value, "federated_sum"))


def federated_mean(value: Any, weight: Any = None) -> Value:
    """Averages over the clients: `{T}@CLIENTS` to `T@SERVER`, with floating leaves.

    Args:
      value: the clients' values.
      weight: one number for each client, `{W}@CLIENTS`; None for equal weights.

    The mean of no clients, and of weights that sum to zero, is NaN.

    Raises:
      PlacementError: where the value or the weight is not placed at the clients.
      MeanIncompatibleError: where the value cannot be averaged.
      OperandError: where the weight is no scalar of an integer or floating dtype.
    """
    placed = _placed(value, "federated_mean")
    if weight is None:
        return _apply("federated_mean", placed)
    return _apply("federated_weighted_mean", placed, _placed(weight, "federated_mean"))


def federated_min(value: Any) -> Value:
    """The least over the clients, element by element; the largest number of the dtype where there are no clients.

    Raises:
      PlacementError: where the value is not placed at the clients.
      KoinonTypeError: where it has no order.
    """
    return _apply("federated_min", _placed(value, "federated_min"))


def federated_max(value: Any) -> Value:
    """The greatest over the clients, element by element; the least number of the dtype where there are no clients.

    Raises:
      PlacementError: where the value is not placed at the clients.
      KoinonTypeError: where it has no order.
    """
    return _apply("federated_max", _placed(value, "federated_max"))


def federated_aggregate(value: Any, zero: Any, accumulate: Any, merge: Any, report: Any) -> Value:
    """Folds over the clients with operators of the user: `{T}@CLIENTS` to `R@SERVER`.

    Args:
      value: the clients' values, `{T}@CLIENTS`.
      zero: the empty accumulator `U`, not placed.
      accumulate: `(<U,T> -> U)`, adds a client's value.
      merge: `(<U,U> -> U)`, joins two accumulators; engines that split a cohort rely on it.
      report: `(U -> R)`, the result.

    Raises:
      PlacementError: where the value is not placed at the clients.
      TypeNotAssignableError: where an operator does not fit, naming it.
      OperandError: where an operator is no function.
    """
    placed = _placed(value, "federated_aggregate")
    member = _member(placed, "value to be aggregated")
    zero_expression = to_value(zero).expression
    zero_type = zero_expression.type
    if contains_federated_types(zero_type):
        raise OperandError("The zero of an aggregation must not be placed.", found=zero_type, made_in=user_location())
    accumulate_fn = _as_function(accumulate, StructType([zero_type, member]), "operator `accumulate`")
    accumulator = zero_type
    if isinstance(accumulate_fn.type, FunctionType) and isinstance(accumulate_fn.type.parameter, StructType):
        accumulator = accumulate_fn.type.parameter[0]
    return _apply(
        "federated_aggregate",
        placed,
        zero_expression,
        accumulate_fn,
        _as_function(merge, StructType([accumulator, accumulator]), "operator `merge`"),
        _as_function(report, accumulator, "operator `report`"),
    )


def federated_eval(fn: Any, placement: PlacementLiteral) -> Value:
    """Runs a function without parameter at a placement: once at the server, or once at every client.

    Raises:
      OperandError: where `fn` is no function or takes a parameter.
    """
    _check_placement(placement)
    current_builder("federated_eval")
    side = "clients" if placement is CLIENTS else "server"
    return _apply(f"federated_eval_at_{side}", _as_function(fn, None, "function to be evaluated"))


def federated_value(value: Any, placement: PlacementLiteral) -> Value:
    """Places a constant: `T` to `T@P`, the same at every client.

    Raises:
      PlacementError: where the value is placed already.
    """
    _check_placement(placement)
    current_builder("federated_value")
    side = "clients" if placement is CLIENTS else "server"
    return _apply(f"federated_value_at_{side}", to_value(value).expression)


def _check_placement(placement: object) -> None:
    if not isinstance(placement, PlacementLiteral):
        raise OperandError(
            "The placement must be ko.CLIENTS or ko.SERVER.", found=repr(placement), made_in=user_location()
        )


def federated_zip(value: Any) -> Value:
    """Turns a struct of values with one placement into one placed struct, however nested.

    Raises:
      OperandError: where the value is no struct, or holds no placed value.
      PlacementError: where a leaf is not placed, or the placements differ.
    """
    current_builder("federated_zip")
    return _apply("federated_zip", to_value(value).expression)


def federated_collect(value: Any) -> Value:
    """Gives the server every client's value, in the order of the cohort: `{T}@CLIENTS` to `T*@SERVER`.

    This reveals single clients; privacy reports say so.

    Raises:
      PlacementError: where the value is not placed at the clients.
    """
    return _apply("federated_collect", _placed(value, "federated_collect"))


def federated_split_key(key: Any) -> Value:
    """Gives every client an independent key: `key<fry>@SERVER` to `{key<fry>}@CLIENTS`.

    The client at position `i` of the cohort gets `jax.random.fold_in(key, i)`.

    Raises:
      PlacementError: where the key is not placed at the server.
      OperandError: where it is no typed PRNG key.
    """
    return _apply("federated_split_key", _placed(key, "federated_split_key"))


def federated_secure_sum(value: Any, max_input: Any) -> Value:
    """Sums integers from 0 to `max_input` so that the server sees the sum alone.

    Args:
      value: the clients' integers, `{T}@CLIENTS`.
      max_input: the largest integer that a client may send, one for all or a struct with one for each tensor.

    A run fails with `SecureSumRangeError` where a client's integer is outside `[0, max_input]`, or where the sum does
    not fit its dtype. In a call that `jax.jit` traces, the error comes as JAX's `JaxRuntimeError`, which quotes it.

    Raises:
      PlacementError: where the value is not placed at the clients.
      KoinonTypeError: where it is not made of integers.
      OperandError: where the bound has another structure than the value, or a constant bound is negative.
    """
    return _apply("federated_secure_sum", _placed(value, "federated_secure_sum"), _bound(max_input, 0))


def federated_secure_sum_bitwidth(value: Any, bitwidth: Any) -> Value:
    """Sums integers of at most `bitwidth` bits so that the server sees the sum alone; see `federated_secure_sum`."""
    return _apply("federated_secure_sum_bitwidth", _placed(value, "federated_secure_sum_bitwidth"), _bound(bitwidth, 1))


def federated_secure_modular_sum(value: Any, modulus: Any) -> Value:
    """Sums integers modulo `modulus` so that the server sees the sum alone; the result is in `[0, modulus)`.

    Args:
      value: the clients' integers, `{T}@CLIENTS`; any, negative ones too.
      modulus: one positive integer for all, or a struct with one for each tensor; the dtype of the values must hold
        the integers below it, so that for uint8 the largest is 256.

    A run fails with `SecureSumRangeError` where a modulus that is no constant is not positive, or too large.

    Raises:
      PlacementError: where the value is not placed at the clients.
      KoinonTypeError: where it is not made of integers.
      OperandError: where the modulus has another structure than the value, or a constant one is not positive, or too
        large for the dtype of the value.
    """
    placed, bound = _placed(value, "federated_secure_modular_sum"), _bound(modulus, 1)
    total = _apply("federated_secure_modular_sum", placed, bound)
    _check_moduli(leaf_types(total.type_signature), _constants(bound))
    return total


def _check_moduli(types: tuple[TensorType, ...], moduli: list[np.ndarray | None]) -> None:
    """Checks that the dtypes of a value hold the integers below the moduli that are constants."""
    for i, type_ in enumerate(types):
        modulus, most = moduli[min(i, len(moduli) - 1)], int(np.iinfo(np.dtype(type_.dtype)).max) + 1
        if modulus is not None and int(modulus) > most:
            raise OperandError(
                "The modulus of a secure sum is too large for the dtype of the values.",
                expected=f"at most {most}, since {type_.dtype} holds the integers below it",
                found=str(modulus),
                made_in=user_location(),
                hint="take a smaller modulus, or values of a wider dtype",
            )


def _constants(expression: ir.Expression) -> list[np.ndarray | None]:
    """The constants in an expression, one for each of its tensors; None for one that is computed."""
    match expression:
        case ir.Literal():
            return [expression.value]
        case ir.Struct():
            return [constant for _, element in expression.elements for constant in _constants(element)]
        case _:
            return [None] * len(leaf_types(expression.type))


def _bound(bound: Any, least: int) -> ir.Expression:
    """The expression of the bound of a secure sum; constants in it are checked."""
    expression = to_value(bound).expression
    for node in ir.walk(expression):
        if isinstance(node, ir.Literal) and is_structure_of_integers(node.type) and np.any(node.value < least):
            raise OperandError(
                "The bound of a secure sum is too small.",
                expected=f"integers of at least {least}",
                found=str(node.value),
                made_in=user_location(),
            )
    return expression


def federated_select(client_keys: Any, max_key: Any, server_val: Any, select_fn: Any) -> Value:
    """Sends every client the slices of a server value that it asks for.

    Args:
      client_keys: `{int32[N]}@CLIENTS`, what each client asks for.
      max_key: `int32@SERVER`, keys are below it.
      server_val: `S@SERVER`.
      select_fn: `(<S,int32> -> U)`, a slice.

    Returns:
      `{U*}@CLIENTS`, for each client its `N` slices in order.
    """
    return _select("federated_select", client_keys, max_key, server_val, select_fn)


def federated_secure_select(client_keys: Any, max_key: Any, server_val: Any, select_fn: Any) -> Value:
    """As `federated_select`, where the server does not learn what a client asked for."""
    return _select("federated_secure_select", client_keys, max_key, server_val, select_fn)


def _select(name: str, client_keys: Any, max_key: Any, server_val: Any, select_fn: Any) -> Value:
    keys, largest, value = (_placed(obj, name) for obj in (client_keys, max_key, server_val))
    parameter = StructType([_member(value, "value to be selected from"), _member(largest, "largest key")])
    return _apply(name, keys, largest, value, _as_function(select_fn, parameter, "selecting function"))


def sequence_map(fn: Any, sequence: Any) -> Value:
    """Applies a function to every element of a sequence, placed or not."""
    current_builder("sequence_map")
    _check_order(fn, sequence, "sequence_map")
    expression = to_value(sequence).expression
    return _apply("sequence_map", _as_function(fn, _element(expression), "mapping function"), expression)


def sequence_reduce(sequence: Any, zero: Any, op: Any) -> Value:
    """Folds over the elements of a sequence, placed or not, with `op: (<U,T> -> U)`."""
    current_builder("sequence_reduce")
    expression, zero_expression = to_value(sequence).expression, to_value(zero).expression
    accumulator = zero_expression.type
    if isinstance(accumulator, FederatedType):
        accumulator = accumulator.member
    function = _as_function(op, StructType([accumulator, _element(expression)]), "operator of the reduction")
    return _apply("sequence_reduce", expression, zero_expression, function)


def sequence_sum(sequence: Any) -> Value:
    """Sums the elements of a sequence, placed or not."""
    current_builder("sequence_sum")
    return _apply("sequence_sum", to_value(sequence).expression)


def _element(expression: ir.Expression) -> Type:
    type_ = expression.type
    member = type_.member if isinstance(type_, FederatedType) else type_
    if not isinstance(member, SequenceType):
        raise OperandError(
            "The operand must be a sequence.",
            expected="a sequence, placed or not, such as {float32*}@CLIENTS",
            found=type_,
            made_in=user_location(),
            hint="apply a function to a value that is none with ko.federated_map",
        )
    return member.element
