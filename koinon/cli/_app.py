"""The commands and their options."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import Console

from koinon.cli._compare import compare
from koinon.cli._config import parse_assignments
from koinon.cli._errors import UsageError
from koinon.cli._run import RunOptions, run
from koinon.cli._show import list_tasks, show
from koinon.errors import KoinonError

app = typer.Typer(
    name="koinon",
    help="Federated learning: train, look, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_MISUSE = 2
_FAILURE = 1
_INTERRUPTED = 130


def run_app(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; those of the process if `arguments` is None."""
    app(args=None if arguments is None else list(arguments), prog_name="koinon")


def new_console(*, stderr: bool = False) -> Console:
    """Where to print: what is printed is text, and no markup."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True)


@contextlib.contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Ends the program with a sentence on what went wrong; mistakes of the user with status 2."""
    # What training logs when it is stopped, the commands say themselves.
    logging.getLogger("koinon.learning").addHandler(logging.NullHandler())
    try:
        yield
    except UsageError as error:
        _fail(str(error), _MISUSE)
    except KoinonError as error:
        _fail(str(error), _FAILURE)
    except KeyboardInterrupt:
        _fail("Interrupted.", _INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_FAILURE) from None


def _fail(message: str, status: int) -> None:
    new_console(stderr=True).print(f"Error: {message}")
    raise typer.Exit(status)


@app.command("run", short_help="Trains on a task, into a run folder.")
def run_command(
    task: Annotated[
        str,
        typer.Argument(
            help="A task (see `koinon tasks`), a FILE.py that defines `task`, or a FILE.toml with a configuration."
        ),
    ],
    rounds: Annotated[int | None, typer.Option(help="The number of rounds.")] = None,
    clients_per_round: Annotated[int | None, typer.Option(help="The number of clients of a round.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, cohorts and shuffling; 0 by default.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Sets a hyperparameter of the task.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="The run folder; a new one in runs/ by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continues the run in --out DIR.")] = False,
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="The folder of the task's real data, for tasks that take one.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="What runs the computations: local or reference.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Evaluates after every so many rounds.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Saves a checkpoint after every so many rounds.")] = None,
) -> None:
    """Trains on a task, and leaves a run folder: configuration, metrics, curves, model, checkpoints."""
    settings = {
        "rounds": rounds,
        "clients_per_round": clients_per_round,
        "seed": seed,
        "data": data,
        "backend": backend,
        "evaluate_every": evaluate_every,
        "save_every": save_every,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    with errors_as_sentences():
        run(RunOptions(task, given, parse_assignments(set_ or []), out, resume), new_console())


@app.command("tasks")
def tasks_command() -> None:
    """Lists the tasks that come with koinon."""
    with errors_as_sentences():
        list_tasks(new_console())


@app.command("show", short_help="Shows a task and what a round of it is.")
def show_command(
    task: Annotated[
        str,
        typer.Argument(
            help="A task (see `koinon tasks`), a FILE.py that defines `task`, a FILE.toml with a configuration, a run "
            "folder, or a file with a serialized computation."
        ),
    ],
) -> None:
    """Shows a task, with its learning process and the plan of a round, or a computation that was saved to a file."""
    with errors_as_sentences():
        show(task, new_console())


@app.command("compare")
def compare_command(
    runs: Annotated[list[str], typer.Argument(help="Run folders, or CSV files of released metrics.")],
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where to draw the curves; compare.png by default.")
    ] = None,
) -> None:
    """Compares runs: a table, and a plot of their curves."""
    with errors_as_sentences():
        compare(runs, out, new_console())
