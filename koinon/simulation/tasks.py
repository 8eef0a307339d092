"""Learning problems for simulation, ready to run: model, data and hyperparameters that work."""

from koinon.simulation._tasks import QUANTILES, TASKS, Task, digits, fed_avg

__all__ = ["QUANTILES", "TASKS", "Task", "digits", "fed_avg"]
