"""Clients whose contribution is not finite: left out, and counted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError
from koinon.aggregators._factory import (
    ValueType,
    WeightedAggregationFactory,
    factory_like,
    named,
    next_parameter,
    prints_as_called,
)
from koinon.aggregators._measure import named_measurements
from koinon.aggregators._norms import all_finite
from koinon.computation import federated_computation, federated_map, federated_sum, federated_zip
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput


@prints_as_called
def excluding_non_finite_factory(inner_agg_factory: WeightedAggregationFactory) -> WeightedAggregationFactory:
    """Leaves out each client whose value or weight has an element that is not finite, before an inner aggregation.

    Type: `(<S@SERVER,{V}@CLIENTS,{W}@CLIENTS> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    So is a client whose value times its weight, a scalar, is beyond float32, or the dtype of the value if it is wider.
    Such a client takes part with zeros and the weight 0, which a weighted aggregation is not changed by. How many there
    were is the measurement `non_finite_clients`, beside those of the inner aggregation.

    Args:
      inner_agg_factory: aggregates what is left, weighted.

    Raises:
      TypeError: if the factory is no weighted one, or, at `create`, its measurements have no names.

    Example:
      >>> import koinon as ko
      >>> factory = ko.aggregators.excluding_non_finite_factory(ko.aggregators.MeanFactory())
      >>> process = factory.create(ko.types.TensorType("float32"), ko.types.TensorType("float32"))
      >>> output = process.next(process.initialize(), [1.0, float("nan"), 2.0], [3.0, 1.0, 1.0])
      >>> float(output.result), int(output.measurements["non_finite_clients"])
      (1.25, 1)
    """
    if not isinstance(inner_agg_factory, WeightedAggregationFactory):
        raise KoinonTypeError(
            "Clients are left out by the weight 0, so the inner aggregation must be weighted.",
            expected="WeightedAggregationFactory",
            found=named(inner_agg_factory),
            hint="pass for example `MeanFactory()`",
        )

    def create(value_type: ValueType, weight_type: ValueType) -> AggregationProcess:
        inner = inner_agg_factory.create(value_type, weight_type)

        @federated_computation(next_parameter(inner.state_type, value_type, weight_type))
        def next_fn(arguments: Any) -> Any:
            state, value, weight = arguments
            kept_value, kept_weight, is_excluded = federated_map(_exclude, (value, weight))
            output = inner.next(state, kept_value, kept_weight)
            measurements = named_measurements(output.measurements)
            measurements["non_finite_clients"] = federated_sum(is_excluded)
            return MeasuredProcessOutput(output.state, output.result, federated_zip(measurements))

        parts = {"inner_agg": inner}
        return AggregationProcess(inner.initialize, next_fn, allow_type_change=True, parts=parts)

    return factory_like(inner_agg_factory, create)  # pyright: ignore[reportReturnType]


def _exclude(value: Any, weight: Any) -> tuple[Any, Any, jax.Array]:
    # A weighted value that overflows would make a mean infinite, or be left out of its sum while its weight is not.
    weighted = [_weighted(leaf, weight) for leaf in jax.tree.leaves(value)] if _is_scalar(weight) else []
    is_finite = all_finite((value, weight, weighted))
    kept = jax.tree.map(lambda leaf: jnp.where(is_finite, leaf, jnp.zeros_like(leaf)), (value, weight))
    return *kept, (~is_finite).astype(jnp.int32)


def _is_scalar(weight: Any) -> bool:
    return isinstance(weight, jax.Array) and weight.shape == ()


def _weighted(leaf: jax.Array, weight: jax.Array) -> jax.Array:
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    return leaf.astype(wide) * weight.astype(wide)
