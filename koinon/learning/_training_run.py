"""The state of a training run, from round to round and in checkpoints."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from koinon._errors import ProgramStateError, ProgramStateExistsError
from koinon.learning._process import LearningProcess
from koinon.program import ClientStateStore, ProgramStateManager


class TrainingData(Protocol):
    """What a driver needs of a federated dataset; `koinon.simulation.ClientData` is one."""

    @property
    def client_ids(self) -> Sequence[Hashable]:
        """The ids of the clients."""
        ...

    def cohort(self, client_ids: Iterable[Hashable]) -> Any:
        """What a learning process takes as the data of these clients."""
        ...

    # Data may also have `prefetch(selections)`, which takes an iterable of client ids for each round, and returns a
    # generator of the cohorts, see `koinon.simulation.StreamedClientData`.


class ProgramState(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      round_number: the last round that is over.
      state: the state of the process.
      client_states: the states that clients keep, as `ClientStates`; `()` for a process without.
      callbacks: the states of those callbacks that have one.
      stopped: whether a callback has ended the training.
      settings: what a resumed run must share with the one that it continues.
    """

    round_number: int
    state: Any
    client_states: Any
    callbacks: tuple[Any, ...]
    stopped: bool
    settings: dict[str, int]


class TrainingRun:
    """The state of a training run, and its checkpoints."""

    def __init__(
        self,
        process: LearningProcess,
        data: TrainingData,
        callbacks: Sequence[Any],
        settings: dict[str, int],
        state_manager: ProgramStateManager | None,
    ) -> None:
        self.round_number = 0
        self.stopped = False
        self._process = process
        self._client_ids = data.client_ids
        self._callbacks = [callback for callback in callbacks if hasattr(callback, "state")]
        self._settings = settings
        self._state_manager = state_manager
        self._saved_round = -1

    def begin(self, resume: bool) -> None:
        """Takes the state of the newest checkpoint, or the initial one, which becomes the first checkpoint."""
        versions = None if self._state_manager is None else self._state_manager.get_versions()
        if versions and not resume:
            raise ProgramStateExistsError(
                "There are checkpoints of a run already.",
                found=f"rounds up to {versions[-1]}",
                hint="pass `resume=True` to continue it, or save to an empty directory",
            )
        self.state = self._process.initialize()
        fresh = self._process.initialize_client_state
        self._clients = None if fresh is None else ClientStateStore(fresh, self._client_ids)
        if self._state_manager is not None:
            saved, version = self._state_manager.load_latest(self.snapshot())
            if saved is not None:
                self._continue(saved, version)
        self.save(self.snapshot())

    def remaining(self, rounds: int) -> Iterator[int]:
        """The numbers of the rounds that are left to do."""
        for number in range(self.round_number + 1, rounds + 1):
            if self.stopped:
                return
            yield number

    def next(self, client_ids: list[Hashable], cohort: Any) -> tuple[Any, Any, Any]:
        """Runs a round; returns the new state, those of the clients and the metrics, and changes nothing."""
        if self._clients is None:
            output = self._process.next(self.state, cohort)
            return output.state, None, output.metrics
        output = self._process.next(self.state, self._clients.rows(client_ids), cohort)
        return output.state, output.client_state, output.metrics

    def complete(self, number: int, state: Any, client_ids: list[Hashable], client_states: Any, stopped: bool) -> None:
        """Takes over what a round has returned."""
        self.round_number, self.state, self.stopped = number, state, stopped
        if self._clients is not None:
            self._clients.update(client_ids, client_states)

    def snapshot(self) -> ProgramState:
        """What a checkpoint of this moment holds; later rounds do not change it."""
        return ProgramState(
            self.round_number,
            self.state,
            # A copy, because the next round writes the states of its clients in place.
            () if self._clients is None else jax.tree.map(np.array, self._clients.state),
            tuple(jax.tree.map(lambda leaf: leaf, callback.state) for callback in self._callbacks),
            self.stopped,
            self._settings,
        )

    def save(self, snapshot: ProgramState) -> None:
        """Saves a checkpoint, unless its round has one."""
        if self._state_manager is not None and self._saved_round != snapshot.round_number:
            self._state_manager.save(snapshot, snapshot.round_number)
            self._saved_round = snapshot.round_number

    def _continue(self, saved: ProgramState, version: int) -> None:
        if saved.settings != self._settings:
            name = next(name for name in saved.settings if saved.settings[name] != self._settings[name])
            raise ProgramStateError(
                f"The saved run has another `{name}`, and would not go on as it began.",
                expected=f"{name}={saved.settings[name]}",
                found=f"{name}={self._settings[name]}",
                hint="resume with what the run was started with, or save to an empty directory",
            )
        self.state, self.round_number, self._saved_round = saved.state, saved.round_number, version
        self.stopped = saved.stopped
        if self._clients is not None:
            self._clients.state = saved.client_states
        for callback, state in zip(self._callbacks, saved.callbacks, strict=True):
            callback.state = state
