"""Computations of every kind, with arguments to run them on, for tests that must hold for all of them."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import koinon as ko
from koinon.types import FunctionType, SequenceType, TensorType, at_clients, at_server, register_container

KEY = TensorType(jax.random.key(0).dtype)
EXAMPLE = collections.OrderedDict(x=TensorType("float32", (3,)), y=TensorType("int32"))
DATA = SequenceType(EXAMPLE)


class Moments(NamedTuple):
    """A container that keeps its name."""

    first: Any
    second: Any


class Anonymous(NamedTuple):
    """A container that nobody registered."""

    left: Any
    right: Any


register_container("tests.Moments", Moments)


class Case(NamedTuple):
    """A computation and the arguments of a call."""

    computation: ko.Computation
    arguments: tuple[Any, ...]


MAKERS: dict[str, Callable[[], Case]] = {}


def case(fn: Callable[[], Case]) -> Callable[[], Case]:
    """Adds a computation to the zoo."""
    MAKERS[fn.__name__] = fn
    return fn


def client(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The data of a client with this many examples."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=3).astype("f4"), "y": np.int32(rng.integers(5))} for _ in range(count)]


CLIENTS = [client(5, 1), client(0), client(8, 2)]


# --- programs of JAX -------------------------------------------------------------------------------------------------


@case
def no_parameter() -> Case:
    return Case(ko.jax_computation(lambda: {"zeros": jnp.zeros((0, 3)), "key": jax.random.key(3)}), ())


@case
def unknown_dimensions() -> Case:
    @ko.jax_computation(TensorType("float32", (None, None)))
    def dimensions(x):
        return x.reshape(-1), x.T @ x, x.mean(), jnp.concatenate([x, x])[:-1], x.shape[0] + x

    return Case(dimensions, (np.arange(12, dtype="f4").reshape(3, 4),))


@case
def no_rows() -> Case:
    return Case(ko.jax_computation(lambda x: (x.sum(), x.mean(), 2 * x), TensorType("float32", (None,))), ([],))


@case
def keys() -> Case:
    rbg = jax.random.key(3, impl="rbg")

    @ko.jax_computation(KEY, TensorType(rbg.dtype, (None,)))
    def draw(key, others):
        return jax.random.split(key, 2), others, jax.vmap(lambda k: jax.random.normal(k, (2,)))(others)

    return Case(draw, (jax.random.key(1), jax.random.split(rbg, 4)))


@case
def narrow_dtypes() -> Case:
    @ko.jax_computation(TensorType("bfloat16", (4,)), TensorType("bool"), TensorType("uint8"))
    def narrow(a, b, c):
        return a * a, ~b, c + jnp.uint8(250), (a > 1).astype(jnp.int8), a.astype(jnp.float8_e4m3fn), a.astype(jnp.int4)

    return Case(narrow, (jnp.arange(4, dtype="bfloat16"), True, np.uint8(7)))


@case
def containers() -> Case:
    @ko.jax_computation({"b": jnp.float32, "a": [jnp.int32, (jnp.float32,)]}, Moments(jnp.float32, jnp.float32))
    def contain(tree, moments):
        return Moments(tree, [moments.first, collections.OrderedDict(z=moments.second, y=())])

    return Case(contain, ({"a": [1, (2.0,)], "b": 3.0}, Moments(4.0, 5.0)))


@case
def linear_algebra() -> Case:
    @ko.jax_computation(TensorType("float32", (3, 3)))
    def algebra(a):
        symmetric = a @ a.T + 3 * jnp.eye(3)
        return jnp.linalg.cholesky(symmetric), tuple(jnp.linalg.qr(symmetric)), jnp.linalg.eigvalsh(symmetric)

    return Case(algebra, (np.arange(9, dtype="f4").reshape(3, 3),))


@case
def complex_numbers() -> Case:
    @ko.jax_computation(TensorType("complex64", (4,)))
    def transform(z):
        return jnp.fft.fft(z * jnp.asarray([1, 2j, 3, 4 + 1j], jnp.complex64)), jnp.abs(z)

    return Case(transform, (np.array([1, 1j, -2, 0.5], "c8"),))


@case
def large_constants() -> Case:
    table = np.random.default_rng(0).normal(size=(50, 4)).astype("f4")
    return Case(ko.jax_computation(lambda i: jnp.asarray(table)[i], jnp.int32), (7,))


# --- sequences -------------------------------------------------------------------------------------------------------


@case
def sequence_of_batches() -> Case:
    @ko.jax_computation(DATA, TensorType("float32", (3,)))
    def fold(data, weights):
        def step(w, batch):
            return w + jnp.where(batch.mask[:, None], batch.examples["x"] * w, 0.0).sum(0)

        return data.batch(3).reduce(weights, step), data.length

    return Case(fold, (client(7), np.ones(3, "f4")))


@case
def shuffled_epochs() -> Case:
    @ko.jax_computation(DATA, KEY)
    def fold(data, key):
        epochs = data.repeat(2, lambda epoch, s: s.shuffle(jax.random.fold_in(key, epoch)).batch(2))
        return epochs.reduce(jnp.zeros(3), lambda total, b: 0.5 * total + b.examples["x"].sum(0))

    return Case(fold, (client(5), jax.random.key(4)))


@case
def empty_sequence() -> Case:
    @ko.jax_computation(DATA)
    def fold(data):
        return data.reduce(jnp.float32(1), lambda total, e: total + e["x"].sum()), data.map(lambda e: 2 * e["y"])

    return Case(fold, ([],))


@case
def sequence_results() -> Case:
    @ko.jax_computation(DATA)
    def views(data):
        _, partial_sums = data.scan(jnp.float32(0), lambda c, e: (c + e["x"].sum(), c))
        return data, data.take(2), data.batch(2).map(lambda b: b.examples["x"].sum()), partial_sums

    return Case(views, (client(5),))


@case
def sequence_of_keys() -> Case:
    @ko.jax_computation(SequenceType(KEY))
    def fold(seeds):
        return seeds.reduce(jnp.float32(0), lambda total, k: total + jax.random.normal(k))

    return Case(fold, ([],))


# --- federated computations ------------------------------------------------------------------------------------------


@case
def federated_averaging() -> Case:
    @ko.jax_computation(TensorType("float32", (3,)), DATA, KEY)
    def train(weights, data, key):
        def step(w, batch):
            x, y = batch.examples["x"], batch.examples["y"]
            loss = lambda w: jnp.sum(jnp.where(batch.mask, (x @ w - y) ** 2, 0.0)) / batch.mask.sum()  # noqa: E731
            return w - 0.05 * jax.grad(loss)(w)

        trained = data.batch(2).reduce(weights + 0.01 * jax.random.normal(key, (3,)), step)
        return {"update": trained - weights, "examples": data.length.astype(jnp.float32)}

    @ko.federated_computation(at_server(TensorType("float32", (3,))), at_server(KEY), at_clients(DATA))
    def round_fn(weights, key, data):
        work = ko.federated_map(train, (ko.federated_broadcast(weights), data, ko.federated_split_key(key)))
        update = ko.federated_mean(work.update, work.examples)
        new_weights = ko.federated_map(lambda w, u: w + u, (weights, update))
        return Moments(new_weights, {"examples": ko.federated_sum(work.examples)})

    return Case(round_fn, (np.full(3, 0.1, "f4"), jax.random.key(0), CLIENTS))


@case
def aggregations() -> Case:
    @ko.federated_computation(at_clients(jnp.int32), at_clients(TensorType("float32", (2,))))
    def aggregate(counts, vectors):
        return (
            ko.federated_sum(counts),
            ko.federated_mean(vectors),
            ko.federated_mean(vectors, counts),
            ko.federated_min(counts),
            ko.federated_max(vectors),
            ko.federated_collect(counts),
            ko.federated_aggregate(
                vectors,
                np.zeros(2, "f4"),
                lambda total, v: total + v * v,
                lambda a, b: a + b,
                lambda total: jnp.sqrt(total),
            ),
            ko.federated_secure_sum(counts, 100),
            ko.federated_secure_sum_bitwidth(counts, 10),
            ko.federated_secure_modular_sum(counts, 7),
        )

    return Case(aggregate, ([3, 4, 9], [np.float32([1, 2]), np.float32([3, 4]), np.float32([0, 9])]))


@case
def placements_and_constants() -> Case:
    @ko.federated_computation
    def constant():
        evaluated = ko.federated_eval(lambda: jnp.arange(3), ko.SERVER)
        here = ko.federated_eval(lambda: jnp.float32(2), ko.CLIENTS)
        return {
            "bfloat16": ko.federated_value(jnp.bfloat16(1.5), ko.SERVER),
            "key": ko.federated_value(jax.random.key(3), ko.CLIENTS),
            "evaluated": evaluated,
            "zipped": ko.federated_zip((evaluated, ko.federated_value(1, ko.SERVER))),
            "total": ko.federated_sum(here),
            "local": {"int8": np.arange(3, dtype="i1"), "flags": np.array([[True], [False]]), "none": ()},
        }

    return Case(constant, ())


@case
def selections() -> Case:
    keys = at_clients(TensorType("int32", (2,)))

    @ko.federated_computation(keys, at_server(jnp.int32), at_server(TensorType("float32", (4, 3))))
    def select(keys, max_key, table):
        chosen = ko.federated_select(keys, max_key, table, lambda rows, key: rows[key])
        secret = ko.federated_secure_select(keys, max_key, table, lambda rows, key: {"row": rows[key], "key": key})
        total = ko.sequence_reduce(chosen, np.zeros(3, "f4"), lambda total, row: total + row)
        doubled = ko.sequence_map(lambda piece: 2 * piece["row"], secret)
        return ko.federated_sum(total), ko.federated_sum(ko.sequence_sum(doubled)), chosen

    return Case(select, ([[0, 3], [1, 1]], 4, np.arange(12, dtype="f4").reshape(4, 3)))


@case
def nested() -> Case:
    @ko.federated_computation(at_server(jnp.float32))
    def inner(x):
        once = ko.federated_map(lambda v: v + 1, x)
        return {"once": once, "twice": ko.federated_map(lambda v: 2 * v, once)}

    @ko.federated_computation(at_server(jnp.float32), at_clients({"a": jnp.float32, "b": jnp.int32}))
    def outer(x, values):
        first = inner(x)
        second = inner(first["twice"])
        shared = ko.federated_broadcast(second["once"])
        return second, ko.federated_sum(ko.federated_map(lambda a, s: a * s, (values.a, shared))), values

    return Case(outer, (1.5, [{"a": 1.0, "b": 2}, {"a": 3.0, "b": 4}]))


@case
def function_argument() -> Case:
    @ko.federated_computation(FunctionType(TensorType("int32"), TensorType("int32")), at_clients(jnp.int32))
    def apply(fn, values):
        return ko.federated_map(fn, values)

    return Case(apply, (ko.jax_computation(lambda x: x * x, jnp.int32), [1, 2, 3]))


@case
def polymorphic() -> Case:
    @ko.federated_computation
    def mean_of(values):
        return ko.federated_mean(values)

    type_ = at_clients({"a": TensorType("float32", (2,))})
    return Case(mean_of.fn_for_argument_type(type_), ([{"a": np.float32([1, 2])}, {"a": np.float32([5, 4])}],))


def leaves(value: Any) -> list[np.ndarray]:
    """The arrays in a result, keys by their data."""
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else leaf)
        for leaf in jax.tree.leaves(value)
    ]


def assert_same(found: Any, expected: Any) -> None:
    """Checks that two results have the same structure, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.view(np.uint8) if a.ndim else a, b.view(np.uint8) if b.ndim else b)
