"""`PrivateQuantileEstimationProcess`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from koinon.aggregators import MeanFactory, PrivateQuantileEstimationProcess, SumFactory, add_measurements
from koinon.templates import EstimationProcess

no_noise = PrivateQuantileEstimationProcess.no_noise


def update(estimate, values, quantile, rate):
    """C * exp(-rate * (fraction at most C - quantile))."""
    return estimate * math.exp(-rate * (np.mean(np.asarray(values) <= estimate) - quantile))


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("values", [[0.1, 0.2], [1.5, 7.0], [0.5, 1.0, 2.0, 3.0], [1.0]])
def test_a_round_moves_the_estimate_by_the_fraction_below(backend, values, secure):
    """One geometric update, the same with and without a secure sum; a number equal to the estimate counts as below."""
    process = no_noise(1.0, 0.5, 0.2, secure_estimation=secure)
    state = process.next(process.initialize(), values)

    np.testing.assert_allclose(process.report(state), update(1.0, values, 0.5, 0.2), rtol=1e-6)


@pytest.mark.parametrize("quantile", [0.0, 0.25, 0.9, 1.0])
def test_many_rounds_follow_the_formula(backend, quantile):
    """The estimate is carried in the state from round to round."""
    values = [0.3, 0.9, 1.4, 6.0]
    process = no_noise(2.0, quantile, 0.1)
    state, expected = process.initialize(), 2.0
    for _ in range(6):
        state = process.next(state, values)
        expected = update(expected, values, quantile, 0.1)

    np.testing.assert_allclose(process.report(state), expected, rtol=1e-5)


def test_the_estimate_comes_to_the_quantile():
    """After enough rounds it stays within a step of it."""
    values = np.random.default_rng(0).lognormal(size=101).astype(np.float32)
    rate = 0.05
    process = no_noise(1.0, 0.8, rate)
    state = process.initialize()
    for _ in range(200):
        state = process.next(state, list(values))
    reached, wanted = float(process.report(state)), float(np.quantile(values, 0.8))

    assert abs(math.log(reached / wanted)) < 2 * rate


def test_a_round_without_clients_changes_nothing(backend):
    """There is no fraction of nothing."""
    process = no_noise(1.5, 0.5, 0.2)

    assert float(process.report(process.next(process.initialize(), []))) == 1.5


def test_a_number_that_is_not_finite_leaves_the_estimate_finite(backend):
    """Infinity counts as above, minus infinity as below, NaN not at all."""
    process = no_noise(1.0, 0.5, 0.2)
    state = process.next(process.initialize(), [np.nan, np.inf, -np.inf, 0.5])

    np.testing.assert_allclose(process.report(state), math.exp(-0.2 * (2 / 3 - 0.5)), rtol=1e-6)


def test_the_report_may_be_an_affine_function_of_the_quantile(backend):
    """It is multiplier * C + increment, while C itself is updated as before."""
    process = no_noise(1.0, 0.5, 0.2, multiplier=3.0, increment=0.25)
    state = process.next(process.initialize(), [0.5, 0.6])

    assert float(process.report(process.initialize())) == 3.25
    np.testing.assert_allclose(process.report(state), 3.0 * math.exp(-0.1) + 0.25, rtol=1e-6)


def test_the_types_are_those_of_an_estimation_of_norms():
    """float32 at the clients in, float32 at the server out."""
    process = no_noise(1.0, 0.5, 0.2)

    assert isinstance(process, EstimationProcess)
    assert str(process.next.type_signature) == (
        "(<state=<current_estimate=float32,record_agg=<>>@SERVER,value={float32}@CLIENTS>"
        " -> <current_estimate=float32,record_agg=<>>@SERVER)"
    )
    assert str(process.report.type_signature.result) == "float32@SERVER"


def test_clients_send_two_bits_through_the_aggregation_of_choice(backend):
    """The record aggregation sees how many are below, and how many there are, and nothing else."""
    seen = []
    told = add_measurements(
        SumFactory(), server_measurement_fn=lambda total: seen.append(total.type_signature) or {"total": total}
    )
    process = PrivateQuantileEstimationProcess(1.0, 0.5, 0.2, told)
    state = process.next(process.initialize(), [0.5, 2.0, 3.0])

    assert str(seen[0]) == "<below=int32,count=int32>@SERVER"
    np.testing.assert_allclose(process.report(state), update(1.0, [0.5, 2.0, 3.0], 0.5, 0.2), rtol=1e-6)


GOOD = {"initial_estimate": 1.0, "target_quantile": 0.5, "learning_rate": 0.2, "multiplier": 1.0, "increment": 0.0}


@pytest.mark.parametrize("name", GOOD)
def test_an_int_is_no_float(name):
    """Every number is a float, as in TFF."""
    with pytest.raises(TypeError, match=f"`{name}` must be a float"):
        no_noise(**(GOOD | {name: 1}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("initial_estimate", 0.0),
        ("initial_estimate", -1.0),
        ("target_quantile", -0.1),
        ("target_quantile", 1.1),
        ("target_quantile", math.nan),
        ("learning_rate", 0.0),
        ("multiplier", 0.0),
        ("increment", -0.5),
    ],
)
def test_a_number_out_of_its_range_is_refused(name, value):
    """Each number has a range."""
    with pytest.raises(ValueError, match=f"`{name}` must"):
        no_noise(**(GOOD | {name: value}))


def test_the_other_arguments_have_types_too():
    """The choice of the sum is a bool, the aggregation an unweighted factory."""
    with pytest.raises(TypeError, match="secure_estimation"):
        no_noise(1.0, 0.5, 0.2, secure_estimation=1)
    with pytest.raises(TypeError, match="record_aggregation_factory"):
        PrivateQuantileEstimationProcess(1.0, 0.5, 0.2, MeanFactory())
