"""Files of rows in the order of their keys, which a crash leaves whole."""

from __future__ import annotations

import csv
import io
import json
import os
from typing import Any, Protocol

from koinon._errors import CSVKeyFieldnameNotFoundError, KoinonValueError
from koinon.program._atomic import append_durably, make_directory, write_atomically

Row = dict[str, Any]


class RowFormat(Protocol):
    """How rows are written as text."""

    missing_key_error: type[KoinonValueError]

    def whole_lines(self, text: str) -> str:
        """The text without a last line that was cut off."""
        ...

    def parse(self, text: str) -> tuple[list[str], list[Row]]:
        """The columns and the rows of a file.

        Raises:
          ValueError: if the text is no such file.
        """
        ...

    def header(self, columns: list[str]) -> str:
        """What a file with these columns starts with."""
        ...

    def lines(self, columns: list[str], rows: list[Row]) -> str:
        """The lines of rows."""
        ...


class LineFile:
    """A file of rows with increasing integer keys.

    A row is appended where that is allowed and enough; otherwise the file is rewritten atomically. A line that a
    crash has cut off is dropped by the next write. The file is read again when it has another size than it was left
    with, so that only what is needed to append is kept in memory.
    """

    def __init__(self, path: str | os.PathLike[str], row_format: RowFormat, key_name: str, may_append: bool) -> None:
        if not os.fspath(path):
            raise ValueError("`file_path` must be the path of a file, and is empty.")
        if not key_name:
            raise ValueError("`key_fieldname` must be the name of a column, and is empty.")
        self.path = os.path.abspath(os.fspath(path))
        self._format = row_format
        self._key_name = key_name
        self._may_append = may_append
        make_directory(os.path.dirname(self.path))
        columns, rows, text = self._read()
        # A file that we would write otherwise, for example one with a line cut off, is rewritten at the next release.
        self._note(columns, rows, len(text.encode()) if self._text(columns, rows) == text else -1)

    def put(self, row: Row) -> None:
        """Writes `row` after removing the rows of its key and of greater ones."""
        key = row[self._key_name]
        follows = self._latest_key is None or key > self._latest_key
        if self._may_append and follows and row.keys() <= self._columns.keys() and self._size() == self._whole_size:
            data = self._format.lines([*self._columns], [row]).encode()
            append_durably(self.path, data)
            self._latest_key = key
            self._whole_size += len(data)
            return
        columns, rows, _ = self._read()
        rows = [*(earlier for earlier in rows if earlier[self._key_name] < key), row]
        columns = list(dict.fromkeys([*columns, *row]))
        contents = self._text(columns, rows).encode()
        write_atomically(self.path, [contents])
        self._note(columns, rows, len(contents))

    def _read(self) -> tuple[list[str], list[Row], str]:
        try:
            with open(self.path, encoding="utf-8", newline="") as file:
                text = file.read()
        except FileNotFoundError:
            return [], [], ""
        try:
            # Without any whole line it is none of our files, which get their first lines at once.
            columns, rows = self._format.parse(self._format.whole_lines(text) or text)
            if text and self._key_name not in columns:
                raise self._format.missing_key_error(
                    f"The file {self.path!r} exists and has no column for the key.",
                    expected=f"a column {self._key_name!r}",
                    found=f"columns {columns}",
                    hint="release to another file, or give the name of the column as `key_fieldname`",
                )
            for row in rows:
                row[self._key_name] = int(row[self._key_name])
        except KoinonValueError:
            raise
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise KoinonValueError(
                f"The file {self.path!r} exists and cannot be continued.",
                expected=f"rows with an integer {self._key_name!r}",
                found=f"{type(error).__name__}: {error}"[:200],
                hint="release to another file",
            ) from None
        return columns, rows, text

    def _text(self, columns: list[str], rows: list[Row]) -> str:
        return self._format.header(columns) + self._format.lines(columns, rows) if columns else ""

    def _note(self, columns: list[str], rows: list[Row], whole_size: int) -> None:
        self._columns = dict.fromkeys(columns)
        self._latest_key = max((row[self._key_name] for row in rows), default=None)
        self._whole_size = whole_size

    def _size(self) -> int:
        try:
            return os.path.getsize(self.path)
        except FileNotFoundError:
            return 0


class CSVRows:
    """Rows of a comma-separated table with a header."""

    missing_key_error: type[KoinonValueError] = CSVKeyFieldnameNotFoundError

    def whole_lines(self, text: str) -> str:
        """The text up to its last line break that is outside of quotes."""
        end = text.rfind("\n")
        while end >= 0 and text.count('"', 0, end) % 2:
            end = text.rfind("\n", 0, end)
        return text[: end + 1]

    def parse(self, text: str) -> tuple[list[str], list[Row]]:
        """The table; cells are strings, and missing ones empty."""
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        rows = list(reader)
        if any(None in row for row in rows):
            raise ValueError("a row with more cells than the header")
        return list(reader.fieldnames or []), rows

    def header(self, columns: list[str]) -> str:
        """The line of the column names."""
        return self.lines(columns, [{column: column for column in columns}])

    def lines(self, columns: list[str], rows: list[Row]) -> str:
        """The rows, each with all columns."""
        out = io.StringIO(newline="")
        csv.DictWriter(out, columns, restval="", lineterminator="\n").writerows(rows)
        return out.getvalue()


class JSONRows:
    """One JSON object a line."""

    missing_key_error: type[KoinonValueError] = KoinonValueError

    def whole_lines(self, text: str) -> str:
        """The text up to its last line break; inside of JSON strings line breaks are escaped."""
        return text[: text.rfind("\n") + 1]

    def parse(self, text: str) -> tuple[list[str], list[Row]]:
        """The objects, and the names that occur in them."""
        rows = [json.loads(line) for line in text.splitlines()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line that is no JSON object")
        return list(dict.fromkeys(name for row in rows for name in row)), rows

    def header(self, columns: list[str]) -> str:
        """Nothing."""
        return ""

    def lines(self, columns: list[str], rows: list[Row]) -> str:
        """The objects, one a line."""
        return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
