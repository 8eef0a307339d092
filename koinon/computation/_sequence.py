"""A client's dataset inside a `jax_computation`: lazily indexed, and free of padding.

A `Sequence` is a view: every method changes how indices are computed and copies nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError, TracingError
from koinon.computation import _sequence_primitives as primitives
from koinon.computation._permutation import permute
from koinon.computation._views import (
    BatchedView,
    MappedView,
    PackedView,
    ReindexedView,
    TakenView,
    VariantsView,
    View,
    leaves_in_type_order,
)
from koinon.types import SequenceType, Type, infer_type


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
        found: list[Type] = []
        jax.eval_shape(lambda: found.append(infer_type(self._view.at(jnp.int32(0)))))
        return found[0]

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
        return Sequence(ReindexedView(self._view, permute(key, self._view.length)))

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
            variants = VariantsView(max(count, 1), lambda epoch: fn(epoch, self)._view)
            return Sequence(variants if count else TakenView(variants, 0))
        if not count:
            return Sequence(TakenView(view, 0))
        divisor = jnp.maximum(view.length, 1)
        return Sequence(ReindexedView(view, lambda index: index % divisor, count))

    def take(self, count: Any) -> Sequence:
        """The first `count` elements, an int that may be traced, or all where there are fewer."""
        if not jnp.issubdtype(jnp.result_type(count), jnp.integer):
            raise KoinonTypeError("The number of elements to be taken must be an integer.", found=repr(count))
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
        output_type: list[Type] = []

        def output_leaves(output: Any) -> list[Any]:
            output_type[:] = [infer_type(output)]
            return list(leaves_in_type_order(output_type[0], output))

        shapes = jax.eval_shape(lambda carry: output_leaves(fn(carry, view.at(jnp.int32(0)))[1]), init)
        buffers = [jnp.empty((view.capacity, *leaf.shape), leaf.dtype) for leaf in shapes]

        def step(index: Any, carry: Any) -> Any:
            state, stacked = carry
            state, output = fn(state, view.at(index))
            rows = [jnp.asarray(row) for row in output_leaves(output)]
            put = jax.lax.dynamic_update_index_in_dim
            return state, [put(buffer, row, index, 0) for buffer, row in zip(stacked, rows, strict=True)]

        carry, buffers = primitives.reduce(view.length, (init, buffers), step)
        length = jnp.asarray(view.length, jnp.int32)
        return carry, Sequence(PackedView(output_type[0], tuple(buffers), jnp.int32(0), length))

    def packed(self) -> PackedView:
        """The elements as rows of buffers: the buffers themselves, or, of a derived view, all its elements computed."""
        view = self._view
        if isinstance(view, PackedView):
            return view
        stacked = view.gather(jnp.arange(view.capacity, dtype=jnp.int32))
        element_type = self.element_type
        return PackedView(
            element_type,
            tuple(leaves_in_type_order(element_type, stacked)),
            jnp.int32(0),
            jnp.asarray(view.length, jnp.int32),
        )

    def __iter__(self) -> Any:
        raise TracingError(
            "A sequence has no Python loop over its elements, since its length is known only when it runs.",
            hint="use sequence.reduce(init, fn), or sequence.scan, sequence.map",
        )

    def __len__(self) -> int:
        raise TracingError("The length of a sequence is a traced value, not a Python int.", hint="use sequence.length")

    def __bool__(self) -> bool:
        raise TracingError("A sequence has no truth value.", hint="use sequence.length > 0")

    def __repr__(self) -> str:
        return f"Sequence({self.type_signature})"


jax.tree_util.register_pytree_node(
    Sequence, lambda sequence: ((sequence.packed(),), None), lambda _, children: Sequence(*children)
)
