"""A random permutation of `0 .. n - 1` that is computed index by index, for an `n` known only at run time.

A Feistel network over the pairs `(x // b, x % b)`, with `a * b >= n` and `a, b` about the square root of `n`; indices
that leave the range walk on until they are inside again (Black and Rogaway, "Ciphers with arbitrary finite domains",
2002, section 3). Every key gives a true permutation, whatever the quality of the round function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Small ranges need many rounds to come near the uniform law over all orders: a round of a range of two by two moves
# two indices at most.
_ROUNDS = 24


def permute(key: Any, length: Any) -> Callable[[Any], Any]:
    """The permutation of `0 .. length - 1` that the key determines, as a function of an index or a vector of them.

    Indices outside the range are clipped into it.
    """
    size = jnp.maximum(jnp.asarray(length, jnp.int32), 1)
    high = jnp.ceil(jnp.sqrt(size.astype(jnp.float32))).astype(jnp.int32)
    low = (size + high - 1) // high
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)

    def cross(x: Any) -> Any:
        left, right = (x // low).astype(jnp.uint32), (x % low).astype(jnp.uint32)
        for i in range(0, _ROUNDS, 2):
            left = _add_modulo(left, _hash(round_keys[i] ^ right), high)
            right = _add_modulo(right, _hash(round_keys[i + 1] ^ left), low)
        return (left * low.astype(jnp.uint32) + right).astype(jnp.int32)

    def index(x: Any) -> Any:
        def walk(state: Any) -> Any:
            y, outside = state
            y = jnp.where(outside, cross(y), y)
            return y, y >= size

        # Every index takes a first step; written once, since the network is long to compile.
        x = jnp.clip(jnp.asarray(x, jnp.int32), 0, size - 1)
        return jax.lax.while_loop(lambda state: jnp.any(state[1]), walk, (x, jnp.ones_like(x, bool)))[0]

    return index


def _add_modulo(value: Any, noise: Any, modulus: Any) -> Any:
    """`value + noise` modulo a number below 2^16, with the top half of the noise scaled into its range."""
    modulus = modulus.astype(jnp.uint32)
    total = value + ((noise >> 16) * modulus >> 16)
    return jnp.where(total >= modulus, total - modulus, total)


def _hash(x: Any) -> Any:
    """A mixing of 32 bits in which every input bit reaches every output bit (the finaliser of MurmurHash3)."""
    x = x ^ (x >> 16)
    x = x * jnp.uint32(0x85EBCA6B)
    x = x ^ (x >> 13)
    x = x * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
