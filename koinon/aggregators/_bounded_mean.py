"""The mean of values that are moved towards a center until they are no farther from it than a bound."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators._factory import UnweightedAggregationFactory, ValueType, check_unweighted_factory
from koinon.aggregators._norms import all_finite, global_l2_norm
from koinon.aggregators._sum import SumFactory
from koinon.computation import federated_broadcast, federated_map, federated_zip
from koinon.templates._aggregation import AggregationProcess
from koinon.types import StructType, TensorType, Type, strip_placement, transform_type_postorder

_COUNTS = StructType([(name, TensorType(jnp.int32)) for name in ("present", "clipped", "non_finite")], OrderedDict)


class BoundedMean:
    """What clipping around a center and clipping around zero have in common.

    Only sums come to the server: of the clipped differences, and of three numbers of each client.

    Args:
      clipping_norm: the bound, a positive float.
      value_sum_factory: sums the differences; `SumFactory()` if None.
      count_sum_factory: sums a struct of three int32; `SumFactory()` if None.

    Raises:
      TypeError: if an argument has another type.
      ValueError: if the bound is not positive and finite.
    """

    def __init__(
        self,
        clipping_norm: float,
        value_sum_factory: UnweightedAggregationFactory | None,
        count_sum_factory: UnweightedAggregationFactory | None,
    ) -> None:
        if not isinstance(clipping_norm, float):
            raise KoinonTypeError(
                "`clipping_norm` must be a float.",
                found=repr(clipping_norm),
                hint=f"write {clipping_norm}.0" if type(clipping_norm) is int else None,
            )
        if not 0.0 < clipping_norm < float("inf"):
            raise KoinonValueError("`clipping_norm` must be positive and finite.", found=clipping_norm)
        self._bound = clipping_norm
        self._value_sum_factory = SumFactory() if value_sum_factory is None else value_sum_factory
        self._count_sum_factory = SumFactory() if count_sum_factory is None else count_sum_factory
        check_unweighted_factory(self._value_sum_factory, "value_sum_factory")
        check_unweighted_factory(self._count_sum_factory, "count_sum_factory")

    def sums(self, value_type: ValueType) -> dict[str, AggregationProcess]:
        """The aggregations of differences and of counts, by their names in the state."""
        return {
            "value_sum_process": self._value_sum_factory.create(_wide(value_type)),  # pyright: ignore[reportArgumentType]
            "count_sum_process": self._count_sum_factory.create(_COUNTS),
        }

    def step(self, sums: dict[str, AggregationProcess], states: Any, value: Any, center: Any) -> tuple[Any, ...]:
        """One pass over the clients, while tracing.

        Args:
          sums: what `sums` has made.
          states: of the sums.
          value: the clients' values.
          center: at the server.

        Returns:
          The new states, the new center, the sum of the counts, and the measurements of the sums by name.
        """
        difference, counts = federated_map(self._clip, (value, federated_broadcast(center)))
        value_sum = sums["value_sum_process"].next(states["value_sum_process"], difference)
        count = sums["count_sum_process"].next(states["count_sum_process"], counts)
        states = OrderedDict(value_sum_process=value_sum.state, count_sum_process=count.state)
        new_center = federated_map(_move, (center, value_sum.result, count.result))
        measurements = OrderedDict(mean_value=value_sum.measurements, mean_count=count.measurements)
        return states, new_center, count.result, measurements

    def _clip(self, value: Any, center: Any) -> tuple[Any, Any]:
        difference = jax.tree.map(lambda v, c: v.astype(_wide_dtype(v)) - c.astype(_wide_dtype(v)), value, center)
        is_finite = all_finite(difference)
        length = global_l2_norm(difference)
        is_clipped = is_finite & (length > self._bound)
        factor = jnp.where(is_clipped, self._bound / length, 1.0)
        clipped = jax.tree.map(lambda d: jnp.where(is_finite, d * factor.astype(d.dtype), 0), difference)
        counted = {"present": is_finite, "clipped": is_clipped, "non_finite": ~is_finite}
        return clipped, OrderedDict((name, flag.astype(jnp.int32)) for name, flag in counted.items())


def measured_counts(counts: Any) -> OrderedDict[str, Any]:
    """The measurements that the counts of a pass are."""
    return OrderedDict(clipped_count=counts["clipped"], non_finite_clients=counts["non_finite"])


def zip_states(states: dict[str, Any], **more: Any) -> Any:
    """The state of an aggregation by name, more of it first."""
    return federated_zip(OrderedDict(**more, **states))


def state_type_of(sums: dict[str, AggregationProcess], **more: Type) -> StructType:
    """The type of what `zip_states` makes."""
    states = [(name, strip_placement(process.state_type)) for name, process in sums.items()]
    return StructType([*more.items(), *states], OrderedDict)


def _move(center: Any, total: Any, counts: Any) -> Any:
    count = jnp.maximum(counts["present"], 1)
    return jax.tree.map(lambda c, t: (c.astype(t.dtype) + t / count.astype(t.dtype)).astype(c.dtype), center, total)


def _wide(type_: Type) -> Type:
    """The type with leaves of half precision in float32, in which they are summed."""

    def widen(part: Type) -> tuple[Type, bool]:
        if not isinstance(part, TensorType):
            return part, False
        return TensorType(jnp.promote_types(part.dtype, jnp.float32), part.shape), True

    return transform_type_postorder(type_, widen)[0]


def _wide_dtype(leaf: jax.Array) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)
