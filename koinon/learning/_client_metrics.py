"""How metrics differ from client to client: samples, and distributions over the clients of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators import UnweightedAggregationFactory
from koinon.aggregators._reservoir import (
    Reservoir,
    check_sample_size,
    constant_key,
    empty_reservoir,
    merge_reservoirs,
    reservoir_of,
    sample_of,
)
from koinon.computation import (
    PolymorphicComputation,
    federated_computation,
    federated_eval,
    federated_map,
    federated_zip,
)
from koinon.learning._metrics_aggregation import MetricFinalizers, MetricsAggregator, as_one_function, check_names
from koinon.templates import AggregationProcess, MeasuredProcessOutput
from koinon.types import SERVER, StructType, TensorType, at_clients, infer_type, strip_placement


class ClientDistribution(NamedTuple):
    """How the clients' values of a metric are distributed; each client counts the same.

    Clients whose value is not a number, such as the loss of a client without examples, are left out.

    Attributes:
      num_clients: int32, the number of clients that have a value.
      mean: the mean over them; NaN where there are none, as all below.
      variance: the mean squared distance from it.
      minimum: the least value.
      maximum: the greatest value.
      lowest_decile: the mean over the tenth of the clients (rounded up) with the least values: the worst off where the
        metric is an accuracy.
      highest_decile: the mean over the tenth with the greatest values: the worst off where it is a loss.
      quantiles: by their number, for example `"0.9"`, interpolated linearly.
    """

    num_clients: Any
    mean: Any
    variance: Any
    minimum: Any
    maximum: Any
    lowest_decile: Any
    highest_decile: Any
    quantiles: dict[str, Any]


def finalize_then_sample(
    metric_finalizers: MetricFinalizers, sample_size: int = 100, *, seed: int = 0
) -> PolymorphicComputation:
    """The finalized metrics of single clients, for a uniform sample of them.

    Type: `({M}@CLIENTS -> <values=R,count=int32>@SERVER)`, a `ClientSample`, where the leaves of R have a row for each
    client of the sample. For simulation: on devices these values leave clients one by one.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> sample_of = ko.learning.metrics.finalize_then_sample({"n": lambda n: 10 * n}, sample_size=2)
    >>> @ko.federated_computation(ko.types.at_clients({"n": jnp.int32}))
    ... def aggregate(states):
    ...     return sample_of(states)
    >>> sample = aggregate([{"n": 1}])
    >>> sample.values["n"].tolist(), int(sample.count)
    ([10, 0], 1)

    Args:
      metric_finalizers: functions from the state of a metric to its value, by name; or one function of all states.
      sample_size: the greatest number of clients of the sample.
      seed: decides, with the position of a client in its cohort, which are drawn; a random cohort is drawn anew each
        round, and so is the sample.

    Raises:
      KoinonTypeError: the finalizers are neither functions by name nor a function.
      KoinonValueError: the size is not a positive int; (when called) the names are not those of the states.
    """
    finalize = as_one_function(metric_finalizers)
    check_sample_size("sample_size", sample_size)

    @federated_computation
    def finalize_then_sample(unfinalized_metrics: Any) -> Any:
        check_names(metric_finalizers, unfinalized_metrics.type_signature.member)
        values = federated_map(lambda states: finalize(states), unfinalized_metrics)
        return federated_map(sample_of, reservoir_of(values, sample_size, constant_key(seed)))

    return finalize_then_sample


def finalize_then_describe(
    metric_finalizers: MetricFinalizers,
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    *,
    sample_size: int = 1000,
    seed: int = 0,
) -> PolymorphicComputation:
    """How evenly a model serves its clients: the distribution of each metric over them.

    Type: `({M}@CLIENTS -> <name=D,...>@SERVER)`, where D is a `ClientDistribution`. Metrics that are no single number
    are left out. A cohort of more than `sample_size` clients is described by a uniform sample of so many.

    Use it beside the metrics of all examples:
    `metrics_aggregator=combine_metrics_aggregators({"all": sum_then_finalize, "clients": finalize_then_describe})`.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> describe = ko.learning.metrics.finalize_then_describe({"accuracy": lambda state: state}, (0.25,))
    >>> @ko.federated_computation(ko.types.at_clients({"accuracy": jnp.float32}))
    ... def aggregate(states):
    ...     return describe(states)
    >>> accuracy = aggregate([{"accuracy": value} for value in (0.0, 0.25, 0.75, 1.0, 0.5)])["accuracy"]
    >>> float(accuracy.mean), float(accuracy.variance), float(accuracy.quantiles["0.25"]), float(accuracy.lowest_decile)
    (0.5, 0.125, 0.25, 0.0)

    Args:
      metric_finalizers: functions from the state of a metric to its value, by name; or one function of all states.
      quantiles: which quantiles, in [0, 1].
      sample_size: the greatest number of clients that are looked at.
      seed: see `finalize_then_sample`.

    Raises:
      KoinonTypeError: the finalizers are neither functions by name nor a function.
      KoinonValueError: the size is not a positive int, a quantile is not in [0, 1]; (when called) the names are not
        those of the states.

    References:
      Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, https://arxiv.org/abs/1905.10497, section 4,
      for the variance and the worst decile as measures of fairness.
    """
    finalize = as_one_function(metric_finalizers)
    check_sample_size("sample_size", sample_size)
    if not all(isinstance(q, int | float) and 0 <= q <= 1 for q in quantiles):
        raise KoinonValueError("Quantiles must lie in [0, 1].", found=repr(quantiles))

    def single_numbers(states: Any) -> dict[str, Any]:
        values = {name: jnp.asarray(value) for name, value in dict(finalize(states)).items() if _is_number(value)}
        return {name: value.astype(jnp.float32) for name, value in values.items()}

    def describe(reservoir: Reservoir) -> dict[str, Any]:
        taken = reservoir.priorities >= 0
        return {name: _describe(column, taken, quantiles) for name, column in reservoir.values.items()}

    @federated_computation
    def finalize_then_describe(unfinalized_metrics: Any) -> Any:
        check_names(metric_finalizers, unfinalized_metrics.type_signature.member)
        values = federated_map(single_numbers, unfinalized_metrics)
        return federated_map(describe, reservoir_of(values, sample_size, constant_key(seed)))

    return finalize_then_describe


def combine_metrics_aggregators(aggregators: Mapping[str, MetricsAggregator]) -> MetricsAggregator:
    """The aggregator of metrics that does what several do, each under its name.

    >>> import koinon as ko
    >>> both = ko.learning.metrics.combine_metrics_aggregators(
    ...     {"all": ko.learning.metrics.sum_then_finalize, "clients": ko.learning.metrics.finalize_then_describe}
    ... )

    Args:
      aggregators: what an algorithm takes as `metrics_aggregator`, by name.

    Raises:
      KoinonTypeError: they are no functions by name.
    """
    if not isinstance(aggregators, Mapping) or not all(callable(make) for make in aggregators.values()):
        raise KoinonTypeError("Aggregators of metrics are combined by name.", found=repr(aggregators))

    def combined(metric_finalizers: MetricFinalizers) -> PolymorphicComputation:
        made = {name: make(metric_finalizers) for name, make in aggregators.items()}

        @federated_computation
        def aggregate_by_name(unfinalized_metrics: Any) -> Any:
            return federated_zip({name: aggregate(unfinalized_metrics) for name, aggregate in made.items()})

        return aggregate_by_name

    return combined


@final
class FinalizeThenSampleFactory(UnweightedAggregationFactory):
    """The finalized metrics of a sample of the clients of this round, and of one of all rounds so far.

    Type: `(<S@SERVER,{M}@CLIENTS> -> <state=S@SERVER,result=<R,R>@SERVER,measurements=<>@SERVER>)`, where the result is
    a pair of `ClientSample`s. Both samples are uniform, the second over all participations.

    Args:
      metric_finalizers: see `finalize_then_sample`.
      sample_size: the greatest number of clients of each sample.
      seed: where the randomness begins.

    Raises:
      KoinonTypeError: the finalizers are neither functions by name nor a function.
      KoinonValueError: the size is not a positive int.

    Example:
      >>> import koinon as ko
      >>> states = ko.to_type({"n": ko.types.TensorType("int32")})
      >>> process = ko.learning.metrics.FinalizeThenSampleFactory({"n": lambda n: n}, sample_size=3).create(states)
      >>> state = process.initialize()
      >>> for value in (4, 5):
      ...     state, (current, total), _ = process.next(state, [{"n": value}])
      >>> current.values["n"].tolist(), sorted(total.values["n"].tolist())
      ([5, 0, 0], [0, 4, 5])
    """

    def __init__(self, metric_finalizers: MetricFinalizers, sample_size: int = 100, *, seed: int = 0) -> None:
        self._finalizers = metric_finalizers
        self._finalize = as_one_function(metric_finalizers)
        check_sample_size("sample_size", sample_size)
        self._size = sample_size
        self._seed = seed

    def create(self, value_type: TensorType | StructType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`; `value_type` is the type of a client's states.

        Raises:
          KoinonValueError: the names of the states are not those of the finalizers.
        """
        check_names(self._finalizers, value_type)
        finalize, size = self._finalize, self._size

        @federated_computation(at_clients(value_type))
        def finalized(states: Any) -> Any:
            return federated_map(lambda value: finalize(value), states)

        result_type = strip_placement(finalized.type_signature.result)

        @federated_computation
        def initialize_fn() -> Any:
            total = federated_eval(lambda: empty_reservoir(result_type, size), SERVER)
            return federated_zip({"key": constant_key(self._seed), "total_rounds": total})

        @federated_computation(initialize_fn.type_signature.result, at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            keys = federated_map(lambda key: tuple(jax.random.split(key)), state["key"])
            current = reservoir_of(finalized(value), size, keys[1])
            total = federated_map(merge_reservoirs, (state["total_rounds"], current))
            return MeasuredProcessOutput(
                federated_zip({"key": keys[0], "total_rounds": total}),
                federated_zip((federated_map(sample_of, current), federated_map(sample_of, total))),
                federated_eval(lambda: (), SERVER),
            )

        return AggregationProcess(initialize_fn, next_fn, allow_type_change=True)


def _is_number(value: Any) -> bool:
    type_ = infer_type(value)
    return isinstance(type_, TensorType) and type_.shape == () and jnp.issubdtype(type_.dtype, jnp.number)


def _describe(column: Any, taken: Any, quantiles: Sequence[float]) -> ClientDistribution:
    counts = taken & ~jnp.isnan(column)
    num_clients = jnp.sum(counts, dtype=jnp.int32)
    divisor = jnp.where(num_clients > 0, num_clients, jnp.nan).astype(jnp.float32)
    mean = jnp.sum(jnp.where(counts, column, 0)) / divisor
    variance = jnp.sum(jnp.where(counts, (column - mean) ** 2, 0)) / divisor
    # The values in order, and behind them the rows that are none.
    ordered, _ = jax.lax.sort((jnp.where(counts, column, jnp.inf), ~counts), num_keys=2)
    rank, tenth = jnp.arange(column.shape[0]), -(-num_clients // 10)
    lowest = jnp.where(rank < tenth, ordered, 0)
    highest = jnp.where((rank >= num_clients - tenth) & (rank < num_clients), ordered, 0)
    last = jnp.maximum(num_clients - 1, 0)

    def value_at(position: Any) -> Any:
        below = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, last)
        low, high = ordered[below], ordered[jnp.minimum(below + 1, last)]
        part = position - below.astype(jnp.float32)
        # Not a product with the difference: that of equal infinities is not a number.
        value = jnp.where(part > 0, low * (1 - part) + high * part, low)
        return jnp.where(num_clients > 0, value, jnp.nan)

    return ClientDistribution(
        num_clients,
        mean,
        variance,
        value_at(jnp.float32(0)),
        value_at(last.astype(jnp.float32)),
        jnp.sum(lowest) / jnp.where(tenth > 0, tenth, jnp.nan),
        jnp.sum(highest) / jnp.where(tenth > 0, tenth, jnp.nan),
        {f"{q:g}": value_at(q * last.astype(jnp.float32)) for q in quantiles},
    )
