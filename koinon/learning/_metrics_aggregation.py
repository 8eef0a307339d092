"""From the metrics of the clients to those of the round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.computation import PolymorphicComputation, federated_computation, federated_map, federated_sum
from koinon.types import StructType

MetricFinalizers: TypeAlias = Mapping[str, Callable[[Any], Any]] | Callable[[Any], Any]
"""Functions from the state of a metric to its value, by name; or one function of all states."""

MetricsAggregator: TypeAlias = Callable[[MetricFinalizers], Callable[[Any], Any]]
"""What makes, of finalizers, a federated computation from the states at the clients to values at the server."""


def sum_then_finalize(metric_finalizers: MetricFinalizers) -> PolymorphicComputation:
    """The sum of the clients' metric states, finalized at the server.

    Type: `({M}@CLIENTS -> R@SERVER)`, for any struct M of states that can be summed.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> aggregate = ko.learning.metrics.sum_then_finalize({"mean": lambda state: state["total"] / state["count"]})
    >>> float(aggregate([{"mean": {"total": 6.0, "count": 2.0}}, {"mean": {"total": 0.0, "count": 1.0}}])["mean"])
    2.0

    Args:
      metric_finalizers: functions from the state of a metric to its value, by the names of the states; or one function
        from the whole struct of states to all values.

    Raises:
      KoinonTypeError: the finalizers are neither functions by name nor a function.
      KoinonValueError: (when called) the names are not those of the states.
    """
    finalize = _as_one_function(metric_finalizers)

    @federated_computation
    def sum_then_finalize(unfinalized_metrics: Any) -> Any:
        _check_names(metric_finalizers, unfinalized_metrics.type_signature.member)
        return federated_map(finalize, federated_sum(unfinalized_metrics))

    return sum_then_finalize


def _as_one_function(metric_finalizers: MetricFinalizers) -> Callable[[Any], Any]:
    if callable(metric_finalizers):
        return metric_finalizers
    if not isinstance(metric_finalizers, Mapping) or not all(callable(fn) for fn in metric_finalizers.values()):
        raise KoinonTypeError(
            "Finalizers are functions by the names of metrics, or one function.", found=repr(metric_finalizers)
        )

    def finalize(states: Any) -> dict[str, Any]:
        return {name: fn(states[name]) for name, fn in metric_finalizers.items()}

    return finalize


def _check_names(metric_finalizers: MetricFinalizers, states_type: Any) -> None:
    if callable(metric_finalizers):
        return
    found = states_type.fields() if isinstance(states_type, StructType) else []
    if set(found) != set(metric_finalizers):
        raise KoinonValueError(
            "The finalizers and the metrics do not have the same names.",
            expected=", ".join(sorted(metric_finalizers)),
            found=", ".join(sorted(found)) or str(states_type),
        )
