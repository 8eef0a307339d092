"""Cohorts as arguments of computations: engines see the examples that the datasets of the clients show."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.simulation import ClientData

DATA = ClientData.from_clients(
    {
        name: {
            "x": np.arange(size * 2, dtype=np.float32).reshape(size, 2) + position,
            "y": np.arange(size, dtype=np.int32),
        }
        for position, (name, size) in enumerate([("ann", 3), ("bob", 0), ("cleo", 5), ("dan", 1)])
    }
)


@ko.jax_computation(ko.types.SequenceType(DATA.element_type))
def weigh(examples: ko.Sequence) -> Any:
    """A sum in which the order of examples, and each field of them, matters."""

    def add(total: Any, example: Any) -> Any:
        return 0.5 * total + example["x"] * (1 + example["y"])

    return examples.reduce(jnp.zeros(2), add), examples.length


@ko.federated_computation(ko.types.at_clients(ko.types.SequenceType(DATA.element_type)))
def weigh_all(examples: Any) -> Any:
    """The sum of all clients, and the number of examples."""
    return ko.federated_sum(ko.federated_map(weigh, examples))


def expected_of(dataset: Any) -> np.ndarray:
    total = np.zeros(2)
    for x, y in zip(dataset["x"], dataset["y"], strict=True):
        total = 0.5 * total + x * (1 + y)
    return total


@pytest.mark.parametrize("engine", ["local", "reference"])
@pytest.mark.parametrize("ids", [None, ["dan", "ann"], ["cleo"], ["ann", "ann", "bob"], ["bob"], []])
def test_a_cohort_is_the_datasets_of_its_clients(engine: str, ids: list[str] | None) -> None:
    """A cohort, and the list of its clients' datasets, give the sums that NumPy gives."""
    names = DATA.client_ids if ids is None else ids
    datasets = [DATA.dataset(name) for name in names]
    with ko.backends.use(engine):
        total, count = weigh_all(DATA.cohort(ids))
        if datasets:
            listed_total, listed_count = weigh_all(datasets)
            np.testing.assert_array_equal(total, listed_total)
            assert count == listed_count
    np.testing.assert_allclose(total, sum(map(expected_of, datasets), np.zeros(2)), rtol=1e-6)
    assert count == sum(map(DATA.num_examples, names))


def test_a_cpu_device_shares_the_arrays_of_a_dataset() -> None:
    """Data that is packed once needs no second copy for the device."""
    arrays = {"x": np.arange(12, dtype=np.float32).reshape(6, 2), "y": np.arange(6, dtype=np.int32)}
    data = ko.simulation.ClientData.from_arrays(arrays, list("abcabc"))
    packed = data.cohort().packed
    for buffer, placed in zip(packed.buffers, packed.on_device(), strict=True):
        assert placed.unsafe_buffer_pointer() == buffer.ctypes.data
    with pytest.raises(ValueError, match="read-only"):
        packed.buffers[0][0] = 0
