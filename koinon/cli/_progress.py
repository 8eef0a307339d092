"""How far a run is: a bar on a terminal, some lines elsewhere."""

from __future__ import annotations

import collections
import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Column

from koinon.cli._privacy import spent_epsilon
from koinon.learning.programs import RoundReport

_LINES = 20
_SECONDS_BETWEEN_LINES = 15.0
_WINDOW = 50
# What the numbers take, with a bar that still says something beside them.
_WIDTH_WITH_BAR = 90


class RunProgress:
    """Shows round, loss, accuracy, speed and remaining time of a run; used in a `with` block.

    Args:
      console: where to.
      metric: the metric to show beside the loss.
      done: how many rounds are over when the run begins.
      total: the number of rounds.

    Attributes:
      has_begun: whether a round is over.
    """

    def __init__(self, console: Console, metric: str, done: int, total: int) -> None:
        self._console = console
        self._metric = metric
        self._total = total
        self.has_begun = False
        self._times: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._evaluation: Any = None
        self._last_line = time.monotonic()
        self._has_warned = False
        self._bar: Progress | None = None
        if console.is_terminal:
            columns: list[ProgressColumn] = [
                TextColumn("round {task.completed}/{task.total}", table_column=Column(no_wrap=True)),
                TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="crop")),
            ]
            if console.width >= _WIDTH_WITH_BAR:
                columns.insert(1, BarColumn(bar_width=None))
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("compiling ..", total=total, completed=done)

    def __enter__(self) -> RunProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, report: RoundReport) -> None:
        """Takes note of a round."""
        now = time.monotonic()
        self._times.append(now)
        self._evaluation = report.evaluation if report.evaluation is not None else self._evaluation
        number, is_first, self.has_begun = report.round_number, not self.has_begun, True
        parts = [*self._numbers(report), *self._speed(number)]
        self._warn_of_divergence(report)
        if self._bar is not None:
            self._bar.update(self._task, completed=number, description=self._fitting(parts))
        elif (
            is_first
            or number == self._total
            or number % max(1, self._total // _LINES) == 0
            or now > self._last_line + _SECONDS_BETWEEN_LINES
        ):
            self._last_line = now
            self._console.print(f"round {number:>{len(str(self._total))}}/{self._total}  {'  '.join(parts)}")
            self._console.file.flush()

    def _warn_of_divergence(self, report: RoundReport) -> None:
        """Says once that the loss is not finite, of which training seldom recovers."""
        loss = _train_metrics(report).get("loss", 0.0)
        if not self._has_warned and not math.isfinite(loss):
            self._has_warned = True
            self._console.print(
                f"Note: the training loss of round {report.round_number} is {loss}; smaller learning rates may help."
            )

    def _numbers(self, report: RoundReport) -> list[str]:
        train = _train_metrics(report)
        test = (self._evaluation or {}).get("test", {})
        parts = [f"loss {train['loss']:.4f}"] if "loss" in train else []
        if self._metric in test:
            parts.append(
                f"test {self._metric} {test[self._metric]:.4f}"
                if self._metric == "loss"
                else f"{self._metric} {test[self._metric]:.4f}"
            )
        epsilon = spent_epsilon(report.metrics)
        return parts if epsilon is None else [*parts, f"epsilon {epsilon:.2f}"]

    def _speed(self, number: int) -> list[str]:
        if len(self._times) < 2:
            return ["compiled"]
        rate = (len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-9)
        left = (self._total - number) / rate
        return [f"{rate:.3g} rounds/s", f"{duration(left)} left"]

    def _fitting(self, parts: list[str]) -> str:
        """As many of the parts, the first ones, as a line of the terminal has room for."""
        room = self._console.width - len(f"round {self._total}/{self._total} ")
        while len(parts) > 1 and len("  ".join(parts)) > room:
            parts = parts[:-1]
        return "  ".join(parts)


def _train_metrics(report: RoundReport) -> Any:
    return report.metrics.get("client_work", {}).get("train", {}) if isinstance(report.metrics, dict) else {}


def duration(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
