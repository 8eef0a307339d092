"""Bucketing: a robust rule over the means of clients that are thrown together at random."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError, RobustOverSecureSumError
from koinon.aggregators._factory import UnweightedAggregationFactory, ValueType, check_int, named
from koinon.aggregators._rows import RobustRule, Rows, check_rows, rows_of, to_value
from koinon.computation import (
    Sequence,
    federated_collect,
    federated_computation,
    federated_eval,
    federated_map,
    federated_zip,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import SERVER, TensorType, at_clients, at_server

_KEY = TensorType(jax.eval_shape(lambda: jax.random.key(0)).dtype)


@final
class BucketingFactory(UnweightedAggregationFactory):
    """A robust rule over the means of buckets of clients, in which those are put at random anew each round.

    Clients whose data differ have values that differ, and a rule that trusts the crowd throws out the unusual honest
    ones. The means of `bucket_size` of them each differ less. A corrupted client spoils its whole bucket, so the rule
    has to withstand as many corrupted buckets, of `bucket_size` times fewer, as there are corrupted clients.

    Type: `(<key@SERVER,{V}@CLIENTS> ->
    <state=key@SERVER,result=V@SERVER,measurements=<...,buckets,non_finite_clients>@SERVER>)`

    The state is the key of the next round; the measurements are those of the rule, `buckets`, how many there were, and
    `non_finite_clients`, how many clients were left out before. Of a number of clients that `bucket_size` does not
    divide, the last bucket has fewer. The result does not depend on the order of the clients, to the bit. The server
    holds the values of all clients, and sees each of them, so no secure sum can take the place of the rule.

    Args:
      inner_rule: a robust rule that looks at the values of all clients, such as `CoordinateMedianFactory()`; for
        `KrumFactory`, `num_byzantine` counts buckets.
      bucket_size: s of the paper, a positive int; 2 is what the paper recommends.
      seed: of the buckets of all rounds, a non-negative int. Who knows it knows the buckets.

    Raises:
      TypeError: if an argument has another type.
      RobustOverSecureSumError: if `inner_rule` is an aggregation that shows the server no single values.
      ValueError: if a number is out of its range.

    References:
      Karimireddy, He, Jaggi: Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, ICLR 2022,
      https://arxiv.org/abs/2006.09365, algorithm 1.

    Example:
      >>> import koinon as ko
      >>> factory = ko.aggregators.BucketingFactory(ko.aggregators.CoordinateMedianFactory(), bucket_size=2)
      >>> process = factory.create(ko.types.TensorType("float32"))
      >>> output = process.next(process.initialize(), [1.0, 1.0, 1.0, 1.0, 1.0, -1e30])
      >>> float(output.result), int(output.measurements["buckets"])
      (1.0, 3)
    """

    needs_each_value = True

    def __init__(self, inner_rule: UnweightedAggregationFactory, bucket_size: int = 2, seed: int = 0) -> None:
        self._inner_rule = _check_rule(inner_rule)
        for name, number in (("bucket_size", bucket_size), ("seed", seed)):
            check_int(number, name)
        if bucket_size < 1:
            raise KoinonValueError("`bucket_size` must be positive.", expected="at least 1", found=bucket_size)
        if seed < 0:
            raise KoinonValueError("`seed` must not be negative.", expected="at least 0", found=seed)
        self._bucket_size, self._seed = bucket_size, seed

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`.

        Raises:
          TypeError: if `value_type` has a leaf that is not a float or not of a known shape, or has no leaf.
        """
        check_rows(value_type, "Bucketing")

        def combine(key: Any, values: Sequence) -> tuple[Any, Any, Any]:
            this_round, following = jax.random.split(key)
            rows, excluded = rows_of(value_type, values)
            buckets = _means_of_buckets(rows, self._bucket_size, this_round)
            result, measurements = self._inner_rule.combine(buckets)
            measurements = OrderedDict(**measurements, buckets=buckets.count, non_finite_clients=excluded)
            return following, to_value(value_type, result), measurements

        @federated_computation
        def initialize_fn() -> Any:
            return federated_eval(lambda: jax.random.key(self._seed), SERVER)

        @federated_computation(at_server(_KEY), at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            arguments = federated_zip((state, federated_collect(value)))
            return MeasuredProcessOutput(*federated_map(combine, arguments))

        return AggregationProcess(initialize_fn, next_fn)


def _check_rule(rule: object) -> RobustRule:
    if isinstance(rule, RobustRule):
        return rule
    if isinstance(rule, UnweightedAggregationFactory) and not rule.needs_each_value:
        raise RobustOverSecureSumError(
            "Bucketing throws values of clients together that the server must see, and this aggregation shows it only "
            "what they add up to.",
            expected="a robust rule that looks at the value of each client",
            found=named(rule),
            hint="`NormBoundedMeanFactory` and `CenteredClippingFactory` bound the influence of a client over any sum",
        )
    raise KoinonTypeError(
        "Bucketing needs a robust rule, unweighted and with nothing around it.",
        expected="such as CoordinateMedianFactory, TrimmedMeanFactory, UnweightedGeometricMedianFactory or KrumFactory",
        found=named(rule),
        hint="wrap the bucketing, not the rule: `clipping_factory(norm, BucketingFactory(rule))`",
    )


def _means_of_buckets(rows: Rows, size: int, key: jax.Array) -> Rows:
    """The means of buckets of so many rows each, as rows."""
    positions = jnp.arange(rows.order.shape[0], dtype=jnp.int32)
    # What a position draws does not depend on how many there are.
    drawn = jax.vmap(lambda position: jax.random.bits(jax.random.fold_in(key, position), dtype=jnp.uint32))(positions)
    *_, shuffled = jax.lax.sort((positions >= rows.count, drawn, positions), num_keys=2, is_stable=True)
    count = (rows.count + size - 1) // size

    def add(i: Any, means: jax.Array) -> jax.Array:
        bucket = i // size
        members = jnp.minimum(size, rows.count - bucket * size).astype(means.dtype)
        return means.at[bucket].add(rows[shuffled[i]] / members)

    means = jax.lax.fori_loop(0, rows.count, add, jnp.zeros_like(rows.matrix))
    return Rows(means, positions, count)
