"""`SecureSumFactory` and `SecureModularSumFactory`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import koinon as ko
from koinon.aggregators import (
    PrivateQuantileEstimationProcess,
    SecureModularSumFactory,
    SecureSumFactory,
)
from koinon.errors import KoinonTypeError, KoinonValueError, SecureSumFieldError, SecureSumRangeError
from koinon.templates import EstimationProcess
from koinon.types import TensorType, at_clients, at_server, to_type

INT, FLOAT = TensorType(jnp.int32), TensorType(jnp.float32)
STRUCT = to_type({"a": (jnp.float32, (2,)), "b": jnp.float32})


def growing(factor):
    """An estimate that starts at `factor` and grows by it each round, whatever the clients have."""

    @ko.federated_computation
    def initialize():
        return ko.federated_value(np.float32(factor), ko.SERVER)

    @ko.federated_computation(at_server(FLOAT), at_clients(FLOAT))
    def update(state, values):
        del values
        return ko.federated_map(lambda x: x + factor, state)

    @ko.federated_computation(at_server(FLOAT))
    def report(state):
        return state

    return EstimationProcess(initialize, update, report)


def measured(output):
    """The measurements as Python numbers, without the prefix of their names."""
    return {name.removeprefix("secure_"): value.item() for name, value in output.measurements.items()}


@pytest.mark.parametrize(
    ("factory", "value_type", "state", "bound"),
    [
        (SecureSumFactory(1, -1), INT, "<>", "int32"),
        (SecureSumFactory(np.int64(1), np.int64(0)), to_type((jnp.int32, INT)), "<>", "int32"),
        (SecureSumFactory(5), TensorType(jnp.int8, (3,)), "<>", "int8"),
        (SecureSumFactory(1.0), STRUCT, "<>", "float32"),
        (SecureSumFactory(np.float32(1.0), np.float32(-0.5)), FLOAT, "<>", "float32"),
        (SecureSumFactory(growing(1.0)), STRUCT, "float32", "float32"),
        (SecureSumFactory(growing(1.0), growing(-1.0)), FLOAT, "<float32,float32>", "float32"),
    ],
    ids=["int", "int_struct", "symmetric", "float_struct", "numpy", "one_process", "two_processes"],
)
def test_the_type_is_that_of_tff_and_nothing_is_summed_in_the_clear(factory, value_type, state, bound):
    """The four measurements of TFF, and for floats the number of clients that are not finite."""
    process = factory.create(value_type)
    non_finite = ",non_finite_clients=int32" if bound == "float32" else ""
    measurements = (
        f"<secure_upper_clipped_count=int32,secure_lower_clipped_count=int32,"
        f"secure_upper_threshold={bound},secure_lower_threshold={bound}{non_finite}>"
    )

    assert str(process.next.type_signature) == (
        f"(<state={state}@SERVER,value={at_clients(value_type)}> -> <state={state}@SERVER,"
        f"result={value_type}@SERVER,measurements={measurements}@SERVER>)"
    )
    ko.compiler.assert_no_unsecure_aggregation(process.next)


def test_integers_are_clipped_and_summed_exactly():
    """Counts of clients above and below, beside the thresholds."""
    process = SecureSumFactory(1, -1).create(INT)
    values = [-2, -1, 0, 1, 2, 3]
    output = process.next(process.initialize(), values)

    assert int(output.result) == np.clip(values, -1, 1).sum()
    assert measured(output) == {
        "upper_clipped_count": 2,
        "lower_clipped_count": 1,
        "upper_threshold": 1,
        "lower_threshold": -1,
    }
    assert int(process.next(process.initialize(), []).result) == 0


@pytest.mark.parametrize(
    "factory",
    [SecureSumFactory(growing(1.0)), SecureSumFactory(growing(1.0), growing(-1.0))],
    ids=["one_process", "two_processes"],
)
def test_thresholds_that_grow_are_used_before_they_grow(factory):
    """Three rounds: thresholds 1, 2 and 3, and what they clip."""
    process = factory.create(FLOAT)
    values = [-2.5, -0.5, 0.0, 1.0, 1.5, 3.5]
    state = process.initialize()
    for threshold in (1.0, 2.0, 3.0):
        output = process.next(state, values)
        state = output.state

        # All of these numbers are multiples of the step.
        assert float(output.result) == np.clip(values, -threshold, threshold).sum()
        assert measured(output) == {
            "upper_clipped_count": sum(value > threshold for value in values),
            "lower_clipped_count": sum(value < -threshold for value in values),
            "upper_threshold": threshold,
            "lower_threshold": -threshold,
            "non_finite_clients": 0,
        }


def test_a_quantile_of_the_largest_numbers_is_followed():
    """Rounds of a private quantile: it is given the greatest absolute value of each client that is finite."""
    bound = PrivateQuantileEstimationProcess.no_noise(1.0, 0.5, 0.2, multiplier=2.0, secure_estimation=True)
    process = SecureSumFactory(bound).create(STRUCT)
    ko.compiler.assert_no_unsecure_aggregation(process.next)
    clients = [
        {"a": np.float32([0.1, -3.0]), "b": np.float32(0.2)},
        {"a": np.float32([0.1, 0.2]), "b": np.float32(0.5)},
        {"a": np.float32([0.0, 0.0]), "b": np.float32(-9.0)},
        {"a": np.float32([np.nan, 0.0]), "b": np.float32(0.0)},
    ]
    state, estimate = process.initialize(), 1.0
    for _ in range(3):
        output = process.next(state, clients)
        state = output.state
        of_round = measured(output)
        below = sum(largest <= estimate for largest in (3.0, 0.5, 9.0))

        assert of_round["upper_threshold"] == pytest.approx(2 * estimate)
        assert of_round["lower_threshold"] == -of_round["upper_threshold"]
        assert of_round["lower_clipped_count"] == sum(largest > 2 * estimate for largest in (3.0, 9.0))
        assert (of_round["upper_clipped_count"], of_round["non_finite_clients"]) == (0, 1)
        np.testing.assert_allclose(output.result["b"], 0.7 - 2 * estimate, rtol=1e-6)
        estimate *= math.exp(-0.2 * (below / 3 - 0.5))


BAD = [np.nan, np.inf, -np.inf]
EXTREME = [1e38, -3e38, 1e-45, 2e-38]


def test_a_client_that_is_not_finite_leaves_no_trace():
    """Result, state and counts are bit for bit those without it, and it is counted."""
    quantiles = [PrivateQuantileEstimationProcess.no_noise(bound, 0.5, 0.2) for bound in (2.0, 0.5)]
    process = SecureSumFactory(*quantiles).create(STRUCT)
    good = [{"a": np.float32([v, 0.7]), "b": np.float32(-v)} for v in (0.3, 1.9, *EXTREME)]
    bad = [{"a": np.float32([0.1, v]), "b": np.float32(1.0)} for v in BAD]
    output = process.next(process.initialize(), [*good[:2], *bad, *good[2:]])
    expected = process.next(process.initialize(), good)

    assert jax.tree.map(np.ndarray.tobytes, jax.device_get(output.result)) == jax.tree.map(
        np.ndarray.tobytes, jax.device_get(expected.result)
    )
    assert str(output.state) == str(expected.state)
    assert measured(output) == measured(expected) | {"non_finite_clients": len(bad)}


def test_a_client_with_one_nan_among_many_numbers_leaves_no_trace(backend):
    """As many as a layer has, of which `jnp.max` overlooks one."""
    clients = [np.full(20_000, number, np.float32) for number in (1, 2, 3)]
    clients[1][11] = np.nan
    process = SecureSumFactory(5.0, -5.0).create(TensorType(jnp.float32, (20_000,)))

    output = process.next(process.initialize(), clients)

    assert int(output.measurements["non_finite_clients"]) == 1
    np.testing.assert_allclose(output.result, np.full(20_000, 4.0), atol=1e-3)


def test_a_cohort_of_nobody_gives_zeros():
    """No clients, or none that is finite."""
    process = SecureSumFactory(2.0, 1.0).create(FLOAT)  # zero is not in the range
    for values in ([], BAD):
        output = process.next(process.initialize(), values)

        assert float(output.result) == 0.0
        assert measured(output)["non_finite_clients"] == len(values)


@pytest.fixture(scope="module")
def wide():
    """A process for the largest range of three clients, and that range."""
    bound = (2**31 - 1) // 3
    return SecureSumFactory(bound).create(TensorType(jnp.int32, (4,))), bound


@settings(max_examples=15)
@given(st.data())
def test_integers_are_summed_as_by_python(wide, data):
    """At the ends of the range too, for as many clients as fit."""
    process, bound = wide
    numbers = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([bound, -bound, 0, bound - 1])
    clients = data.draw(st.lists(st.lists(numbers, min_size=4, max_size=4), max_size=3))
    output = process.next(process.initialize(), [np.array(client, np.int32) for client in clients])

    for i in range(4):
        assert int(output.result[i]) == sum(max(-bound, min(bound, client[i])) for client in clients)


def test_more_clients_than_fit_are_an_error_whatever_they_send(wide):
    """Four clients of zeros could have overflowed."""
    process, _ = wide
    zeros = np.zeros(4, np.int32)
    process.next(process.initialize(), [zeros] * 3)
    with pytest.raises(SecureSumRangeError, match="does not fit"):
        process.next(process.initialize(), [zeros] * 4)


@pytest.mark.parametrize(
    ("dtype", "lower", "upper", "clients"),
    [
        ("int8", -1, 1, 127),
        ("int8", -128, 127, 1),
        ("uint8", 3, 5, 51),
        ("int16", -300, 7, 109),
        ("uint32", 2**31, 2**32 - 1, 1),
        ("int32", -(2**31), 2**31 - 1, 1),
        ("int32", -5, -1, (2**31 - 1) // 5),
    ],
)
def test_the_sum_is_sized_for_the_cohort_when_the_process_is_made(dtype, lower, upper, clients):
    """So many clients fit, one more is an error that says how many bits are needed, there, and for whom they do."""
    factory = SecureSumFactory(upper, lower, max_clients=clients)
    process = factory.create(TensorType(dtype))
    if dtype in ("int8", "uint32"):
        values = [upper] * clients
        assert int(process.next(process.initialize(), [np.dtype(dtype).type(v) for v in values]).result) == sum(values)
    allowed = clients if clients < 2**15 else None
    with pytest.raises(SecureSumFieldError) as caught:
        SecureSumFactory(upper, lower, max_clients=clients + 1 if allowed else 2**31).create(TensorType(dtype))
    bits = np.iinfo(dtype).bits
    assert f"at most the {bits} bits of {dtype}" in str(caught.value)
    if allowed:
        needed = ((clients + 1) * max(abs(lower), abs(upper))).bit_length() + (dtype[0] == "i")
        assert f"{needed} bits for {clients + 1} clients" in str(caught.value)
        assert f"{clients} clients are allowed" in str(caught.value)


def test_floats_have_a_field_of_62_bits():
    """2**29 - 1 clients with 32 bits each, and a sign."""
    SecureSumFactory(1.0, max_clients=2**29 - 1).create(FLOAT)
    with pytest.raises(SecureSumFieldError, match=r"(?s)the 62 bits.*63 bits for 536870912.*536870911 clients are"):
        SecureSumFactory(1.0, max_clients=2**29).create(FLOAT)


def test_the_compiler_agrees_on_what_fits():
    """The static assertion about secure sums passes for the cohort that a process is for, and not for more."""
    process = SecureSumFactory(1000, max_clients=20_000).create(INT)
    most = (2**31 - 1) // 1000
    ko.compiler.assert_secure_sums_fit(process.next, clients=20_000)
    ko.compiler.assert_secure_sums_fit(process.next, clients=(2**31 - 1) // math.ceil((2**31 - 1) / most))
    with pytest.raises(SecureSumFieldError, match="may not fit"):
        ko.compiler.assert_secure_sums_fit(process.next, clients=most + 10_000)
    ko.compiler.assert_secure_sums_fit(SecureSumFactory(1.0).create(FLOAT).next, clients=2**29 - 1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((1, -1.0), KoinonTypeError),
        ((1.0, -1), KoinonTypeError),
        ((growing(1.0), -1.0), KoinonTypeError),
        ((True,), KoinonTypeError),
        (("1",), KoinonTypeError),
        ((None,), KoinonTypeError),
        ((-1, 1), KoinonValueError),
        ((1, 1), KoinonValueError),
        ((1.0, 1.0), KoinonValueError),
        ((0,), KoinonValueError),
        ((-1.0,), KoinonValueError),
        ((math.inf,), KoinonValueError),
        ((math.nan,), KoinonValueError),
    ],
)
def test_thresholds_are_of_one_kind_and_the_upper_one_is_higher(arguments, error):
    """As in TFF, a TypeError or a ValueError."""
    with pytest.raises(error):
        SecureSumFactory(*arguments)
    for max_clients, wrong in ((0, KoinonValueError), (1.0, KoinonTypeError), (True, KoinonTypeError)):
        with pytest.raises(wrong, match="max_clients"):
            SecureSumFactory(1, max_clients=max_clients)


@pytest.mark.parametrize(
    ("factory", "value_type", "error"),
    [
        (SecureSumFactory(1), FLOAT, KoinonTypeError),
        (SecureSumFactory(1.0), INT, KoinonTypeError),
        (SecureSumFactory(growing(1.0)), INT, KoinonTypeError),
        (SecureSumFactory(1.0), TensorType(jnp.bfloat16), ko.errors.UnsupportedDTypeError),
        (SecureSumFactory(1), to_type((jnp.int32, jnp.int8)), KoinonTypeError),
        (SecureSumFactory(1), to_type(()), KoinonTypeError),
        (SecureSumFactory(1), TensorType(jnp.uint8), KoinonValueError),
        (SecureSumFactory(2**33), INT, KoinonValueError),
        (SecureSumFactory(1), at_server(INT), KoinonTypeError),
        (SecureSumFactory(1), ko.types.SequenceType(INT), KoinonTypeError),
        (SecureModularSumFactory(8), FLOAT, KoinonTypeError),
        (SecureModularSumFactory(8), to_type((jnp.int32, jnp.float32)), KoinonTypeError),
        (SecureModularSumFactory(8), at_server(INT), KoinonTypeError),
        (SecureModularSumFactory(129), TensorType(jnp.int8), SecureSumFieldError),
        (SecureModularSumFactory(65, symmetric_range=True), TensorType(jnp.int8), SecureSumFieldError),
        (SecureModularSumFactory(2**32), TensorType(jnp.uint32), SecureSumFieldError),
        (SecureModularSumFactory(2**64), to_type(()), SecureSumFieldError),
        (SecureModularSumFactory(8, symmetric_range=True), TensorType(jnp.uint32), SecureSumFieldError),
    ],
)
def test_values_go_with_the_thresholds(factory, value_type, error):
    """One dtype, of the kind of the thresholds, which holds them."""
    with pytest.raises(error):
        factory.create(value_type)


def test_an_estimate_that_is_no_bound_is_an_error_at_run_time():
    """A range that is turned around, or not finite, is no range."""
    process = SecureSumFactory(growing(-1.0), growing(1.0)).create(FLOAT)
    with pytest.raises(SecureSumRangeError):
        process.next(process.initialize(), [0.0])


def test_a_process_must_report_a_float():
    """The types of an estimation process are checked when the factory is made."""

    @ko.federated_computation(at_server(FLOAT))
    def as_integer(estimate):
        return ko.federated_map(lambda x: x.astype(jnp.int32), estimate)

    with pytest.raises(KoinonTypeError, match="upper_bound_threshold"):
        SecureSumFactory(growing(1.0).map(as_integer))


@pytest.mark.parametrize(
    ("modulus", "symmetric", "values"),
    [
        (2, False, [0, 1, 1]),
        (8, False, [1, 2, 3, 4]),
        (22, False, [220]),
        (22, False, [-1, 7]),
        (1, False, [5]),
        (2, True, [0, 1, 1]),
        (2, True, [0, -1, -1, -1]),
        (8, True, [1, 2, 3, 4]),
        (8, True, [-1, -2, -3, -4]),
        (22, True, [43 * 5]),
        (22, True, [112, 123]),
        (2**31 - 1, False, [2**31 - 2, 2**31 - 2]),
        (2**30, True, [2**30 - 1, 1, -(2**31)]),
    ],
)
def test_modular_sums_wrap_around(modulus, symmetric, values, backend):
    """Into `[0, modulus)`, or to the representative of the sum modulo `2 * modulus - 1` around zero."""
    process = SecureModularSumFactory(modulus, symmetric).create(to_type((jnp.int32, (jnp.int32, (2,)))))
    output = process.next(process.initialize(), [(np.int32(v), np.int32([v, 0])) for v in values])
    period, shift = (2 * modulus - 1, modulus - 1) if symmetric else (modulus, 0)
    expected = (sum(values) + shift) % period - shift

    assert int(output.result[0]) == expected
    assert output.result[1].tolist() == [expected, 0]
    assert output.measurements == ()
    ko.compiler.assert_no_unsecure_aggregation(process.next)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((8.0,), KoinonTypeError),
        ((np.float32(8),), KoinonTypeError),
        ((True,), KoinonTypeError),
        ((0,), KoinonValueError),
        ((-1,), KoinonValueError),
        ((8, "True"), KoinonTypeError),
    ],
)
def test_a_modulus_is_a_positive_integer(arguments, error):
    """As in TFF, a TypeError or a ValueError."""
    with pytest.raises(error):
        SecureModularSumFactory(*arguments)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32])
def test_a_modulus_may_be_as_large_as_the_values_can_be(dtype, backend):
    """The greatest sum is then the greatest number of the dtype; a symmetric range takes half the modulus."""
    most = int(np.iinfo(dtype).max)
    process = SecureModularSumFactory(most + 1).create(TensorType(dtype))
    assert int(process.next(process.initialize(), [dtype(most), dtype(most)]).result) == most - 1
    assert int(process.next(process.initialize(), [dtype(most)]).result) == most
    if np.iinfo(dtype).min < 0:
        process = SecureModularSumFactory((most + 1) // 2, symmetric_range=True).create(TensorType(dtype))
        assert int(process.next(process.initialize(), [dtype(most // 2), dtype(1)]).result) == -(most // 2)


@pytest.mark.soak
def test_64_bits_are_summed_where_jax_holds_them():
    """Bounds beyond 2**32, floats of 64 bits beyond 2**64, and the ends of int64."""
    with jax.enable_x64(True):
        process = SecureSumFactory(2**33, -(2**33)).create(TensorType(np.int64))
        values = [2**40, -(2**32), 5, 2**33 - 1]
        expected = sum(max(-(2**33), min(2**33, v)) for v in values)
        assert int(process.next(process.initialize(), [np.int64(v) for v in values]).result) == expected

        process = SecureSumFactory(2**63 - 1, -(2**63)).create(TensorType(np.int64))
        for value in (2**63 - 1, -(2**63), -1):
            assert int(process.next(process.initialize(), [np.int64(value)]).result) == value

        process = SecureSumFactory(np.float64(2.0**66)).create(TensorType(np.float64))
        values = [2.0**65, 2.0**65, 2.0**66, 1.5 * 2.0**40]
        assert float(process.next(process.initialize(), [np.float64(v) for v in values]).result) == sum(values)
