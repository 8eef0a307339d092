"""`excluding_non_finite_factory`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from koinon.aggregators import (
    EncodedSumFactory,
    MeanFactory,
    PrivateQuantileEstimationProcess,
    UniformQuantizer,
    UnweightedMeanFactory,
    clipping_factory,
    excluding_non_finite_factory,
    zeroing_factory,
)
from koinon.types import TensorType

VECTOR, FLOAT = TensorType(jnp.float32, (2,)), TensorType(jnp.float32)
CLIENTS = [np.float32([3.0, 4.0]), np.float32([0.1, -0.7])]
WEIGHTS = [2.0, 1.0]
BAD_VALUES = [np.float32([bad, 1.0]) for bad in (np.nan, np.inf, -np.inf)]


def nested():
    """Zeroing and clipping by quantiles around a mean."""
    norm = PrivateQuantileEstimationProcess.no_noise(1.0, 0.8, 0.2)
    bounded = zeroing_factory(norm, clipping_factory(norm, MeanFactory(no_nan_division=True)))
    return excluding_non_finite_factory(bounded).create(VECTOR, FLOAT)


def test_a_client_that_is_not_finite_leaves_no_trace(backend):
    """Result, state and counts are bit for bit those without it, over rounds of adapting norms."""
    process = nested()
    state = without = process.initialize()
    for _ in range(3):
        output = process.next(state, [*CLIENTS, *BAD_VALUES, CLIENTS[0]], [*WEIGHTS, 1.0, 1.0, 1.0, np.nan])
        expected = process.next(without, CLIENTS, WEIGHTS)
        state, without = output.state, expected.state

        np.testing.assert_array_equal(output.result, expected.result)
        assert str(state) == str(without)
        assert int(output.measurements["zeroed_count"]) == int(expected.measurements["zeroed_count"])
        assert int(output.measurements["non_finite_clients"]) == 4
        assert int(expected.measurements["non_finite_clients"]) == 0


def test_a_client_of_weight_zero_is_an_absent_client(backend):
    """It is neither counted nor seen by the norms."""
    process = nested()
    with_it = process.next(process.initialize(), [*CLIENTS, np.float32([1e9, 0.0])], [*WEIGHTS, 0.0])
    without = process.next(process.initialize(), CLIENTS, WEIGHTS)

    assert str(with_it) == str(without)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MeanFactory(no_nan_division=True),
        lambda: MeanFactory(EncodedSumFactory(UniformQuantizer(8, stochastic=False)), no_nan_division=True),
    ],
    ids=["mean", "compressed mean"],
)
def test_a_weighted_value_that_overflows_is_left_out_with_its_weight(make):
    """Neither infinity for everyone, nor its weight in the mean without its value; a heavy value that fits counts."""
    process = excluding_non_finite_factory(make()).create(VECTOR, FLOAT)
    heavy = [*WEIGHTS, np.float32(1e37)]
    with_it = process.next(process.initialize(), [*CLIENTS, np.float32([30.0, 400.0])], heavy)
    without = process.next(process.initialize(), CLIENTS, WEIGHTS)
    fits = process.next(process.initialize(), [*CLIENTS, np.float32([1.0, 2.0])], heavy)

    np.testing.assert_array_equal(with_it.result, without.result)
    assert int(with_it.measurements["non_finite_clients"]) == 1
    np.testing.assert_allclose(fits.result, [1.0, 2.0], rtol=0.02)  # the others weigh nothing beside 1e37
    assert int(fits.measurements["non_finite_clients"]) == 0


def test_half_precision_is_not_left_out_for_its_weight():
    """A product beyond float16 is one that clipping inside may still make small."""
    clipped = clipping_factory(1.0, MeanFactory(no_nan_division=True))
    process = excluding_non_finite_factory(clipped).create(TensorType(jnp.float16, (1,)), FLOAT)
    output = process.next(process.initialize(), [np.float16([1000.0])], [100.0])

    assert int(output.measurements["non_finite_clients"]) == 0
    assert float(output.result[0]) == pytest.approx(1.0, rel=2e-3)


def test_a_cohort_of_nothing_gives_zeros(backend):
    """Where all are left out, or there is nobody, nothing moves."""
    process = nested()
    for values in ([], BAD_VALUES):
        output = process.next(process.initialize(), values, [1.0] * len(values))

        np.testing.assert_array_equal(output.result, np.zeros(2))
        assert int(output.measurements["non_finite_clients"]) == len(values)
        assert str(output.state) == str(process.initialize())


def test_the_type_has_one_measurement_more():
    """The state is that of the inner aggregation."""
    process = excluding_non_finite_factory(MeanFactory()).create(VECTOR, FLOAT)

    assert str(process.next.type_signature) == (
        "(<state=<value_sum_process=<>,weight_sum_process=<>>@SERVER,value={float32[2]}@CLIENTS,"
        "weight={float32}@CLIENTS> -> <state=<value_sum_process=<>,weight_sum_process=<>>@SERVER,"
        "result=float32[2]@SERVER,measurements=<mean_value=<>,mean_weight=<>,non_finite_clients=int32>@SERVER>)"
    )


def test_the_inner_aggregation_has_weights():
    """An unweighted one cannot leave a client out."""
    with pytest.raises(TypeError, match="must be weighted"):
        excluding_non_finite_factory(UnweightedMeanFactory())
