"""`secure_quantized_sum`."""

from __future__ import annotations

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon import errors, secure
from koinon.aggregators import secure_quantized_sum
from koinon.aggregators._secure_field import HIGH_MODULUS, LOW_MODULUS, from_residues, to_residues
from koinon.types import TensorType, at_clients, at_server, to_type

INT, FLOAT = TensorType(jnp.int32), TensorType(jnp.float32)
VECTOR = TensorType(jnp.float32, (50,))
STRUCT = to_type(OrderedDict(a=jnp.float32, b=(jnp.int32, (2,))))


def summed(value_type, bound_type):
    """A computation of the sum, for bounds at the server."""

    @ko.federated_computation(at_clients(value_type), at_server(bound_type), at_server(bound_type))
    def total(value, lower, upper):
        return secure_quantized_sum(value, lower, upper)

    ko.compiler.assert_no_unsecure_aggregation(total)
    return total


@pytest.fixture(scope="module")
def floats():
    """Vectors of floats."""
    return summed(VECTOR, FLOAT)


@pytest.fixture(scope="module")
def integers():
    """Single integers."""
    return summed(INT, INT)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [(-1.0, 1.0), (-1000.0, 1000.0), (0.0, 3.0), (-0.001, 7.0), (5.0, 6.0), (-9.0, -8.5), (2.0, 2.0)],
)
def test_a_float_is_off_by_a_step_at_most(floats, lower, upper):
    """The error of a sum is at most that of each client, and one rounding of the sum."""
    rng = np.random.default_rng(3)
    clients = rng.uniform(lower - 0.1, upper + 0.1, (7, 50)).astype(np.float32)
    found = np.asarray(floats(list(clients), lower, upper))
    exact = np.clip(clients.astype(np.float64), np.float32(lower), np.float32(upper)).sum(axis=0)
    # Where zero is out of the range, its end is added so many times, which rounds too.
    rounding = np.spacing(np.abs(exact).astype(np.float32)) * (1 if lower <= 0 <= upper else 3)

    assert (np.abs(found - exact) <= 7 * (upper - lower) / 2**32 + rounding).all()


def test_zeros_and_large_numbers_are_exact(floats):
    """The sum of zeros is zero for any range, and that of the bound that is farther from zero is its own."""
    for lower, upper in ((-0.7, 0.1), (-3.0, 1e-6), (0.0, 1 / 3)):
        ends = np.float32([max(lower, upper, key=abs)] * 2 + [0.0] * 48)
        found = np.asarray(floats([ends] * 4, lower, upper))

        assert found.tolist() == (4 * ends).tolist()


def test_the_masked_protocol_computes_the_same_sum(floats):
    """What clients send, summed under masks with a client that drops out, is the sum of the engine to the bit."""
    rng = np.random.default_rng(4)
    clients = rng.normal(size=(5, 50)).astype(np.float32)
    lower, upper = np.float32(-2.0), np.float32(2.0)
    sent = [to_residues(client, lower, upper) for client in clients]
    low, high = (
        secure.simulate([parts[i] for parts in sent], 3, {4: "mask"}, modulus=int(modulus)).total.astype(np.uint32)
        for i, modulus in enumerate((LOW_MODULUS, HIGH_MODULUS))
    )
    total = from_residues(jnp.asarray(low), jnp.asarray(high), jnp.asarray(lower), jnp.asarray(upper), jnp.int32(4))

    assert np.asarray(total).tobytes() == np.asarray(floats(list(clients[:4]), lower, upper)).tobytes()


def test_a_client_that_is_not_finite_adds_nothing(floats):
    """Not the lower bound, as in TFF."""
    bad = [np.full(50, value, np.float32) for value in (np.nan, np.inf, -np.inf)]
    good = [np.linspace(-1, 2, 50, dtype=np.float32)]

    for lower, upper in ((-1.0, 1.0), (0.5, 1.0)):
        assert (
            np.asarray(floats(good + bad, lower, upper)).tobytes() == np.asarray(floats(good, lower, upper)).tobytes()
        )


@pytest.mark.parametrize(
    ("lower", "upper", "values"),
    [
        (-10, 10, [3, -20, 20]),
        (-(2**31), 2**31 - 1, [-(2**31)]),
        (-(2**31), 2**31 - 1, [2**31 - 1]),
        (-(2**30), 2**30 - 1, [2**30 - 1]),
        (7, 9, [0, 0, 8]),
        (2**29, 2**29 + 5, [2**29 + 1, 2**29 + 3, 2**31 - 1]),
        (-5, -5, [1, 2]),
    ],
)
def test_integers_are_exact_for_bounds_at_run_time(integers, lower, upper, values):
    """In the whole range of the dtype."""
    assert int(integers(values, lower, upper)) == sum(min(max(v, lower), upper) for v in values)


def test_what_could_overflow_is_an_error_at_run_time(integers):
    """Bounds that are too wide for the clients, or turned around."""
    integers([0, 0], -(2**30) + 1, 2**30 - 1)
    for values, lower, upper in (([0, 0], -(2**30), 2**30), ([0, 0, 0], 0, 2**30 - 1), ([0], 1, 0)):
        with pytest.raises(errors.SecureSumRangeError):
            integers(values, lower, upper)


def test_floats_of_no_range_are_an_error_at_run_time(floats):
    """A bound that is not finite, or a range that is empty."""
    for lower, upper in ((1.0, -1.0), (-np.inf, 1.0), (0.0, np.nan)):
        with pytest.raises(errors.SecureSumRangeError):
            floats([np.zeros(50, np.float32)], lower, upper)


def test_a_struct_may_have_a_bound_for_each_tensor():
    """Of floats and integers at once, as constants and at the server."""
    clients = [OrderedDict(a=np.float32(v), b=np.int32([v, -v])) for v in (0.25, 3.0, 100.0)]
    lower, upper = OrderedDict(a=-1.0, b=0), OrderedDict(a=1.0, b=50)
    bounds = to_type(OrderedDict(a=jnp.float32, b=jnp.int32))

    @ko.federated_computation(at_clients(STRUCT))
    def constant(value):
        return secure_quantized_sum(value, lower, upper, max_clients=1000)

    for total in (constant(clients), summed(STRUCT, bounds)(clients, lower, upper)):
        assert isinstance(total, OrderedDict)
        assert float(total["a"]) == 0.25 + 1.0 + 1.0
        assert total["b"].tolist() == [0 + 3 + 50, 0]


def traced(value_type, fn):
    """Traces a sum of values at the clients."""
    return ko.federated_computation(at_clients(value_type))(fn)


@pytest.mark.parametrize(
    ("value_type", "bounds", "error"),
    [
        (FLOAT, lambda: (0.0, ko.federated_value(1.0, ko.SERVER)), errors.BoundsDifferentTypesError),
        (FLOAT, lambda: (ko.federated_value(0.0, ko.SERVER), 1.0), errors.BoundsDifferentTypesError),
        (FLOAT, lambda: (0.0, 1), errors.BoundsDifferentSignaturesError),
        (
            FLOAT,
            lambda: (ko.federated_value(0.0, ko.CLIENTS), ko.federated_value(1.0, ko.CLIENTS)),
            errors.BoundsNotPlacedAtServerError,
        ),
        (STRUCT, lambda: (OrderedDict(a=0.0), OrderedDict(a=1.0)), errors.StructuredBoundsTypeMismatchError),
        (STRUCT, lambda: (OrderedDict(a=0, b=0), OrderedDict(a=1, b=1)), errors.StructuredBoundsTypeMismatchError),
        (FLOAT, lambda: ((0.0,), (1.0,)), errors.StructuredBoundsTypeMismatchError),
        (STRUCT, lambda: (0.0, 1.0), errors.ScalarBoundStructValueDTypeError),
        (INT, lambda: (0.0, 1.0), errors.ScalarBoundSimpleValueDTypeError),
        (TensorType(jnp.float16), lambda: (0.0, 1.0), errors.UnsupportedDTypeError),
        (TensorType(jnp.uint8), lambda: (0, 1), errors.UnsupportedDTypeError),
        (FLOAT, lambda: (1.0, -1.0), errors.KoinonValueError),
        (FLOAT, lambda: (0.0, np.inf), errors.KoinonValueError),
        (INT, lambda: (1, 0), errors.KoinonValueError),
    ],
)
def test_bounds_that_do_not_fit_have_the_errors_of_tff(value_type, bounds, error):
    """Each kind of mistake is an error of its own; all about types are TypeErrors."""
    with pytest.raises(error) as caught:
        traced(value_type, lambda value: secure_quantized_sum(value, *bounds()))
    assert isinstance(caught.value, ValueError if error is errors.KoinonValueError else TypeError)


def test_values_are_placed_at_the_clients():
    """A constant or a value at the server is no contribution."""
    with pytest.raises(errors.PlacementError):
        ko.federated_computation(at_server(FLOAT))(lambda value: secure_quantized_sum(value, 0.0, 1.0))
    with pytest.raises(errors.KoinonTypeError, match="a value at the clients"):
        secure_quantized_sum(1.0, 0.0, 1.0)


def test_a_cohort_that_is_too_large_is_a_static_error():
    """For constants when traced, for bounds at the server when run."""
    with pytest.raises(errors.SecureSumFieldError, match="2147 clients are allowed"):
        traced(INT, lambda value: secure_quantized_sum(value, 0, 1_000_000, max_clients=2148))
    traced(INT, lambda value: secure_quantized_sum(value, 0, 1_000_000, max_clients=2147))

    @ko.federated_computation(at_clients(INT), at_server(INT))
    def for_many(value, upper):
        lower = ko.federated_map(lambda x: -x, upper)
        return secure_quantized_sum(value, lower, upper, max_clients=2000)

    assert int(for_many([5, -2_000_000], 1_000_000)) == 5 - 1_000_000
    with pytest.raises(errors.SecureSumRangeError):
        for_many([5], 2_000_000)


@pytest.mark.soak
def test_64_bits_where_jax_holds_them():
    """Integers beyond 2**32 steps are exact too; floats of 64 bits have 32-bit steps."""
    with jax.enable_x64(True):
        total = summed(TensorType(np.int64), TensorType(np.int64))
        values = [2**61, -(2**61) + 1, 12345]
        assert int(total([np.int64(v) for v in values], np.int64(-(2**61)), np.int64(2**61))) == sum(values)

        total = summed(TensorType(np.float64), TensorType(np.float64))
        values = [1e-3, 1 / 3, -0.9]
        found = float(total([np.float64(v) for v in values], np.float64(-1.0), np.float64(1.0)))
        assert abs(found - sum(values)) <= 3 * 2 / 2**32
