"""`noise_key` and `random_words`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.privacy import noise_key, random_words

# RFC 8439, section 2.3.2: the block number 1 of a key and a nonce.
KEY = np.arange(32, dtype=np.uint8).view("<u4").astype(np.uint32)
NONCE = tuple(int(word) for word in np.frombuffer(bytes.fromhex("000000090000004a00000000"), "<u4"))
BLOCK_1 = bytes.fromhex(
    "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
    "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
)


def test_the_key_stream_is_that_of_the_standard():
    """The published test vector: the second block of the stream."""
    words = np.asarray(random_words(jnp.asarray(KEY), NONCE, 40))[16:32]

    assert words.astype("<u4").tobytes() == BLOCK_1


def test_a_stream_is_the_beginning_of_a_longer_one():
    """How many words are drawn does not change them."""
    key = jnp.asarray(noise_key(3))

    np.testing.assert_array_equal(random_words(key, (1, 2, 3), 5), random_words(key, (1, 2, 3), 50)[:5])


def test_no_two_nonces_give_the_same_words():
    """A million streams of a key, of many rounds and purposes, begin with different pairs of words."""
    key = jnp.asarray(noise_key(0))
    rounds, streams = (part.reshape(-1) for part in jnp.meshgrid(jnp.arange(10_000), jnp.arange(100)))
    begin = jax.jit(jax.vmap(lambda r, s: random_words(key, (r, s, 0), 2)))
    first, second = np.asarray(begin(rounds, streams)).astype(np.uint64).T

    assert len(np.unique(first << np.uint64(32) | second)) == 1_000_000


def test_one_bit_of_the_key_changes_half_of_the_bits():
    """Streams of neighbouring keys have nothing in common: half of their bits differ, within 5 deviations."""
    key = noise_key(1)
    other = key.copy()
    other[3] ^= 1
    first, second = (np.asarray(random_words(jnp.asarray(k), (0, 0, 0), 10_000)) for k in (key, other))
    differing = np.unpackbits((first ^ second).view(np.uint8)).mean()

    assert abs(differing - 0.5) < 5 * 0.5 / np.sqrt(320_000)


def test_a_key_comes_from_the_operating_system_unless_it_is_seeded():
    """Keys without a seed differ, those with the same seed do not, those with another seed do."""
    assert len({noise_key().tobytes() for _ in range(100)}) == 100
    assert noise_key(5).tobytes() == noise_key(5).tobytes() != noise_key(6).tobytes()
    assert noise_key().shape == (8,)


@pytest.mark.parametrize("seed", [1.0, "1", True])
def test_a_seed_is_an_int(seed):
    """Nothing else is taken for one."""
    with pytest.raises(ko.errors.KoinonTypeError, match="must be an int"):
        noise_key(seed)
