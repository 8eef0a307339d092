"""Clients that are corrupted, to try robust aggregations with: what they send, and what they train on."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError, UnknownClientError
from koinon.aggregators import AggregationFactory
from koinon.aggregators._factory import (
    ValueType,
    check_factory,
    check_floats,
    check_int,
    factory_like,
    next_parameter,
    prints_as_called,
)
from koinon.computation import (
    federated_broadcast,
    federated_computation,
    federated_eval,
    federated_map,
    federated_split_key,
    federated_sum,
    federated_value,
    federated_zip,
)
from koinon.simulation._client_data import ClientData
from koinon.templates import AggregationProcess, MeasuredProcessOutput
from koinon.types import CLIENTS, SERVER, StructType, TensorType, at_server, strip_placement

_KEY = TensorType(jax.eval_shape(lambda: jax.random.key(0)).dtype)
_COUNT = TensorType(jnp.int32)


class HonestClients(NamedTuple):
    """What corrupted clients that collude know of a round.

    Attributes:
      mean: of the values of the honest clients, element by element, at least in float32.
      stddev: their standard deviation, likewise.
      num_clients: how many clients there are in the round, the corrupted ones among them, an int32.
      num_byzantine: how many are corrupted, an int32.
    """

    mean: Any
    stddev: Any
    num_clients: Any
    num_byzantine: Any


@dataclasses.dataclass(frozen=True)
class Attack:
    """What a corrupted client sends in the place of its value.

    Attributes:
      corrupt: `corrupt(value, key, honest)`, traced by JAX: from the value that the client would send, a key of its
        own, and `HonestClients`, or None where the attack does not need them; returns a value of the same type.
      needs_statistics: whether `honest` is needed.

    Example:
      >>> attack = Attack(lambda value, key, honest: 0 * value)  # a free rider
      >>> attack.needs_statistics
      False
    """

    corrupt: Callable[[Any, Any, Any], Any]
    needs_statistics: bool = False


def sign_flip(scale: float = 1.0) -> Attack:
    """The opposite of the value, `scale` times as long."""
    return Attack(lambda value, key, honest: jax.tree.map(lambda leaf: -scale * leaf, value))


def gaussian(stddev: float = 10.0) -> Attack:
    """Normal noise of this standard deviation in the place of the value."""

    def corrupt(value: Any, key: Any, honest: Any) -> Any:
        del honest
        leaves, treedef = jax.tree.flatten(value)
        keys = jax.random.split(key, max(1, len(leaves)))
        noise = [stddev * jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=False)]
        return jax.tree.unflatten(treedef, noise)

    return Attack(corrupt)


def random_sign(magnitude: float = 1e6) -> Attack:
    """All elements of one magnitude, each of a random sign: far away, and each corrupted client elsewhere."""

    def corrupt(value: Any, key: Any, honest: Any) -> Any:
        del honest
        leaves, treedef = jax.tree.flatten(value)
        keys = jax.random.split(key, max(1, len(leaves)))
        signs = [jax.random.rademacher(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=False)]
        return jax.tree.unflatten(treedef, [magnitude * sign for sign in signs])

    return Attack(corrupt)


def constant(number: float) -> Attack:
    """The same number everywhere, such as 1e30 or NaN."""
    return Attack(lambda value, key, honest: jax.tree.map(lambda leaf: jnp.full_like(leaf, number), value))


def a_little_is_enough(z: float | None = None) -> Attack:
    """The mean of the honest values, moved by `z` of their standard deviations: too little to be told apart.

    Args:
      z: how far; None for as far as still lies between honest values that, with the corrupted ones, are a majority:
        the quantile `(n - f - s) / (n - f)` of the normal distribution, with `s = floor(n / 2 + 1) - f`.

    References:
      Baruch, Baruch, Goldberg: A Little Is Enough: Circumventing Defenses For Distributed Learning, NeurIPS 2019,
      https://arxiv.org/abs/1902.06156, algorithm 3.
    """

    def corrupt(value: Any, key: Any, honest: HonestClients) -> Any:
        del key
        reach = jnp.float32(z) if z is not None else _largest_z(honest.num_clients, honest.num_byzantine)
        return jax.tree.map(
            lambda leaf, mean, stddev: (mean - reach.astype(mean.dtype) * stddev).astype(leaf.dtype),
            value,
            honest.mean,
            honest.stddev,
        )

    return Attack(corrupt, needs_statistics=True)


def _largest_z(num_clients: jax.Array, num_byzantine: jax.Array) -> jax.Array:
    supporters = num_clients // 2 + 1 - num_byzantine
    honest = jnp.maximum(num_clients - num_byzantine, 1).astype(jnp.float32)
    share = (num_clients - num_byzantine - supporters) / honest
    return jnp.maximum(jax.scipy.special.ndtri(jnp.clip(share, 0.5, 0.999)), 0.0)


@prints_as_called
def byzantine_factory(
    inner_agg_factory: AggregationFactory, attack: Attack, num_byzantine: int, seed: int = 0
) -> AggregationFactory:
    """Corrupts the values of some clients of every round, before an inner aggregation.

    The first `num_byzantine` clients of a cohort send what `attack` makes of their values; their weights are left
    alone. A cohort that is drawn at random has its corrupted clients at random; one of all clients has the same in
    every round.

    Type: `(<S@SERVER,{V}@CLIENTS,*> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    The state is `<num_byzantine,key,inner_agg>`; put another number there to go on with more or fewer. The
    measurements are those of the inner aggregation.

    Args:
      inner_agg_factory: the aggregation to be attacked; the result is weighted if and only if this is.
      attack: what a corrupted client sends.
      num_byzantine: how many are corrupted, a non-negative int.
      seed: of the randomness of the attack, a non-negative int.

    Raises:
      TypeError: if an argument has another type, or, at `create`, values have leaves that are not floats.
      ValueError: if a number is negative.

    Example:
      >>> import koinon as ko
      >>> attacked = byzantine_factory(ko.aggregators.UnweightedMeanFactory(), sign_flip(10.0), num_byzantine=1)
      >>> process = attacked.create(ko.types.TensorType("float32"))
      >>> float(process.next(process.initialize(), [1.0, 1.0, 1.0, 1.0]).result)  # (-10 + 1 + 1 + 1) / 4
      -1.75
    """
    check_factory(inner_agg_factory, "inner_agg_factory")
    if not isinstance(attack, Attack):
        raise KoinonTypeError("`attack` must be an Attack.", found=repr(attack), hint="for example `sign_flip(10.0)`")
    for name, number in (("num_byzantine", num_byzantine), ("seed", seed)):
        check_int(number, name)
        if number < 0:
            raise KoinonValueError(f"`{name}` must not be negative.", found=number)

    def create(value_type: ValueType, *weight_type: ValueType) -> AggregationProcess:
        check_floats(value_type, "An attack")
        inner = inner_agg_factory.create(value_type, *weight_type)
        fields = [("num_byzantine", _COUNT), ("key", _KEY), ("inner_agg", strip_placement(inner.state_type))]
        state_type = at_server(StructType(fields, OrderedDict))

        @federated_computation
        def initialize_fn() -> Any:
            own = {
                "num_byzantine": federated_value(jnp.int32(num_byzantine), SERVER),
                "key": federated_eval(lambda: jax.random.key(seed), SERVER),
            }
            return federated_zip(OrderedDict(**own, inner_agg=inner.initialize()))

        @federated_computation(next_parameter(state_type, value_type, *weight_type))
        def next_fn(arguments: Any) -> Any:
            state, value, *weight = arguments
            count = state["num_byzantine"]
            key, following = federated_map(lambda key: tuple(jax.random.split(key)), state["key"])
            own_key = federated_split_key(key)
            is_corrupted = federated_map(
                _is_among_the_first, (own_key, federated_broadcast(key), federated_broadcast(count))
            )
            corrupt_arguments = (value, own_key, is_corrupted)
            if attack.needs_statistics:
                honest = federated_broadcast(_statistics(value, is_corrupted, count))
                corrupted = federated_map(
                    lambda v, k, c, h: _choose(c, attack.corrupt(v, k, h), v), (*corrupt_arguments, honest)
                )
            else:
                corrupted = federated_map(lambda v, k, c: _choose(c, attack.corrupt(v, k, None), v), corrupt_arguments)
            output = inner.next(state["inner_agg"], corrupted, *weight)
            new_state = OrderedDict(num_byzantine=count, key=following, inner_agg=output.state)
            return MeasuredProcessOutput(federated_zip(new_state), output.result, output.measurements)

        parts = {"inner_agg": inner}
        return AggregationProcess(initialize_fn, next_fn, allow_type_change=True, parts=parts)

    return factory_like(inner_agg_factory, create)


def _is_among_the_first(own_key: Any, key: Any, count: Any) -> jax.Array:
    """Whether a client has one of the first `count` keys that `federated_split_key` gives out, as it says it does."""
    own = jax.random.key_data(own_key)

    def compare(i: Any, found: jax.Array) -> jax.Array:
        return found | (jax.random.key_data(jax.random.fold_in(key, i)) == own).all()

    return jax.lax.fori_loop(0, count, compare, jnp.asarray(False))


def _choose(condition: jax.Array, corrupted: Any, value: Any) -> Any:
    return jax.tree.map(lambda bad, good: jnp.where(condition, bad.astype(good.dtype), good), corrupted, value)


def _statistics(value: Any, is_corrupted: Any, count: Any) -> Any:
    """`HonestClients` at the server, while tracing."""

    def widen(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))

    def addend(value: Any, is_corrupted: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: jnp.where(is_corrupted, 0, widen(leaf)), value)

    def square(value: Any, is_corrupted: jax.Array, mean: Any) -> Any:
        return jax.tree.map(
            lambda leaf, center: jnp.where(is_corrupted, 0, jnp.square(widen(leaf) - center)), value, mean
        )

    def divide(total: Any, number: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: leaf / jnp.maximum(number, 1).astype(leaf.dtype), total)

    num_clients = federated_sum(federated_value(jnp.int32(1), CLIENTS))
    num_honest = federated_map(lambda n, f: jnp.maximum(n - f, 0), (num_clients, count))
    mean = federated_map(divide, (federated_sum(federated_map(addend, (value, is_corrupted))), num_honest))
    squares = federated_sum(federated_map(square, (value, is_corrupted, federated_broadcast(mean))))
    stddev = federated_map(lambda total, n: jax.tree.map(jnp.sqrt, divide(total, n)), (squares, num_honest))
    return federated_zip(HonestClients(mean, stddev, num_clients, count))


def flip_labels(data: ClientData, client_ids: Iterable[Hashable], num_classes: int, label: str = "y") -> ClientData:
    """A dataset in which some clients have every label `y` wrong: `num_classes - 1 - y`.

    Args:
      data: the dataset, whose examples are dictionaries.
      client_ids: the clients to be corrupted.
      num_classes: the number of labels, which are from 0 on.
      label: the field that is the label.

    Raises:
      UnknownClientError: if there is no client of one of the ids.
      KoinonValueError: if examples have no such field.

    Example:
      >>> import numpy as np
      >>> honest = {name: {"x": np.zeros(3), "y": np.array([0, 1, 9])} for name in ("ann", "bob")}
      >>> flipped = flip_labels(ClientData.from_clients(honest), ["bob"], num_classes=10)
      >>> flipped.dataset("ann")["y"].tolist(), flipped.dataset("bob")["y"].tolist()
      ([0, 1, 9], [9, 8, 0])
    """
    chosen = set(client_ids)
    unknown = chosen.difference(data.client_ids)
    if unknown:
        raise UnknownClientError(
            "The data has no such client.", found=", ".join(sorted(map(repr, unknown))), expected="ids of the data"
        )

    def flip(examples: Any) -> Any:
        if not hasattr(examples, "keys") or label not in examples:
            raise KoinonValueError(
                f"The examples have no field {label!r}.", found=str(data.element_type), hint="pass `label=...`"
            )
        flipped = copy.copy(examples)
        flipped[label] = num_classes - 1 - examples[label]
        return flipped

    return ClientData.from_clients(
        {
            client_id: flip(data.dataset(client_id)) if client_id in chosen else data.dataset(client_id)
            for client_id in data.client_ids
        }
    )
