"""The sum of the clients' values."""

from __future__ import annotations

from typing import Any, final

from koinon.aggregators._factory import UnweightedAggregationFactory, ValueType, check_value_type
from koinon.computation import federated_computation, federated_sum, federated_value
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import SERVER, at_clients, at_server, check_sum_compatible, to_type


@final
class SumFactory(UnweightedAggregationFactory):
    """Sums the clients' values.

    Type: `(<<>@SERVER,{V}@CLIENTS> -> <state=<>@SERVER,result=V@SERVER,measurements=<>@SERVER>)`

    This is the plain mathematics: what is not finite in, is not finite out, and the sum over no client is zero. Sums of
    integers are modulo `2**bits` of their dtype, as all arithmetic of JAX; `SecureSumFactory` never wraps.

    Example:
      >>> import koinon as ko
      >>> process = ko.aggregators.SumFactory().create(ko.types.TensorType("int32"))
      >>> int(process.next(process.initialize(), [1, 2, 3]).result)
      6
    """

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`.

        Raises:
          SumIncompatibleError: if `value_type` has a leaf that is not numeric or not of a known shape.
        """
        check_value_type(value_type)
        check_sum_compatible(value_type)

        @federated_computation
        def initialize_fn() -> Any:
            return federated_value((), SERVER)

        @federated_computation(at_server(to_type(())), at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            return MeasuredProcessOutput(state, federated_sum(value), federated_value((), SERVER))

        return AggregationProcess(initialize_fn, next_fn)
