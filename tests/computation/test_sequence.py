"""Tests of sequences, against plain Python lists: under jit and vmap, empty and short ones, and their derivatives."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import koinon as ko
from koinon.computation._sequence import Sequence
from koinon.computation._views import Batch, PackedView
from koinon.errors import KoinonTypeError, KoinonValueError, TracingError, UnboundedLoopError
from koinon.types import SequenceType, StructType, TensorType
from tests.messages import blamed_line

FLOAT = TensorType(np.float32)
ROWS = np.arange(100, 116, dtype=np.float32)
NUMBERS = SequenceType(np.float32)


def view(offset: Any, length: Any) -> Sequence:
    """The numbers from 100 + offset on, in the middle of a buffer with those of others."""
    return Sequence(
        PackedView(FLOAT, (jnp.asarray(ROWS),), jnp.asarray(offset, jnp.int32), jnp.asarray(length, jnp.int32))
    )


def plain(offset: int, length: int) -> list[float]:
    """The same numbers as a list."""
    return ROWS[offset : offset + length].tolist()


# --- chains of methods against lists ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Operation:
    """A method of sequences, and what it does to a list."""

    text: str
    on_sequence: Callable[[Any], Any]
    on_list: Callable[[list[Any]], list[Any]]

    def __repr__(self) -> str:
        return self.text


def _batches(elements: list[Any], size: int) -> list[Any]:
    batches = []
    for start in range(0, len(elements), size):
        chunk = elements[start : start + size]
        padding = size - len(chunk)
        batches.append((chunk + chunk[:1] * padding, [True] * len(chunk) + [False] * padding))
    return batches


def _full_batches(elements: list[Any], size: int) -> list[Any]:
    return [elements[start : start + size] for start in range(0, len(elements) - size + 1, size)]


def _tree_add(x: Any, y: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf + y if leaf.dtype != bool else leaf, x)


def _list_add(x: Any, y: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(_list_add(part, y) for part in x)
    return x if isinstance(x, bool) else x + y


def map_add(n: int) -> Operation:
    """Adds a number to every element."""
    return Operation(f"map(+{n})", lambda s: s.map(lambda x: _tree_add(x, n)), lambda xs: [_list_add(x, n) for x in xs])


def take(n: int) -> Operation:
    """The first elements."""
    return Operation(f"take({n})", lambda s: s.take(n), lambda xs: xs[:n])


def all_but_last() -> Operation:
    """All elements but the last, a traced number of them."""
    return Operation("take(length - 1)", lambda s: s.take(s.length - 1), lambda xs: xs[:-1])


def repeat(n: int) -> Operation:
    """The elements some times over."""
    return Operation(f"repeat({n})", lambda s: s.repeat(n), lambda xs: xs * n)


def epochs(n: int) -> Operation:
    """Variants of the sequence, one after the other."""
    return Operation(
        f"repeat({n}, map(+100 epoch))",
        lambda s: s.repeat(n, lambda epoch, t: t.map(lambda x: _tree_add(x, epoch * 100))),
        lambda xs: [_list_add(x, epoch * 100) for epoch in range(n) for x in xs],
    )


def batch(n: int) -> Operation:
    """Batches with a mask."""
    return Operation(f"batch({n})", lambda s: s.batch(n), lambda xs: _batches(xs, n))


def full_batches(n: int) -> Operation:
    """Full batches alone."""
    drop = lambda s: s.batch(n, drop_remainder=True)  # noqa: E731
    return Operation(f"batch({n}, drop_remainder)", drop, lambda xs: _full_batches(xs, n))


_sizes = st.integers(1, 5)
_anywhere = st.one_of(
    st.integers(-3, 3).map(map_add),
    st.integers(0, 6).map(take),
    st.just(all_but_last()),
    st.integers(0, 3).map(repeat),
    st.integers(0, 3).map(epochs),
)
_pipelines = st.tuples(
    st.lists(_anywhere, max_size=2),
    st.lists(_sizes.map(batch) | _sizes.map(full_batches), max_size=1),
    st.lists(_anywhere, max_size=1),
).map(lambda parts: list(itertools.chain(*parts)))


def _elements(sequence: Sequence) -> tuple[Any, Any, Any, Any]:
    """All elements in three ways: as rows, by a scan, and folded into a checksum; and their number."""
    packed = sequence.packed()
    zero, scanned = sequence.scan(jnp.int32(0), lambda count, x: (count + 1, x))
    checksum = sequence.reduce(
        jnp.float32(0), lambda c, x: c * 0.5 + sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(x))
    )
    return packed, scanned.packed(), (sequence.length, zero), checksum


def _as_lists(packed: PackedView, count: int) -> list[Any]:
    """The elements as nested lists and tuples of Python numbers."""
    start = int(packed.offset)
    leaves = [np.asarray(buffer)[start : start + count].tolist() for buffer in packed.buffers]
    return _nest(packed.element_type, leaves, count)


def _nest(type_: Any, leaves: list[Any], count: int) -> list[Any]:
    if isinstance(type_, StructType):
        fields = [_nest(field, leaves, count) for _, field in type_.items()]
        return [tuple(field[i] for field in fields) for i in range(count)]
    return leaves.pop(0)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(_pipelines)
def test_any_chain_of_methods_does_what_it_does_to_a_list(pipeline: list[Operation]) -> None:
    """Rows, scans and folds of a derived sequence, for clients of none, one, and several examples, under jit."""
    check_against_list(pipeline)


@pytest.mark.soak
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(_pipelines)
def test_many_chains_of_methods_do_what_they_do_to_a_list(pipeline: list[Operation]) -> None:
    """The same for many more."""
    check_against_list(pipeline)


def check_against_list(pipeline: list[Operation]) -> None:
    """Runs a chain of methods on sequences of several lengths, and on lists."""

    @jax.jit
    def run(offset: Any, length: Any) -> Any:
        sequence = view(offset, length)
        for operation in pipeline:
            sequence = operation.on_sequence(sequence)
        return _elements(sequence)

    for offset, length in [(0, 0), (3, 1), (11, 5), (2, 7)]:
        expected = plain(offset, length)
        for operation in pipeline:
            expected = operation.on_list(expected)
        packed, scanned, counts, checksum = run(offset, length)
        assert [int(count) for count in counts] == [len(expected)] * 2
        assert _as_lists(packed, len(expected)) == expected
        assert _as_lists(scanned, len(expected)) == expected
        total = np.float32(0)
        for element in expected:
            total = total * np.float32(0.5) + np.float32(sum(np.ravel(_flat(element)).tolist()))
        np.testing.assert_allclose(checksum, total, rtol=1e-5)


def _flat(element: Any) -> list[float]:
    if isinstance(element, (list, tuple)):
        return [leaf for part in element for leaf in _flat(part)]
    return [float(element)]


def test_clients_of_different_lengths_run_side_by_side_under_vmap() -> None:
    """Under vmap over offsets and lengths each lane is as alone."""

    def run(offset: Any, length: Any) -> Any:
        batches = view(offset, length).repeat(2, lambda e, s: s.map(lambda x: x + 100 * e).batch(3))
        init = jnp.float32(0), jnp.int32(0)
        return batches.reduce(init, lambda c, b: (c[0] * 0.9 + jnp.sum(b.examples * b.mask), c[1] + 1))

    offsets, lengths = jnp.array([0, 3, 11, 2]), jnp.array([0, 1, 5, 7])
    totals, counts = jax.jit(jax.vmap(run))(offsets, lengths)
    assert counts.tolist() == [2 * -(-n // 3) for n in (0, 1, 5, 7)]
    alone = jax.jit(run)
    np.testing.assert_allclose(totals, [alone(o, n)[0] for o, n in zip(offsets, lengths, strict=True)], rtol=1e-6)


def test_several_carries_run_side_by_side_over_one_client() -> None:
    """Under vmap over the carry alone the data are read once; what does not differ stays one value."""
    run = lambda w: view(2, 5).reduce((w, 0), lambda c, x: (c[0] + x, c[1] + 1))  # noqa: E731
    totals, counts = jax.vmap(run, out_axes=(0, None))(jnp.arange(3.0))
    np.testing.assert_allclose(totals, np.arange(3.0) + sum(plain(2, 5)))
    assert int(counts) == 5


# --- shuffle ---------------------------------------------------------------------------------------------------------


@jax.jit
def _shuffled(key: Any, length: Any) -> tuple[Any, Any]:
    shuffled = view(0, length).shuffle(key)
    return shuffled.packed().buffers[0], shuffled.batch(3).packed().buffers[0]


@pytest.mark.parametrize("length", [0, 1, 2, 7, 16])
def test_shuffle_is_a_permutation_that_the_key_determines(length: int) -> None:
    """The same elements, in an order of the key, also in batches."""
    rows = [
        [np.ravel(r)[:length].tolist() for r in _shuffled(jax.random.key(seed), length)] for seed in (0, 0, 1, 2, 3)
    ]
    assert all(sorted(alone) == plain(0, length) for alone, _ in rows)
    assert all(alone == batched for alone, batched in rows)
    assert rows[0] == rows[1]
    assert len({tuple(alone) for alone, _ in rows}) > 1 or length < 3


def test_each_epoch_has_its_own_order() -> None:
    """A shuffle inside `repeat` is drawn anew for each epoch, and each epoch is complete."""
    key = jax.random.key(3)

    @jax.jit
    def run() -> Any:
        return view(0, 8).repeat(3, lambda epoch, s: s.shuffle(jax.random.fold_in(key, epoch))).packed().buffers[0]

    numbers = np.asarray(run())[:24].reshape(3, 8).tolist()
    assert all(sorted(epoch) == plain(0, 8) for epoch in numbers)
    assert len({tuple(epoch) for epoch in numbers}) == 3


# --- elements --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Example:
    """A dataclass that JAX does not know."""

    x: Any
    y: Any


@pytest.mark.parametrize("container", [dict, Example])
def test_examples_have_any_container_through_every_method(container: Any, backend: str) -> None:
    """Also one that JAX does not know, in maps, batches, scans and results."""
    type_ = SequenceType(ko.to_type(container(x=TensorType(np.float32, (2,)), y=np.int32)))

    def get(element: Any, name: str) -> Any:
        return element[name] if container is dict else getattr(element, name)

    @ko.jax_computation(type_)
    def work(data: Any) -> Any:
        doubled = data.map(lambda e: container(x=get(e, "x") * 2, y=get(e, "y")))
        batches = doubled.batch(2)
        _, sums = batches.scan(0, lambda c, b: (c + 1, container(x=get(b.examples, "x").sum(0), y=b.mask.sum())))
        return doubled, batches.map(lambda b: get(b.examples, "y")), sums

    data = [container(x=np.full(2, i, np.float32), y=np.int32(i)) for i in range(3)]
    doubled, ys, sums = work(data)
    assert [type(element) for element in doubled] == [container] * 3
    assert [get(element, "x").tolist() for element in doubled] == [[0, 0], [2, 2], [4, 4]]
    assert [y.tolist() for y in ys] == [[0, 1], [2, 2]]
    assert [(get(s, "x").tolist(), int(get(s, "y"))) for s in sums] == [([2, 2], 2), ([8, 8], 1)]


def test_keys_are_elements(backend: str) -> None:
    """A sequence of PRNG keys is mapped, batched and returned."""
    keys = jax.random.split(jax.random.key(0), 3)
    comp = ko.jax_computation(
        lambda s: (s, s.batch(2).map(lambda b: jax.vmap(jax.random.uniform)(b.examples))),
        SequenceType(TensorType(keys.dtype)),
    )
    same, numbers = comp(list(keys))
    assert [jax.random.key_data(key).tolist() for key in same] == jax.random.key_data(keys).tolist()
    expected = [float(jax.random.uniform(key)) for key in keys]
    assert [number.tolist() for number in numbers] == [expected[:2], [expected[2]] * 2]


def test_elements_of_unknown_dimensions_and_narrow_dtypes(backend: str) -> None:
    """One trace for every size of an element."""
    comp = ko.jax_computation(lambda s: s.map(lambda e: e.sum()), SequenceType(TensorType(jnp.bfloat16, (None,))))
    for size in (1, 4):
        assert [float(x) for x in comp([jnp.ones(size, jnp.bfloat16)] * 2)] == [size, size]


def test_elements_without_leaves_are_counted_and_folded() -> None:
    """A sequence of empty structs has a length; what is made of its elements cannot be stacked."""
    type_ = SequenceType(StructType([]))
    count = ko.jax_computation(lambda s: (s.length, s.repeat(3).reduce(0, lambda c, _: c + 1)), type_)
    assert [int(x) for x in count([(), ()])] == [2, 6]
    assert ko.jax_computation(lambda s: s, type_)([(), ()]) == [(), ()]
    with pytest.raises(TracingError, match="has no bound"):
        ko.jax_computation(lambda s: s.map(lambda _: 1.0), type_)


def test_results_are_lists_of_elements_of_jax(backend: str) -> None:
    """A returned sequence is a list with the containers of the elements, its leaves arrays of JAX."""
    batches = ko.jax_computation(lambda s: s.batch(2), NUMBERS)([1.0, 2.0, 3.0])
    assert [type(element) for element in batches] == [Batch, Batch]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batches))
    assert ko.jax_computation(lambda s: s, NUMBERS)([]) == []


def test_the_types_of_derived_sequences() -> None:
    """A sequence knows the type of its elements."""
    seen = {}

    @ko.jax_computation(SequenceType({"x": (np.float32, (2,))}))
    def inspect(data: Any) -> Any:
        seen["data"] = str(data.type_signature)
        seen["batch"] = str(data.batch(3).type_signature)
        seen["full"] = str(data.batch(3, drop_remainder=True).element_type)
        seen["map"] = str(data.map(lambda e: (e["x"], 1)).type_signature)
        seen["text"] = repr(data)
        return data.length

    assert seen == {
        "data": "<x=float32[2]>*",
        "batch": "<examples=<x=float32[3,2]>,mask=bool[3]>*",
        "full": "<x=float32[3,2]>",
        "map": "<float32[2],int32>*",
        "text": "Sequence(<x=float32[2]>*)",
    }


# --- misuse ----------------------------------------------------------------------------------------------------------


def traced(fn: Callable[[Any], Any]) -> ko.Computation:
    """The computation of a function of a sequence of numbers."""
    return ko.jax_computation(lambda s: fn(s), NUMBERS)


@pytest.mark.parametrize("fn", [lambda s: list(s), lambda s: len(s), lambda s: s.length if s else 0])
def test_a_sequence_is_no_python_list(fn: Any) -> None:
    """Loops, len and truth are TypeErrors that say what to use."""
    with pytest.raises(TracingError) as caught:
        traced(fn)
    assert caught.value.hint is not None
    assert "sequence." in caught.value.hint


@pytest.mark.parametrize(
    "fn",
    [
        *(lambda s: s.batch(0), lambda s: s.batch(-1), lambda s: s.batch(True), lambda s: s.batch(2.0)),
        *(lambda s: s.repeat(-1), lambda s: s.repeat(1.5), lambda s: s.repeat(s.length)),
    ],
)
def test_sizes_and_counts_are_ints(fn: Any) -> None:
    """The sizes of batches and the number of epochs are known while tracing."""
    with pytest.raises(KoinonValueError):
        traced(fn)


def test_a_number_of_elements_is_an_integer() -> None:
    """`take` takes a traced integer, and no float."""
    with pytest.raises(KoinonTypeError, match="must be an integer"):
        traced(lambda s: s.take(1.5))
    assert [float(x) for x in traced(lambda s: s.take(s.length - 2))([1.0, 2.0, 3.0])] == [1.0]
    assert traced(lambda s: s.take(-3))([1.0]) == []


@pytest.mark.parametrize(
    ("init", "step", "expected", "found", "path"),
    [
        (0, lambda c, x: c + x, "int32[]", "float32[]", "the carry itself"),
        ({"a": np.zeros(2)}, lambda c, x: {"a": c["a"][:1]}, "float32[2]", "float32[1]", "['a']"),
    ],
)
def test_a_fold_keeps_the_shapes_and_dtypes_of_its_carry(
    init: Any, step: Any, expected: str, found: str, path: str
) -> None:
    """The message has both, the path and what to do."""
    with pytest.raises(KoinonTypeError, match="of the shapes and dtypes that it takes") as caught:
        traced(lambda s: s.reduce(init, step))
    assert (caught.value.expected, caught.value.found, caught.value.differs) == (expected, found, path)
    assert caught.value.hint is not None


def test_a_fold_keeps_the_structure_of_its_carry() -> None:
    """Another container is refused."""
    with pytest.raises(KoinonTypeError, match="of the structure that it takes"):
        traced(lambda s: s.reduce((0,), lambda c, x: [c[0]]))


def test_the_variants_of_a_sequence_have_one_length() -> None:
    """A length that depends on the epoch would be wrong silently, so it is refused."""
    with pytest.raises(TracingError, match="must have one length"):
        traced(lambda s: s.repeat(3, lambda epoch, t: t.take(epoch)))


def test_an_error_in_a_mapped_function_names_the_computation() -> None:
    """A mapped function that returns nothing is found when its elements get a type."""
    with pytest.raises(KoinonTypeError, match="must return arrays") as caught:
        ko.jax_computation(lambda s: s.map(lambda x: None), NUMBERS)
    assert "s.map(lambda x: None)" in blamed_line(caught.value)


# --- derivatives -----------------------------------------------------------------------------------------------------

DATA = [1.5, 2.0, 3.0]


def polynomial(w: Any, data: Any) -> Any:
    """The fold c -> w c + x, a polynomial in w with the data as coefficients; a counter and a key ride along."""
    init = (jnp.float32(0), jnp.int32(0), jax.random.key(0))
    fold = data.reduce(init, lambda c, x: (w * c[0] + x, c[1] + 1, jax.random.fold_in(c[2], c[1])))
    return fold[0]


def test_forward_mode_passes_a_fold(backend: str) -> None:
    """Jvp and jacfwd, with integers and keys in the carry: the derivative of 1.5 w^2 + 2 w + 3 is 3 w + 2."""
    by_jvp = ko.jax_computation(lambda w, s: jax.jvp(lambda v: polynomial(v, s), (w,), (1.0,)), np.float32, NUMBERS)
    value, derivative = by_jvp(2.0, DATA)
    np.testing.assert_allclose([value, derivative], [1.5 * 4 + 2 * 2 + 3, 3 * 2 + 2])
    by_jacfwd = ko.jax_computation(lambda w, s: jax.jacfwd(lambda v: polynomial(v, s))(w), np.float32, NUMBERS)
    np.testing.assert_allclose(by_jacfwd(2.0, DATA), 3 * 2 + 2)


def test_reverse_mode_stops_at_a_fold_without_a_bound(backend: str) -> None:
    """A dynamic number of steps cannot be run backwards; the message says what can be done."""
    with pytest.raises(UnboundedLoopError, match="has no static bound") as caught:
        ko.jax_computation(lambda w, s: jax.grad(lambda v: polynomial(v, s))(w), np.float32, NUMBERS)
    assert isinstance(caught.value, TypeError)
    assert caught.value.hint is not None
    assert "forward mode" in caught.value.hint


def test_derivatives_inside_a_fold_are_as_outside(backend: str) -> None:
    """Gradient descent, the everyday case: reverse mode inside each step."""

    @ko.jax_computation(np.float32, NUMBERS)
    def descend(w: Any, data: Any) -> Any:
        def step(w: Any, b: Any) -> Any:
            return w - 0.1 * jax.grad(lambda v: jnp.sum((v - b.examples) ** 2 * b.mask))(w)

        return data.batch(2).reduce(w, step)

    w = 0.5
    for examples in ([1.5, 2.0], [3.0]):
        w -= 0.1 * sum(2 * (w - x) for x in examples)
    np.testing.assert_allclose(descend(0.5, DATA), w, rtol=1e-6)


def test_a_fold_of_what_is_not_differentiated_passes_reverse_mode(backend: str) -> None:
    """A fold that does not depend on the variable is a constant of the gradient."""
    comp = ko.jax_computation(
        lambda w, s: jax.grad(lambda v: v * s.reduce(jnp.float32(0), lambda c, x: c + x))(w), np.float32, NUMBERS
    )
    np.testing.assert_allclose(comp(2.0, DATA), sum(DATA))


def test_examples_are_differentiated_through_reads() -> None:
    """Reading rows is linear in the buffers, also in forward mode through a batch."""

    def total(rows: Any) -> Any:
        packed = PackedView(FLOAT, (rows,), jnp.int32(1), jnp.int32(3))
        return Sequence(packed).batch(2).reduce(jnp.float32(0), lambda c, b: c + jnp.sum(b.examples**2 * b.mask))

    rows = jnp.arange(5.0)
    np.testing.assert_allclose(jax.jacfwd(total)(rows), [0, 2, 4, 6, 0])
