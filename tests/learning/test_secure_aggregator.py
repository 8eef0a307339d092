"""`secure_aggregator`."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.errors import SecureSumRangeError, UnsupportedDTypeError
from koinon.learning import robust_aggregator, secure_aggregator
from koinon.types import TensorType

VECTOR, FLOAT = TensorType(jnp.float32, (2,)), TensorType(jnp.float32)
CLIENTS = [np.float32([0.3, 0.4]), np.float32([0.0, 2.0]), np.float32([1e6, 0.0]), np.float32([0.5, -0.5])]
WEIGHTS = [1.0, 2.0, 1.0, 3.0]
BROKEN = [np.float32([bad, 0.5]) for bad in (np.nan, np.inf, -np.inf)]


@pytest.fixture(scope="module")
def process():
    """With all that it has."""
    return secure_aggregator().create(VECTOR, FLOAT)


def test_everything_is_summed_securely():
    """Values, weights, counts and the bits of quantiles; whichever parts it has."""
    for arguments in ({}, {"zeroing": False}, {"clipping": False}, {"weighted": False}):
        types = (VECTOR,) if "weighted" in arguments else (VECTOR, FLOAT)
        process = secure_aggregator(**arguments).create(*types)

        ko.compiler.assert_no_unsecure_aggregation(process.next)
        ko.compiler.assert_no_collect(process.next)


def test_it_is_the_robust_mean_in_steps(process):
    """Over three rounds: the mean and the norms of the robust aggregator, and bounds that adapt at the rate of TFF."""
    robust = robust_aggregator().create(VECTOR, FLOAT)
    state, robust_state, bound = process.initialize(), robust.initialize(), 50.0
    for _ in range(3):
        output = process.next(state, CLIENTS, WEIGHTS)
        expected = robust.next(robust_state, CLIENTS, WEIGHTS)
        state, robust_state = output.state, expected.state
        measured = output.measurements["zeroing"]["clipping"]

        # A number is off by 2**-32 of its range, for each of four clients, and the weights sum to 7.
        np.testing.assert_allclose(output.result, expected.result, rtol=1e-6, atol=4 * 4 * bound / 2**32 / 7)
        for name in ("zeroing_norm", "zeroed_count"):
            assert float(output.measurements[name]) == float(expected.measurements[name])
        for name in ("clipping_norm", "clipped_count"):
            assert float(output.measurements["zeroing"][name]) == float(expected.measurements["zeroing"][name])
        np.testing.assert_allclose(measured["mean_value"]["secure_upper_threshold"], 2 * bound, rtol=1e-5)
        assert float(measured["mean_weight"]["secure_upper_threshold"]) == 2**20 - 1
        bound *= math.exp(-1.0 * (1.0 - 0.95))  # all numbers are below it


def test_a_client_that_is_not_finite_or_has_no_weight_leaves_no_trace(process):
    """Result, state and counts are bit for bit those without it, over rounds of adapting norms."""
    state = without = process.initialize()
    extra = [*BROKEN, CLIENTS[0], CLIENTS[1]]
    weights = [1.0, 0.0, 2.0, np.nan, 0.0]
    for _ in range(2):
        output = process.next(state, [*CLIENTS, *extra], [*WEIGHTS, *weights])
        expected = process.next(without, CLIENTS, WEIGHTS)
        state, without = output.state, expected.state

        assert np.asarray(output.result).tobytes() == np.asarray(expected.result).tobytes()
        assert str(state) == str(without)
        assert int(output.measurements["non_finite_clients"]) == 4
        assert str({**output.measurements, "non_finite_clients": 0}) == str(
            {**expected.measurements, "non_finite_clients": 0}
        )


@pytest.mark.soak
def test_a_cohort_of_nothing_gives_zeros(process):
    """Nobody, nobody who is finite, or no weight: nothing moves."""
    for values, weights in (([], []), (BROKEN, [1.0] * 3), (CLIENTS, [0.0] * 4)):
        output = process.next(process.initialize(), values, weights)

        np.testing.assert_array_equal(output.result, np.zeros(2))
        assert str(output.state) == str(process.initialize())


def test_a_negative_weight_is_an_error(process):
    """Not a client that counts backwards."""
    with pytest.raises(SecureSumRangeError, match="outside the declared range"):
        process.next(process.initialize(), CLIENTS, [1.0, -1.0, 1.0, 1.0])


@pytest.mark.soak
def test_a_product_that_is_too_large_is_left_out_with_its_weight():
    """Where neither zeroing nor clipping stops it, a finite value times its weight may be infinite."""
    plain = secure_aggregator(zeroing=False, clipping=False).create(VECTOR, FLOAT)
    output = plain.next(plain.initialize(), [CLIENTS[0], np.float32([3e38, 0.0])], [1.0, 2.0])

    np.testing.assert_allclose(output.result, CLIENTS[0], atol=100 / 2**31)
    assert int(output.measurements["non_finite_clients"]) == 1


@pytest.mark.soak
def test_the_unweighted_mean_counts_every_client_once(backend):
    """As if all weights were 1, on both engines."""
    types = [(VECTOR, FLOAT), (VECTOR,)]
    processes = [secure_aggregator(weighted=len(t) == 2).create(*t) for t in types]
    weights = [[1.0] * 5], []
    weighted, unweighted = (
        p.next(p.initialize(), [*CLIENTS, BROKEN[0]], *w) for p, w in zip(processes, weights, strict=True)
    )

    assert str(weighted) == str(unweighted)


def test_values_of_half_precision_are_refused():
    """As TFF does, since steps of 32 bits would not be seen."""
    with pytest.raises(UnsupportedDTypeError):
        secure_aggregator().create(TensorType(jnp.bfloat16), FLOAT)


@pytest.mark.soak
def test_a_model_is_trained_with_it():
    """Federated averaging where the server sees sums alone: its aggregator has no other."""
    model = ko.learning.models.functional(
        lambda weights, x: x @ weights,
        jnp.zeros(3),
        example_spec={"x": (jnp.float32, (3,)), "y": jnp.float32},
        loss=ko.learning.losses.squared_error,
    )
    rng = np.random.default_rng(0)
    truth = np.float32([1.0, -2.0, 0.5])
    clients = []
    for _ in range(8):
        x = rng.normal(size=(20, 3)).astype(np.float32)
        clients.append({"x": x, "y": x @ truth})
    train = ko.learning.algorithms.build_weighted_fed_avg(
        model, optax.sgd(0.1), batch_size=5, model_aggregator=secure_aggregator()
    )
    state = train.initialize()
    for _ in range(30):
        state, _ = train.next(state, clients)

    np.testing.assert_allclose(train.get_model_weights(state).trainable, truth, atol=1e-3)
