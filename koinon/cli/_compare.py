"""`koinon compare`: several runs in one table and one plot."""

from __future__ import annotations

import csv
import math
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from koinon.cli._config import RunConfig
from koinon.cli._curves import draw_line, label_rounds, new_figure
from koinon.cli._errors import UsageError
from koinon.cli._folder import RunFolder, read_table
from koinon.cli._privacy import last_epsilon
from koinon.cli._progress import duration
from koinon.errors import MissingDependencyError

_DEFAULT_IMAGE = "compare.png"


class _Run(NamedTuple):
    name: str
    config: RunConfig | None
    metrics: dict[str, np.ndarray]
    timing: dict[str, np.ndarray]
    metric: str


def compare(paths: list[str], out: str | None, console: Console) -> None:
    """Prints a table of runs, and draws their curves.

    Args:
      paths: run folders; or files that a `CSVFileReleaseManager` has written, or folders of a `metrics.csv` of one.
      out: the image file; None for `compare.png` where the command is given.
      console: where to print.

    Raises:
      UsageError: if a folder has no run, or a run has no metrics yet.
    """
    image = _DEFAULT_IMAGE if out is None else out
    # `koinon compare *` meets what it has drawn the last time.
    paths = [path for path in paths if os.path.abspath(path) != os.path.abspath(image)] or paths
    runs = [_read(path) for path in paths]
    names = _names(paths)
    runs = [run._replace(name=name) for run, name in zip(runs, names, strict=True)]
    console.print(_table(runs, console.width if console.is_terminal else None))
    try:
        _draw(runs, image)
    except MissingDependencyError as error:
        console.print(f"Note: {error}")
    except (OSError, ValueError) as error:
        message = f"The plot {image!r} cannot be written: {error}."
        if out is not None:
            raise UsageError(message) from None
        console.print(f"Note: {message}")
    else:
        console.print(f"curves: {image}")


def _names(paths: list[str]) -> list[str]:
    """What runs are called: folders by their last part where that tells them apart, and else by all of their path."""
    last = [path if pathlib.Path(path).is_file() else pathlib.Path(path).resolve().name for path in paths]
    return [path if last.count(name) > 1 else name for path, name in zip(paths, last, strict=True)]


def _read(path: str) -> _Run:
    folder = RunFolder(path)
    if pathlib.Path(path).is_file():
        config, metrics, timing = None, _read_released(path), {}
    elif folder.config_path.is_file():
        config, metrics, timing = folder.read_config(), folder.read_metrics(), folder.read_timing()
    elif folder.metrics_path.is_file():
        config, metrics, timing = None, _read_released(folder.metrics_path), {}
    else:
        raise UsageError(f"There is no run in {path!r}: it has neither config.toml nor metrics.csv.")
    if not len(metrics.get("round", ())):
        raise UsageError(f"The run in {path!r} has no metrics yet.")
    metric = "accuracy" if "test/accuracy" in metrics or "train/accuracy" in metrics else "loss"
    return _Run(path, config, metrics, timing, metric)


def _read_released(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The table that a `CSVFileReleaseManager` has written for a program, with the names that `koinon run` gives.

    Raises:
      UsageError: if the file is no table of numbers.
    """
    try:
        released = read_table(pathlib.Path(path))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"The metrics {str(path)!r} cannot be read: {error}.") from None
    # The first column is the key, whatever its name.
    metrics = {"round" if i == 0 else _common_name(name): column for i, (name, column) in enumerate(released.items())}
    return metrics if released and not np.isnan(metrics["round"]).any() else {}


def _common_name(name: str) -> str:
    """`train/loss` for `client_work/train/loss`, and `test/accuracy` for `evaluation/accuracy`."""
    if name.startswith("evaluation/"):
        name = name.removeprefix("evaluation/")
        return name if name.startswith(("test/", "clients/")) else f"test/{name}"
    return name.removeprefix("client_work/")


def _table(runs: list[_Run], width: int | None) -> str:
    """A line for each run, with a column for each setting in which the runs differ; turned where that is too wide."""
    differing = _differing(runs)
    facts = ["rounds", "train loss", "test", "best test", "in round", "clients p10", "epsilon spent", "time"]
    header = ["run", *facts, *differing]
    rows = [header]
    for run in runs:
        settings = _settings(run)
        rows.append([run.name, *_cells(run), *(str(settings.get(name, "")) for name in differing)])
    told = [column for column in zip(*rows, strict=True) if any(column[1:])]
    rows = [list(row) for row in zip(*told, strict=True)]
    text = _aligned(rows)
    if width is not None and max(map(len, text.splitlines())) > width:
        text = _aligned([list(column) for column in zip(*rows, strict=True)])
    return text


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def _cells(run: _Run) -> list[str]:
    test = _known(run, f"test/{run.metric}")
    best = ("", "")
    if len(test):
        index = int(np.nanargmin(test) if run.metric == "loss" else np.nanargmax(test))
        rounds = run.metrics["round"][~np.isnan(run.metrics[f"test/{run.metric}"])]
        best = (_number(test[index]), f"{rounds[index]:.0f}")
    seconds = run.timing.get("seconds")
    return [
        f"{run.metrics['round'][-1]:.0f}",
        _last(run.metrics.get("train/loss", np.zeros(0))),
        f"{run.metric} {_last(test)}",
        *best,
        _last(_known(run, f"clients/{run.metric}_p10")),
        "" if (epsilon := last_epsilon(run.metrics)) is None else f"{epsilon:.2f}",
        "" if seconds is None else duration(float(np.nansum(seconds))),
    ]


def _known(run: _Run, name: str) -> np.ndarray:
    column = run.metrics.get(name, np.zeros(0))
    return column[~np.isnan(column)]


def _last(values: np.ndarray) -> str:
    return _number(values[-1]) if len(values) else ""


def _number(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.4f}"


def _settings(run: _Run) -> dict[str, Any]:
    config = run.config
    if config is None:
        return {}
    return {
        "task": config.task,
        "seed": config.seed,
        "clients_per_round": config.clients_per_round,
        "backend": config.backend,
        **config.hyperparameters,
    }


def _differing(runs: list[_Run]) -> list[str]:
    """The settings that are not the same in all runs."""
    settings = [_settings(run) for run in runs if run.config is not None]
    names = dict.fromkeys(name for each in settings for name in each)
    return [name for name in names if len({repr(each.get(name)) for each in settings}) > 1]


def _draw(runs: list[_Run], out: str) -> None:
    figure = new_figure("Drawing the curves of runs", figsize=(11, 4.2), dpi=120)
    panels = [("train/{}", "loss", "train loss"), ("test/{}", None, "test")]
    for axes, (template, fixed, title) in zip(figure.subplots(1, 2), panels, strict=True):
        metrics = list(dict.fromkeys(fixed or run.metric for run in runs))
        for run in runs:
            values = run.metrics.get(template.format(fixed or run.metric))
            if values is not None:
                draw_line(axes, run.metrics["round"], values, label=run.name, linewidth=1.2)
        axes.set_title(title if fixed else f"{title} {' and '.join(metrics)}")
        axes.set_ylabel(" and ".join(metrics))
        label_rounds(axes)
        if axes.lines:
            axes.legend()
    figure.savefig(out)
