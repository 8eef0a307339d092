"""Who reports when to a server that never waits for anybody: the schedule of buffered asynchronous aggregation."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.simulation._system import SystemModel


class Buffer(NamedTuple):
    """The reports that make one step of the server.

    Attributes:
      client_ids: the clients that report, in the order of arrival; one may report twice.
      staleness: int32 `[buffer]`, how many steps the server made while each client was at work.
      seconds: the simulated time at which the buffer was full.
      num_dropped: how many clients have vanished since the step before.
      num_too_stale: how many reports were thrown away since then.
    """

    client_ids: list[Any]
    staleness: np.ndarray
    seconds: float
    num_dropped: int
    num_too_stale: int


@final
class BufferedSchedule:
    """What arrives at the server of FedBuff, and when.

    At any time `concurrency` clients are at work, each since it was drawn, uniformly among those that are not, and
    began with the model of that moment. As soon as one reports or vanishes another one starts. The server makes a step
    with every `buffer_size` reports, which takes it no time, and before the client that starts then.

    None of this depends on what is learnt. So the schedule is a function of the system and the seed alone, and a run
    that was interrupted goes on from any step.

    Example:
      >>> system = SystemModel(seconds_per_example=1.0)
      >>> schedule = BufferedSchedule(range(4), system, lambda client_id: 10, concurrency=4, buffer_size=2)
      >>> [(buffer.seconds, buffer.staleness.tolist()) for buffer in schedule.buffers(4)]
      [(10.0, [0, 0]), (10.0, [1, 1]), (20.0, [2, 1]), (20.0, [2, 1])]

    References:
      Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", 2022, algorithm 1.
    """

    def __init__(
        self,
        population: Sequence[Any],
        system: SystemModel,
        num_examples: Callable[[Any], float | None],
        *,
        concurrency: int,
        buffer_size: int,
        max_staleness: int | None = None,
        epochs: int = 1,
        seed: int = 0,
    ) -> None:
        """Takes the parts.

        Args:
          population: the ids of the clients.
          system: their devices.
          num_examples: `(client_id)` to the number of examples, for example `data.num_examples`.
          concurrency: how many clients are at work at any time.
          buffer_size: how many reports make a step.
          max_staleness: reports that are staler are thrown away; None for none.
          epochs: how often a client goes through its examples.
          seed: where drawing the clients begins.

        Raises:
          KoinonTypeError: if `population` is no sequence, for example a sampling function.
          KoinonValueError: if `concurrency` is not positive or more than there are clients, `buffer_size` is not
            positive, or `max_staleness` is negative.
        """
        if not isinstance(population, Sequence):
            raise KoinonTypeError(
                "A buffered schedule draws from the ids of the clients itself.",
                expected="their ids, such as `data.client_ids`",
                found=type(population).__name__,
            )
        if not 1 <= concurrency <= len(population) or buffer_size < 1 or (max_staleness or 0) < 0:
            raise KoinonValueError(
                "A buffered schedule with these numbers is impossible.",
                expected=f"a concurrency from 1 to {len(population)}, a positive buffer size, no negative staleness",
                found=f"{concurrency=}, {buffer_size=}, {max_staleness=}",
            )
        self._population = population
        self._system = system
        self._num_examples = num_examples
        self._concurrency = concurrency
        self._buffer_size = buffer_size
        self._max_staleness = max_staleness
        self._epochs = epochs
        self._seed = seed

    def buffers(self, stop: int, start: int = 0) -> Iterator[Buffer]:
        """Yields the buffers of the steps from `start` to before `stop`; the steps before are played, not yielded."""
        for step, buffer in zip(range(stop), self._play(), strict=False):
            if step >= start:
                yield buffer

    def _play(self) -> Iterator[Buffer]:
        rng = np.random.default_rng(self._seed)
        at_work: set[int] = set()
        # Events are sorted by time, then by the number of the participation, which is different for all.
        events: list[tuple[float, int, int, int, bool]] = []
        step = num_started = 0

        def start_client(now: float) -> None:
            nonlocal num_started
            position = int(rng.integers(len(self._population)))
            while position in at_work:
                position = int(rng.integers(len(self._population)))
            at_work.add(position)
            client_id = self._population[position]
            work = self._epochs * (self._num_examples(client_id) or 0)
            seconds, reports = self._system.participate([client_id], [work], num_started)
            heapq.heappush(events, (now + float(seconds[0]), num_started, position, step, bool(reports[0])))
            num_started += 1

        for _ in range(self._concurrency):
            start_client(0.0)
        clients: list[Any] = []
        staleness: list[int] = []
        num_dropped = num_too_stale = 0
        while True:
            now, _, position, begun, reports = heapq.heappop(events)
            at_work.remove(position)
            if not reports:
                num_dropped += 1
            elif self._max_staleness is not None and step - begun > self._max_staleness:
                num_too_stale += 1
            else:
                clients.append(self._population[position])
                staleness.append(step - begun)
            if len(clients) == self._buffer_size:
                yield Buffer(clients, np.array(staleness, np.int32), now, num_dropped, num_too_stale)
                clients, staleness = [], []
                num_dropped = num_too_stale = 0
                step += 1
            start_client(now)
