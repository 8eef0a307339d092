"""Reservoir sampling."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.aggregators import ClientSample, UnweightedReservoirSamplingFactory, federated_sample
from koinon.aggregators._reservoir import Reservoir, empty_reservoir, merge_reservoirs
from koinon.types import TensorType, at_clients, at_server

# Chi-square of 9 degrees of freedom exceeds this with a probability of 4e-5.
_LIMIT = 36.0


def check_uniform(pairs, count):
    """Asserts that each of the ten pairs of five clients was drawn equally often: a chi-square test."""
    counts = [pairs.count(pair) for pair in itertools.combinations(range(5), 2)]
    assert sum(counts) == count
    statistic = sum((seen - count / 10) ** 2 / (count / 10) for seen in counts)
    assert statistic < _LIMIT


def test_every_pair_is_drawn_equally_often(backend):
    """Two of five clients without replacement, a thousand rounds on the local engine; fewer on the slow one."""
    rounds = 1000 if backend == "local" else 100
    process = UnweightedReservoirSamplingFactory(2, seed=3).create(TensorType(jnp.int32))
    state, pairs = process.initialize(), []
    for _ in range(rounds):
        state, result, _ = process.next(state, [0, 1, 2, 3, 4])
        pairs.append(tuple(sorted(np.asarray(result.values).tolist())))

    assert len(set(jax.random.key_data(state).tolist())) > 1
    check_uniform(pairs, rounds)


def test_merged_reservoirs_are_uniform_too():
    """Three clients in one accumulator, two in another, in either order: the pairs are those of five in one."""
    keys = jax.random.split(jax.random.key(5), 2000)

    @jax.jit
    @jax.vmap
    def draw(key):
        priorities = jax.random.bits(key, (5,), jnp.uint32) >> 1
        empty = empty_reservoir(TensorType(jnp.int32), 2)
        rows = [Reservoir(jnp.full((1,), i), priorities[i : i + 1].astype(jnp.int32)) for i in range(5)]
        left = merge_reservoirs(merge_reservoirs(merge_reservoirs(empty, rows[0]), rows[1]), rows[2])
        right = merge_reservoirs(merge_reservoirs(empty, rows[3]), rows[4])
        return jnp.sort(merge_reservoirs(left, right).values), jnp.sort(merge_reservoirs(right, left).values)

    one, other = (np.asarray(drawn).tolist() for drawn in draw(keys))
    assert one == other
    check_uniform([tuple(pair) for pair in one], 2000)


def test_a_small_cohort_is_all_there():
    """Rows without a client are zeros, and the count says so; nobody gives an empty sample."""
    process = UnweightedReservoirSamplingFactory(4).create(ko.types.parse("<a=float32[2],b=int32>"))
    clients = [{"a": np.float32([i, -i]), "b": i} for i in (1, 2, 3)]
    sample = process.next(process.initialize(), clients).result

    assert isinstance(sample, ClientSample)
    assert int(sample.count) == 3
    assert sorted(np.asarray(sample.values["b"]).tolist()) == [0, 1, 2, 3]
    np.testing.assert_array_equal(sample.values["a"][:, 0], sample.values["b"])
    assert np.asarray(sample.values["b"])[3] == 0
    assert int(process.next(process.initialize(), []).result.count) == 0


def test_values_that_are_not_finite_are_left_out_and_counted_by_leaf():
    """They do not take the place of others; integers are always numbers."""
    process = UnweightedReservoirSamplingFactory(2).create(ko.types.parse("<a=float32[2],b=float32,c=int32>"))
    good = {"a": np.ones(2, np.float32), "b": np.float32(1.0), "c": 1}
    clients = [good | {"a": np.float32([np.nan, 1.0])}, good | {"b": np.float32(np.inf)}, good]
    output = process.next(process.initialize(), [*clients, clients[0]])

    assert int(output.result.count) == 1
    assert {name: int(count) for name, count in output.measurements.items()} == {"a": 2, "b": 1, "c": 0}


def test_metadata_tells_the_draws():
    """The random numbers are in descending order beside their samples, -1 where there is no client."""
    process = UnweightedReservoirSamplingFactory(3, return_sampling_metadata=True).create(TensorType(jnp.float32))
    result = process.next(process.initialize(), [7.0, 8.0]).result

    drawn = np.asarray(result["random_values"])
    assert list(result) == ["random_seed", "random_values", "samples"]
    assert drawn[0] >= drawn[1] >= 0
    assert drawn[2] == -1
    assert sorted(np.asarray(result["samples"])[:2].tolist()) == [7.0, 8.0]


def test_an_operator_for_any_federated_computation():
    """Structures of placed values are zipped; the key decides; other keys choose others."""
    key = jax.random.key(0)

    @ko.federated_computation(at_clients(jnp.float32), at_clients(jnp.int32), at_server(key.dtype))
    def sample(x, i, key):
        return federated_sample({"x": x, "i": i}, 3, key=key)

    x, i = [float(n) for n in range(20)], list(range(20))
    drawn = [sample(x, i, jax.random.key(seed)) for seed in (0, 0, 1)]
    chosen = [np.asarray(one.values["i"]).tolist() for one in drawn]

    np.testing.assert_array_equal(drawn[0].values["x"], drawn[0].values["i"])
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == 3


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_the_size_is_a_positive_int(size):
    """Anything else is a ValueError, as in TFF."""
    with pytest.raises(ValueError, match="sample_size"):
        UnweightedReservoirSamplingFactory(size)
