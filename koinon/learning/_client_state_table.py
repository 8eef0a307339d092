"""The states that clients keep between rounds, for all clients of a simulation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

from koinon._errors import KoinonValueError


class ClientStateTable:
    """One row for each client, and so of one structure however many clients took part: as checkpoints need it.

    Attributes:
      rows: the pytree of a client's state, with a leading dimension for the clients; PRNG keys as their data.
    """

    def __init__(self, initial: Any, client_ids: Sequence[Hashable]) -> None:
        """Gives every client the state of one that has not taken part yet."""
        self._like = initial
        self._index = {client_id: position for position, client_id in enumerate(client_ids)}
        self.rows: Any = jax.tree.map(lambda leaf: np.repeat(_to_numpy(leaf)[None], len(self._index), axis=0), initial)

    def read(self, client_ids: Sequence[Hashable]) -> list[Any]:
        """The state of each of these clients.

        Raises:
          KoinonValueError: if a client occurs twice, because then there would be two states to keep of it.
        """
        if len(set(client_ids)) != len(client_ids):
            raise KoinonValueError(
                "A client that keeps a state takes part at most once in a round.",
                found=f"{len(client_ids)} clients, {len(set(client_ids))} of them distinct",
                hint="sample without replacement",
            )
        return [
            jax.tree.map(
                lambda like, column, row=self._index[client_id]: _like(column[row], like), self._like, self.rows
            )
            for client_id in client_ids
        ]

    def write(self, client_ids: Sequence[Hashable], states: Sequence[Any]) -> None:
        """Keeps the state of each of these clients."""
        for client_id, state in zip(client_ids, states, strict=True):
            row = self._index[client_id]
            for column, leaf in zip(jax.tree.leaves(self.rows), jax.tree.leaves(state), strict=True):
                column[row] = _to_numpy(leaf)


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _like(row: np.ndarray, like: Any) -> Any:
    return jax.random.wrap_key_data(row, impl=jax.random.key_impl(like)) if _is_key(like) else row


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
