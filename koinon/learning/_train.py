"""The training driver: rounds, evaluation, releases and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.learning._early_stopping import EarlyStopping
from koinon.learning._process import LearningProcess
from koinon.learning._rounds import RoundReport, Schedule, TrainingResult, run_rounds
from koinon.learning._training_run import TrainingData, TrainingRun
from koinon.program import ProgramStateManager, ReleaseManager
from koinon.types import SequenceType, StructType, strip_placement

_LOGGER = logging.getLogger("koinon.learning")


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
      evaluate: takes the model's weights and returns a pytree of numbers, for example a dict of metrics. It is called
        in a thread of its own, while the next round is computed.
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
    _check_kinds(process, data, release, state_manager)
    _check_calls(evaluate, callbacks)
    _check_examples(process, data)
    draw = _sampling_fn(data, clients_per_round, sampler, seed)
    # A sampler that does not fit the data shows before anything is computed.
    data.cohort(draw(1))

    run = TrainingRun(process, data, draw, callbacks, _settings(data, clients_per_round, seed), state_manager)
    run.begin(resume)
    result, is_interrupted = run_rounds(
        run,
        Schedule(
            rounds,
            evaluates=lambda number: number % evaluate_every == 0 or number == rounds,
            saves=lambda number: number % save_every == 0,
        ),
        evaluate=None if evaluate is None else lambda state, _: evaluate(run.model_weights(state)),
        release=lambda report: _release(release, report),
        callbacks=callbacks,
    )
    if is_interrupted:
        raise interruption(result, rounds, "the same call continues" if state_manager is not None else None)
    return result


def interruption(result: TrainingResult, rounds: int, saved: str | None) -> TrainingInterrupted:
    """What is raised where a signal has ended training, and logged; `saved` is how to go on, None if nothing is."""
    message = f"Stopped after round {result.round_number} of {rounds}"
    message += "." if saved is None else f"; everything is saved, and {saved}."
    _LOGGER.warning(message)
    return TrainingInterrupted(message, result)


def _release(managers: Sequence[ReleaseManager], report: RoundReport) -> None:
    for manager in managers:
        manager.release(report.released, report.round_number)


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


def _check_kinds(process: Any, data: Any, release: Any, state_manager: Any) -> None:
    if not isinstance(process, LearningProcess):
        raise KoinonTypeError(
            "What trains is a learning process.", expected="LearningProcess", found=type(process).__name__
        )
    if not hasattr(data, "client_ids") or not hasattr(data, "cohort"):
        raise KoinonTypeError(
            "What there is to train with is a federated dataset.",
            expected="an object with `client_ids` and `cohort(client_ids)`, such as a ClientData",
            found=type(data).__name__,
            hint="make one, for example with `ko.simulation.ClientData.from_clients`",
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


def _check_calls(evaluate: Any, callbacks: Any) -> None:
    if evaluate is not None and not callable(evaluate):
        raise KoinonTypeError("`evaluate` is a function of the model's weights.", found=repr(evaluate))
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise KoinonTypeError(
            "`callbacks` is a list of functions of a RoundReport.",
            found=repr(callbacks),
            hint="put it in a list: `callbacks=[callback]`" if callable(callbacks) else None,
        )
    if evaluate is None and any(isinstance(callback, EarlyStopping) for callback in callbacks):
        raise KoinonValueError(
            "Early stopping looks at evaluations, and there are none.", hint="give `train` a function `evaluate`"
        )


def _check_examples(process: LearningProcess, data: Any) -> None:
    """Checks the type of the clients' examples, where the data tells it."""
    parameter = process.next.type_signature.parameter
    assert isinstance(parameter, StructType)
    taken = strip_placement(parameter[-1])
    found = getattr(data, "element_type", None)
    if isinstance(taken, SequenceType) and found is not None and not taken.element.is_assignable_from(found):
        raise KoinonTypeError(
            "The clients' examples are not of the type that the learning process takes.",
            expected=taken.element,
            found=found,
            hint="convert the data with `data.preprocess(...)`, or build the model for this type",
        )
