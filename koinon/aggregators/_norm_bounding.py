"""Norm bounding: the mean of the clients' values, clipped."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

from koinon.aggregators._bounded_mean import BoundedMean, measured_counts, state_type_of, zip_states
from koinon.aggregators._factory import UnweightedAggregationFactory, ValueType
from koinon.aggregators._rows import check_rows, zeros
from koinon.computation import federated_computation, federated_eval, federated_zip
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import SERVER, at_clients, at_server


@final
class NormBoundedMeanFactory(UnweightedAggregationFactory):
    """The mean of the clients' values, each scaled down to a norm: no client moves it by more than `norm / n`.

    Each client counts the same, since one that states its own weight is not bounded by anything. A norm that adapts
    has `clipping_factory`; but corrupted clients then have a say in what the norm is.

    Type: `(<S@SERVER,{V}@CLIENTS> ->
    <state=S@SERVER,result=V@SERVER,measurements=<mean_value,mean_count,clipped_count,non_finite_clients>@SERVER>)`

    The state is `<value_sum_process,count_sum_process>`. Only sums of the clients' values come to the server, so the
    sums can be secure: the first is over values of a norm of at most `clipping_norm`, the second over three int32 that
    are 0 or 1. Values of half precision are summed in float32. The order of the clients matters to rounding, about
    1e-6 of `clipping_norm`.

    A client with an element that is not finite is left out, and counted in `non_finite_clients`; over no client the
    result is zero. `clipped_count` is how many values were scaled down.

    Args:
      clipping_norm: M of the paper, the largest L2 norm over all leaves together, a positive float.
      value_sum_factory: sums the values; `SumFactory()` if None.
      count_sum_factory: sums a struct of three int32; `SumFactory()` if None.

    Raises:
      TypeError: if an argument has another type.
      ValueError: if the norm is not positive.

    References:
      Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning?, 2019,
      https://arxiv.org/abs/1911.07963, section 4.

    Example:
      >>> import koinon as ko
      >>> process = ko.aggregators.NormBoundedMeanFactory(2.0).create(ko.types.TensorType("float32"))
      >>> output = process.next(process.initialize(), [1.0, 1.0, 1.0, -1e30])
      >>> float(output.result), int(output.measurements["clipped_count"])  # (1 + 1 + 1 - 2) / 4
      (0.25, 1)
    """

    def __init__(
        self,
        clipping_norm: float,
        value_sum_factory: UnweightedAggregationFactory | None = None,
        count_sum_factory: UnweightedAggregationFactory | None = None,
    ) -> None:
        self._mean = BoundedMean(clipping_norm, value_sum_factory, count_sum_factory)

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`.

        Raises:
          TypeError: if `value_type` has a leaf that is not a float or not of a known shape, or has no leaf.
        """
        check_rows(value_type, "Norm bounding")
        sums = self._mean.sums(value_type)

        @federated_computation
        def initialize_fn() -> Any:
            return zip_states({name: process.initialize() for name, process in sums.items()})

        @federated_computation(at_server(state_type_of(sums)), at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            zero = federated_eval(lambda: zeros(value_type), SERVER)
            states, mean, counts, measurements = self._mean.step(sums, state, value, zero)
            measured = OrderedDict(**measurements, **measured_counts(counts))
            return MeasuredProcessOutput(zip_states(states), mean, federated_zip(measured))

        return AggregationProcess(initialize_fn, next_fn, parts=sums)
