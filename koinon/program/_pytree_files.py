"""Pytrees in files of their own: models to keep, results to hand on."""

from __future__ import annotations

import os
from typing import Any, final

from koinon._errors import ReleasedValueNotFoundError
from koinon.program._atomic import make_directory, write_atomically
from koinon.program._container import container_chunks, pytree_from_bytes


def save_pytree(path: str | os.PathLike[str], tree: Any) -> None:
    """Saves a pytree of arrays, for example a model's weights, to a file, atomically and durably.

    An existing file is replaced. See `pytree_to_bytes` for what the tree may hold.

    Raises:
      ProgramStateWriteError: if the operating system refuses; an existing file is then as it was before.
      UnsupportedTypeError: if a leaf cannot be saved; the message has its path.

    Example:
      >>> import os, tempfile, numpy as np
      >>> path = os.path.join(tempfile.mkdtemp(), "model")
      >>> save_pytree(path, {"w": np.ones(2), "b": [np.float32(0)]})
      >>> load_pytree(path)["w"]
      array([1., 1.])
    """
    write_atomically(os.fspath(path), container_chunks(tree))


def load_pytree(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Loads a pytree that `save_pytree` has saved.

    Args:
      path: the file.
      like: a pytree with the structure, shapes and dtypes to expect, whose containers are those of the result; see
        `pytree_from_bytes`.

    Returns:
      The pytree; without `like`, nested dicts and lists of NumPy arrays.

    Raises:
      FileNotFoundError: if there is no such file.
      ProgramStateCorruptedError: if the file is damaged, or is none of `save_pytree`'s.
      ProgramStateStructureError: if it holds something else than `like`.
    """
    with open(path, "rb") as file:
        return pytree_from_bytes(file.read(), like)


@final
class PytreeFileReleaseManager:
    """Writes each released value to a file of its own, which `load_pytree` reads: models, states, any arrays.

    A file is written as `save_pytree` does, atomically and durably. A value that is released again under its key takes
    the place of the first.

    Example:
      >>> import tempfile, numpy as np
      >>> manager = PytreeFileReleaseManager(tempfile.mkdtemp())
      >>> manager.release({"w": np.ones(2)}, key=10)
      >>> manager.get_value(10)
      {'w': array([1., 1.])}
    """

    def __init__(self, root_dir: str | os.PathLike[str], prefix: str = "release_") -> None:
        """Makes the directory if it does not exist.

        Args:
          root_dir: the directory.
          prefix: what the names of the files start with; the key follows.

        Raises:
          ValueError: if `root_dir` is empty, or `prefix` holds a path separator.
        """
        if not os.fspath(root_dir):
            raise ValueError("`root_dir` must be the path of a directory, and is empty.")
        if os.path.basename(prefix) != prefix:
            raise ValueError(f"`prefix` must be the beginning of a file name, without directories; found {prefix!r}.")
        self._root_dir = os.path.abspath(os.fspath(root_dir))
        self._prefix = prefix
        make_directory(self._root_dir)

    def release(self, value: Any, key: Any) -> None:
        """Writes `value`, a pytree of arrays, to the file of `key`, a number or a name.

        Raises:
          ProgramStateWriteError: if the operating system refuses; an older file is then as it was before.
          UnsupportedTypeError: if a leaf cannot be saved; the message has its path.
          ValueError: if `key` is no part of a file name.
        """
        save_pytree(self._path(key), value)

    def get_value(self, key: Any, structure: Any = None) -> Any:
        """The value that was released under `key`; see `load_pytree` for `structure`.

        Raises:
          ReleasedValueNotFoundError: if there is none.
          ProgramStateCorruptedError: if its file is damaged.
          ProgramStateStructureError: if it is something else than `structure`.
        """
        try:
            return load_pytree(self._path(key), structure)
        except FileNotFoundError:
            released = [name.removeprefix(self._prefix) for name in sorted(os.listdir(self._root_dir))]
            raise ReleasedValueNotFoundError(
                f"No value was released to {self._root_dir!r} under {key!r}.",
                found=f"keys {', '.join(released)}" if released else "no values at all",
            ) from None

    def _path(self, key: Any) -> str:
        name = str(key)
        if not name or os.path.basename(name) != name:
            raise ValueError(f"A key must be a part of a file name, without directories; found {key!r}.")
        return os.path.join(self._root_dir, self._prefix + name)
