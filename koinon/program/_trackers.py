"""Release managers for experiment trackers: TensorBoard, Weights & Biases, and MLflow."""

from __future__ import annotations

import importlib
import operator
import os
import time
from typing import Any, SupportsIndex, final

import jax
import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError, MissingDependencyError, UnsupportedTypeError
from koinon.program._leaves import is_key
from koinon.program._references import wait_for_values


@final
class TensorBoardReleaseManager:
    """Writes released values as event files that TensorBoard shows.

    A scalar becomes a point of a curve, an array a histogram. Curves are named by the paths of the leaves:
    `{"train": {"loss": 0.5}}` is `train/loss`.

    Releasing a key removes what was released under this key and greater ones before: TensorBoard does so when it reads
    the files, which are only ever appended to. So a program that is restarted from an older state may write to the
    same directory.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        """Writes to a new event file in `log_dir`, which is made if it does not exist.

        Raises:
          MissingDependencyError: if TensorBoard is not installed.
        """
        try:
            events = importlib.import_module("tensorboard.compat.proto.event_pb2")
            writers = importlib.import_module("tensorboard.summary.writer.event_file_writer")
            scalars = importlib.import_module("tensorboard.plugins.scalar.summary_v2")
            histograms = importlib.import_module("tensorboard.plugins.histogram.summary_v2")
        except ImportError:
            purpose = "Writing event files for TensorBoard"
            raise MissingDependencyError("tensorboard", extra="tensorboard", purpose=purpose) from None
        self._events = events
        self._to_scalar, self._to_histogram = scalars.scalar_pb, histograms.histogram_pb
        self._writer = writers.EventFileWriter(os.fspath(log_dir))
        self._latest_key: int | None = None

    def release(self, value: Any, key: SupportsIndex) -> None:
        """Writes the leaves of `value` at step `key`.

        Args:
          value: a pytree of numbers, booleans and arrays of them.
          key: an integer, most often the number of the round.

        Raises:
          UnsupportedTypeError: if a leaf is no number.
        """
        step = operator.index(key)
        leaves = named_numbers(value)
        if self._latest_key is None or step <= self._latest_key:
            # The start of another session takes back the steps from its own on; TensorBoard passes over the very first.
            self._write(step=step, session_log=self._events.SessionLog(status=self._events.SessionLog.START))
        for name, number in leaves.items():
            to_summary = self._to_histogram if number.ndim else self._to_scalar
            self._write(step=step, summary=to_summary(name, number.astype(np.float64 if number.ndim else np.float32)))
        self._latest_key = step
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()

    def _write(self, **event: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), **event))


@final
class WandbReleaseManager:
    """Logs released values to a run of Weights & Biases.

    W&B takes steps in increasing order, and leaves out with a warning what comes later for an earlier one. So a program
    that is restarted may go on with its run, `wandb.init(id=run_id, resume="must")`: the rounds that it releases again
    have the values that are there. One that is to go on otherwise from an older state needs the run truncated to it:
    `wandb.init(resume_from=f"{run_id}?_step={step}")`, which W&B offers as a preview.

    Example:
      >>> class Run:  # what `wandb.init(...)` returns
      ...     def log(self, data, step=None):
      ...         print(step, data)
      >>> WandbReleaseManager(Run()).release({"train": {"loss": 0.5}}, key=1)
      1 {'train/loss': 0.5}
    """

    def __init__(self, run: Any) -> None:
        """Logs to `run`, an object with a method `log(data, step)`.

        Raises:
          KoinonTypeError: if it has none.
        """
        self._log = _method(run, "log", "what `wandb.init` returns")

    def release(self, value: Any, key: SupportsIndex) -> None:
        """Logs the leaves of `value`, numbers and arrays, at step `key`.

        Raises:
          UnsupportedTypeError: if a leaf is no number.
        """
        data = {name: number if number.ndim else number.item() for name, number in named_numbers(value).items()}
        self._log(data, step=operator.index(key))


@final
class MLflowReleaseManager:
    """Logs released values to a run of MLflow.

    It is the run that is active when the manager is made. That is kept, because another thread, such as that in which
    `koinon.learning.programs.train` releases, has an active run of its own.

    MLflow keeps whatever is logged, so the rounds that a restarted program releases again are there twice.

    Example:
      >>> import types
      >>> class Tracker:  # the module `mlflow`
      ...     def active_run(self):
      ...         return types.SimpleNamespace(info=types.SimpleNamespace(run_id="a1"))
      ...     def log_metrics(self, metrics, step=None, run_id=None):
      ...         print(run_id, step, metrics)
      >>> MLflowReleaseManager(Tracker()).release({"train": {"loss": 0.5}}, key=1)
      a1 1 {'train/loss': 0.5}
    """

    def __init__(self, mlflow: Any, run_id: str | None = None) -> None:
        """Logs to `mlflow`, the module of that name, or an object with its `log_metrics` and `active_run`.

        Args:
          mlflow: the module.
          run_id: the id of a run; None for the active one.

        Raises:
          KoinonTypeError: if `mlflow` has no such functions.
          KoinonValueError: if no run is active.
        """
        self._log_metrics = _method(mlflow, "log_metrics", "the module `mlflow`")
        if run_id is None:
            run = _method(mlflow, "active_run", "the module `mlflow`")()
            if run is None:
                raise KoinonValueError(
                    "There is no active run of MLflow to release to.",
                    hint="call `mlflow.start_run()` before, in the same thread, or pass `run_id`",
                )
            run_id = run.info.run_id
        self._run_id = run_id

    def release(self, value: Any, key: SupportsIndex) -> None:
        """Logs the leaves of `value` at step `key`.

        Raises:
          UnsupportedTypeError: if a leaf is not a single number, which is all that MLflow has metrics for.
        """
        numbers = named_numbers(value)
        for name, number in numbers.items():
            if number.ndim:
                raise _unsupported(name, "a single number", f"an array of shape {number.shape}")
        metrics = {name: float(number) for name, number in numbers.items()}
        self._log_metrics(metrics, step=operator.index(key), run_id=self._run_id)


def named_numbers(value: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree of numbers, real and not complex, as arrays by the names of their paths."""
    numbers = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(wait_for_values(value)):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        is_number = isinstance(leaf, bool | int | float | np.generic | np.ndarray | jax.Array) and not is_key(leaf)
        number = np.asarray(leaf) if is_number else np.asarray(None)
        if number.dtype.kind not in "biuf" and not jax.numpy.issubdtype(number.dtype, np.floating):
            raise _unsupported(
                name, "a number or a boolean, or an array of them", f"{type(leaf).__name__} {leaf!r:.60}"
            )
        numbers[name] = number
    return numbers


def _unsupported(name: str, expected: str, found: str) -> UnsupportedTypeError:
    return UnsupportedTypeError(
        f"The leaf {name!r} cannot be released to a tracker.",
        expected=expected,
        found=found,
        hint="leave it out with a `FilteringReleaseManager`",
    )


def _method(tracker: Any, name: str, expected: str) -> Any:
    method = getattr(tracker, name, None)
    if not callable(method):
        raise KoinonTypeError(
            f"A tracker needs a method `{name}`.", expected=expected, found=f"{type(tracker).__name__} {tracker!r:.80}"
        )
    return method
