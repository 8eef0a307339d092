"""Clients in an HDF5 file, as TensorFlow Federated and LEAF's descendants hand their datasets out."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError, MissingDependencyError
from koinon.simulation._streamed import StreamedClientData

_GROUP = "examples"


@final
class HDF5ClientData(StreamedClientData):
    """A federated dataset in an HDF5 file, such as `fed_emnist_train.h5`, a client at a time.

    In the file, `examples/<client>/<feature>` is an array of which row i belongs to example i. An example is a dict of
    the features. The file is only read.

    Example:
      >>> import h5py, pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "clients.h5"
      >>> with h5py.File(path, "w") as file:
      ...     file["examples/ann/pixels"] = np.zeros((2, 28, 28), np.float32)
      ...     file["examples/ann/label"] = np.int32([3, 1])
      >>> HDF5ClientData(path)
      HDF5ClientData(<label=int32,pixels=float32[28,28]>*, 1 clients)
    """

    def __init__(
        self, database_filepath: str | os.PathLike[str], *, example_spec: Mapping[str, Any] | None = None
    ) -> None:
        """Reads the ids of the clients.

        Args:
          database_filepath: the file.
          example_spec: for each feature to take, what `koinon.types.to_type` reads as its type; None for all features
            of the first client.

        Raises:
          MissingDependencyError: if h5py is not installed.
          KoinonValueError: if there is no such file, or no client in it; where a client is read, if it lacks a feature.
          KoinonTypeError: where a client is read, if a feature is text.
        """
        try:
            self._h5py = importlib.import_module("h5py")
        except ImportError:
            raise MissingDependencyError("h5py", extra="hdf5", purpose="Reading an HDF5 file") from None
        self._path = os.path.abspath(database_filepath)
        with self._clients() as clients:
            ids = sorted(clients)
            self._features = sorted(example_spec or (clients[ids[0]] if ids else ()))
        if not ids:
            raise KoinonValueError(f"The file {self._path!r} has no clients.", expected=f"groups in {_GROUP!r}")
        super().__init__(ids, example_spec)

    def num_examples(self, client_id: Hashable) -> int:
        """The number of a client's examples, which are not read for it.

        Raises:
          UnknownClientError: if there is no such client.
        """
        self._check_known([client_id])
        with self._clients() as clients:
            return len(self._array(clients, client_id, self._features[0]))

    def _read(self, client_ids: Sequence[Hashable]) -> Iterator[dict[str, np.ndarray]]:
        with self._clients() as clients:
            for client_id in client_ids:
                yield {name: self._array(clients, client_id, name)[()] for name in self._features}

    def _array(self, clients: Any, client_id: Hashable, name: str) -> Any:
        found = clients[client_id].get(name)
        if found is None or not found.shape:
            raise KoinonValueError(
                f"The client {client_id!r} has no array {name!r} of examples.",
                expected="an array for each feature, whose first dimension counts the examples",
                found=f"{sorted(clients[client_id])}",
            )
        if found.dtype.kind not in "biuf":
            raise KoinonTypeError(
                f"The feature {name!r} of client {client_id!r} is text, or something else that is no number.",
                found=f"dtype {found.dtype}",
                hint="name the other features in `example_spec`, or encode it in a function for `GeneratedClientData`",
            )
        return found

    @contextlib.contextmanager
    def _clients(self) -> Iterator[Any]:
        """The group of the clients; the file is open in this block only, so that other processes can open it."""
        try:
            file = self._h5py.File(self._path, "r")
        except OSError as error:
            raise KoinonValueError(
                f"The file {self._path!r} cannot be read.", expected="an HDF5 file", found=str(error)[:200]
            ) from None
        with file:
            if _GROUP not in file:
                raise KoinonValueError(
                    f"The file {self._path!r} has no clients.", expected=f"a group {_GROUP!r}", found=f"{sorted(file)}"
                )
            yield file[_GROUP]
