"""The state of a training run, from round to round and in checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from koinon._errors import ProgramStateError, ProgramStateExistsError, ProgramStateStructureError
from koinon.learning._process import LearningProcess
from koinon.learning._rounds import RoundOutput
from koinon.program import ClientStateStore, ProgramStateManager, wait_for_values


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


class TrainingCheckpoint(NamedTuple):
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
    """A training run and its checkpoints, see `Run`; `draw` gives the clients of a round by its number."""

    def __init__(
        self,
        process: LearningProcess,
        data: TrainingData,
        draw: Callable[[int], list[Hashable]],
        callbacks: Sequence[Any],
        settings: dict[str, int],
        state_manager: ProgramStateManager | None,
    ) -> None:
        self.round_number = 0
        self.stopped = False
        # The states of a round's clients must be in their table before the next round reads it.
        self.runs_ahead = process.initialize_client_state is None
        self._process = process
        self._data = data
        self._draw = draw
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
        self.state = wait_for_values(self._process.initialize())
        fresh = self._process.initialize_client_state
        self._clients = None if fresh is None else ClientStateStore(fresh, self._data.client_ids)
        if self._state_manager is not None:
            saved, version = self._load(self._state_manager)
            if saved is not None:
                self._continue(saved, version)
        self.save(self.snapshot())

    def rounds(self, last: int) -> Generator[tuple[int, tuple[list[Hashable], Any]]]:
        """The number of each round that is left, and its clients with their data."""
        prefetch = getattr(self._data, "prefetch", None)
        if prefetch is None:
            for number in self._remaining(last):
                client_ids = self._draw(number)
                yield number, (client_ids, self._data.cohort(client_ids))
            return
        # Data that is not in memory makes the next cohort while this one is worked with.
        with contextlib.closing(prefetch(map(self._draw, range(self.round_number + 1, last + 1)))) as ahead:
            for number, cohort in zip(self._remaining(last), ahead, strict=False):
                yield number, (self._draw(number), cohort)

    def next(self, state: Any, inputs: tuple[list[Hashable], Any]) -> RoundOutput:
        """Computes a round, and changes nothing."""
        client_ids, cohort = inputs
        if self._clients is None:
            output = wait_for_values(self._process.next(state, cohort))
            return RoundOutput(output.state, output.metrics)
        output = self._process.next(state, self._clients.rows(client_ids), cohort)
        return RoundOutput(output.state, output.metrics, output.client_state)

    def model_weights(self, state: Any) -> Any:
        """The weights of the model in a state of the process."""
        return wait_for_values(self._process.get_model_weights(state))

    def complete(self, number: int, inputs: tuple[list[Hashable], Any], output: RoundOutput, stopped: bool) -> None:
        """Takes over what a round has computed."""
        self.round_number, self.state, self.stopped = number, output.state, stopped
        if self._clients is not None:
            self._clients.update(inputs[0], output.kept)

    def snapshot(self) -> TrainingCheckpoint:
        """What a checkpoint of this moment holds; later rounds do not change it."""
        return TrainingCheckpoint(
            self.round_number,
            self.state,
            # A copy, because the next round writes the states of its clients in place.
            () if self._clients is None else jax.tree.map(np.array, self._clients.state),
            tuple(jax.tree.map(lambda leaf: leaf, callback.state) for callback in self._callbacks),
            self.stopped,
            self._settings,
        )

    def save(self, snapshot: TrainingCheckpoint) -> None:
        """Saves a checkpoint, unless its round has one."""
        if self._state_manager is not None and self._saved_round != snapshot.round_number:
            self._state_manager.save(snapshot, snapshot.round_number)
            self._saved_round = snapshot.round_number

    def _load(self, manager: ProgramStateManager) -> tuple[TrainingCheckpoint | None, int]:
        try:
            return manager.load_latest(self.snapshot())
        except ProgramStateStructureError as error:
            raise ProgramStateStructureError(
                "The saved run is of another process, or had other callbacks.",
                expected=error.expected,
                found=error.found,
                differs=error.differs,
                hint="resume with what the run was started with, or save to an empty directory",
            ) from error

    def _remaining(self, last: int) -> Iterator[int]:
        for number in range(self.round_number + 1, last + 1):
            if self.stopped:
                return
            yield number

    def _continue(self, saved: TrainingCheckpoint, version: int) -> None:
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
