"""The template of distributions, from the server to the clients, and the broadcast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from koinon._errors import (
    KoinonTypeError,
    TemplateNextFnNumArgsError,
    TemplateNotFederatedError,
    TemplatePlacementError,
)
from koinon.computation import Computation, federated_broadcast, federated_computation, federated_value
from koinon.templates._checks import check_all_placed, check_argument_count, check_placement, check_returns_placed
from koinon.templates._iterative import IterativeProcess
from koinon.templates._measured import MeasuredProcess, MeasuredProcessOutput
from koinon.templates._signature import output_of
from koinon.types import (
    CLIENTS,
    SERVER,
    StructType,
    TensorType,
    Type,
    at_server,
    contains_federated_types,
    to_type,
)


class DistributionProcess(MeasuredProcess):
    """A process that brings a value of the server to the clients.

    Type: `initialize ( -> S@SERVER)`,
    `next (<S@SERVER,U@SERVER> -> <state=S@SERVER,result=V@CLIENTS,measurements=M@SERVER>)`

    The clients need not receive what the server has, nor all the same: a distribution may compress, or personalize.

    Args:
      initialize_fn: a `Computation` without parameter that returns the first state, at the server.
      next_fn: a `Computation` of the type above; it returns a `MeasuredProcessOutput`.
      next_is_multi_arg: see `IterativeProcess`; None counts as True, since `next` takes several arguments.
      parts: see `IterativeProcess`.

    Raises:
      TypeError, TemplateInitFnParamNotEmptyError, TemplateStateNotAssignableError,
        TemplateNotMeasuredProcessOutputError: see `MeasuredProcess`.
      TemplateNotFederatedError: if the state, an argument or a result is not placed.
      TemplateNextFnNumArgsError: if `next_fn` does not take exactly two arguments.
      TemplatePlacementError: if the state, the value or the measurements are not at the server, or the result not at
        the clients.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> @ko.federated_computation
      ... def no_state():
      ...     return ko.federated_value((), ko.SERVER)
      >>> @ko.federated_computation(no_state.type_signature.result, ko.types.at_server(jnp.float32))
      ... def send_half(state, value):
      ...     half = ko.federated_map(lambda x: x.astype(jnp.bfloat16), value)
      ...     nothing = ko.federated_value((), ko.SERVER)
      ...     return ko.templates.MeasuredProcessOutput(state, ko.federated_broadcast(half), nothing)
      >>> process = ko.learning.templates.DistributionProcess(no_state, send_half)
      >>> print(process.next.type_signature.result["result"])
      bfloat16@CLIENTS
    """

    def __init__(
        self,
        initialize_fn: Computation,
        next_fn: Computation,
        *,
        next_is_multi_arg: bool | None = None,
        parts: Mapping[str, IterativeProcess] | None = None,
    ) -> None:
        super().__init__(initialize_fn, next_fn, next_is_multi_arg is not False, parts=parts)
        template = type(self).__name__
        signature = next_fn.type_signature
        check_returns_placed(initialize_fn.type_signature.result, template, TemplateNotFederatedError)
        check_all_placed(signature, template, TemplateNotFederatedError)
        check_placement(initialize_fn.type_signature.result, SERVER, "the state", template, TemplatePlacementError)
        _, value = check_argument_count(signature, range(2, 3), template, TemplateNextFnNumArgsError)
        check_placement(value, SERVER, "the second argument of `next`", template, TemplatePlacementError)
        for name, placement in (("result", CLIENTS), ("measurements", SERVER)):
            type_ = output_of(signature, name)
            check_placement(type_, placement, f"`{name}` of `next`", template, TemplatePlacementError)


def build_broadcast_process(value_type: Type) -> DistributionProcess:
    """The distribution that sends every client what the server has; without state and measurements.

    Type: `(<<>@SERVER,V@SERVER> -> <state=<>@SERVER,result=V@CLIENTS,measurements=<>@SERVER>)`

    Args:
      value_type: the unplaced type of what is sent, a `TensorType` or a `StructType`.

    Raises:
      TypeError: if `value_type` is another kind of type, or contains placed types.

    Example:
      >>> import koinon as ko
      >>> process = ko.learning.templates.build_broadcast_process(ko.types.TensorType("float32"))
      >>> print(process.next.type_signature.result)
      <state=<>@SERVER,result=float32@CLIENTS,measurements=<>@SERVER>
    """
    if not isinstance(value_type, TensorType | StructType) or contains_federated_types(value_type):
        raise KoinonTypeError(
            "What is broadcast must be declared by an unplaced type of tensors or structs.",
            expected="TensorType or StructType",
            found=f"{type(value_type).__qualname__} {value_type}",
            hint="pass the member type, without placements",
        )

    @federated_computation
    def initialize_fn() -> Any:
        return federated_value((), SERVER)

    @federated_computation(at_server(to_type(())), at_server(value_type))
    def next_fn(state: Any, value: Any) -> Any:
        return MeasuredProcessOutput(state, federated_broadcast(value), federated_value((), SERVER))

    return DistributionProcess(initialize_fn, next_fn)
