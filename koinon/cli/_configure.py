"""The configuration of a run, of what the command was given and of what the task has by itself."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from koinon import backends
from koinon.cli._config import RunConfig, convert_like, current_versions, read_toml
from koinon.cli._errors import UsageError
from koinon.cli._folder import RunFolder
from koinon.cli._load import load_task
from koinon.errors import KoinonValueError
from koinon.simulation.tasks import Task

_CHECKPOINTS_PER_RUN = 20
_MAX_NUMBER = 2**31 - 1


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
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    out: str | None = None
    resume: bool = False


def given_settings(options: RunOptions) -> dict[str, Any]:
    """What was asked for: the settings of the configuration file, if one was named, under those of the command."""
    given: dict[str, Any] = {"task": options.task}
    if options.task.endswith(".toml"):
        given = read_toml(options.task)
        given.pop("versions", None)
        if "task" not in given:
            raise UsageError(f"The configuration {options.task!r} does not say which `task` to run.")
    hyperparameters = {**given.get("hyperparameters", {}), **options.hyperparameters}
    return {**given, **options.settings, "hyperparameters": hyperparameters}


def configured(given: dict[str, Any]) -> tuple[RunConfig, Task]:
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


def resumed(folder: RunFolder, given: dict[str, Any]) -> tuple[RunConfig, Task]:
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
    done = max(folder.checkpoints().get_versions() or (), default=None) if folder.checkpoints_path.is_dir() else None
    if done is not None:
        if given.get("rounds", done) < done:
            raise UsageError(
                f"The run in {str(folder.path)!r} has done {done} rounds, and cannot be resumed to {given['rounds']}."
            )
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


def check(config: RunConfig, task: Task) -> None:
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
    if not least <= number <= _MAX_NUMBER:
        option = "--" + name.replace("_", "-")
        bound = f"at least {least}" if number < least else f"at most {_MAX_NUMBER}"
        raise UsageError(f"{option} must be {bound}, and is {number}.")
