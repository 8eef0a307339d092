"""`MeanFactory` and `UnweightedMeanFactory`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from koinon.aggregators import MeanFactory, SumFactory, UnweightedMeanFactory, add_measurements
from koinon.types import TensorType, to_type

FLOAT, INT = TensorType(jnp.float32), TensorType(jnp.int32)


def run(process, *arguments):
    """The output of the first step."""
    return process.next(process.initialize(), *arguments)


@pytest.mark.parametrize("weight_dtype", [np.float32, np.int32])
def test_the_weighted_mean_is_that_of_numpy(backend, weight_dtype):
    """sum(w * v) / sum(w), leaf by leaf, for float and integer weights."""
    rng = np.random.default_rng(1)
    clients = [{"a": rng.normal(size=(3,)).astype(np.float32), "b": np.float32(rng.normal())} for _ in range(4)]
    weights = rng.integers(1, 10, size=4).astype(weight_dtype)
    process = MeanFactory().create(to_type(clients[0]), TensorType(weight_dtype))
    result = run(process, clients, list(weights)).result

    for name in ("a", "b"):
        expected = np.average([c[name] for c in clients], axis=0, weights=weights)
        np.testing.assert_allclose(result[name], expected, rtol=1e-5)


def test_the_unweighted_mean_is_that_of_numpy(backend):
    """sum(v) / n."""
    values = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    process = UnweightedMeanFactory().create(TensorType(jnp.float32, (3,)))

    np.testing.assert_allclose(run(process, list(values)).result, values.mean(axis=0), rtol=1e-5)


def test_each_leaf_keeps_its_dtype(backend):
    """The weight is cast to the dtype of the leaf that it multiplies."""
    value_type = to_type({"half": TensorType(jnp.float16), "brain": TensorType(jnp.bfloat16), "single": FLOAT})
    clients = [dict.fromkeys(("half", "brain", "single"), x) for x in (1.0, 2.0)]
    result = run(MeanFactory().create(value_type, INT), clients, [1, 3]).result

    assert {name: str(leaf.dtype) for name, leaf in result.items()} == {
        "half": "float16",
        "brain": "bfloat16",
        "single": "float32",
    }
    assert [float(leaf) for leaf in result.values()] == [1.75, 1.75, 1.75]


def test_state_and_measurements_have_the_names_of_their_sums():
    """The names are part of the interface."""
    mean = MeanFactory().create(FLOAT, FLOAT).next.type_signature.result
    unweighted = UnweightedMeanFactory().create(FLOAT).next.type_signature.result

    assert str(mean["state"]) == "<value_sum_process=<>,weight_sum_process=<>>@SERVER"
    assert str(mean["measurements"]) == "<mean_value=<>,mean_weight=<>>@SERVER"
    assert str(unweighted["state"]) == "<<>,<>>@SERVER"
    assert str(unweighted["measurements"]) == "<mean_value=<>,mean_count=<>>@SERVER"


def test_the_sums_go_through_the_inner_aggregations(backend):
    """Both sums of each mean are taken by the factories that were passed in, which can measure them."""
    told = add_measurements(SumFactory(), server_measurement_fn=lambda result: {"total": result})
    weighted = run(MeanFactory(told, told).create(FLOAT, FLOAT), [1.0, 2.0], [3.0, 5.0])
    unweighted = run(UnweightedMeanFactory(told, told).create(FLOAT), [1.0, 2.0])

    assert float(weighted.measurements["mean_value"]["total"]) == 1.0 * 3.0 + 2.0 * 5.0
    assert float(weighted.measurements["mean_weight"]["total"]) == 3.0 + 5.0
    assert float(unweighted.measurements["mean_value"]["total"]) == 3.0
    assert int(unweighted.measurements["mean_count"]["total"]) == 2


def test_without_weight_the_mean_is_nan_unless_zero_is_asked_for(backend):
    """The weights of all clients are zero, or there is no client."""
    plain = MeanFactory().create(FLOAT, FLOAT)
    no_nan = MeanFactory(no_nan_division=True).create(FLOAT, FLOAT)

    assert np.isnan(run(plain, [1.0, 2.0], [0.0, 0.0]).result)
    assert np.isnan(run(plain, [], []).result)
    assert float(run(no_nan, [1.0, 2.0], [0.0, 0.0]).result) == 0.0
    assert float(run(no_nan, [], []).result) == 0.0
    assert float(run(no_nan, [1.0, 2.0], [1.0, 1.0]).result) == 1.5
    assert np.isnan(run(UnweightedMeanFactory().create(FLOAT), []).result)


def test_what_is_not_finite_in_is_not_finite_out(backend):
    """The mean is the plain mathematics, also with weight zero."""
    assert np.isnan(run(MeanFactory().create(FLOAT, FLOAT), [1.0, np.nan], [1.0, 0.0]).result)
    assert np.isnan(run(MeanFactory(no_nan_division=True).create(FLOAT, FLOAT), [1.0, 2.0], [np.nan, 1.0]).result)
    assert np.isnan(run(UnweightedMeanFactory().create(FLOAT), [1.0, np.nan]).result)


def test_a_zero_weight_client_does_not_count(backend):
    """As if it were absent."""
    process = MeanFactory().create(FLOAT, FLOAT)

    assert float(run(process, [1.0, 2.0, 50.0], [1.0, 3.0, 0.0]).result) == 1.75


@pytest.mark.parametrize("value_type", [INT, to_type((FLOAT, INT)), TensorType(jnp.complex64)], ids=str)
def test_only_floats_have_a_mean(value_type):
    """An integer mean would have to change the type."""
    with pytest.raises(TypeError, match="needs values of floating dtypes only"):
        MeanFactory().create(value_type, FLOAT)
    with pytest.raises(TypeError, match="needs values of floating dtypes only"):
        UnweightedMeanFactory().create(value_type)


@pytest.mark.parametrize("weight_type", [TensorType(jnp.float32, (2,)), TensorType(jnp.bool_), to_type(())], ids=str)
def test_a_weight_is_one_number(weight_type):
    """It is broadcast over the value."""
    with pytest.raises(TypeError, match="must be one number"):
        MeanFactory().create(FLOAT, weight_type)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MeanFactory(value_sum_factory=MeanFactory()),
        lambda: MeanFactory(weight_sum_factory=1.0),
        lambda: MeanFactory(no_nan_division=1),
        lambda: UnweightedMeanFactory(value_sum_factory=MeanFactory()),
        lambda: UnweightedMeanFactory(count_sum_factory="sum"),
    ],
)
def test_arguments_of_another_type_are_refused(make):
    """Sums are unweighted factories."""
    with pytest.raises(TypeError):
        make()
