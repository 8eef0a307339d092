"""A client's dataset inside a `jax_computation`: lazily indexed, and free of padding.

A `Sequence` is a view: every method changes how indices are computed and copies nothing. At the bottom of every view
is a `PackedView`, an offset and a length into flat buffers that hold the examples of many clients back to back.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError, TracingError
from koinon.computation import _sequence_primitives as primitives
from koinon.computation._permutation import permute
from koinon.types import SequenceType, StructType, Type, from_container, infer_type, to_container


class Batch(NamedTuple):
    """Consecutive examples of a sequence, stacked.

    Attributes:
      examples: an example whose leaves have a leading dimension, the size of the batch.
      mask: bool `[size]`, False where a partial last batch has no example; those rows repeat the first example of the
        batch, so that arithmetic on them meets no value that the client does not have.
    """

    examples: Any
    mask: Any


class View(abc.ABC):
    """How the elements of a sequence are found: three ways to read them, and how many there are."""

    length: Any

    @property
    @abc.abstractmethod
    def capacity(self) -> Any:
        """A bound of the length that is known from shapes alone."""

    @abc.abstractmethod
    def at(self, index: Any) -> Any:
        """The element at a scalar index."""

    @abc.abstractmethod
    def gather(self, indices: Any) -> Any:
        """The elements at a vector of indices, stacked."""

    def run(self, start: Any, size: int) -> Any:
        """The `size` elements from `start` on, stacked; those past the end are arbitrary."""
        return self.gather(start + jnp.arange(size, dtype=jnp.int32))


class PackedView(View):
    """A stretch of rows of flat buffers.

    Args:
      element_type: the type of an element.
      buffers: one array for each leaf of an element, with the rows of this sequence and maybe of others.
      offset: the first row.
      length: the number of rows.
      padded: whether the engine has left room after the last row for the largest read of the program.
    """

    def __init__(
        self, element_type: Type, buffers: tuple[Any, ...], offset: Any, length: Any, *, padded: bool = False
    ) -> None:
        self.element_type = element_type
        self.buffers = buffers
        self.offset = offset
        self.length = length
        self.padded = padded

    @property
    def capacity(self) -> Any:
        return self.buffers[0].shape[0] if self.buffers else self.length

    def at(self, index: Any) -> Any:
        rows = [leaf[0] for leaf in primitives.read_run(self.buffers, self.offset + index, 1)]
        return _with_containers(self.element_type, iter(rows))

    def run(self, start: Any, size: int) -> Any:
        return _with_containers(
            self.element_type, iter(primitives.read_run(self.buffers, self.offset + start, size))
        )

    def gather(self, indices: Any) -> Any:
        last = jnp.maximum(self.length - 1, 0)
        rows = self.offset + jnp.clip(indices, 0, last)
        return _with_containers(self.element_type, iter(primitives.read_rows(self.buffers, rows)))


class MappedView(View):
    """The elements of another view, each passed through a function."""

    def __init__(self, parent: View, fn: Callable[[Any], Any]) -> None:
        self.parent = parent
        self.fn = fn
        self.length = parent.length

    @property
    def capacity(self) -> Any:
        return self.parent.capacity

    def at(self, index: Any) -> Any:
        return self.fn(self.parent.at(index))

    def run(self, start: Any, size: int) -> Any:
        return jax.vmap(self.fn)(self.parent.run(start, size))

    def gather(self, indices: Any) -> Any:
        return jax.vmap(self.fn)(self.parent.gather(indices))


class BatchedView(View):
    """The elements of another view in batches, the last one masked where it is partial."""

    def __init__(self, parent: View, size: int, *, drop_remainder: bool) -> None:
        self.parent = parent
        self.size = size
        self.drop_remainder = drop_remainder
        self.length = parent.length // size if drop_remainder else (parent.length + size - 1) // size

    @property
    def capacity(self) -> Any:
        return (self.parent.capacity + self.size - 1) // self.size

    def at(self, index: Any) -> Any:
        start = index * self.size
        examples = self.parent.run(start, self.size)
        if self.drop_remainder:
            return examples
        mask = start + jnp.arange(self.size, dtype=jnp.int32) < self.parent.length
        return Batch(jax.tree.map(lambda leaf: _repeat_first_where_masked(leaf, mask), examples), mask)

    def gather(self, indices: Any) -> Any:
        return jax.vmap(self.at)(indices)


class ReindexedView(View):
    """The elements of another view under other indices."""

    def __init__(self, parent: View, length: Any, capacity: Any, index: Callable[[Any], Any]) -> None:
        self.parent = parent
        self.length = length
        self._capacity = capacity
        self.index = index

    @property
    def capacity(self) -> Any:
        return self._capacity

    def at(self, index: Any) -> Any:
        return self.parent.at(self.index(index))

    def gather(self, indices: Any) -> Any:
        return self.parent.gather(self.index(indices))


class TakenView(View):
    """The first elements of another view."""

    def __init__(self, parent: View, count: Any) -> None:
        self.parent = parent
        self.length = jnp.minimum(parent.length, jnp.asarray(count, jnp.int32))

    @property
    def capacity(self) -> Any:
        return self.parent.capacity

    def at(self, index: Any) -> Any:
        return self.parent.at(index)

    def gather(self, indices: Any) -> Any:
        return self.parent.gather(indices)

    def run(self, start: Any, size: int) -> Any:
        return self.parent.run(start, size)


class VariantsView(View):
    """Several variants of a view, one after the other, all of one length."""

    def __init__(self, count: int, variant: Callable[[Any], View]) -> None:
        self.count = count
        self.variant = variant
        first = variant(jnp.int32(0))
        self._variant_length = first.length
        self._variant_capacity = first.capacity
        self.length = first.length * count

    @property
    def capacity(self) -> Any:
        return self._variant_capacity * self.count

    def at(self, index: Any) -> Any:
        divisor = jnp.maximum(self._variant_length, 1)
        return self.variant(index // divisor).at(index % divisor)

    def gather(self, indices: Any) -> Any:
        return jax.vmap(self.at)(indices)


class Sequence:
    """A client's data of type `D*`, as a `jax_computation` receives it.

    The methods return new sequences and cost nothing until elements are read, by `reduce` or `scan`; each is traceable
    by JAX, whatever the (traced) length.

    >>> import jax.numpy as jnp, koinon as ko
    >>> @ko.jax_computation(ko.types.SequenceType(jnp.float32))
    ... def sum_of_squares(numbers):
    ...     return numbers.map(lambda x: x * x).reduce(0.0, lambda total, x: total + x)
    >>> float(sum_of_squares([1.0, 2.0, 3.0]))
    14.0
    """

    __slots__ = ("_view",)

    def __init__(self, view: View) -> None:
        self._view = view

    @property
    def length(self) -> Any:
        """The number of elements, an int32 scalar."""
        return self._view.length

    @property
    def element_type(self) -> Type:
        """The type of one element."""
        if isinstance(self._view, PackedView):
            return self._view.element_type
        return infer_type(jax.eval_shape(lambda: self._view.at(jnp.int32(0))))

    @property
    def type_signature(self) -> SequenceType:
        """The type of the sequence."""
        return SequenceType(self.element_type)

    def map(self, fn: Callable[[Any], Any]) -> Sequence:
        """The sequence of `fn(element)`; `fn` is traced by JAX."""
        return Sequence(MappedView(self._view, fn))

    def batch(self, size: int, *, drop_remainder: bool = False) -> Sequence:
        """The sequence of batches of `size` consecutive elements.

        Args:
          size: the number of elements of a batch.
          drop_remainder: whether a partial last batch is left out; then the elements are the stacked examples alone,
            else they are `Batch(examples, mask)`.
        """
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise KoinonValueError("The size of a batch must be a positive int.", found=repr(size))
        return Sequence(BatchedView(self._view, size, drop_remainder=drop_remainder))

    def shuffle(self, key: Any) -> Sequence:
        """The elements in a random order, a permutation of indices that the key determines."""
        view = self._view
        permutation = permute(key, view.length)
        return Sequence(ReindexedView(view, view.length, view.capacity, permutation))

    def repeat(self, count: int, fn: Callable[[Any, Sequence], Sequence] | None = None) -> Sequence:
        """The sequence `count` times over, or `count` variants of it one after the other.

        Args:
          count: how many times.
          fn: called as `fn(epoch, sequence)` with a traced int32; returns the variant of this epoch. All variants must
            have the same length. So `data.repeat(3, lambda e, s: s.shuffle(jax.random.fold_in(key, e)).batch(20))` is
            three epochs of batches, each in its own order and each ending in its own partial batch.
        """
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise KoinonValueError("A sequence is repeated a non-negative int number of times.", found=repr(count))
        view = self._view
        if fn is not None:
            return Sequence(VariantsView(count, lambda epoch: fn(epoch, self)._view))
        divisor = jnp.maximum(view.length, 1)
        return Sequence(
            ReindexedView(view, view.length * count, view.capacity * count, lambda index: index % divisor)
        )

    def take(self, count: Any) -> Sequence:
        """The first `count` elements, or all where there are fewer."""
        return Sequence(TakenView(self._view, count))

    def reduce(self, init: Any, fn: Callable[[Any, Any], Any]) -> Any:
        """The fold `fn(... fn(fn(init, e0), e1) ..., e_last)`.

        Args:
          init: the value for an empty sequence; a pytree of arrays.
          fn: called as `fn(carry, element)`, traced once; returns a carry of the same structure, shapes and dtypes.

        Raises:
          KoinonTypeError: where `fn` returns a carry of another structure, shape or dtype.
        """
        view = self._view
        return primitives.reduce(view.length, init, lambda index, carry: fn(carry, view.at(index)))

    def scan(self, init: Any, fn: Callable[[Any, Any], tuple[Any, Any]]) -> tuple[Any, Sequence]:
        """Like `reduce`, with `fn` returning `(carry, output)`: the last carry and the sequence of the outputs."""
        view = self._view
        shapes = jax.eval_shape(lambda carry: fn(carry, view.at(jnp.int32(0)))[1], init)
        outputs = jax.tree.map(lambda leaf: jnp.zeros((view.capacity, *leaf.shape), leaf.dtype), shapes)

        def step(index: Any, carry: Any) -> Any:
            state, stacked = carry
            state, output = fn(state, view.at(index))
            stacked = jax.tree.map(
                lambda rows, row: jax.lax.dynamic_update_index_in_dim(rows, row, index, 0), stacked, output
            )
            return state, stacked

        carry, outputs = primitives.reduce(view.length, (init, outputs), step)
        element_type = infer_type(shapes)
        leaves = tuple(leaf for leaf in _leaves_in_type_order(element_type, outputs))
        return carry, Sequence(PackedView(element_type, leaves, jnp.int32(0), jnp.asarray(view.length, jnp.int32)))

    def packed(self) -> PackedView:
        """The elements as rows of buffers: the buffers themselves, or, of a derived view, all its elements computed."""
        view = self._view
        if isinstance(view, PackedView):
            return view
        stacked = view.gather(jnp.arange(view.capacity, dtype=jnp.int32))
        element_type = self.element_type
        return PackedView(
            element_type,
            tuple(_leaves_in_type_order(element_type, stacked)),
            jnp.int32(0),
            jnp.asarray(view.length, jnp.int32),
        )

    def __iter__(self) -> Any:
        raise TracingError(
            "A sequence has no Python loop over its elements, since its length is known only when it runs.",
            hint="use sequence.reduce(init, fn), or sequence.scan, sequence.map",
        )

    def __len__(self) -> int:
        raise TracingError(
            "The length of a sequence is a traced value, not a Python int.", hint="use sequence.length"
        )

    def __bool__(self) -> bool:
        raise TracingError("A sequence has no truth value.", hint="use sequence.length > 0")

    def __repr__(self) -> str:
        return f"Sequence({self.type_signature})"


def _flatten_packed(view: PackedView) -> tuple[tuple[Any, ...], tuple[Type, bool]]:
    return (view.buffers, view.offset, view.length), (view.element_type, view.padded)


jax.tree_util.register_pytree_node(
    PackedView, _flatten_packed, lambda static, children: PackedView(static[0], *children, padded=static[1])
)
jax.tree_util.register_pytree_node(
    Sequence, lambda sequence: ((sequence.packed(),), None), lambda _, children: Sequence(*children)
)


def _repeat_first_where_masked(leaf: Any, mask: Any) -> Any:
    return jnp.where(mask.reshape(mask.shape + (1,) * (leaf.ndim - 1)), leaf, leaf[:1])


def _with_containers(type_: Type, leaves: Any) -> Any:
    if isinstance(type_, StructType):
        return to_container(type_, [_with_containers(field, leaves) for _, field in type_.items()])
    return next(leaves)


def _leaves_in_type_order(type_: Type, value: Any) -> Iterator[Any]:
    if isinstance(type_, StructType):
        for (_, field), child in zip(type_.items(), from_container(type_, value), strict=True):
            yield from _leaves_in_type_order(field, child)
    else:
        yield value
