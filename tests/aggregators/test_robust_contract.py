"""What all robust rules have in common: one table of rules, and what each of them promises."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.aggregators import (
    BucketingFactory,
    CenteredClippingFactory,
    CoordinateMedianFactory,
    GeometricMedianFactory,
    KrumFactory,
    MeanFactory,
    NormBoundedMeanFactory,
    SecureModularSumFactory,
    SecureSumFactory,
    SumFactory,
    TrimmedMeanFactory,
    UnweightedGeometricMedianFactory,
    UnweightedMeanFactory,
    as_weighted_aggregator,
    clipping_factory,
    zeroing_factory,
)
from koinon.errors import RobustOverSecureSumError
from koinon.testing import count_compilations
from koinon.types import TensorType, to_type

VALUE = to_type({"a": TensorType(jnp.float32, (3,)), "b": TensorType(jnp.float32)})
FLOAT = TensorType(jnp.float32)
RULES = {
    "median": CoordinateMedianFactory(),
    "trimmed": TrimmedMeanFactory(0.3),
    "geometric": UnweightedGeometricMedianFactory(),
    "weighted geometric": GeometricMedianFactory(),
    "krum": KrumFactory(2),
    "multi-krum": KrumFactory(2, None),
    "bucketing": BucketingFactory(CoordinateMedianFactory(), seed=3),
    "centered": CenteredClippingFactory(5.0, iterations=2),
    "bounded": NormBoundedMeanFactory(5.0),
}
# What comes to the server of these is a sum, whose rounding depends on the order of the clients.
SUMS = ("centered", "bounded")
MEASURED = {
    "median": "non_finite_clients=int32",
    "trimmed": "trimmed_clients=int32,non_finite_clients=int32",
    "geometric": "iterations=int32,non_finite_clients=int32",
    "weighted geometric": "iterations=int32,non_finite_clients=int32",
    "krum": "too_few_clients=int32,non_finite_clients=int32",
    "multi-krum": "too_few_clients=int32,non_finite_clients=int32",
    "bucketing": "buckets=int32,non_finite_clients=int32",
    "centered": "mean_value=<>,mean_count=<>,clipped_count=int32,non_finite_clients=int32",
    "bounded": "mean_value=<>,mean_count=<>,clipped_count=int32,non_finite_clients=int32",
}


def rules(*late):
    """A test for each rule, of which these are for `make soak`: each of them takes a second to compile."""
    return pytest.mark.parametrize("rule", [pytest.param(r, marks=[pytest.mark.soak] * (r in late)) for r in RULES])


each_rule = rules()
most_rules = rules("geometric", "krum", "bounded")  # which others in the table are much like
a_few_rules = rules("trimmed", "geometric", "krum", "multi-krum", "bucketing", "centered", "bounded")


@functools.cache
def process_of(rule):
    """The process of a rule, compiled once for all tests."""
    factory = RULES[rule]
    return factory.create(VALUE, FLOAT) if rule == "weighted geometric" else factory.create(VALUE)


def values_of(*rows):
    """Clients' values from vectors of four numbers."""
    return [{"a": np.float32(row[:3]), "b": np.float32(row[3])} for row in rows]


def run(rule, values, state=None):
    """One step of a rule, the weights of the weighted one being 1, and its result as a vector."""
    process = process_of(rule)
    weights = [np.full(len(values), 1.0, np.float32).tolist()] if process.is_weighted else []
    output = process.next(process.initialize() if state is None else state, values, *weights)
    return np.append(output.result["a"], output.result["b"]), output


HONEST = np.random.default_rng(5).normal([1.0, -2.0, 0.5, 3.0], 0.5, (5, 4)).astype(np.float32)


@each_rule
def test_the_type_is_that_of_an_aggregation(rule):
    """The result has the type of the values, the measurements their names."""
    process = process_of(rule)
    state = str(process.state_type.member)
    weight = ",weight={float32}@CLIENTS" if process.is_weighted else ""
    value = "<a=float32[3],b=float32>"

    assert str(process.next.type_signature) == (
        f"(<state={state}@SERVER,value={{{value}}}@CLIENTS{weight}> -> "
        f"<state={state}@SERVER,result={value}@SERVER,measurements=<{MEASURED[rule]}>@SERVER>)"
    )
    assert state == {
        "bucketing": "key<fry>",
        "centered": f"<center={value},value_sum_process=<>,count_sum_process=<>>",
        "bounded": "<value_sum_process=<>,count_sum_process=<>>",
    }.get(rule, "<>")


@most_rules
def test_a_client_that_is_not_finite_leaves_no_trace(rule):
    """Result and state are bit for bit those without it, over rounds, and it is counted; no round compiles anew."""
    bad = [[np.nan, 1, 1, 1], [1, 1, 1, np.inf], [-np.inf, 0, 0, 0]]
    state = without = None
    run(rule, values_of(*HONEST))
    with count_compilations() as count:
        for _ in range(3):
            result, output = run(rule, values_of(*HONEST[:2], *bad, *HONEST[2:]), state)
            expected, expected_output = run(rule, values_of(*HONEST), without)
            state, without = output.state, expected_output.state

            np.testing.assert_array_equal(result, expected)
            assert str(state) == str(without)
            assert int(output.measurements["non_finite_clients"]) == 3
            assert int(expected_output.measurements["non_finite_clients"]) == 0
    assert count.total == 0


@most_rules
def test_the_order_of_the_clients_does_not_matter(rule):
    """To the bit where the server sees the values, else to rounding."""
    clients = np.concatenate([HONEST, HONEST[:1], [[9.0, 9.0, 9.0, 9.0]]])  # with two that are the same
    expected, _ = run(rule, values_of(*clients))
    for seed in range(4):
        result, _ = run(rule, values_of(*np.random.default_rng(seed).permutation(clients)))
        if rule in SUMS:
            np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(result, expected)


@most_rules
def test_of_clients_that_are_all_left_out_the_result_is_zero_and_of_one_client_its_value(rule):
    """Whether it is alone in the cohort or the only one that is finite."""
    broken = [[np.nan, 0, 0, 0]] * 5
    nobody, _ = run(rule, values_of(*broken))
    one, _ = run(rule, values_of(*broken, [3.0, 0.0, 1.0, -1.0]))

    np.testing.assert_array_equal(nobody, np.zeros(4))
    np.testing.assert_allclose(one, [3.0, 0.0, 1.0, -1.0], rtol=1e-6)


@a_few_rules
def test_a_cohort_of_nobody_and_one_of_a_single_client(rule):
    """Zero, and the value."""
    nobody, _ = run(rule, [])
    one, _ = run(rule, values_of([3.0, 0.0, 1.0, -1.0]))

    np.testing.assert_array_equal(nobody, np.zeros(4))
    np.testing.assert_allclose(one, [3.0, 0.0, 1.0, -1.0], rtol=1e-6)


@most_rules
@pytest.mark.parametrize("bad", [1e30, -3e38, math.nan, math.inf], ids=str)
def test_a_minority_of_corrupted_clients_has_little_to_say(rule, bad):
    """Two of seven send absurd values; the result stays among those of the others, or moves by as little as allowed."""
    result, _ = run(rule, values_of(*HONEST, *[[bad] * 4] * 2))

    if rule in SUMS:
        # Each of the two moves a mean over seven by the norm of 5 at most, in each iteration.
        assert np.linalg.norm(result - HONEST.mean(axis=0)) <= 2 * 2 * 5.0 / 7 + np.linalg.norm(HONEST, axis=1).max()
    elif rule == "bucketing":
        # Two of four buckets may be spoilt, so the median may be anywhere between the spoilt and the sound ones.
        assert np.isfinite(result).all()
    else:
        assert (result >= HONEST.min(axis=0) - 0.5).all()
        assert (result <= HONEST.max(axis=0) + 0.5).all()


@most_rules
def test_what_all_agree_on_is_the_result(rule):
    """Identical values are a fixed point; those of an absurd size too, unless a bound says otherwise."""
    for number in (1.5, 1e30) if rule not in SUMS else (1.5,):
        result, _ = run(rule, values_of(*[[number] * 4] * 5))

        np.testing.assert_allclose(result, [number] * 4, rtol=1e-6)


@a_few_rules
def test_the_reference_engine_agrees(rule):
    """On the same values, to rounding, state and measurements among them."""
    clients = values_of(*HONEST, [50.0, -50.0, 0.0, 1.0])
    result, output = run(rule, clients)
    with ko.backends.use("reference"):
        expected, expected_output = run(rule, clients)

    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=1e-6)
    for name, measured in output.measurements.items():
        if name != "iterations" and not isinstance(measured, tuple):
            assert int(measured) == int(expected_output.measurements[name])


@each_rule
def test_the_server_sees_single_values_only_where_the_rule_needs_them(rule):
    """What is held of each client is in the cost report; sums hold nothing of it, and collect nothing."""
    phases = ko.compiler.cost_report(process_of(rule).next, clients=10).phases
    needs = RULES[rule].needs_each_value
    value_bytes = 4 * 4

    assert needs is (rule not in SUMS)
    if needs:
        assert phases[0].row_bytes == value_bytes + 4 * (rule == "weighted geometric")
        with pytest.raises(ko.errors.PrivacyError):
            ko.compiler.assert_no_collect(process_of(rule).next)
    else:
        ko.compiler.assert_no_collect(process_of(rule).next)


@pytest.mark.parametrize("rule", [name for name in RULES if name not in SUMS])
def test_a_robust_rule_is_no_sum(rule):
    """In the place of a sum it is refused when the factory is made, whatever is around it, with the reason."""
    factory = RULES[rule]
    if rule == "weighted geometric":
        return
    for wrapped in (factory, clipping_factory(1.0, factory), zeroing_factory(1.0, clipping_factory(1.0, factory))):
        for make in (
            lambda f: MeanFactory(value_sum_factory=f),
            lambda f: UnweightedMeanFactory(count_sum_factory=f),
            lambda f: clipping_factory(1.0, MeanFactory(), f),
            lambda f: NormBoundedMeanFactory(1.0, value_sum_factory=f),
        ):
            with pytest.raises(RobustOverSecureSumError, match="looks at the value of each client"):
                make(wrapped)


@pytest.mark.parametrize("inner", [SecureSumFactory(1.0), SecureModularSumFactory(8), SumFactory()])
def test_bucketing_over_a_secure_sum_is_refused(inner):
    """The server sees no value to put into a bucket."""
    with pytest.raises(RobustOverSecureSumError, match="only what they add up to"):
        BucketingFactory(inner)


@pytest.mark.parametrize(
    "make", [pytest.param(CenteredClippingFactory, marks=pytest.mark.soak), NormBoundedMeanFactory]
)
def test_a_bounded_mean_works_over_secure_sums(make):
    """Only secure aggregations are left, and the result is that of the plain sums to the steps of the grid."""
    secure = make(5.0, value_sum_factory=SecureSumFactory(5.0), count_sum_factory=SecureSumFactory(1, 0)).create(VALUE)
    clients = values_of(*HONEST, [1e30, 0, 0, 0])
    output = secure.next(secure.initialize(), clients)
    clipped = [row * min(1, 5.0 / np.linalg.norm(row)) for row in [*HONEST, np.array([1e30, 0, 0, 0])]]

    np.testing.assert_allclose(output.result["a"], np.mean(clipped, axis=0)[:3], atol=1e-5)
    assert int(output.measurements["clipped_count"]) == 1
    ko.compiler.assert_no_unsecure_aggregation(secure.next)


def test_rules_nest_with_what_bounds_a_client():
    """Clipping outside of a rule is clipping of what the rule sees."""
    process = clipping_factory(5.0, CoordinateMedianFactory()).create(TensorType(jnp.float32, (2,)))
    clients = [np.float32(v) for v in ([3, 4], [6, 8], [30, 40], [0, 1])]  # norms 5, 10, 50, 1
    output = process.next(process.initialize(), clients)

    np.testing.assert_allclose(output.result, np.median([[3, 4], [3, 4], [3, 4], [0, 1]], axis=0), rtol=1e-6)
    assert int(output.measurements["clipped_count"]) == 2


@pytest.mark.parametrize("weighted", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_rule_aggregates_in_federated_averaging(weighted):
    """With a third of the clients corrupted, training ends where the honest clients lead."""
    model = ko.learning.models.functional(
        lambda w, x: w * x,
        jnp.float32(0.0),
        example_spec={"x": jnp.float32, "y": jnp.float32},
        loss=ko.learning.losses.squared_error,
    )
    algorithms, rule = ko.learning.algorithms, CoordinateMedianFactory()
    if weighted:
        build, aggregator = algorithms.build_weighted_fed_avg, as_weighted_aggregator(rule)
    else:
        build, aggregator = algorithms.build_unweighted_fed_avg, rule
    process = build(model, optax.sgd(0.25), batch_size=1, model_aggregator=aggregator)
    clients = [[{"x": 1.0, "y": 3.0}]] * 4 + [[{"x": 1.0, "y": -1000.0}]] * 2
    state = process.initialize()
    for _ in range(12):
        state = process.next(state, clients).state

    # Each step halves the distance to the target, which is 3 at the median and (4 * 3 - 2 * 1000) / 6 at a mean.
    assert float(process.get_model_weights(state).trainable) == pytest.approx(3.0 * (1 - 0.5**12), rel=1e-5)


@pytest.mark.parametrize(
    "value_type", [TensorType(jnp.int32), to_type(()), TensorType(jnp.float32, (0,)), TensorType(jnp.float32, (None,))]
)
@each_rule
def test_values_are_vectors_of_floats(rule, value_type):
    """A rule needs to know how long they are."""
    weight = [FLOAT] if rule == "weighted geometric" else []
    with pytest.raises(TypeError, match="needs values of"):
        RULES[rule].create(value_type, *weight)


def test_half_precision_stays_what_it_is():
    """Rules compute in float32, and return what the clients sent."""
    value_type = to_type({"half": TensorType(jnp.float16, (2,)), "brain": TensorType(jnp.bfloat16)})
    clients = [{"half": np.float16([x, 60000]), "brain": jnp.bfloat16(x)} for x in (1.0, 2.0, 4.0)]
    process = CenteredClippingFactory(1e6).create(value_type)
    result = process.next(process.initialize(), clients).result

    assert jax.tree.map(lambda leaf: str(leaf.dtype), result) == {"half": "float16", "brain": "bfloat16"}
    assert float(result["half"][1]) == 60000  # the sum of three does not fit a float16
