"""Ending a training when it no longer helps."""

from __future__ import annotations

import math
from typing import Any

from koinon._errors import KoinonValueError
from koinon.learning._rounds import RoundReport


class EarlyStopping:
    """A callback that ends training when a metric has not improved for some evaluations.

    What it remembers is saved with the checkpoints, so that a resumed run stops in the same round.

    Example:
      >>> stop = EarlyStopping("accuracy", patience=2)
      >>> accuracies = [0.5, 0.7, 0.7, 0.6]
      >>> [stop(RoundReport(i, {}, {"accuracy": a}, 0.0)) for i, a in enumerate(accuracies, 1)]
      [False, False, False, True]
      >>> stop.best_round
      2
    """

    def __init__(self, metric: str, *, patience: int, mode: str = "max", min_delta: float = 0.0) -> None:
        """Watches a metric.

        Args:
          metric: its name in what `evaluate` returns; for nested dicts the names with `/` between them.
          patience: after how many evaluations in a row without improvement training ends.
          mode: `"max"` if greater is better, `"min"` if less is.
          min_delta: by how much a value has to be better than the best one to be an improvement.

        Raises:
          KoinonValueError: if `patience` is not positive, `min_delta` is negative, or `mode` is another.
        """
        if mode not in ("max", "min") or patience < 1 or min_delta < 0:
            raise KoinonValueError(
                "Early stopping waits for at least one evaluation for a metric to get greater or less.",
                expected='patience >= 1, min_delta >= 0, mode "max" or "min"',
                found=f"patience={patience}, min_delta={min_delta}, mode={mode!r}",
            )
        self._metric = metric
        self._patience = patience
        self._sign = 1.0 if mode == "max" else -1.0
        self._min_delta = min_delta
        self.state: dict[str, Any] = {"best": -math.inf, "best_round": 0, "waited": 0}

    @property
    def best_round(self) -> int:
        """The round of the best value so far; 0 before any."""
        return self.state["best_round"]

    def __call__(self, report: RoundReport) -> bool:
        """Looks at a round; whether training is to end.

        Raises:
          KoinonValueError: if the evaluation has no such metric.
        """
        if report.evaluation is None:
            return False
        value = self._sign * self._value(report.evaluation)
        # Not a number is no improvement: the comparison is false.
        if value > self.state["best"] + self._min_delta:
            self.state = {"best": value, "best_round": report.round_number, "waited": 0}
        else:
            self.state = {**self.state, "waited": self.state["waited"] + 1}
        return self.state["waited"] >= self._patience

    def _value(self, evaluation: Any) -> float:
        value = evaluation
        for name in self._metric.split("/"):
            try:
                value = value[name]
            except (KeyError, TypeError):
                raise KoinonValueError(
                    f"The evaluation has no metric {self._metric!r} for early stopping.", found=repr(evaluation)
                ) from None
        return float(value)
