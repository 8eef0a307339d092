"""Maps around an inner aggregation, at the clients and back at the server, with a key that is new in each round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from koinon.aggregators._factory import ValueType
from koinon.computation import (
    federated_broadcast,
    federated_computation,
    federated_eval,
    federated_map,
    federated_zip,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import SERVER, at_clients


def keyed_process(
    value_type: ValueType,
    at_client: Callable[..., Any],
    inner: AggregationProcess,
    at_server: Callable[..., Any],
    measurements: Callable[[Any], Any],
    seed: int,
) -> AggregationProcess:
    """The aggregation of what `at_client` makes of values, which `at_server` takes back.

    The state is the pair of the inner state and a PRNG key; all clients of a round and the server get the same key.

    Args:
      value_type: the type of a client's value.
      at_client: `(value, key)` to what is aggregated.
      inner: aggregates it.
      at_server: `(aggregate, key)` to the result.
      measurements: the measurements, of those of the inner aggregation, inside a federated computation.
      seed: where the randomness of the keys begins.
    """

    @federated_computation
    def initialize_fn() -> Any:
        return federated_zip((inner.initialize(), federated_eval(lambda: jax.random.key(seed), SERVER)))

    @federated_computation(initialize_fn.type_signature.result, at_clients(value_type))
    def next_fn(state: Any, value: Any) -> Any:
        inner_state, key = state
        next_key, round_key = federated_map(lambda key: tuple(jax.random.split(key)), key)
        output = inner.next(inner_state, federated_map(at_client, (value, federated_broadcast(round_key))))
        return MeasuredProcessOutput(
            federated_zip((output.state, next_key)),
            federated_map(at_server, (output.result, round_key)),
            federated_zip(measurements(output.measurements)),
        )

    return AggregationProcess(initialize_fn, next_fn, parts={"inner_agg": inner})
