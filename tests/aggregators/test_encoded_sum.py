"""Sums of compressed values."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.aggregators import (
    CountSketchFactory,
    EncodedSumFactory,
    HadamardTransformFactory,
    MeanFactory,
    QSGDQuantizer,
    RandomKSparsifier,
    TopKSparsifier,
    UniformQuantizer,
    UnweightedMeanFactory,
    clipping_factory,
    concat_factory,
    zeroing_factory,
)
from koinon.compiler import plan
from koinon.types import TensorType

VALUE = ko.types.parse("<large=float32[40],small=float32[2]>")
CLIENTS = [
    {"large": np.random.default_rng(i).normal(size=40).astype(np.float32), "small": np.float32([i, 1.0])}
    for i in range(3)
]


def test_what_is_sent_is_the_message(backend):
    """Large leaves are compressed, small ones are not; the sum is that of what is decoded; the bytes are by hand."""
    process = EncodedSumFactory(TopKSparsifier(0.05), threshold=2).create(VALUE)
    output = process.next(process.initialize(), CLIENTS)
    expected = np.zeros(40)
    for client in CLIENTS:
        kept = np.argsort(-np.abs(client["large"]))[:2]
        expected[kept] += client["large"][kept]

    np.testing.assert_allclose(output.result["large"], expected, rtol=1e-6)
    np.testing.assert_array_equal(output.result["small"], [3.0, 3.0])
    assert float(output.measurements["bytes_per_client"]) == 2 * (4 + 2) + 8
    assert float(output.measurements["uncompressed_bytes_per_client"]) == 168


def test_the_program_sends_messages_and_not_values():
    """What is aggregated are codes of a byte and two floats, and no vector of floats."""
    process = EncodedSumFactory(UniformQuantizer(8)).create(TensorType(jnp.float32, (100,)))
    page = str(plan(process.next))
    name, type_ = re.search(r"(%\d+): (\S+) = encode\(", page).groups()

    assert type_ == "{<<<codes=uint8[100],low=float32,high=float32>>,bool>}@CLIENTS"
    assert re.findall(r"aggregate\(<(%\d+),", page) == [name]


@pytest.mark.parametrize(
    "compressor",
    [
        UniformQuantizer(3),
        pytest.param(QSGDQuantizer(4), marks=pytest.mark.soak),
        pytest.param(RandomKSparsifier(0.3), marks=pytest.mark.soak),
    ],
)
def test_the_mean_over_rounds_and_clients_is_unbiased(compressor):
    """Over 40 rounds of 50 clients with one value: 6 standard errors of the mean of 2,000 independent messages."""
    value = CLIENTS[0]["large"]
    process = EncodedSumFactory(compressor, seed=7).create(TensorType(jnp.float32, (40,)))
    state, sums = process.initialize(), []
    for _ in range(40):
        state, result, _ = process.next(state, [value] * 50)
        sums.append(np.asarray(result, np.float64) / 50)
    error = np.abs(np.mean(sums, axis=0) - value)

    # Of the 40 numbers at 40 - 1 degrees of freedom, one exceeds 6 with a probability of 2e-5.
    assert (error <= 6 * np.std(sums, axis=0, ddof=1) / np.sqrt(40) + 1e-5).all()


@pytest.mark.parametrize("compressor", [None, UniformQuantizer(4), TopKSparsifier(0.05), RandomKSparsifier(0.05)])
def test_a_client_that_is_not_finite_is_left_out_and_counted(compressor):
    """Also where the compressor would not have sent the number; the others are summed bit for bit as without it."""
    process = EncodedSumFactory(compressor).create(VALUE)
    without = process.next(process.initialize(), CLIENTS)
    for bad in (np.nan, np.inf, -np.inf):
        broken = {"large": CLIENTS[0]["large"].copy(), "small": np.float32([0.0, 1.0])}
        broken["large"][13] = bad
        with_it = process.next(process.initialize(), [*CLIENTS, broken])

        for name in ("large", "small"):
            np.testing.assert_array_equal(with_it.result[name], without.result[name])
        assert int(with_it.measurements["non_finite_clients"]) == 1


def test_a_message_that_stands_for_infinity_is_left_out():
    """A random number is scaled by 20, beyond the largest float."""
    process = EncodedSumFactory(RandomKSparsifier(0.05)).create(TensorType(jnp.float32, (40,)))
    output = process.next(process.initialize(), [np.full(40, 3e37, np.float32)])

    assert (np.asarray(output.result) == 0).all()
    assert int(output.measurements["non_finite_clients"]) == 1


def test_compressors_nest_in_all_that_aggregates():
    """Clipped, rotated as one vector, sketched, quantized, averaged: close to the mean, and of few bytes."""
    sketch = CountSketchFactory(400, 3, EncodedSumFactory(UniformQuantizer(12)))
    mean = UnweightedMeanFactory(concat_factory(HadamardTransformFactory(sketch)))
    process = zeroing_factory(1e3, clipping_factory(1e3, mean)).create(ko.types.parse("<float32[3000],float32[7]>"))
    value = (np.random.default_rng(1).normal(size=3000).astype(np.float32), np.ones(7, np.float32))
    output = process.next(process.initialize(), [value, value])
    measured = output.measurements["zeroing"]["clipping"]["mean_value"]["hd"]

    assert float(measured["bytes_per_client"]) == 400 * 3 * 12 / 8 + 8
    assert float(measured["count_sketch"]["uncompressed_bytes_per_client"]) == 400 * 3 * 4
    correlation = np.corrcoef(np.asarray(output.result[0]), value[0])[0, 1]
    assert correlation > 0.2  # 3007 numbers in 1200: far from exact, and far from nothing, which is below 0.1


def test_options_that_make_no_sense():
    """Classes for compressors, negative thresholds, integers, and seeds that are none."""
    with pytest.raises(TypeError, match="must be a compressor"):
        EncodedSumFactory(UniformQuantizer)
    with pytest.raises(ValueError, match="threshold"):
        EncodedSumFactory(UniformQuantizer(8), threshold=-1)
    with pytest.raises(TypeError, match="seed"):
        EncodedSumFactory(seed=0.5)
    with pytest.raises(TypeError, match="floating"):
        EncodedSumFactory().create(TensorType(jnp.int32))


def test_quantize_above_threshold_leaves_small_leaves():
    """TFF's name and constants: eight bits for more than 20,000 elements."""
    process = EncodedSumFactory.quantize_above_threshold().create(ko.types.parse("<float32[20000],float32[20001]>"))
    measured = process.next(process.initialize(), []).measurements

    assert float(measured["bytes_per_client"]) == 80_000 + 20_001 + 8


def test_a_weighted_mean_of_quantized_values_is_close():
    """To a level of the weighted values, for each of the two clients."""
    process = MeanFactory(EncodedSumFactory(UniformQuantizer(8))).create(
        TensorType(jnp.float32, (40,)), TensorType(jnp.float32)
    )
    values, weights = [client["large"] for client in CLIENTS[:2]], [3.0, 1.0]
    result = process.next(process.initialize(), values, weights).result
    levels = sum(w * (v.max() - v.min()) / 255 for v, w in zip(values, weights, strict=True))

    assert np.abs(np.asarray(result) - np.average(values, axis=0, weights=weights)).max() <= levels / 4
