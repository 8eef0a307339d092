"""Files of clients: arrays and tables as they were written, and errors that name the client and the file."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon._errors import KoinonValueError, TypeNotAssignableError
from koinon.simulation import FilePerUserClientData

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(rows=st.lists(st.tuples(FLOATS, st.integers(-(2**31), 2**31 - 1)), min_size=1, max_size=8))
def test_csv_files_read_back_what_was_written(rows: list[tuple[float, int]], tmp_path_factory: Any) -> None:
    """Floats and integers written in full are the same numbers again."""
    folder = tmp_path_factory.mktemp("clients")
    lines = [f"{x!r},{y}" for x, y in [(0.5, 0), *rows]]
    (folder / "ann.csv").write_text("\n".join(["x,y", *lines]))
    found = FilePerUserClientData(folder).dataset("ann")
    assert found["x"].dtype == np.float32
    assert found["x"].tolist() == [0.5, *(x for x, _ in rows)]
    assert found["y"].dtype == np.int32
    assert found["y"].tolist() == [0, *(y for _, y in rows)]


def test_the_first_client_decides_the_types_of_csv_columns(tmp_path: pathlib.Path) -> None:
    """Integers of a later client serve for floats, and not the other way around; a declared type helps."""
    (tmp_path / "a.csv").write_text("x,y\n1,0.5\n")
    (tmp_path / "b.csv").write_text("y,x\n2,3\n\n")
    (tmp_path / "c.csv").write_text("x,y\n0.5,1\n")
    (tmp_path / "d.csv").write_text("x,y\n")
    data = FilePerUserClientData(tmp_path)
    assert str(data.element_type) == "<x=int32,y=float32>"
    assert {name: array.tolist() for name, array in data.dataset("b").items()} == {"x": [3], "y": [2.0]}
    assert [data.num_examples(name) for name in "abd"] == [1, 1, 0]
    with pytest.raises(KoinonValueError, match=r"client 'c'(.|\n)*c.csv(.|\n)*'x' must hold a number of type int32"):
        data.dataset("c")
    declared = FilePerUserClientData(tmp_path, example_spec={"x": np.float32, "y": np.float32})
    assert declared.dataset("c")["x"].tolist() == [0.5]
    assert declared.dataset("a")["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must name the columns"),
        ("x,x\n1,2\n", "a name of its own"),
        ("x,y\n1\n", "line 2 has 1 cells"),
        ("x,y\n1,two\n", "'y' must hold numbers in every line"),
        ("x,y\n1,\n", "'y' must hold numbers"),
        ("x,y\n1,99999999999\n", "'y' must hold numbers in every line: .*out of bounds"),
        ("x,y\n", "no examples to know their type from"),
    ],
)
def test_damaged_csv_files_are_refused(text: str, message: str, tmp_path: pathlib.Path) -> None:
    """The error names the client, the file and what is wrong with it."""
    (tmp_path / "ann.csv").write_text(text)
    with pytest.raises(KoinonValueError, match=rf"client 'ann'(.|\n)*ann\.csv(.|\n)*{message}"):
        FilePerUserClientData(tmp_path).cohort()


@pytest.mark.parametrize(("cell", "expected"), [("0", False), ("1", True), ("2", None), ("True", None)])
def test_booleans_are_zero_or_one(cell: str, expected: bool | None, tmp_path: pathlib.Path) -> None:
    """NumPy would take any text for true."""
    (tmp_path / "ann.csv").write_text(f"x\n{cell}\n")
    data = FilePerUserClientData(tmp_path, example_spec={"x": np.bool_})
    if expected is None:
        with pytest.raises(KoinonValueError, match="type bool"):
            data.dataset("ann")
    else:
        assert data.dataset("ann")["x"].tolist() == [expected]


def test_damaged_npz_files_are_refused(tmp_path: pathlib.Path) -> None:
    """Truncated files, other files, and arrays of Python objects, which would run code."""
    np.savez(tmp_path / "a.npz", x=np.zeros(100))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[:-10])
    (tmp_path / "c.npz").write_text("nothing of the kind")
    np.savez(tmp_path / "d.npz", x=np.array([{}], object))
    np.save(tmp_path / "e.npy", np.zeros(3))
    (tmp_path / "e.npy").rename(tmp_path / "e.npz")
    np.savez(tmp_path / "f.npz", x=np.zeros(3, np.float32))
    data = FilePerUserClientData(tmp_path)
    assert data.num_examples("a") == 100
    for name in "bcde":
        with pytest.raises(KoinonValueError, match=f"client '{name}'(.|\n)*{name}.npz"):
            data.cohort(["a", name])
    with pytest.raises(TypeNotAssignableError, match="client 'f'"):
        data.dataset("f")


def test_files_of_other_kinds_are_left_alone_or_read_by_the_users_function(tmp_path: pathlib.Path) -> None:
    """Without a function only npz and csv files are clients; with one, every file is."""
    np.savez(tmp_path / "ann.npz", x=np.zeros(2))
    (tmp_path / "README.md").write_text("clients")
    (tmp_path / ".hidden.csv").write_text("x\n1\n")
    (tmp_path / "folder.csv").mkdir()
    assert FilePerUserClientData(tmp_path).client_ids == ("ann",)
    sizes = FilePerUserClientData(tmp_path, read_fn=lambda path: np.zeros(len(path.read_bytes())))
    assert sizes.client_ids == ("README", "ann")
    assert sizes.num_examples("README") == len("clients")


def test_a_client_has_one_file_and_a_folder_has_one_client(tmp_path: pathlib.Path) -> None:
    """Two files of a client, no file at all and no folder are errors at once."""
    with pytest.raises(KoinonValueError, match="no file of a client"):
        FilePerUserClientData(tmp_path)
    with pytest.raises(KoinonValueError, match="cannot be read"):
        FilePerUserClientData(tmp_path / "nowhere")
    (tmp_path / "ann.csv").write_text("x\n1\n")
    np.savez(tmp_path / "ann.npz", x=np.zeros(2))
    with pytest.raises(KoinonValueError, match=r"'ann' has two files(.|\n)*ann\.csv, ann\.npz"):
        FilePerUserClientData(tmp_path)
