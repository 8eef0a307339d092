"""Norms over all leaves of a structure."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from koinon._jax import extremes, greatest
from koinon.aggregators._norms import all_finite, global_inf_norm, global_l1_norm, global_l2_norm

arrays = hnp.arrays(
    np.float32, st.sampled_from([0, 1, 5]), elements=st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)
)


@settings(deadline=None, max_examples=25)
@given(st.lists(arrays, max_size=2))
def test_norms_are_those_of_all_elements_in_one_vector(leaves):
    """In float64, NumPy measures numbers whose squares float32 does not hold."""
    flat = np.concatenate([np.zeros(0), *leaves]).astype(np.float64)
    leaves = [jnp.asarray(leaf) for leaf in leaves]

    np.testing.assert_allclose(global_l1_norm(leaves), np.abs(flat).sum(), rtol=1e-5)
    np.testing.assert_allclose(global_l2_norm(leaves), np.sqrt((flat**2).sum()), rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(global_inf_norm(leaves), np.abs(flat).max(initial=0.0), rtol=0)


@pytest.mark.parametrize(("leaf", "norm"), [([3.0, 4.0], 5.0), ([6e25, 8e25], 1e26), ([6e-25, 8e-25], 1e-24)])
def test_the_l2_norm_is_right_where_squares_leave_the_range_of_float32(leaf, norm):
    """A 3-4-5 triangle of any size."""
    np.testing.assert_allclose(global_l2_norm(jnp.float32(leaf)), norm, rtol=3e-7)


@pytest.mark.parametrize("norm", [global_l1_norm, global_l2_norm, global_inf_norm])
def test_norms_of_what_is_not_finite_are_not_finite(norm):
    """Infinity has an infinite norm, NaN has none."""
    assert np.isinf(norm({"a": jnp.float32([1.0, jnp.inf]), "b": jnp.float32(1.0)}))
    assert np.isnan(norm({"a": jnp.float32([1.0, jnp.nan]), "b": jnp.float32(1.0)}))


@pytest.mark.parametrize("size", [10, 10_000, 100_001])
@pytest.mark.parametrize("norm", [global_l1_norm, global_l2_norm, global_inf_norm, greatest])
def test_a_norm_overlooks_no_nan(size, norm):
    """Wherever it is in a large leaf, where `jnp.max` of some versions of JAX does not see it."""
    values = jnp.ones(size)

    assert np.isfinite(jax.jit(norm)(values))
    for place in (0, size // 2, size - 1):
        assert np.isnan(jax.jit(norm)(values.at[place].set(jnp.nan)))
    assert np.isnan(jax.jit(norm)(jnp.full(size, jnp.nan)))


@pytest.mark.parametrize("size", [10, 10_000])
def test_the_extremes_are_those_of_numpy_and_nan_where_one_is(size):
    """Both of them, wherever the NaN is."""
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)

    assert [float(end) for end in jax.jit(extremes)(values)] == [values.min(), values.max()]
    for place in (0, size // 2, size - 1):
        assert np.isnan(jax.jit(extremes)(jnp.asarray(values).at[place].set(jnp.nan))).all()


def test_leaves_of_several_dtypes_are_measured_in_float32():
    """A half-precision leaf does not overflow."""
    value = {"half": jnp.float16([300.0, 400.0]), "single": jnp.float32([1200.0])}

    assert global_l2_norm(value).dtype == jnp.float32
    assert float(global_l2_norm(value)) == 1300.0


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, np.complex64])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_element_that_is_not_finite_is_noticed(dtype, wrong):
    """In any place of any leaf, among numbers as large as there are."""
    largest = jnp.finfo(dtype).max
    leaves = {"a": jnp.full((300, 40), largest, dtype), "b": jnp.full(5, -largest, dtype), "c": jnp.zeros(2, dtype)}

    assert bool(all_finite(leaves))
    for name, leaf in leaves.items():
        for place in (0, leaf.size - 1):
            assert not bool(all_finite({**leaves, name: leaf.ravel().at[place].set(wrong)}))


def test_what_has_no_fractions_is_finite():
    """Integers, bools, keys, leaves without elements, and no leaves at all."""
    leaves = [jnp.arange(3), jnp.ones(2, bool), jax.random.key(0), jnp.zeros((0, 4)), 3]

    assert bool(all_finite(leaves))
    assert bool(all_finite(()))
