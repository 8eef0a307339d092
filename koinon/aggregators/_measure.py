"""Additional measurements around an aggregation."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators._factory import (
    AggregationFactory,
    UnweightedAggregationFactory,
    ValueType,
    check_factory,
    factory_like,
    next_parameter,
    prints_as_called,
)
from koinon.computation import federated_computation, federated_zip
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import FederatedType, StructType


@prints_as_called
def add_measurements(
    inner_agg_factory: AggregationFactory,
    *,
    client_measurement_fn: Callable[..., Any] | None = None,
    server_measurement_fn: Callable[[Any], Any] | None = None,
) -> AggregationFactory:
    """Adds measurements of what goes into an aggregation, or of what comes out of it.

    Type: `(<S@SERVER,{V}@CLIENTS,*> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    The new measurements stand beside those of the inner aggregation, and replace those of the same name.

    Args:
      inner_agg_factory: aggregates the values; the result is weighted if and only if this is.
      client_measurement_fn: called while tracing with the clients' values (and their weights, if the aggregation is
        weighted), placed at CLIENTS; returns a mapping from names to values at SERVER, so it aggregates itself.
      server_measurement_fn: called while tracing with the result, placed at SERVER; returns such a mapping.

    Raises:
      TypeError: if `inner_agg_factory` is no factory, or, at `create`, the measurements have no names.
      ValueError: if there is no function, or one takes another number of parameters.

    Example:
      >>> import koinon as ko
      >>> factory = ko.aggregators.add_measurements(
      ...     ko.aggregators.SumFactory(),
      ...     client_measurement_fn=lambda value: {"largest": ko.federated_max(value)},
      ... )
      >>> process = factory.create(ko.types.TensorType("float32"))
      >>> float(process.next(process.initialize(), [1.0, 4.0]).measurements["largest"])
      4.0
    """
    check_factory(inner_agg_factory, "inner_agg_factory")
    if client_measurement_fn is None and server_measurement_fn is None:
        raise KoinonValueError(
            "There is nothing to measure.",
            expected="`client_measurement_fn`, `server_measurement_fn`, or both",
            hint="pass a function that returns named measurements",
        )
    if client_measurement_fn is not None:
        count = 1 if isinstance(inner_agg_factory, UnweightedAggregationFactory) else 2
        _check_arity(client_measurement_fn, count, "client_measurement_fn")
    if server_measurement_fn is not None:
        _check_arity(server_measurement_fn, 1, "server_measurement_fn")

    def create(value_type: ValueType, *weight_type: ValueType) -> AggregationProcess:
        inner = inner_agg_factory.create(value_type, *weight_type)

        @federated_computation(next_parameter(inner.state_type, value_type, *weight_type))
        def next_fn(arguments: Any) -> Any:
            state, *values = arguments
            output = inner.next(state, *values)
            measurements = named_measurements(output.measurements)
            if client_measurement_fn is not None:
                measurements |= named_measurements(client_measurement_fn(*values))
            if server_measurement_fn is not None:
                measurements |= named_measurements(server_measurement_fn(output.result))
            return MeasuredProcessOutput(output.state, output.result, federated_zip(measurements))

        parts = {"inner_agg": inner}
        return AggregationProcess(inner.initialize, next_fn, allow_type_change=True, parts=parts)

    return factory_like(inner_agg_factory, create)


def _check_arity(fn: Callable[..., Any], count: int, label: str) -> None:
    found = len(inspect.signature(fn).parameters)
    if found != count:
        takes = "the value" if count == 1 and label.startswith("client") else "the result"
        raise KoinonValueError(
            f"`{label}` must take {takes if count == 1 else 'the value and the weight'}.",
            expected=f"{count} parameters" if count > 1 else "1 parameter",
            found=found,
        )


def named_measurements(measurements: Any) -> OrderedDict[str, Any]:
    """Measurements by name, each a placed value; from a mapping, or from a placed struct with names."""
    if isinstance(measurements, Mapping):
        return OrderedDict(measurements)
    type_ = measurements.type_signature
    member = type_.member if isinstance(type_, FederatedType) else type_
    if not isinstance(member, StructType) or len(member.fields()) != len(member):
        raise KoinonTypeError(
            "Measurements must have names, so that others can stand beside them.",
            expected="a struct with names at SERVER",
            found=type_,
            hint="return a dict of values at SERVER",
        )
    return OrderedDict((name, measurements[name]) for name in member.fields())
