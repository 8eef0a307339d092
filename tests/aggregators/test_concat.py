"""`concat_factory`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.aggregators import (
    HadamardTransformFactory,
    MeanFactory,
    SumFactory,
    add_measurements,
    concat_factory,
)
from koinon.types import TensorType

VALUE = ko.types.parse("<a=float32[2],b=<float32,float32[2,3]>>")
CLIENTS = [
    {"a": np.full(2, i, np.float32), "b": (np.float32(10 * i), np.arange(6, dtype=np.float32).reshape(2, 3) + i)}
    for i in (1, 2)
]


def test_a_structure_goes_in_and_comes_out(backend):
    """The weighted mean of every leaf is where the leaf was."""
    process = concat_factory(MeanFactory()).create(VALUE, TensorType(jnp.float32))
    result = process.next(process.initialize(), CLIENTS, [3.0, 1.0]).result

    np.testing.assert_array_equal(result["a"], [1.25, 1.25])
    assert float(result["b"][0]) == 12.5
    np.testing.assert_array_equal(result["b"][1], np.arange(6).reshape(2, 3) + 1.25)


def test_the_inner_aggregation_sees_one_vector():
    """Of all elements, in the order of the leaves; measurements and weights are its own."""
    watched = add_measurements(SumFactory(), server_measurement_fn=lambda total: {"total": total})
    process = concat_factory(watched).create(VALUE)
    output = process.next(process.initialize(), CLIENTS[:1])

    np.testing.assert_array_equal(output.measurements["total"], [1, 1, 10, 1, 2, 3, 4, 5, 6])
    assert not process.is_weighted


def test_a_rotation_pads_the_whole_and_not_each_leaf():
    """Nine numbers are sixteen, where leaf by leaf they would be two, one and eight."""
    sizes = {}

    class Watch(ko.aggregators.UnweightedAggregationFactory):
        def create(self, value_type):
            sizes["seen"] = str(value_type)
            return SumFactory().create(value_type)

    concat_factory(HadamardTransformFactory(Watch())).create(VALUE)
    assert sizes["seen"] == "float32[16]"


@pytest.mark.parametrize("notation", ["<float32,int32>", "<>", "<bool,bool>", "<float32,float16>"])
def test_the_leaves_have_one_dtype_of_numbers(notation):
    """Two dtypes, none, and what is no number, are refused."""
    with pytest.raises(TypeError, match="one dtype"):
        concat_factory(SumFactory()).create(ko.types.parse(notation))
