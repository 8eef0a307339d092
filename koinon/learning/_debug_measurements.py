"""What one wants to see of an aggregation when training goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from koinon.aggregators import UnweightedAggregationFactory, WeightedAggregationFactory, add_measurements
from koinon.aggregators._factory import prints_as_called
from koinon.computation import federated_map, federated_mean


@prints_as_called
def add_debug_measurements(
    aggregation_factory: UnweightedAggregationFactory | WeightedAggregationFactory,
) -> UnweightedAggregationFactory | WeightedAggregationFactory:
    """Adds the norms of the clients' updates, and the norm and the range of the aggregated one, to a mean.

    The measurements are `average_client_norm` and `std_dev_client_norm`, the mean and the standard deviation over
    clients, weighted if the aggregation is, and `server_update_norm`, `server_update_max` and `server_update_min`, over
    all elements of all leaves.

    >>> import jax.numpy as jnp, koinon as ko
    >>> factory = ko.learning.add_debug_measurements(ko.aggregators.UnweightedMeanFactory())
    >>> process = factory.create(ko.types.TensorType(jnp.float32, (2,)))
    >>> measured = process.next(process.initialize(), [jnp.array([3.0, 4.0]), jnp.array([5.0, 12.0])]).measurements
    >>> float(measured["average_client_norm"]), float(measured["std_dev_client_norm"])
    (9.0, 4.0)

    Args:
      aggregation_factory: a mean, weighted or not, also inside clipping and the like.

    Raises:
      TypeError: the argument is no factory.
    """

    def of_clients(value: Any, weight: Any) -> dict[str, Any]:
        norms = federated_map(_norm, value)
        squares = federated_map(lambda norm: norm * norm, norms)
        mean, mean_square = (
            (federated_mean(x) if weight is None else federated_mean(x, weight)) for x in (norms, squares)
        )
        deviation = federated_map(_standard_deviation, (mean, mean_square))
        return {"average_client_norm": mean, "std_dev_client_norm": deviation}

    def of_server(update: Any) -> dict[str, Any]:
        return {
            "server_update_max": federated_map(lambda u: _over_leaves(u, jnp.max), update),
            "server_update_min": federated_map(lambda u: _over_leaves(u, jnp.min), update),
            "server_update_norm": federated_map(_norm, update),
        }

    is_weighted = isinstance(aggregation_factory, WeightedAggregationFactory)
    return add_measurements(
        aggregation_factory,
        client_measurement_fn=of_clients if is_weighted else lambda value: of_clients(value, None),
        server_measurement_fn=of_server,
    )


def _norm(update: Any) -> Any:
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(update)]
    return jnp.sqrt(sum(squares, jnp.float32(0.0)))


def _standard_deviation(mean: Any, mean_square: Any) -> Any:
    # Rounding may leave a difference of equal numbers below zero.
    return jnp.sqrt(jnp.maximum(mean_square - mean**2, 0))


def _over_leaves(update: Any, reduce: Callable[[Any], Any]) -> Any:
    return reduce(jnp.stack([reduce(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(update)]))
