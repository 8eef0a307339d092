"""Learning rates that change from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from koinon._errors import KoinonTypeError, UnknownHparamError
from koinon.learning._optimizer import LEARNING_RATE_KEY, Optimizer, as_optimizer


class _ScheduledOptimizer(Optimizer):
    """See `schedule_learning_rate`."""

    def __init__(self, optimizer: Optimizer, schedule_fn: Callable[[Any], Any]) -> None:
        self._optimizer = optimizer
        self._schedule_fn = schedule_fn

    def initialize(self, specs: Any) -> dict[str, Any]:
        state = self._optimizer.initialize(specs)
        hparams = self._optimizer.get_hparams(state)
        if LEARNING_RATE_KEY not in hparams:
            raise UnknownHparamError(
                f"An optimizer with a schedule must keep `{LEARNING_RATE_KEY}` among its hyperparameters.",
                found=", ".join(hparams) or "no hyperparameters",
                hint="wrap an optax optimizer as optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)",
            )
        round_num = jnp.int32(0)
        return {"round_num": round_num, "optimizer": self._with_rate(state, round_num)}

    def next(self, state: dict[str, Any], weights: Any, gradients: Any) -> tuple[dict[str, Any], Any]:
        inner, weights = self._optimizer.next(state["optimizer"], weights, gradients)
        round_num = state["round_num"] + 1
        return {"round_num": round_num, "optimizer": self._with_rate(inner, round_num)}, weights

    def get_hparams(self, state: dict[str, Any]) -> dict[str, Any]:
        hparams = self._optimizer.get_hparams(state["optimizer"])
        return {name: value for name, value in hparams.items() if name != LEARNING_RATE_KEY}

    def set_hparams(self, state: dict[str, Any], hparams: Mapping[str, Any]) -> dict[str, Any]:
        if LEARNING_RATE_KEY in hparams:
            raise UnknownHparamError(
                f"`{LEARNING_RATE_KEY}` follows a schedule and cannot be set.", found=", ".join(hparams)
            )
        return {**state, "optimizer": self._optimizer.set_hparams(state["optimizer"], hparams)}

    def _with_rate(self, state: Any, round_num: Any) -> Any:
        return self._optimizer.set_hparams(state, {LEARNING_RATE_KEY: self._schedule_fn(round_num)})


def schedule_learning_rate(optimizer: Any, schedule_fn: Callable[[Any], Any]) -> Optimizer:
    """The optimizer whose i-th step, counted from 0, uses the learning rate `schedule_fn(i)`.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> sgd = ko.learning.optimizers.build_sgdm(1.0)
    >>> halving = ko.learning.optimizers.schedule_learning_rate(sgd, lambda i: 0.5**i)
    >>> state, weights = halving.initialize(jnp.zeros(())), jnp.float32(0.0)
    >>> for _ in range(3):
    ...     state, weights = halving.next(state, weights, jnp.float32(-1.0))
    >>> float(weights)
    1.75

    Args:
      optimizer: an optimizer with `learning_rate` among its hyperparameters.
      schedule_fn: traced by JAX, takes an int32 scalar; any optax schedule serves.

    Raises:
      KoinonTypeError: `optimizer` is no optimizer, or `schedule_fn` no function.
      UnknownHparamError: (by `initialize`) the optimizer has no `learning_rate`.
    """
    if not callable(schedule_fn):
        raise KoinonTypeError(
            "A schedule is a function from the number of a step to a learning rate.",
            found=repr(schedule_fn),
            hint="pass for instance lambda i: 0.1 / (1 + i)",
        )
    return _ScheduledOptimizer(as_optimizer(optimizer), schedule_fn)
