"""Statements about a value that analyses of computations read: that it is clipped, that noise was added to it.

An annotation is a JAX primitive that does nothing: it stays in the program that is traced, where a report finds it on
the path of the data, and disappears when the program is compiled. It is a statement of whoever writes it, which no
analysis can prove; so it is written where the clipping and the noise are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.core import Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from koinon._errors import KoinonValueError


@dataclasses.dataclass(frozen=True)
class ClipNote:
    """A value of one client is at most this long.

    Attributes:
      norm: the bound of the norm; None where it is known only when the computation runs.
    """

    norm: float | None


@dataclasses.dataclass(frozen=True)
class NoiseNote:
    """Noise was added to a value.

    Attributes:
      mechanism: the name of the mechanism, such as `gaussian`.
      noise_multiplier: the standard deviation in units of the clipping norm; None where it is known only at run time.
      simulation_only: whether the noise is no protection outside of a simulation, as floating-point noise is none.
      sampling: how the cohort is assumed to be drawn, such as `poisson` or `fixed size`; None where nothing is assumed.
    """

    mechanism: str
    noise_multiplier: float | None
    simulation_only: bool
    sampling: str | None


annotate_p = Primitive("annotate")


def annotate_clip(value: Any, norm: Any) -> Any:
    """States that a client's value is clipped to a norm; returns the value.

    It is written after the last step that may lengthen the value, just before what is aggregated leaves the client.

    Args:
      value: a pytree of arrays, bounded as a whole.
      norm: the bound, a non-negative number; a traced one stands for a bound that adapts.

    Raises:
      KoinonValueError: if the norm is negative or not a number.

    >>> import jax.numpy as jnp, koinon as ko
    >>> float(ko.annotate_clip(jnp.minimum(3.0, 1.0), 1.0))
    1.0
    """
    note = ClipNote(_number_or_none(norm, "norm"))
    return jax.tree.map(lambda leaf: annotate_p.bind(leaf, note=note), value)


def annotate_noise(
    value: Any, *, mechanism: str, noise_multiplier: Any, simulation_only: bool, sampling: str | None = None
) -> Any:
    """States that noise was added to a value; returns the value.

    It is written on the noisy value, at the server on what was aggregated, or at the clients on what will be.

    Args:
      value: a pytree of arrays.
      mechanism: the name of the mechanism, such as `gaussian` or `discrete_gaussian`.
      noise_multiplier: the standard deviation in units of the clipping norm; a traced one is known only at run time.
      simulation_only: whether the noise protects nobody outside of a simulation: noise in floating point, or from a
        generator that is not cryptographic.
      sampling: how the cohort is assumed to be drawn, such as `poisson` or `fixed size`.

    Raises:
      KoinonValueError: if the multiplier is negative or not a number.

    >>> import jax.numpy as jnp, koinon as ko
    >>> float(ko.annotate_noise(jnp.float32(2.5), mechanism="gaussian", noise_multiplier=1.0, simulation_only=True))
    2.5
    """
    multiplier = _number_or_none(noise_multiplier, "noise multiplier")
    note = NoiseNote(mechanism, multiplier, simulation_only, sampling)
    return jax.tree.map(lambda leaf: annotate_p.bind(leaf, note=note), value)


def _number_or_none(value: Any, what: str) -> float | None:
    if isinstance(value, Tracer):
        return None
    number = float(value)
    if not number >= 0.0:
        raise KoinonValueError(f"The {what} of an annotation must be a non-negative number.", found=number)
    return number


@annotate_p.def_impl
def _(value: Any, *, note: Any) -> Any:
    return value


@annotate_p.def_abstract_eval
def _(aval: Any, *, note: Any) -> Any:
    return aval


def _batch(args: Any, dims: Any, *, note: Any) -> Any:
    return annotate_p.bind(*args, note=note), dims[0]


def _jvp(primals: Any, tangents: Any, *, note: Any) -> Any:
    # A derivative of a clipped value is not clipped.
    return annotate_p.bind(*primals, note=note), tangents[0]


mlir.register_lowering(annotate_p, lambda ctx, value, *, note: [value])
batching.primitive_batchers[annotate_p] = _batch
ad.primitive_jvps[annotate_p] = _jvp
ad.primitive_transposes[annotate_p] = lambda cotangent, *_, note: [cotangent]
