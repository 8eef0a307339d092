"""Federated k-means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators import SumFactory, UnweightedAggregationFactory, as_weighted_aggregator
from koinon.aggregators._norms import all_finite
from koinon.computation import (
    federated_computation,
    federated_eval,
    federated_map,
    federated_sum,
    federated_value,
    federated_zip,
    jax_computation,
)
from koinon.learning._client_work import ClientResult, ClientWorkProcess
from koinon.learning._compose import compose_learning_process
from koinon.learning._distribute import DistributionProcess, build_broadcast_process
from koinon.learning._finalize import FinalizerProcess
from koinon.learning._local_training import BatchPlan, where
from koinon.learning._process import LearningProcess
from koinon.learning._training_work import NUM_NON_FINITE_CLIENTS_KEY, ClientOutput, result_types
from koinon.templates import MeasuredProcessOutput
from koinon.types import SERVER, SequenceType, StructType, TensorType, at_clients, at_server


class ClusterUpdate(NamedTuple):
    """What a client's points add to the clusters.

    Attributes:
      sums: `[clusters, *data_shape]`, the sums of the points nearest to each centroid.
      counts: int32 `[clusters]`, their numbers.
    """

    sums: Any
    counts: Any


def build_fed_kmeans(
    num_clusters: int,
    data_shape: Sequence[int],
    *,
    dtype: Any = jnp.float32,
    initial_centroids: Any = None,
    batch_size: int = 64,
    take: int | None = None,
    distributor: DistributionProcess | None = None,
    sum_aggregator: UnweightedAggregationFactory | None = None,
    seed: int = 0,
) -> LearningProcess:
    """Federated k-means, which moves each centroid to the mean of all points that have been nearest to it.

        counts_j = 1 for each cluster j
        for each round, with the clients of its cohort:
            s_j, n_j   = sum and number of the clients' points that are nearest to centroid j
            centroid_j <- (counts_j centroid_j + s_j) / (counts_j + n_j)
            counts_j   <- counts_j + n_j

    The first centroids count as one point each. In the limit of one cohort a round this is mini-batch k-means.

    Type: `(<S@SERVER,{D*}@CLIENTS> -> <state=S@SERVER,metrics=M@SERVER>)`, where D is a tensor of `data_shape`; the
    model's weights are the centroids. `metrics["client_work"]` has `num_examples` and `mean_squared_distance`, that of
    the points to the centroids of before the round.

    Args:
      num_clusters: how many clusters there are.
      data_shape: the shape of a point.
      dtype: its floating dtype.
      initial_centroids: `[num_clusters, *data_shape]`; standard normal numbers if None.
      batch_size: the number of points that a client computes at once; it does not change the result.
      take: the greatest number of points of a client, the first ones; None for all.
      distributor: how the centroids reach the clients; a broadcast if None.
      sum_aggregator: sums `<sums,counts>` over clients; `aggregators.SumFactory()` if None.
      seed: where the randomness of the first centroids begins.

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: a number is not a positive int, or the initial centroids have another shape.

    Example:
      >>> import numpy as np, koinon as ko
      >>> process = ko.learning.algorithms.build_fed_kmeans(2, (1,), initial_centroids=np.float32([[0.0], [10.0]]))
      >>> clients = [np.float32([[1.0], [9.0]]), np.float32([[2.0]])]
      >>> state, _ = process.next(process.initialize(), clients)
      >>> process.get_model_weights(state).ravel().tolist()  # (0 + 1 + 2) / 3 and (10 + 9) / 2
      [1.0, 9.5]

    References:
      Sculley, Web-Scale K-Means Clustering, WWW 2010, algorithm 1.
    """
    if not isinstance(num_clusters, int) or isinstance(num_clusters, bool) or num_clusters < 1:
        raise KoinonValueError("`num_clusters` must be a positive int.", found=repr(num_clusters))
    if sum_aggregator is not None and not isinstance(sum_aggregator, UnweightedAggregationFactory):
        raise KoinonTypeError(
            "The sum of points must be an unweighted factory.", found=f"{type(sum_aggregator).__name__}"
        )
    if distributor is not None and not isinstance(distributor, DistributionProcess):
        raise KoinonTypeError("The distributor must be a DistributionProcess.", found=f"{type(distributor).__name__}")
    point_type, centroids_type = TensorType(dtype, data_shape), TensorType(dtype, (num_clusters, *data_shape))
    centroids = _initial_centroids(initial_centroids, (num_clusters, *data_shape), centroids_type.dtype, seed)
    work = _build_assigning_client_work(num_clusters, point_type, centroids_type, BatchPlan(batch_size, take=take))
    factory = as_weighted_aggregator(SumFactory() if sum_aggregator is None else sum_aggregator)
    return compose_learning_process(
        jax_computation()(lambda: centroids),
        build_broadcast_process(centroids_type) if distributor is None else distributor,
        work,
        factory.create(*result_types(work)),
        _build_centroid_finalizer(num_clusters, centroids_type),
    )


def _initial_centroids(given: Any, shape: tuple[int, ...], dtype: Any, seed: int) -> jax.Array:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise KoinonTypeError("Centroids are means, and so floats.", found=dtype)
    if given is None:
        return jax.random.normal(jax.random.key(seed), shape, dtype)
    centroids = jnp.asarray(given, dtype)
    if centroids.shape != shape:
        raise KoinonValueError(
            "The initial centroids do not have the shape that they need.",
            expected=f"{list(shape)}, one row for each cluster",
            found=f"{list(centroids.shape)}",
        )
    return centroids


def _build_assigning_client_work(
    num_clusters: int, point_type: TensorType, centroids_type: TensorType, plan: BatchPlan
) -> ClientWorkProcess:
    """The client work that assigns each point to the nearest centroid."""
    data_type = at_clients(SequenceType(point_type))

    def assign(centroids: Any, data: Any) -> ClientOutput:
        flat_centroids = centroids.reshape(num_clusters, -1)

        def step(carry: tuple[Any, Any, Any], batch: Any) -> tuple[Any, Any, Any]:
            sums, counts, distance = carry
            points = batch.examples.reshape(batch.mask.shape[0], -1)
            distances = jnp.sum((points[:, None] - flat_centroids[None]) ** 2, axis=-1)
            nearest = jnp.argmin(distances, axis=-1)
            chosen = (nearest[:, None] == jnp.arange(num_clusters)) & batch.mask[:, None]
            own_distances = jnp.where(batch.mask, jnp.min(distances, axis=-1), 0).astype(jnp.float32)
            sums = sums + chosen.T.astype(points.dtype) @ jnp.where(batch.mask[:, None], points, 0)
            return sums, counts + jnp.sum(chosen, axis=0, dtype=jnp.int32), distance + jnp.sum(own_distances)

        zeros = jnp.zeros_like(flat_centroids), jnp.zeros((num_clusters,), jnp.int32), jnp.float32(0.0)
        sums, counts, distance = plan.batches(data, None).reduce(zeros, step)
        finite = all_finite(sums)
        update = ClusterUpdate(sums.reshape(centroids.shape), counts)
        update, distance = where(finite, (update, distance), jax.tree.map(jnp.zeros_like, (update, distance)))
        metrics = {"distance": distance, "num_examples": jnp.sum(update.counts)}
        metrics[NUM_NON_FINITE_CLIENTS_KEY] = jnp.where(finite, 0, 1).astype(jnp.int32)
        return ClientOutput(ClientResult(update, ()), metrics)

    def finalize(sums: dict[str, Any]) -> dict[str, Any]:
        mean = sums["distance"] / sums["num_examples"].astype(jnp.float32)
        others = {name: sums[name] for name in ("num_examples", NUM_NON_FINITE_CLIENTS_KEY)}
        return {"mean_squared_distance": mean, **others}

    @federated_computation
    def initialize_fn() -> Any:
        return federated_value((), SERVER)

    @federated_computation(at_server(StructType([], tuple)), at_clients(centroids_type), data_type)
    def next_fn(state: Any, centroids: Any, data: Any) -> Any:
        outputs = federated_map(assign, (centroids, data))
        metrics = federated_map(finalize, federated_sum(outputs.metrics))
        return MeasuredProcessOutput(state, outputs.result, metrics)

    return ClientWorkProcess(initialize_fn, next_fn)


def _build_centroid_finalizer(num_clusters: int, centroids_type: TensorType) -> FinalizerProcess:
    """The finalizer that moves each centroid to the mean of its points, and keeps their numbers."""
    counts_type = TensorType(jnp.int32, (num_clusters,))

    @federated_computation
    def initialize_fn() -> Any:
        return federated_eval(lambda: jnp.ones((num_clusters,), jnp.int32), SERVER)

    def move(counts: Any, centroids: Any, update: ClusterUpdate) -> tuple[Any, Any]:
        shape = (num_clusters, *[1] * (centroids.ndim - 1))
        added = update.counts.reshape(shape).astype(centroids.dtype)
        total = (counts + update.counts).reshape(shape).astype(centroids.dtype)
        return counts + update.counts, centroids + (update.sums - added * centroids) / total

    update_type = StructType([("sums", centroids_type), ("counts", counts_type)], ClusterUpdate)

    @federated_computation(at_server(counts_type), at_server(centroids_type), at_server(update_type))
    def next_fn(counts: Any, centroids: Any, update: Any) -> Any:
        counts, centroids = federated_map(move, (counts, centroids, update))
        return MeasuredProcessOutput(counts, centroids, federated_zip({"cluster_sizes": counts}))

    return FinalizerProcess(initialize_fn, next_fn)
