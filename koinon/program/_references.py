"""Values that a program knows of before they are there."""

from __future__ import annotations

import abc
import asyncio
from typing import Any

import jax

from koinon.types import Type


class MaterializableValueReference(abc.ABC):
    """A value that is being computed, or lies elsewhere; `get_value` waits for it, or fetches it."""

    @property
    @abc.abstractmethod
    def type_signature(self) -> Type:
        """The type of the value."""

    @abc.abstractmethod
    async def get_value(self) -> Any:
        """The value.

        Raises:
          Exception: whatever went wrong where the value was to be computed.
        """


async def materialize_value(value: Any) -> Any:
    """The value with every reference in it replaced by what it refers to; the references are waited for together.

    Args:
      value: a pytree, some leaves of which may be references, also to values that hold references in turn.

    Example:
      >>> import asyncio
      >>> asyncio.run(materialize_value({"round": 3}))
      {'round': 3}
    """
    leaves, treedef = jax.tree.flatten(value)
    return treedef.unflatten(await asyncio.gather(*map(_materialize_leaf, leaves)))


async def _materialize_leaf(leaf: Any) -> Any:
    if isinstance(leaf, MaterializableValueReference):
        return await materialize_value(await leaf.get_value())
    return leaf
