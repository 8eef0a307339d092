"""Clients whose examples are made when they are needed: populations of any size in no memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, final

from koinon.simulation._streamed import StreamedClientData, apply_to_clients


@final
class GeneratedClientData(StreamedClientData):
    """A federated dataset that a function makes, client by client: synthetic ones, and any storage of your own.

    Example:
      >>> import numpy as np
      >>> def examples_of(client_id):
      ...     rng = np.random.default_rng([7, client_id])
      ...     x = rng.normal(size=(1 + client_id % 5, 3)).astype(np.float32)
      ...     return {"x": x, "y": (x.sum(1) > 0).astype(np.int32)}
      >>> data = GeneratedClientData(1_000_000, examples_of)
      >>> data
      GeneratedClientData(<x=float32[3],y=int32>*, 1000000 clients)
      >>> data.cohort([3, 999_999])
      Cohort(2 of 2 clients, 9 examples)
    """

    def __init__(
        self,
        client_ids: int | Iterable[Hashable],
        fn: Callable[[Any], Any],
        *,
        num_examples_fn: Callable[[Any], int] | None = None,
        example_spec: Any = None,
    ) -> None:
        """Takes the clients and the function; calls nothing yet.

        Args:
          client_ids: the ids of the clients, or their number; the ids are then the integers from 0 on.
          fn: `(client_id)` to a container of stacked arrays `[examples, ...]`, the same each time that it is called;
            seed what it draws with the client id.
          num_examples_fn: `(client_id)` to the number of examples, if that is known for less than all of `fn`.
          example_spec: see `StreamedClientData`.
        """
        super().__init__(range(client_ids) if isinstance(client_ids, int) else client_ids, example_spec)
        self._fn = fn
        self._num_examples_fn = num_examples_fn

    def num_examples(self, client_id: Hashable) -> int:
        """The number of a client's examples.

        Raises:
          UnknownClientError: if there is no such client.
        """
        if self._num_examples_fn is None:
            return super().num_examples(client_id)
        self._check_known([client_id])
        return int(self._num_examples_fn(client_id))

    def _read(self, client_ids: Sequence[Hashable]) -> Iterator[Any]:
        return apply_to_clients(self._fn, client_ids, client_ids)
