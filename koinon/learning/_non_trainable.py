"""What becomes of the weights that no gradient steps: statistics of normalization layers, counters, seeds."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError


class NonTrainableRule(enum.Enum):
    """What happens to one leaf of a model's non-trainable weights when clients train.

    Unless a model declares otherwise, floats that it changes while it trains follow `MEAN`, PRNG keys `SEED`, and
    everything else, such as frozen weights, integers and booleans, `KEEP_SERVER`. So running statistics at the server
    are those of all clients, no integer is averaged, and no two clients draw the same random numbers.

    Attributes:
      MEAN: the server's value changes by the mean of the clients' changes, made by the aggregator of the trainable
        weights: what weighs or clips these, or adds noise to them, does so here too. Floats only.
      MAX: the server's value becomes the greatest of its own and those of the clients; numbers only. For counters.
        The maximum of a round is seen by the server as it is, whatever the aggregator of the trainable weights.
      KEEP_SERVER: the server's value stays. Clients begin with it, and what they make of it is forgotten.
      KEEP_CLIENT: each client keeps its own value from one participation to the next and begins with that of the model;
        nothing of it leaves the client. The process then has a client state. Evaluations use the server's value.
      DROP: scratch memory. Each client begins with the model's initial value, and what it makes of it is forgotten.
      SEED: each client folds a key of its own for the round into the server's value, which stays: a PRNG key, or uint32
        numbers that a library draws its random numbers from.

    References:
      Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021,
      https://arxiv.org/abs/2102.07623, is `KEEP_CLIENT` for the statistics. Reddi et al., Adaptive Federated
      Optimization, ICLR 2021, averages them.
    """

    MEAN = "mean"
    MAX = "max"
    KEEP_SERVER = "keep_server"
    KEEP_CLIENT = "keep_client"
    DROP = "drop"
    SEED = "seed"


Rules: TypeAlias = tuple[NonTrainableRule, ...]
"""One rule for each leaf of the non-trainable weights, in the order of JAX."""


class ModelUpdate(NamedTuple):
    """What a client sends of a model some of whose non-trainable weights follow the rules `MEAN` or `MAX`.

    Attributes:
      trainable: the update of the trainable weights.
      mean: the changes of the leaves with the rule `MEAN`, initial less final.
      max: the values of the leaves with the rule `MAX`.
    """

    trainable: Any
    mean: tuple[Any, ...]
    max: tuple[Any, ...]


def resolve_rules(non_trainable: Any, declared: Any, is_changed: Sequence[bool]) -> Rules:
    """The rule of each leaf.

    Args:
      non_trainable: the non-trainable weights.
      declared: None, a rule for all leaves, or a pytree of them whose leaves stand for whole subtrees of
        `non_trainable`; None in it means the default.
      is_changed: for each leaf, whether training changes it.

    Raises:
      KoinonTypeError: the declaration does not fit the weights, or a leaf cannot follow its rule.
    """
    try:
        rules = jax.tree.map(
            lambda rule, tree: [rule] * len(jax.tree.leaves(tree)), declared, non_trainable, is_leaf=_ends
        )
    except ValueError as error:
        raise KoinonTypeError(
            "The rules of non-trainable weights must have the structure of the weights, or of the top of it.",
            expected=jax.tree.structure(non_trainable),
            found=repr(declared),
            hint="pass one NonTrainableRule for all leaves, or a dict of them like that of the weights",
        ) from error
    by_leaf = jax.tree.leaves(rules, is_leaf=_ends)
    leaves = jax.tree_util.tree_leaves_with_path(non_trainable)
    return tuple(
        _default(leaf, changed) if rule is None else _checked(jax.tree_util.keystr(path), leaf, rule)
        for (path, leaf), rule, changed in zip(leaves, by_leaf, is_changed, strict=True)
    )


def starting_values(rules: Rules, served: Any, initial: Any, kept: Sequence[Any], key: Any) -> Any:
    """The non-trainable weights with which a client begins.

    Args:
      rules: one rule for each leaf.
      served: the weights of the server.
      initial: those of the model.
      kept: the leaves that the client keeps, in their order.
      key: the client's PRNG key of the round; not looked at where no leaf is a seed.
    """
    leaves, structure = jax.tree.flatten(served)
    own = iter(kept)
    start: list[Any] = []
    for i, (rule, leaf, first) in enumerate(zip(rules, leaves, jax.tree.leaves(initial), strict=True)):
        if rule is NonTrainableRule.KEEP_CLIENT:
            start.append(next(own))
        elif rule is NonTrainableRule.DROP:
            start.append(first)
        elif rule is NonTrainableRule.SEED:
            start.append(_fold(leaf, jax.random.fold_in(key, i)))
        else:
            start.append(leaf)
    return jax.tree.unflatten(structure, start)


def update_of(rules: Rules, trainable_update: Any, before: Any, after: Any) -> Any:
    """What a client sends: a `ModelUpdate` if the server takes any non-trainable leaf, the trainable update if not.

    Args:
      rules: one rule for each leaf.
      trainable_update: the update of the trainable weights.
      before: the non-trainable weights with which the client began.
      after: those with which it ended.
    """
    if not are_shared(rules):
        return trainable_update
    means = zip(
        leaves_with(rules, NonTrainableRule.MEAN, before), leaves_with(rules, NonTrainableRule.MEAN, after), strict=True
    )
    return ModelUpdate(
        trainable_update,
        tuple(old - new for old, new in means),
        tuple(leaves_with(rules, NonTrainableRule.MAX, after)),
    )


def updated_values(rules: Rules, non_trainable: Any, update: ModelUpdate) -> Any:
    """The server's non-trainable weights after a round with this aggregated update."""
    leaves, structure = jax.tree.flatten(non_trainable)
    changes, greatest = iter(update.mean), iter(update.max)
    new: list[Any] = []
    for rule, leaf in zip(rules, leaves, strict=True):
        if rule is NonTrainableRule.MEAN:
            new.append(leaf - next(changes))
        elif rule is NonTrainableRule.MAX:
            new.append(jnp.maximum(leaf, next(greatest)))
        else:
            new.append(leaf)
    return jax.tree.unflatten(structure, new)


def are_shared(rules: Rules) -> bool:
    """Whether any leaf of the clients takes part in the aggregation."""
    return NonTrainableRule.MEAN in rules or NonTrainableRule.MAX in rules


def leaves_with(rules: Rules, rule: NonTrainableRule, tree: Any) -> list[Any]:
    """The leaves of a pytree that follow a rule."""
    return [leaf for own_rule, leaf in zip(rules, jax.tree.leaves(tree), strict=True) if own_rule is rule]


def _ends(node: Any) -> bool:
    return node is None or isinstance(node, NonTrainableRule)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _fold(leaf: Any, key: Any) -> Any:
    if _is_key(leaf):
        return jax.random.fold_in(leaf, jax.random.bits(key))
    # The exclusive or is a bijection: the server's seeds matter, and no client's are another's.
    return leaf ^ jax.random.bits(key, leaf.shape, leaf.dtype)


def _default(leaf: Any, is_changed: bool) -> NonTrainableRule:
    """The rule of a leaf of which nothing is declared."""
    if _is_key(leaf):
        return NonTrainableRule.SEED
    is_averaged = is_changed and jnp.issubdtype(leaf.dtype, jnp.floating)
    return NonTrainableRule.MEAN if is_averaged else NonTrainableRule.KEEP_SERVER


def _checked(path: str, leaf: Any, rule: Any) -> NonTrainableRule:
    """The declared rule of a leaf, if the leaf can follow it."""
    is_float, is_key = jnp.issubdtype(leaf.dtype, jnp.floating), _is_key(leaf)
    if not isinstance(rule, NonTrainableRule):
        raise KoinonTypeError(
            "What becomes of non-trainable weights is declared by a NonTrainableRule.", found=repr(rule), differs=path
        )
    expected = {
        NonTrainableRule.MEAN: (is_float, "floats", "use MAX for counters, or KEEP_SERVER"),
        NonTrainableRule.MAX: (is_float or jnp.issubdtype(leaf.dtype, jnp.integer), "integers or floats", None),
        NonTrainableRule.SEED: (is_key or leaf.dtype == jnp.uint32, "PRNG keys or uint32 seeds", None),
    }
    can_follow, kind, hint = expected.get(rule, (True, "", None))
    if not can_follow:
        raise KoinonTypeError(
            f"The rule {rule.name} is for {kind}.",
            found=f"{leaf.dtype}{list(leaf.shape)}",
            differs=path or "the whole of the non-trainable weights",
            hint=hint,
        )
    return rule
