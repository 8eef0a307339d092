"""Sums of metrics of which the server sees nothing but the total."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators import UnweightedAggregationFactory
from koinon.computation import (
    PolymorphicComputation,
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

# Numbers of 32 bits are summed in digits of 11, so that int32 holds the sum of a digit over 2**20 clients.
_DIGIT_BITS = 11
_NUM_DIGITS = 3
_DIGIT_MAX = 2**_DIGIT_BITS - 1
# The greatest float32 below 2**32, so that a float scaled to it is an integer that 32 bits hold.
_FLOAT_LEVELS = np.float32(2**32 - 2**8)


class _Quantized(NamedTuple):
    """What a client contributes to a secure sum.

    Attributes:
      digits: for each leaf, the digits of its distance from the least value in steps, int32, the least digit first.
      client: 1, the client itself.
      clipped: whether any of its numbers were below, and above, their range.
    """

    digits: tuple[tuple[Any, ...], ...]
    client: Any
    clipped: dict[str, Any]


def secure_sum_then_finalize(
    metric_finalizers: MetricFinalizers, metric_value_ranges: Ranges = None
) -> PolymorphicComputation:
    """The secure sum of the clients' metric states, finalized at the server.

    Type: `({M}@CLIENTS -> R@SERVER)`, for any struct M of states of int32, uint32 or float32; it is polymorphic, and
    called inside a federated computation. R has the finalized metrics and `secure_sum_measurements`: the numbers of
    clients of which a number was clipped from below, and from above.

    Every number is clipped to its range, cut into steps, and summed by `federated_secure_sum`, for up to 2**20 clients.
    Integers are summed exactly. The distance of a float from `lower` keeps float32's 24 bits, so that it is off by at
    most `(upper - lower) / 2**24`. What is not a number counts as above the range.

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
    """The secure sum of `{V}@CLIENTS` at the server, and the counts of clipped clients, inside a computation."""
    member = value.type_signature.member
    _check_dtypes(member)
    specs = specs_of(member)
    leaf_specs, structure = jax.tree.flatten(specs)
    bounds = _bounds_of(specs, ranges)

    def quantize(value: Any) -> _Quantized:
        leaves = jax.tree.leaves(value)
        digits = [_to_digits(leaf, *pair) for leaf, pair in zip(leaves, bounds, strict=True)]
        below = [jnp.any(leaf < low) for leaf, (low, _) in zip(leaves, bounds, strict=True)]
        above = [jnp.any(~(leaf <= high)) for leaf, (_, high) in zip(leaves, bounds, strict=True)]
        clipped = {"secure_lower_clipped_count": _any(below), "secure_upper_clipped_count": _any(above)}
        return _Quantized(tuple(digits), jnp.int32(1), clipped)

    def restore(summed: _Quantized) -> tuple[Any, Any]:
        leaves = [
            _from_digits(digits, summed.client, *pair, spec.dtype)
            for digits, pair, spec in zip(summed.digits, bounds, leaf_specs, strict=True)
        ]
        return jax.tree.unflatten(structure, leaves), summed.clipped

    limits = _Quantized(
        ((_DIGIT_MAX,) * _NUM_DIGITS,) * len(bounds),
        1,
        {"secure_lower_clipped_count": 1, "secure_upper_clipped_count": 1},
    )
    restored = federated_map(restore, federated_secure_sum(federated_map(quantize, value), limits))
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


def _to_digits(leaf: Any, low: float, high: float) -> tuple[Any, ...]:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        share = jnp.where(jnp.isnan(leaf), 1.0, (jnp.clip(leaf, low, high) - low) / np.float32(high - low))
        steps = jnp.round(jnp.clip(share, 0, 1) * _FLOAT_LEVELS).astype(jnp.uint32)
    else:
        bounds = np.iinfo(leaf.dtype)
        clipped = jnp.clip(leaf, max(int(np.ceil(low)), bounds.min), min(int(np.floor(high)), bounds.max))
        # Modulo 2**32, in which the distance is right even where the difference overflows.
        steps = clipped.astype(jnp.uint32) - np.uint32(int(np.ceil(low)) % 2**32)
    return tuple([((steps >> shift) & _DIGIT_MAX).astype(jnp.int32) for shift in _shifts()])


def _from_digits(total: tuple[Any, ...], num_clients: Any, low: float, high: float, dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        steps = sum(digit.astype(dtype) * 2.0**shift for digit, shift in zip(total, _shifts(), strict=True))
        return num_clients.astype(dtype) * np.float32(low) + steps * np.float32((high - low) / float(_FLOAT_LEVELS))
    first = num_clients.astype(jnp.uint32) * np.uint32(int(np.ceil(low)) % 2**32)
    steps = sum((digit.astype(jnp.uint32) << shift for digit, shift in zip(total, _shifts(), strict=True)), first)
    return jax.lax.bitcast_convert_type(steps, dtype)


def _shifts() -> range:
    return range(0, _DIGIT_BITS * _NUM_DIGITS, _DIGIT_BITS)


def _any(flags: list[Any]) -> Any:
    return jnp.any(jnp.stack(flags)).astype(jnp.int32) if flags else jnp.int32(0)
