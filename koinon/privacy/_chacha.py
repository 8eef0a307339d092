"""Random words from ChaCha20: a generator whose output cannot be told from uniform bits without its 256-bit key.

Threefry, the generator of `jax.random`, has 64-bit keys and makes no cryptographic claim. Noise that has to hide
something is drawn from here.
"""

from __future__ import annotations

import hashlib
import secrets

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import KoinonTypeError

KEY_WORDS = 8
_CONSTANTS = np.frombuffer(b"expand 32-byte k", dtype="<u4").astype(np.uint32)
_WORDS_PER_BLOCK = 16


def noise_key(seed: int | None = None) -> np.ndarray:
    """A 256-bit key for noise: from the operating system's entropy, or from a seed, for simulations.

    Args:
      seed: an integer, which gives the same key each time; whoever knows it can take the noise away again. None for
        32 bytes of the operating system's entropy, new at each call.

    Returns:
      A uint32 array of 8 words.

    Raises:
      KoinonTypeError: where the seed is no integer.

    >>> import koinon as ko
    >>> bool((ko.privacy.noise_key(7) == ko.privacy.noise_key(7)).all())
    True
    >>> bool((ko.privacy.noise_key() == ko.privacy.noise_key()).all())
    False
    """
    if seed is None:
        raw = secrets.token_bytes(4 * KEY_WORDS)
    elif isinstance(seed, int) and not isinstance(seed, bool):
        raw = hashlib.sha256(f"koinon noise {seed}".encode()).digest()
    else:
        raise KoinonTypeError("A seed must be an int.", expected="int or None", found=repr(seed))
    return np.frombuffer(raw, dtype="<u4").astype(np.uint32)


def random_words(
    key: jax.Array, nonce: tuple[jax.Array | int, jax.Array | int, jax.Array | int], count: int
) -> jax.Array:
    """The first `count` words of the ChaCha20 key stream for a key and a nonce; different nonces, different streams.

    Args:
      key: uint32[8].
      nonce: three words, traced or not; one stream is drawn from one nonce once.
      count: how many words, at most 2**36.

    Returns:
      A uint32 array of shape `(count,)`.

    References:
      Yoav Nir, Adam Langley: ChaCha20 and Poly1305 for IETF Protocols, RFC 8439, 2018, section 2.3 and 2.4.
      https://www.rfc-editor.org/rfc/rfc8439
    """
    blocks = -(-count // _WORDS_PER_BLOCK)
    counters = jnp.arange(blocks, dtype=jnp.uint32)
    nonce_words = jnp.stack([jnp.asarray(word).astype(jnp.uint32) for word in nonce])
    # (16, blocks) to block after block, as the key stream is numbered.
    return _blocks(key, nonce_words, counters).T.reshape(-1)[:count]


def _blocks(key: jax.Array, nonce: jax.Array, counters: jax.Array) -> jax.Array:
    """The blocks of the key stream with these counters, one in each column."""

    def rows(words: jax.Array | np.ndarray) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(words)[:, None], (len(words), len(counters)))

    start = (rows(_CONSTANTS), rows(key[:4]), rows(key[4:]), jnp.concatenate([counters[None], rows(nonce)]))

    def double_round(_: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        a, b, c, d = _quarter_rounds(*state)
        a, b, c, d = _quarter_rounds(a, _turn(b, 1), _turn(c, 2), _turn(d, 3))
        return a, _turn(b, 3), _turn(c, 2), _turn(d, 1)

    end = jax.lax.fori_loop(0, 10, double_round, start)
    return jnp.concatenate([x + y for x, y in zip(end, start, strict=True)])


def _quarter_rounds(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    """Four quarter rounds at once: the rows are those of the state as a 4 by 4 matrix."""
    a = a + b
    d = _rotate(d ^ a, 16)
    c = c + d
    b = _rotate(b ^ c, 12)
    a = a + b
    d = _rotate(d ^ a, 8)
    c = c + d
    b = _rotate(b ^ c, 7)
    return a, b, c, d


def _rotate(word: jax.Array, bits: int) -> jax.Array:
    return (word << bits) | (word >> (32 - bits))


def _turn(rows: jax.Array, places: int) -> jax.Array:
    return jnp.concatenate([rows[places:], rows[:places]])
