"""The classic optimizers by their update rules, with every hyperparameter in the state.

The rules and the defaults are those of TensorFlow Federated, which differ from optax in where epsilon stands; so they
are written out here, each as one function of one weight, in the order of its equations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from koinon._errors import KoinonValueError
from koinon.learning._optimizer import (
    LEARNING_RATE_KEY,
    Optimizer,
    check_hparams_known,
    check_weights_gradients_match,
    zeros_like_specs,
)

_STEP_KEY = "step"

_Hparams = dict[str, Any]
_Slots = dict[str, Any]
_UpdateRule = Callable[[Any, Any, _Slots, _Hparams], tuple[Any, _Slots]]
_AdjustHparams = Callable[[_Hparams, Any], _Hparams]


@dataclasses.dataclass(frozen=True)
class LeafwiseOptimizer(Optimizer):
    """An optimizer that treats every weight alone.

    Attributes:
      hparams: the initial hyperparameters.
      slots: what the optimizer remembers of each weight: a name, and the number that fills its initial value.
      update: `(weight, gradient, slots, hparams) -> (weight, slots)`, for one weight.
      adjust: `(hparams, step) -> hparams`, applied once a step, for rules that depend on the number of the step
        (from 1); None for the others, which count no steps.
    """

    hparams: dict[str, float]
    slots: dict[str, float]
    update: _UpdateRule
    adjust: _AdjustHparams | None = None

    def initialize(self, specs: Any) -> dict[str, Any]:
        """The hyperparameters, the step where it matters, and the slots."""
        state: dict[str, Any] = {name: jnp.asarray(value, jnp.float32) for name, value in self.hparams.items()}
        if self.adjust is not None:
            state[_STEP_KEY] = jnp.int32(0)
        for name, fill in self.slots.items():
            state[name] = zeros_like_specs(specs, fill)
        return state

    def next(self, state: dict[str, Any], weights: Any, gradients: Any) -> tuple[dict[str, Any], Any]:
        """Applies the rule to every weight."""
        check_weights_gradients_match(weights, gradients)
        new_state = dict(state)
        hparams = self.get_hparams(state)
        if self.adjust is not None:
            new_state[_STEP_KEY] = state[_STEP_KEY] + 1
            hparams = self.adjust(hparams, new_state[_STEP_KEY].astype(jnp.float32))
        leaves, structure = jax.tree.flatten(weights)
        slots = {name: jax.tree.leaves(state[name]) for name in self.slots}
        new_leaves: list[Any] = []
        new_slots: dict[str, list[Any]] = {name: [] for name in self.slots}
        for i, (weight, gradient) in enumerate(zip(leaves, jax.tree.leaves(gradients), strict=True)):
            own_hparams = {name: jnp.asarray(value).astype(weight.dtype) for name, value in hparams.items()}
            own_slots = {name: values[i] for name, values in slots.items()}
            weight, own_slots = self.update(weight, gradient, own_slots, own_hparams)
            new_leaves.append(weight)
            for name in self.slots:
                new_slots[name].append(own_slots[name])
        for name in self.slots:
            new_state[name] = jax.tree.unflatten(structure, new_slots[name])
        return new_state, jax.tree.unflatten(structure, new_leaves)

    def get_hparams(self, state: dict[str, Any]) -> dict[str, Any]:
        """The hyperparameters, in the order of the builder's arguments."""
        return {name: state[name] for name in self.hparams}

    def set_hparams(self, state: dict[str, Any], hparams: Mapping[str, Any]) -> dict[str, Any]:
        """The state with these hyperparameters replaced."""
        check_hparams_known(self.hparams, hparams)
        return {**state, **{name: jnp.asarray(value, jnp.float32) for name, value in hparams.items()}}


def build_sgdm(learning_rate: float = 0.01, momentum: float | None = None, nesterov: bool = False) -> Optimizer:
    r"""Gradient descent, with momentum if asked for.

    Without momentum `w <- w - lr g`. With it `v <- m v + g`, and then `w <- w - lr v`, or with Nesterov's correction
    `w <- w - lr (g + m v)`.

    >>> import koinon as ko
    >>> list(ko.learning.optimizers.build_sgdm(0.1, momentum=0.9).hparams)
    ['learning_rate', 'momentum']

    Args:
      learning_rate: `lr`, not negative.
      momentum: `m`, in [0, 1]; None and 0 mean no momentum, and then there is no such hyperparameter.
      nesterov: whether to look ahead; needs momentum.

    Raises:
      KoinonValueError: a hyperparameter is out of its range.
    """
    _check_at_least_zero(learning_rate=learning_rate)
    if momentum is None or (not isinstance(momentum, Tracer) and momentum == 0):
        if nesterov:
            raise KoinonValueError(
                "Nesterov's correction needs momentum.", found=f"{momentum=}", hint="pass momentum=0.9"
            )
        return LeafwiseOptimizer({LEARNING_RATE_KEY: learning_rate}, {}, _sgd)
    _check_range("momentum", momentum, 0.0, 1.0, open_above=False)
    rule = _sgd_with_nesterov_momentum if nesterov else _sgd_with_momentum
    return LeafwiseOptimizer({LEARNING_RATE_KEY: learning_rate, "momentum": momentum}, {"accumulator": 0.0}, rule)


def build_adam(learning_rate: float, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7) -> Optimizer:
    r"""Adam, in the form of the paper's section 2, where epsilon stands beside the uncorrected root.

    `a <- b1 a + (1 - b1) g`, `s <- b2 s + (1 - b2) g^2`, and at step t, with
    `r = lr sqrt(1 - b2^t) / (1 - b1^t)`, `w <- w - r a / (sqrt(s) + epsilon)`.

    Args:
      learning_rate: `lr`, not negative.
      beta_1: `b1`, in [0, 1), how long gradients are remembered.
      beta_2: `b2`, in [0, 1), how long their squares are.
      epsilon: not negative, keeps the quotient finite.

    Raises:
      KoinonValueError: a hyperparameter is out of its range.

    References:
      Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, https://arxiv.org/abs/1412.6980
    """
    hparams = _check_adam(learning_rate=learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
    return LeafwiseOptimizer(hparams, {"accumulator": 0.0, "preconditioner": 0.0}, _adam, _correct_bias)


def build_adamw(
    learning_rate: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    weight_decay: float = 0.004,
) -> Optimizer:
    r"""Adam with decoupled weight decay: Adam's step less `lr weight_decay w`.

    Args:
      learning_rate: not negative.
      beta_1: in [0, 1).
      beta_2: in [0, 1).
      epsilon: not negative.
      weight_decay: not negative; 0 is `build_adam`.

    Raises:
      KoinonValueError: a hyperparameter is out of its range.

    References:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, https://arxiv.org/abs/1711.05101
    """
    hparams = _check_adam(learning_rate=learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
    _check_at_least_zero(weight_decay=weight_decay)
    hparams["weight_decay"] = weight_decay
    return LeafwiseOptimizer(hparams, {"accumulator": 0.0, "preconditioner": 0.0}, _adamw, _correct_bias)


def build_yogi(
    learning_rate: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-3,
    initial_preconditioner_value: float = 1e-6,
) -> Optimizer:
    r"""Yogi: Adam with an additive second moment, `s <- s + (1 - b2) sign(g^2 - s) g^2`.

    Args:
      learning_rate: not negative; ten times Adam's is a good start.
      beta_1: in [0, 1).
      beta_2: in [0, 1).
      epsilon: not negative, trades adaptivity for noise.
      initial_preconditioner_value: positive, the value of `s` before the first step.

    Raises:
      KoinonValueError: a hyperparameter is out of its range.

    References:
      Zaheer et al., Adaptive Methods for Nonconvex Optimization, NeurIPS 2018.
    """
    hparams = _check_adam(learning_rate=learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
    if not initial_preconditioner_value > 0:
        raise KoinonValueError(
            "`initial_preconditioner_value` must be positive.", found=repr(initial_preconditioner_value)
        )
    slots = {"accumulator": 0.0, "preconditioner": initial_preconditioner_value}
    return LeafwiseOptimizer(hparams, slots, _yogi, _correct_bias)


def build_adagrad(learning_rate: float, initial_preconditioner_value: float = 0.1, epsilon: float = 1e-7) -> Optimizer:
    r"""Adagrad: `s <- s + g^2`, `w <- w - lr g / sqrt(s + epsilon)`.

    Args:
      learning_rate: not negative.
      initial_preconditioner_value: not negative, the value of `s` before the first step.
      epsilon: not negative.

    Raises:
      KoinonValueError: a hyperparameter is out of its range.

    References:
      Duchi, Hazan and Singer, Adaptive Subgradient Methods for Online Learning and Stochastic Optimization, JMLR 2011.
    """
    _check_at_least_zero(
        learning_rate=learning_rate, initial_preconditioner_value=initial_preconditioner_value, epsilon=epsilon
    )
    hparams = {LEARNING_RATE_KEY: learning_rate, "epsilon": epsilon}
    return LeafwiseOptimizer(hparams, {"preconditioner": initial_preconditioner_value}, _adagrad)


def build_rmsprop(learning_rate: float, decay: float = 0.9, epsilon: float = 1e-7) -> Optimizer:
    r"""RMSprop: `s <- d s + (1 - d) g^2`, `w <- w - lr g / (sqrt(s) + epsilon)`.

    Args:
      learning_rate: not negative.
      decay: `d`, in [0, 1), how long squared gradients are remembered.
      epsilon: not negative.

    Raises:
      KoinonValueError: a hyperparameter is out of its range.

    References:
      Tieleman and Hinton, Neural Networks for Machine Learning, lecture 6.5, 2012.
    """
    _check_at_least_zero(learning_rate=learning_rate, epsilon=epsilon)
    _check_range("decay", decay, 0.0, 1.0)
    hparams = {LEARNING_RATE_KEY: learning_rate, "decay": decay, "epsilon": epsilon}
    return LeafwiseOptimizer(hparams, {"preconditioner": 0.0}, _rmsprop)


def _sgd(weight: Any, gradient: Any, slots: _Slots, hparams: _Hparams) -> tuple[Any, _Slots]:
    return weight - hparams[LEARNING_RATE_KEY] * gradient, slots


def _sgd_with_momentum(weight: Any, gradient: Any, slots: _Slots, hparams: _Hparams) -> tuple[Any, _Slots]:
    velocity = hparams["momentum"] * slots["accumulator"] + gradient
    return weight - hparams[LEARNING_RATE_KEY] * velocity, {"accumulator": velocity}


def _sgd_with_nesterov_momentum(weight: Any, gradient: Any, slots: _Slots, hparams: _Hparams) -> tuple[Any, _Slots]:
    velocity = hparams["momentum"] * slots["accumulator"] + gradient
    step = gradient + hparams["momentum"] * velocity
    return weight - hparams[LEARNING_RATE_KEY] * step, {"accumulator": velocity}


def _correct_bias(hparams: _Hparams, step: Any) -> _Hparams:
    correction = jnp.sqrt(1 - hparams["beta_2"] ** step) / (1 - hparams["beta_1"] ** step)
    return {**hparams, "correction": correction}


def _adam_direction(preconditioner: Any, gradient: Any, slots: _Slots, hparams: _Hparams) -> tuple[Any, _Slots]:
    accumulator = slots["accumulator"] + (gradient - slots["accumulator"]) * (1 - hparams["beta_1"])
    direction = hparams["correction"] * accumulator / (jnp.sqrt(preconditioner) + hparams["epsilon"])
    return direction, {"accumulator": accumulator, "preconditioner": preconditioner}


def _second_moment(gradient: Any, slots: _Slots, hparams: _Hparams) -> Any:
    return slots["preconditioner"] + (gradient**2 - slots["preconditioner"]) * (1 - hparams["beta_2"])


def _adam(weight: Any, gradient: Any, slots: _Slots, hparams: _Hparams) -> tuple[Any, _Slots]:
    direction, slots = _adam_direction(_second_moment(gradient, slots, hparams), gradient, slots, hparams)
    return weight - hparams[LEARNING_RATE_KEY] * direction, slots


def _adamw(weight: Any, gradient: Any, slots: _Slots, hparams: _Hparams) -> tuple[Any, _Slots]:
    direction, slots = _adam_direction(_second_moment(gradient, slots, hparams), gradient, slots, hparams)
    return weight - hparams[LEARNING_RATE_KEY] * (direction + hparams["weight_decay"] * weight), slots


def _yogi(weight: Any, gradient: Any, slots: _Slots, hparams: _Hparams) -> tuple[Any, _Slots]:
    square, old = gradient**2, slots["preconditioner"]
    preconditioner = old + (1 - hparams["beta_2"]) * jnp.sign(square - old) * square
    direction, slots = _adam_direction(preconditioner, gradient, slots, hparams)
    return weight - hparams[LEARNING_RATE_KEY] * direction, slots


def _adagrad(weight: Any, gradient: Any, slots: _Slots, hparams: _Hparams) -> tuple[Any, _Slots]:
    preconditioner = slots["preconditioner"] + gradient**2
    step = gradient / jnp.sqrt(preconditioner + hparams["epsilon"])
    return weight - hparams[LEARNING_RATE_KEY] * step, {"preconditioner": preconditioner}


def _rmsprop(weight: Any, gradient: Any, slots: _Slots, hparams: _Hparams) -> tuple[Any, _Slots]:
    preconditioner = slots["preconditioner"] + (gradient**2 - slots["preconditioner"]) * (1 - hparams["decay"])
    step = gradient / (jnp.sqrt(preconditioner) + hparams["epsilon"])
    return weight - hparams[LEARNING_RATE_KEY] * step, {"preconditioner": preconditioner}


def _check_adam(*, learning_rate: float, beta_1: float, beta_2: float, epsilon: float) -> dict[str, float]:
    _check_at_least_zero(learning_rate=learning_rate, epsilon=epsilon)
    _check_range("beta_1", beta_1, 0.0, 1.0)
    _check_range("beta_2", beta_2, 0.0, 1.0)
    return {LEARNING_RATE_KEY: learning_rate, "beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}


def _check_at_least_zero(**hparams: Any) -> None:
    for name, value in hparams.items():
        # A rate may be traced, when an optimizer is built inside a computation; then its value is not known.
        if not isinstance(value, Tracer) and not value >= 0:
            raise KoinonValueError(f"`{name}` must not be negative.", found=repr(value))


def _check_range(name: str, value: Any, low: float, high: float, *, open_above: bool = True) -> None:
    if isinstance(value, Tracer):
        return
    if not (low <= value < high or (value == high and not open_above)):
        interval = f"[{low:g}, {high:g}{')' if open_above else ']'}"
        raise KoinonValueError(f"`{name}` must lie in {interval}.", found=repr(value))
