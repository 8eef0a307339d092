"""The one loop that drives rounds: it computes, evaluates, reports, releases and saves, and can be stopped."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from koinon._threads import carry_settings
from koinon.learning._history import History
from koinon.learning._stop import StopSignals
from koinon.learning._writer import Writer
from koinon.program import wait_for_values


class RoundReport(NamedTuple):
    """What is known about a round when it is over.

    Attributes:
      round_number: the number of the round; the first is 1.
      metrics: the metrics of the process, its arrays copied to the host, scalars as Python numbers.
      evaluation: what `evaluate` returned, likewise; None if this round was not evaluated.
      seconds: how long the round took: the time since the round before was computed. An evaluation is part of it that
        the next round had to wait for.
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


class RoundOutput(NamedTuple):
    """What a round has computed.

    Attributes:
      state: the state of the process.
      metrics: its metrics.
      kept: what else the run has to keep of the round, such as the states of its clients.
    """

    state: Any
    metrics: Any
    kept: Any = None


class Run(Protocol):
    """What goes on from round to round.

    Attributes:
      round_number: the last round that is over.
      state: the state of the process after it.
      stopped: whether a callback has ended the run.
      runs_ahead: whether `next` needs nothing of the round before but its state, so that the next round can be computed
        while this one is still being evaluated.
    """

    round_number: int
    state: Any
    stopped: bool
    runs_ahead: bool

    def rounds(self, last: int) -> Generator[tuple[int, Any]]:
        """The number of each round that is left up to the last one, and what it works with."""
        ...

    def next(self, state: Any, inputs: Any) -> RoundOutput:
        """Computes a round, and changes nothing."""
        ...

    def complete(self, number: int, inputs: Any, output: RoundOutput, stopped: bool) -> None:
        """Takes over what a round has computed."""
        ...

    def snapshot(self) -> Any:
        """What a checkpoint of this moment holds; later rounds do not change it."""
        ...

    def save(self, snapshot: Any) -> None:
        """Saves a checkpoint, if there is something to save it with and its round has none."""
        ...


class Schedule(NamedTuple):
    """What is done after which rounds.

    Attributes:
      rounds: the number of the last round.
      evaluates: whether to evaluate after a round.
      saves: whether to save a checkpoint after a round.
      saves_at_end: whether to save one at the end in any case; one is saved in any case when training is interrupted.
    """

    rounds: int
    evaluates: Callable[[int], bool]
    saves: Callable[[int], bool]
    saves_at_end: bool = True


class _Pending(NamedTuple):
    """A round that is computed, and not yet reported."""

    number: int
    inputs: Any
    output: RoundOutput
    metrics: Any
    evaluation: concurrent.futures.Future[Any] | None
    computed: float


def run_rounds(
    run: Run,
    schedule: Schedule,
    *,
    evaluate: Callable[[Any, int], Any] | None = None,
    release: Callable[[RoundReport], None],
    callbacks: Sequence[Callable[[RoundReport], bool | None]] = (),
) -> tuple[TrainingResult, bool]:
    """Drives a run to its last round.

    A round is evaluated in a thread while the next one is computed, and released and saved in another. If a callback
    ends the run, the round that was computed meanwhile is thrown away; so everything is as if one had been done after
    the other.

    Args:
      run: what goes on from round to round; it begins where it is.
      schedule: what is done when.
      evaluate: takes the state after a round, and the number of the round.
      release: releases a report; called in the order of the rounds, each before its checkpoint is saved.
      callbacks: called with each report in order; one that returns True ends the run after that round.

    Returns:
      The result, and whether SIGINT or SIGTERM ended the run.
    """
    loop = _Loop(run, schedule, release, callbacks)
    with (
        StopSignals() as stop,
        Writer() as writer,
        concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="koinon-evaluation") as evaluator,
        contextlib.closing(run.rounds(schedule.rounds)) as rounds,
    ):
        is_whole = False
        try:
            pending: _Pending | None = None
            for number, inputs in rounds:
                output = run.next(run.state if pending is None else pending.output.state, inputs)
                metrics, computed = to_host(output.metrics), time.perf_counter()
                if pending is not None:
                    loop.finish(pending, stop, writer)
                    pending = None
                    if run.stopped:
                        break
                evaluation = None
                if evaluate is not None and schedule.evaluates(number):
                    evaluation = evaluator.submit(carry_settings(_evaluate), evaluate, output.state, number)
                pending = _Pending(number, inputs, output, metrics, evaluation, computed)
                if evaluation is None or not run.runs_ahead or stop.requested or number == schedule.rounds:
                    loop.finish(pending, stop, writer, waits=True)
                    pending = None
                if stop.requested or run.stopped:
                    break
            if pending is not None:
                loop.finish(pending, stop, writer)
            is_whole = not stop.requested
        except KeyboardInterrupt:
            stop.requested = True
        finally:
            with stop.deferred():
                if schedule.saves_at_end or not is_whole:
                    writer.submit(run.save, run.snapshot())
                writer.wait()
    result = TrainingResult(run.state, run.round_number, loop.history, run.stopped)
    return result, stop.requested and run.round_number < schedule.rounds and not run.stopped


class _Loop:
    """What becomes of a round when it is computed."""

    def __init__(
        self,
        run: Run,
        schedule: Schedule,
        release: Callable[[RoundReport], None],
        callbacks: Sequence[Callable[[RoundReport], bool | None]],
    ) -> None:
        self.history = History()
        self._run = run
        self._schedule = schedule
        self._release = release
        self._callbacks = callbacks
        self._over = time.perf_counter()

    def finish(self, pending: _Pending, stop: StopSignals, writer: Writer, *, waits: bool = False) -> None:
        """Reports a round, and has it released and saved; `waits` if the next one is computed after that."""
        evaluation = None if pending.evaluation is None else pending.evaluation.result()
        over = time.perf_counter() if waits else pending.computed
        report = RoundReport(pending.number, pending.metrics, evaluation, over - self._over)
        self._over = over
        # Every callback is asked, also after one that wants to stop.
        stopped = True in [bool(callback(report)) for callback in self._callbacks]
        with stop.deferred():
            self._run.complete(pending.number, pending.inputs, pending.output, stopped)
            self.history.append({"round": pending.number, **report.released, "seconds": report.seconds})
            writer.submit(self._release, report)
            if self._schedule.saves(pending.number):
                writer.submit(self._run.save, self._run.snapshot())


def to_host(tree: Any) -> Any:
    """A pytree with its arrays as NumPy arrays, and those without dimensions as Python numbers."""
    return jax.tree.map(
        lambda leaf: leaf.item() if isinstance(leaf, np.ndarray | np.generic) and leaf.ndim == 0 else leaf,
        jax.device_get(wait_for_values(tree)),
    )


def _evaluate(evaluate: Callable[[Any, int], Any], state: Any, number: int) -> Any:
    return to_host(evaluate(state, number))
