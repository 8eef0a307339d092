"""Tables, as other libraries have them, read as arrays; the libraries themselves are not needed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError


def read_table(
    table: Any, client_column: str, columns: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], list[Hashable]]:
    """The columns of a table as arrays `[rows, ...]`, without that of the clients, and the client of each row."""
    names = _names(table)
    wanted = [name for name in names if name != client_column] if columns is None else list(columns)
    missing = [name for name in (client_column, *wanted) if name not in names]
    if missing:
        raise KoinonValueError(
            f"The table has no column {', '.join(map(repr, missing))}.", expected=f"columns among {names}"
        )
    if not wanted:
        raise KoinonValueError("A table of examples needs a column besides that of the clients.", found=f"{names}")
    values = _values(table, [client_column, *wanted])
    arrays = {str(name): _numbers(values[name], name) for name in wanted}
    return arrays, _client_ids(values[client_column], client_column)


def _names(table: Any) -> list[Any]:
    if isinstance(table, Mapping) and not any(hasattr(column, "column_names") for column in table.values()):
        return list(table)
    # pyarrow and `datasets` have `column_names`; pandas and polars have `columns`, which pyarrow uses for the data.
    for attribute in ("column_names", "columns"):
        names = getattr(table, attribute, None)
        if names is not None and not isinstance(table, Mapping) and hasattr(table, "__len__"):
            return list(names)
    raise KoinonTypeError(
        "This is no table that koinon can read.",
        expected="a pandas or polars DataFrame, a pyarrow Table, a Hugging Face Dataset, or a dict of arrays",
        found=f"{type(table).__module__}.{type(table).__qualname__}",
        hint="choose one split of a Hugging Face DatasetDict, for example `dataset['train']`",
    )


def _values(table: Any, names: list[Any]) -> Mapping[Any, Any]:
    if hasattr(table, "with_format") and hasattr(table, "select_columns"):
        return table.select_columns(list(dict.fromkeys(names))).with_format("numpy")[:]
    return {name: table[name] for name in names}


def _array(column: Any) -> np.ndarray:
    if isinstance(column, list | tuple):
        try:
            return np.asarray(column)
        except ValueError:  # ragged
            return np.fromiter(column, object, len(column))
    return column.to_numpy() if hasattr(column, "to_numpy") else np.asarray(column)


def _numbers(column: Any, name: Any) -> np.ndarray:
    """A column of numbers, or of arrays of one shape, in a dtype that JAX holds."""
    array = _array(column)
    if array.dtype == object and len(array) and isinstance(array[0], np.ndarray | list | tuple):
        shapes = {np.shape(value) for value in array}
        if len(shapes) > 1:
            raise KoinonTypeError(
                f"The column {name!r} holds arrays of different shapes.",
                expected="arrays of one shape",
                found=", ".join(map(str, sorted(shapes)[:3])),
                hint="pad them, or choose other columns with `columns=`",
            )
        array = np.stack([np.asarray(value) for value in array])
    if array.dtype.kind not in "biufc" and not jax.numpy.issubdtype(array.dtype, np.floating):
        raise KoinonTypeError(
            f"The column {name!r} does not hold numbers.",
            expected="numbers or booleans, none of them missing, or arrays of one shape",
            found=f"dtype {getattr(column, 'dtype', array.dtype)}"
            + (f", such as {array[0]!r:.60}" if len(array) else ""),
            hint="encode text as integers and fill in what is missing, or choose other columns with `columns=`",
        )
    num_missing = 0 if array.dtype.kind in "biu" else int(np.isnan(array).sum())
    if num_missing:
        raise KoinonValueError(
            f"The column {name!r} has missing values.",
            expected="a number in each row",
            found=f"{num_missing} that are NaN",
            hint="fill them in, or leave their rows out; `ClientData.from_arrays` takes NaN as a number",
        )
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype.kind in "iu" and array.size and dtype != array.dtype:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise KoinonValueError(
                f"The column {name!r} holds integers that do not fit into {dtype}.",
                expected=f"{limits.min} to {limits.max}",
                found=f"{array.min()} to {array.max()}",
                hint="set jax.config.update('jax_enable_x64', True) before anything else, or number the values anew",
            )
    return np.ascontiguousarray(array, dtype)


def _client_ids(column: Any, name: str) -> list[Hashable]:
    client_ids = _array(column).tolist()
    # NaN is not equal to itself, and pandas' NA refuses to say.
    missing = [i for i, client_id in enumerate(client_ids) if client_id is None or (client_id == client_id) is not True]
    if missing:
        raise KoinonValueError(
            f"The column {name!r} does not name a client in every row.",
            expected="an id in each row",
            found=f"{len(missing)} rows without, the first of them row {missing[0]}",
            hint="leave these rows out",
        )
    return client_ids
