"""The decorator that traces a Python function over placed values into an expression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from koinon._errors import ComputationReturnedNoneError, TracingError
from koinon.computation import _ir as ir
from koinon.computation._builder import building
from koinon.computation._check import check
from koinon.computation._computation import decorate
from koinon.computation._precision import check_precision
from koinon.computation._value import Value, to_value
from koinon.types import Type


def trace_federated(
    fn: Callable[..., Any], parameter: Type | None, *, name: str, made_in: str | None, unpack: bool
) -> ir.Lambda:
    """Traces a function of traced values into a lambda expression.

    Args:
      fn: the function.
      parameter: the type of its one parameter, or None.
      name: the name of the function, for messages.
      made_in: file and line of the function.
      unpack: whether the fields of the parameter are the arguments of `fn`.
    """
    if parameter is not None:
        check_precision(parameter, made_in)
    with building() as builder:
        parameter_name = builder.fresh_name() if parameter is not None else None
        if parameter is None or parameter_name is None:
            result = fn()
        else:
            argument = Value(ir.Reference(parameter_name, parameter))
            result = fn(*argument) if unpack else fn(argument)
        if result is None:
            raise ComputationReturnedNoneError(
                f"The function `{name}` returned None; a computation must return a value.",
                made_in=made_in,
                hint="add a return statement",
            )
        body = builder.block(_result(result, name, made_in))
    expression = ir.Lambda(parameter_name, parameter, body, made_in)
    if ir.free_names(expression):
        raise TracingError(
            f"The function `{name}` uses a traced value of another computation than itself.",
            made_in=made_in,
            hint="give it the value as an argument: a mapped function gets it zipped with what it is mapped over",
        )
    check(expression)
    return expression


def _result(result: Any, name: str, made_in: str | None) -> ir.Expression:
    try:
        return to_value(result).expression
    except TracingError as error:
        raise TracingError(
            f"The function `{name}` must return traced values, constants, or containers of those.",
            found=error.found,
            made_in=made_in,
            hint=error.hint,
        ) from None


def federated_computation(*args: Any) -> Any:
    """Makes a computation of a Python function over placed values: what a round does, and where.

    Used as a decorator with the types of the parameters; bare, the function is traced anew for each type that it
    meets. The function is called once, with a traced `Value` for each parameter; it may use the operators
    (`ko.federated_map`, `ko.federated_sum`, ...), call other computations, and take values apart and put them into
    containers, in which the results then come back.

    Raises:
      KoinonTypeError: for a parameter with a default value, or a count of types that does not fit.
      ComputationReturnedNoneError: where the function returns None.

    >>> import jax.numpy as jnp, koinon as ko
    >>> @ko.federated_computation(ko.types.at_clients(jnp.int32))
    ... def count_and_total(values):
    ...     ones = ko.federated_map(lambda value: value * 0 + 1, values)
    ...     return {"clients": ko.federated_sum(ones), "total": ko.federated_sum(values)}
    >>> str(count_and_total.type_signature)
    '({int32}@CLIENTS -> <clients=int32@SERVER,total=int32@SERVER>)'
    >>> {name: int(value) for name, value in count_and_total([3, 4, 5]).items()}
    {'clients': 3, 'total': 12}
    """
    return decorate(trace_federated, args)
