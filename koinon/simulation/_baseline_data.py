"""Data of the shapes of the usual benchmarks: synthetic ones that can be learnt, and what is done to images."""

from __future__ import annotations

import numpy as np

from koinon.simulation._baseline_files import COLUMNS, PARTS
from koinon.simulation._client_data import ClientData
from koinon.simulation.datasets import FederatedSplit


def split_of(parts: dict[str, dict[str, np.ndarray]]) -> FederatedSplit:
    """The clients of both parts, and all examples of the test part as those at the server."""
    train, test = (
        ClientData.from_arrays({"x": part["x"], "y": part["y"]}, part["client_id"])
        for part in (parts[name] for name in PARTS)
    )
    return FederatedSplit(train, test, {name: parts["test"][name] for name in ("x", "y")})


def synthetic_images(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    num_clients: int,
    mean_size: int,
    alpha: float,
    noise: float,
    seed: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Images that can be told apart, of clients that write in their own ways.

    A class is a pattern of blobs. A client has its own distribution of classes, Dirichlet(alpha), its own contrast, and
    shifts the patterns its own way, by up to two pixels; every pixel has normal noise. The test examples are of the
    same clients.

    Returns:
      As `_baseline_files.read_splits`, `x` float32 in [0, 1] and `y` int32.
    """
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    coarse = rng.normal(size=(num_classes, height // 4, width // 4, channels))
    patterns = 0.5 + 0.35 * np.tanh(2 * coarse.repeat(4, axis=1).repeat(4, axis=2))
    sizes = np.maximum(np.rint(rng.lognormal(np.log(mean_size) - 0.125, 0.5, num_clients)).astype(int), 2)
    parts: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in PARTS}
    for client_id, size in enumerate(sizes.tolist()):
        labels = rng.choice(num_classes, size, p=rng.dirichlet(np.full(num_classes, alpha)))
        shift, contrast = rng.integers(-2, 3, 2), rng.uniform(0.6, 1.0)
        images = contrast * np.roll(patterns[labels], shift, axis=(1, 2)) + rng.normal(0, noise, (size, *shape))
        num_test = max(1, size // 5)
        for name, rows in zip(PARTS, (slice(num_test, None), slice(num_test)), strict=True):
            x, y = np.clip(images[rows], 0, 1).astype(np.float32), labels[rows].astype(np.int32)
            parts[name].append({"client_id": np.full(len(y), client_id), "x": x, "y": y})
    return {name: _stacked(clients) for name, clients in parts.items()}


def synthetic_text(
    vocabulary_size: int, length: int, *, num_clients: int, mean_size: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Sequences of characters of which each is often followed by the same few others.

    After each character one of four follows, with probabilities 0.7, 0.15, 0.1 and 0.05; which four they are has two
    variants, and each client mixes these two in its own way. No character is 0, which stands for padding. A test
    example is of one of the same clients.

    Returns:
      As `_baseline_files.read_splits`, `x` and `y` int32 `[n, length]`, `y` the characters that follow those of `x`.
    """
    rng = np.random.default_rng(seed)
    successors = rng.integers(1, vocabulary_size, (2, vocabulary_size, 4)).astype(np.int32)
    sizes = np.maximum(np.rint(rng.lognormal(np.log(mean_size) - 0.125, 0.5, num_clients)).astype(int), 2)
    client_ids = np.repeat(np.arange(num_clients), sizes)
    mixture = rng.beta(0.5, 0.5, num_clients)[client_ids]
    variant = (rng.random(len(client_ids)) < mixture).astype(int)
    text = np.zeros((len(client_ids), length + 1), np.int32)
    text[:, 0] = rng.integers(1, vocabulary_size, len(client_ids))
    choices = rng.choice(4, text.shape, p=[0.7, 0.15, 0.1, 0.05])
    for place in range(length):
        text[:, place + 1] = successors[variant, text[:, place], choices[:, place]]
    first_rows = np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_test = np.arange(len(client_ids)) - first_rows < np.repeat(np.maximum(1, sizes // 5), sizes)
    return {
        name: {"client_id": client_ids[rows], "x": text[rows, :-1], "y": text[rows, 1:]}
        for name, rows in zip(PARTS, (~is_test, is_test), strict=True)
    }


def scale_images(images: np.ndarray) -> np.ndarray:
    """Images as float32 in [0, 1], with a dimension for their channels; integers are divided by 255."""
    if images.dtype.kind in "iu":
        images = images.astype(np.float32) / 255
    return np.ascontiguousarray(images if images.ndim == 4 else images[..., None], np.float32)


def standardize_images(images: np.ndarray) -> np.ndarray:
    """Images with mean 0 and standard deviation 1 each, or less if an image is nearly constant."""
    flat = images.reshape(len(images), -1)
    deviation = np.maximum(flat.std(1), flat.shape[1] ** -0.5)
    return ((flat - flat.mean(1, keepdims=True)) / deviation[:, None]).reshape(images.shape).astype(np.float32)


def crop_images(images: np.ndarray, size: int) -> np.ndarray:
    """The middle `size` by `size` pixels of images."""
    top, left = (images.shape[1] - size) // 2, (images.shape[2] - size) // 2
    return images[:, top : top + size, left : left + size]


def _stacked(clients: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([client[name] for client in clients]) for name in COLUMNS}
