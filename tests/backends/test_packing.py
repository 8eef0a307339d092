"""Packing many small arrays into few."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from koinon.backends._packing import Packing

SHAPES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 4), max_size=3).map(tuple) | st.sampled_from([(3, 1000), (40, 5), (400, 6)]),
        st.sampled_from([np.float32, np.int32, np.float16]),
    ),
    max_size=8,
)


@given(SHAPES)
def test_unpacking_is_the_inverse_of_packing(shapes: list[tuple[tuple[int, ...], type]]) -> None:
    """In one program, whatever the shapes and dtypes; there is one vector for each dtype of the small arrays."""
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.integers(0, 100, shape).astype(dtype)) for shape, dtype in shapes]
    packing = Packing(arrays)
    packed, unpacked = jax.jit(lambda arrays: (packed := packing.pack(arrays), packing.unpack(packed)))(arrays)

    for array, back in zip(arrays, unpacked, strict=True):
        assert array.dtype == back.dtype
        np.testing.assert_array_equal(array, back)
    assert len(packed) == sum(a.size > 2048 for a in arrays) + len({a.dtype for a in arrays if a.size <= 2048})
