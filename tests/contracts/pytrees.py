"""What the contracts compare: the numbers of a pytree."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def numbers(tree: Any) -> list[np.ndarray]:
    """The leaves of a pytree as numpy arrays, PRNG keys as their data."""
    return [
        np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in jax.tree.leaves(tree)
    ]
