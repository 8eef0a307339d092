"""A uniform sample of the clients' values as an aggregation."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError
from koinon.aggregators._factory import UnweightedAggregationFactory, ValueType, check_int, check_value_type
from koinon.aggregators._norms import all_finite
from koinon.aggregators._reservoir import (
    check_sample_size,
    draw_priority,
    fill_reservoir,
    in_order,
    sample_clients,
    sample_of,
)
from koinon.computation import (
    federated_computation,
    federated_eval,
    federated_map,
    federated_split_key,
    federated_sum,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.templates._specs import specs_of
from koinon.types import SERVER, at_clients


@final
class UnweightedReservoirSamplingFactory(UnweightedAggregationFactory):
    """Samples the clients' values, uniformly and without replacement.

    Every client draws a random number, and the values of the greatest ones are kept. So the sample depends neither on
    the order in which clients are aggregated nor on how partial aggregates are merged, and the accumulator has one
    size. A value that is not finite is left out, and counted.

    This reveals single clients' values to the server: no secure sum and no noise can hide them.

    Type: `(<S@SERVER,{V}@CLIENTS> -> <state=S@SERVER,result=R@SERVER,measurements=M@SERVER>)`

    The state is a PRNG key. The result R is a `ClientSample`: leaves with `sample_size` rows, in random order, and how
    many of them are clients; further rows are zeros. With metadata it is `<random_seed,random_values,samples>`: the
    key of the round, the clients' random numbers in descending order, -1 for rows without a client, and the rows. The
    measurements have the structure of V, and count for each leaf the clients in which it was not finite.

    Args:
      sample_size: the number of rows.
      return_sampling_metadata: whether the result tells the random numbers too.
      seed: where the randomness begins.

    Raises:
      ValueError: if the size is not a positive int.
      TypeError: if `return_sampling_metadata` is not a bool, or the seed no int; or, at `create`, if a leaf has an
        unknown shape.

    References:
      J. S. Vitter: Random Sampling with a Reservoir, 1985. https://doi.org/10.1145/3147.3165

    Example:
      >>> import koinon as ko
      >>> factory = ko.aggregators.UnweightedReservoirSamplingFactory(sample_size=3)
      >>> process = factory.create(ko.types.TensorType("float32"))
      >>> output = process.next(process.initialize(), [1.0, 2.0])
      >>> sorted(output.result.values.tolist()), int(output.result.count)
      ([0.0, 1.0, 2.0], 2)
    """

    needs_each_value = True

    def __init__(self, sample_size: int, return_sampling_metadata: bool = False, seed: int = 0) -> None:
        check_sample_size("sample_size", sample_size)
        if not isinstance(return_sampling_metadata, bool):
            raise KoinonTypeError("`return_sampling_metadata` must be a bool.", found=repr(return_sampling_metadata))
        check_int(seed, "seed")
        self._size = sample_size
        self._with_metadata = return_sampling_metadata
        self._seed = seed

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`.

        Raises:
          TypeError: if `value_type` has a leaf of an unknown shape.
        """
        check_value_type(value_type)
        specs_of(value_type)

        def enter(value: Any, key: Any) -> Any:
            non_finite = jax.tree.map(_non_finite, value)
            is_kept = sum(jax.tree.leaves(non_finite), jnp.int32(0)) == 0
            return {"priority": jnp.where(is_kept, draw_priority(key), -1), "non_finite": non_finite}

        def with_metadata(reservoir: Any, key: Any) -> Any:
            sorted_ = in_order(reservoir)
            return OrderedDict(random_seed=key, random_values=sorted_.priorities, samples=sorted_.values)

        @federated_computation
        def initialize_fn() -> Any:
            return federated_eval(lambda: jax.random.key(self._seed), SERVER)

        @federated_computation(initialize_fn.type_signature.result, at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            new_state, key = federated_map(lambda key: tuple(jax.random.split(key)), state)
            entered = federated_map(enter, (value, federated_split_key(key)))
            reservoir = fill_reservoir(value, entered["priority"], self._size)
            if self._with_metadata:
                result = federated_map(with_metadata, (reservoir, key))
            else:
                result = federated_map(sample_of, reservoir)
            return MeasuredProcessOutput(new_state, result, federated_sum(entered["non_finite"]))

        return AggregationProcess(initialize_fn, next_fn, allow_type_change=True)


def federated_sample(value: Any, max_num_samples: int = 100, *, key: Any) -> Any:
    """A uniform sample without replacement of the clients' values, inside a federated computation.

    Values that are not finite take part like all others.

    Args:
      value: `{T}@CLIENTS`, or a struct of values at the clients.
      max_num_samples: the number of rows of the sample.
      key: a PRNG key at the server, `key<fry>@SERVER`; the same key gives the same positions of the cohort.

    Returns:
      A `ClientSample` at the server.

    Raises:
      ValueError: if the number is not a positive int.

    Example:
      >>> import jax, jax.numpy as jnp, koinon as ko
      >>> key = jax.random.key(0)
      >>> @ko.federated_computation(ko.types.at_clients(jnp.int32), ko.types.at_server(key.dtype))
      ... def two_of(x, key):
      ...     return ko.aggregators.federated_sample(x, 2, key=key)
      >>> sample = two_of([5, 6, 7], key)
      >>> int(sample.count), set(sample.values.tolist()) < {5, 6, 7}
      (2, True)
    """
    check_sample_size("max_num_samples", max_num_samples)
    return sample_clients(value, max_num_samples, key)


def _non_finite(leaf: jax.Array) -> jax.Array:
    return (~all_finite(leaf)).astype(jnp.int32)
