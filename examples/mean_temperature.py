"""The mean temperature of sensors that keep their readings: types, placements, and what leaves a client.

Run it with `python examples/mean_temperature.py`; it needs no extra.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

import koinon as ko

# What a sensor holds: a sequence of readings, of a length of its own.
READINGS = ko.types.at_clients(ko.types.SequenceType(jnp.float32))


@ko.jax_computation(ko.types.SequenceType(jnp.float32))
def summarize(readings: ko.Sequence) -> dict[str, Any]:
    """The sum and the number of one sensor's readings, in Fahrenheit; plain JAX, run where the readings are."""
    total = readings.map(lambda celsius: celsius * 1.8 + 32.0).reduce(0.0, lambda total, reading: total + reading)
    return {"total": total, "count": readings.length.astype(jnp.float32)}


@ko.federated_computation(READINGS, ko.types.at_server(jnp.float32))
def mean_temperature(readings: Any, limit: Any) -> Any:
    """The mean over all readings of all sensors, and how many sensors have a mean above a limit."""
    summaries = ko.federated_map(summarize, readings)
    sums = ko.federated_sum(summaries)
    is_above = ko.federated_map(
        lambda summary, limit: (summary["total"] > limit * summary["count"]).astype(jnp.int32),
        (summaries, ko.federated_broadcast(limit)),
    )
    mean = ko.federated_map(lambda summed: summed["total"] / summed["count"], sums)
    return {"mean": mean, "sensors_above": ko.federated_sum(is_above)}


def main() -> None:
    """Runs the computation on three sensors."""
    sensors = [np.float32([20.0, 21.0, 22.0]), np.float32([30.0]), np.float32([10.0, 11.0])]
    result = mean_temperature(sensors, 70.0)

    print("type    ", mean_temperature.type_signature)
    print("mean    ", f"{result['mean']:.2f}")
    print("above 70", result["sensors_above"])
    print()
    print(ko.compiler.plan(mean_temperature))


if __name__ == "__main__":
    main()
