"""`BucketingFactory`; see also `test_robust_contract.py`."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.aggregators import (
    BucketingFactory,
    CoordinateMedianFactory,
    GeometricMedianFactory,
    TrimmedMeanFactory,
    clipping_factory,
)
from koinon.aggregators._bucketing import _means_of_buckets
from koinon.aggregators._rows import Rows
from koinon.types import TensorType

FLOAT = TensorType(jnp.float32)


@functools.partial(jax.jit, static_argnums=3)
def draw(matrix, count, key, size):
    """The means of buckets of the first rows, and how many there are."""
    means = _means_of_buckets(Rows(matrix, jnp.arange(len(matrix)), jnp.int32(count)), size, key)
    return means.matrix[:, 0], means.count


def buckets_of(values, size, seed, capacity=8):
    """The means of buckets of numbers, sorted."""
    matrix = np.zeros((capacity, 1), np.float32)
    matrix[: len(values), 0] = values
    means, count = draw(matrix, len(values), jax.random.key(seed), size)
    return sorted(np.asarray(means)[:count].tolist())


def test_every_client_is_in_one_bucket_and_all_partitions_occur():
    """Six numbers in buckets of two: the means are those of a partition, and over seeds each of the 15 is drawn."""
    numbers = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    partitions = {tuple(sorted((p[i] + p[i + 1]) / 2 for i in range(0, 6, 2))) for p in itertools.permutations(numbers)}
    found = {tuple(buckets_of(numbers, 2, seed)) for seed in range(150)}

    assert len(partitions) == 15
    assert found == partitions


def test_the_last_bucket_may_have_fewer_clients():
    """Of five clients in buckets of three there are two buckets, of three and of two."""
    means = buckets_of([3.0, 3.0, 3.0, 3.0, 3.0], 3, seed=0)
    assert means == pytest.approx([3.0, 3.0])
    assert buckets_of([5.0], 3, seed=0) == [5.0]
    assert buckets_of([], 3, seed=0) == []


def test_buckets_do_not_depend_on_room_for_more_clients():
    """So that a client that is left out leaves no trace."""
    numbers = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]

    assert buckets_of(numbers, 2, 7) == buckets_of(numbers, 2, 7, capacity=16)


def test_each_round_has_other_buckets_and_a_seed_the_same():
    """The key of the state goes on from round to round."""
    factory = BucketingFactory(CoordinateMedianFactory(), bucket_size=2, seed=5)
    process = factory.create(FLOAT)
    state = process.initialize()
    found = []
    for _ in range(6):
        state, result, measurements = process.next(state, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
        found.append(float(result))
        assert int(measurements["buckets"]) == 3
    again = process.next(process.initialize(), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]).result

    assert len(set(found)) > 1
    assert float(again) == found[0]


@pytest.mark.parametrize(
    "inner", [GeometricMedianFactory(), clipping_factory(1.0, CoordinateMedianFactory()), "median"]
)
def test_the_inner_rule_is_a_robust_rule_with_nothing_around_it(inner):
    """What is around goes outside."""
    with pytest.raises(TypeError, match="unweighted and with nothing around it"):
        BucketingFactory(inner)


@pytest.mark.parametrize("arguments", [{"bucket_size": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(arguments):
    """A bucket has a client."""
    with pytest.raises(ValueError, match="must"):
        BucketingFactory(TrimmedMeanFactory(0.1), **arguments)


@pytest.mark.parametrize("arguments", [{"bucket_size": 2.0}, {"seed": None}])
def test_arguments_of_another_type_are_refused(arguments):
    """Both are ints."""
    with pytest.raises(TypeError, match="must be an int"):
        BucketingFactory(TrimmedMeanFactory(0.1), **arguments)
