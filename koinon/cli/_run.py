"""`koinon run`: trains, and leaves a folder that explains itself."""

from __future__ import annotations

import math
import pathlib
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from koinon import backends
from koinon.cli._config import RunConfig, current_versions
from koinon.cli._configure import RunOptions, check, configured, given_settings, resumed
from koinon.cli._curves import draw_curves
from koinon.cli._errors import UsageError
from koinon.cli._folder import RunFolder, new_folder
from koinon.cli._progress import RunProgress, duration
from koinon.cli._report import write_report
from koinon.cli._text import wrap_types
from koinon.errors import MissingDependencyError
from koinon.learning.programs import RoundReport, TrainingInterrupted, TrainingResult, train
from koinon.learning.templates import LearningProcess
from koinon.program import save_pytree
from koinon.simulation.tasks import Task

_ROOT = "runs"


def run(options: RunOptions, console: Console) -> None:
    """Runs a task, or continues a run.

    Raises:
      UsageError: if the command cannot be carried out as it was given.
      TrainingInterrupted: if SIGINT or SIGTERM came.
    """
    given = given_settings(options)
    if options.resume:
        if options.out is None:
            raise UsageError("To resume a run, name its folder with --out.")
        folder = RunFolder(options.out)
        config, task = resumed(folder, given)
    else:
        config, task = configured(given)
        folder = new_folder(_ROOT, task.name) if options.out is None else RunFolder(options.out)
        folder.check_is_free()
    check(config, task)
    process = task.process(seed=config.seed, **config.hyperparameters)
    folder.create()
    with folder.locked(), backends.use(config.backend):
        folder.write_config(config)
        _print_heading(console, folder, config, task, process)
        try:
            result = _train(console, folder, config, task, process)
        except TrainingInterrupted as interrupt:
            console.print(f"Stopped after round {interrupt.result.round_number} of {config.rounds}; all is saved.")
            console.print(f"To continue:  {folder.resume_command(config)}")
            raise
        _finish(console, folder, config, task, process, result)


def _print_heading(
    console: Console, folder: RunFolder, config: RunConfig, task: Task, process: LearningProcess
) -> None:
    hyperparameters = ", ".join(f"{name} {value}" for name, value in config.hyperparameters.items())
    lines = [
        f"{task.name}: {task.description}" if task.description else task.name,
        f"{config.rounds} rounds of {config.clients_per_round} of {len(task.train.client_ids)} clients, "
        f"seed {config.seed}, backend {config.backend}",
        hyperparameters,
        "",
        wrap_types(repr(process), _width(console)),
        "",
        f"run folder: {folder.path}",
    ]
    changed = {name: now for name, now in current_versions().items() if now != config.versions.get(name, now)}
    if changed:
        began = ", ".join(f"{name} {config.versions[name]}" for name in changed)
        lines.append(f"Note: the run was started with {began}; what follows may differ in the last bits.")
    for line in lines:
        console.print(line)


def _width(console: Console) -> int:
    return console.width if console.is_terminal else 120


def _train(
    console: Console, folder: RunFolder, config: RunConfig, task: Task, process: LearningProcess
) -> TrainingResult:
    manager = folder.checkpoints()
    sampler = None
    if task.build_sampler is not None:
        sampler = task.build_sampler(task.train.client_ids, config.clients_per_round, config.seed)
    done = max(manager.get_versions() or [0])
    tables = Tables(folder)
    with warnings.catch_warnings(record=True) as caught, RunProgress(console, task.metric, done, config.rounds) as bar:
        warnings.simplefilter("always", RuntimeWarning)

        def show(report: RoundReport) -> None:
            _print_warnings(console, caught)
            if not bar.has_begun and report.round_number > 1:
                console.print(f"resuming after round {report.round_number - 1}")
            bar(report)

        try:
            return train(
                process,
                task.train,
                rounds=config.rounds,
                clients_per_round=config.clients_per_round if sampler is None else None,
                sampler=sampler,
                seed=config.seed,
                evaluate=task.evaluate,
                evaluate_every=config.evaluate_every,
                release=[tables],
                state_manager=manager,
                save_every=config.save_every,
                callbacks=[tables.take_time, show],
            )
        finally:
            _print_warnings(console, caught)


def _print_warnings(console: Console, caught: list[warnings.WarningMessage]) -> None:
    while caught:
        console.print(f"Note: {caught.pop(0).message}")


class Tables:
    """Writes `metrics.csv`, in the order and with the names that people want, and `timing.csv`."""

    def __init__(self, folder: RunFolder) -> None:
        self._metrics = folder.metrics_manager()
        self._timing = folder.timing_manager()
        self._seconds: dict[int, float] = {}

    def take_time(self, report: RoundReport) -> None:
        """Takes note of how long a round took, before it is released."""
        self._seconds[report.round_number] = report.seconds

    def release(self, value: Any, key: Any) -> None:
        """Writes the metrics and the seconds of a round."""
        parts = {**value.get("client_work", {}), **value.get("evaluation", {}), **value}
        first = [name for name in ("train", "test", "clients") if name in parts]
        rest = [name for name in parts if name not in (*first, "client_work", "evaluation")]
        self._metrics.release(OrderedDict((name, _in_order(parts[name])) for name in [*first, *rest]), key)
        self._timing.release({"seconds": self._seconds.pop(key)}, key)


def _in_order(part: Any) -> Any:
    """A mapping in an order for people: loss and accuracy first, and p10 before p100."""
    if not isinstance(part, Mapping):
        return part
    first = [name for name in ("loss", "accuracy") if name in part]
    # JAX takes an OrderedDict in its order, and sorts other mappings.
    return OrderedDict((name, _in_order(part[name])) for name in [*first, *sorted(part.keys() - first, key=_natural)])


def _natural(name: str) -> list[Any]:
    """What sorts names by the numbers in them."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"([0-9]+)", name)]


def _finish(
    console: Console,
    folder: RunFolder,
    config: RunConfig,
    task: Task,
    process: LearningProcess,
    result: TrainingResult,
) -> None:
    """Writes what a finished run leaves, and the last line."""
    save_pytree(folder.model_path, process.get_model_weights(result.state))
    metrics = folder.read_metrics()
    title = f"{task.name}, seed {config.seed}, {config.clients_per_round} clients per round"
    # The training is saved; a disk that is full now costs no more than the page about it.
    try:
        draw_curves(metrics, task.metric, title, folder.curves_path)
    except (MissingDependencyError, OSError) as error:
        console.print(f"Note: {_no_file(error, folder.curves_path)}")
    try:
        write_report(folder, config, task, process)
    except OSError as error:
        console.print(f"Note: {_no_file(error, folder.report_path)}")
    if result.history.num_rows:
        count = "1 round" if result.history.num_rows == 1 else f"{result.history.num_rows} rounds"
        console.print(f"{count} in {duration(float(result.history['seconds'].sum()))}")
    else:
        console.print(f"all {result.round_number} rounds were done")
    column = metrics.get(f"test/{task.metric}")
    if column is None or not len(column) or math.isnan(column[-1]):
        console.print(f"finished  (run folder: {folder.path})")
    else:
        console.print(f"final test {task.metric} {column[-1]:.3f}  (run folder: {folder.path})")


def _no_file(error: Exception, path: pathlib.Path) -> str:
    return f"{str(path)!r} cannot be written: {error}." if isinstance(error, OSError) else str(error)
