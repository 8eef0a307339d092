"""The arithmetic of secure sums, against Python's integers and fractions."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import koinon as ko
from koinon.aggregators._secure_field import (
    HIGH_MODULUS,
    LOW_MODULUS,
    MOST_CLIENTS,
    from_residues,
    share_of,
    signed_sum,
    to_residues,
)
from koinon.types import TensorType, at_clients

residues_of = jax.jit(jax.vmap(to_residues))
sums_of = jax.jit(jax.vmap(from_residues))
BATCH = 64


def exact_steps(value, lower, upper):
    """The distance of a clipped float from where steps are counted, and a step, by exact arithmetic."""
    low, high, number = (Fraction(float(x)) for x in (lower, upper, value))
    step = Fraction(2) ** -126
    while high - low >= step * 2**32:
        step *= 2
    origin = min(max(Fraction(0), low), high)
    return min(max(number, low), high) - origin, step


@pytest.mark.parametrize("seed", [0, 1])
def test_a_float_is_rounded_once_to_a_step_of_a_range_of_32_bits(seed):
    """For ranges of any size and place: the integer is the nearest one, and the residues are its own."""
    rng = np.random.default_rng(seed)
    scale = 2.0 ** rng.integers(-60, 60, BATCH)
    ends = np.sort(rng.normal(size=(BATCH, 2)) * scale[:, None], axis=1).astype(np.float32)
    ends[::4, 0] = 0.0  # from zero up
    ends[1::4] = np.sort(np.stack([-ends[1::4, 1], ends[1::4, 1]], 1), axis=1)  # symmetric
    ends = np.sort(ends, axis=1)
    lower, upper = ends.T
    values = (lower + (upper - lower) * rng.uniform(-0.2, 1.2, BATCH)).astype(np.float32)
    values[:8], values[8:16], values[16:24] = lower[:8], upper[8:16], 0.0
    low, high = (np.asarray(part).astype(object) for part in residues_of(values, lower, upper))
    for i in range(BATCH):
        distance, step = exact_steps(values[i], lower[i], upper[i])
        # Where zero is out of the range, the distance from its end is a float32 itself.
        expected = round(Fraction(float(np.float32(float(distance)))) / step)

        assert abs(expected) < 2**32
        assert (int(low[i]), int(high[i])) == (expected % int(LOW_MODULUS), expected % int(HIGH_MODULUS))


@given(st.lists(st.integers(-(2**61) + 2**31, 2**61 - 1) | st.integers(-(2**33), 2**33), min_size=1, max_size=BATCH))
def test_a_sum_is_put_together_from_its_residues(sums):
    """Any integer of the field, of either sign."""
    padded = (sums * BATCH)[:BATCH]
    low = np.array([s % int(LOW_MODULUS) for s in padded], np.uint32)
    high = np.array([s % int(HIGH_MODULUS) for s in padded], np.uint32)
    is_negative, above, below = (np.asarray(part).astype(object) for part in jax.jit(signed_sum)(low, high))

    assert [
        (-1 if n else 1) * (int(a) * 2**31 + int(b)) for n, a, b in zip(is_negative, above, below, strict=True)
    ] == padded


@pytest.mark.parametrize("magnitude", [2**20, 2**31, 2**40, 2**52, 2**61])
def test_a_sum_becomes_a_float_with_one_rounding(magnitude):
    """At most the neighbour of the nearest float32, and exactly what a float32 holds."""
    rng = np.random.default_rng(magnitude % 97)
    sums = [int(s) for s in rng.integers(-magnitude + 2**31 * (magnitude == 2**61), magnitude, BATCH)]
    sums[:4] = [0, -1, 2**24 - 1, -(2**23)]
    low = np.array([s % int(LOW_MODULUS) for s in sums], np.uint32)
    high = np.array([s % int(HIGH_MODULUS) for s in sums], np.uint32)
    ones = np.ones(BATCH, np.float32)
    # From -1 to 1 there are 2**31 steps.
    found = np.asarray(sums_of(low, high, -ones, ones, np.full(BATCH, 5, np.int32)))
    exact = np.array([float(Fraction(s, 2**30)) for s in sums])

    assert (np.abs(found - exact) <= np.spacing(np.abs(exact).astype(np.float32))).all()
    holds = [i for i, s in enumerate(sums) if float(np.float32(s)) == s]
    assert (found[holds] == exact[holds]).all()


def test_powers_of_two_scale_exactly_for_every_range():
    """For ranges of any size, the bounds are what they were, and more is not seen as more."""
    upper = np.ldexp(np.float32(1.0), np.arange(-120, 128))
    low, high = residues_of(upper * np.float32(1.5), -upper, upper)
    found = sums_of(low, high, -upper, upper, np.ones(len(upper), np.int32))

    np.testing.assert_array_equal(found, upper)


@given(st.integers(1, MOST_CLIENTS) | st.integers(1, 100))
def test_a_share_stops_more_clients_than_there_may_be(most):
    """The sum of one share more than allowed leaves int32; up to 46,340 clients, all of them may come."""
    share = share_of(most)
    allowed = MOST_CLIENTS // share

    assert 1 <= allowed <= most
    assert (allowed + 1) * share > MOST_CLIENTS
    assert allowed == most or most > 46_340
    assert most - allowed <= max(1, most // share)
    assert int(share_of(jnp.uint32(most))) == share


def secure_sums(dtype, size):
    """Computations of the three operators, for vectors and a bound that is an argument."""
    values = at_clients(TensorType(dtype, (size,)))
    operators = {
        "bitwidth": ko.federated_secure_sum_bitwidth,
        "max": ko.federated_secure_sum,
        "modulus": ko.federated_secure_modular_sum,
    }
    return {
        name: _computation(values, np.int32 if name == "bitwidth" else dtype, operator)
        for name, operator in operators.items()
    }


def _computation(values, bound, operator):
    def total(v, b):
        return operator(v, b)

    return ko.federated_computation(values, bound)(total)


def check_operators(dtype, size, rng):
    """One random case per element and bit width, for each operator; returns how many there were."""
    sums = secure_sums(dtype, size)
    limit, count = int(np.iinfo(dtype).max), 0
    for bits in range(1, min(62, limit.bit_length()) + 1):
        largest = 2**bits - 1
        clients = int(min(rng.integers(1, 9), limit // largest))
        matrix = [[int(rng.integers(0, largest + 1, dtype=np.uint64)) for _ in range(size)] for _ in range(clients)]
        for row in matrix:
            row[: size // 8] = [0, largest] * (size // 16) + [0] * (size // 8 % 2)
        values = [np.array(row, dtype) for row in matrix]
        expected = [sum(column) for column in zip(*matrix, strict=True)]
        assert np.asarray(sums["bitwidth"](values, bits)).tolist() == expected
        assert np.asarray(sums["max"](values, dtype(largest))).tolist() == expected
        for modulus in {2**bits - 1 or 1, int(rng.integers(1, largest + 1, dtype=np.uint64)), 2 ** (bits - 1)}:
            found = np.asarray(sums["modulus"](values, dtype(modulus))).tolist()
            assert found == [total % modulus for total in expected]
        count += 3 * size
        with pytest.raises(ko.errors.SecureSumRangeError):
            sums["max"]([np.full(size, largest, dtype)], dtype(largest - 1))
    return count


def test_operators_sum_as_python_does():
    """For every bit width of int32."""
    assert check_operators(np.int32, 16, np.random.default_rng(0)) == 3 * 16 * 31


@pytest.mark.soak
def test_a_hundred_thousand_secure_sums_agree_with_python():
    """Bit widths 1 to 62, moduli of any kind, all integer dtypes, one to eight clients, the ends of the ranges."""
    rng = np.random.default_rng(1)
    cases = sum(check_operators(dtype, 64, rng) for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32))
    with jax.enable_x64(True):
        cases += check_operators(np.int64, 400, rng) + check_operators(np.uint64, 200, rng)

    assert cases >= 100_000
