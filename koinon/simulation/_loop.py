"""The training loop with the arguments and the keys of `tff.simulation.run_training_process`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.learning._rounds import RoundOutput, RoundReport, Schedule, run_rounds, to_host
from koinon.program import ProgramStateManager, ReleaseManager, wait_for_values
from koinon.templates import IterativeProcess

ROUND_NUMBER_KEY = "round_number"
"""The number of the round, among the released metrics."""
TRAINING_TIME_KEY = "training_time_in_seconds"
"""How long the training of a round took."""
EVALUATION_TIME_KEY = "evaluation_time_in_seconds"
"""How long the evaluation of a round took; released with the prefix of evaluations."""
EVALUATION_METRICS_PREFIX = "evaluation/"
"""What the names of the metrics of evaluations begin with."""


def run_training_process(
    training_process: IterativeProcess,
    training_selection_fn: Callable[[int], Any],
    total_rounds: int,
    evaluation_fn: Callable[[Any, Any], Any] | None = None,
    evaluation_selection_fn: Callable[[int], Any] | None = None,
    rounds_per_evaluation: int = 1,
    program_state_manager: ProgramStateManager | None = None,
    rounds_per_saving_program_state: int = 1,
    metrics_managers: Iterable[ReleaseManager] | None = None,
) -> Any:
    """Runs a process round by round, as `tff.simulation.run_training_process` does; for programs that come from TFF.

    The rounds are driven as by `koinon.learning.programs.train`, of which new programs have more. In difference to TFF,
    a program that is resumed goes on with the round after the saved one, and SIGINT or SIGTERM ends the loop after the
    round, with its state saved and a KeyboardInterrupt.

    Round 0 is that of the initial state: it is evaluated and saved if there is no saved state.

    Args:
      training_process: `next` takes the state and the data of a cohort, and returns the state and a mapping of metrics.
      training_selection_fn: takes the number of a round, and returns the data of its cohort.
      total_rounds: the number of the last round.
      evaluation_fn: takes the state and the data of a cohort, and returns a mapping of metrics; called in a thread of
        its own, while the next round is computed.
      evaluation_selection_fn: takes the number of a round, and returns the data of the cohort to evaluate with.
      rounds_per_evaluation: evaluates after the rounds that this divides.
      program_state_manager: saves the state of the process, and nothing else.
      rounds_per_saving_program_state: saves after the rounds that this divides.
      metrics_managers: get the metrics of each round, with `ROUND_NUMBER_KEY` and `TRAINING_TIME_KEY`, and those of
        evaluations with `EVALUATION_METRICS_PREFIX`.

    Returns:
      The state after the last round.

    Raises:
      KoinonValueError: if a number of rounds is no positive integer, or one of the two functions for evaluation is
        missing.
      KoinonTypeError: if `metrics_managers` is a release manager, and no list of them.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> initialize = ko.federated_computation(lambda: ko.federated_value(0.0, ko.SERVER))
      >>> @ko.federated_computation(ko.types.at_server(jnp.float32), ko.types.at_clients(jnp.float32))
      ... def next_fn(total, values):
      ...     total = ko.federated_map(lambda a, b: a + b, (total, ko.federated_sum(values)))
      ...     return total, {"total": total}
      >>> process = ko.templates.IterativeProcess(initialize, next_fn)
      >>> memory = ko.program.MemoryReleaseManager()
      >>> state = run_training_process(process, lambda round_num: [1.0] * round_num, 3, metrics_managers=[memory])
      >>> float(state)
      6.0
      >>> sorted(memory.values()[3])
      ['round_number', 'total', 'training_time_in_seconds']
    """
    for name, number in {
        "total_rounds": total_rounds,
        "rounds_per_evaluation": rounds_per_evaluation,
        "rounds_per_saving_program_state": rounds_per_saving_program_state,
    }.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise KoinonValueError(f"`{name}` must be a positive integer.", found=f"{name}={number!r}")
    if (evaluation_fn is None) != (evaluation_selection_fn is None):
        raise KoinonValueError("An evaluation needs both `evaluation_fn` and `evaluation_selection_fn`.")
    if isinstance(metrics_managers, ReleaseManager):
        raise KoinonTypeError(
            "`metrics_managers` is a list of release managers.",
            found=type(metrics_managers).__name__,
            hint="put it in a list: `metrics_managers=[manager]`",
        )
    managers = list(metrics_managers or ())

    def evaluate(state: Any, number: int) -> dict[str, Any]:
        assert evaluation_fn is not None
        assert evaluation_selection_fn is not None
        started = time.perf_counter()
        metrics = evaluation_fn(state, evaluation_selection_fn(number))
        timed = {**metrics, EVALUATION_TIME_KEY: time.perf_counter() - started}
        return {EVALUATION_METRICS_PREFIX + name: value for name, value in timed.items()}

    run = _ProcessRun(training_process, training_selection_fn, program_state_manager)
    if not run.was_resumed:
        if evaluation_fn is not None:
            _release(managers, to_host(evaluate(run.state, 0)), 0)
        run.save(run.snapshot())
    result, is_interrupted = run_rounds(
        run,
        Schedule(
            total_rounds,
            evaluates=lambda number: number % rounds_per_evaluation == 0,
            saves=lambda number: number % rounds_per_saving_program_state == 0,
            saves_at_end=False,
        ),
        evaluate=None if evaluation_fn is None else evaluate,
        release=lambda report: _release(managers, _metrics(report), report.round_number),
    )
    if is_interrupted:
        raise KeyboardInterrupt(f"Stopped after round {result.round_number} of {total_rounds}.")
    return result.state


class _ProcessRun:
    """The rounds of any iterative process, see `Run`; what is saved is its state, and nothing else."""

    def __init__(
        self,
        process: IterativeProcess,
        select: Callable[[int], Any],
        program_state_manager: ProgramStateManager | None,
    ) -> None:
        self.state, self.round_number = wait_for_values(process.initialize()), 0
        self.stopped = False
        self.runs_ahead = True
        self.was_resumed = False
        self._process = process
        self._select = select
        self._program_state_manager = program_state_manager
        self._saved_round = -1
        if program_state_manager is not None:
            saved, version = program_state_manager.load_latest(self.state)
            if saved is not None:
                self.state, self.round_number = saved, version
                self._saved_round, self.was_resumed = version, True

    def rounds(self, last: int) -> Generator[tuple[int, Any]]:
        for number in range(self.round_number + 1, last + 1):
            yield number, self._select(number)

    def next(self, state: Any, inputs: Any) -> RoundOutput:
        started = time.perf_counter()
        state, metrics = wait_for_values(self._process.next(state, inputs))
        # On the host, since until then the round may still be on its way.
        return RoundOutput(state, {**to_host(metrics), TRAINING_TIME_KEY: time.perf_counter() - started})

    def complete(self, number: int, inputs: Any, output: RoundOutput, stopped: bool) -> None:
        del inputs
        self.round_number, self.state, self.stopped = number, output.state, stopped

    def snapshot(self) -> tuple[Any, int]:
        return self.state, self.round_number

    def save(self, snapshot: tuple[Any, int]) -> None:
        state, number = snapshot
        if self._program_state_manager is not None and number != self._saved_round:
            self._program_state_manager.save(state, number)
            self._saved_round = number


def _metrics(report: RoundReport) -> dict[str, Any]:
    return {**report.metrics, ROUND_NUMBER_KEY: report.round_number, **(report.evaluation or {})}


def _release(managers: list[ReleaseManager], metrics: dict[str, Any], number: int) -> None:
    for manager in managers:
        manager.release(metrics, number)
