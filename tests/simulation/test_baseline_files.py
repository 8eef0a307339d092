"""The real data of the usual benchmarks, in files as they are handed out, here with a few examples each."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from koinon.errors import KoinonValueError
from koinon.simulation import baselines
from koinon.simulation._baseline_files import read_splits


def save_leaf(folder: pathlib.Path, part: str, name: str, user_data: dict[str, object]) -> None:
    """A file as LEAF's scripts write it."""
    (folder / part).mkdir(exist_ok=True)
    content = {"users": list(user_data), "num_samples": [1] * len(user_data), "user_data": user_data}
    (folder / part / f"{name}.json").write_text(json.dumps(content))


def test_femnist_of_leaf_is_read(tmp_path: pathlib.Path) -> None:
    """Images are lists of 784 numbers; the users of all files of a part belong together."""
    rng = np.random.default_rng(0)
    images = rng.random((3, 784)).round(3)
    for part in ("train", "test"):
        save_leaf(tmp_path, part, "all_data_0", {"f0001_41": {"x": images[:2].tolist(), "y": [3, 61]}})
        save_leaf(
            tmp_path, part, "all_data_1", {"f0002_01": {"x": images[2:].tolist(), "y": [9]}, "f3": {"x": [], "y": []}}
        )
    task = baselines.emnist(folder=tmp_path, model="cnn")
    assert task.train.client_ids == ("f0001_41", "f0002_01")
    found = task.train.dataset("f0001_41")
    np.testing.assert_allclose(found["x"][..., 0], images[:2].reshape(2, 28, 28), rtol=1e-6)
    assert found["y"].tolist() == [3, 61]
    assert task.test["y"].tolist() == [3, 61, 9]


def test_shakespeare_of_leaf_is_read(tmp_path: pathlib.Path) -> None:
    """An example is eighty characters and the next one; the labels are the characters that follow each."""
    line = "To be, or not to be, that is the question:~\n".ljust(80, "e")
    for part in ("train", "test"):
        save_leaf(tmp_path, part, "all", {"HAMLET": {"x": [line, line[1:] + "x"], "y": ["x", "z"]}})
    task = baselines.shakespeare(folder=tmp_path)
    found = task.train.dataset("HAMLET")
    assert found["x"].shape == found["y"].shape == (2, 80)
    np.testing.assert_array_equal(found["x"][:, 1:], found["y"][:, :-1])
    np.testing.assert_array_equal(found["x"][1, :-1], found["x"][0, 1:])
    assert found["x"].min() >= 1
    assert found["x"][0, line.index("~")] == 81  # a character that LEAF does not know
    assert found["x"][0, line.index("\n")] == 1
    assert len(set(found["x"][0].tolist())) == len(set(line))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_binary_version_of_cifar_is_read(tmp_path: pathlib.Path, name: str) -> None:
    """A record is one label, or a coarse and a fine one, and three planes of colour."""
    rng = np.random.default_rng(0)
    label_bytes = 1 if name == "cifar10" else 2
    train = [f"data_batch_{i}.bin" for i in range(1, 6)] if name == "cifar10" else ["train.bin"]
    records = {}
    for file in [*train, "test_batch.bin" if name == "cifar10" else "test.bin"]:
        records[file] = rng.integers(0, 10, (50, label_bytes + 3072), dtype=np.uint8)
        records[file].tofile(tmp_path / file)
    parts = read_splits(tmp_path)
    whole = np.concatenate([records[file] for file in train])
    np.testing.assert_array_equal(parts["train"]["y"], whole[:, label_bytes - 1])
    np.testing.assert_array_equal(parts["train"]["x"][7, :, :, 2], whole[7, label_bytes + 2048 :].reshape(32, 32))
    assert sorted(set(parts["train"]["client_id"].tolist())) == list(range(max(1, len(whole) // 100)))
    again = read_splits(tmp_path)["train"]["client_id"]
    np.testing.assert_array_equal(parts["train"]["client_id"], again)
    task = getattr(baselines, name)(folder=tmp_path, model="small_resnet")
    assert sum(task.train.num_examples(client) for client in task.train.client_ids) == len(whole)


def test_files_that_are_something_else_are_refused(tmp_path: pathlib.Path) -> None:
    """The error names the file, and what a folder may hold."""
    (tmp_path / "test.bin").write_bytes(b"123")
    (tmp_path / "train.bin").write_bytes(b"123")
    with pytest.raises(KoinonValueError, match=r"train\.bin(.|\n)*records of 3074 bytes(.|\n)*3 bytes"):
        read_splits(tmp_path)
    (tmp_path / "test.bin").unlink()
    (tmp_path / "train").mkdir()
    with pytest.raises(KoinonValueError, match="no JSON file"):
        read_splits(tmp_path)
    (tmp_path / "train" / "a.json").write_text('{"users": ["a"]}')
    with pytest.raises(KoinonValueError, match=r"a\.json(.|\n)*KeyError(.|\n)*user_data"):
        read_splits(tmp_path)
    save_leaf(tmp_path, "train", "a", {"a": {"x": ["abc", "ab"], "y": ["d", "c"]}})
    with pytest.raises(KoinonValueError, match=r"a\.json' cannot be read"):
        read_splits(tmp_path)
