"""Centered clipping: the mean of the clients' values, clipped around the last aggregate."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

from koinon._errors import KoinonValueError
from koinon.aggregators._bounded_mean import BoundedMean, measured_counts, state_type_of, zip_states
from koinon.aggregators._factory import UnweightedAggregationFactory, ValueType, check_int
from koinon.aggregators._rows import check_rows, zeros
from koinon.computation import federated_computation, federated_eval, federated_zip
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import SERVER, at_clients, at_server


@final
class CenteredClippingFactory(UnweightedAggregationFactory):
    """The mean of the clients' values, each clipped to a distance from the aggregate of the round before.

        v_0 = the last result, zero at first
        v_l = v_(l-1) + mean over k of clip(value_k - v_(l-1), clipping_norm)         for l = 1 ... iterations

    No client moves the result by more than `iterations * clipping_norm / n`. It withstands corrupted clients as far as
    the values of honest clients change little from round to round; momentum at the clients makes them so.

    Type: `(<S@SERVER,{V}@CLIENTS> ->
    <state=S@SERVER,result=V@SERVER,measurements=<mean_value,mean_count,clipped_count,non_finite_clients>@SERVER>)`

    The state is `<center,value_sum_process,count_sum_process>`. Only sums of the clients' values come to the server, so
    the sums can be secure: each of the first is over differences of at most `clipping_norm`, each of the second over
    three int32 that are 0 or 1. Each iteration is an exchange of its own with the clients. Values of half precision are
    summed in float32. The order of the clients matters to rounding, about 1e-6 of `clipping_norm`.

    A client with an element that is not finite is left out, and counted in `non_finite_clients`; over no client the
    result is the last one. `clipped_count` is how many were clipped; both are those of the last iteration.

    Args:
      clipping_norm: tau of the paper, a positive float.
      iterations: a positive int; of one round to the next, one will do.
      value_sum_factory: sums the differences; `SumFactory()` if None.
      count_sum_factory: sums a struct of three int32; `SumFactory()` if None.

    Raises:
      TypeError: if an argument has another type.
      ValueError: if a number is not positive.

    References:
      Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization, ICML 2021,
      https://arxiv.org/abs/2012.10333, algorithm 2.

    Example:
      >>> import koinon as ko
      >>> process = ko.aggregators.CenteredClippingFactory(1.0).create(ko.types.TensorType("float32"))
      >>> state = process.initialize()
      >>> for _ in range(3):
      ...     state, result, measurements = process.next(state, [1.0, 1.0, 1.0, -1e30])
      ...     print(float(result), int(measurements["clipped_count"]))
      0.5 1
      0.625 1
      0.65625 1
    """

    def __init__(
        self,
        clipping_norm: float,
        iterations: int = 1,
        value_sum_factory: UnweightedAggregationFactory | None = None,
        count_sum_factory: UnweightedAggregationFactory | None = None,
    ) -> None:
        self._mean = BoundedMean(clipping_norm, value_sum_factory, count_sum_factory)
        check_int(iterations, "iterations")
        if iterations < 1:
            raise KoinonValueError("`iterations` must be positive.", expected="at least 1", found=iterations)
        self._iterations = iterations

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`.

        Raises:
          TypeError: if `value_type` has a leaf that is not a float or not of a known shape, or has no leaf.
        """
        check_rows(value_type, "Centered clipping")
        sums = self._mean.sums(value_type)

        @federated_computation
        def initialize_fn() -> Any:
            states = {name: process.initialize() for name, process in sums.items()}
            return zip_states(states, center=federated_eval(lambda: zeros(value_type), SERVER))

        @federated_computation(at_server(state_type_of(sums, center=value_type)), at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            center, states = state["center"], state
            counts, measurements = None, {}
            for _ in range(self._iterations):
                states, center, counts, measurements = self._mean.step(sums, states, value, center)
            measured = OrderedDict(**measurements, **measured_counts(counts))
            return MeasuredProcessOutput(zip_states(states, center=center), center, federated_zip(measured))

        return AggregationProcess(initialize_fn, next_fn, parts=sums)
