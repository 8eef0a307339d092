"""The training driver: rounds, evaluation, releases and checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError, ProgramStateError, ProgramStateExistsError
from koinon.learning._client_state_table import ClientStateTable
from koinon.learning._history import History
from koinon.learning._process import LearningProcess
from koinon.learning._stop import StopSignals
from koinon.program import ProgramStateManager, ReleaseManager
from koinon.types import SequenceType

_LOGGER = logging.getLogger("koinon.learning")


class TrainingData(Protocol):
    """What a driver needs of a federated dataset; `koinon.simulation.ClientData` is one."""

    @property
    def client_ids(self) -> Sequence[Hashable]:
        """The ids of the clients."""
        ...

    def cohort(self, client_ids: Iterable[Hashable]) -> Any:
        """What a learning process takes as the data of these clients."""
        ...


class RoundReport(NamedTuple):
    """What is known about a round when it is over.

    Attributes:
      round_number: the number of the round; the first is 1.
      metrics: the metrics of the process, its arrays copied to the host, scalars as Python numbers.
      evaluation: what `evaluate` returned, likewise; None if this round was not evaluated.
      seconds: how long the round took, its evaluation included.
    """

    round_number: int
    metrics: Any
    evaluation: Any
    seconds: float

    @property
    def released(self) -> dict[str, Any]:
        """What release managers get: the metrics, and the evaluation under that name."""
        metrics = dict(self.metrics) if isinstance(self.metrics, Mapping) else {"metrics": self.metrics}
        return metrics if self.evaluation is None else {**metrics, "evaluation": self.evaluation}


class TrainingResult(NamedTuple):
    """What training returns.

    Attributes:
      state: the state of the process after the last round.
      round_number: the number of that round.
      history: the numbers of the rounds that this call has run; not of those before it resumed.
      stopped_early: whether a callback ended the training before the last round.
    """

    state: Any
    round_number: int
    history: History
    stopped_early: bool


class TrainingInterrupted(SystemExit):
    """Training was stopped by SIGINT or SIGTERM, between two rounds, with everything saved.

    Left alone, it ends the program with exit status 130.

    Attributes:
      message: what happened, in a sentence; it is logged as a warning too.
      result: the `TrainingResult` up to there.
    """

    def __init__(self, message: str, result: TrainingResult) -> None:
        super().__init__(130)
        self.message = message
        self.result = result

    def __str__(self) -> str:
        return self.message


class ProgramState(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      round_number: the last round that is over.
      state: the state of the process.
      client_states: the rows of the states that clients keep; `()` for a process without.
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


def train(
    process: LearningProcess,
    data: TrainingData,
    *,
    rounds: int,
    clients_per_round: int | None,
    sampler: Callable[..., Iterable[Hashable]] | None = None,
    seed: int = 0,
    evaluate: Callable[[Any], Any] | None = None,
    evaluate_every: int = 1,
    release: Sequence[ReleaseManager] = (),
    state_manager: ProgramStateManager | None = None,
    save_every: int = 1,
    callbacks: Sequence[Callable[[RoundReport], bool | None]] = (),
    resume: bool = True,
) -> TrainingResult:
    """Trains a model: round after round on another cohort, with evaluation, releases and checkpoints.

    A run that was stopped at any moment, also by a crash or by `kill -9`, and is started again with the same arguments
    ends with the same bits as one that was not, and has released each round once. SIGINT (Ctrl-C) and SIGTERM end
    training after the current round, a second one abandons that round; either way everything is saved and
    `TrainingInterrupted` is raised.

    Args:
      process: the learning process. Clients that keep a state (see `LearningProcess`) get it back whenever they take
        part.
      data: the data of the clients, for example a `koinon.simulation.ClientData`.
      rounds: the number of the last round.
      clients_per_round: the number of clients of a cohort; None if `sampler` decides that too.
      sampler: takes the number of a round and `clients_per_round`, unless that is None, and returns the ids of the
        clients of that round, see `koinon.simulation.build_uniform_sampling_fn`. It must depend on nothing else. By
        default clients are drawn uniformly and without replacement, by `seed` and the number of the round.
      seed: where the randomness of the default sampler begins; a non-negative integer.
      evaluate: takes the model's weights and returns a pytree of numbers, for example a dict of metrics.
      evaluate_every: evaluates after the rounds that this divides, and after the last one.
      release: the release managers that get each round's metrics, and under `evaluation` what `evaluate` returned; the
        key is the number of the round.
      state_manager: keeps the checkpoints; None for none.
      save_every: saves a checkpoint after the rounds that this divides, and at the end.
      callbacks: called with the `RoundReport` of each round; one that returns True ends the training after this round.
        A callback that remembers something has an attribute `state`, a pytree that can be read and set, which is saved
        and restored, see `EarlyStopping`.
      resume: whether to continue from the newest checkpoint that is whole, if there is any.

    Returns:
      The state after the last round, and the numbers of the rounds that this call has run.

    Raises:
      KoinonTypeError: an argument is of the wrong kind, or the examples are not what the process takes.
      KoinonValueError: a number is out of range, or a cohort cannot be drawn.
      ProgramStateExistsError: there are checkpoints, and `resume` is False.
      ProgramStateError: the checkpoints are of a run with another seed or other cohorts; or see
        `FileProgramStateManager.load_latest`.
      TrainingInterrupted: SIGINT or SIGTERM came.

    Example:
      >>> import jax.numpy as jnp, numpy as np, koinon as ko, optax
      >>> x = np.linspace(0, 1, 12, dtype=np.float32)
      >>> data = ko.simulation.ClientData.from_arrays({"x": x, "y": 3 * x}, np.arange(12) % 4)
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w * x, jnp.float32(0.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> process = ko.learning.algorithms.build_weighted_fed_avg(model, optax.sgd(0.5), batch_size=3)
      >>> result = ko.learning.programs.train(process, data, rounds=20, clients_per_round=2)
      >>> round(float(process.get_model_weights(result.state).trainable), 1)
      3.0
      >>> result.history["client_work/train/num_examples"][-1]
      np.float64(6.0)
    """
    for name, number in {"rounds": rounds, "evaluate_every": evaluate_every, "save_every": save_every}.items():
        _check_positive(name, number)
    _check_kinds(process, release, state_manager)
    _check_examples(process, data)
    draw = _sampling_fn(data, clients_per_round, sampler, seed)
    # A sampler that does not fit the data shows before anything is computed.
    data.cohort(draw(1))

    run = _Run(process, data, callbacks, _settings(data, clients_per_round, seed), state_manager)
    run.begin(resume)
    history = History()
    with StopSignals() as stop:
        try:
            for number in run.remaining(rounds):
                started = time.perf_counter()
                client_ids = draw(number)
                state, client_states, metrics = run.next(client_ids)
                evaluation = None
                if evaluate is not None and (number % evaluate_every == 0 or number == rounds):
                    evaluation = to_host(evaluate(process.get_model_weights(state)))
                report = RoundReport(number, to_host(metrics), evaluation, time.perf_counter() - started)
                # Every callback is asked, also after one that wants to stop.
                stopped = any([bool(callback(report)) for callback in callbacks])
                with stop.deferred():
                    for manager in release:
                        manager.release(report.released, number)
                    run.complete(number, state, client_ids, client_states, stopped)
                    history.append({"round": number, **report.released, "seconds": report.seconds})
                    if number % save_every == 0:
                        run.save()
                if stop.requested:
                    break
        except KeyboardInterrupt:
            stop.requested = True
        finally:
            with stop.deferred():
                run.save()
    result = TrainingResult(run.state, run.round_number, history, run.stopped)
    if stop.requested and run.round_number < rounds and not run.stopped:
        message = f"Stopped after round {run.round_number} of {rounds}"
        message += "; everything is saved, and the same call continues." if state_manager is not None else "."
        _LOGGER.warning(message)
        raise TrainingInterrupted(message, result)
    return result


class _Run:
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
        self._data = data
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
        self._clients = None if fresh is None else ClientStateTable(fresh(), self._data.client_ids)
        if self._state_manager is not None:
            saved, version = self._state_manager.load_latest(self._program_state())
            if saved is not None:
                self._continue(saved, version)
        self.save()

    def remaining(self, rounds: int) -> Iterator[int]:
        """The numbers of the rounds that are left to do."""
        for number in range(self.round_number + 1, rounds + 1):
            if self.stopped:
                return
            yield number

    def next(self, client_ids: list[Hashable]) -> tuple[Any, Any, Any]:
        """Runs a round; returns the new state, those of the clients and the metrics, and changes nothing."""
        cohort = self._data.cohort(client_ids)
        if self._clients is None:
            output = self._process.next(self.state, cohort)
            return output.state, None, output.metrics
        output = self._process.next(self.state, self._clients.read(client_ids), cohort)
        return output.state, output.client_state, output.metrics

    def complete(
        self, number: int, state: Any, client_ids: list[Hashable], client_states: Any, stopped: bool
    ) -> None:
        """Takes over what a round has returned."""
        self.round_number, self.state, self.stopped = number, state, stopped
        if self._clients is not None:
            self._clients.write(client_ids, client_states)

    def save(self) -> None:
        """Saves a checkpoint, unless this round has one."""
        if self._state_manager is not None and self._saved_round != self.round_number:
            self._state_manager.save(self._program_state(), self.round_number)
            self._saved_round = self.round_number

    def _program_state(self) -> ProgramState:
        return ProgramState(
            self.round_number,
            self.state,
            () if self._clients is None else self._clients.rows,
            tuple(callback.state for callback in self._callbacks),
            self.stopped,
            self._settings,
        )

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
            self._clients.rows = jax.tree.map(np.array, saved.client_states)
        for callback, state in zip(self._callbacks, saved.callbacks, strict=True):
            callback.state = state


def to_host(tree: Any) -> Any:
    """A pytree with its arrays as NumPy arrays, and those without dimensions as Python numbers."""
    return jax.tree.map(
        lambda leaf: leaf.item() if isinstance(leaf, np.ndarray | np.generic) and leaf.ndim == 0 else leaf,
        jax.device_get(tree),
    )


def _settings(data: TrainingData, clients_per_round: int | None, seed: int) -> dict[str, int]:
    return {"seed": seed, "clients_per_round": clients_per_round or 0, "num_clients": len(data.client_ids)}


def _sampling_fn(
    data: TrainingData, clients_per_round: int | None, sampler: Callable[..., Iterable[Hashable]] | None, seed: int
) -> Callable[[int], list[Hashable]]:
    """The clients of each round."""
    population = data.client_ids
    if not len(population):
        raise KoinonValueError("There are no clients to train with.", hint="give `train` a dataset with clients")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise KoinonValueError("`seed` must be a non-negative integer.", found=repr(seed))
    if clients_per_round is not None:
        _check_positive("clients_per_round", clients_per_round)
    if sampler is not None:
        sizes = () if clients_per_round is None else (clients_per_round,)
        return lambda number: list(sampler(number, *sizes))
    if clients_per_round is None:
        raise KoinonValueError(
            "Without `clients_per_round` there must be a `sampler` that decides how many clients a round has."
        )
    if clients_per_round > len(population):
        raise KoinonValueError(
            f"A cohort of {clients_per_round} clients cannot be drawn.",
            expected=f"1 to {len(population)} clients, as many as there are in the data",
            found=f"clients_per_round={clients_per_round}",
        )

    def draw(number: int) -> list[Hashable]:
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        return [population[i] for i in generator.choice(len(population), clients_per_round, replace=False).tolist()]

    return draw


def _check_positive(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
        raise KoinonValueError(f"`{name}` must be a positive integer.", found=f"{name}={number!r}")


def _check_kinds(process: Any, release: Any, state_manager: Any) -> None:
    if not isinstance(process, LearningProcess):
        raise KoinonTypeError(
            "What trains is a learning process.", expected="LearningProcess", found=type(process).__name__
        )
    if not isinstance(release, Sequence) or not all(isinstance(manager, ReleaseManager) for manager in release):
        raise KoinonTypeError(
            "`release` is a list of release managers.",
            expected="objects with a method `release(value, key)`",
            found=repr(release),
            hint="put it in a list: `release=[manager]`" if isinstance(release, ReleaseManager) else None,
        )
    if state_manager is not None and not isinstance(state_manager, ProgramStateManager):
        raise KoinonTypeError(
            "Checkpoints are kept by a program state manager.",
            expected="for example FileProgramStateManager(directory)",
            found=repr(state_manager),
        )


def _check_examples(process: LearningProcess, data: Any) -> None:
    """Checks the type of the clients' examples, where the data tells it."""
    taken = process.next.type_signature.parameter[-1].member
    found = getattr(data, "element_type", None)
    if isinstance(taken, SequenceType) and found is not None and not taken.element.is_assignable_from(found):
        raise KoinonTypeError(
            "The clients' examples are not of the type that the learning process takes.",
            expected=taken.element,
            found=found,
            hint="convert the data with `data.preprocess(...)`, or build the model for this type",
        )
