"""Many small arrays as few: what a loop carries and adds up.

Each array that a compiled loop carries costs a kernel of its own in every step, a microsecond or two whatever its size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from koinon._jax import raveled, unraveled
from koinon.computation._symbolic import is_symbolic

# Above this many elements the copy into a common vector costs more than a kernel.
_SMALL = 2048

# With fewer columns than this the loop along the rows of a matrix is too short for vector code.
FEW_COLUMNS = 32


def is_tall(array: Any) -> bool:
    """Whether an array, or what has its shape and dtype, is a matrix with few columns and more rows.

    XLA's CPU compiler makes vector code of the loop along the last dimension, so such a matrix is kept transposed.
    """
    shape = array.shape
    return (
        len(shape) == 2
        and not is_symbolic(shape)
        and 1 < shape[1] < FEW_COLUMNS <= shape[0]
        and jnp.issubdtype(array.dtype, jnp.floating)
    )


class Packing:
    """How a list of arrays is packed: small ones of one dtype go into one vector, the others stay as they are.

    Tall matrices are transposed.

    Args:
      arrays: arrays of any shapes and dtypes, or what has these.
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._is_tall = [is_tall(array) for array in arrays]
        self._shapes = [
            (tuple(array.shape[::-1] if tall else array.shape), jnp.dtype(array.dtype))
            for array, tall in zip(arrays, self._is_tall, strict=True)
        ]
        sizes = [math.prod(shape) for shape, _ in self._shapes]
        self._large = [i for i, size in enumerate(sizes) if size > _SMALL]
        small = [i for i, size in enumerate(sizes) if size <= _SMALL]
        dtypes = dict.fromkeys(self._shapes[i][1] for i in small)
        self._groups = [[i for i in small if self._shapes[i][1] == dtype] for dtype in dtypes]

    def pack(self, arrays: Sequence[Any]) -> list[Any]:
        """The arrays, packed.

        Args:
          arrays: arrays of the shapes and dtypes that the packing was made for, in the same order.

        Returns:
          The large arrays in their order, tall ones transposed; then for each dtype of the small ones a vector
          `[elements of all of them]`.

        Raises:
          ValueError: if there are more or fewer arrays.
        """
        arrays = [array.T if tall else array for array, tall in zip(arrays, self._is_tall, strict=True)]
        vectors = [raveled(arrays[i] for i in group) for group in self._groups]
        return [*[arrays[i] for i in self._large], *vectors]

    def unpack(self, packed: Sequence[Any]) -> list[Any]:
        """The arrays that were packed.

        Args:
          packed: what `pack` returned, or sums of such.

        Returns:
          The arrays in their order, in the shapes and dtypes that the packing was made for.

        Raises:
          ValueError: if there are more or fewer vectors of small arrays.
        """
        arrays: list[Any] = [None] * len(self._shapes)
        for i, array in zip(self._large, packed, strict=False):
            arrays[i] = array
        for group, vector in zip(self._groups, packed[len(self._large) :], strict=True):
            for i, array in zip(group, unraveled(vector, [self._shapes[i][0] for i in group]), strict=True):
                arrays[i] = array
        return [array.T if tall else array for array, tall in zip(arrays, self._is_tall, strict=True)]
