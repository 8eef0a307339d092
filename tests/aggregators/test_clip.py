"""`clipping_factory` and `zeroing_factory`."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.aggregators import (
    MeanFactory,
    PrivateQuantileEstimationProcess,
    SumFactory,
    clipping_factory,
    zeroing_factory,
)
from koinon.templates import EstimationProcess
from koinon.types import TensorType, at_clients, at_server, to_type

FLOAT, INT = TensorType(jnp.float32), TensorType(jnp.int32)
VECTOR = TensorType(jnp.float32, (2,))
# The norms of these are 0, 5, 10 and 13.
CLIENTS = [np.float32(v) for v in ([0, 0], [3, 4], [6, 8], [5, 12])]


def run(process, *arguments):
    """The output of the first step."""
    return process.next(process.initialize(), *arguments)


def l2_clip(value, norm):
    """The textbook formula."""
    length = np.linalg.norm(value)
    return value * min(1.0, norm / length) if length > 0 else value


@pytest.mark.parametrize("norm", [0.0, 5.0, 7.0])
def test_values_are_scaled_down_to_the_norm(backend, norm):
    """The value times min(1, norm / ||value||), summed; the clients beyond the norm are counted."""
    output = run(clipping_factory(norm, SumFactory()).create(VECTOR), CLIENTS)

    np.testing.assert_allclose(output.result, sum(l2_clip(v, norm) for v in CLIENTS), rtol=1e-6)
    assert float(output.measurements["clipping_norm"]) == norm
    assert int(output.measurements["clipped_count"]) == sum(np.linalg.norm(v) > norm for v in CLIENTS)


def test_a_value_within_the_norm_is_passed_on_bit_by_bit(backend):
    """Clipping does not touch what it does not clip."""
    value = np.float32([0.1, 0.7])
    output = run(clipping_factory(1.0, SumFactory()).create(VECTOR), [value])

    np.testing.assert_array_equal(output.result, value)


def test_the_norm_is_over_all_leaves_together(backend):
    """A structure is clipped like the vector of all its elements, each leaf in its own dtype."""
    value_type = to_type({"a": TensorType(jnp.float16, (2,)), "b": {"c": FLOAT}})
    client = {"a": np.float16([4.0, 4.0]), "b": {"c": np.float32(2.0)}}
    output = run(clipping_factory(3.0, SumFactory()).create(value_type), [client])

    np.testing.assert_allclose(output.result["a"], [2.0, 2.0])
    np.testing.assert_allclose(output.result["b"]["c"], 1.0)
    assert output.result["a"].dtype == jnp.float16


def test_a_huge_value_is_clipped_to_the_norm_and_not_to_zero(backend):
    """Numbers whose squares overflow still have a direction."""
    output = run(clipping_factory(5.0, SumFactory()).create(VECTOR), [np.float32([6e30, 8e30])])

    np.testing.assert_allclose(output.result, [3.0, 4.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("order", "norms"),
    [(1.0, [0, 7, 14, 17]), (2.0, [0, 5, 10, 13]), (math.inf, [0, 4, 8, 12])],
)
@pytest.mark.parametrize("bound", [5.0, 8.0])
def test_values_beyond_the_norm_are_zeroed(backend, order, norms, bound):
    """Those at the norm are kept, in each of the three norms."""
    output = run(zeroing_factory(bound, SumFactory(), order).create(VECTOR), CLIENTS)

    expected = sum((v for v, norm in zip(CLIENTS, norms, strict=True) if norm <= bound), np.zeros(2))
    np.testing.assert_array_equal(output.result, expected)
    assert int(output.measurements["zeroed_count"]) == sum(norm > bound for norm in norms)
    assert float(output.measurements["zeroing_norm"]) == bound


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_zeroed(backend, bad):
    """No norm admits it, so one broken client spoils no sum."""
    clients = [np.float32([1.0, 2.0]), np.float32([1.0, bad])]
    output = run(zeroing_factory(10.0, SumFactory()).create(VECTOR), clients)

    np.testing.assert_array_equal(output.result, [1.0, 2.0])
    assert int(output.measurements["zeroed_count"]) == 1


def test_clipping_passes_on_what_has_no_norm(backend):
    """NaN in, NaN out: only zeroing removes it."""
    output = run(clipping_factory(1.0, SumFactory()).create(FLOAT), [np.nan, 0.5])

    assert np.isnan(output.result)
    assert int(output.measurements["clipped_count"]) == 0


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_one_nan_among_many_numbers_is_zeroed(backend, order):
    """As many as a layer has, of which `jnp.max` overlooks one."""
    large = TensorType(jnp.float32, (20_000,))
    clients = [np.full(20_000, 1e-3 * number, np.float32) for number in (1, 2, 3)]
    clients[1][11] = np.nan

    output = run(zeroing_factory(1e3, SumFactory(), norm_order=order).create(large), clients)

    assert int(output.measurements["zeroed_count"]) == 1
    np.testing.assert_allclose(output.result, np.full(20_000, 4e-3), rtol=1e-6)


def test_the_weight_of_a_zeroed_client_stays(backend):
    """Its zero takes part in the mean."""
    output = run(zeroing_factory(1.0, MeanFactory()).create(FLOAT, FLOAT), [1.0, 9.0], [1.0, 3.0])

    assert float(output.result) == (1.0 * 1.0 + 0.0 * 3.0) / (1.0 + 3.0)


def test_the_weight_of_a_clipped_client_stays(backend):
    """Clipping bounds the value, not the weight."""
    output = run(clipping_factory(2.0, MeanFactory()).create(FLOAT, INT), [1.0, 9.0], [1, 3])

    assert float(output.result) == (1.0 * 1 + 2.0 * 3) / (1 + 3)


def test_state_and_measurements_have_the_names_of_the_interface():
    """They are what monitoring and checkpoints refer to."""
    clipped = clipping_factory(1.0, MeanFactory()).create(FLOAT, FLOAT).next.type_signature.result
    zeroed = zeroing_factory(1.0, SumFactory()).create(FLOAT).next.type_signature.result

    assert str(clipped["state"]) == (
        "<clipping_norm=<>,inner_agg=<value_sum_process=<>,weight_sum_process=<>>,clipped_count_agg=<>>@SERVER"
    )
    assert str(clipped["measurements"]) == (
        "<clipping=<mean_value=<>,mean_weight=<>>,clipping_norm=float32,clipped_count=int32>@SERVER"
    )
    assert str(zeroed["state"]) == "<zeroing_norm=<>,inner_agg=<>,zeroed_count_agg=<>>@SERVER"
    assert str(zeroed["measurements"]) == "<zeroing=<>,zeroing_norm=float32,zeroed_count=int32>@SERVER"


def test_an_adaptive_norm_is_used_and_reported_before_it_is_updated(backend):
    """Every round clips to, and measures, the norm of the state that it was given."""
    quantile, rate = 0.5, 0.2
    norm = PrivateQuantileEstimationProcess.no_noise(6.0, quantile, rate)
    process = clipping_factory(norm, SumFactory()).create(VECTOR)
    state, expected = process.initialize(), 6.0
    for _ in range(3):
        output = process.next(state, CLIENTS)
        state = output.state

        np.testing.assert_allclose(output.measurements["clipping_norm"], expected, rtol=1e-6)
        np.testing.assert_allclose(output.result, sum(l2_clip(v, expected) for v in CLIENTS), rtol=1e-5)
        below = np.mean([np.linalg.norm(v) <= expected for v in CLIENTS])
        expected *= np.exp(-rate * (below - quantile))


def test_the_norms_given_to_the_estimation_are_those_before_clipping(backend):
    """Otherwise the estimate could not grow beyond itself."""
    sum_of_norms = EstimationProcess(
        ko.federated_computation(lambda: ko.federated_value(1.0, ko.SERVER)),
        ko.federated_computation(at_server(FLOAT), at_clients(FLOAT))(lambda s, norms: ko.federated_sum(norms)),
        ko.federated_computation(at_server(FLOAT))(lambda s: s),
    )
    for factory, total in ((clipping_factory, 28.0), (zeroing_factory, 24.0)):
        output = run(factory(sum_of_norms, SumFactory()).create(VECTOR), CLIENTS)
        name = "clipping_norm" if factory is clipping_factory else "zeroing_norm"

        np.testing.assert_allclose(output.state[name], total, rtol=1e-6)


def test_bounds_nest(backend):
    """Zeroing outside clipping outside a mean, as the recommended aggregators do."""
    factory = zeroing_factory(9.0, clipping_factory(2.0, MeanFactory()))
    output = run(factory.create(FLOAT, FLOAT), [1.0, 5.0, 100.0], [1.0, 1.0, 2.0])

    assert float(output.result) == (1.0 + 2.0 + 0.0 * 2.0) / 4.0
    assert int(output.measurements["zeroed_count"]) == 1
    assert int(output.measurements["zeroing"]["clipped_count"]) == 1


def test_no_client_leaves_sums_of_nothing(backend):
    """An empty cohort is neither clipped nor zeroed."""
    output = run(zeroing_factory(1.0, clipping_factory(1.0, SumFactory())).create(VECTOR), [])

    np.testing.assert_array_equal(output.result, np.zeros(2))
    assert int(output.measurements["zeroed_count"]) == 0


def estimation(norm_type=FLOAT, report_type=FLOAT, multi=True, extra_result=False):
    """An estimation process of a given shape."""
    initialize = ko.federated_computation(lambda: ko.federated_value(1.0, ko.SERVER))
    state = at_server(FLOAT)
    if not multi:
        next_fn = ko.federated_computation(state)(lambda s: s)
    elif extra_result:
        next_fn = ko.federated_computation(state, at_clients(norm_type))(lambda s, norms: (s, s))
    else:
        next_fn = ko.federated_computation(state, at_clients(norm_type))(lambda s, norms: s)
    report = ko.federated_computation(state)(lambda s: ko.federated_map(lambda x: x.astype(report_type.dtype), s))
    return EstimationProcess(initialize, next_fn, report)


@pytest.mark.parametrize("factory", [clipping_factory, zeroing_factory])
@pytest.mark.parametrize(
    ("process", "message"),
    [
        (lambda: estimation(multi=False), "must take two arguments"),
        (lambda: estimation(norm_type=INT), "must take the clients' norms"),
        (lambda: estimation(extra_result=True), "must return its state and nothing else"),
        (lambda: estimation(report_type=INT), "must report one float32 at the server"),
    ],
)
def test_an_estimation_of_another_shape_is_refused(factory, process, message):
    """It takes float32 norms at the clients and reports one at the server."""
    with pytest.raises(TypeError, match=message):
        factory(process(), SumFactory())


@pytest.mark.parametrize("factory", [clipping_factory, zeroing_factory])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, SumFactory()), TypeError, "must be a float or an EstimationProcess"),
        (("1.0", SumFactory()), TypeError, "must be a float or an EstimationProcess"),
        ((-1.0, SumFactory()), ValueError, "must not be negative"),
        ((math.nan, SumFactory()), ValueError, "must not be negative"),
        ((1.0, SumFactory), TypeError, "must be a factory of aggregations"),
    ],
)
def test_arguments_out_of_range_are_refused(factory, arguments, error, message):
    """A norm is a non-negative float, the inner aggregation a factory."""
    with pytest.raises(error, match=message):
        factory(*arguments)


def test_the_count_is_summed_by_an_unweighted_factory():
    """The count has no weights."""
    with pytest.raises(TypeError, match="clipped_count_sum_factory"):
        clipping_factory(1.0, SumFactory(), MeanFactory())
    with pytest.raises(TypeError, match="zeroed_count_sum_factory"):
        zeroing_factory(1.0, SumFactory(), zeroed_count_sum_factory=MeanFactory())


@pytest.mark.parametrize(("order", "error"), [(2, TypeError), (3.0, ValueError), (math.nan, ValueError)])
def test_there_are_three_norms(order, error):
    """An int is no order, and 3 is no norm that is offered."""
    with pytest.raises(error):
        zeroing_factory(1.0, SumFactory(), order)


@pytest.mark.parametrize("factory", [clipping_factory, zeroing_factory])
def test_only_floats_have_a_norm(factory):
    """Integers are refused when the process is made."""
    with pytest.raises(TypeError, match="floating dtypes only"):
        factory(1.0, SumFactory()).create(INT)
