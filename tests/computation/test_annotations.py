"""Annotations do nothing to a value, under every transformation of JAX, and stay in the program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.computation._annotations import ClipNote, NoiseNote, annotate_p
from koinon.errors import KoinonValueError


def annotated(x: Any) -> Any:
    """A value with both annotations."""
    return ko.annotate_noise(
        ko.annotate_clip(x, 2.0), mechanism="gaussian", noise_multiplier=0.5, simulation_only=True, sampling="poisson"
    )


def notes(fn: Any, *args: Any) -> list[Any]:
    """The annotations in the program of a function, through the programs that it calls."""
    found = []
    pending = [jax.make_jaxpr(fn)(*args).jaxpr]
    while pending:
        for eqn in pending.pop().eqns:
            if eqn.primitive is annotate_p:
                found.append(eqn.params["note"])
            pending += [p.jaxpr for p in eqn.params.values() if hasattr(p, "jaxpr")]
    return found


def test_annotations_are_the_identity() -> None:
    """Values of every kind come back as they are, in their containers."""
    value = {"a": jnp.arange(3.0), "b": (jnp.int32(4), jnp.bool_(True)), "k": jax.random.key(1)}
    for result in (annotated(value), jax.jit(annotated)(value)):
        assert jax.tree.structure(result) == jax.tree.structure(value)
        assert np.array_equal(result["a"], value["a"])
        assert result["b"] == value["b"]
        assert result["k"] == value["k"]


def test_derivatives_pass_through() -> None:
    """The derivative of an annotated value is that of the value: forward, reverse, transposed and batched."""
    x = jnp.asarray([0.5, -2.0, 3.0])
    loss = lambda v: jnp.sum(annotated(v) ** 2)  # noqa: E731

    assert np.allclose(jax.grad(loss)(x), 2 * x)
    assert np.allclose(jax.jvp(loss, (x,), (jnp.ones(3),))[1], jnp.sum(2 * x))
    assert np.allclose(jax.linear_transpose(annotated, x)(jnp.ones(3))[0], jnp.ones(3))
    assert np.allclose(jax.vmap(jax.grad(lambda v: annotated(v) ** 3))(x), 3 * x**2)


def test_the_program_holds_the_notes() -> None:
    """What was stated is found in the program, with its numbers, under jit and vmap too."""
    expected = [ClipNote(2.0), NoiseNote("gaussian", 0.5, True, "poisson")]

    assert notes(annotated, jnp.ones(3)) == expected
    assert notes(jax.jit(annotated), jnp.ones(3)) == expected
    assert notes(jax.vmap(annotated), jnp.ones(3)) == expected


def test_a_derivative_is_not_clipped() -> None:
    """An annotation says nothing about the derivative of what it annotates."""
    assert notes(jax.grad(lambda x: ko.annotate_clip(x, 1.0)), jnp.float32(2)) == [ClipNote(1.0)]


def test_traced_numbers_are_unknown() -> None:
    """A norm or a multiplier that is computed is known only when the program runs."""

    def adaptive(x: Any, c: Any) -> Any:
        return ko.annotate_noise(
            ko.annotate_clip(x, c), mechanism="gaussian", noise_multiplier=c * 2, simulation_only=False
        )

    assert notes(adaptive, 1.0, 2.0) == [ClipNote(None), NoiseNote("gaussian", None, False, None)]


@pytest.mark.parametrize("norm", [-1.0, float("nan")])
def test_a_norm_is_not_negative(norm: float) -> None:
    """A negative norm or multiplier, or one that is no number, is refused."""
    with pytest.raises(KoinonValueError, match="norm of an annotation"):
        ko.annotate_clip(1.0, norm)
    with pytest.raises(KoinonValueError, match="noise multiplier of an annotation"):
        ko.annotate_noise(1.0, mechanism="laplace", noise_multiplier=norm, simulation_only=True)


def test_engines_run_annotated_computations(backend: str) -> None:
    """In both engines, an annotated computation gives what it gives without."""

    @ko.federated_computation(ko.types.at_clients(jnp.float32))
    def total(x: Any) -> Any:
        return ko.federated_map(annotated, ko.federated_sum(ko.federated_map(annotated, x)))

    assert float(total([1.0, 2.0, 4.0])) == 7.0
