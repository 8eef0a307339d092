"""Count sketches."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.aggregators import CountSketchFactory, MeanFactory, SumFactory
from koinon.aggregators._count_sketch import estimate, sketch
from koinon.types import TensorType


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 2), (3, 1)])
def test_the_exact_expectation_of_the_estimates_is_the_vector(rows, columns):
    """By enumeration of all buckets and signs of three elements: also the median of several rows is unbiased."""
    vector = np.float32([1.0, -3.0, 0.5])
    size = len(vector)
    # Each row is drawn alone and the rows are independent, so all combinations of rows are equally likely.
    single = [
        (buckets, signs)
        for buckets in itertools.product(range(columns), repeat=size)
        for signs in itertools.product((-1.0, 1.0), repeat=size)
    ]
    tables = np.array(single, np.float32)
    combinations = np.array(list(itertools.product(range(len(single)), repeat=rows)))
    chosen = tables[combinations]  # [combinations, rows, buckets or signs, size]
    read = jax.jit(
        jax.vmap(lambda b, s: estimate(sketch(vector, b, s, columns), b, s)),
    )(chosen[:, :, 0].astype(np.int32), chosen[:, :, 1])

    np.testing.assert_allclose(np.asarray(read, np.float64).mean(axis=0), vector, atol=1e-5)


def test_large_elements_are_found_among_small_ones(backend):
    """Ten of a thousand, summed over two clients whose tables are added, to the typical error of the small ones."""
    rng = np.random.default_rng(0)
    values = [rng.normal(scale=0.01, size=1000).astype(np.float32) for _ in range(2)]
    for value in values:
        value[:10] = 5.0
    process = CountSketchFactory(columns=100, rows=5).create(TensorType(jnp.float32, (1000,)))
    output = process.next(process.initialize(), values)

    found = np.asarray(output.result)
    assert set(np.argsort(-found)[:10]) == set(range(10))
    np.testing.assert_allclose(found[:10], 10.0, atol=0.5)
    assert float(output.measurements["bytes_per_client"]) == 2000.0


def test_small_leaves_are_sent_as_they_are():
    """A leaf of no more elements than a table has, exactly."""
    process = CountSketchFactory(columns=5, rows=2).create(ko.types.parse("<float32[10],float32[11]>"))
    value = (np.arange(10, dtype=np.float32), np.ones(11, np.float32))
    output = process.next(process.initialize(), [value])

    np.testing.assert_array_equal(output.result[0], value[0])
    assert float(output.measurements["bytes_per_client"]) == 40 + 40


def test_buckets_change_from_round_to_round():
    """So errors do not add up over rounds."""
    process = CountSketchFactory(columns=4, rows=1, inner_agg_factory=SumFactory()).create(
        TensorType(jnp.float32, (16,))
    )
    value = np.random.default_rng(2).normal(size=16).astype(np.float32)
    state, first, measured = process.next(process.initialize(), [value])
    second = process.next(state, [value]).result

    assert not np.array_equal(first, second)
    assert float(measured["bytes_per_client"]) == 16.0


def test_options_that_make_no_sense():
    """Empty tables and weighted inner aggregations are refused."""
    with pytest.raises(ValueError, match="columns"):
        CountSketchFactory(0)
    with pytest.raises(ValueError, match="rows"):
        CountSketchFactory(3, 0)
    with pytest.raises(TypeError, match="unweighted"):
        CountSketchFactory(3, 1, MeanFactory())
