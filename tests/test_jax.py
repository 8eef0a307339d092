"""What koinon adds to JAX, and what differs between its versions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon._jax import raveled, unraveled


@given(st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=5))
def test_a_vector_is_taken_apart_into_what_it_was_made_of(shapes: list[tuple[int, ...]]) -> None:
    """Whatever the shapes, scalars and arrays without elements among them."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]

    vector, found = jax.jit(lambda arrays: (vector := raveled(arrays), unraveled(vector, shapes)))(arrays)

    np.testing.assert_array_equal(vector, np.concatenate([array.ravel() for array in arrays]))
    for array, back in zip(arrays, found, strict=True):
        assert back.shape == array.shape
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_arrays_without_elements_pass_through_one_program(empty: int) -> None:
    """JAX 0.10 ends the process, and 0.12 raises, where no elements are taken of such an array's place."""
    arrays = [jnp.float32(7), jnp.ones((4, 5))]
    arrays.insert(empty, jnp.ones((2, 0)))
    shapes = [array.shape for array in arrays]

    found = jax.jit(lambda arrays: unraveled(raveled(arrays), shapes))(arrays)

    assert [array.shape for array in found] == shapes
    assert [float(array.sum()) for array in found] == [float(array.sum()) for array in arrays]
