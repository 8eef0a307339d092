"""How processes print."""

from __future__ import annotations

import collections

import jax.numpy as jnp

import koinon as ko
from koinon.aggregators import MeanFactory, SumFactory, clipping_factory
from koinon.learning.models import ModelWeights
from koinon.learning.templates import build_broadcast_process
from koinon.types import StructType, TensorType

FLOAT = TensorType(jnp.float32)


def test_a_process_prints_its_template_and_its_types():
    """A process without parts takes three lines."""
    assert repr(SumFactory().create(FLOAT)) == (
        "AggregationProcess\n"
        "  initialize  ( -> <>@SERVER)\n"
        "  next        (<state=<>@SERVER,value={float32}@CLIENTS>"
        " -> <state=<>@SERVER,result=float32@SERVER,measurements=<>@SERVER>)"
    )


def test_a_composed_process_prints_its_parts_below_it():
    """Each part stands on a line with its template and its type, indented by its depth."""
    lines = repr(clipping_factory(1.0, MeanFactory()).create(FLOAT, FLOAT)).splitlines()
    parts = [line.split()[:2] for line in lines[3:] if "Process  " in line]
    depths = [len(line) - len(line.lstrip()) for line in lines[3:] if "Process  " in line]

    assert parts == [
        ["clipping_norm", "EstimationProcess"],
        ["inner_agg", "AggregationProcess"],
        ["value_sum_process", "AggregationProcess"],
        ["weight_sum_process", "AggregationProcess"],
        ["clipped_count_agg", "AggregationProcess"],
    ]
    assert depths == [2, 2, 4, 4, 2]


def test_a_part_prints_with_the_types_that_flow_through_it():
    """Its arguments and its result, without the states and measurements that every part has."""
    text = repr(clipping_factory(1.0, MeanFactory()).create(FLOAT, FLOAT))

    assert "  inner_agg          AggregationProcess  {float32}@CLIENTS, {float32}@CLIENTS -> float32@SERVER\n" in text
    assert "  clipped_count_agg  AggregationProcess  {int32}@CLIENTS -> int32@SERVER" in text
    assert "  clipping_norm      EstimationProcess  {float32}@CLIENTS -> <>@SERVER\n" in text


def test_a_long_struct_gets_a_name_that_is_explained_below():
    """The same type has the same name everywhere, and only a few of many fields are shown."""
    weights = StructType(
        [(f"layer_{i}", TensorType(jnp.float32, (10, 10))) for i in range(20)], collections.OrderedDict
    )
    text = repr(SumFactory().create(weights))

    assert "value={A}@CLIENTS" in text
    assert "result=A@SERVER" in text
    assert text.splitlines()[-2:] == [
        "  where",
        "    A = <" + ",".join(f"layer_{i}=float32[10,10]" for i in range(6)) + ",... 14 more>",
    ]


def test_no_line_grows_with_the_size_of_the_model():
    """A model of a thousand tensors prints as legibly as one of twenty."""
    weights = StructType([(f"w{i}", FLOAT) for i in range(1000)], collections.OrderedDict)

    assert max(map(len, repr(MeanFactory().create(weights, FLOAT)).splitlines())) < 400


def test_a_container_is_named_with_its_struct():
    """A named tuple shows in the explanation of its type."""
    weights = ModelWeights(
        trainable={"kernel": jnp.zeros((784, 10)), "bias": jnp.zeros(10)}, non_trainable={"steps": jnp.int32(0)}
    )
    process = build_broadcast_process(ko.to_type(weights))

    assert "(ModelWeights)" in repr(process)
