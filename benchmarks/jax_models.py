"""The models of the workloads as plain functions of JAX, `(weights, x) -> logits`, for whoever takes such."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def mlp(w: Any, x: Any) -> Any:
    """A perceptron with one hidden layer."""
    return jax.nn.relu(x @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]


def cnn(w: Any, x: Any) -> Any:
    """Two convolutions, a pooling, two dense layers."""

    def convolution(x: Any, kernel: Any, bias: Any) -> Any:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout) + bias)

    x = convolution(convolution(x, w["c1"], w["cb1"]), w["c2"], w["cb2"])
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(x.reshape(x.shape[0], -1) @ w["d1"] + w["db1"])
    return x @ w["d2"] + w["db2"]


def logistic(w: Any, x: Any) -> Any:
    """Logistic regression."""
    return x @ w["w"] + w["b"]


def lstm(w: Any, tokens: Any) -> Any:
    """An LSTM over characters; logits for every position."""

    def cell(state: Any, x: Any) -> Any:
        hidden, memory = state
        gates = x @ w["wx"] + hidden @ w["wh"] + w["b"]
        i, f, g, o = jnp.split(gates, 4, -1)
        memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(memory)
        return (hidden, memory), hidden

    embedded = jnp.swapaxes(w["emb"][tokens], 0, 1)
    zeros = jnp.zeros((tokens.shape[0], w["wh"].shape[0]))
    _, hidden = jax.lax.scan(cell, (zeros, zeros), embedded)
    return jnp.swapaxes(hidden, 0, 1) @ w["wo"] + w["bo"]


MODELS = {"mlp": mlp, "cnn": cnn, "logistic": logistic, "lstm": lstm}


def example_losses(logits: Any, y: Any) -> Any:
    """The cross-entropy of each example, the mean over its positions where it has several: `[batch]`."""
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], -1)[..., 0]
    return losses.reshape(losses.shape[0], -1).mean(1)


def batch_loss(model: Any, w: Any, x: Any, y: Any, mask: Any) -> Any:
    """The mean loss over the examples of a batch that are there."""
    return jnp.where(mask, example_losses(model(w, x), y), 0.0).sum() / jnp.maximum(mask.sum(), 1)
