"""Random rotations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.aggregators import (
    DiscreteFourierTransformFactory,
    EncodedSumFactory,
    HadamardTransformFactory,
    MeanFactory,
    SumFactory,
    UniformQuantizer,
)
from koinon.types import TensorType

ROTATIONS = [HadamardTransformFactory, DiscreteFourierTransformFactory]
every_rotation = pytest.mark.parametrize("rotation", ROTATIONS)


def hadamard_matrix(size):
    """Sylvester's construction."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def test_the_hadamard_transform_is_the_matrix():
    """Of signs that the key gives, scaled to keep norms."""
    key, vector = jax.random.key(3), jnp.arange(1.0, 9.0)
    signs = np.asarray(jax.random.rademacher(key, (8,)))
    rotated = jax.jit(HadamardTransformFactory.rotate)(vector, key)

    np.testing.assert_allclose(rotated, hadamard_matrix(8) @ (signs * np.arange(1.0, 9.0)) / np.sqrt(8), rtol=1e-5)
    assert set(signs) == {-1, 1}


@every_rotation
@pytest.mark.parametrize("size", [1, 5, 64])
def test_a_rotation_keeps_norms_and_has_an_inverse(rotation, size):
    """For sizes that need padding and sizes that do not."""
    vector = jnp.asarray(np.random.default_rng(size).normal(size=rotation.padded(size)), jnp.float32)
    key = jax.random.key(0)
    rotated = jax.jit(rotation.rotate)(vector, key)

    assert rotation.padded(size) >= size
    assert float(jnp.linalg.norm(rotated)) == pytest.approx(float(jnp.linalg.norm(vector)), rel=1e-5)
    np.testing.assert_allclose(jax.jit(rotation.rotate_back)(rotated, key), vector, atol=1e-5)


@every_rotation
def test_one_large_element_is_spread_over_all(rotation):
    """The largest of 1024 rotated coordinates is far smaller, whatever the key."""
    vector = jnp.zeros(1024).at[17].set(1.0)
    rotate = jax.jit(rotation.rotate)
    largest = [float(jnp.abs(rotate(vector, jax.random.key(i))).max()) for i in range(3)]

    assert max(largest) <= 1.001 * np.sqrt(2 / 1024)


def test_padding():
    """To powers of two for Hadamard, to even numbers for Fourier."""
    assert [HadamardTransformFactory.padded(n) for n in (1, 2, 3, 4, 5, 1025)] == [1, 2, 4, 4, 8, 2048]
    assert [DiscreteFourierTransformFactory.padded(n) for n in (1, 2, 3, 1025)] == [2, 2, 4, 1026]


@every_rotation
def test_a_sum_behind_a_rotation_is_the_sum(rotation):
    """Of structures and half-precision leaves, over rounds whose keys differ."""
    process = rotation(SumFactory(), num_repeats=2).create(ko.types.parse("<a=float32[2,3],b=float16>"))
    value = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float16(0.5)}
    state, keys = process.initialize(), []
    for _ in range(2):
        keys.append(str(jax.random.key_data(state[1])))
        state, result, _ = process.next(state, [value, value])
        np.testing.assert_allclose(result["a"], 2 * value["a"], atol=2e-5)
        assert result["b"].dtype == jnp.float16
        assert float(result["b"]) == pytest.approx(1.0, abs=1e-3)
    assert keys[0] != keys[1]


@every_rotation
def test_quantization_errs_less_behind_a_rotation(rotation):
    """Of a vector with one large element, rounded to 15 levels: less than half the error, at the same bytes."""
    value = np.random.default_rng(0).normal(size=128).astype(np.float32)
    value[3] = 50.0
    quantized = EncodedSumFactory(UniformQuantizer(4))
    errors, measured = [], []
    for factory in (quantized, rotation(quantized)):
        process = factory.create(TensorType(jnp.float32, (128,)))
        output = process.next(process.initialize(), [value])
        errors.append(np.linalg.norm(np.asarray(output.result) - value))
        measured.append(jax.tree.leaves(output.measurements))

    assert errors[1] < 0.5 * errors[0]
    assert measured[0] == measured[1]


@every_rotation
def test_options_that_make_no_sense(rotation):
    """Weights, no repetition, integers, and unknown shapes are refused."""
    with pytest.raises(TypeError, match="unweighted"):
        rotation(MeanFactory())
    with pytest.raises(ValueError, match="num_repeats"):
        rotation(SumFactory(), 0)
    with pytest.raises(TypeError, match="floating"):
        rotation().create(TensorType(jnp.int32, (4,)))
    with pytest.raises(TypeError, match="known shape"):
        rotation().create(TensorType(jnp.float32, (None,)))
