"""`GeometricMedianFactory` and `UnweightedGeometricMedianFactory`; see also `test_robust_contract.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.aggregators import GeometricMedianFactory, UnweightedGeometricMedianFactory
from koinon.aggregators._geometric_median import _geometric_median
from koinon.aggregators._rows import Rows
from koinon.types import TensorType

median = jax.jit(lambda m, n, w: _geometric_median(Rows(m, jnp.arange(len(m)), n, w), 100, 1e-6)[0])


def exact(points, weights):
    """Weiszfeld's iteration in float64, from the mean on, with a little smoothing that goes away."""
    points, weights = np.asarray(points, np.float64), np.asarray(weights, np.float64)
    center = np.average(points, axis=0, weights=weights)
    for smoothing in np.geomspace(1.0, 1e-12, 4000):
        pulls = weights / np.sqrt(((points - center) ** 2).sum(axis=1) + smoothing**2)
        center = np.average(points, axis=0, weights=pulls)
    return center


def total_distance(center, points, weights):
    """What the median makes least."""
    return float(np.average(np.linalg.norm(np.asarray(points, np.float64) - center, axis=1), weights=weights))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_point_of_the_least_total_distance(seed):
    """Like a long iteration in float64, for values in several dimensions with weights."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(8, 3)).astype(np.float32)
    points[5:] += 20 * rng.normal(size=3)
    count = 8 - seed % 3
    weights = rng.uniform(0.2, 2.0, 8).astype(np.float32)
    expected = exact(points[:count], weights[:count])
    found = np.asarray(median(points, count, weights))
    least = total_distance(expected, points[:count], weights[:count])

    assert total_distance(found, points[:count], weights[:count]) <= least * (1 + 1e-5)
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_it_leaves_a_point_that_is_the_coordinate_median_and_not_the_answer():
    """From a triangle's corner of less than 120 degrees, where an iteration that starts there would stay."""
    corners = np.float32([[0, 0], [1, 5], [-5, -1]])
    assert (np.median(corners, axis=0) == 0).all()
    directions = corners[1:] / np.linalg.norm(corners[1:], axis=1)[:, None]
    assert directions[0] @ directions[1] > -0.5  # an angle of less than 120 degrees
    found = np.asarray(median(np.pad(corners, ((0, 5), (0, 1))), 3, np.ones(8, np.float32)))[:2]

    np.testing.assert_allclose(found, exact(corners, np.ones(3)), atol=1e-4)


def test_it_turns_with_the_values():
    """Rotation and translation of all values are those of the result, in a hundred random cases."""
    rng = np.random.default_rng(3)
    ones = np.ones(8, np.float32)
    for _ in range(100):
        points = rng.normal(size=(8, 3)).astype(np.float32)
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        moved = (points @ rotation + 2.0).astype(np.float32)

        np.testing.assert_allclose(median(moved, 8, ones), median(points, 8, ones) @ rotation + 2.0, atol=1e-3)


@pytest.mark.parametrize("bad", [1e6, 1e30, 3e38])
def test_it_breaks_down_at_half_of_the_weight(bad):
    """Corrupted clients anywhere do not move it far while they have less than half of the weight, however many."""
    rng = np.random.default_rng(4)
    points = rng.normal(size=(8, 3)).astype(np.float32)
    points[5:] = bad * rng.choice([-1, 1], (3, 3))
    far = np.linalg.norm(np.asarray(median(points, 8, np.ones(8, np.float32)), np.float64))
    lost = np.linalg.norm(np.asarray(median(points, 8, np.float32([1] * 5 + [9] * 3)), np.float64))

    assert far < 10.0
    if bad < 1e38:  # a distance beyond the range of float32 counts for nothing
        assert lost > 1e4


def test_weights_are_how_often_a_client_counts():
    """A weight of two is as good as two clients; one of zero or less, or not a number, is no client."""
    factory = GeometricMedianFactory()
    weighted = factory.create(TensorType(jnp.float32, (2,)), TensorType(jnp.float32))
    unweighted = UnweightedGeometricMedianFactory().create(TensorType(jnp.float32, (2,)))
    points = [np.float32(p) for p in ([0, 0], [1, 3], [5, -2], [2, 2])]
    output = weighted.next(
        weighted.initialize(),
        [*points, points[0] + 9, points[0] + 9, points[0]],
        [2.0, 1.0, 1.0, 1.0, 0.0, -1.0, np.nan],
    )
    expected = unweighted.next(unweighted.initialize(), [points[0], *points]).result

    np.testing.assert_allclose(output.result, expected, atol=1e-4)
    assert int(output.measurements["non_finite_clients"]) == 1


@pytest.mark.parametrize("factory", [GeometricMedianFactory, UnweightedGeometricMedianFactory])
def test_arguments_out_of_range_are_refused(factory):
    """At least one step, and a smoothing that is positive."""
    for arguments in ({"max_iterations": 0}, {"smoothing": 0.0}, {"smoothing": float("nan")}):
        with pytest.raises(ValueError, match="must be positive"):
            factory(**arguments)
    for arguments in ({"max_iterations": 1.0}, {"max_iterations": True}, {"smoothing": 1}):
        with pytest.raises(TypeError, match="must be a"):
            factory(**arguments)


@pytest.mark.parametrize("weight_type", [TensorType(jnp.float32, (2,)), TensorType(jnp.bool_)], ids=str)
def test_a_weight_is_one_number(weight_type):
    """As for a mean."""
    with pytest.raises(TypeError, match="must be one number"):
        GeometricMedianFactory().create(TensorType(jnp.float32), weight_type)
