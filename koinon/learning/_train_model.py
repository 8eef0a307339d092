"""The training program with the arguments of `tff.learning.programs.train_model`."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, final

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.learning._process import LearningProcess
from koinon.learning._rounds import RoundOutput, RoundReport, Schedule, run_rounds, to_host
from koinon.learning._train import interruption
from koinon.program import (
    FederatedDataSource,
    FederatedDataSourceIterator,
    ProgramStateManager,
    ReleaseManager,
    wait_for_values,
)
from koinon.types import FederatedType

_MODEL_PERIODICITY = 10


class ProgramState(NamedTuple):
    """What `train_model` saves after each round.

    Attributes:
      state: the state of the training process.
      round_number: the last round that is over.
      next_evaluation_timestamp_seconds: when the next evaluation is due, in seconds since 1970; 0 where the evaluations
        are counted in rounds.
      data_iterator: the state of the iterator that chooses the clients.
    """

    state: Any
    round_number: int
    next_evaluation_timestamp_seconds: int
    data_iterator: Any


@final
class EvaluationManager:
    """Evaluates models on clients of a data source, and releases what comes of it.

    Example:
      >>> import jax.numpy as jnp, numpy as np, koinon as ko
      >>> x = np.linspace(0, 1, 8, dtype=np.float32)
      >>> data = ko.simulation.ClientData.from_arrays({"x": x, "y": 3 * x}, np.arange(8) % 4)
      >>> model = ko.learning.models.functional(
      ...     lambda w, x: w * x, jnp.float32(3.0),
      ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
      ... )
      >>> manager = EvaluationManager(
      ...     ko.program.DatasetDataSource(data), ko.program.MemoryReleaseManager(),
      ...     ko.learning.algorithms.build_fed_eval(model, batch_size=4), cohort_size=2,
      ... )
      >>> metrics = manager.evaluate(model.initial_weights)
      >>> round(metrics["client_work"]["eval"]["current_round_metrics"]["loss"], 3)
      0.0
    """

    def __init__(
        self,
        data_source: FederatedDataSource,
        aggregated_metrics_manager: ReleaseManager,
        evaluation_process: LearningProcess,
        cohort_size: int,
    ) -> None:
        """Takes the parts.

        Args:
          data_source: the clients to evaluate with; every evaluation begins with a new iterator.
          aggregated_metrics_manager: gets the metrics of each evaluation; the key is the number of the training round.
          evaluation_process: for example of `koinon.learning.algorithms.build_fed_eval`; each evaluation starts with
            its initial state.
          cohort_size: the number of clients of an evaluation.

        Raises:
          KoinonTypeError: an argument is of the wrong kind.
          KoinonValueError: `cohort_size` is not positive.
        """
        _check_kind("data_source", data_source, FederatedDataSource)
        _check_kind("aggregated_metrics_manager", aggregated_metrics_manager, ReleaseManager)
        _check_kind("evaluation_process", evaluation_process, LearningProcess)
        _check_positive("cohort_size", cohort_size)
        self._data_source = data_source
        self._metrics_manager = aggregated_metrics_manager
        self._process = evaluation_process
        self._cohort_size = cohort_size

    def evaluate(self, model_weights: Any) -> Any:
        """The metrics of a model, as a pytree of NumPy arrays and numbers."""
        state = self._process.set_model_weights(self._process.initialize(), model_weights)
        return to_host(self._process.next(state, self._data_source.iterator().select(self._cohort_size)).metrics)

    def release(self, metrics: Any, round_number: int) -> None:
        """Releases the metrics of the evaluation after a round of training."""
        self._metrics_manager.release(metrics, round_number)


def train_model(
    *,
    train_process: LearningProcess,
    initial_train_state: Any = None,
    train_data_source: FederatedDataSource,
    train_per_round_clients: int,
    train_total_rounds: int,
    should_retry_round: Callable[[Any], bool] | None = None,
    program_state_manager: ProgramStateManager,
    model_output_manager: ReleaseManager,
    train_metrics_manager: ReleaseManager | None = None,
    evaluation_manager: EvaluationManager | None = None,
    evaluation_periodicity: int | datetime.timedelta = 1,
) -> None:
    """Trains on the clients of a data source, as `tff.learning.programs.train_model` does; for programs of TFF.

    The rounds are driven as by `koinon.learning.programs.train`. The call returns when all is done, rather than to be
    awaited. It runs on every backend, `NativeFederatedContext` among them, and goes on where it was stopped.

    Args:
      train_process: the learning process; its clients keep no state.
      initial_train_state: the state to begin with; None for that of `train_process.initialize`.
      train_data_source: the clients to train with.
      train_per_round_clients: the number of clients of a cohort.
      train_total_rounds: the number of the last round.
      should_retry_round: takes the metrics of a round; where it returns True, the round is thrown away and computed
        again with other clients. None for never.
      program_state_manager: keeps a `ProgramState` after every round.
      model_output_manager: gets the state of the process after every tenth round and the last one; the key is
        `"training_checkpoint_round_10"`, for example.
      train_metrics_manager: gets the metrics of each round; the key is its number.
      evaluation_manager: evaluates the model; None for no evaluation.
      evaluation_periodicity: after how many rounds the model is evaluated, or after how much time; it is evaluated
        after the last round too.

    Raises:
      KoinonTypeError: an argument is of the wrong kind, or the data is not what the process takes.
      KoinonValueError: a number or a time is not positive.
      TrainingInterrupted: SIGINT or SIGTERM came.
    """
    _check_kind("train_process", train_process, LearningProcess)
    _check_kind(
        "train_data_source",
        train_data_source,
        FederatedDataSource,
        hint="for a federated dataset, `koinon.program.DatasetDataSource(data)`",
    )
    _check_kind("program_state_manager", program_state_manager, ProgramStateManager)
    _check_kind("model_output_manager", model_output_manager, ReleaseManager)
    if train_metrics_manager is not None:
        _check_kind("train_metrics_manager", train_metrics_manager, ReleaseManager)
    if evaluation_manager is not None:
        _check_kind("evaluation_manager", evaluation_manager, EvaluationManager)
    _check_positive("train_per_round_clients", train_per_round_clients)
    _check_positive("train_total_rounds", train_total_rounds)
    _check_data(train_process, train_data_source.federated_type)
    period = _Period(evaluation_periodicity, train_total_rounds)
    run = _ProgramRun(
        train_process,
        initial_train_state,
        train_data_source,
        train_per_round_clients,
        should_retry_round,
        program_state_manager,
        period,
    )

    def evaluate(state: Any, number: int) -> Any:
        del number
        assert evaluation_manager is not None
        return evaluation_manager.evaluate(wait_for_values(train_process.get_model_weights(state)))

    def release(report: RoundReport, state: Any) -> None:
        if train_metrics_manager is not None:
            train_metrics_manager.release(report.metrics, report.round_number)
        if evaluation_manager is not None and report.evaluation is not None:
            evaluation_manager.release(report.evaluation, report.round_number)
        if report.round_number % _MODEL_PERIODICITY == 0 or report.round_number == train_total_rounds:
            model_output_manager.release(state, f"training_checkpoint_round_{report.round_number}")

    result, is_interrupted = run_rounds(
        run,
        Schedule(train_total_rounds, evaluates=period.is_due, saves=lambda number: True),
        evaluate=None if evaluation_manager is None else evaluate,
        release=lambda report: release(report, run.states.pop(report.round_number)),
    )
    if is_interrupted:
        raise interruption(result, train_total_rounds, "the same call continues")


class _Period:
    """When the next evaluation is due: after so many rounds, or so much time."""

    def __init__(self, periodicity: int | datetime.timedelta, last_round: int) -> None:
        self._rounds = self._seconds = None
        if isinstance(periodicity, datetime.timedelta):
            self._seconds = periodicity.total_seconds()
            if self._seconds <= 0:
                raise KoinonValueError("`evaluation_periodicity` must be a positive time.", found=repr(periodicity))
        else:
            _check_positive("evaluation_periodicity", periodicity)
            self._rounds = periodicity
        self._last_round = last_round
        self.next_timestamp = 0

    def is_due(self, number: int) -> bool:
        """Whether to evaluate after a round that is over now."""
        is_due = False
        if self._rounds is not None:
            is_due = number % self._rounds == 0
        elif self._seconds is not None and time.time() >= self.next_timestamp:
            is_due, self.next_timestamp = True, int(time.time() + self._seconds)
        return is_due or number == self._last_round


class _ProgramRun:
    """The rounds of `train_model`, see `Run`."""

    def __init__(
        self,
        process: LearningProcess,
        initial_state: Any,
        source: FederatedDataSource,
        clients_per_round: int,
        should_retry_round: Callable[[Any], bool] | None,
        manager: ProgramStateManager,
        period: _Period,
    ) -> None:
        self.state = wait_for_values(process.initialize() if initial_state is None else initial_state)
        self.round_number = 0
        self.stopped = False
        self.runs_ahead = True
        # The states that wait to be released.
        self.states: dict[int, Any] = {}
        self._process = process
        self._source = source
        self._clients_per_round = clients_per_round
        self._should_retry_round = should_retry_round
        self._manager = manager
        self._period = period
        self._chosen = source.iterator().state
        self._saved_round = -1
        saved, version = manager.load_latest(self.snapshot())
        if saved is not None:
            self.state, self.round_number, period.next_timestamp, self._chosen = saved
            self._saved_round = version

    def rounds(self, last: int) -> Generator[tuple[int, FederatedDataSourceIterator]]:
        chooser = self._source.iterator(self._chosen)
        for number in range(self.round_number + 1, last + 1):
            yield number, chooser

    def next(self, state: Any, inputs: FederatedDataSourceIterator) -> RoundOutput:
        while True:
            output = wait_for_values(self._process.next(state, inputs.select(self._clients_per_round)))
            if self._should_retry_round is None or not self._should_retry_round(to_host(output.metrics)):
                return RoundOutput(output.state, output.metrics, inputs.state)

    def complete(self, number: int, inputs: Any, output: RoundOutput, stopped: bool) -> None:
        del inputs
        self.round_number, self.state, self.stopped, self._chosen = number, output.state, stopped, output.kept
        self.states[number] = output.state

    def snapshot(self) -> ProgramState:
        return ProgramState(self.state, self.round_number, self._period.next_timestamp, self._chosen)

    def save(self, snapshot: ProgramState) -> None:
        if snapshot.round_number != self._saved_round:
            self._manager.save(snapshot, snapshot.round_number)
            self._saved_round = snapshot.round_number


def _check_kind(name: str, value: Any, kind: type, hint: str | None = None) -> None:
    if not isinstance(value, kind):
        found = repr(value)[:200]
        raise KoinonTypeError(f"`{name}` is of the wrong kind.", expected=kind.__name__, found=found, hint=hint)


def _check_positive(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise KoinonValueError(f"`{name}` must be a positive integer.", found=f"{name}={number!r}")


def _check_data(process: LearningProcess, federated_type: FederatedType) -> None:
    parameter: Any = process.next.type_signature.parameter
    if process.initialize_client_state is not None:
        raise KoinonTypeError(
            "`train_model` is for processes whose clients keep no state.",
            hint="use `koinon.learning.programs.train`",
        )
    if not parameter[-1].is_assignable_from(federated_type):
        raise KoinonTypeError(
            "The data source does not have what the learning process takes.",
            expected=parameter[-1],
            found=federated_type,
            hint="convert the data, or build the model for this type",
        )
