"""Databases of clients that TensorFlow Federated has written."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.simulation._sql import connect_read_only, is_of_tff
from koinon.simulation._streamed import StreamedClientData
from koinon.simulation._tf_example import Feature, parse_example
from koinon.types import StructType, TensorType, to_type


def load_and_parse_sql_client_data(
    database_filepath: str | os.PathLike[str], element_spec: Mapping[str, Any], split_name: str | None = None
) -> StreamedClientData:
    """Opens a database of TensorFlow Federated, such as `emnist_all.sqlite`, in which examples are `tf.train.Example`s.

    Neither TensorFlow nor a package for protocol buffers is needed. The database is only read, a client at a time.

    Args:
      database_filepath: the file, uncompressed.
      element_spec: for each feature of an example that is wanted, what `koinon.types.to_type` reads as its type: for
        EMNIST `{"pixels": (np.float32, (28, 28)), "label": np.int32}`. Floats and integers are converted to the dtype.
        A feature of bytes, such as text, is of type uint8 with a length, and filled up with zeros.
      split_name: the part of the database, for EMNIST `digits_only_train`, `digits_only_test`, `all_train` or
        `all_test`; None for all of it.

    Returns:
      A federated dataset whose examples are dicts, the clients in the order of their ids.

    Raises:
      KoinonTypeError: if `element_spec` is no mapping of names to types of tensors.
      KoinonValueError: if there is no such file, it is no database of TensorFlow Federated, or it has no such part.
        Where a client is read: if an example is damaged, or has no such feature.
    """
    element_type = to_type(dict(element_spec)) if isinstance(element_spec, Mapping) and element_spec else None
    if not isinstance(element_type, StructType) or not all(map(_is_array, element_type.children())):
        raise KoinonTypeError(
            "The features of an example have names, and types of tensors.",
            expected="for example {'pixels': (np.float32, (28, 28)), 'label': np.int32}",
            found=repr(element_spec),
        )
    return _TffSqlClientData(os.path.abspath(database_filepath), element_type, split_name)


def _is_array(type_: Any) -> bool:
    is_fixed = isinstance(type_, TensorType) and type_.shape is not None and None not in type_.shape
    return is_fixed and getattr(type_.dtype, "kind", "") in ("b", "i", "u", "f")


@final
class _TffSqlClientData(StreamedClientData):
    """The clients of a database of TensorFlow Federated, or of a part of it."""

    def __init__(self, path: str, element_type: StructType, split_name: str | None) -> None:
        self._path = path
        self._split_name = split_name
        with connect_read_only(path) as database:
            if not is_of_tff(database):
                raise KoinonValueError(
                    f"The database {path!r} is none of TensorFlow Federated.",
                    expected="tables `examples` and `client_metadata`",
                    hint="what `save_to_sql_client_data` has written is read by `SqlClientData`",
                )
            rows = database.execute("SELECT client_id, split_name, num_examples FROM client_metadata").fetchall()
        sizes: dict[Hashable, int] = {}
        for client_id, part, num_examples in sorted(rows):
            if split_name in (None, part):
                sizes[client_id] = sizes.get(client_id, 0) + num_examples
        if not sizes:
            raise KoinonValueError(
                f"The database {path!r} has no clients in the part {split_name!r}.",
                expected=f"one of {sorted({part for _, part, _ in rows})}",
            )
        super().__init__(sizes, element_type)
        self._sizes = sizes
        self._features: dict[str, Any] = {str(name): type_ for name, type_ in element_type.items()}

    def num_examples(self, client_id: Hashable) -> int:
        """The number of a client's examples, which are not read for it.

        Raises:
          UnknownClientError: if there is no such client.
        """
        self._check_known([client_id])
        return self._sizes[client_id]

    def _read(self, client_ids: Sequence[Hashable]) -> Iterator[dict[str, np.ndarray]]:
        query = (
            "SELECT serialized_example_proto FROM examples "
            "WHERE client_id = ?1 AND (?2 IS NULL OR split_name = ?2) ORDER BY rowid"
        )
        with connect_read_only(self._path) as database:
            for client_id in client_ids:
                messages = database.execute(query, (client_id, self._split_name)).fetchall()
                try:
                    examples = [parse_example(message) for (message,) in messages]
                    yield {
                        name: _stacked([example.get(name) for example in examples], type_, name)
                        for name, type_ in self._features.items()
                    }
                except (ValueError, TypeError) as error:
                    raise KoinonValueError(
                        f"The examples of client {client_id!r} cannot be read from {self._path!r}.",
                        found=str(error),
                    ) from error


def _stacked(features: list[Feature | None], type_: TensorType, name: str) -> np.ndarray:
    """A feature of all examples of a client, in the dtype and the shape of its type."""
    shape = [size for size in type_.shape or () if size is not None]
    rows = np.zeros((len(features), math.prod(shape)), type_.dtype)
    for row, feature in zip(rows, features, strict=True):
        values = _numbers(feature, type_, name)
        if len(values) != len(row) and not (isinstance(feature, list) and len(values) < len(row)):
            raise ValueError(f"the feature {name!r} with {len(values)} values, where {type_} has {len(row)}")
        row[: len(values)] = values
    return rows.reshape(len(features), *shape)


def _numbers(feature: Feature | None, type_: TensorType, name: str) -> np.ndarray:
    if feature is None:
        raise ValueError(f"no feature {name!r}")
    if not isinstance(feature, list):
        converted = feature.astype(type_.dtype)
        if feature.dtype.kind == "i" and not np.array_equal(converted, feature):
            raise ValueError(f"the feature {name!r} with an integer that {type_.dtype} does not hold")
        return converted
    if type_.dtype != np.uint8 or len(type_.shape or ()) != 1:
        raise ValueError(f"the feature {name!r} of bytes; declare it as bytes of a fixed length, (np.uint8, (length,))")
    return np.frombuffer(b"".join(feature), np.uint8)
