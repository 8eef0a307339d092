"""Count sketches: linear summaries of a fixed size, which the server sums and reads."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, final

import jax
import jax.numpy as jnp

from koinon.aggregators._compressor import check_count, key_type, leaf_bytes
from koinon.aggregators._encoded_sum import EncodedSumFactory
from koinon.aggregators._factory import (
    UnweightedAggregationFactory,
    ValueType,
    check_floats,
    check_int,
    check_unweighted_factory,
)
from koinon.aggregators._keyed import keyed_process
from koinon.computation import (
    federated_value,
    jax_computation,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._specs import specs_of
from koinon.types import SERVER, FederatedType, StructType

_BYTES = "bytes_per_client"


@final
class CountSketchFactory(UnweightedAggregationFactory):
    """Sends a table of sums in place of each large leaf, and estimates the leaf from the aggregated table.

        table[r, bucket_r(i)] += sign_r(i) * x[i]               # at the client, for each row r and element i
        estimate of x[i] = median over r of sign_r(i) * table[r, bucket_r(i)]           # at the server

    The table is linear in the leaf, so the sum of the clients' tables is the table of the sum, and the estimates are
    unbiased: the signs are independent, so each row's error is as often positive as negative, and so is that of the
    median. Few large elements among many small ones are found almost exactly; an element is off by about
    `||x|| / sqrt(columns)`, and by many times that with a probability that falls exponentially with the rows.

    Buckets and signs are the same for all clients, new in each round, and drawn from a key in the state.

    Type: `(<S@SERVER,{V}@CLIENTS> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    The state is the pair of the inner state and the key. The measurements are `<count_sketch,bytes_per_client>`: those
    of the inner aggregation, and the bytes that a client sends, which are those that the inner aggregation measures,
    or else four for each number of a table. A value that is not finite has a table that is not; what happens to
    it, the inner aggregation decides.

    Args:
      columns: the number of buckets of a row.
      rows: the number of rows.
      inner_agg_factory: aggregates the tables, float32 `[rows, columns]`; if None, `EncodedSumFactory()`, which sums
        them as they are, and leaves out and counts those that are not finite. The estimates are as they should be for
        a linear aggregation.
      seed: where the randomness of buckets and signs begins.

    Raises:
      TypeError: if the factory is not an `UnweightedAggregationFactory`, or the seed no int.
      ValueError: if a number is not a positive int.

    References:
      Charikar, Chen, Farach-Colton: Finding Frequent Items in Data Streams, 2002, section 3.
      https://doi.org/10.1007/3-540-45465-9_59
      Rothchild et al., FetchSGD: Communication-Efficient Federated Learning with Sketching, ICML 2020.
      https://arxiv.org/abs/2007.07682

    Example:
      >>> import numpy as np, koinon as ko
      >>> process = ko.aggregators.CountSketchFactory(columns=20).create(ko.types.parse("float32[1000]"))
      >>> value = np.zeros(1000, np.float32)
      >>> value[7] = 3.0
      >>> output = process.next(process.initialize(), [value, value])
      >>> float(output.result[7]), float(output.measurements["bytes_per_client"])
      (6.0, 400.0)
    """

    def __init__(
        self,
        columns: int,
        rows: int = 5,
        inner_agg_factory: UnweightedAggregationFactory | None = None,
        seed: int = 0,
    ) -> None:
        check_count(columns, "columns", 1)
        check_count(rows, "rows", 1)
        self._inner = EncodedSumFactory() if inner_agg_factory is None else inner_agg_factory
        check_unweighted_factory(self._inner, "inner_agg_factory")
        self.needs_each_value = self._inner.needs_each_value
        check_int(seed, "seed")
        self._columns = columns
        self._rows = rows
        self._seed = seed

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`.

        Raises:
          TypeError: if `value_type` has a leaf that is not a float or not of a known shape.
        """
        check_floats(value_type, "A sketch")
        specs = specs_of(value_type)
        rows, columns = self._rows, self._columns

        def hashes(key: jax.Array, index: int, size: int) -> tuple[jax.Array, jax.Array]:
            buckets_key, signs_key = jax.random.split(jax.random.fold_in(key, index))
            buckets = jax.random.randint(buckets_key, (rows, size), 0, columns)
            return buckets, jax.random.rademacher(signs_key, (rows, size), jnp.float32)

        def is_sketched(spec: Any) -> bool:
            return math.prod(spec.shape) > rows * columns

        @jax_computation(value_type, key_type())
        def at_client(value: Any, key: Any) -> Any:
            leaves, structure = jax.tree.flatten(value)
            sent = [
                sketch(leaf.ravel().astype(jnp.float32), *hashes(key, i, leaf.size), columns)
                if is_sketched(leaf)
                else leaf
                for i, leaf in enumerate(leaves)
            ]
            return jax.tree.unflatten(structure, sent)

        def at_server(value: Any, key: Any) -> Any:
            leaves, structure = jax.tree.flatten(value)
            read = [
                estimate(leaf, *hashes(key, i, math.prod(spec.shape))).reshape(spec.shape).astype(spec.dtype)
                if is_sketched(spec)
                else leaf
                for i, (leaf, spec) in enumerate(zip(leaves, jax.tree.leaves(specs), strict=True))
            ]
            return jax.tree.unflatten(structure, read)

        sent_type = at_client.type_signature.result
        inner = self._inner.create(sent_type)
        num_bytes = sum(leaf_bytes(spec) for spec in jax.tree.leaves(specs_of(sent_type)))

        def measurements(measured: Any) -> Any:
            sent = _find_bytes(measured)
            sent = federated_value(jnp.float32(num_bytes), SERVER) if sent is None else sent
            return OrderedDict([("count_sketch", measured), (_BYTES, sent)])

        return keyed_process(value_type, at_client, inner, at_server, measurements, self._seed)


def sketch(vector: jax.Array, buckets: jax.Array, signs: jax.Array, columns: int) -> jax.Array:
    """The table of a vector, float32 `[rows, columns]`.

    Args:
      vector: float32 `[size]`.
      buckets: int32 `[rows, size]`, below `columns`.
      signs: float32 `[rows, size]`, each 1 or -1.
      columns: the number of buckets of a row.
    """
    rows = jnp.arange(buckets.shape[0])[:, None]
    return jnp.zeros((buckets.shape[0], columns), jnp.float32).at[rows, buckets].add(signs * vector)


def estimate(table: jax.Array, buckets: jax.Array, signs: jax.Array) -> jax.Array:
    """The vector that a table is most likely that of, float32 `[size]`: medians over the rows."""
    return jnp.median(jnp.take_along_axis(table, buckets, axis=1) * signs, axis=0)


def _find_bytes(measurements: Any) -> Any:
    """The outermost measurement of bytes among nested ones; None if there is none."""
    type_ = measurements.type_signature
    member = type_.member if isinstance(type_, FederatedType) else type_
    if not isinstance(member, StructType):
        return None
    names = member.fields()
    if _BYTES in names:
        return measurements[_BYTES]
    found = (_find_bytes(measurements[name]) for name in names)
    return next((value for value in found if value is not None), None)
