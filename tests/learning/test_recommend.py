"""`robust_aggregator`, `compression_aggregator` and `dp_aggregator`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.learning import add_debug_measurements, compression_aggregator, dp_aggregator, robust_aggregator
from koinon.privacy import FixedSizeSampling, NoSampling, PoissonSampling
from koinon.types import TensorType

VECTOR, FLOAT = TensorType(jnp.float32, (2,)), TensorType(jnp.float32)
CLIENTS = [np.float32([0.3, 0.4]), np.float32([0.0, 2.0]), np.float32([1e6, 0.0])]
BROKEN = np.float32([np.nan, 0.0])


def first_round(factory, values, *weights):
    """The output of the first round."""
    types = [VECTOR] + [FLOAT] * len(weights)
    process = factory.create(*types)
    return process.next(process.initialize(), values, *weights)


def test_the_robust_mean_zeroes_and_clips_with_the_constants_of_tff():
    """Zeroing at 2 * 10 + 1, clipping at 1; what is zeroed counts in the mean, what is no number does not."""
    output = first_round(robust_aggregator(), [*CLIENTS, BROKEN], [1.0, 2.0, 1.0, 5.0])
    clipped = (1.0 * CLIENTS[0] + 2.0 * np.float32([0.0, 1.0])) / 4.0

    np.testing.assert_allclose(output.result, clipped, rtol=1e-6)
    assert float(output.measurements["zeroing_norm"]) == 21.0
    assert float(output.measurements["zeroing"]["clipping_norm"]) == 1.0
    assert int(output.measurements["zeroed_count"]) == 1
    assert int(output.measurements["zeroing"]["clipped_count"]) == 1
    assert int(output.measurements["non_finite_clients"]) == 1


def test_the_norms_of_the_robust_mean_adapt_at_the_rates_of_tff():
    """Rates ln 10 and 0.2 towards the quantiles 0.98 and 0.8."""
    process = robust_aggregator().create(VECTOR, FLOAT)
    state = process.next(process.initialize(), CLIENTS, [1.0] * 3).state
    # All norms but one are below 10, and two of three are below 1 after zeroing.
    zeroing = 10.0 * math.exp(-math.log(10.0) * (2 / 3 - 0.98))
    clipping = 1.0 * math.exp(-0.2 * (2 / 3 - 0.8))
    measured = process.next(state, CLIENTS, [1.0] * 3).measurements

    np.testing.assert_allclose(measured["zeroing_norm"], 2.0 * zeroing + 1.0, rtol=1e-5)
    np.testing.assert_allclose(measured["zeroing"]["clipping_norm"], clipping, rtol=1e-5)


def test_the_unweighted_mean_counts_every_client_once():
    """As if all weights were 1."""
    with_weights = first_round(robust_aggregator(), [*CLIENTS, BROKEN], [1.0] * 4)
    without = first_round(robust_aggregator(weighted=False), [*CLIENTS, BROKEN])

    assert isinstance(robust_aggregator(weighted=False), ko.aggregators.UnweightedAggregationFactory)
    np.testing.assert_array_equal(without.result, with_weights.result)
    assert int(without.measurements["non_finite_clients"]) == 1


def test_parts_can_be_left_out_and_looked_into():
    """Without zeroing and clipping it is the mean; debug measurements are those of the mean inside."""
    output = first_round(robust_aggregator(zeroing=False, clipping=False), CLIENTS[:2], [1.0, 3.0])
    np.testing.assert_allclose(output.result, (CLIENTS[0] + 3 * CLIENTS[1]) / 4, rtol=1e-6)

    process = robust_aggregator(debug_measurements_fn=add_debug_measurements).create(VECTOR, FLOAT)
    assert "average_client_norm" in str(process.next.type_signature.result)


def test_the_private_mean_zeroes_and_leaves_out():
    """Absurd values count as zero, values that are no numbers not at all: the state is the same without them."""
    process = dp_aggregator(0.01, 10, seed=1).create(VECTOR)
    output = process.next(process.initialize(), [*CLIENTS, BROKEN])
    without = process.next(process.initialize(), CLIENTS)

    np.testing.assert_array_equal(output.result, without.result)
    for one, other in zip(jax.tree.leaves(output.state), jax.tree.leaves(without.state), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(output.measurements["zeroed_count"]) == 1
    assert int(output.measurements["zeroing"]["non_finite_clients"]) == 1
    clipped = (CLIENTS[0] / 0.5 * 0.1 + np.float32([0.0, 0.1])) / 10
    np.testing.assert_allclose(output.result, clipped, atol=4 * 0.01 * 0.1 / 10)


@pytest.mark.parametrize("sampling", [PoissonSampling(0.01), NoSampling()])
def test_a_budget_is_met_in_its_last_round_and_not_before(sampling):
    """The noise is calibrated: epsilon is reached after as many rounds as were asked for, in measurements too."""
    pytest.importorskip("dp_accounting")
    rounds, epsilon = 4, 2.0
    factory = dp_aggregator(clients_per_round=100, epsilon=epsilon, delta=1e-6, rounds=rounds, sampling=sampling)
    process = factory.create(FLOAT)
    state, spent = process.initialize(), []
    for _ in range(rounds):
        state, _, measured = process.next(state, [0.05, 0.2])
        spent.append(float(measured["privacy_spent"]["epsilon"]))

    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(epsilon, rel=1e-4)
    assert ko.aggregators.privacy_spent(state, 1e-6, sampling) == pytest.approx(spent[-1], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "zeroes"),
    [
        ({"noise_multiplier": 1.0}, True),
        ({"noise_multiplier": 1.0, "zeroing": False}, False),
        ({"epsilon": 2.0, "delta": 1e-6, "rounds": 4}, False),
        ({"epsilon": 2.0, "delta": 1e-6, "rounds": 4, "zeroing": True}, True),
    ],
)
def test_what_no_epsilon_covers_is_left_out_where_one_is_asked_for(arguments, zeroes):
    """The norm of zeroing has no noise: unprotected in the report, and there by default only where TFF has it."""
    pytest.importorskip("dp_accounting")
    process = dp_aggregator(clients_per_round=100, **arguments).create(FLOAT)
    unprotected = [row.path for row in ko.compiler.privacy_report(process.next).unprotected]

    assert ("zeroed_count" in str(process.next.type_signature.result)) == zeroes
    assert any("zeroing_norm" in path for path in unprotected) == zeroes


def test_a_fixed_cohort_tells_how_many_clients_there_are():
    """And its epsilon is that of replacing a client."""
    pytest.importorskip("dp_accounting")
    factory = dp_aggregator(5.0, delta=1e-6, sampling=FixedSizeSampling(50, 1000), zeroing=False)
    process = factory.create(FLOAT)
    output = process.next(process.initialize(), [0.05] * 2)
    expected = ko.privacy.compute_epsilon(5.0, 1, 1e-6, FixedSizeSampling(50, 1000))

    assert float(output.measurements["privacy_spent"]["epsilon"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_multiplier": 1.0}, "what the sum is divided by"),
        ({"clients_per_round": 100}, "noise must be given"),
        ({"clients_per_round": 100, "epsilon": 1.0, "delta": 1e-5}, "noise must be given"),
        ({"clients_per_round": 100, "noise_multiplier": 1.0, "epsilon": 1.0}, "Either the noise"),
        ({"clients_per_round": 100, "noise_multiplier": 1}, "must be a float"),
    ],
)
def test_the_noise_is_given_in_one_way(arguments, message):
    """Too little and too much are refused."""
    with pytest.raises(TypeError, match=message):
        dp_aggregator(**arguments)


@pytest.mark.soak
def test_federated_averaging_learns_with_privacy():
    """A linear model is learned from 200 clients with an epsilon of 8; the events of its state say so."""
    pytest.importorskip("dp_accounting")
    rng = np.random.default_rng(0)
    true = np.float32([1.0, -2.0, 0.5])
    data = []
    for _ in range(200):
        x = rng.normal(size=(10, 3)).astype(np.float32)
        data.append({"x": x, "y": x @ true})
    model = ko.learning.models.functional(
        lambda weights, x: x @ weights,
        jnp.zeros(3),
        example_spec={"x": (jnp.float32, (3,)), "y": jnp.float32},
        loss=ko.learning.losses.squared_error,
    )
    aggregator = dp_aggregator(clients_per_round=200, epsilon=8.0, delta=1e-6, rounds=30, sampling=NoSampling(), seed=0)
    process = ko.learning.algorithms.build_unweighted_fed_avg(
        model, optax.sgd(0.05), batch_size=5, model_aggregator=aggregator
    )
    state = process.initialize()
    for _ in range(30):
        state, metrics = process.next(state, data)

    assert float(metrics["aggregator"]["privacy_spent"]["epsilon"]) == pytest.approx(8.0, rel=1e-4)
    assert ko.aggregators.privacy_spent(state, 1e-6) == pytest.approx(8.0, rel=1e-4)
    np.testing.assert_allclose(process.get_model_weights(state).trainable, true, atol=0.25)


def test_compression_is_the_robust_mean_in_a_quarter_of_the_bytes():
    """Eight bits above 20,000 elements, as TFF has them; to a level of the robust mean; with and without weights."""
    value_type = ko.types.parse("<large=float32[20001],small=float32[20000]>")
    rng = np.random.default_rng(0)
    values = [{"large": rng.normal(size=20001), "small": rng.normal(size=20000)} for _ in range(2)]
    values = [jax.tree.map(lambda leaf: (0.003 * leaf).astype(np.float32), value) for value in values]
    broken = values[0] | {"large": np.full(20001, np.nan, np.float32)}
    for weighted in (True, False):
        types, weights = ([FLOAT], [[3.0, 1.0, 1.0]]) if weighted else ([], [])
        outputs = []
        for make in (compression_aggregator, robust_aggregator):
            process = make(weighted=weighted, debug_measurements_fn=add_debug_measurements).create(value_type, *types)
            outputs.append(process.next(process.initialize(), [*values, broken], *weights))
        compressed, exact = outputs
        measured = compressed.measurements["zeroing"]["clipping"]
        level = max(np.ptp(value["large"]) for value in values) / 255

        assert float(measured["mean_value"]["bytes_per_client"]) == 20001 + 8 + 80000
        assert int(compressed.measurements["non_finite_clients"]) == 1
        assert np.abs(compressed.result["large"] - exact.result["large"]).max() <= level
        np.testing.assert_array_equal(compressed.result["small"], exact.result["small"])
        assert "server_update_norm" in measured
