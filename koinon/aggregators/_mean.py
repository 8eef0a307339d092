"""The mean of the clients' values, weighted and unweighted."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError
from koinon.aggregators._factory import (
    UnweightedAggregationFactory,
    ValueType,
    WeightedAggregationFactory,
    check_floats,
    check_unweighted_factory,
    check_value_type,
)
from koinon.aggregators._sum import SumFactory
from koinon.computation import federated_computation, federated_map, federated_value, federated_zip
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import CLIENTS, StructType, TensorType, at_clients, at_server, is_sum_compatible, strip_placement


@final
class MeanFactory(WeightedAggregationFactory):
    """The weighted mean of the clients' values, `sum(weight * value) / sum(weight)`.

    Type: `(<S@SERVER,{V}@CLIENTS,{W}@CLIENTS> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    The state and the measurements are those of the two sums, as `<value_sum_process,weight_sum_process>` and
    `<mean_value,mean_weight>`. The weight is cast to the dtype of each leaf that it multiplies.

    This is the plain mathematics: what is not finite in, is not finite out, also with weight zero.

    Args:
      value_sum_factory: sums the weighted values; `SumFactory()` if None.
      weight_sum_factory: sums the weights; `SumFactory()` if None.
      no_nan_division: whether the mean is 0, and not NaN, where the weights sum to 0.

    Raises:
      TypeError: if a factory is not an `UnweightedAggregationFactory`, or `no_nan_division` not a bool.

    Example:
      >>> import koinon as ko
      >>> tensor = ko.types.TensorType("float32")
      >>> process = ko.aggregators.MeanFactory().create(tensor, tensor)
      >>> float(process.next(process.initialize(), [1.0, 2.0], [3.0, 1.0]).result)
      1.25
    """

    def __init__(
        self,
        value_sum_factory: UnweightedAggregationFactory | None = None,
        weight_sum_factory: UnweightedAggregationFactory | None = None,
        no_nan_division: bool = False,
    ) -> None:
        self._value_sum_factory = SumFactory() if value_sum_factory is None else value_sum_factory
        self._weight_sum_factory = SumFactory() if weight_sum_factory is None else weight_sum_factory
        check_unweighted_factory(self._value_sum_factory, "value_sum_factory")
        check_unweighted_factory(self._weight_sum_factory, "weight_sum_factory")
        if not isinstance(no_nan_division, bool):
            raise KoinonTypeError("`no_nan_division` must be a bool.", found=repr(no_nan_division))
        self._divide = _divide_no_nan if no_nan_division else _divide

    def create(self, value_type: ValueType, weight_type: ValueType) -> AggregationProcess:
        """See `WeightedAggregationFactory.create`.

        Raises:
          TypeError: if `value_type` has a leaf that is not a float, or `weight_type` is not one numeric scalar.
        """
        check_floats(value_type, "A mean")
        check_value_type(weight_type, "weight_type")
        if not isinstance(weight_type, TensorType) or weight_type.shape != () or not is_sum_compatible(weight_type):
            raise KoinonTypeError(
                "The weight of a mean must be one number.",
                expected="a scalar of an integer or floating dtype",
                found=weight_type,
                hint="reduce the weights of a client to one number",
            )
        values = self._value_sum_factory.create(value_type)
        weights = self._weight_sum_factory.create(weight_type)
        divide = self._divide

        @federated_computation
        def initialize_fn() -> Any:
            return federated_zip(
                OrderedDict(value_sum_process=values.initialize(), weight_sum_process=weights.initialize())
            )

        parts = {"value_sum_process": values, "weight_sum_process": weights}
        state_type = StructType([(name, strip_placement(part.state_type)) for name, part in parts.items()], OrderedDict)

        @federated_computation(at_server(state_type), at_clients(value_type), at_clients(weight_type))
        def next_fn(state: Any, value: Any, weight: Any) -> Any:
            weighted = federated_map(_multiply, (value, weight))
            value_sum = values.next(state["value_sum_process"], weighted)
            weight_sum = weights.next(state["weight_sum_process"], weight)
            return MeasuredProcessOutput(
                federated_zip(OrderedDict(value_sum_process=value_sum.state, weight_sum_process=weight_sum.state)),
                federated_map(divide, (value_sum.result, weight_sum.result)),
                federated_zip(OrderedDict(mean_value=value_sum.measurements, mean_weight=weight_sum.measurements)),
            )

        return AggregationProcess(initialize_fn, next_fn, parts=parts)


@final
class UnweightedMeanFactory(UnweightedAggregationFactory):
    """The mean of the clients' values, `sum(value) / number of clients`.

    Type: `(<S@SERVER,{V}@CLIENTS> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    The state is a pair, that of the sum and that of the count; the measurements are `<mean_value,mean_count>`. The
    clients are counted by an aggregation of their own, so that the count can be secure too. The mean over no client
    is NaN.

    Args:
      value_sum_factory: sums the values; `SumFactory()` if None.
      count_sum_factory: sums an int32 one per client; `SumFactory()` if None.

    Raises:
      TypeError: if a factory is not an `UnweightedAggregationFactory`.

    Example:
      >>> import koinon as ko
      >>> process = ko.aggregators.UnweightedMeanFactory().create(ko.types.TensorType("float32"))
      >>> float(process.next(process.initialize(), [1.0, 2.0]).result)
      1.5
    """

    def __init__(
        self,
        value_sum_factory: UnweightedAggregationFactory | None = None,
        count_sum_factory: UnweightedAggregationFactory | None = None,
    ) -> None:
        self._value_sum_factory = SumFactory() if value_sum_factory is None else value_sum_factory
        self._count_sum_factory = SumFactory() if count_sum_factory is None else count_sum_factory
        check_unweighted_factory(self._value_sum_factory, "value_sum_factory")
        check_unweighted_factory(self._count_sum_factory, "count_sum_factory")

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`.

        Raises:
          TypeError: if `value_type` has a leaf that is not a float.
        """
        check_floats(value_type, "A mean")
        values = self._value_sum_factory.create(value_type)
        counts = self._count_sum_factory.create(TensorType(jnp.int32))

        @federated_computation
        def initialize_fn() -> Any:
            return federated_zip((values.initialize(), counts.initialize()))

        state_type = StructType([strip_placement(values.state_type), strip_placement(counts.state_type)], tuple)

        @federated_computation(at_server(state_type), at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            value_sum = values.next(state[0], value)
            count = counts.next(state[1], federated_value(1, CLIENTS))
            return MeasuredProcessOutput(
                federated_zip((value_sum.state, count.state)),
                federated_map(_divide, (value_sum.result, count.result)),
                federated_zip(OrderedDict(mean_value=value_sum.measurements, mean_count=count.measurements)),
            )

        parts = {"value_sum_process": values, "count_sum_process": counts}
        return AggregationProcess(initialize_fn, next_fn, parts=parts)


def _multiply(value: Any, weight: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf * weight.astype(leaf.dtype), value)


def _divide(value_sum: Any, weight_sum: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf / weight_sum.astype(leaf.dtype), value_sum)


def _divide_no_nan(value_sum: Any, weight_sum: Any) -> Any:
    is_zero = weight_sum == 0
    divisor = jnp.where(is_zero, jnp.ones_like(weight_sum), weight_sum)
    return jax.tree.map(
        lambda leaf: jnp.where(is_zero, 0, leaf / divisor.astype(leaf.dtype)).astype(leaf.dtype), value_sum
    )
