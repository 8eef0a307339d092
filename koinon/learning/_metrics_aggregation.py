"""From the metrics of the clients to those of the round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators import SumFactory, UnweightedAggregationFactory
from koinon.computation import (
    PolymorphicComputation,
    federated_computation,
    federated_eval,
    federated_map,
    federated_sum,
    federated_zip,
)
from koinon.templates import AggregationProcess, MeasuredProcessOutput
from koinon.types import SERVER, StructType, TensorType, Type, at_clients, to_container

MetricFinalizers: TypeAlias = Mapping[str, Callable[[Any], Any]] | Callable[[Any], Any]
"""Functions from the state of a metric to its value, by name; or one function of all states."""

MetricsAggregator: TypeAlias = Callable[[MetricFinalizers], Callable[[Any], Any]]
"""What makes, of finalizers, a federated computation from the states at the clients to values at the server."""


def sum_then_finalize(metric_finalizers: MetricFinalizers) -> PolymorphicComputation:
    """The sum of the clients' metric states, finalized at the server.

    Type: `({M}@CLIENTS -> R@SERVER)`, for any struct M of states that can be summed; it is polymorphic, and called
    inside a federated computation.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> mean_of = ko.learning.metrics.sum_then_finalize({"mean": lambda state: state["total"] / state["count"]})
    >>> @ko.federated_computation(ko.types.at_clients({"mean": {"total": jnp.float32, "count": jnp.float32}}))
    ... def aggregate(states):
    ...     return mean_of(states)
    >>> float(aggregate([{"mean": {"total": 6.0, "count": 2.0}}, {"mean": {"total": 0.0, "count": 1.0}}])["mean"])
    2.0

    Args:
      metric_finalizers: functions from the state of a metric to its value, by the names of the states; or one function
        from the whole struct of states to all values.

    Raises:
      KoinonTypeError: the finalizers are neither functions by name nor a function.
      KoinonValueError: (when called) the names are not those of the states.
    """
    finalize = as_one_function(metric_finalizers)

    @federated_computation
    def sum_then_finalize(unfinalized_metrics: Any) -> Any:
        check_names(metric_finalizers, unfinalized_metrics.type_signature.member)
        return federated_map(finalize, federated_sum(unfinalized_metrics))

    return sum_then_finalize


def as_one_function(metric_finalizers: MetricFinalizers) -> Callable[[Any], Any]:
    """The function from all states to all values that finalizers are.

    Raises:
      KoinonTypeError: they are neither functions by name nor a function.
    """
    if callable(metric_finalizers):
        return metric_finalizers
    if not isinstance(metric_finalizers, Mapping) or not all(callable(fn) for fn in metric_finalizers.values()):
        raise KoinonTypeError(
            "Finalizers are functions by the names of metrics, or one function.", found=repr(metric_finalizers)
        )

    def finalize(states: Any) -> dict[str, Any]:
        return {name: fn(states[name]) for name, fn in metric_finalizers.items()}

    return finalize


def check_names(metric_finalizers: MetricFinalizers, states_type: Any) -> None:
    """Checks that finalizers and states have the same names.

    Raises:
      KoinonValueError: they do not.
    """
    if callable(metric_finalizers):
        return
    found = states_type.fields() if isinstance(states_type, StructType) else []
    if set(found) != set(metric_finalizers):
        raise KoinonValueError(
            "The finalizers and the metrics do not have the same names.",
            expected=", ".join(sorted(metric_finalizers)),
            found=", ".join(sorted(found)) or str(states_type),
        )


@final
class SumThenFinalizeFactory(UnweightedAggregationFactory):
    """The sums of the clients' metric states, finalized for the round and for all rounds so far.

    Type: `(<S@SERVER,{M}@CLIENTS> -> <state=S@SERVER,result=<R,R>@SERVER,measurements=<>@SERVER>)`, where the result is
    the pair of the metrics of this round and of all rounds.

    The totals are sums of the same dtypes as the metrics' states: int32 counts overflow at 2**31.

    Args:
      metric_finalizers: see `sum_then_finalize`.
      inner_summation_factory: sums the states over the clients of a round; `aggregators.SumFactory()` if None.

    Raises:
      KoinonTypeError: the finalizers are neither functions by name nor a function, or the inner factory is none.

    Example:
      >>> import koinon as ko
      >>> states = ko.to_type({"count": ko.types.TensorType("int32")})
      >>> process = ko.learning.metrics.SumThenFinalizeFactory({"count": lambda n: 10 * n}).create(states)
      >>> state = process.initialize()
      >>> for _ in range(2):
      ...     state, result, _ = process.next(state, [{"count": 1}, {"count": 2}])
      >>> [int(metrics["count"]) for metrics in result]
      [30, 60]
    """

    def __init__(
        self,
        metric_finalizers: MetricFinalizers,
        inner_summation_factory: UnweightedAggregationFactory | None = None,
    ) -> None:
        self._finalizers = metric_finalizers
        self._finalize = as_one_function(metric_finalizers)
        self._inner = SumFactory() if inner_summation_factory is None else inner_summation_factory
        if not isinstance(self._inner, UnweightedAggregationFactory):
            raise KoinonTypeError(
                "The summation of metrics must be an unweighted factory.", found=f"{type(self._inner).__name__}"
            )

    def create(self, value_type: TensorType | StructType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`; `value_type` is the type of a client's states.

        Raises:
          KoinonValueError: the names of the states are not those of the finalizers.
          SumIncompatibleError: the states cannot be summed.
        """
        check_names(self._finalizers, value_type)
        inner = self._inner.create(value_type)
        finalize = self._finalize

        @federated_computation
        def initialize_fn() -> Any:
            totals = federated_eval(lambda: _zeros(value_type), SERVER)
            return federated_zip({"sum_process": inner.initialize(), "total_rounds": totals})

        @federated_computation(initialize_fn.type_signature.result, at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            summed = inner.next(state["sum_process"], value)
            totals = federated_map(_add, (state["total_rounds"], summed.result))
            return MeasuredProcessOutput(
                federated_zip({"sum_process": summed.state, "total_rounds": totals}),
                federated_zip((federated_map(finalize, summed.result), federated_map(finalize, totals))),
                summed.measurements,
            )

        return AggregationProcess(initialize_fn, next_fn, allow_type_change=True)


def _zeros(type_: Type) -> Any:
    if isinstance(type_, StructType):
        return to_container(type_, [_zeros(child) for child in type_])
    assert isinstance(type_, TensorType)
    return jnp.zeros(type_.shape or (), type_.dtype)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: (x + y).astype(x.dtype), a, b)
