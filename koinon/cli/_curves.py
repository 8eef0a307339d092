"""The plot of a run."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from koinon.cli._folder import replace_file
from koinon.errors import MissingDependencyError

_BANDS = (("p0", "p100", "all clients", 0.15), ("p10", "p90", "80 %", 0.25), ("p25", "p75", "50 %", 0.4))
_COLORS = {"train": "tab:blue", "test": "tab:orange", "clients": "tab:green"}


def new_figure(purpose: str, **options: Any) -> Any:
    """A matplotlib figure, without pyplot: no global state, and no window.

    Raises:
      MissingDependencyError: if matplotlib is not installed.
    """
    try:
        return importlib.import_module("matplotlib.figure").Figure(layout="constrained", **options)
    except ImportError:
        raise MissingDependencyError("matplotlib", extra="plot", purpose=purpose) from None


def label_rounds(axes: Any) -> None:
    """Says that the axis from left to right is that of rounds, of which there are no halves."""
    axes.set_xlabel("round")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def draw_line(axes: Any, rounds: np.ndarray, values: np.ndarray, **options: Any) -> None:
    """Draws the values that are known; a single one as a point, since a line has two."""
    known = ~np.isnan(values)
    axes.plot(rounds[known], values[known], marker="o" if known.sum() == 1 else None, **options)


def draw_curves(metrics: Mapping[str, np.ndarray], metric: str, title: str, path: str | os.PathLike[str]) -> None:
    """Draws the loss, the metric to judge by, and its distribution over the test clients.

    Args:
      metrics: float `[rounds]` by name, as in `metrics.csv`.
      metric: the metric to judge by.
      title: what to write above.
      path: the image file.
    """
    figure = new_figure("Drawing the curves of a run", figsize=(13, 4.2), dpi=120)
    loss_axes, metric_axes, clients_axes = figure.subplots(1, 3)
    figure.suptitle(title)
    rounds = metrics.get("round", np.zeros(0))
    _lines(loss_axes, rounds, metrics, "loss")
    _lines(metric_axes, rounds, metrics, metric)
    for axes, name in ((loss_axes, "loss"), (metric_axes, metric)):
        axes.set_title(name)
        axes.set_ylabel(name)
        axes.legend()
    _distribution(clients_axes, rounds, metrics, metric)
    for axes in (loss_axes, metric_axes, clients_axes):
        label_rounds(axes)
    if metric == "accuracy":
        low = np.nanmin(np.concatenate([np.ones(1), *(_present(metrics, f"{part}/{metric}") for part in _COLORS)]))
        metric_axes.set_ylim(max(0.0, low - 0.02), 1.01)
        clients_axes.set_ylim(-0.02, 1.02)
    loss_axes.set_ylim(bottom=0)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    replace_file(path, image.getvalue())


def _present(metrics: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return metrics.get(name, np.zeros(0))


def _lines(axes: Any, rounds: np.ndarray, metrics: Mapping[str, np.ndarray], metric: str) -> None:
    for part, label in (("train", "train, cohort of the round"), ("test", "test, at the server")):
        values = metrics.get(f"{part}/{metric}")
        if values is not None:
            draw_line(axes, rounds, values, label=label, color=_COLORS[part], linewidth=1.4)
    if not axes.lines:
        axes.plot([], [], label="no values")


def _distribution(axes: Any, rounds: np.ndarray, metrics: Mapping[str, np.ndarray], metric: str) -> None:
    axes.set_title(f"{metric} over the test clients")
    axes.set_ylabel(metric)
    median = metrics.get(f"clients/{metric}_p50")
    if median is None:
        axes.text(0.5, 0.5, "no test clients", ha="center", va="center", transform=axes.transAxes)
        return
    known = ~np.isnan(median)
    for low, high, label, alpha in _BANDS:
        bounds = [metrics[f"clients/{metric}_{quantile}"][known] for quantile in (low, high)]
        axes.fill_between(rounds[known], *bounds, alpha=alpha, color=_COLORS["clients"], linewidth=0, label=label)
    axes.plot(rounds[known], median[known], color="black", linewidth=1.2, label="median")
    mean = metrics[f"clients/{metric}_mean"]
    axes.plot(rounds[known], mean[known], color="black", linestyle="--", linewidth=1.0, label="mean")
    axes.legend(loc="best", ncols=2)
