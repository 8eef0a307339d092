"""Clients whose examples lie in a file each."""

from __future__ import annotations

import csv
import itertools
import os
import pathlib
import zipfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np

from koinon._errors import KoinonValueError
from koinon.simulation._streamed import StreamedClientData
from koinon.types import StructType, TensorType, Type


@final
class FilePerUserClientData(StreamedClientData):
    r"""A federated dataset in a folder with one file for each client, which the file is named after.

    `ann.npz` holds named arrays, of which row i of each is example i. `ann.csv` holds a line of column names, and a
    line of numbers for each example; a column is of type int32 if the first client has only integers in it, and else
    float32. An example is a dict. Other files, and those whose names begin with a dot, are left alone.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "ann.csv").write_text("x,y\n0.5,1\n1.5,0\n")
      >>> _ = (folder / "bob.csv").write_text("x,y\n2,1\n")
      >>> data = FilePerUserClientData(folder)
      >>> data
      FilePerUserClientData(<x=float32,y=int32>*, 2 clients)
      >>> data.dataset("ann")["y"]
      array([1, 0], dtype=int32)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        read_fn: Callable[[pathlib.Path], Any] | None = None,
        example_spec: Any = None,
    ) -> None:
        """Looks for the files of the clients.

        Args:
          folder: the folder; the clients are in the order of their names.
          read_fn: `(path)` to a container of stacked arrays `[examples, ...]`, for files of other kinds; every file in
            the folder is then one of a client.
          example_spec: what `koinon.types.to_type` reads as the type of one example; None for that of the first file.

        Raises:
          KoinonValueError: if there is no such folder or no file of a client in it, or a client has two files.
        """
        suffixes = None if read_fn is not None else _READERS.keys()
        try:
            paths = [path for path in sorted(pathlib.Path(folder).iterdir()) if _is_of_client(path, suffixes)]
        except OSError as error:
            raise KoinonValueError(f"The folder of a federated dataset cannot be read: {error}.") from None
        if not paths:
            raise KoinonValueError(
                f"The folder {os.fspath(folder)!r} holds no file of a client.",
                expected="a file `<client>.npz` or `<client>.csv` for each client",
                hint="for files of other kinds, pass `read_fn`",
            )
        for path, other in itertools.pairwise(sorted(paths, key=lambda path: path.stem)):
            if path.stem == other.stem:
                raise KoinonValueError(f"The client {path.stem!r} has two files.", found=f"{path.name}, {other.name}")
        super().__init__((path.stem for path in paths), example_spec)
        self._paths = {path.stem: path for path in paths}
        self._read_fn = read_fn

    def _read(self, client_ids: Sequence[Hashable]) -> Iterator[Any]:
        for client_id in client_ids:
            path = self._paths[str(client_id)]
            if self._read_fn is not None:
                yield self._read_fn(path)
                continue
            try:
                yield _READERS[path.suffix](path, self._element_type)
            except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
                raise KoinonValueError(
                    f"The examples of client {client_id!r} cannot be read from {str(path)!r}.",
                    found=f"{type(error).__name__}: {error}"[:300],
                ) from error


def _is_of_client(path: pathlib.Path, suffixes: Any) -> bool:
    return path.is_file() and not path.name.startswith(".") and (suffixes is None or path.suffix in suffixes)


def _read_npz(path: pathlib.Path, element_type: Type | None) -> dict[str, np.ndarray]:
    del element_type  # the arrays have theirs
    # Anything else than a zip file NumPy would read as a single array.
    with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in sorted(archive.files)}


def _read_csv(path: pathlib.Path, element_type: Type | None) -> dict[str, np.ndarray]:
    with open(path, encoding="utf-8", newline="") as file:
        lines = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    names = lines[0][1] if lines else []
    if not names or len(set(names)) != len(names):
        raise ValueError(f"the first line must name the columns, each with a name of its own; found {names}")
    rows = [row for _, row in lines[1:]]
    for number, row in lines:
        if len(row) != len(names):
            raise ValueError(f"line {number} has {len(row)} cells, and the first line names {len(names)} columns")
    cells = dict(zip(names, zip(*rows, strict=True) if rows else itertools.repeat(()), strict=False))
    dtypes = _dtypes(element_type, path, not rows)
    return {name: _parse(cells[name], name, dtypes.get(name)) for name in sorted(cells)}


def _dtypes(element_type: Type | None, path: pathlib.Path, is_empty: bool) -> Mapping[str, Any]:
    """The dtypes of the columns, as far as they are known."""
    if element_type is None:
        if is_empty:
            raise ValueError(f"{path.name} is the first file and has no examples to know their type from: pass one")
        return {}
    if not isinstance(element_type, StructType):
        return {}
    return {str(name): field.dtype for name, field in element_type.items() if isinstance(field, TensorType)}


def _parse(cells: Sequence[str], name: str, dtype: Any) -> np.ndarray:
    """A column of text as numbers of a dtype; of int32 if it holds integers, and else float32, where dtype is None."""
    text = np.array(cells, dtype=np.str_) if cells else np.zeros(0)
    try:
        if dtype is None:
            try:
                return text.astype(np.int32)
            except ValueError:
                return text.astype(np.float32)
        if dtype != np.bool_:
            return text.astype(dtype)
        numbers = text.astype(np.uint8)
        if numbers.max(initial=0) > 1:
            raise ValueError("a boolean is 0 or 1")
        return numbers.astype(np.bool_)
    except (ValueError, OverflowError) as error:
        wanted = "numbers" if dtype is None else f"a number of type {np.dtype(dtype).name}"
        raise ValueError(f"the column {name!r} must hold {wanted} in every line: {error}") from None


_READERS: dict[str, Callable[[pathlib.Path, Type | None], dict[str, np.ndarray]]] = {
    ".csv": _read_csv,
    ".npz": _read_npz,
}
