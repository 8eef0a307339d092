"""The real data of the usual benchmarks, in the files in which they are handed out.

A folder holds one of these:

* `train.npz` and `test.npz`, each with `client_id`, `x` and `y`: a layout of our own, for data from elsewhere;
* `train/*.json` and `test/*.json`, as LEAF's scripts write FEMNIST and Shakespeare: `users`, and `user_data` with `x`
  and `y` for each;
* the binary version of CIFAR-10 (`data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin`) or of CIFAR-100
  (`train.bin`, `test.bin`), in which images belong to nobody: they are dealt out to clients.
"""

from __future__ import annotations

import json
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from koinon._errors import KoinonValueError
from koinon.simulation._partition import dirichlet_labels

PARTS = ("train", "test")
COLUMNS = ("client_id", "x", "y")

_EXPECTED = (
    "`train.npz` and `test.npz`, each with arrays `client_id`, `x` and `y`; or LEAF's `train/*.json` and "
    "`test/*.json`; or the binary version of CIFAR"
)

# The files of the training part and of the test part, and the number of bytes before an image, of which the last is
# its label.
_CIFAR = (
    ([f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"], 1),
    (["train.bin"], ["test.bin"], 2),
)
_IMAGES_OF_A_CLIENT = 100
_CONCENTRATION = 0.5

# What LEAF counts as a character of Shakespeare; all others are one more.
_CHARACTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"


def read_splits(folder: str | os.PathLike[str]) -> dict[str, dict[str, np.ndarray]]:
    """The examples in a folder, by part: `client_id` `[n]`, `x` and `y` `[n, ...]`.

    Text of LEAF becomes sequences of numbers from 1 on, `y` the characters that follow those of `x`; its images have
    the shape `[n, 28, 28]`. Images of CIFAR have the shape `[n, 32, 32, 3]`, and belong to clients of about a hundred
    each, the labels of each client drawn from Dirichlet(0.5).

    Raises:
      KoinonValueError: if a file or an array is missing, or a file is damaged.
    """
    path = pathlib.Path(folder)
    for train, test, label_bytes in _CIFAR:
        if (path / test[0]).exists():
            files = zip(PARTS, (train, test), strict=True)
            return {part: _dealt(_read_cifar([path / name for name in names], label_bytes)) for part, names in files}
    if (path / PARTS[0]).is_dir():
        return {part: _read_leaf(path / part) for part in PARTS}
    return {part: _read_npz(path / f"{part}.npz") for part in PARTS}


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        # Anything else than a zip file NumPy would read as a single array.
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            arrays: dict[str, Any] = {name: archive[name] for name in COLUMNS if name in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error
    missing = [name for name in COLUMNS if name not in arrays]
    if missing:
        raise KoinonValueError(f"The data file {str(path)!r} has no array {', '.join(map(repr, missing))}.")
    return arrays


def _read_leaf(folder: pathlib.Path) -> dict[str, np.ndarray]:
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise KoinonValueError(f"The folder {str(folder)!r} has no JSON file.", expected=_EXPECTED)
    clients: list[dict[str, np.ndarray]] = []
    for path in paths:
        try:
            clients.extend(_leaf_clients(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, error) from error
    if not clients:
        raise KoinonValueError(f"The folder {str(folder)!r} has no examples.", expected=_EXPECTED)
    return {name: np.concatenate([client[name] for client in clients]) for name in COLUMNS}


def _leaf_clients(content: Any) -> Iterator[dict[str, np.ndarray]]:
    for user in content["users"]:
        examples = content["user_data"][user]
        if not examples["y"]:
            continue
        if isinstance(examples["x"][0], str):
            text = np.array([_numbers(x + y) for x, y in zip(examples["x"], examples["y"], strict=True)], np.int32)
            x, y = text[:, :-1], text[:, 1:]
        else:
            x, y = np.array(examples["x"], np.float32).reshape(-1, 28, 28), np.array(examples["y"], np.int32)
        yield {"client_id": np.full(len(x), user), "x": x, "y": y}


def _numbers(text: str) -> list[int]:
    return [_CHARACTERS.find(character) % (len(_CHARACTERS) + 1) + 1 for character in text]


def _read_cifar(paths: Sequence[pathlib.Path], label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """The images and the labels of some files."""
    size = label_bytes + 3 * 32 * 32
    pieces = []
    for path in paths:
        try:
            content = np.fromfile(path, np.uint8)
        except OSError as error:
            raise _unreadable(path, error) from error
        if not len(content) or len(content) % size:
            raise KoinonValueError(
                f"The data file {str(path)!r} is not of the binary version of CIFAR.",
                expected=f"records of {size} bytes",
                found=f"{len(content)} bytes",
            )
        pieces.append(content.reshape(-1, size))
    records = np.concatenate(pieces)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, records[:, label_bytes - 1].astype(np.int32)


def _dealt(examples: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """Images that belong to nobody, as those of clients: always the same."""
    images, labels = examples
    num_clients = max(1, len(labels) // _IMAGES_OF_A_CLIENT)
    parts = dirichlet_labels(labels, num_clients, _CONCENTRATION, seed=0)
    client_ids = np.empty(len(labels), np.int32)
    for client_id, rows in enumerate(parts):
        client_ids[rows] = client_id
    return {"client_id": client_ids, "x": images, "y": labels}


def _unreadable(path: pathlib.Path, error: Exception) -> KoinonValueError:
    return KoinonValueError(
        f"The data file {str(path)!r} cannot be read.",
        expected=_EXPECTED,
        found=f"{type(error).__name__}: {error}"[:300],
    )
