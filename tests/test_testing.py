"""Tests of the tools for tests: counting frames and compilations."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.testing import FrameCount, count_compilations, count_frames

double = ko.jax_computation(lambda x: x + x, np.float32)


def test_only_frames_of_the_library_count() -> None:
    """Frames of the caller and of JAX do not."""

    def own(depth: int) -> int:
        return depth if depth == 0 else own(depth - 1)

    assert count_frames(own, 50) == FrameCount(0, 0)
    assert count_frames(lambda: jnp.ones(3) + 1) == FrameCount(0, 0)
    count = count_frames(double, jnp.float32(1))
    assert count.total >= count.deepest >= 2


def test_arguments_are_passed_and_errors_pass_through() -> None:
    """The profile is taken away again, whatever happens."""
    with pytest.raises(ko.errors.ArgumentError):
        count_frames(double, x="text")
    assert sys.getprofile() is None


def test_a_profile_that_was_there_is_there_again() -> None:
    """A profiler of the user's own is put back."""

    def mine(frame: object, event: str, argument: object) -> None:
        return None

    sys.setprofile(mine)
    try:
        count_frames(double, jnp.float32(1))
        assert sys.getprofile() is mine
    finally:
        sys.setprofile(None)


def test_compilations_are_counted_while_the_block_lasts() -> None:
    """One for each new shape, none for a shape that was there, none after the block."""
    triple = jax.jit(lambda x: 3 * x)
    shapes = [jnp.ones(n) for n in (2, 2, 5)]
    with count_compilations() as outer:
        triple(shapes[0])
        with count_compilations() as inner:
            triple(shapes[1])
        triple(shapes[2])
    triple(jnp.ones(7))
    assert (outer.total, inner.total) == (2, 0)
    assert repr(outer) == "CompilationCount(2)"
