"""Release managers that write files: what is written reads back exactly, and a crash or a restart leaves no trace."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon._errors import (
    CSVKeyFieldnameNotFoundError,
    KoinonValueError,
    ProgramStateWriteError,
    UnsupportedTypeError,
)
from koinon.program import CSVFileReleaseManager, CSVSaveMode, JSONLinesReleaseManager, ReleaseManager

MODES = [CSVSaveMode.APPEND, CSVSaveMode.WRITE]


class Metrics(NamedTuple):
    loss: Any
    counts: Any


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines_of(path: pathlib.Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(params=MODES, ids=lambda mode: mode.value)
def mode(request: pytest.FixtureRequest) -> CSVSaveMode:
    """Both ways to write."""
    return request.param


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    """A file that does not exist, in a directory that does not exist."""
    return tmp_path / "results" / "metrics"


@pytest.fixture(params=[CSVFileReleaseManager, JSONLinesReleaseManager])
def manager_class(request: pytest.FixtureRequest) -> Any:
    """Both formats."""
    return request.param


def test_both_are_release_managers(manager_class: Any, path: pathlib.Path) -> None:
    """Both classes have the method of the protocol, and no file before the first release."""
    assert isinstance(manager_class(path), ReleaseManager)
    assert not path.exists()


def test_leaves_become_columns_named_by_their_paths(path: pathlib.Path, mode: CSVSaveMode) -> None:
    """Nested names are joined by slashes, arrays are nested lists, a single leaf is the column `value`."""
    manager = CSVFileReleaseManager(path, mode)
    manager.release({"train": Metrics(jnp.float32(0.5), np.array([[1, 2], [3, 4]])), "ok": [True, "yes, «so»"]}, 1)
    row = {"train/loss": "0.5", "train/counts": "[[1, 2], [3, 4]]", "ok/0": "True", "ok/1": "yes, «so»"}
    assert rows_of(path) == [{"key": "1", **row}]
    CSVFileReleaseManager(path.with_name("single"), mode, "round").release(7, 3)
    assert path.with_name("single").read_text() == "round,value\n3,7\n"


def test_values_become_nested_json(path: pathlib.Path, mode: CSVSaveMode) -> None:
    """Nesting is kept; numbers that JSON does not have are strings; other characters stay readable."""
    value = {"train": Metrics(jnp.float32(0.5), np.array([[1, 2]])), "ok": [True, None, "«so»\n"]}
    JSONLinesReleaseManager(path, mode).release(value | {"bad": np.array([np.nan, np.inf, -np.inf])}, 1)
    expected = {
        "train": {"loss": 0.5, "counts": [[1, 2]]},
        "ok": [True, None, "«so»\n"],
        "bad": ["NaN", "Infinity", "-Infinity"],
    }
    assert lines_of(path) == [{"key": 1, "value": expected}]
    assert "«so»" in path.read_text()


@settings(max_examples=50, deadline=None)
@given(number=st.floats(), narrow=st.floats(width=32), mode=st.sampled_from(MODES))
def test_floats_read_back_exactly(
    number: float, narrow: float, mode: CSVSaveMode, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any float64, and any float32, is the same number after the trip through text."""
    path = tmp_path_factory.mktemp("floats") / "file"
    CSVFileReleaseManager(path, mode).release({"a": number, "b": np.float32(narrow)}, 1)
    (row,) = rows_of(path)
    np.testing.assert_equal(float(row["a"]), number)
    np.testing.assert_equal(np.float32(row["b"]), np.float32(narrow))
    if math.isfinite(number):
        JSONLinesReleaseManager(path.with_suffix(".json"), mode).release(number, 1)
        assert lines_of(path.with_suffix(".json"))[0]["value"] == number


def test_both_modes_write_the_same(tmp_path: pathlib.Path, manager_class: Any) -> None:
    """Appending is an optimisation that nobody sees."""
    texts = []
    for mode in MODES:
        manager = manager_class(tmp_path / mode.value, mode)
        for key in [1, 2, 5, 3, 4, 4]:
            manager.release({"loss": 1 / key, "text": 'a "b"\nc,d', **({"late": [key]} if key > 2 else {})}, key)
        texts.append((tmp_path / mode.value).read_text())
    assert texts[0] == texts[1]


def test_a_released_key_removes_it_and_what_follows(path: pathlib.Path, mode: CSVSaveMode) -> None:
    """A program that goes on from round 2 leaves no trace of the rounds that it repeats."""
    manager = CSVFileReleaseManager(path, mode)
    for key in range(5):
        manager.release({"loss": key / 10}, key)
    manager.release({"loss": -1}, np.int64(2))
    assert [(row["key"], row["loss"]) for row in rows_of(path)] == [("0", "0.0"), ("1", "0.1"), ("2", "-1")]
    manager.release({"loss": -2}, 0)
    assert [(row["key"], row["loss"]) for row in rows_of(path)] == [("0", "-2")]


def test_a_restart_goes_on_where_the_file_ends(path: pathlib.Path, mode: CSVSaveMode, manager_class: Any) -> None:
    """A new manager per release writes what one manager writes."""
    for key in [1, 2, 3, 2, 3]:
        manager_class(path, mode).release({"loss": key}, key)
    manager = manager_class(path.with_name("other"), mode)
    for key in [1, 2, 3]:
        manager.release({"loss": key}, key)
    assert path.read_text() == path.with_name("other").read_text()


def test_new_columns_are_empty_in_earlier_rows(path: pathlib.Path, mode: CSVSaveMode) -> None:
    """Columns may come and go from release to release."""
    manager = CSVFileReleaseManager(path, mode)
    manager.release({"a": 1}, 1)
    manager.release({"b": 2}, 2)
    manager.release({"a": 3, "c": 4}, 3)
    assert path.read_text() == "key,a,b,c\n1,1,,\n2,,2,\n3,3,,4\n"


def test_appending_does_not_rewrite(path: pathlib.Path, manager_class: Any) -> None:
    """In append mode the file stays the same file; in write mode it is replaced."""
    for mode, is_same in [(CSVSaveMode.APPEND, True), (CSVSaveMode.WRITE, False)]:
        manager = manager_class(path, mode)
        manager.release({"a": 1}, 1)
        # Held open, so that the file system cannot give the number of the old file to the new one.
        with open(path):
            before = os.stat(path).st_ino
            manager.release({"a": 2}, 2)
            assert (os.stat(path).st_ino == before) is is_same


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_that_was_cut_off_is_dropped(
    path: pathlib.Path, mode: CSVSaveMode, manager_class: Any, cut: int
) -> None:
    """After a crash within an append, the next release writes over what is left of the line."""
    manager = manager_class(path, mode)
    manager.release({"text": "one\ntwo"}, 1)
    manager.release({"text": "x\n\ny\n\nz"}, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    manager_class(path, mode).release({"text": "x\n\ny\n\nz"}, 2)
    assert path.read_bytes() == whole


def test_a_file_that_was_changed_is_read_again(path: pathlib.Path, manager_class: Any) -> None:
    """A file that somebody has removed or cut is not continued from memory."""
    manager = manager_class(path)
    manager.release({"a": 1}, 1)
    manager.release({"a": 2}, 2)
    first_two = path.read_bytes()
    path.unlink()
    manager.release({"a": 2}, 2)
    assert b"2" in path.read_bytes()
    path.write_bytes(first_two)
    manager.release({"a": 3}, 3)
    assert path.read_bytes().startswith(first_two)


def test_a_file_without_the_key_is_refused_and_untouched(path: pathlib.Path, mode: CSVSaveMode) -> None:
    """Results of something else are not written over."""
    path.parent.mkdir()
    for text in ["round,loss\n1,0.5\n", "round,loss", "something else"]:
        path.write_text(text)
        with pytest.raises(CSVKeyFieldnameNotFoundError, match="column 'key'"):
            CSVFileReleaseManager(path, mode)
        assert path.read_text() == text
    path.write_text("round,loss\n1,0.5\n")
    CSVFileReleaseManager(path, mode, "round").release({"loss": 0.25}, 2)
    assert path.read_text() == "round,loss\n1,0.5\n2,0.25\n"


@pytest.mark.parametrize("text", ["key,a\none,2\n", "key,a\n1,2,3\n"])
def test_a_damaged_table_is_refused(path: pathlib.Path, text: str) -> None:
    """Keys that are no integers, and rows that are too long, are errors."""
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(KoinonValueError, match="cannot be continued"):
        CSVFileReleaseManager(path)


@pytest.mark.parametrize("text", ["key,a\n", "[1]\n", '{"value": 1}\n', '{"key": "one"}\n', "\x00\n"])
def test_other_lines_than_json_objects_with_keys_are_refused(path: pathlib.Path, text: str) -> None:
    """A file of another kind is an error and stays as it is."""
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(KoinonValueError):
        JSONLinesReleaseManager(path)
    assert path.read_text() == text


def test_empty_names_are_refused(path: pathlib.Path) -> None:
    """Neither the path nor the name of the key may be empty."""
    with pytest.raises(ValueError, match="file_path"):
        CSVFileReleaseManager("")
    with pytest.raises(ValueError, match="file_path"):
        JSONLinesReleaseManager("")
    with pytest.raises(ValueError, match="key_fieldname"):
        CSVFileReleaseManager(path, key_fieldname="")


@pytest.mark.parametrize("leaf", [object(), 1j, jax.random.key(0), np.array([None]), np.complex64(1), b"bytes"])
def test_what_is_no_number_or_text_is_refused(path: pathlib.Path, manager_class: Any, leaf: Any) -> None:
    """The error names the leaf, and nothing is written."""
    with pytest.raises(UnsupportedTypeError, match="a"):
        manager_class(path).release({"a": leaf}, 1)
    assert not path.exists()


def test_names_that_collide_are_refused(path: pathlib.Path) -> None:
    """A field with the name of the key column, and two paths that give one name, are errors."""
    with pytest.raises(KoinonValueError, match="'key'"):
        CSVFileReleaseManager(path).release({"key": 1}, 1)
    with pytest.raises(KoinonValueError, match="'a/b'"):
        CSVFileReleaseManager(path).release({"a": {"b": 1}, "a/b": 2}, 1)


def test_a_cell_that_could_not_be_read_back_is_refused(path: pathlib.Path) -> None:
    """Python reads cells up to a limit; a longer one would make the file unreadable at the next restart."""
    with pytest.raises(KoinonValueError, match="too long"):
        CSVFileReleaseManager(path).release({"a": np.zeros(100_000)}, 1)


@pytest.mark.parametrize("wrong", ["1", 1.5, None])
def test_keys_are_integers(path: pathlib.Path, manager_class: Any, wrong: Any) -> None:
    """Other keys have no order to cut the file by."""
    with pytest.raises(TypeError):
        manager_class(path).release({"a": 1}, wrong)


@pytest.mark.parametrize("call", ["open", "write", "fsync", "close", "replace"])
def test_a_failing_system_call_leaves_the_file_as_it_was(
    path: pathlib.Path, monkeypatch: Any, manager_class: Any, mode: CSVSaveMode, call: str
) -> None:
    """After a release that failed, the file has the rows before it, and the release can be repeated."""
    manager = manager_class(path, mode)
    manager.release({"a": 1}, 1)
    before, real = path.read_bytes(), getattr(os, call)

    def failing(*arguments: Any, **options: Any) -> Any:
        if call == "close":
            real(*arguments, **options)
        if call == "write":
            real(arguments[0], arguments[1][:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        if call == "replace" and mode is CSVSaveMode.APPEND:
            manager.release({"a": 2}, 2)
        else:
            with pytest.raises(ProgramStateWriteError, match="No space left"):
                manager.release({"a": 2}, 2)
            if call != "close":
                assert path.read_bytes() == before
    manager.release({"a": 2}, 2)
    manager.release({"a": 3}, 3)
    assert os.listdir(path.parent) == [path.name]
    reader = rows_of if manager_class is CSVFileReleaseManager else lines_of
    assert [int(row["key"]) for row in reader(path)] == [1, 2, 3]
