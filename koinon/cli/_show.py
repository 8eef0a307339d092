"""`koinon tasks` and `koinon show`: what can be run, and what a round of it is."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from rich.console import Console

from koinon.cli._configure import RunOptions, check, configured, given_settings
from koinon.cli._facts import cost_text, plan_text, privacy_text
from koinon.cli._load import NAMED_TASKS
from koinon.cli._text import wrap_types
from koinon.compiler import deserialize, plan
from koinon.compiler import privacy_report as privacy_report_of
from koinon.computation import Computation
from koinon.simulation.tasks import Task

_WIDTH = 120


def list_tasks(console: Console) -> None:
    """Prints the name and the description of each task."""
    width = max(map(len, NAMED_TASKS))
    for name, build in NAMED_TASKS.items():
        console.print(f"{name:<{width}}  {_first_line(build)}")


def show(name: str, console: Console) -> None:
    """Prints a task: data, hyperparameters, learning process, plan of a round; or a computation in a file.

    Args:
      name: the name of a task, a Python file that defines one, a TOML file with a configuration or the folder of a run,
        or a file with a serialized computation.
      console: where to print.

    Raises:
      UsageError: if there is no such task, and no such file.
      SerializationError: if the file holds no serialized computation, or a damaged one.
    """
    path = pathlib.Path(name)
    if name not in NAMED_TASKS and (path / "config.toml").is_file():
        path, name = path / "config.toml", str(path / "config.toml")
    if name not in NAMED_TASKS and path.suffix not in (".py", ".toml") and path.is_file():
        show_computation(deserialize(path.read_bytes()), console)
        return
    config, task = configured(given_settings(RunOptions(name)))
    check(config, task)
    width = console.width if console.is_terminal else _WIDTH
    process = task.process(seed=config.seed, **config.hyperparameters)
    console.print(f"{task.name}: {task.description}" if task.description else task.name)
    describe = getattr(task.train, "describe", None)
    if describe is not None:
        console.print(f"\nclients to train with\n{_indented(repr(describe()))}")
    console.print(f"\n{config.rounds} rounds of {config.clients_per_round} clients")
    for parameter, value in config.hyperparameters.items():
        console.print(f"  {parameter} = {value}")
    console.print(f"\nlearning process\n{wrap_types(_indented(repr(process)), width)}")
    console.print(f"\nplan of a round\n{wrap_types(_indented(plan_text(process)), width)}")
    console.print(f"\n{privacy_text(process)}")
    console.print(f"\n{cost_text(process, task, config.clients_per_round)}")


def show_computation(computation: Computation, console: Console) -> None:
    """Prints a computation: its type, its plan, and what its plan says of privacy."""
    width = console.width if console.is_terminal else _WIDTH
    console.print(f"type\n{wrap_types(f'  {computation.type_signature}', width)}")
    console.print(f"\nplan\n{wrap_types(_indented(str(plan(computation))), width)}")
    console.print(f"\n{privacy_report_of(computation)}")


def _first_line(build: Callable[..., Task]) -> str:
    return (build.__doc__ or "").partition("\n")[0]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
