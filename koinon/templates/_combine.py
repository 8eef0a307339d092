"""Measured processes in a row, and side by side."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from koinon._errors import (
    KoinonTypeError,
    KoinonValueError,
    TemplateNextFnNumArgsError,
    TemplatePlacementError,
    TypeNotAssignableError,
)
from koinon.computation import Computation, federated_computation, federated_zip
from koinon.templates._checks import check_argument_count, mismatch
from koinon.templates._measured import MeasuredProcess, MeasuredProcessOutput
from koinon.templates._signature import arguments_of, output_of
from koinon.types import FederatedType, PlacementLiteral, StructType, Type, strip_placement


def chain_measured_processes(measured_processes: Mapping[str, MeasuredProcess]) -> MeasuredProcess:
    """The composition h = g ∘ f of measured processes: the result of each is the argument of the next.

    Type: `initialize ( -> <f=F,g=G>@P)`,
    `next (<<f=F,g=G>@P,X> -> <state=<f=F,g=G>@P,result=Z,measurements=<f=M,g=N>@Q>)`

    Args:
      measured_processes: the processes by name, in the order in which they are applied; the `next` of each takes the
        state and one value.

    Returns:
      The composition; its state and its measurements are those of the parts, by name.

    Raises:
      TypeError: if a value is not a `MeasuredProcess`.
      ValueError: if there is no process.
      TemplateNextFnNumArgsError: if the `next` of one does not take exactly two arguments.
      TemplatePlacementError: if the states, or the measurements, are not all placed at one place.
      TypeNotAssignableError: if a process does not accept the result of the one before.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> tensor = ko.types.TensorType(jnp.float32)
      >>> both = ko.templates.chain_measured_processes({
      ...     "send": ko.learning.templates.build_broadcast_process(tensor),
      ...     "add": ko.aggregators.SumFactory().create(tensor),
      ... })
      >>> print(both.next.type_signature.result)
      <state=<send=<>,add=<>>@SERVER,result=float32@SERVER,measurements=<send=<>,add=<>>@SERVER>
    """
    processes = _check_processes(measured_processes, "chain")
    items = list(processes.items())
    for (before, producer), (name, consumer) in itertools.pairwise(items):
        taken = arguments_of(consumer.next.type_signature)[1]
        given = output_of(producer.next.type_signature, "result")
        if not taken.is_assignable_from(given):
            raise mismatch(
                TypeNotAssignableError,
                f"The process `{name}` does not accept the result of `{before}`, which stands before it in the chain.",
                taken,
                given,
                hint="put a process between the two that converts the value, or build one for the type of the other",
            )

    @federated_computation(_state_type(processes), arguments_of(items[0][1].next.type_signature)[1])
    def next_fn(state: Any, value: Any) -> Any:
        states, measurements = OrderedDict(), OrderedDict()
        for name, process in processes.items():
            output = process.next(state[name], value)
            states[name], measurements[name], value = output.state, output.measurements, output.result
        return MeasuredProcessOutput(federated_zip(states), value, federated_zip(measurements))

    return MeasuredProcess(_initialize(processes), next_fn, parts=processes)


def concatenate_measured_processes(measured_processes: Mapping[str, MeasuredProcess]) -> MeasuredProcess:
    """Measured processes side by side: each has its own argument and its own result, by name.

    Type: `initialize ( -> <f=F,g=G>@P)`,
    `next (<<f=F,g=G>@P,<f=X,g=Y>> -> <state=<f=F,g=G>@P,result=<f=V,g=W>,measurements=<f=M,g=N>@Q>)`

    Args:
      measured_processes: the processes by name; the `next` of each takes the state and one value.

    Returns:
      A process whose state, argument, result and measurements are those of the parts, by name. The result is a struct
      of placed values, which may be placed differently.

    Raises:
      TypeError: if a value is not a `MeasuredProcess`.
      ValueError: if there is no process.
      TemplateNextFnNumArgsError: if the `next` of one does not take exactly two arguments.
      TemplatePlacementError: if the states, or the measurements, are not all placed at one place.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> tensor = ko.types.TensorType(jnp.float32)
      >>> both = ko.templates.concatenate_measured_processes({
      ...     "send": ko.learning.templates.build_broadcast_process(tensor),
      ...     "add": ko.aggregators.SumFactory().create(tensor),
      ... })
      >>> print(both.next.type_signature.result["result"])
      <send=float32@CLIENTS,add=float32@SERVER>
    """
    processes = _check_processes(measured_processes, "concatenate")
    values = StructType([(name, arguments_of(process.next.type_signature)[1]) for name, process in processes.items()])

    @federated_computation(_state_type(processes), values)
    def next_fn(state: Any, values: Any) -> Any:
        outputs = {name: process.next(state[name], values[name]) for name, process in processes.items()}
        return MeasuredProcessOutput(
            federated_zip(OrderedDict((name, output.state) for name, output in outputs.items())),
            OrderedDict((name, output.result) for name, output in outputs.items()),
            federated_zip(OrderedDict((name, output.measurements) for name, output in outputs.items())),
        )

    return MeasuredProcess(_initialize(processes), next_fn, parts=processes)


def _check_processes(processes: Mapping[str, MeasuredProcess], verb: str) -> dict[str, MeasuredProcess]:
    if not isinstance(processes, Mapping):
        raise KoinonTypeError(
            f"The processes to {verb} must be a mapping from names to measured processes.",
            found=type(processes).__qualname__,
            hint='write `{"first": process, "second": other}`',
        )
    if not processes:
        raise KoinonValueError(f"There is no process to {verb}.", hint="name at least one process")
    for name, process in processes.items():
        if not isinstance(process, MeasuredProcess):
            raise KoinonTypeError(
                f"The process `{name}` to {verb} must be a MeasuredProcess.",
                expected="MeasuredProcess",
                found=type(process).__qualname__,
            )
        label = f"The process `{name}` to {verb}"
        check_argument_count(process.next.type_signature, range(2, 3), label, TemplateNextFnNumArgsError)
    _placement({name: process.state_type for name, process in processes.items()}, "states", verb)
    measurements = {name: output_of(process.next.type_signature, "measurements") for name, process in processes.items()}
    _placement(measurements, "measurements", verb)
    return dict(processes)


def _placement(types: Mapping[str, Type], what: str, verb: str) -> PlacementLiteral:
    """The one place where all types are, after raising an error if there is none."""
    placements = {type_.placement if isinstance(type_, FederatedType) else None for type_ in types.values()}
    placement = placements.pop()
    if placement is None or placements:
        raise TemplatePlacementError(
            f"The {what} of the processes to {verb} must all be placed at one place.",
            expected=f"{what} at SERVER",
            found=", ".join(f"{name}={type_}" for name, type_ in types.items()),
            hint="place the state and the measurements of every process at SERVER",
        )
    return placement


def _state_type(processes: Mapping[str, MeasuredProcess]) -> FederatedType:
    types = {name: process.state_type for name, process in processes.items()}
    members = [(name, strip_placement(type_)) for name, type_ in types.items()]
    return FederatedType(StructType(members, OrderedDict), _placement(types, "states", "combine"))


def _initialize(processes: Mapping[str, MeasuredProcess]) -> Computation:
    @federated_computation
    def initialize_fn() -> Any:
        return federated_zip(OrderedDict((name, process.initialize()) for name, process in processes.items()))

    return initialize_fn
