"""Adafactor: an adaptive optimizer whose memory is a row and a column for each matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError
from koinon.learning._optimizer import (
    LEARNING_RATE_KEY,
    Optimizer,
    check_hparams_known,
    check_weights_gradients_match,
)


class _Moment(NamedTuple):
    """What is remembered of the squared gradients of one weight: row and column means, or all of them."""

    rows: Any
    columns: Any
    full: Any


class _Adafactor(Optimizer):
    """See `build_adafactor`."""

    def __init__(self, hparams: dict[str, float], relative_step: bool) -> None:
        self._hparams = hparams
        self._relative_step = relative_step

    def initialize(self, specs: Any) -> dict[str, Any]:
        return {
            "step": jnp.int32(0),
            "moments": tuple(_initial_moment(spec) for spec in jax.tree.leaves(specs)),
            "hparams": {name: jnp.asarray(value, jnp.float32) for name, value in self._hparams.items()},
        }

    def next(self, state: dict[str, Any], weights: Any, gradients: Any) -> tuple[dict[str, Any], Any]:
        check_weights_gradients_match(weights, gradients)
        hparams = state["hparams"]
        step = (state["step"] + 1).astype(jnp.float32)
        rate = hparams[LEARNING_RATE_KEY]
        if self._relative_step:
            rate = jnp.minimum(rate, jax.lax.rsqrt(step))
        decay = 1 - step ** hparams["beta_2_decay"]

        def update(weight: Any, gradient: Any, moment: _Moment) -> tuple[Any, _Moment]:
            moment, variance = _next_moment(moment, gradient**2 + hparams["epsilon_1"], decay)
            direction = gradient * jax.lax.rsqrt(variance)
            direction = direction / jnp.maximum(1.0, _rms(direction) / hparams["clip_threshold"])
            scale = jnp.maximum(hparams["epsilon_2"], _rms(weight)) * rate
            return (weight - scale * direction).astype(weight.dtype), moment

        leaves, structure = jax.tree.flatten(weights)
        updated = [
            update(weight, gradient, _Moment(*moment))
            for weight, gradient, moment in zip(leaves, jax.tree.leaves(gradients), state["moments"], strict=True)
        ]
        new_state = {**state, "step": state["step"] + 1, "moments": tuple(moment for _, moment in updated)}
        return new_state, jax.tree.unflatten(structure, [weight for weight, _ in updated])

    def get_hparams(self, state: dict[str, Any]) -> dict[str, Any]:
        return {name: state["hparams"][name] for name in self._hparams}

    def set_hparams(self, state: dict[str, Any], hparams: Mapping[str, Any]) -> dict[str, Any]:
        check_hparams_known(self._hparams, hparams)
        new = {name: jnp.asarray(value, jnp.float32) for name, value in hparams.items()}
        return {**state, "hparams": {**self.get_hparams(state), **new}}


def build_adafactor(
    learning_rate: float,
    *,
    beta_2_decay: float = -0.8,
    epsilon_1: float = 1e-30,
    epsilon_2: float = 1e-3,
    clip_threshold: float = 1.0,
    relative_step: bool = True,
) -> Optimizer:
    r"""Adafactor, without momentum: for matrices it remembers one row and one column of squared gradients.

    At step t, with `b = 1 - t^beta_2_decay` and `g' = g^2 + epsilon_1`: the row means `r <- b r + (1 - b) mean(g')`
    and column means c alike give the variance `v = r c / mean(r)`, and for vectors `v <- b v + (1 - b) g'`. Then
    `u = g / sqrt(v)`, clipped to a root mean square of `clip_threshold`, and
    `w <- w - lr_t max(epsilon_2, RMS(w)) u`, where `lr_t` is `min(learning_rate, 1 / sqrt(t))` for relative steps.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> state = ko.learning.optimizers.build_adafactor(0.01).initialize(jnp.zeros((1000, 500)))
    >>> state["moments"][0].rows.shape, state["moments"][0].columns.shape
    ((1000,), (500,))

    Args:
      learning_rate: not negative, relative to the root mean square of a weight.
      beta_2_decay: not positive, the exponent by which the memory grows.
      epsilon_1: not negative, regularizes the squared gradients.
      epsilon_2: not negative, the least scale of a weight.
      clip_threshold: positive, the greatest root mean square of an update.
      relative_step: whether the rate decays as `1 / sqrt(t)`.

    Raises:
      KoinonValueError: the learning rate is negative, or the threshold not positive.

    References:
      Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018,
      https://arxiv.org/abs/1804.04235, algorithms 4 and 5.
    """
    for name, value, ok in (
        (LEARNING_RATE_KEY, learning_rate, learning_rate >= 0),
        ("clip_threshold", clip_threshold, clip_threshold > 0),
    ):
        if not ok:
            raise KoinonValueError(f"`{name}` is out of its range.", found=repr(value), hint="pass a positive float")
    hparams = {
        LEARNING_RATE_KEY: learning_rate,
        "beta_2_decay": beta_2_decay,
        "epsilon_1": epsilon_1,
        "epsilon_2": epsilon_2,
        "clip_threshold": clip_threshold,
    }
    return _Adafactor(hparams, relative_step)


def _initial_moment(spec: Any) -> _Moment:
    shape, dtype = jnp.shape(spec), jnp.result_type(spec)
    none = jnp.zeros((0,), dtype)
    if len(shape) < 2:
        return _Moment(none, none, jnp.zeros(shape, dtype))
    return _Moment(jnp.zeros(shape[:-1], dtype), jnp.zeros((*shape[:-2], shape[-1]), dtype), none)


def _next_moment(moment: _Moment, square: Any, decay: Any) -> tuple[_Moment, Any]:
    def remember(old: Any, new: Any) -> Any:
        return (decay * old + (1 - decay) * new).astype(old.dtype)

    if square.ndim < 2:
        full = remember(moment.full, square)
        return moment._replace(full=full), full
    rows = remember(moment.rows, square.mean(axis=-1))
    columns = remember(moment.columns, square.mean(axis=-2))
    variance = (rows / rows.mean(axis=-1, keepdims=True))[..., None] * columns[..., None, :]
    return moment._replace(rows=rows, columns=columns), variance


def _rms(value: Any) -> Any:
    return jnp.sqrt(jnp.mean(value**2))
