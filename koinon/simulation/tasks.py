"""Learning problems for simulation, ready to run: model, data and hyperparameters that work."""

from koinon.simulation._tasks import TASKS, Task, digits, fed_avg

__all__ = ["TASKS", "Task", "digits", "fed_avg"]
