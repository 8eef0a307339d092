"""`_rows`: clients' values as rows, their order, and how columns are sorted."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.aggregators._rows import Rows, _hash, _sort_rows, check_rows, distance, norm, to_value, to_vector, zeros
from koinon.types import TensorType, to_type

sort_rows = jax.jit(_sort_rows)
norm_of = jax.jit(norm)


def rows_from(matrix, count=None):
    """Rows in the order in which they stand."""
    matrix = jnp.asarray(matrix, jnp.float32)
    return Rows(matrix, jnp.arange(len(matrix)), jnp.int32(len(matrix) if count is None else count))


def test_columns_are_sorted_as_numpy_does():
    """For every number of rows, also one that is no power of two; the rows after them stay where they are."""
    rng = np.random.default_rng(0)
    matrix = rng.integers(-3, 3, (11, 40)).astype(np.float32)  # with many that are equal
    matrix[3, ::2], matrix[5, ::3] = np.inf, -np.inf
    for count in range(12):
        found = np.asarray(sort_rows(matrix, jnp.int32(count)))

        np.testing.assert_array_equal(found[:count], np.sort(matrix[:count], axis=0))
        np.testing.assert_array_equal(found[count:], matrix[count:])


@pytest.mark.parametrize("elements", [1, 2500])
def test_the_median_is_that_of_numpy(elements):
    """Also of more columns than are sorted at a time, and where rows that do not count lie between the others."""
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(9, elements)).astype(np.float32)
    order = rng.permutation(9).astype(np.int32)
    median = jax.jit(lambda m, o, n: Rows(m, o, n).coordinate_median())
    for count in (1, 2, 5, 8, 9):
        expected = np.median(matrix[order[:count]], axis=0)

        np.testing.assert_allclose(median(matrix, order, jnp.int32(count)), expected, rtol=1e-6)
    np.testing.assert_array_equal(median(matrix, order, jnp.int32(0)), np.zeros(elements))


def test_a_median_of_large_numbers_does_not_overflow():
    """Their sum would."""
    assert float(rows_from([[3e38], [3.2e38]]).coordinate_median()[0]) == pytest.approx(3.1e38)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1.0, 1e30, 1e38])
def test_norms_neither_overflow_nor_vanish(scale):
    """The norm of 2 and 1 times a scale whose square is no float32."""
    assert float(norm_of(np.float32([2 * scale, 0, -scale]))) == pytest.approx(np.sqrt(5) * scale, rel=1e-6)
    assert float(norm_of(np.zeros(3, np.float32))) == 0.0
    assert float(norm_of(np.float32([np.inf, 1.0, 0.0]))) == np.inf


def test_what_two_vectors_have_in_common_costs_no_precision():
    """Of vectors near 1000 that differ by hundredths, as exact as float64 on the same float32 numbers."""
    rng = np.random.default_rng(2)
    left, right = (1000 + rng.normal(0, 0.01, (2, 500))).astype(np.float32)
    expected = np.linalg.norm(left.astype(np.float64) - right.astype(np.float64))

    assert float(distance(left, right)) == pytest.approx(expected, rel=1e-6)


def test_rows_are_told_apart_by_every_bit():
    """No two of ten thousand vectors that differ in one number share their place; equal vectors do."""
    vectors = np.tile(np.float32([0.5, -1.0, 3.0]), (9999, 1))
    vectors[np.arange(9999), np.arange(9999) % 3] = np.arange(9999) // 3 + 10
    places = np.asarray(jax.vmap(_hash)(vectors))

    assert len(set(places.tolist())) >= 9998  # of 2^32 places, one pair in a hundred draws meets
    assert int(_hash(jnp.float32([1, 2]))) == int(_hash(jnp.float32([1, 2])))
    assert int(_hash(jnp.float32([1, 2]))) != int(_hash(jnp.float32([2, 1])))


class Pair(NamedTuple):
    """A container of a user's."""

    first: object
    second: object


def test_a_value_is_a_vector_and_back():
    """Whatever its containers; dtypes are those of the type."""
    value = Pair({"b": jnp.float16(2.5), "a": jnp.arange(6.0).reshape(2, 3)}, OrderedDict(z=jnp.bfloat16(7), y=(1.5,)))
    value_type = ko.types.infer_type(value)
    vector = to_vector(value_type, value)
    back = to_value(value_type, vector)

    assert vector.dtype == jnp.float32
    assert sorted(vector.tolist()) == sorted([2.5, 0, 1, 2, 3, 4, 5, 7, 1.5])
    assert isinstance(back, Pair)
    assert list(back.second) == ["z", "y"]
    assert jax.tree.map(lambda x, y: bool((x == y).all()), back, value) == jax.tree.map(lambda _: True, value)
    assert back.first["b"].dtype == jnp.float16
    assert jax.tree.leaves(zeros(value_type))[0].shape == (2, 3)


@pytest.mark.parametrize("value_type", [to_type(()), TensorType(jnp.float32, (3, 0)), TensorType(jnp.float32, (None,))])
def test_values_need_a_known_length(value_type):
    """A rule makes vectors of them."""
    with pytest.raises(TypeError, match="A rule needs values of known shapes"):
        check_rows(value_type, "A rule")
