"""Rules that look at the value of every client: the values as rows at the server, and what such rules do with them.

A client whose value is not finite is no row. The others are in an order that their values alone determine, and every
reduction over rows goes through them one by one in that order: so the bits of a result depend neither on the order of
the cohort nor on the clients that were left out.
"""

from __future__ import annotations

import abc
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import KoinonTypeError
from koinon._jax import greatest, raveled, unraveled
from koinon.aggregators._factory import UnweightedAggregationFactory, ValueType, check_floats
from koinon.aggregators._norms import all_finite
from koinon.computation import (
    Sequence,
    federated_collect,
    federated_computation,
    federated_map,
    federated_value,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import (
    SERVER,
    StructType,
    TensorType,
    Type,
    at_clients,
    at_server,
    from_container,
    structure_from_tensor_type_tree,
    to_type,
)

# Columns that are sorted at a time: few enough for the rows of a large cohort to stay in the cache of a core.
_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Rows:
    """The clients' values as rows.

    Attributes:
      matrix: float `[capacity, elements]`, one row for each client and more that are arbitrary.
      order: int32 `[capacity]`, the numbers of the rows that count, followed by the others.
      count: int32, how many rows count.
      weights: float `[capacity]`, of each row of the matrix; None where all count the same.
    """

    matrix: jax.Array
    order: jax.Array
    count: jax.Array
    weights: jax.Array | None = None

    def __getitem__(self, position: Any) -> jax.Array:
        """The row at a position of the order."""
        return self.matrix[self.order[position]]

    def weight(self, position: Any) -> jax.Array:
        """The weight of the row at a position of the order."""
        return jnp.ones((), self.matrix.dtype) if self.weights is None else self.weights[self.order[position]]

    def map(self, fn: Callable[[jax.Array, jax.Array], jax.Array], beyond: float) -> jax.Array:
        """`fn(position, row)`, a scalar, for each row that counts, `[capacity]`; `beyond` after those."""

        def step(i: Any, out: jax.Array) -> jax.Array:
            return out.at[i].set(fn(i, self[i]))

        initial = jnp.full(self.order.shape, beyond, self.matrix.dtype)
        return jax.lax.fori_loop(0, self.count, step, initial)

    def sum(self, factors: jax.Array) -> jax.Array:
        """The sum of the rows, in their order, each times its factor; a row of the factor 0 adds nothing."""

        def step(i: Any, total: jax.Array) -> jax.Array:
            return total + jnp.where(factors[i] == 0, 0, factors[i] * self[i])

        return jax.lax.fori_loop(0, self.count, step, jnp.zeros(self.matrix.shape[1:], self.matrix.dtype))

    def on_sorted_columns(self, fn: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """`fn(block)`, one number for each column, of the columns sorted by themselves, a block of them at a time.

        What is in a sorted block after the rows that count is infinite.
        """
        elements = self.matrix.shape[1]
        width = min(_BLOCK, elements)
        blocks = -(-elements // width)
        numbers = jnp.arange(self.order.shape[0], dtype=jnp.int32)
        is_present = jnp.zeros(self.order.shape, bool).at[self.order].set(numbers < self.count)
        # Rows that do not count, and are before one that does, are sorted along.
        extent = jnp.max(jnp.where(is_present, numbers + 1, 0))

        def block(number: Any) -> jax.Array:
            # The last block begins early enough to be a whole one.
            columns = jax.lax.dynamic_slice_in_dim(self.matrix, _start(number), width, axis=1)
            return fn(_sort_rows(jnp.where(is_present[:, None], columns, jnp.inf), extent))

        def _start(number: Any) -> Any:
            return jnp.minimum(number * width, elements - width)

        def step(number: Any, out: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(out, block(number), _start(number), 0)

        return jax.lax.fori_loop(0, blocks, step, jnp.zeros(elements, self.matrix.dtype))

    def coordinate_median(self) -> jax.Array:
        """The median of each column, of an even number of rows the mean of the two in the middle; zero of none."""
        lower, upper = jnp.maximum(self.count - 1, 0) // 2, self.count // 2
        median = self.on_sorted_columns(lambda rows: _midpoint(rows[lower], rows[upper]))
        return jnp.where(self.count > 0, median, 0)


def _midpoint(low: jax.Array, high: jax.Array) -> jax.Array:
    """Half of the sum, which does not overflow: that of numbers of one sign might, their difference does not."""
    return jnp.where((low < 0) == (high < 0), low + 0.5 * (high - low), 0.5 * (low + high))


def _sort_rows(rows: jax.Array, count: jax.Array) -> jax.Array:
    """The first `count` rows, each column sorted by itself.

    Merge exchange, Knuth, The Art of Computer Programming, volume 3, algorithm 5.2.2M, all exchanges of one distance at
    once: XLA's own sort takes ten times as long along columns on a CPU.
    """
    size = rows.shape[0]
    index = jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0)
    top = jnp.int32(1) << (31 - jax.lax.clz(jnp.maximum(count - 1, 1)))

    def exchange(state: Any) -> Any:
        p, q, r, d, rows = state
        is_lower = ((index & p) == r) & (index + d < count)
        is_upper = (index >= d) & (((index - d) & p) == r) & (index < count)
        above = jax.lax.dynamic_slice_in_dim(jnp.pad(rows, ((0, size), (0, 0))), d, size, 0)
        below = jax.lax.dynamic_slice_in_dim(jnp.pad(rows, ((size, 0), (0, 0))), size - d, size, 0)
        upper = jnp.where(is_upper, jnp.maximum(rows, below), rows)
        rows = jnp.where(is_lower, jnp.minimum(rows, above), upper)
        is_last = q == p
        return (
            jnp.where(is_last, p // 2, p),
            jnp.where(is_last, top, q // 2),
            jnp.where(is_last, 0, p),
            jnp.where(is_last, p // 2, q - p),
            rows,
        )

    return jax.lax.while_loop(lambda state: state[0] > 0, exchange, (top, top, jnp.int32(0), top, rows))[-1]


def norm(vector: jax.Array) -> jax.Array:
    """The L2 norm of a vector whose squares may overflow or vanish."""
    largest = greatest(jnp.abs(vector))
    # A power of two, so that scaling is exact; half of float32's exponents on either side keep its inverse in range.
    exponent = jnp.clip(jnp.frexp(jnp.where(jnp.isfinite(largest), largest, 1))[1], -100, 100)
    scale = jnp.exp2(exponent.astype(vector.dtype))
    scaled = vector / scale
    return scale * jnp.sqrt(jnp.vdot(scaled, scaled, precision=jax.lax.Precision.HIGHEST))


def distance(left: jax.Array, right: jax.Array) -> jax.Array:
    """The L2 distance of two vectors, of their difference, so that what they have in common costs no precision."""
    return norm(left - right)


class RobustRule(UnweightedAggregationFactory):
    """Makes aggregations of all clients' values at once, at the server, by `combine`."""

    needs_each_value = True

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What messages call the rule."""

    @abc.abstractmethod
    def combine(self, rows: Rows) -> tuple[jax.Array, dict[str, Any]]:
        """The aggregate of the rows, and measurements by name; traced by JAX.

        Args:
          rows: the rows; there may be none that counts.
        """

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`.

        Raises:
          TypeError: if `value_type` has a leaf that is not a float or not of a known shape, or has no leaf.
        """
        check_rows(value_type, self.name)

        def combine(values: Sequence) -> tuple[Any, Any]:
            rows, excluded = rows_of(value_type, values)
            result, measurements = self.combine(rows)
            return to_value(value_type, result), OrderedDict(**measurements, non_finite_clients=excluded)

        @federated_computation
        def initialize_fn() -> Any:
            return federated_value((), SERVER)

        @federated_computation(at_server(to_type(())), at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            result, measurements = federated_map(combine, federated_collect(value))
            return MeasuredProcessOutput(state, result, measurements)

        return AggregationProcess(initialize_fn, next_fn)


def check_rows(value_type: ValueType, what: str) -> None:
    """Raises a TypeError unless values of a type are vectors of floats of a known length."""
    check_floats(value_type, what)
    sizes = [leaf.num_elements for leaf in _leaf_types(value_type)]
    if not sizes or None in sizes or sum(size or 0 for size in sizes) == 0:
        raise KoinonTypeError(
            f"{what} needs values of known shapes, with at least one element.",
            expected="float tensors without unknown dimensions",
            found=value_type,
        )


def rows_of(value_type: ValueType, values: Sequence, weighted: bool = False) -> tuple[Rows, jax.Array]:
    """The values that the server has collected as rows, and the number of those that are not finite.

    Args:
      value_type: the type of a value.
      values: the values, or pairs of a value and its weight; who has no positive weight is no row.
      weighted: whether they are pairs.
    """

    def row(carry: jax.Array, element: Any) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        value, weight = element if weighted else (element, jnp.float32(1.0))
        vector = to_vector(value_type, value)
        weight = jnp.asarray(weight).astype(vector.dtype)
        is_finite = all_finite((vector, weight))
        place = _hash(vector) + _hash(weight.reshape(1))
        return carry + ~is_finite, (vector, weight, is_finite & (weight > 0), place)

    excluded, collected = values.scan(jnp.int32(0), row)
    packed = collected.packed()
    matrix, weights, is_present, places = packed.buffers
    numbers = jnp.arange(places.shape[0], dtype=jnp.int32)
    is_present = is_present & (numbers < packed.length)
    *_, order = jax.lax.sort((~is_present, places, numbers), num_keys=2, is_stable=True)
    rows = Rows(matrix, order, jnp.sum(is_present, dtype=jnp.int32), weights if weighted else None)
    return rows, excluded


def _hash(vector: jax.Array) -> jax.Array:
    """A number that the bits of a vector determine, and hardly two vectors share; exact in any order of addition."""
    bits = jax.lax.bitcast_convert_type(vector, jnp.uint32).reshape(-1)
    factors = (2 * jax.lax.iota(jnp.uint32, bits.size) + 1) * np.uint32(0x9E3779B1)
    mixed = (bits ^ (bits >> 15)) * factors
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)


def to_vector(value_type: ValueType, value: Any) -> jax.Array:
    """All elements of a value, in the widest dtype of its leaves, and at least in float32."""
    leaves = list(_leaves(value_type, value))
    dtype = jnp.result_type(jnp.float32, *leaves)
    return raveled(leaf.astype(dtype) for leaf in leaves)


def to_value(value_type: ValueType, vector: jax.Array) -> Any:
    """The value that has these elements."""
    types = list(_leaf_types(value_type))
    shapes = [tuple(dim or 0 for dim in type_.shape or ()) for type_ in types]
    arrays = unraveled(vector, shapes)
    iterator = iter([array.astype(type_.dtype) for array, type_ in zip(arrays, types, strict=True)])
    return structure_from_tensor_type_tree(lambda _: next(iterator), value_type)


def zeros(value_type: ValueType) -> Any:
    """The value whose elements are all zero."""
    return structure_from_tensor_type_tree(lambda type_: jnp.zeros(type_.shape or (), type_.dtype), value_type)


def _leaf_types(type_: Type) -> Iterator[TensorType]:
    if isinstance(type_, StructType):
        for field in type_:
            yield from _leaf_types(field)
    elif isinstance(type_, TensorType):
        yield type_


def _leaves(type_: Type, value: Any) -> Iterator[jax.Array]:
    if isinstance(type_, StructType):
        for (_, field), child in zip(type_.items(), from_container(type_, value), strict=True):
            yield from _leaves(field, child)
    else:
        yield jnp.asarray(value)
