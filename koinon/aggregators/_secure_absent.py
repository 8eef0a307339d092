"""Clients that take no part in a secure mean: marked such that nothing on the way counts them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from koinon.aggregators._factory import (
    ValueType,
    WeightedAggregationFactory,
    check_floats,
    factory_like,
    next_parameter,
)
from koinon.aggregators._measure import named_measurements
from koinon.aggregators._norms import all_finite
from koinon.computation import federated_computation, federated_map, federated_secure_sum_bitwidth, federated_zip
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import TensorType


def absent_as_nan_factory(inner_agg_factory: WeightedAggregationFactory) -> WeightedAggregationFactory:
    """Makes NaN of the value and the weight of each client that takes no part, before an inner aggregation.

    Those are the clients of weight zero, and those with a value, a weight or a product of the two that is not finite.
    How many of the latter there were is the measurement `non_finite_clients`, summed securely. A run fails with
    `SecureSumRangeError` where a weight is negative.

    Args:
      inner_agg_factory: passes NaN on to secure sums that leave it out; is given weights of float32.
    """

    def create(value_type: ValueType, weight_type: ValueType) -> AggregationProcess:
        check_floats(value_type, "A mean")
        inner = inner_agg_factory.create(value_type, TensorType(jnp.float32))

        @federated_computation(next_parameter(inner.state_type, value_type, weight_type))
        def next_fn(arguments: Any) -> Any:
            state, value, weight = arguments
            marked_value, marked_weight, is_non_finite = federated_map(_mark, (value, weight))
            output = inner.next(state, marked_value, marked_weight)
            measurements = named_measurements(output.measurements)
            measurements["non_finite_clients"] = federated_secure_sum_bitwidth(is_non_finite, 1)
            return MeasuredProcessOutput(output.state, output.result, federated_zip(measurements))

        parts = {"inner_agg": inner}
        return AggregationProcess(inner.initialize, next_fn, allow_type_change=True, parts=parts)

    return factory_like(inner_agg_factory, create)  # pyright: ignore[reportReturnType]


def _mark(value: Any, weight: Any) -> tuple[Any, jax.Array, jax.Array]:
    weight = weight.astype(jnp.float32)
    leaves = jax.tree.leaves(value)
    parts = [weight, *leaves, *[leaf * weight.astype(leaf.dtype) for leaf in leaves]]
    is_finite = all_finite(parts)
    is_there = is_finite & (weight != 0)
    marked = jax.tree.map(lambda leaf: jnp.where(is_there, leaf, jnp.asarray(jnp.nan, leaf.dtype)), value)
    # A negative number is out of the range of its secure sum, and the engine says so.
    flag = jnp.where((weight < 0) & jnp.isfinite(weight), -1, (~is_finite).astype(jnp.int32))
    return marked, jnp.where(is_there, weight, jnp.nan), flag
