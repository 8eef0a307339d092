"""What an optimizer is, and how any optax transformation becomes one."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError, UnknownHparamError

LEARNING_RATE_KEY = "learning_rate"
"""The name of the learning rate among the hyperparameters of an optimizer."""


class Optimizer(abc.ABC):
    """Pure functions that turn gradients into steps; the hyperparameters live in the state.

    A server applies one to the aggregated update of a round, and every client to the gradients of its batches. Since
    hyperparameters are part of the state, `set_hparams` changes a learning rate without building anything anew.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> optimizer = ko.learning.optimizers.build_sgdm(learning_rate=0.5)
    >>> state = optimizer.initialize(jnp.zeros(2))
    >>> state, weights = optimizer.next(state, jnp.array([1.0, 1.0]), jnp.array([2.0, 0.0]))
    >>> weights.tolist()
    [0.0, 1.0]
    """

    @abc.abstractmethod
    def initialize(self, specs: Any) -> Any:
        """The state before the first step.

        Args:
          specs: the weights, or `jax.ShapeDtypeStruct`s of their shapes and dtypes in the same pytree.
        """

    @abc.abstractmethod
    def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
        """One step: the new state and the new weights.

        Raises:
          KoinonValueError: the gradients do not have the structure, shapes and dtypes of the weights.
        """

    def get_hparams(self, state: Any) -> dict[str, Any]:
        """The hyperparameters in a state, by name; an optimizer without any has none to return."""
        del state
        return {}

    def set_hparams(self, state: Any, hparams: Mapping[str, Any]) -> Any:
        """The state with these hyperparameters replaced.

        Raises:
          UnknownHparamError: the optimizer has no hyperparameter of a given name.
        """
        check_hparams_known((), hparams)
        return state


def as_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer itself, or the optimizer that an optax `GradientTransformation` is.

    Raises:
      KoinonTypeError: what was given is neither.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    # The shape of optax's NamedTuple is asked for, so that optax is imported by those who use it only.
    if isinstance(optimizer, tuple) and callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update"):
        return OptaxOptimizer(optimizer)
    hint = "for instance optax.sgd(0.1), or koinon.learning.optimizers.build_sgdm(0.1)"
    raise KoinonTypeError(
        "An optimizer is a koinon Optimizer or an optax GradientTransformation.",
        expected="Optimizer or GradientTransformation",
        found=f"{type(optimizer).__name__}: {optimizer!r}",
        hint=f"call the function and pass its result, {hint}" if callable(optimizer) else hint,
    )


def from_optax(transformation: Any) -> Optimizer:
    """The optimizer that applies an optax `GradientTransformation`.

    Its hyperparameters are those that `optax.inject_hyperparams` keeps in the state, except the scheduled ones, which
    every step computes anew. Everything in `koinon.learning` that takes an optimizer takes an optax transformation, so
    this function is seldom needed.

    >>> import jax.numpy as jnp
    >>> import koinon as ko
    >>> import optax
    >>> optimizer = ko.learning.optimizers.from_optax(optax.inject_hyperparams(optax.sgd)(learning_rate=0.5))
    >>> state = optimizer.initialize(jnp.zeros(2))
    >>> state = optimizer.set_hparams(state, {"learning_rate": 0.25})
    >>> float(optimizer.get_hparams(state)["learning_rate"])
    0.25

    Raises:
      KoinonTypeError: `transformation` is no optax transformation.
    """
    return as_optimizer(transformation)


class OptaxOptimizer(Optimizer):
    """An optax `GradientTransformation` as an optimizer."""

    def __init__(self, transformation: Any) -> None:
        self.transformation = transformation

    def initialize(self, specs: Any) -> Any:
        """The state that `init` makes of zeros of the specs' shapes."""
        return self.transformation.init(zeros_like_specs(specs))

    def next(self, state: Any, weights: Any, gradients: Any) -> tuple[Any, Any]:
        """One `update`, its result added to the weights."""
        check_weights_gradients_match(weights, gradients)
        updates, state = self.transformation.update(gradients, state, weights)
        weights = jax.tree.map(lambda weight, update: (weight + update).astype(weight.dtype), weights, updates)
        return state, weights

    def get_hparams(self, state: Any) -> dict[str, Any]:
        """The hyperparameters that `optax.inject_hyperparams` keeps, numbered where a name occurs twice."""
        hparams: dict[str, Any] = {}

        def collect(injected: Any, names: dict[str, str]) -> Any:
            hparams.update({names[name]: injected.hyperparams[name] for name in names})
            return injected

        _map_injected(state, collect)
        return hparams

    def set_hparams(self, state: Any, hparams: Mapping[str, Any]) -> Any:
        """The state with these injected hyperparameters replaced."""
        check_hparams_known(self.get_hparams(state), hparams)

        def replace(injected: Any, names: dict[str, str]) -> Any:
            new = {
                name: jnp.asarray(hparams[public], jnp.asarray(injected.hyperparams[name]).dtype)
                for name, public in names.items()
                if public in hparams
            }
            return injected._replace(hyperparams={**injected.hyperparams, **new})

        return _map_injected(state, replace)

    def __repr__(self) -> str:
        return f"OptaxOptimizer({self.transformation!r})"


def zeros_like_specs(specs: Any, fill: float = 0.0) -> Any:
    """Arrays of the specs' shapes and dtypes, filled with one number."""
    return jax.tree.map(lambda spec: jnp.full(jnp.shape(spec), fill, jnp.result_type(spec)), specs)


def check_weights_gradients_match(weights: Any, gradients: Any) -> None:
    """Checks that gradients have the structure, shapes and dtypes of the weights.

    Raises:
      KoinonValueError: they do not; the message names the first leaf that differs.
    """
    expected, found = jax.tree.structure(weights), jax.tree.structure(gradients)
    if expected != found:
        raise KoinonValueError(
            "The gradients do not have the structure of the weights.", expected=expected, found=found
        )
    for (path, weight), gradient in zip(
        jax.tree_util.tree_leaves_with_path(weights), jax.tree.leaves(gradients), strict=True
    ):
        want, have = (jnp.result_type(weight), jnp.shape(weight)), (jnp.result_type(gradient), jnp.shape(gradient))
        if want != have:
            raise KoinonValueError(
                "A gradient does not have the shape and dtype of its weight.",
                expected=f"{want[0]}{list(want[1])}",
                found=f"{have[0]}{list(have[1])}",
                differs=jax.tree_util.keystr(path) or "the root",
            )


def check_hparams_known(known: Collection[str], hparams: Mapping[str, Any]) -> None:
    """Checks that an optimizer has hyperparameters of all given names.

    Raises:
      UnknownHparamError: it does not.
    """
    unknown = sorted(set(hparams) - set(known))
    if unknown:
        raise UnknownHparamError(
            f"The optimizer has no hyperparameter named {', '.join(map(repr, unknown))}.",
            expected=", ".join(known) or "none: the optimizer keeps no hyperparameters in its state",
            found=", ".join(hparams),
            hint="wrap an optax optimizer as optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)",
        )


def _is_injected(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "hyperparams") and hasattr(node, "inner_state")


def _map_injected(state: Any, fn: Callable[[Any, dict[str, str]], Any]) -> Any:
    """Applies `fn(node, names)` to the states of `inject_hyperparams`; `names` are the public ones of its own names."""
    taken: set[str] = set()

    def visit(node: Any) -> Any:
        if not _is_injected(node):
            return node
        scheduled = getattr(node, "hyperparams_states", {})
        names: dict[str, str] = {}
        for name in node.hyperparams:
            if name not in scheduled:
                names[name] = _unused(name, taken)
                taken.add(names[name])
        node = fn(node, names)
        return node._replace(inner_state=jax.tree.map(visit, node.inner_state, is_leaf=_is_injected))

    return jax.tree.map(visit, state, is_leaf=_is_injected)


def _unused(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
