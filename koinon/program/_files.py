"""Release managers that write files: CSV for tables, JSON lines for nested values."""

from __future__ import annotations

import csv
import enum
import math
import operator
import os
from typing import Any, SupportsIndex

import jax
import numpy as np

from koinon._errors import KoinonValueError, UnsupportedTypeError
from koinon.program._leaves import is_key
from koinon.program._line_file import CSVRows, JSONRows, LineFile
from koinon.program._references import wait_for_values
from koinon.program._structure import flatten, nest


class CSVSaveMode(enum.Enum):
    """How a release manager writes its file.

    `APPEND` adds a row to the file where that is enough, at a cost that does not grow with the file. `WRITE` writes
    the whole file anew each time, for file systems that cannot append.
    """

    APPEND = "append"
    WRITE = "write"


class CSVFileReleaseManager:
    """Writes released values as rows of a CSV file.

    The columns are the key and the leaves of the value, named by their paths: `{"train": {"loss": 0.5}}` has the
    column `train/loss`, and a value that is a single leaf the column `value`. Numbers are written so that they read
    back exactly, arrays as nested lists. A leaf that earlier rows do not have becomes a new column, empty there.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "metrics.csv"
      >>> manager = CSVFileReleaseManager(path)
      >>> manager.release({"loss": 0.5}, key=1)
      >>> manager.release({"loss": 0.25, "accuracy": 0.1}, key=2)
      >>> print(path.read_text(), end="")
      key,loss,accuracy
      1,0.5,
      2,0.25,0.1
    """

    def __init__(
        self,
        file_path: str | os.PathLike[str],
        save_mode: CSVSaveMode = CSVSaveMode.APPEND,
        key_fieldname: str = "key",
    ) -> None:
        """Looks at the file, if it exists, and makes its directory, if that does not.

        Args:
          file_path: the file.
          save_mode: whether to append rows, or to write the whole file each time.
          key_fieldname: the name of the column of the keys.

        Raises:
          ValueError: if `file_path` or `key_fieldname` is empty.
          CSVKeyFieldnameNotFoundError: if the file exists and has no column `key_fieldname`.
          KoinonValueError: if the file exists and is no CSV file with integer keys.
        """
        self._key_fieldname = key_fieldname
        self._file = LineFile(file_path, CSVRows(), key_fieldname, save_mode is CSVSaveMode.APPEND)

    def release(self, value: Any, key: SupportsIndex) -> None:
        """Writes `value` as the row of `key`, after removing the rows of this key and of greater ones.

        So a program that is restarted from an older state writes its rounds again, and the file is as if the program
        had never stopped.

        Args:
          value: a pytree of numbers, arrays, booleans and strings.
          key: an integer, most often the number of the round.

        Raises:
          ProgramStateWriteError: if the operating system refuses; the file is then as it was before.
          UnsupportedTypeError: if a leaf cannot be written.
        """
        row = {self._key_fieldname: operator.index(key)}
        for path, leaf in jax.tree_util.tree_flatten_with_path(wait_for_values(value))[0]:
            name = "/".join(str(_step(entry)) for entry in path) or "value"
            if name in row:
                raise KoinonValueError(
                    f"Two columns of a released value have the name {name!r}.",
                    hint="rename the field, or choose another `key_fieldname`",
                )
            row[name] = _plain(leaf, name)
            if len(str(row[name])) > csv.field_size_limit():
                raise KoinonValueError(
                    f"The leaf {name!r} is too long for a cell of a CSV file.",
                    expected=f"at most {csv.field_size_limit()} characters",
                    found=f"{len(str(row[name]))} characters",
                    hint="leave it out with a `FilteringReleaseManager`, or save it with `save_pytree`",
                )
        self._file.put(row)


class JSONLinesReleaseManager:
    """Writes released values as lines of JSON, `{"key": 3, "value": {"loss": 0.5}}`.

    Values keep their nesting: dicts and NamedTuples become objects, other containers and arrays lists. Numbers read
    back exactly; those that JSON does not have are the strings "NaN", "Infinity" and "-Infinity".

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> JSONLinesReleaseManager(path).release({"train": {"loss": 0.5}}, key=1)
      >>> print(path.read_text(), end="")
      {"key": 1, "value": {"train": {"loss": 0.5}}}
    """

    def __init__(self, file_path: str | os.PathLike[str], save_mode: CSVSaveMode = CSVSaveMode.APPEND) -> None:
        """Looks at the file, if it exists, and makes its directory, if that does not.

        Args:
          file_path: the file.
          save_mode: whether to append lines, or to write the whole file each time.

        Raises:
          ValueError: if `file_path` is empty.
          KoinonValueError: if the file exists and its lines are no JSON objects with integer keys.
        """
        self._file = LineFile(file_path, JSONRows(), "key", save_mode is CSVSaveMode.APPEND)

    def release(self, value: Any, key: SupportsIndex) -> None:
        """Writes `value` as the line of `key`, after removing the lines of this key and of greater ones.

        Args:
          value: a pytree of numbers, arrays, booleans and strings.
          key: an integer, most often the number of the round.

        Raises:
          ProgramStateWriteError: if the operating system refuses; the file is then as it was before.
          UnsupportedTypeError: if a leaf cannot be written.
        """
        leaves: list[tuple[str, Any]] = []
        node = flatten(wait_for_values(value), leaves)
        plain = nest(node, [_json_number(_plain(leaf, path)) for path, leaf in leaves])
        self._file.put({"key": operator.index(key), "value": plain})


def _step(entry: Any) -> Any:
    """The key, the field name or the index that an entry of a JAX key path stands for."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def _plain(leaf: Any, name: str) -> Any:
    """A leaf as a Python scalar or a nested list of them."""
    if type(leaf) in (bool, int, float, str):
        return leaf
    if isinstance(leaf, jax.Array | np.ndarray | np.generic) and not is_key(leaf):
        plain = np.asarray(leaf).tolist()
        first = plain
        while isinstance(first, list) and first:
            first = first[0]
        if isinstance(first, bool | int | float | str | list):
            return plain
    raise UnsupportedTypeError(
        f"The leaf {name!r} cannot be released to a file of text.",
        expected="numbers, booleans or strings, or arrays of them",
        found=f"{type(leaf).__name__}, dtype {leaf.dtype}" if hasattr(leaf, "dtype") else type(leaf).__name__,
        hint="leave it out with a `FilteringReleaseManager`",
    )


def _json_number(plain: Any) -> Any:
    """A plain leaf with strings for the floats that JSON does not have."""
    if isinstance(plain, list):
        return [_json_number(item) for item in plain]
    if isinstance(plain, float) and not math.isfinite(plain):
        return "NaN" if math.isnan(plain) else "Infinity" if plain > 0 else "-Infinity"
    return plain
