"""`koinon compare`: several runs in one table and one plot."""

from __future__ import annotations

import math
import pathlib
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from koinon.cli._config import RunConfig
from koinon.cli._curves import new_figure
from koinon.cli._errors import UsageError
from koinon.cli._folder import RunFolder
from koinon.cli._progress import duration
from koinon.errors import MissingDependencyError


class _Run(NamedTuple):
    name: str
    config: RunConfig
    metrics: dict[str, np.ndarray]
    timing: dict[str, np.ndarray]
    metric: str


def compare(paths: list[str], out: str, console: Console) -> None:
    """Prints a table of the runs in these folders, and draws their curves to the file `out`.

    Raises:
      UsageError: if a folder has no run, or a run has no metrics yet.
    """
    runs = [_read(path) for path in paths]
    console.print(_table(runs))
    try:
        _draw(runs, out)
    except MissingDependencyError as error:
        console.print(f"Note: {error}")
    except OSError as error:
        raise UsageError(f"The plot {out!r} cannot be written: {error}.") from None
    else:
        console.print(f"curves: {out}")


def _read(path: str) -> _Run:
    folder = RunFolder(path)
    if not folder.config_path.is_file():
        raise UsageError(f"There is no run in {path!r}: it has no config.toml.")
    metrics = folder.read_metrics()
    if not len(metrics.get("round", ())):
        raise UsageError(f"The run in {path!r} has no metrics yet.")
    metric = "accuracy" if "test/accuracy" in metrics or "train/accuracy" in metrics else "loss"
    return _Run(pathlib.Path(path).name or path, folder.read_config(), metrics, folder.read_timing(), metric)


def _table(runs: list[_Run]) -> str:
    """A line for each run, with a column for each setting in which the runs differ."""
    differing = _differing(runs)
    header = ["run", "rounds", "train loss", "test", "best test", "in round", "clients p10", "time", *differing]
    rows = [header]
    for run in runs:
        settings = _settings(run)
        rows.append([run.name, *_cells(run), *(str(settings.get(name, "")) for name in differing)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
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
        _last(_known(run, "train/loss")),
        f"{run.metric} {_last(test)}",
        *best,
        _last(_known(run, f"clients/{run.metric}_p10")),
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
    return {
        "task": config.task,
        "seed": config.seed,
        "clients_per_round": config.clients_per_round,
        "backend": config.backend,
        **config.hyperparameters,
    }


def _differing(runs: list[_Run]) -> list[str]:
    """The settings that are not the same in all runs."""
    settings = [_settings(run) for run in runs]
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
                known = ~np.isnan(values)
                axes.plot(run.metrics["round"][known], values[known], label=run.name, linewidth=1.2)
        axes.set_title(title if fixed else f"{title} {' and '.join(metrics)}")
        axes.set_xlabel("round")
        axes.set_ylabel(" and ".join(metrics))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(out)
