"""The numbers of a training run as a table."""

from __future__ import annotations

import array
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

_ROWS_SHOWN = 5


class History(Mapping[str, np.ndarray]):
    """One row for each round and one column for each number, by its path: `history["evaluation/accuracy"]`.

    A column is a float64 array, not a number (NaN) in the rounds that lack it. Eight bytes a number, so that a history
    of many rounds stays small; what is no single number, such as a confusion matrix, is not kept.

    Example:
      >>> history = History()
      >>> history.append({"round": 1, "train": {"loss": 0.5}})
      >>> history.append({"round": 2, "train": {"loss": 0.25}, "evaluation": {"accuracy": 0.9}})
      >>> history["train/loss"]
      array([0.5 , 0.25])
      >>> history.last()["evaluation/accuracy"]
      0.9
    """

    def __init__(self) -> None:
        self._columns: dict[str, array.array[float]] = {}
        self.num_rows = 0

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row: a nested mapping, whose numbers are taken."""
        for path, leaf in jax.tree_util.tree_flatten_with_path(row)[0]:
            if isinstance(leaf, bool | int | float):
                name = "/".join(map(_step, path))
                column = self._columns.setdefault(name, array.array("d"))
                column.extend([math.nan] * (self.num_rows - len(column)))
                column.append(leaf)
        self.num_rows += 1

    def last(self) -> dict[str, float]:
        """The newest number of each column."""
        return {name: column[-1] for name, column in self._columns.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            known = [column for column in self if column.split("/")[-1] == name] or list(self)
            raise KeyError(f"There is no column {name!r}; there is {', '.join(map(repr, known)) or 'none yet'}.")
        column = np.full(self.num_rows, math.nan)
        column[: len(self._columns[name])] = self._columns[name]
        return column

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        if not self.num_rows:
            return "History(0 rounds)"
        width = max(map(len, self))
        omitted = "  .. " if self.num_rows > _ROWS_SHOWN else "  "
        rows = [
            f"  {name:<{width}}{omitted}" + "  ".join(map("{:>9.4g}".format, self[name][-_ROWS_SHOWN:]))
            for name in self
        ]
        return "\n".join([f"History({self.num_rows} rounds)", *rows])


def _step(entry: Any) -> str:
    """The key, the field name or the index that an entry of a JAX key path stands for."""
    return str(next(getattr(entry, name) for name in ("key", "name", "idx") if hasattr(entry, name)))
