"""Random computations that mix clients' data in all the ways of the language, from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import koinon as ko
from koinon.types import CLIENTS, SequenceType, at_clients, at_server

DATA = at_clients({"x": jnp.float32, "y": jnp.float32, "rows": SequenceType({"u": jnp.float32, "v": jnp.float32})})
STATE = at_server({"s": jnp.float32, "t": jnp.float32})


def _loop(a: Any, b: Any) -> Any:
    steps = jnp.int32(jnp.abs(a) * 3.0)
    return jax.lax.fori_loop(0, steps, lambda i, c: (c[0] * 0.5 + b, c[1]), (a, b))


def _scan(a: Any, b: Any) -> Any:
    return jax.lax.scan(lambda c, x: (c + x * b, c), a, jnp.stack([a, b, a]))


@jax.custom_jvp
def _smooth(a: Any) -> Any:
    return jnp.tanh(a)


_smooth.defjvp(lambda primals, tangents: (jnp.tanh(primals[0]), tangents[0]))


# Functions of two numbers to two numbers. Many drop an argument, or keep it to one of the results.
PAIRS: tuple[Callable[[Any, Any], Any], ...] = (
    lambda a, b: (b, a),
    lambda a, b: (a + b, b),
    lambda a, b: (jnp.tanh(a * b), jnp.float32(2.0)),
    lambda a, b: (jnp.where(a > 0, b, -b), a),
    lambda a, b: jax.lax.cond(a > 0.3, lambda: (b, a), lambda: (a, a)),
    lambda a, b: jax.lax.cond(b > 0.3, lambda: (a * 2.0, b), lambda: (a, b)),
    _loop,
    lambda a, b: (_scan(a, b)[0], jnp.sum(_scan(a, b)[1])),
    lambda a, b: jax.jit(lambda p, q: (jnp.sin(q), p))(a, b),
    lambda a, b: (_smooth(a), jax.grad(lambda p: jnp.sin(p * b))(a)),
    lambda a, b: tuple(jnp.sort(jnp.stack([a, b]))),
    lambda a, b: (jnp.zeros(3).at[jnp.int32(jnp.abs(a) * 2) % 3].set(b)[0], b),
    lambda a, b: (jax.checkpoint(lambda p: jnp.cos(p) * 0.5)(b), a * 0.25),
    lambda a, b: (jax.lax.while_loop(lambda c: c < a, lambda c: c + 0.5, jnp.float32(0)), b),
)

READS: tuple[Callable[[Any], Any], ...] = (
    lambda d: d.reduce(0.0, lambda t, row: t * 0.5 + row["u"]),
    lambda d: d.reduce((0.0, 0.0), lambda t, row: (t[0] + row["v"], t[0]))[1],
    lambda d: d.map(lambda row: row["u"] * row["v"]).reduce(0.0, lambda t, x: t + jnp.tanh(x)),
    lambda d: d.length.astype(jnp.float32),
    lambda d: d.batch(2).reduce(0.0, lambda t, b: t + jnp.sum(jnp.where(b.mask, b.examples["v"], 0.0))),
    lambda d: d.take(1).reduce(0.0, lambda t, row: t + row["u"]),
)


def _keep_last(acc: Any, v: Any) -> Any:
    return {"a": v[0], "b": acc["b"] + v[1]}


def _write(acc: Any, v: Any) -> Any:
    return {"a": jnp.maximum(acc["a"], v[1]), "b": jnp.where(v[0] > 0, acc["b"] + v[0], acc["b"])}


def _running(acc: Any, v: Any) -> Any:
    return {"a": acc["a"] * 0.5 + v[0], "b": acc["a"]}


FOLDS = (_keep_last, _write, _running)


def random_round(seed: int) -> ko.Computation:
    """A random computation from a state and data to values of the server."""
    rng = random.Random(seed)

    @ko.federated_computation(STATE, DATA)
    def round_(state: Any, data: Any) -> Any:
        server = [state["s"], state["t"]]
        clients = [data["x"], data["y"]]
        fresh: list[Any] = []

        def some(pool: list[Any]) -> Any:
            return rng.choice(pool)

        def add_to(pool: list[Any], pair: Any) -> None:
            pool.extend([pair[0], pair[1]])

        for _ in range(rng.randint(3, 7)):
            match rng.randrange(10):
                case 0 | 1:
                    add_to(clients, ko.federated_map(some(list(PAIRS)), (some(clients), some(clients))))
                case 2:
                    add_to(server, ko.federated_map(some(list(PAIRS)), (some(server), some(server))))
                case 3:
                    clients.append(ko.federated_map(some(list(READS)), data["rows"]))
                case 4:
                    clients.append(ko.federated_broadcast(some(server)))
                case 5:
                    value = rng.choice([ko.federated_sum, ko.federated_mean, ko.federated_min, ko.federated_max])
                    fresh.append(value(some(clients)))
                case 6:
                    weight = ko.federated_map(lambda w: jnp.abs(w) + 0.5, some(clients))
                    fresh.append(ko.federated_mean(some(clients), weight))
                case 7:
                    zero = {"a": jnp.float32(0), "b": jnp.float32(0)}
                    merge = lambda a, b: jax.tree.map(jnp.add, a, b)  # noqa: E731
                    pair = ko.federated_zip((some(clients), some(clients)))
                    folded = ko.federated_aggregate(pair, zero, some(list(FOLDS)), merge, lambda acc: acc)
                    fresh += [folded["a"], folded["b"]]
                case 8:
                    rows = ko.federated_collect(ko.federated_zip({"p": some(clients), "q": some(clients)}))
                    fresh.append(ko.federated_map(lambda r: r.reduce(1.0, lambda t, row: t * 0.7 + row["q"]), rows))
                case _:
                    bits = ko.federated_map(lambda v: jnp.int32(jnp.abs(jnp.tanh(v)) * 100), some(clients))
                    total = ko.federated_secure_sum_bitwidth(bits, 8)
                    fresh.append(ko.federated_map(lambda n: n.astype(jnp.float32), total))
            server += fresh
            fresh.clear()
        count = ko.federated_sum(ko.federated_value(jnp.int32(1), CLIENTS))
        return {"all": tuple(server), "count": count}

    return round_


def random_data(seed: int, clients: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A state and clients' data for a random computation."""
    rng = np.random.default_rng(seed)

    def numbers(*shape: int) -> np.ndarray:
        return rng.uniform(-1.5, 1.5, shape).astype(np.float32)

    data = []
    for _ in range(clients):
        size = int(rng.integers(0, 4))
        rows = {"u": numbers(size), "v": numbers(size)}
        data.append({"x": numbers()[()], "y": numbers()[()], "rows": rows})
    return {"s": numbers()[()], "t": numbers()[()]}, data
