"""Random well-typed federated programs, and arguments for them, to run one engine against another.

A program is written by drawing operators whose operands exist already, so that every program is well-typed by
construction. Integers come out of it exactly, wrapping around as they do in XLA. Everything on floating-point numbers
is smooth and bounded, so that rounding stays rounding; nothing turns a float into an integer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import koinon as ko
from koinon.types import CLIENTS, SERVER, FederatedType, PlacementLiteral, SequenceType, TensorType, Type

EXAMPLE = ko.to_type({"x": (np.float32, (2,)), "y": np.int32})
KINDS: dict[str, Type] = {
    "int": TensorType(np.int32),
    "float": TensorType(np.float32),
    "vector": TensorType(np.float32, (3,)),
    "pair": ko.to_type({"i": np.int32, "v": (np.float32, (3,))}),
    "key": TensorType(jax.random.key(0).dtype),
    "data": SequenceType(EXAMPLE),
}


class RandomProgram(NamedTuple):
    """A random program, and what it takes: a kind and a placement for each parameter."""

    seed: int
    computation: ko.Computation
    parameters: list[tuple[str, PlacementLiteral]]

    def arguments(self, num_clients: int) -> tuple[Any, ...]:
        """Arguments for so many clients, written in the ways in which users write them."""
        rng = np.random.default_rng([self.seed, num_clients])
        return tuple(
            [_value(kind, rng) for _ in range(num_clients)] if placement is CLIENTS else _value(kind, rng)
            for kind, placement in self.parameters
        )


# --- the functions of programs ---------------------------------------------------------------------------------------


def _order_dependent_sum(data: Any) -> Any:
    return data.reduce(jnp.int32(7), lambda c, e: c * 3 + e["y"])


def _train(data: Any) -> Any:
    def step(w: Any, batch: Any) -> Any:
        def loss(w: Any) -> Any:
            return jnp.sum((jnp.tanh(batch.examples["x"] @ w) - 0.5) ** 2 * batch.mask)

        return w - 0.1 * jax.grad(loss)(w)

    epochs = data.repeat(2, lambda epoch, s: s.shuffle(jax.random.fold_in(jax.random.key(1), epoch)).batch(2))
    return epochs.reduce(jnp.ones(2), step)


def _last_output(data: Any) -> Any:
    total, outputs = data.take(3).scan(jnp.int32(0), lambda c, e: (c + e["y"], c))
    return total + outputs.reduce(jnp.int32(0), lambda c, x: c * 2 + x)


_UNARY: dict[str, list[tuple[str, Callable[[Any], Any]]]] = {
    "int": [
        ("int", lambda i: i * 3 - 1),
        ("float", lambda i: jnp.tanh(i * 0.01)),
        ("pair", lambda i: {"i": -i, "v": jnp.arange(3.0) * 0.1}),
    ],
    "float": [
        ("float", lambda f: jnp.sin(f)),
        ("float", lambda f: 0.5 * f + 1.0),
        ("vector", lambda f: jnp.stack([f, -f, 0.5 * f])),
    ],
    "vector": [
        ("float", lambda v: jnp.tanh(v.sum())),
        ("vector", lambda v: jnp.sin(jnp.cumsum(v))),
        ("pair", lambda v: {"i": 5, "v": v * 0.5}),
    ],
    "pair": [
        ("int", lambda p: p["i"] * 7),
        ("vector", lambda p: jnp.sin(p["v"])),
        ("pair", lambda p: {"v": p["v"] * 0.9, "i": p["i"] + 1}),
    ],
    "data": [
        ("int", lambda s: s.length),
        ("int", _order_dependent_sum),
        ("int", _last_output),
        ("vector", lambda s: jnp.concatenate([_train(s), jnp.ones(1)])),
        ("data", lambda s: s.map(lambda e: {"x": jnp.sin(e["x"]), "y": e["y"] * 2 - 1})),
    ],
}
_BINARY: list[tuple[str, str, str, Callable[[Any, Any], Any]]] = [
    ("int", "int", "int", lambda a, b: a * b - a),
    ("float", "float", "float", lambda a, b: jnp.sin(a) * jnp.cos(b)),
    ("vector", "float", "vector", lambda v, f: v * jnp.tanh(f)),
    ("int", "vector", "pair", lambda i, v: {"i": i, "v": v}),
    ("pair", "int", "pair", lambda p, i: {"i": p["i"] - i, "v": p["v"]}),
    ("key", "float", "float", lambda k, f: 0.5 * f + jax.random.uniform(k)),
    ("data", "float", "float", lambda s, f: s.reduce(f, lambda c, e: jnp.tanh(c + e["x"].sum()))),
]
_NUMBERS = ("int", "float", "vector", "pair")
_FLOATS = ("float", "vector")

_mean_of_squares = ko.federated_computation(
    lambda v: ko.federated_mean(ko.federated_map(lambda x: jnp.sin(x * x), v)), FederatedType(np.float32, CLIENTS)
)
_twice = ko.federated_computation(
    lambda f, v: ko.federated_map(f, ko.federated_map(f, v)),
    ko.types.FunctionType(np.int32, np.int32),
    FederatedType(np.int32, CLIENTS),
)


@ko.federated_computation
def _spread(v: Any) -> Any:
    return ko.federated_max(v), ko.federated_min(v)


# --- writing a program -----------------------------------------------------------------------------------------------


class _Writer:
    """Draws operators while a computation is traced.

    Args:
      rng: where the draws come from.
      values: what there is at first: kind, placement and value.
    """

    def __init__(self, rng: random.Random, values: list[tuple[str, PlacementLiteral, Any]]) -> None:
        self.rng = rng
        self.values = values

    def find(self, kinds: tuple[str, ...] | str, placement: PlacementLiteral) -> tuple[str, Any] | None:
        """One of the values of these kinds at a placement, the latest more likely."""
        wanted = (kinds,) if isinstance(kinds, str) else kinds
        found = [(kind, value) for kind, place, value in self.values if place is placement and kind in wanted]
        return self.rng.choice([*found, *found[-2:]]) if found else None

    def write(self) -> bool:
        """Draws one operator; whether there were operands for it."""
        made = self.rng.choice(_OPERATORS)(self)
        self.values.extend(made)
        return bool(made)

    def map_one(self) -> list[Any]:
        """A function of one value, at either placement."""
        placement = self.rng.choice([CLIENTS, CLIENTS, SERVER])
        found = self.find(tuple(_UNARY), placement)
        if found is None:
            return []
        to, fn = self.rng.choice(_UNARY[found[0]])
        return [(to, placement, ko.federated_map(lambda x: fn(x), found[1]))]

    def map_two(self) -> list[Any]:
        """A function of two values, zipped in one of several ways."""
        placement = self.rng.choice([CLIENTS, CLIENTS, SERVER])
        left, right, to, fn = self.rng.choice(_BINARY)
        a, b = self.find(left, placement), self.find(right, placement)
        if a is None or b is None:
            return []
        operands = self.rng.choice([(a[1], b[1]), [a[1], b[1]], {"b": b[1], "a": a[1]}, ko.federated_zip((a[1], b[1]))])
        return [(to, placement, ko.federated_map(lambda a, b: fn(a, b), operands))]

    def broadcast(self) -> list[Any]:
        """A value of the server at the clients."""
        found = self.find(_NUMBERS, SERVER)
        return [] if found is None else [(found[0], CLIENTS, ko.federated_broadcast(found[1]))]

    def aggregate(self) -> list[Any]:
        """One of the aggregations that any number has."""
        found = self.find(_NUMBERS, CLIENTS)
        if found is None:
            return []
        kind, value = found
        operator = self.rng.choice([ko.federated_sum, ko.federated_min, ko.federated_max, self._fold])
        result = operator(value)
        # A sum of floats may be large: it is brought back to where rounding is small.
        if operator is ko.federated_sum and kind in _FLOATS:
            result = ko.federated_map(lambda x: jnp.tanh(0.1 * x), result)
        return [(kind, SERVER, result)]

    def _fold(self, value: Any) -> Any:
        """An aggregation with operators of its own: a damped sum, and a count that is added to it in the end."""
        zero = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), _shapes(value.type_signature.member))

        def damped(leaf: Any) -> Any:
            return leaf // 2 if jnp.issubdtype(leaf.dtype, jnp.integer) else 0.1 * jnp.tanh(leaf)

        return ko.federated_aggregate(
            value,
            (zero, 0),
            lambda total, x: (jax.tree.map(lambda t, leaf: t + damped(leaf), total[0], x), total[1] + 1),
            lambda a, b: jax.tree.map(lambda x, y: x + y, a, b),
            lambda total: jax.tree.map(lambda t: t + total[1].astype(t.dtype), total[0]),
        )

    def mean(self) -> list[Any]:
        """A mean with or without weights, which are positive."""
        found, weight = self.find(_FLOATS, CLIENTS), self.find("int", CLIENTS)
        if found is None:
            return []
        weights = None
        if weight is not None and self.rng.random() < 0.6:
            to_weight = self.rng.choice([lambda i: i % 5 + 1, lambda i: (i % 5 + 1) * 0.5])
            weights = ko.federated_map(lambda i: to_weight(i), weight[1])
        return [(found[0], SERVER, ko.federated_mean(found[1], weights))]

    def secure(self) -> list[Any]:
        """An exact sum of small integers."""
        found = self.find("int", CLIENTS)
        if found is None:
            return []
        small = ko.federated_map(lambda i: i % 100, found[1])
        operator, bound = self.rng.choice(
            [
                (ko.federated_secure_sum, 99),
                (ko.federated_secure_sum_bitwidth, 7),
                (ko.federated_secure_modular_sum, 17),
            ]
        )
        return [("int", SERVER, operator(small, bound))]

    def collect(self) -> list[Any]:
        """All values of the clients, folded in order at the server."""
        found = self.find("int", CLIENTS)
        if found is None:
            return []
        collected = ko.federated_collect(found[1])
        fold = ko.federated_map(lambda s: s.reduce(jnp.int32(1), lambda c, x: c * 5 + x), collected)
        return [("int", SERVER, self.rng.choice([fold, ko.sequence_sum(collected)]))]

    def constant(self) -> list[Any]:
        """A constant, or a value computed from nothing."""
        placement = self.rng.choice([CLIENTS, SERVER])
        number = self.rng.randint(-50, 50)
        made = self.rng.choice(
            [
                lambda: ("int", placement, ko.federated_value(number, placement)),
                lambda: ("float", placement, ko.federated_eval(lambda: jnp.float32(number) * 0.01, placement)),
                lambda: ("pair", placement, ko.federated_value({"i": number, "v": np.float32([0, 1, 2])}, placement)),
            ]
        )
        return [made()]

    def split_key(self) -> list[Any]:
        """Keys for the clients."""
        found = self.find("key", SERVER)
        return [] if found is None else [("key", CLIENTS, ko.federated_split_key(found[1]))]

    def sequences(self) -> list[Any]:
        """An operator on placed sequences."""
        found = self.find("data", CLIENTS)
        if found is None:
            return []
        ys = ko.sequence_map(lambda e: e["y"], found[1])
        summed = self.rng.choice(
            [
                lambda: ko.sequence_sum(ys),
                lambda: ko.sequence_reduce(ys, 3, lambda a, y: a * 2 - y),
                lambda: ko.federated_map(lambda s: s.reduce(jnp.int32(0), lambda c, y: c * 3 + y), ys),
            ]
        )
        return [("int", CLIENTS, summed())]

    def select(self) -> list[Any]:
        """Slices of a vector of the server."""
        found, key = self.find("vector", SERVER), self.find("int", CLIENTS)
        if found is None or key is None:
            return []
        keys = ko.federated_map(lambda i: jnp.stack([i % 3, (i + 1) % 3]), key[1])
        slices = ko.federated_select(keys, ko.federated_value(3, SERVER), found[1], lambda v, k: v[k])
        return [
            ("float", CLIENTS, ko.federated_map(lambda s: s.reduce(jnp.float32(0), lambda c, x: c * 0.5 + x), slices))
        ]

    def fields(self) -> list[Any]:
        """The fields of a struct, by name."""
        placement = self.rng.choice([CLIENTS, SERVER])
        found = self.find("pair", placement)
        return [] if found is None else [("int", placement, found[1].i), ("vector", placement, found[1]["v"])]

    def call(self) -> list[Any]:
        """A call of another computation: plain, polymorphic, or of a function."""
        a, b = self.find("float", CLIENTS), self.find("int", CLIENTS)
        if a is None or b is None:
            return []
        choice = self.rng.randrange(3)
        if choice == 0:
            return [("float", SERVER, _mean_of_squares(a[1]))]
        if choice == 1:
            return [("int", CLIENTS, _twice(ko.jax_computation(lambda i: i * 3 + 1, np.int32), b[1]))]
        largest, least = _spread(b[1])
        return [("int", SERVER, largest), ("int", SERVER, least)]

    def results(self) -> Any:
        """Some of the values, the last among them, in some containers."""
        chosen = [self.values[-1], *self.rng.sample(self.values, min(4, len(self.values)))]
        values = [value for _, _, value in chosen]
        first, rest = values[0], values[1:]
        return self.rng.choice(
            [lambda: {"last": first, "others": rest}, lambda: (first, *rest), lambda: [rest, {"a": first, "c": 3}]]
        )()


def _shapes(type_: Type) -> Any:
    if isinstance(type_, TensorType):
        return jax.ShapeDtypeStruct(type_.shape or (), type_.dtype)
    return {name: _shapes(field) for name, field in type_.items()}  # pyright: ignore[reportAttributeAccessIssue]


_OPERATORS: list[Callable[[_Writer], list[Any]]] = [
    *[_Writer.map_one] * 3,
    *[_Writer.map_two] * 2,
    *[_Writer.aggregate] * 2,
    *(_Writer.broadcast, _Writer.mean, _Writer.secure, _Writer.collect, _Writer.constant, _Writer.split_key),
    *(_Writer.sequences, _Writer.select, _Writer.fields, _Writer.call),
]


def random_program(seed: int, size: int = 10) -> RandomProgram:
    """The program of a seed, with at least so many operators."""
    rng = random.Random(seed)
    at_clients = [(kind, CLIENTS) for kind in rng.sample(["int", "float", "vector", "pair", "data"], 3)]
    at_server = [(kind, SERVER) for kind in rng.sample(["int", "float", "vector", "pair", "key"], 2)]
    parameters = rng.sample([*at_clients, *at_server], 5)

    def program(a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
        values = [(kind, place, v) for (kind, place), v in zip(parameters, (a, b, c, d, e), strict=True)]
        writer = _Writer(random.Random(seed), values)
        for _ in range(size):
            while not writer.write():
                pass
        return writer.results()

    types = [FederatedType(KINDS[kind], placement) for kind, placement in parameters]
    return RandomProgram(seed, ko.federated_computation(program, *types), parameters)


def _value(kind: str, rng: np.random.Generator) -> Any:
    number = rng.normal(size=3).astype(np.float32)
    integer = int(rng.integers(-100, 100))
    if kind == "int":
        return [integer, np.int32(integer), jnp.int32(integer)][rng.integers(3)]
    if kind == "float":
        return [float(number[0]), number[0], jnp.float32(number[0]), 1][rng.integers(4)]
    if kind == "vector":
        return [number, number.tolist(), jnp.asarray(number)][rng.integers(3)]
    if kind == "pair":
        return [{"v": number, "i": integer}, {"i": np.int32(integer), "v": number.tolist()}][rng.integers(2)]
    if kind == "key":
        return jax.random.key(integer + 100)
    count = int(rng.integers(0, 6))
    xs, ys = rng.normal(size=(count, 2)).astype(np.float32), rng.integers(-9, 9, count).astype(np.int32)
    if rng.integers(2):
        return {"x": xs, "y": ys}
    return [{"x": x, "y": int(y)} for x, y in zip(xs, ys, strict=True)]
