"""Norms over all leaves of a structure at once, in float32, and whether all of them are finite."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from koinon._jax import greatest


def global_l1_norm(value: Any) -> jax.Array:
    """The sum of the absolute values of all elements, a float32 scalar."""
    return sum((jnp.sum(jnp.abs(leaf)) for leaf in _leaves(value)), start=jnp.float32(0.0))


def global_l2_norm(value: Any) -> jax.Array:
    """The square root of the sum of the squares of all elements, a float32 scalar.

    Elements whose squares overflow or vanish in float32 are measured right: all are scaled by a power of two, which
    is exact, before they are squared.
    """
    largest = global_inf_norm(value)
    # Half of float32's exponents on either side keep the scale, its inverse and the squares in range.
    exponent = jnp.clip(jnp.frexp(largest)[1], -100, 100)
    scale = jnp.where(jnp.isfinite(largest), jnp.exp2(exponent.astype(jnp.float32)), jnp.float32(1.0))
    squares = sum((jnp.sum(jnp.square(leaf / scale)) for leaf in _leaves(value)), start=jnp.float32(0.0))
    return scale * jnp.sqrt(squares)


def global_inf_norm(value: Any) -> jax.Array:
    """The largest absolute value of all elements, a float32 scalar; 0 where there is no element."""
    norms = [greatest(jnp.abs(leaf), initial=0.0) for leaf in _leaves(value)]
    return greatest(jnp.stack(norms)) if norms else jnp.float32(0.0)


def all_finite(value: Any) -> jax.Array:
    """Whether all elements of all leaves are finite, a bool scalar."""
    leaves = [leaf for leaf in jax.tree.leaves(value) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    return functools.reduce(jnp.logical_and, map(_is_finite, leaves), jnp.bool_(True))


def _is_finite(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        # Nothing times what is not finite is NaN. Such a sum takes a fraction of the time of a bit for each element.
        return jnp.isfinite(jnp.sum(leaf * 0))
    return jnp.isfinite(leaf).all()


def _leaves(value: Any) -> list[jax.Array]:
    return [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(value)]
