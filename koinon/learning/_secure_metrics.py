"""Sums of metrics of which the server sees nothing but the total."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators import UnweightedAggregationFactory, secure_quantized_sum
from koinon.aggregators._norms import all_finite
from koinon.computation import (
    PolymorphicComputation,
    Value,
    federated_computation,
    federated_map,
    federated_secure_sum,
    federated_value,
)
from koinon.learning._metrics_aggregation import MetricFinalizers, as_one_function, check_names
from koinon.templates import AggregationProcess, MeasuredProcessOutput
from koinon.templates._specs import specs_of
from koinon.types import SERVER, StructType, TensorType, Type, at_clients, at_server

SECURE_SUM_MEASUREMENTS_KEY = "secure_sum_measurements"
DEFAULT_RANGE = (0, 2**20 - 1)

Range: TypeAlias = tuple[float, float]
Ranges: TypeAlias = Mapping[str, Range] | Range | None
"""The least and the greatest value of a client's numbers: for all metrics, or by their names; None for the default."""


def secure_sum_then_finalize(
    metric_finalizers: MetricFinalizers, metric_value_ranges: Ranges = None
) -> PolymorphicComputation:
    """The secure sum of the clients' metric states, finalized at the server.

    Type: `({M}@CLIENTS -> R@SERVER)`, for any struct M of states of int32, uint32 or float32; it is polymorphic, and
    called inside a federated computation. R has the finalized metrics and `secure_sum_measurements`: the numbers of
    clients of which a number was clipped from below, and from above, and of those that were left out.

    Every number is clipped to its range, and summed as by `koinon.aggregators.secure_quantized_sum`: integers exactly,
    floats off by at most `(upper - lower) / 2**32` for each client. Integers of a range without negative numbers, such
    as counts, may come from any number of clients, as long as the sum fits their dtype; of another range from as many
    as could not overflow it whatever they have. More are a `SecureSumRangeError` when they come.

    A client with a number that is not finite is left out of all metrics, and counted.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> mean_of = ko.learning.metrics.secure_sum_then_finalize({"n": lambda n: n}, {"n": (0, 10)})
    >>> @ko.federated_computation(ko.types.at_clients({"n": jnp.int32}))
    ... def aggregate(states):
    ...     return mean_of(states)
    >>> result = aggregate([{"n": 3}, {"n": 99}])
    >>> int(result["n"]), int(result["secure_sum_measurements"]["secure_upper_clipped_count"])
    (13, 1)

    Args:
      metric_finalizers: functions from the state of a metric to its value, by name; or one function of all states.
      metric_value_ranges: the least and the greatest value of a client's numbers, a pair for all metrics or pairs by
        the names of metrics; for the others, and if None, 0 and 2**20 - 1.

    Raises:
      KoinonTypeError: the finalizers or the ranges are of the wrong form; (when called) a state is of another dtype.
      KoinonValueError: (when called) the names are not those of the states; a range is empty or not finite.
    """
    finalize = as_one_function(metric_finalizers)
    check_ranges(metric_value_ranges)

    def finalize_with_measurements(total: Any, clipped: Any) -> dict[str, Any]:
        return {**dict(finalize(total)), SECURE_SUM_MEASUREMENTS_KEY: clipped}

    @federated_computation
    def secure_sum_then_finalize(unfinalized_metrics: Any) -> Any:
        check_names(metric_finalizers, unfinalized_metrics.type_signature.member)
        return federated_map(finalize_with_measurements, secure_sum(unfinalized_metrics, metric_value_ranges))

    return secure_sum_then_finalize


@final
class SecureSumFactory(UnweightedAggregationFactory):
    """The secure sum of metrics, to be the `inner_summation_factory` of `SumThenFinalizeFactory`.

    Type: `(<<>@SERVER,{V}@CLIENTS> -> <state=<>@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    See `secure_sum_then_finalize` for what is summed how.

    Args:
      metric_value_ranges: see `secure_sum_then_finalize`.

    Raises:
      KoinonTypeError: the ranges are of the wrong form.
      KoinonValueError: a range is empty or not finite.

    Example:
      >>> import koinon as ko
      >>> process = ko.learning.metrics.SecureSumFactory().create(ko.types.TensorType("int32"))
      >>> int(process.next(process.initialize(), [1, 2, 3]).result)
      6
    """

    def __init__(self, metric_value_ranges: Ranges = None) -> None:
        check_ranges(metric_value_ranges)
        self._ranges = metric_value_ranges

    def create(self, value_type: TensorType | StructType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`.

        Raises:
          KoinonTypeError: `value_type` has a leaf that is neither int32, uint32 nor float32.
        """

        @federated_computation
        def initialize_fn() -> Any:
            return federated_value((), SERVER)

        @federated_computation(at_server(StructType([], tuple)), at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            total, clipped = secure_sum(value, self._ranges)
            return MeasuredProcessOutput(state, total, clipped)

        return AggregationProcess(initialize_fn, next_fn)


def secure_sum(value: Any, ranges: Ranges) -> tuple[Any, Any]:
    """The secure sum of `{V}@CLIENTS` at the server, and the counts of clients, inside a computation."""
    member = value.type_signature.member
    _check_dtypes(member)
    specs = specs_of(member)
    leaf_specs, structure = jax.tree.flatten(specs)
    bounds = [_within_dtype(pair, spec.dtype) for pair, spec in zip(_bounds_of(specs, ranges), leaf_specs, strict=True)]
    # What is never negative is summed as it is, and an overflow is that of the sum itself; anything else by its
    # distance from a point of its range, for which the number of clients has to be known, and has a limit.
    is_plain = [spec.dtype != jnp.float32 and low >= 0 for spec, (low, _) in zip(leaf_specs, bounds, strict=True)]

    def prepare(value: Any) -> tuple[Any, Any, Any]:
        leaves = jax.tree.leaves(value)
        is_finite = all_finite(leaves)
        below = [jnp.any(leaf < low) for leaf, (low, _) in zip(leaves, bounds, strict=True)]
        above = [jnp.any(leaf > high) for leaf, (_, high) in zip(leaves, bounds, strict=True)]
        counts = {
            "secure_lower_clipped_count": is_finite & _any(below),
            "secure_upper_clipped_count": is_finite & _any(above),
            "non_finite_clients": ~is_finite,
        }
        clipped = [jnp.clip(leaf, *pair) for leaf, pair in zip(leaves, bounds, strict=True)]
        plain = [jnp.where(is_finite, leaf, jnp.zeros_like(leaf)) for leaf in _those(clipped, is_plain)]
        ranged = _those(leaves, [not plain for plain in is_plain])
        return tuple(plain), tuple(ranged), jax.tree.map(lambda flag: flag.astype(jnp.int32), counts)

    def restore(plain: Any, ranged: Any, counts: Any) -> tuple[Any, Any]:
        parts = iter(plain), iter(ranged)
        return jax.tree.unflatten(structure, [next(parts[0 if whole else 1]) for whole in is_plain]), counts

    plain, ranged, counts = federated_map(prepare, value)
    largest = tuple(high for _, high in _those(bounds, is_plain))
    restored = federated_map(
        restore,
        (
            federated_secure_sum(plain, largest) if largest else federated_value((), SERVER),
            _sum_in_ranges(ranged, _those(bounds, [not plain for plain in is_plain])),
            federated_secure_sum(counts, 1),
        ),
    )
    return restored[0], restored[1]


def check_ranges(ranges: Any) -> None:
    """Checks that ranges are pairs of finite numbers, the first less than the second.

    Raises:
      KoinonTypeError: they are no pairs of numbers, for all metrics or by name.
      KoinonValueError: a range is empty or not finite.
    """
    if ranges is None:
        return
    for name, pair in ranges.items() if isinstance(ranges, Mapping) else [("all metrics", ranges)]:
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2
        if not is_pair or any(isinstance(bound, bool) or not isinstance(bound, int | float) for bound in pair):
            raise KoinonTypeError(
                "The range of a metric is a pair of numbers.",
                expected="(lower, upper)",
                found=f"{pair!r} for {name}",
                hint='pass for instance {"loss": (0.0, 100.0)}',
            )
        if not -np.inf < pair[0] < pair[1] < np.inf or pair[1] - pair[0] >= 2**32:
            raise KoinonValueError(
                "The range of a metric must be finite, not empty, and narrower than 2**32.", found=f"{pair} for {name}"
            )


def _check_dtypes(type_: Type) -> None:
    if isinstance(type_, StructType):
        for child in type_:
            _check_dtypes(child)
    elif not isinstance(type_, TensorType) or type_.dtype not in (jnp.int32, jnp.uint32, jnp.float32):
        raise KoinonTypeError("What is summed securely is int32, uint32 or float32.", found=type_)


def _bounds_of(value: Any, ranges: Ranges) -> list[Range]:
    """The range of each leaf."""
    if ranges is None or not isinstance(ranges, Mapping):
        pair: Range = DEFAULT_RANGE if ranges is None else (ranges[0], ranges[1])
        return [pair] * len(jax.tree.leaves(value))
    if not isinstance(value, Mapping) or not set(ranges) <= set(value):
        raise KoinonTypeError(
            "There are ranges of metrics that do not exist.",
            expected=", ".join(value) if isinstance(value, Mapping) else "one pair, since the metrics have no names",
            found=", ".join(ranges),
        )
    by_name = {name: jax.tree.map(lambda _, name=name: name, value[name]) for name in value}
    names: list[str] = jax.tree.leaves(by_name)
    pairs = [ranges.get(name, DEFAULT_RANGE) for name in names]
    return [(low, high) for low, high in pairs]


def _within_dtype(pair: Range, dtype: Any) -> tuple[Any, Any]:
    """A range as numbers of a dtype; the integers in it."""
    low, high = pair
    if jnp.issubdtype(dtype, jnp.floating):
        return dtype.type(low), dtype.type(high)
    limits = np.iinfo(dtype)
    least, greatest = max(math.ceil(low), int(limits.min)), min(math.floor(high), int(limits.max))
    if least > greatest:
        raise KoinonValueError(
            "There is no integer in the range of a metric that is one.",
            expected=f"a range that has a value of {np.dtype(dtype)}",
            found=f"{low} to {high}",
        )
    return dtype.type(least), dtype.type(greatest)


def _sum_in_ranges(value: Value, bounds: list[tuple[Any, Any]]) -> Value:
    """The secure sum of tensors at the clients, each in a range of its own."""
    if not bounds:
        return federated_value((), SERVER)
    lower, upper = (tuple(ends) for ends in zip(*bounds, strict=True))
    return secure_quantized_sum(value, lower, upper)


def _those(items: list[Any], are_wanted: list[bool]) -> list[Any]:
    return [item for item, is_wanted in zip(items, are_wanted, strict=True) if is_wanted]


def _any(flags: list[Any]) -> Any:
    return jnp.any(jnp.stack(flags)) if flags else jnp.bool_(False)
