"""Values that a program knows of before they are there."""

from __future__ import annotations

import abc
import asyncio
import concurrent.futures
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


def wait_for_values(value: Any) -> Any:
    """What `materialize_value` gives, for code that is not asynchronous; a value without references as it is.

    Args:
      value: a pytree, some leaves of which may be references.

    Example:
      >>> wait_for_values({"round": 3})
      {'round': 3}
    """
    if not any(isinstance(leaf, MaterializableValueReference) for leaf in jax.tree.leaves(value)):
        return value
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(materialize_value(value))
    # A thread whose event loop is running cannot run another one: this one waits for a thread that can.
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, materialize_value(value)).result()
