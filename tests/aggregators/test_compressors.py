"""Compressors by themselves: messages of the bytes that are said, decoded without bias where that is said."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.aggregators import (
    Compressor,
    QSGDQuantizer,
    RandomKSparsifier,
    TopKSparsifier,
    UniformQuantizer,
)
from koinon.aggregators._compressor import leaf_bytes, pack_codes, unpack_codes

VECTOR = jnp.array([0.3, -1.7, 0.0, 2.2, 0.05, -0.4, 1.1], jnp.float32)
SIZE = len(VECTOR)

COMPRESSORS: dict[str, Compressor] = {
    "uniform 1": UniformQuantizer(1),
    "uniform 3": UniformQuantizer(3),
    "uniform 8": UniformQuantizer(8),
    "uniform 16": UniformQuantizer(16),
    "nearest 4": UniformQuantizer(4, stochastic=False),
    "qsgd 2": QSGDQuantizer(2),
    "qsgd 4 inf": QSGDQuantizer(4, norm="inf"),
    "top k": TopKSparsifier(0.3),
    "random k": RandomKSparsifier(0.3),
    "random k of 3 bits": RandomKSparsifier(0.5, values=UniformQuantizer(3)),
    "random k as it is": RandomKSparsifier(0.3, unbiased=False),
    "top k of 4 bits": TopKSparsifier(0.5, values=UniformQuantizer(4)),
}
every_compressor = pytest.mark.parametrize("name", COMPRESSORS)


def round_trips(compressor, vector, count, seed=0):
    """What a server decodes of a vector, `count` times with keys of their own."""
    vector = jnp.asarray(vector, jnp.float32)
    keys = jax.random.split(jax.random.key(seed), count)

    def decode(vector, key):
        return compressor.decode(compressor.encode(vector, key), vector.size)

    # An argument and no constant, which XLA would compute with while it compiles.
    return np.asarray(jax.jit(jax.vmap(decode, in_axes=(None, 0)))(vector, keys), np.float64)


@pytest.mark.parametrize(("bits", "size"), [*((bits, 13) for bits in range(1, 17)), (3, 0), (3, 8), (4, 2)])
def test_codes_come_back_from_as_few_bytes_as_hold_them(bits, size):
    """For every width, the ends of its range, and numbers of codes that do and do not fill whole bytes."""
    numbers = np.random.default_rng(bits).integers(0, 2**bits, size).astype(np.uint32)
    numbers[:2] = [0, 2**bits - 1][: len(numbers)]
    packed = jax.jit(pack_codes, static_argnums=1)(numbers, bits)

    assert leaf_bytes(packed) == math.ceil(size * bits / 8)
    np.testing.assert_array_equal(jax.jit(unpack_codes, static_argnums=(1, 2))(packed, bits, size), numbers)


@every_compressor
def test_a_message_has_the_bytes_that_are_counted(name):
    """The arrays that are sent, and no others."""
    message = jax.jit(COMPRESSORS[name].encode)(VECTOR, jax.random.key(0))

    assert COMPRESSORS[name].num_bytes(SIZE) == sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(message))


def test_the_documented_bytes():
    """By hand: codes and two floats, or one; numbers and places; numbers and a key."""
    assert UniformQuantizer(3).num_bytes(1000) == 375 + 8
    assert QSGDQuantizer(4).num_bytes(1000) == 500 + 4
    assert TopKSparsifier(0.01).num_bytes(65536) == 655 * (4 + 2)
    assert TopKSparsifier(0.01).num_bytes(65537) == 655 * (4 + 4)
    assert TopKSparsifier(0.01, values=UniformQuantizer(8)).num_bytes(1000) == 10 + 8 + 10 * 2
    assert RandomKSparsifier(0.01).num_bytes(1000) == 10 * 4 + 8
    assert TopKSparsifier(1e-9).num_bytes(1000) == 6


# Bonferroni over all numbers that are tested: a false alarm of the whole file once in ten thousand seeds.
_SLOW = ("uniform 3", "uniform 8", "qsgd 2", "random k of 3 bits")
_UNBIASED = [
    pytest.param(name, marks=pytest.mark.soak) if name in _SLOW else name
    for name in COMPRESSORS
    if COMPRESSORS[name].is_unbiased
]
_Z = 5.2  # two-sided normal tail 2.0e-7, times 7 numbers times fewer than 12 compressors: below 1e-4


@pytest.mark.parametrize("name", _UNBIASED)
def test_what_is_said_to_be_unbiased_is(name):
    """The mean of 200,000 decodings is the vector, to 5.2 standard errors; a planted bias of a twentieth is found."""
    drawn = round_trips(COMPRESSORS[name], VECTOR, 200_000)
    standard_error = drawn.std(axis=0, ddof=1) / math.sqrt(len(drawn))
    bias = np.abs(drawn.mean(axis=0) - np.asarray(VECTOR, np.float64))

    # Numbers without variance are exact up to float32.
    assert (bias <= _Z * standard_error + 3e-7).all()
    assert (np.abs(1.05 * drawn.mean(axis=0) - np.asarray(VECTOR)) > 1.05 * _Z * standard_error + 3e-7).any()


@pytest.mark.parametrize(("bits", "levels"), [(1, 1), (2, 3)])
def test_the_exact_expectation_of_stochastic_rounding(bits, levels):
    """By hand from the law: a code is one higher with the probability of the fraction; so are the decoded numbers."""
    vector = np.array([-1.0, -0.3, 0.2, 1.0])
    drawn = round_trips(UniformQuantizer(bits), vector, 100_000)
    position = (vector + 1.0) / 2.0 * levels
    for i in range(len(vector)):
        low = -1.0 + 2.0 * math.floor(position[i]) / levels
        high = low + 2.0 / levels
        seen = set(np.round(drawn[:, i], 5))
        chance = position[i] - math.floor(position[i])
        assert seen <= {round(low, 5), round(high, 5)}
        # The expectation over the two outcomes, by enumeration.
        assert (1 - chance) * low + chance * high == pytest.approx(vector[i])
        rate = np.isclose(drawn[:, i], high, atol=1e-5).mean()
        assert abs(rate - chance) <= _Z * math.sqrt(chance * (1 - chance) / len(drawn)) + 1e-12


def test_random_places_are_uniform_subsets():
    """All pairs of five places are drawn equally often: chi-square of ten cells; each number has expectation itself."""
    drawn = round_trips(RandomKSparsifier(0.4), np.arange(1.0, 6.0), 50_000)
    pairs = list(itertools.combinations(range(5), 2))
    counts = dict.fromkeys(pairs, 0)
    patterns, numbers = np.unique(drawn != 0, axis=0, return_counts=True)
    for pattern, number in zip(patterns, numbers, strict=True):
        counts[tuple(np.flatnonzero(pattern))] += number
    expected = len(drawn) / len(pairs)
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())

    assert statistic < 36.0  # chi-square of 9 degrees of freedom: exceeded with probability 4e-5
    # The exact expectation: a number is in 4 of the 10 pairs, and scaled by 5/2 then.
    assert sum(5 / 2 for pair in pairs if 0 in pair) / len(pairs) == 1.0
    assert set(np.unique(drawn[:, 1])) == {0.0, 5.0}


def test_the_error_of_uniform_quantization_is_bounded():
    """Half a level if rounded to the nearest, a level at random, and its variance a quarter of the level squared."""
    vector = np.random.default_rng(0).normal(size=500).astype(np.float32)
    for bits in (1, 5):
        level = (vector.max() - vector.min()) / (2**bits - 1)
        nearest = round_trips(UniformQuantizer(bits, stochastic=False), vector, 1)[0]
        assert np.abs(nearest - vector).max() <= level / 2 + 1e-6
        drawn = round_trips(UniformQuantizer(bits), vector, 200)
        assert np.abs(drawn - vector).max() <= level + 1e-6
        assert drawn.var(axis=0).mean() <= level**2 / 4


@pytest.mark.parametrize("compressor", [UniformQuantizer(4), UniformQuantizer(16), QSGDQuantizer(4, norm="inf")])
def test_floats_at_the_ends_of_their_range(compressor):
    """Neither overflow on the way nor a wrong finite number: the extremes are exact."""
    extremes = np.array([3e38, -3e38, 0.0], np.float32)
    decoded = round_trips(compressor, extremes, 4)

    np.testing.assert_allclose(decoded[:, :2], np.broadcast_to(extremes[:2], (4, 2)), rtol=1e-6)
    assert np.isfinite(decoded).all()
    for constant in (0.0, 1e-30, -2.5):
        np.testing.assert_allclose(round_trips(compressor, np.full(3, constant), 2), constant, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("compressor", [UniformQuantizer(8), QSGDQuantizer(8), QSGDQuantizer(8, norm="inf")])
def test_what_is_not_finite_does_not_become_finite(compressor, bad):
    """A quantized vector with such a number is not finite everywhere: the server can tell."""
    decoded = round_trips(compressor, [1.0, bad, 0.0], 2)

    assert not np.isfinite(decoded).all(axis=1).any()


def test_top_k_keeps_the_largest():
    """Against a sort by numpy, for several fractions; of two equal ones the first."""
    vector = np.random.default_rng(1).normal(size=300).astype(np.float32)
    for fraction, count in ((0.01, 3), (0.5, 150), (1.0, 300)):
        kept = np.argsort(-np.abs(vector), kind="stable")[:count]
        expected = np.zeros_like(vector)
        expected[kept] = vector[kept]
        np.testing.assert_array_equal(round_trips(TopKSparsifier(fraction), vector, 1)[0], expected)
    np.testing.assert_array_equal(round_trips(TopKSparsifier(0.5), [1.0, -1.0], 1)[0], [1.0, 0.0])


def test_zeros_stay_zeros_in_qsgd():
    """A sparse vector keeps its zeros, and a vector of zeros is exact."""
    drawn = round_trips(QSGDQuantizer(4), [0.0, 3.0, 0.0, -4.0], 100)

    assert (drawn[:, [0, 2]] == 0).all()
    assert (round_trips(QSGDQuantizer(4), np.zeros(3), 2) == 0).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: UniformQuantizer(0), ValueError, "`bits`"),
        (lambda: UniformQuantizer(8.0), ValueError, "`bits`"),  # pyright: ignore[reportArgumentType]
        (lambda: QSGDQuantizer(1), ValueError, "2 to 16"),
        (lambda: QSGDQuantizer(4, norm="l1"), ValueError, "no norm"),  # pyright: ignore[reportArgumentType]
        (lambda: TopKSparsifier(2), TypeError, "must be a float"),
        (lambda: TopKSparsifier(0.0), ValueError, r"\(0, 1\]"),
        (lambda: RandomKSparsifier(0.5, values=UniformQuantizer), TypeError, "must be a compressor"),  # pyright: ignore
    ],
)
def test_options_that_make_no_sense(make, error, message):
    """Each is refused with the name of the option."""
    with pytest.raises(error, match=message):
        make()
