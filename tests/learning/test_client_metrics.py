"""Metrics of single clients, of their distribution, secure sums of metrics, and debugging measurements."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.errors import KoinonTypeError, KoinonValueError, SecureSumRangeError
from koinon.learning import algorithms, metrics
from tests import quadratics
from tests.quadratics import Parabola

SUMS = {"mean": {"total": jnp.float32, "count": jnp.int32}, "n": jnp.int32}
FINALIZERS = {"mean": lambda state: state["total"] / state["count"].astype(jnp.float32), "n": lambda n: n}
STATES = [
    {"mean": {"total": np.float32(7.25), "count": np.int32(2)}, "n": np.int32(3)},
    {"mean": {"total": np.float32(-1.5), "count": np.int32(1)}, "n": np.int32(-4)},
    {"mean": {"total": np.float32(0.1), "count": np.int32(5)}, "n": np.int32(11)},
]


def call(made: Any, states: list[Any] = STATES, type_: Any = SUMS) -> Any:
    """The result of a metrics aggregator's computation for these states of clients."""
    return ko.federated_computation(ko.types.at_clients(type_))(lambda unfinalized: made(unfinalized))(states)


RANGES = {"mean": (-10.0, 10.0), "n": (-5, 100)}


def test_a_secure_sum_equals_the_plain_one(backend: str) -> None:
    """Integers exactly, also negative ones; floats to the resolution of the range."""
    secure = call(metrics.secure_sum_then_finalize(FINALIZERS, RANGES))
    plain = call(metrics.sum_then_finalize(FINALIZERS))

    assert int(secure["n"]) == int(plain["n"]) == 10
    assert float(secure["mean"]) == pytest.approx(float(plain["mean"]), abs=3 * 20 / 2**32 + 1e-6)
    clipped = secure["secure_sum_measurements"]
    assert {name: int(count) for name, count in clipped.items()} == {
        "secure_lower_clipped_count": 0,
        "secure_upper_clipped_count": 0,
        "non_finite_clients": 0,
    }


def test_numbers_outside_their_range_are_clipped_and_counted() -> None:
    """A count for each client of which any number was."""
    states = [
        {"mean": {"total": np.float32(7.0), "count": np.int32(200)}, "n": np.int32(0)},
        {"mean": {"total": np.float32(-99.0), "count": np.int32(1)}, "n": np.int32(-99)},
    ]
    result = call(metrics.secure_sum_then_finalize(lambda sums: sums, RANGES), states)

    assert float(result["mean"]["total"]) == pytest.approx(7.0 - 10.0, abs=1e-6)
    assert int(result["mean"]["count"]) == 10 + 1
    assert int(result["n"]) == 0 - 5
    clipped = result["secure_sum_measurements"]
    assert int(clipped["secure_lower_clipped_count"]) == 1
    assert int(clipped["secure_upper_clipped_count"]) == 1


def test_a_client_whose_metrics_are_not_finite_is_left_out_of_all_of_them(backend: str) -> None:
    """Counts and sums, those that a broken client has right too, are bit for bit those without it; it is counted."""
    broken = [
        {"mean": {"total": np.float32(bad), "count": np.int32(200)}, "n": np.int32(99)}
        for bad in (np.nan, np.inf, -np.inf)
    ]
    made = metrics.secure_sum_then_finalize(lambda sums: sums, RANGES)
    with_them, without = call(made, [STATES[0], *broken, *STATES[1:]]), call(made)
    counts = with_them.pop("secure_sum_measurements"), without.pop("secure_sum_measurements")

    assert [int(count["non_finite_clients"]) for count in counts] == [3, 0]
    assert all(int(count["secure_upper_clipped_count"]) == 0 for count in counts)
    for found, expected in zip(jax.tree.leaves(with_them), jax.tree.leaves(without), strict=True):
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint32])
def test_integers_are_summed_exactly_or_not_at_all(backend: str, dtype: Any) -> None:
    """Up to the last number that the dtype holds; one more is an error, and not a number that wrapped around."""
    most = int(np.iinfo(dtype).max)
    made = metrics.secure_sum_then_finalize(lambda total: {"total": total["n"]}, {"n": (0, most)})
    values = [most // 2, most // 3, most - most // 2 - most // 3]
    result = call(made, [{"n": dtype(v)} for v in values], {"n": dtype})

    assert int(result["total"]) == sum(values) == most
    with pytest.raises(SecureSumRangeError, match="does not fit"):
        call(made, [{"n": dtype(v)} for v in [*values, 1]], {"n": dtype})


def test_the_server_sees_no_clients_metric_in_a_secure_sum() -> None:
    """Of the whole aggregation only secure sums leave the clients."""
    made = metrics.secure_sum_then_finalize(FINALIZERS, RANGES)
    computation = ko.federated_computation(ko.types.at_clients(SUMS))(lambda states: made(states))

    assert "federated_secure_sum" in str(computation.expression)
    assert not any(f"{name}(" in str(computation.expression) for name in ("federated_sum", "federated_mean"))


@pytest.mark.parametrize(
    ("ranges", "error"),
    [
        ((0.0,), KoinonTypeError),
        ("0, 1", KoinonTypeError),
        ({"n": (0, "1")}, KoinonTypeError),
        ((1.0, 1.0), KoinonValueError),
        ((0.0, float("inf")), KoinonValueError),
        ((0, 2**32), KoinonValueError),
    ],
)
def test_a_range_that_is_none_is_refused(ranges: Any, error: Any) -> None:
    """When the aggregator is made."""
    with pytest.raises(error):
        metrics.secure_sum_then_finalize(FINALIZERS, ranges)


def test_ranges_are_those_of_metrics_that_exist_and_can_be_summed() -> None:
    """An unknown name, and a dtype that is not summed securely."""
    with pytest.raises(KoinonTypeError, match="do not exist"):
        call(metrics.secure_sum_then_finalize(FINALIZERS, {"loss": (0, 1)}))
    with pytest.raises(KoinonValueError, match="no integer"):
        call(metrics.secure_sum_then_finalize(FINALIZERS, {"n": (0.2, 0.8)}))
    with pytest.raises(KoinonTypeError, match="int32, uint32 or float32"):
        metrics.SecureSumFactory().create(ko.types.TensorType(jnp.bfloat16))


def test_metrics_of_all_rounds_may_be_summed_securely() -> None:
    """The secure sum is the inner summation of the factory that keeps totals."""
    factory = metrics.SumThenFinalizeFactory(FINALIZERS, metrics.SecureSumFactory(RANGES))
    process = factory.create(ko.to_type(SUMS))
    state = process.initialize()
    for _ in range(2):
        state, (current, total), measured = process.next(state, STATES)

    assert (int(current["n"]), int(total["n"])) == (10, 20)
    assert set(measured) == {"secure_lower_clipped_count", "secure_upper_clipped_count", "non_finite_clients"}


def value_clients(values: Any) -> list[Any]:
    return [{"value": np.float32(value)} for value in values]


VALUE_TYPE = {"value": jnp.float32}


def test_a_sample_of_clients_is_uniform_and_does_not_repeat_any() -> None:
    """Over many rounds each of ten clients is drawn equally often, up to four standard deviations."""
    size, rounds = 3, 60
    process = metrics.FinalizeThenSampleFactory({"value": lambda v: v}, size).create(ko.to_type(VALUE_TYPE))
    counts, state = np.zeros(10), process.initialize()
    for _ in range(rounds):
        state, (sample, _), _ = process.next(state, value_clients(range(10)))
        drawn = np.asarray(sample.values["value"]).astype(int)
        assert len(set(drawn.tolist())) == size
        counts[drawn] += 1

    expected = rounds * size / 10
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected * (1 - size / 10))


def _sampler(size: int, seed: int) -> Any:
    return metrics.finalize_then_sample({"value": lambda value: value}, size, seed=seed)


def test_a_sample_of_a_small_cohort_is_the_cohort(backend: str) -> None:
    """Each client has one row, and the others are zeros."""
    sample = call(_sampler(5, 0), value_clients([4.0, 6.0]), VALUE_TYPE)

    assert int(sample.count) == 2
    assert sorted(sample.values["value"].tolist()[:2]) == [4.0, 6.0]
    assert sample.values["value"].tolist()[2:] == [0.0, 0.0, 0.0]
    assert int(call(_sampler(5, 0), [], VALUE_TYPE).count) == 0


def test_a_sample_of_all_rounds_is_of_all_participations() -> None:
    """Its rows come from several rounds, each a client's, and it is no larger than it may be."""
    process = metrics.FinalizeThenSampleFactory({"value": lambda v: v}, 4).create(ko.to_type(VALUE_TYPE))
    state = process.initialize()
    for number in range(6):
        state, (current, total), _ = process.next(state, value_clients([10 * number, 10 * number + 1]))

    drawn = total.values["value"].tolist()
    assert (int(current.count), int(total.count), len(set(drawn))) == (2, 4, 4)
    assert sorted(current.values["value"].tolist()[:2]) == [50.0, 51.0]
    assert len({int(value) // 10 for value in drawn}) > 1


def describe(values: Any, quantiles: Any = (0.0, 0.25, 0.5, 0.9, 1.0), **options: Any) -> Any:
    made = metrics.finalize_then_describe({"value": lambda value: value}, quantiles, **options)
    return call(made, value_clients(values), VALUE_TYPE)["value"]


@pytest.mark.parametrize("count", [1, 7, 25])
def test_the_distribution_over_clients_equals_numpy(count: int) -> None:
    """Moments, extremes, quantiles, and the means of the tenths at both ends, of clients that have a value."""
    values = np.random.default_rng(count).normal(size=count).astype(np.float32)
    found, ordered = describe([*values, np.nan]), np.sort(values)
    tenth = -(-count // 10)

    assert int(found.num_clients) == count
    for name, expected in {
        "mean": values.mean(),
        "variance": values.var(),
        "minimum": values.min(),
        "maximum": values.max(),
        "lowest_decile": ordered[:tenth].mean(),
        "highest_decile": ordered[-tenth:].mean(),
    }.items():
        assert float(getattr(found, name)) == pytest.approx(float(expected), rel=1e-5, abs=1e-6), name
    for quantile, value in found.quantiles.items():
        assert float(value) == pytest.approx(np.quantile(values, float(quantile)), rel=1e-5, abs=1e-6)


def test_the_distribution_over_no_clients_is_not_a_number(backend: str) -> None:
    """All of it but the count."""
    found = describe([])

    assert int(found.num_clients) == 0
    assert all(np.isnan(leaf) for leaf in jax.tree.leaves(found._replace(num_clients=jnp.nan)))


def test_an_infinite_value_counts_as_one() -> None:
    """A client whose loss has overflowed is the worst off, and is not left out."""
    found = describe([1.0, np.inf, 2.0])

    assert int(found.num_clients) == 3
    assert np.isinf(found.maximum)
    assert np.isinf(found.highest_decile)
    assert float(found.quantiles["0.5"]) == 2.0


def test_a_large_cohort_is_described_by_a_sample() -> None:
    """The numbers are those of `sample_size` clients."""
    found = describe(range(50), sample_size=10)

    assert int(found.num_clients) == 10
    assert 0 <= float(found.minimum) < float(found.maximum) < 50


def test_wrong_arguments_are_refused() -> None:
    """Sizes, quantiles, and aggregators without names."""
    for build in (metrics.finalize_then_sample, metrics.FinalizeThenSampleFactory):
        with pytest.raises(KoinonValueError, match="sample_size"):
            build({}, 0)
    with pytest.raises(KoinonValueError, match=r"\[0, 1\]"):
        metrics.finalize_then_describe({}, (1.5,))
    with pytest.raises(KoinonTypeError, match="by name"):
        metrics.combine_metrics_aggregators([metrics.sum_then_finalize])  # pyright: ignore[reportArgumentType]


def test_training_reports_the_sum_and_the_distribution_over_clients_together() -> None:
    """Loss of all examples, and of clients: the worst decile and the variance show who is served badly."""
    both = metrics.combine_metrics_aggregators(
        {"all": metrics.sum_then_finalize, "clients": functools.partial(metrics.finalize_then_describe, quantiles=())}
    )
    process = algorithms.build_weighted_fed_avg(
        quadratics.model(), optax.sgd(0.1), batch_size=4, metrics_aggregator=both
    )
    clients = [Parabola(2.0, 1.0, 3), Parabola(2.0, 3.0, 1)]  # losses 1 and 9 at 0
    train = process.next(process.initialize(), [c.data() for c in clients]).metrics["client_work"]["train"]

    assert float(train["all"]["loss"]) == pytest.approx((3 * 1 + 9) / 4, rel=1e-6)
    assert float(train["clients"]["loss"].mean) == pytest.approx(5.0, rel=1e-6)
    assert float(train["clients"]["loss"].variance) == pytest.approx(16.0, rel=1e-6)
    assert float(train["clients"]["loss"].highest_decile) == pytest.approx(9.0, rel=1e-6)


@pytest.mark.parametrize("weighted", [True, False])
def test_debug_measurements_equal_numpy(weighted: bool) -> None:
    """Norms over all leaves, weighted where the mean is; the inner measurements stay."""
    values = [{"a": np.float32([3.0, 4.0]), "b": np.float32(0.0)}, {"a": np.float32([0.0, 0.0]), "b": np.float32(-2.0)}]
    weights = np.array([1.0, 3.0]) if weighted else np.ones(2)
    inner = ko.aggregators.MeanFactory() if weighted else ko.aggregators.UnweightedMeanFactory()
    value_type, weight_type = ko.to_type(values[0]), [ko.types.TensorType(jnp.float32)] * weighted
    process = ko.learning.add_debug_measurements(inner).create(value_type, *weight_type)
    arguments = [list(weights.astype(np.float32))] * weighted
    measured = process.next(process.initialize(), values, *arguments).measurements
    norms, share = np.array([5.0, 2.0]), weights / weights.sum()
    mean = np.append(share[0] * values[0]["a"], share[1] * -2.0)

    assert float(measured["average_client_norm"]) == pytest.approx(share @ norms)
    assert float(measured["std_dev_client_norm"]) == pytest.approx(np.sqrt(share @ norms**2 - (share @ norms) ** 2))
    assert float(measured["server_update_norm"]) == pytest.approx(np.linalg.norm(mean))
    assert float(measured["server_update_max"]) == pytest.approx(mean.max())
    assert float(measured["server_update_min"]) == pytest.approx(mean.min())
    assert "mean_value" in measured
