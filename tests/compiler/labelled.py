"""Computations labelled by hand: what of the clients' data each lets come to the server without protection.

A label is a set of `(path, route)`: the leaves of the result, of what is sent to the clients and of what they ask for,
that depend on clients' data which no clipping and noise protect. The clean ones have an empty label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import koinon as ko
from koinon.types import CLIENTS, SERVER, SequenceType, TensorType, at_clients, at_server


class Labelled(NamedTuple):
    """A computation and its label."""

    computation: ko.Computation
    unprotected: frozenset[tuple[str, str]]


LEAKY: dict[str, Labelled] = {}
CLEAN: dict[str, Labelled] = {}

FLOAT = TensorType(jnp.float32)
VECTOR = TensorType(jnp.float32, (3,))
RECORD = {"x": FLOAT, "y": FLOAT}
EXAMPLES = SequenceType(FLOAT)


def leaky(*types: Any, label: set[tuple[str, str]]) -> Callable[[Any], Any]:
    """Adds a computation with unprotected releases."""

    def add(fn: Any) -> Any:
        LEAKY[fn.__name__] = Labelled(ko.federated_computation(*types)(fn), frozenset(label))
        return fn

    return add


def clean(*types: Any) -> Callable[[Any], Any]:
    """Adds a computation that protects all that it releases."""

    def add(fn: Any) -> Any:
        CLEAN[fn.__name__] = Labelled(ko.federated_computation(*types)(fn), frozenset())
        return fn

    return add


def clip(value: Any) -> Any:
    """Every leaf clipped to 1, and said to be."""
    return clip_to(value, 1.0)


def clip_to(value: Any, norm: Any) -> Any:
    """Every leaf clipped, and said to be."""
    return ko.annotate_clip(jax.tree.map(lambda leaf: jnp.clip(leaf, -norm, norm), value), norm)


def noise(value: Any) -> Any:
    """Every leaf with noise of multiplier 1."""
    return noise_of(value, 1.0)


def noise_of(value: Any, multiplier: float) -> Any:
    """Every leaf with noise, and said to have it; the law of the noise does not matter here."""
    key = jax.random.key(0)
    noisy = jax.tree.map(lambda leaf: leaf + jax.random.normal(key, leaf.shape).astype(leaf.dtype), value)
    return ko.annotate_noise(noisy, mechanism="gaussian", noise_multiplier=multiplier, simulation_only=True)


def private_sum(value: Any) -> Any:
    """A clipped, noised sum of a placed value."""
    return ko.federated_map(noise, ko.federated_sum(ko.federated_map(clip, value)))


# --- leaky -----------------------------------------------------------------------------------------------------------


@leaky(at_clients(FLOAT), label={("result", "plain")})
def sum_in_the_clear(x: Any) -> Any:
    return ko.federated_sum(x)


@leaky(at_clients(RECORD), label={("['x']", "plain"), ("['y']", "plain")})
def mean_of_records(data: Any) -> Any:
    return ko.federated_mean(data)


@leaky(at_clients(FLOAT), at_clients(FLOAT), label={("result", "plain")})
def weights_that_nobody_clipped(x: Any, weight: Any) -> Any:
    return ko.federated_map(noise, ko.federated_mean(ko.federated_map(clip, x), weight))


@leaky(at_clients(FLOAT), at_clients(FLOAT), label={("result", "plain")})
def values_times_weights_both_clipped(x: Any, weight: Any) -> Any:
    # The product of two values of norm 1 is bounded; the quotient by the sum of the weights is not.
    return ko.federated_map(noise, ko.federated_mean(ko.federated_map(clip, x), ko.federated_map(clip, weight)))


@leaky(at_clients(FLOAT), label={("['loss']", "plain")})
def metric_beside_a_private_update(x: Any) -> Any:
    return {"update": private_sum(x), "loss": ko.federated_mean(ko.federated_map(lambda v: v * v, x))}


@leaky(at_clients(EXAMPLES), label={("['count']", "plain")})
def number_of_examples_beside_a_private_update(data: Any) -> Any:
    total = ko.federated_map(lambda d: d.reduce(0.0, lambda t, x: t + x), data)
    return {"update": private_sum(total), "count": ko.federated_sum(ko.federated_map(lambda d: d.length, data))}


@leaky(at_clients(EXAMPLES), label={("result", "plain")})
def private_sum_over_a_raw_count(data: Any) -> Any:
    total = ko.federated_map(lambda d: d.reduce(0.0, lambda t, x: t + x), data)
    count = ko.federated_sum(ko.federated_map(lambda d: d.length, data))
    return ko.federated_map(lambda s, n: s / n, (private_sum(total), count))


@leaky(at_clients(FLOAT), label={("result", "revealing")})
def identity_reducer(x: Any) -> Any:
    return ko.federated_aggregate(x, jnp.float32(0), lambda acc, v: v, lambda a, b: b, lambda acc: acc)


@leaky(at_clients({"slot": TensorType(jnp.int32), "value": FLOAT}), label={("result", "revealing")})
def one_hot_write(data: Any) -> Any:
    zero = jnp.zeros(3, jnp.float32)
    write = lambda acc, v: acc.at[v["slot"]].set(v["value"])  # noqa: E731
    return ko.federated_aggregate(data, zero, write, lambda a, b: a + b, lambda acc: acc)


@leaky(at_clients(FLOAT), label={("['values']", "revealing")})
def slots_by_arrival(x: Any) -> Any:
    def write(acc: Any, v: Any) -> Any:
        return {"count": acc["count"] + 1, "values": acc["values"].at[acc["count"]].add(v)}

    zero = {"count": jnp.int32(0), "values": jnp.zeros(3, jnp.float32)}
    merge = lambda a, b: jax.tree.map(jnp.add, a, b)  # noqa: E731
    return ko.federated_aggregate(x, zero, write, merge, lambda acc: {"values": acc["values"]})


@leaky(at_clients(FLOAT), label={("result", "revealing")})
def shift_register(x: Any) -> Any:
    def push(acc: Any, v: Any) -> Any:
        return jnp.concatenate([acc[1:], v[None]])

    zero = jnp.zeros(3, jnp.float32)
    return ko.federated_aggregate(x, zero, push, lambda a, b: a + b, lambda acc: acc)


@leaky(at_clients(FLOAT), label={("result", "revealing")})
def reservoir_of_one(x: Any) -> Any:
    def keep(acc: Any, v: Any) -> Any:
        return jnp.where(v > 0.5, v, acc)

    return ko.federated_aggregate(x, jnp.float32(0), keep, lambda a, b: a + b, lambda acc: acc)


@leaky(at_clients(FLOAT), label={("[0]", "revealing"), ("[1]", "revealing")})
def accumulators_that_trade_places(x: Any) -> Any:
    zero = (jnp.float32(0), jnp.float32(0))
    merge = lambda a, b: (a[0] + b[0], a[1] + b[1])  # noqa: E731
    return ko.federated_aggregate(x, zero, lambda acc, v: (acc[1] + v, acc[0]), merge, lambda acc: acc)


@leaky(at_clients(VECTOR), label={("result", "revealing")})
def minimum(x: Any) -> Any:
    return ko.federated_min(x)


@leaky(at_clients(VECTOR), label={("result", "revealing")})
def maximum_with_noise(x: Any) -> Any:
    return ko.federated_map(noise, ko.federated_max(ko.federated_map(clip, x)))


@leaky(at_clients(FLOAT), label={("result", "revealing")})
def maximum_in_a_fold(x: Any) -> Any:
    def greater(a: Any, b: Any) -> Any:
        return jnp.maximum(a, b)

    return ko.federated_aggregate(x, jnp.float32(0), greater, greater, lambda acc: acc)


@leaky(at_clients(RECORD), label={("['x']", "revealing"), ("['y']", "revealing")})
def collected(data: Any) -> Any:
    return ko.federated_collect(data)


@leaky(at_clients(RECORD), label={("result", "revealing")})
def collected_for_a_median(data: Any) -> Any:
    return ko.federated_map(lambda rows: rows.take(1).reduce(0.0, lambda t, r: r["x"]), ko.federated_collect(data))


@leaky(at_clients(FLOAT), label={("result", "plain"), ("broadcast[0]", "plain")})
def mean_fed_back_to_a_second_phase(x: Any) -> Any:
    mean = ko.federated_broadcast(ko.federated_mean(x))
    return private_sum(ko.federated_map(lambda v, m: v - m, (x, mean)))


@leaky(at_clients(RECORD), label={("['x']", "plain")})
def swapped_fields(data: Any) -> Any:
    # What is called x in the result is the raw sum of y.
    return {"x": ko.federated_sum(data["y"]), "y": private_sum(data["x"])}


@leaky(at_clients(RECORD), label={("[1]", "plain")})
def swapped_inside_a_program(data: Any) -> Any:
    both = ko.federated_map(lambda d: (d["y"], clip(d["x"])), data)
    raw, clipped = ko.federated_sum(both)
    return ko.federated_map(lambda a, b: (b, a), (raw, ko.federated_map(noise, clipped)))


@leaky(at_clients(FLOAT), label={("result", "plain")})
def clipped_without_noise(x: Any) -> Any:
    return ko.federated_sum(ko.federated_map(clip, x))


@leaky(at_clients(FLOAT), label={("result", "plain")})
def noise_without_clip(x: Any) -> Any:
    return ko.federated_map(noise, ko.federated_sum(x))


@leaky(at_clients(FLOAT), label={("result", "plain")})
def scaled_after_the_clip(x: Any) -> Any:
    return ko.federated_map(noise, ko.federated_sum(ko.federated_map(lambda v: 10.0 * clip(v), x)))


@leaky(at_clients(FLOAT), label={("result", "plain")})
def scaled_before_the_noise(x: Any) -> Any:
    return ko.federated_map(lambda s: noise(10.0 * s), ko.federated_sum(ko.federated_map(clip, x)))


@leaky(at_clients(FLOAT), label={("result", "plain")})
def clipped_at_the_server(x: Any) -> Any:
    return ko.federated_map(lambda s: noise(clip(s)), ko.federated_sum(x))


@leaky(at_clients(FLOAT), label={("result", "plain")})
def noise_of_multiplier_zero(x: Any) -> Any:
    return ko.federated_map(lambda s: noise_of(s, 0.0), ko.federated_sum(ko.federated_map(clip, x)))


@leaky(at_clients(TensorType(jnp.int32)), label={("result", "secure")})
def secure_sum_without_noise(x: Any) -> Any:
    return ko.federated_secure_sum_bitwidth(x, 8)


@leaky(at_clients(RECORD), label={("['y']", "plain")})
def noise_on_one_leaf_alone(data: Any) -> Any:
    total = ko.federated_sum(ko.federated_map(clip, data))
    return ko.federated_map(lambda t: {"x": noise(t["x"]), "y": t["y"]}, total)


@leaky(at_clients(FLOAT), label={("result", "plain")})
def raw_sum_beside_the_noisy_one(x: Any) -> Any:
    total = ko.federated_sum(ko.federated_map(clip, x))
    return ko.federated_map(lambda t: noise(t) + 0.001 * t, total)


@leaky(at_clients(FLOAT), label={("result", "plain")})
def branch_on_a_raw_sum(x: Any) -> Any:
    def choose(raw: Any, noisy: Any) -> Any:
        return jax.lax.cond(raw > 0, lambda: noisy, lambda: -noisy)

    return ko.federated_map(choose, (ko.federated_sum(x), private_sum(x)))


@leaky(at_clients(FLOAT), label={("result", "plain")})
def steps_counted_by_a_raw_sum(x: Any) -> Any:
    def spin(raw: Any) -> Any:
        return jax.lax.while_loop(lambda s: s[0] < raw, lambda s: (s[0] + 1.0, s[1] + 1), (0.0, jnp.int32(0)))[1]

    return ko.federated_map(spin, ko.federated_sum(x))


@leaky(at_server(VECTOR), at_clients(TensorType(jnp.int32, (2,))), label={("keys[0]", "revealing")})
def keys_asked_in_the_clear(table: Any, keys: Any) -> Any:
    rows = ko.federated_select(keys, ko.federated_value(3, SERVER), table, lambda t, key: t[key])
    return ko.federated_map(lambda r: r.reduce(0.0, lambda t, row: t + row), rows)


# --- clean -----------------------------------------------------------------------------------------------------------


@clean(at_clients(FLOAT))
def private_total(x: Any) -> Any:
    return private_sum(x)


@clean(at_clients(RECORD))
def private_mean(data: Any) -> Any:
    return ko.federated_map(noise, ko.federated_mean(ko.federated_map(clip, data)))


@clean(at_clients(RECORD))
def private_with_swaps(data: Any) -> Any:
    swapped = ko.federated_map(lambda d: (clip((d["y"], d["x"])),), data)
    total = ko.federated_map(lambda t: noise((t[0][1], t[0][0])), ko.federated_sum(swapped))
    return {"b": total[0], "a": total[1]}


@clean(at_clients(FLOAT))
def local_noise(x: Any) -> Any:
    return ko.federated_sum(ko.federated_map(lambda v: noise(clip(v)), x))


@clean(at_clients(FLOAT))
def local_noise_collected(x: Any) -> Any:
    return ko.federated_collect(ko.federated_map(lambda v: noise(clip(v)), x))


@clean(at_clients(FLOAT), at_server(TensorType(jax.random.key(0).dtype)))
def distributed_noise_in_a_secure_sum(x: Any, key: Any) -> Any:
    def encode(v: Any, own_key: Any) -> Any:
        grid = ko.annotate_clip(jnp.round(jnp.clip(v, -1, 1) * 100).astype(jnp.int32) + 100, 200.0)
        noisy = grid + jax.random.randint(own_key, (), 0, 50)
        return ko.annotate_noise(noisy, mechanism="discrete", noise_multiplier=0.1, simulation_only=True)

    return ko.federated_secure_sum_bitwidth(ko.federated_map(encode, (x, ko.federated_split_key(key))), 10)


@clean(at_clients(FLOAT))
def processed_after_the_noise(x: Any) -> Any:
    return ko.federated_map(lambda t: {"root": jnp.sqrt(jnp.abs(t)), "sign": t > 0}, private_sum(x))


@clean(at_clients(RECORD))
def private_sum_in_a_users_fold(data: Any) -> Any:
    clipped = ko.federated_map(clip, data)
    add = lambda a, b: jax.tree.map(jnp.add, a, b)  # noqa: E731
    zero = {"x": jnp.float32(0), "y": jnp.float32(0)}
    return ko.federated_map(noise, ko.federated_aggregate(clipped, zero, add, add, lambda acc: acc))


@clean(at_clients(FLOAT))
def noise_in_the_report_of_a_fold(x: Any) -> Any:
    def add(a: Any, b: Any) -> Any:
        return a + b

    return ko.federated_aggregate(ko.federated_map(clip, x), jnp.float32(0), add, add, noise)


@clean(at_clients({"keep": TensorType(jnp.bool_), "value": FLOAT}))
def private_fold_that_skips_clients(data: Any) -> Any:
    def masked(d: Any) -> Any:
        return clip(jnp.where(d["keep"], d["value"], 0.0))

    def add(acc: Any, v: Any) -> Any:
        return jax.jit(lambda a: jnp.where(jnp.isfinite(v), a + v, a))(acc)

    folded = ko.federated_aggregate(
        ko.federated_map(masked, data), jnp.float32(0), lambda a, v: a + v, lambda a, b: add(a, b), lambda acc: acc
    )
    return ko.federated_map(noise, folded)


@clean(at_clients(RECORD))
def two_private_phases(data: Any) -> Any:
    mean = ko.federated_broadcast(private_sum(data["x"]))
    return private_sum(ko.federated_map(lambda d, m: (d["y"] - m) ** 2, (data, mean)))


@clean(at_clients(EXAMPLES))
def private_counts_as_well(data: Any) -> Any:
    total = ko.federated_map(lambda d: d.reduce(0.0, lambda t, x: t + x), data)
    count = ko.federated_map(lambda d: d.length.astype(jnp.float32), data)
    return ko.federated_map(lambda s, n: s / jnp.maximum(n, 1.0), (private_sum(total), private_sum(count)))


@clean(at_server(FLOAT), at_clients(FLOAT))
def server_work_alone(state: Any, x: Any) -> Any:
    return ko.federated_map(lambda s: s + 1.0, state)


@clean(at_server(FLOAT), at_clients(FLOAT))
def results_that_stay_at_the_clients(state: Any, x: Any) -> Any:
    return ko.federated_map(lambda s, v: s * v, (ko.federated_broadcast(state), x))


@clean(at_clients(FLOAT))
def number_of_clients(x: Any) -> Any:
    return ko.federated_sum(ko.federated_value(jnp.int32(1), CLIENTS))


@clean(at_server(FLOAT), at_clients(FLOAT))
def sum_of_what_the_server_sent(state: Any, x: Any) -> Any:
    sent = ko.federated_map(lambda s, v: s, (ko.federated_broadcast(state), x))
    return ko.federated_mean(sent)


@clean(at_server({"norm": FLOAT, "weights": FLOAT}), at_clients(FLOAT))
def clip_that_adapts(state: Any, x: Any) -> Any:
    norm = ko.federated_broadcast(state["norm"])
    total = ko.federated_sum(ko.federated_map(clip_to, (x, norm)))
    weights = ko.federated_map(lambda w, t: w + noise(t), (state["weights"], total))
    return ko.federated_zip({"norm": state["norm"], "weights": weights})


@clean(at_clients(FLOAT))
def raw_sum_that_nobody_uses(x: Any) -> Any:
    ko.federated_sum(x)
    return private_sum(x)


@clean(at_server(RECORD), at_clients(FLOAT))
def fields_of_the_state_that_pass_by(state: Any, x: Any) -> Any:
    both = ko.federated_map(lambda s, t: {"x": s["x"] + t, "y": s["y"]}, (state, private_sum(x)))
    return both, ko.federated_map(lambda s: s["y"] * 2.0, state)


@clean(at_clients(RECORD))
def leaf_that_passes_through_loops(data: Any) -> Any:
    def work(d: Any) -> Any:
        secret, clipped = d["x"], clip(d["y"])
        # The loop turns on the secret leaf, and only passes the clipped one on.
        _, kept = jax.lax.fori_loop(0, 3, lambda i, c: (c[0] * 2.0, c[1]), (secret, clipped))
        return jax.lax.cond(secret > 0, lambda k: k, lambda k: k, kept)

    return ko.federated_map(noise, ko.federated_sum(ko.federated_map(work, data)))


@clean(at_clients(RECORD))
def constants_of_the_shape_of_data(data: Any) -> Any:
    return ko.federated_sum(ko.federated_map(lambda d: jax.tree.map(jnp.ones_like, d), data))
