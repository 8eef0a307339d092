"""`koinon run`: trains, and leaves a folder that explains itself."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from koinon import backends
from koinon.cli._config import RunConfig, convert_like, current_versions, read_toml
from koinon.cli._curves import draw_curves
from koinon.cli._errors import UsageError
from koinon.cli._folder import RunFolder, new_folder
from koinon.cli._load import load_task
from koinon.cli._progress import RunProgress, duration
from koinon.cli._report import write_report
from koinon.cli._text import wrap_types
from koinon.errors import KoinonValueError, MissingDependencyError
from koinon.learning.programs import RoundReport, TrainingInterrupted, TrainingResult, train
from koinon.learning.templates import LearningProcess
from koinon.program import save_pytree
from koinon.simulation.tasks import Task

_ROOT = "runs"
_CHECKPOINTS_PER_RUN = 20
_MAX_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What the command was given; None for what it was not.

    Attributes:
      task: the name of a task, a Python file that defines one, or a TOML file with a configuration.
      settings: the settings of `RunConfig` that were given, by name.
      hyperparameters: the hyperparameters that were given, by name.
      out: the run folder.
      resume: whether to continue the run in it.
    """

    task: str
    settings: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]
    out: str | None
    resume: bool


def run(options: RunOptions, console: Console) -> None:
    """Runs a task, or continues a run.

    Raises:
      UsageError: if the command cannot be carried out as it was given.
      TrainingInterrupted: if SIGINT or SIGTERM came.
    """
    given = _given_settings(options)
    if options.resume:
        if options.out is None:
            raise UsageError("To resume a run, name its folder with --out.")
        folder = RunFolder(options.out)
        config, task = _resumed(folder, given)
    else:
        config, task = _configured(given)
        folder = new_folder(_ROOT, task.name) if options.out is None else RunFolder(options.out)
        folder.check_is_free()
    _check(config, task)
    process = task.process(seed=config.seed, **config.hyperparameters)
    folder.create(config)
    with folder.locked(), backends.use(config.backend):
        _print_heading(console, folder, config, task, process)
        try:
            result = _train(console, folder, config, task, process)
        except TrainingInterrupted as interrupt:
            command = f"koinon run {shlex.quote(config.task)} --out {shlex.quote(str(folder.path))} --resume"
            console.print(f"Stopped after round {interrupt.result.round_number} of {config.rounds}; all is saved.")
            console.print(f"To continue:  {command}")
            raise
        _finish(console, folder, config, task, process, result)


def _given_settings(options: RunOptions) -> dict[str, Any]:
    """What was asked for: the settings of the configuration file, if one was named, under those of the command."""
    given: dict[str, Any] = {"task": options.task}
    if options.task.endswith(".toml"):
        given = read_toml(options.task)
        given.pop("versions", None)
        if "task" not in given:
            raise UsageError(f"The configuration {options.task!r} does not say which `task` to run.")
    hyperparameters = {**given.get("hyperparameters", {}), **options.hyperparameters}
    return {**given, **options.settings, "hyperparameters": hyperparameters}


def _configured(given: dict[str, Any]) -> tuple[RunConfig, Task]:
    """The configuration of a new run: what was given, and for the rest what the task has."""
    seed = given.get("seed", 0)
    _check_number("seed", seed, least=0)
    task = load_task(given["task"], seed, given.get("data", ""))
    rounds = given.get("rounds", task.rounds)
    defaults = {
        "seed": seed,
        "rounds": rounds,
        "clients_per_round": task.clients_per_round,
        "evaluate_every": 1,
        "save_every": max(1, rounds // _CHECKPOINTS_PER_RUN),
        "backend": "local",
    }
    hyperparameters = {**task.hyperparameters, **_known_hyperparameters(task, given["hyperparameters"])}
    settings = {**defaults, **given, "hyperparameters": hyperparameters}
    return RunConfig(**settings, versions=current_versions()), task


def _resumed(folder: RunFolder, given: dict[str, Any]) -> tuple[RunConfig, Task]:
    """The configuration of the run in a folder, with the number of rounds that was given, if one was."""
    config = folder.read_config()
    if not _same_task(given["task"], config.task):
        raise UsageError(f"The run in {str(folder.path)!r} is of the task {config.task!r}, not {given['task']!r}.")
    task = load_task(config.task, config.seed, config.data)
    known = _known_hyperparameters(task, given["hyperparameters"])
    wanted = {**{name: value for name, value in given.items() if name not in ("task", "hyperparameters")}, **known}
    began_with = {**dataclasses.asdict(config), **config.hyperparameters}
    for name, value in wanted.items():
        if name not in ("rounds", "save_every") and value != began_with[name]:
            raise UsageError(
                f"The run in {str(folder.path)!r} was started with {name} = {began_with[name]!r} and can only be "
                f"resumed with that, not with {value!r}."
            )
    if folder.checkpoints_path.is_dir() and folder.checkpoints().get_versions():
        return dataclasses.replace(
            config, **{name: given[name] for name in ("rounds", "save_every") if name in given}
        ), task
    if folder.metrics_path.exists():
        raise UsageError(
            f"The run in {str(folder.path)!r} has metrics but no checkpoint to resume from; "
            "start it again in another folder."
        )
    return config, task


def _same_task(one: str, other: str) -> bool:
    return one == other or (
        one.endswith(".py") and other.endswith(".py") and os.path.realpath(one) == os.path.realpath(other)
    )


def _known_hyperparameters(task: Task, given: Mapping[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in task.hyperparameters:
            names = ", ".join(task.hyperparameters) or "none"
            raise UsageError(f"The task {task.name!r} has no hyperparameter {name!r}; there is {names}.")
    return {name: convert_like(name, value, task.hyperparameters[name]) for name, value in given.items()}


def _check(config: RunConfig, task: Task) -> None:
    for name in ("rounds", "clients_per_round", "evaluate_every", "save_every"):
        _check_number(name, getattr(config, name), least=1)
    population = len(task.train.client_ids)
    if config.clients_per_round > population:
        raise UsageError(
            f"{config.clients_per_round} clients per round cannot be drawn: "
            f"the task {task.name!r} has {population} clients to train with."
        )
    try:
        backends.use(config.backend)
    except KoinonValueError as error:
        raise UsageError(f"There is no backend {config.backend!r}; choose {error.expected}.") from None


def _check_number(name: str, number: int, least: int) -> None:
    if not least <= number <= _MAX_SEED:
        option = "--" + name.replace("_", "-")
        raise UsageError(f"{option} must be at least {least}, and is {number}.")


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
    try:
        title = f"{task.name}, seed {config.seed}, {config.clients_per_round} clients per round"
        draw_curves(metrics, task.metric, title, folder.curves_path)
    except MissingDependencyError as error:
        console.print(f"Note: {error}")
    write_report(folder, config, task, process)
    if result.history.num_rows:
        console.print(f"{result.history.num_rows} rounds in {duration(float(result.history['seconds'].sum()))}")
    else:
        console.print(f"all {result.round_number} rounds were done")
    column = metrics.get(f"test/{task.metric}")
    if column is None or not len(column) or math.isnan(column[-1]):
        console.print(f"finished  (run folder: {folder.path})")
    else:
        console.print(f"final test {task.metric} {column[-1]:.3f}  (run folder: {folder.path})")
