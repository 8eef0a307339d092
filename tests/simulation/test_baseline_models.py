"""The architectures of the benchmarks: their published sizes, and the same numbers as other implementations give."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.learning.losses import cross_entropy
from koinon.simulation._baseline_models import _drop, group_norm, lstm
from koinon.simulation.baselines import Architecture, char_lstm, cnn, cnn_dropout, resnet18


def num_parameters(architecture: Architecture) -> int:
    shapes = jax.eval_shape(architecture.initialize, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        # As published by McMahan et al. (2017) and Reddi et al. (2021).
        (cnn((28, 28, 1), 10), 1_663_370),
        (cnn_dropout((28, 28, 1), 10), 1_199_882),
        (cnn_dropout((28, 28, 1), 62, dropout=False), 1_206_590),
        (char_lstm(90), 820_522),
        # 7x7 from 3 to 64; each stage four 3x3 and, where it widens, a 1x1; the logits.
        (
            resnet18(3, 100),
            49 * 3 * 64
            + 9 * 4 * 64**2
            + sum(9 * (c // 2) * c + 9 * 3 * c**2 + (c // 2) * c for c in (128, 256, 512))
            + 512 * 100
            + 100,
        ),
    ],
)
def test_sizes_are_the_published_ones(architecture: Architecture, expected: int) -> None:
    """Parameters are counted without making them."""
    assert num_parameters(architecture) == expected


@pytest.mark.parametrize("is_cnn", [True, False])
def test_convolutional_networks_give_the_numbers_of_flax(is_cnn: bool) -> None:
    """The same weights in modules of Flax, layer by layer, for images whose sides are odd and even."""
    nn = pytest.importorskip("flax.linen")
    shape = (9, 10, 2)
    architecture = cnn(shape, 7) if is_cnn else cnn_dropout(shape, 7, dropout=False)
    weights = architecture.initialize(jax.random.key(0))
    weights = jax.tree.map(lambda leaf: leaf + 0.01 * jnp.arange(leaf.size).reshape(leaf.shape) / leaf.size, weights)
    x = jax.random.normal(jax.random.key(1), (3, *shape))
    kernel, padding = ((5, 5), "SAME") if is_cnn else ((3, 3), "VALID")

    @jax.jit
    def expected(weights: Any, y: Any) -> Any:
        for name, features in (("conv_0", 32), ("conv_1", 64)):
            y = nn.relu(nn.Conv(features, kernel, padding=padding).apply({"params": weights[name]}, y))
            if is_cnn or name == "conv_1":
                y = nn.max_pool(y, (2, 2), (2, 2), padding)
        dense = nn.Dense(512 if is_cnn else 128)
        y = nn.relu(dense.apply({"params": weights["dense_0"]}, y.reshape(3, -1)))
        return nn.Dense(7).apply({"params": weights["dense_1"]}, y)

    np.testing.assert_allclose(jax.jit(architecture.apply)(weights, x), expected(weights, x), rtol=1e-4, atol=1e-5)


def test_group_normalization_gives_the_numbers_of_flax() -> None:
    """Two groups, no scale and no offset."""
    nn = pytest.importorskip("flax.linen")
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 6, 8))
    module = nn.GroupNorm(num_groups=2, epsilon=1e-3, use_bias=False, use_scale=False)
    expected = jax.jit(lambda x: module.apply({}, x))(x)
    np.testing.assert_allclose(jax.jit(group_norm)(x), expected, rtol=1e-4, atol=1e-5)


def test_residual_networks_give_the_numbers_of_flax() -> None:
    """A network of two stages, the second with a block that widens and one that does not."""
    nn = pytest.importorskip("flax.linen")

    def norm(x: Any) -> Any:
        return nn.GroupNorm(num_groups=2, epsilon=1e-3, use_bias=False, use_scale=False).apply({}, x)

    def conv(kernel: Any, x: Any, stride: int = 1) -> Any:
        module = nn.Conv(kernel.shape[3], kernel.shape[:2], strides=stride, use_bias=False)
        return module.apply({"params": {"kernel": kernel}}, x)

    architecture = resnet18(3, 5, width=4, blocks=(1, 2))
    weights = architecture.initialize(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 12, 12, 3))
    assert ["shortcut" in weights[f"block_{i}"] for i in range(3)] == [False, True, False]

    @jax.jit
    def expected(w: Any, x: Any) -> Any:
        y = nn.max_pool(nn.relu(norm(conv(w["conv"], x, 2))), (3, 3), (2, 2), "SAME")
        block = w["block_0"]
        y = y + conv(block["conv_1"], nn.relu(norm(conv(block["conv_0"], y))))
        block = w["block_1"]
        residual = conv(block["conv_1"], nn.relu(norm(conv(block["conv_0"], nn.relu(norm(y))))))
        y = norm(conv(block["shortcut"], y)) + residual
        block = w["block_2"]
        y = y + conv(block["conv_1"], nn.relu(norm(conv(block["conv_0"], nn.relu(norm(y))))))
        assert y.shape == (2, 3, 3, 8)
        return nn.relu(norm(y)).mean((1, 2)) @ w["dense"]["kernel"] + w["dense"]["bias"]

    found = jax.jit(architecture.apply)(weights, x)
    np.testing.assert_allclose(found, expected(weights, x), rtol=1e-4, atol=1e-5)


def test_an_lstm_follows_its_equations() -> None:
    """Step by step in NumPy with 64 bits."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(size=(3, 8)).astype(np.float32),
        "recurrent": rng.normal(size=(2, 8)).astype(np.float32),
        "bias": rng.normal(size=8).astype(np.float32),
    }
    x = rng.normal(size=(4, 5, 3)).astype(np.float32)
    cell = output = np.zeros((4, 2))
    expected = []
    for step in range(5):
        gates = x[:, step] @ weights["kernel"].astype(float) + output @ weights["recurrent"] + weights["bias"]
        i, f, c, o = gates[:, :2], gates[:, 2:4], gates[:, 4:6], gates[:, 6:]
        cell = cell / (1 + np.exp(-f)) + np.tanh(c) / (1 + np.exp(-i))
        output = np.tanh(cell) / (1 + np.exp(-o))
        expected.append(output)
    np.testing.assert_allclose(jax.jit(lstm)(weights, x), np.stack(expected, 1), rtol=1e-4, atol=1e-5)


def test_the_character_model_predicts_from_the_past_alone() -> None:
    """A character changes the logits from its own place on, and none before."""
    architecture = char_lstm(11, units=6)
    weights = architecture.initialize(jax.random.key(0))
    text = jnp.arange(14).reshape(2, 7) % 11
    apply = jax.jit(architecture.apply)
    logits, changed = apply(weights, text), apply(weights, text.at[0, 3].set(0))
    assert logits.shape == (2, 7, 11)
    differs = np.abs(np.asarray(logits - changed)).max(-1) > 0
    assert differs.tolist() == [[False] * 3 + [True] * 4, [False] * 7]


def test_dropout_drops_in_training_only_and_keeps_the_mean() -> None:
    """The key decides what; without training, or without dropout, the logits are always the same."""
    architecture, plain = cnn_dropout((8, 8, 1), 3), cnn_dropout((8, 8, 1), 3, dropout=False)
    weights = architecture.initialize(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    training = jax.jit(lambda key: architecture.apply(weights, x, training=True, key=key))
    expected = plain.apply(weights, x)
    np.testing.assert_array_equal(architecture.apply(weights, x, training=False, key=None), expected)
    np.testing.assert_array_equal(training(jax.random.key(2)), training(jax.random.key(2)))
    assert not np.array_equal(training(jax.random.key(2)), training(jax.random.key(3)))
    dropped = np.asarray(_drop(jax.random.key(4), jnp.ones(10_000), 0.25))
    assert set(dropped.tolist()) == {0.0, float(np.float32(1) / np.float32(0.75))}
    assert abs(np.mean(dropped == 0) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 10_000)


def test_first_weights_have_the_spread_that_their_authors_give() -> None:
    """Glorot and Bengio: variance 2 / (in + out); He et al.: 2 / in; recurrent rows are orthonormal; biases are 0."""
    weights = cnn((28, 28, 1), 10).initialize(jax.random.key(0))
    for name, inputs, outputs in (("conv_1", 25 * 32, 25 * 64), ("dense_0", 3136, 512)):
        kernel = np.asarray(weights[name]["kernel"])
        variance = 2 / (inputs + outputs)
        # The fourth moment of a uniform variable is 9/5 of the square of its variance.
        assert abs(kernel.var() - variance) < 5 * variance * np.sqrt(0.8 / kernel.size)
        assert abs(kernel).max() <= np.sqrt(3 * variance)
        assert not weights[name]["bias"].any()
    layer = char_lstm().initialize(jax.random.key(0))["lstm_1"]
    kernel = np.asarray(layer["kernel"])
    assert abs(kernel.var() - 2 / 256) < 5 * 2 / 256 * np.sqrt(2 / kernel.size)
    np.testing.assert_allclose(layer["recurrent"] @ layer["recurrent"].T, np.eye(256), atol=1e-4)
    assert layer["bias"].tolist() == [0] * 256 + [1] * 256 + [0] * 512


@pytest.mark.parametrize(
    ("architecture", "shape", "learning_rate"),
    [
        (cnn((8, 8, 1), 4), (8, 8, 1), 0.1),
        (cnn_dropout((8, 8, 1), 4, dropout=False), (8, 8, 1), 0.1),
        (resnet18(3, 4, width=8, blocks=(1, 1)), (12, 12, 3), 0.3),
    ],
)
def test_gradient_descent_learns_a_few_images(
    architecture: Architecture, shape: tuple[int, int, int], learning_rate: float
) -> None:
    """Thirty steps on eight random images more than halve the loss."""
    x, y = jax.random.normal(jax.random.key(1), (8, *shape)), jnp.arange(8) % 4

    @jax.jit
    def step(weights: Any) -> tuple[Any, Any]:
        loss, gradients = jax.value_and_grad(lambda w: cross_entropy(architecture.apply(w, x), y).mean())(weights)
        return jax.tree.map(lambda w, g: w - learning_rate * g, weights, gradients), loss

    weights = architecture.initialize(jax.random.key(0))
    losses = []
    for _ in range(30):
        weights, loss = step(weights)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
