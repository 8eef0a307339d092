"""The template of aggregations: from a value at every client to one at the server."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from koinon._errors import (
    AggregationNotFederatedError,
    AggregationPlacementError,
    AggregationValueTypeMismatchError,
    TemplateNextFnNumArgsError,
)
from koinon.computation import Computation
from koinon.templates._checks import (
    check_all_placed,
    check_argument_count,
    check_placement,
    check_returns_placed,
    mismatch,
)
from koinon.templates._iterative import IterativeProcess
from koinon.templates._measured import MeasuredProcess
from koinon.templates._signature import arguments_of, output_of
from koinon.types import CLIENTS, SERVER


class AggregationProcess(MeasuredProcess):
    """A process that aggregates the clients' values at the server.

    Type: `initialize ( -> S@SERVER)`,
    `next (<S@SERVER,{V}@CLIENTS,*> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    A weighted aggregation takes a third argument, the weights of the clients.

    Args:
      initialize_fn: a `Computation` without parameter that returns the first state, at the server.
      next_fn: a `Computation` of the type above; it returns a `MeasuredProcessOutput`.
      next_is_multi_arg: see `IterativeProcess`; None counts as True, since `next` takes several arguments.
      allow_type_change: whether the result may have another type than the clients' values, as for a sample of them.
      parts: see `IterativeProcess`.

    Raises:
      TypeError, TemplateInitFnParamNotEmptyError, TemplateStateNotAssignableError,
        TemplateNotMeasuredProcessOutputError: see `MeasuredProcess`.
      TemplateNextFnNumArgsError: if `next_fn` takes fewer than two arguments.
      AggregationNotFederatedError: if the state, an argument or a result is not placed.
      AggregationPlacementError: if the state, the result or the measurements are not at the server, or the values not
        at the clients.
      AggregationValueTypeMismatchError: if the result does not have the type of the values.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> @ko.federated_computation
      ... def no_state():
      ...     return ko.federated_value((), ko.SERVER)
      >>> @ko.federated_computation(no_state.type_signature.result, ko.types.at_clients(jnp.float32))
      ... def take_largest(state, value):
      ...     nothing = ko.federated_value((), ko.SERVER)
      ...     return ko.templates.MeasuredProcessOutput(state, ko.federated_max(value), nothing)
      >>> largest = ko.templates.AggregationProcess(no_state, take_largest)
      >>> largest.is_weighted
      False
      >>> float(largest.next(largest.initialize(), [1.0, 4.0, 2.0]).result)
      4.0
    """

    def __init__(
        self,
        initialize_fn: Computation,
        next_fn: Computation,
        *,
        next_is_multi_arg: bool | None = None,
        allow_type_change: bool = False,
        parts: Mapping[str, IterativeProcess] | None = None,
    ) -> None:
        super().__init__(initialize_fn, next_fn, next_is_multi_arg is not False, parts=parts)
        template = type(self).__name__
        signature = next_fn.type_signature
        check_returns_placed(initialize_fn.type_signature.result, template, AggregationNotFederatedError)
        check_all_placed(signature, template, AggregationNotFederatedError)
        check_placement(initialize_fn.type_signature.result, SERVER, "the state", template, AggregationPlacementError)
        at_least_two = range(2, sys.maxsize)
        _, value, *_ = check_argument_count(signature, at_least_two, template, TemplateNextFnNumArgsError)
        value = check_placement(value, CLIENTS, "the second argument of `next`", template, AggregationPlacementError)
        result, _ = (
            check_placement(
                output_of(signature, name), SERVER, f"`{name}` of `next`", template, AggregationPlacementError
            )
            for name in ("result", "measurements")
        )
        if not allow_type_change and not value.member.is_assignable_from(result.member):
            raise mismatch(
                AggregationValueTypeMismatchError,
                f"{template}: the result must have the type of the values that are aggregated.",
                value.member,
                result.member,
                hint="pass `allow_type_change=True` if the aggregation is meant to change the type",
            )

    @property
    def is_weighted(self) -> bool:
        """Whether `next` takes weights: three arguments."""
        return len(arguments_of(self.next.type_signature)) == 3
