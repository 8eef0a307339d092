"""The architectures of the usual benchmarks of federated learning, as functions of weights and inputs.

Each function returns a pair for `koinon.learning.models.functional`: one that makes weights of a PRNG key, nested
dicts of float32 arrays, and one that takes weights and a batch of inputs to logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Weights = dict[str, Any]


class Architecture(NamedTuple):
    """A model before it is given data, a loss and a key.

    Attributes:
      initialize: `(key) -> weights`.
      apply: `(weights, x) -> logits`; some also take `training` and `key`, for dropout.
    """

    initialize: Callable[[Any], Weights]
    apply: Callable[..., Any]


def cnn_dropout(input_shape: tuple[int, int, int], num_classes: int, *, dropout: bool = True) -> Architecture:
    """Two 3x3 convolutions of 32 and 64 channels, a maximum over 2x2, a dense layer of 128, and the logits.

    With a quarter of the features dropped after the maximum, and half of them after the dense layer. 1,199,882
    parameters for 28x28x1 and 10 classes, 1,206,590 for 62.

    Args:
      input_shape: height, width and channels of an image.
      num_classes: the number of logits.
      dropout: whether to drop features in training; without it training is deterministic.

    References:
      Reddi et al., "Adaptive Federated Optimization", ICLR 2021 (EMNIST CR); `simple_cnn` of pfl-research
      is the same network.
    """
    height, width, channels = input_shape
    features = ((height - 4) // 2) * ((width - 4) // 2) * 64

    def initialize(key: Any) -> Weights:
        shapes = {
            "conv_0": (3, 3, channels, 32),
            "conv_1": (3, 3, 32, 64),
            "dense_0": (features, 128),
            "dense_1": (128, num_classes),
        }
        return {name: _with_bias(kernel) for name, kernel in _glorot_uniform(key, shapes).items()}

    def logits(weights: Weights, x: Any, drop: Callable[[Any, int, float], Any]) -> Any:
        x = jax.nn.relu(_conv(weights["conv_0"], x, "VALID"))
        x = jax.nn.relu(_conv(weights["conv_1"], x, "VALID"))
        x = drop(_max_pool(x, 2, "VALID"), 0, 0.25)
        x = jax.nn.relu(_dense(weights["dense_0"], x.reshape(x.shape[0], -1)))
        return _dense(weights["dense_1"], drop(x, 1, 0.5))

    def apply(weights: Weights, x: Any) -> Any:
        return logits(weights, x, lambda x, layer, rate: x)

    def apply_with_dropout(weights: Weights, x: Any, *, training: bool, key: Any) -> Any:
        if not training:
            return apply(weights, x)
        return logits(weights, x, lambda x, layer, rate: _drop(jax.random.fold_in(key, layer), x, rate))

    return Architecture(jax.jit(initialize), apply_with_dropout if dropout else apply)


def cnn(input_shape: tuple[int, int, int], num_classes: int) -> Architecture:
    """Two 5x5 convolutions of 32 and 64 channels, each with a maximum over 2x2, a dense layer of 512, and the logits.

    1,663,370 parameters for 28x28x1 and 10 classes.

    Args:
      input_shape: height, width and channels of an image.
      num_classes: the number of logits.

    References:
      McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017, section 3.
    """
    height, width, channels = input_shape
    features = ((height + 3) // 4) * ((width + 3) // 4) * 64

    def initialize(key: Any) -> Weights:
        shapes = {
            "conv_0": (5, 5, channels, 32),
            "conv_1": (5, 5, 32, 64),
            "dense_0": (features, 512),
            "dense_1": (512, num_classes),
        }
        return {name: _with_bias(kernel) for name, kernel in _glorot_uniform(key, shapes).items()}

    def apply(weights: Weights, x: Any) -> Any:
        for name in ("conv_0", "conv_1"):
            x = _max_pool(jax.nn.relu(_conv(weights[name], x, "SAME")), 2, "SAME")
        x = jax.nn.relu(_dense(weights["dense_0"], x.reshape(x.shape[0], -1)))
        return _dense(weights["dense_1"], x)

    return Architecture(jax.jit(initialize), apply)


def resnet18(
    channels: int, num_classes: int, *, width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2)
) -> Architecture:
    """A residual network with pre-activation and group normalization, as TFF has it for CIFAR-100.

    A 7x7 convolution with stride 2, a maximum over 3x3 with stride 2, stages of blocks of two 3x3 convolutions, each
    stage with twice the channels of the one before, the mean over all positions, and the logits. Normalization is
    over two groups of channels, without scale and offset, and no stage has a stride. For 32x32x3 and 100 classes
    11,218,212 parameters.

    Args:
      channels: the channels of an image, whose height and width may be any.
      num_classes: the number of logits.
      width: the channels of the first stage; an even number. Smaller ones make a small network.
      blocks: the number of blocks of each stage.

    References:
      He et al., "Identity Mappings in Deep Residual Networks", 2016. Wu and He, "Group Normalization", 2018. Reddi et
      al., "Adaptive Federated Optimization", ICLR 2021 (CIFAR-100).
    """
    sizes = [width * 2**stage for stage, count in enumerate(blocks) for _ in range(count)]
    inputs = [width, *sizes[:-1]]

    def initialize(key: Any) -> Weights:
        shapes: dict[Any, tuple[int, ...]] = {"conv": (7, 7, channels, width)}
        for i, (before, size) in enumerate(zip(inputs, sizes, strict=True)):
            shapes[i, "conv_0"], shapes[i, "conv_1"] = (3, 3, before, size), (3, 3, size, size)
            if before != size:
                shapes[i, "shortcut"] = (1, 1, before, size)
        convolutions_key, dense_key = jax.random.split(key)
        kernels = _he_normal(convolutions_key, shapes)
        weights: Weights = {"conv": kernels.pop("conv"), **{f"block_{i}": {} for i in range(len(sizes))}}
        for (i, name), kernel in kernels.items():
            weights[f"block_{i}"][name] = kernel
        weights["dense"] = _with_bias(0.01 * jax.random.normal(dense_key, (sizes[-1], num_classes)))
        return weights

    def apply(weights: Weights, x: Any) -> Any:
        x = _max_pool(_norm_relu(_convolve(weights["conv"], x, "SAME", 2)), 3, "SAME")
        for i in range(len(sizes)):
            block = weights[f"block_{i}"]
            # What comes out of the first convolution has just been normalized.
            residual = _convolve(block["conv_0"], x if i == 0 else _norm_relu(x), "SAME")
            residual = _convolve(block["conv_1"], _norm_relu(residual), "SAME")
            if "shortcut" in block:
                x = group_norm(_convolve(block["shortcut"], x, "SAME"))
            x = x + residual
        return _dense(weights["dense"], _norm_relu(x).mean((1, 2)))

    return Architecture(jax.jit(initialize), apply)


def char_lstm(vocabulary_size: int = 90, *, embedding_size: int = 8, units: int = 256, layers: int = 2) -> Architecture:
    """An embedding of characters, layers of LSTM, and logits for the character that follows each.

    820,522 parameters for the default sizes.

    Args:
      vocabulary_size: the number of characters; inputs are int32 `[batch, length]`, logits
        `[batch, length, vocabulary_size]`.
      embedding_size: the size of the embedding of a character.
      units: the size of a layer's state.
      layers: the number of layers.

    References:
      McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017, section 3.
    """

    def initialize(key: Any) -> Weights:
        embedding_key, kernel_key, recurrent_key, dense_key = jax.random.split(key, 4)
        names = [f"lstm_{i}" for i in range(layers)]
        inputs = [embedding_size, *[units] * (layers - 1)]
        kernels = _he_normal(kernel_key, {name: (size, 4 * units) for name, size in zip(names, inputs, strict=True)})
        orthogonal = jax.nn.initializers.orthogonal()
        recurrent = [orthogonal(layer_key, (units, 4 * units)) for layer_key in jax.random.split(recurrent_key, layers)]
        # The gates of forgetting begin open.
        bias = jnp.zeros(4 * units).at[units : 2 * units].set(1.0)
        return {
            "embedding": jax.random.uniform(
                embedding_key, (vocabulary_size, embedding_size), minval=-0.05, maxval=0.05
            ),
            **{
                name: {"kernel": kernels[name], "recurrent": recurrent[i], "bias": bias} for i, name in enumerate(names)
            },
            "dense": _with_bias(_glorot_uniform(dense_key, {"dense": (units, vocabulary_size)})["dense"]),
        }

    def apply(weights: Weights, x: Any) -> Any:
        x = weights["embedding"][x]
        for i in range(layers):
            x = lstm(weights[f"lstm_{i}"], x)
        return _dense(weights["dense"], x)

    return Architecture(jax.jit(initialize), apply)


def lstm(weights: Weights, x: Any) -> Any:
    """The outputs of a layer of long short-term memory for sequences `[batch, length, features]`.

    Hochreiter and Schmidhuber, 1997, with the gates of Gers et al., 2000; the blocks of the weights are those of the
    input gate, the forget gate, the candidate and the output gate.
    """
    units = weights["recurrent"].shape[0]
    # What does not depend on the state is one product, outside of the loop.
    projected = jnp.swapaxes(x @ weights["kernel"] + weights["bias"], 0, 1)

    def step(state: tuple[Any, Any], inputs: Any) -> tuple[tuple[Any, Any], Any]:
        cell, output = state
        gates = inputs + output @ weights["recurrent"]
        input_gate, forget_gate, candidate, output_gate = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(forget_gate) * cell + jax.nn.sigmoid(input_gate) * jnp.tanh(candidate)
        output = jax.nn.sigmoid(output_gate) * jnp.tanh(cell)
        return (cell, output), output

    zeros = jnp.zeros((x.shape[0], units), x.dtype)
    return jnp.swapaxes(jax.lax.scan(step, (zeros, zeros), projected)[1], 0, 1)


def group_norm(x: Any, groups: int = 2, epsilon: float = 1e-3) -> Any:
    """Images `[batch, height, width, channels]`, each normalized over each group of its channels; no parameters."""
    grouped = x.reshape(*x.shape[:3], groups, x.shape[3] // groups)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = grouped.var((1, 2, 4), keepdims=True)
    return ((grouped - mean) * jax.lax.rsqrt(variance + epsilon)).reshape(x.shape)


def _norm_relu(x: Any) -> Any:
    return jax.nn.relu(group_norm(x))


def _glorot_uniform(key: Any, shapes: Mapping[Any, tuple[int, ...]]) -> dict[Any, Any]:
    """Kernels as Glorot and Bengio (2010) draw them."""
    return _kernels(
        jax.random.uniform(key, (_total(shapes),), minval=-1.0), shapes, lambda inputs, outputs: 6 / (inputs + outputs)
    )


def _he_normal(key: Any, shapes: Mapping[Any, tuple[int, ...]]) -> dict[Any, Any]:
    """Kernels as He et al. (2015) draw them, without values beyond two standard deviations."""
    truncated_deviation = 0.8796256610342398
    drawn = jax.random.truncated_normal(key, -2.0, 2.0, (_total(shapes),)) / truncated_deviation
    return _kernels(drawn, shapes, lambda inputs, outputs: 2 / inputs)


def _kernels(
    drawn: Any, shapes: Mapping[Any, tuple[int, ...]], variance: Callable[[int, int], float]
) -> dict[Any, Any]:
    """Kernels out of one draw, because what is drawn for each shape by itself is compiled for each by itself."""
    kernels, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape)
        positions = math.prod(shape[:-2])
        scale = variance(positions * shape[-2], positions * shape[-1]) ** 0.5
        kernels[name] = scale * drawn[start:end].reshape(shape)
    return kernels


def _total(shapes: Mapping[Any, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def _with_bias(kernel: Any) -> Weights:
    return {"kernel": kernel, "bias": jnp.zeros(kernel.shape[-1])}


def _dense(layer: Weights, x: Any) -> Any:
    return x @ layer["kernel"] + layer["bias"]


def _conv(layer: Weights, x: Any, padding: str) -> Any:
    return _convolve(layer["kernel"], x, padding) + layer["bias"]


def _convolve(kernel: Any, x: Any, padding: str, stride: int = 1) -> Any:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _max_pool(x: Any, size: int, padding: str) -> Any:
    """The maximum over windows of `size` by `size` at every second position."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, 2, 2, 1), padding)


def _drop(key: Any, x: Any, rate: float) -> Any:
    """Features with a part of them, at random, set to zero, and the others scaled up to keep the mean."""
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)
