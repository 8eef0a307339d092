"""Pytrees in files of their own: models to keep, results to hand on."""

from __future__ import annotations

import os
from typing import Any

from koinon.program._atomic import write_atomically
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
