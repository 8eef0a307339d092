"""Convolutions and poolings as XLA's CPU compiler is fast for them: rules of `_rewrite`, and an option of XLA."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._jax import compiler_options
from koinon.computation._symbolic import is_symbolic

# More elements in a window than this, and the chain of comparisons is longer than the code that it replaces.
LARGEST_WINDOW = 16

# A convolution with more inputs to each output than this is left to XLA.
MOST_INPUTS = 40

# With fewer places the product is too small to gain anything.
FEWEST_PLACES = 1024


def convolution_of_few(eqn: Any, inputs: list[Any]) -> list[Any] | None:
    """Takes a two-dimensional convolution of few channels, such as the first of a network, as a product of matrices.

    The windows are put into rows by a copy for each of their places. XLA's own code gathers them element by element,
    and needs about as long for one channel as for eight.
    """
    if not has_few_inputs(eqn):
        return None
    x, kernel = _to_canonical(eqn, inputs)
    x = jnp.pad(x, ((0, 0), *eqn.params["padding"], (0, 0)))
    strides = eqn.params["window_strides"]
    out_spec = eqn.params["dimension_numbers"].out_spec
    images, *places, features = [eqn.outvars[0].aval.shape[i] for i in (out_spec[0], *out_spec[2:], out_spec[1])]

    def shifted(place: tuple[int, ...]) -> Any:
        stops = [start + (n - 1) * stride + 1 for start, n, stride in zip(place, places, strides, strict=True)]
        return x[:, place[0] : stops[0] : strides[0], place[1] : stops[1] : strides[1]]

    windows = jnp.concatenate([shifted(place) for place in np.ndindex(*kernel.shape[:2])], -1)
    windows = jax.lax.optimization_barrier(windows.reshape(-1, windows.shape[-1]))
    result = (windows @ kernel.reshape(-1, features)).reshape(images, *places, features)
    return [_from_canonical(eqn, result)]


def has_few_inputs(eqn: Any) -> bool:
    """Whether an equation is a plain convolution with few inputs to each output, and many outputs."""
    if eqn.primitive.name != "conv_general_dilated" or len(eqn.outvars[0].aval.shape) != 4:
        return False
    params = eqn.params
    _, rhs_spec, out_spec = params["dimension_numbers"]
    avals = [atom.aval for atom in (*eqn.invars, *eqn.outvars)]
    kernel, out = avals[1].shape, avals[2].shape
    return (
        not any(is_symbolic(aval.shape) for aval in avals)
        and all(aval.dtype == jnp.float32 for aval in avals)
        and all(n == 1 for name in ("lhs_dilation", "rhs_dilation") for n in params[name])
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and params["precision"] is None
        and all(n >= 0 for pair in params["padding"] for n in pair)
        and math.prod(kernel[i] for i in rhs_spec[2:]) > 1
        and math.prod(kernel[i] for i in rhs_spec[1:]) <= MOST_INPUTS
        and kernel[rhs_spec[0]] > 0
        and math.prod(out[i] for i in (out_spec[0], *out_spec[2:])) >= FEWEST_PLACES
    )


def canonical_convolution(eqn: Any, inputs: list[Any]) -> list[Any] | None:
    """Brings a two-dimensional convolution to the layout NHWC, HWIO, by transpositions around it.

    XLA's CPU compiler has a fast path for that layout alone. The gradients of convolutions come in other layouts, and
    inside a loop they would run naive code, tens of times slower.
    """
    canonical = other_layout(eqn) if eqn.primitive.name == "conv_general_dilated" else None
    if canonical is None:
        return None
    result = eqn.primitive.bind(*_to_canonical(eqn, inputs), **{**eqn.params, "dimension_numbers": canonical})
    return [_from_canonical(eqn, result)]


def _to_canonical(eqn: Any, inputs: list[Any]) -> tuple[Any, Any]:
    """The operands of a convolution, (N, spatial, features) and (spatial, features, outputs)."""
    lhs_spec, rhs_spec, _ = eqn.params["dimension_numbers"]
    lhs = jnp.transpose(inputs[0], (lhs_spec[0], *lhs_spec[2:], lhs_spec[1]))
    return lhs, jnp.transpose(inputs[1], (*rhs_spec[2:], rhs_spec[1], rhs_spec[0]))


def _from_canonical(eqn: Any, result: Any) -> Any:
    """A result (N, spatial, features) in the layout of a convolution, whose specification says where each belongs."""
    batch, features, *spatial = eqn.params["dimension_numbers"].out_spec
    places = (batch, *spatial, features)
    return jnp.transpose(result, sorted(range(len(places)), key=places.__getitem__))


def other_layout(eqn: Any) -> Any:
    """The canonical layout of a two-dimensional convolution, where it has another."""
    numbers = eqn.params["dimension_numbers"]
    rank = len(numbers.lhs_spec)
    if rank != 4 or eqn.params["batch_group_count"] != 1:
        return None
    canonical = jax.lax.ConvDimensionNumbers(
        lhs_spec=(0, rank - 1, *range(1, rank - 1)),
        rhs_spec=(rank - 1, rank - 2, *range(rank - 2)),
        out_spec=(0, rank - 1, *range(1, rank - 1)),
    )
    return None if numbers == canonical else canonical


def separate_windows(eqn: Any, inputs: list[Any]) -> list[Any] | None:
    """The gradient of a max-pooling whose windows do not overlap, by comparisons instead of a scatter.

    XLA's CPU compiler scatters one element after the other, on one core; comparisons are vector code. The element that
    is chosen is the same: the first of the greatest, and what comes after a NaN goes before it.
    """
    if eqn.primitive.name != "select_and_scatter_add" or not has_separate_windows(eqn):
        return None
    source, operand = inputs
    window = eqn.params["window_dimensions"]
    whole = [count * size for count, size in zip(source.shape, window, strict=True)]
    # An axis becomes two, the windows and the places inside a window.
    split = [n for pair in zip(source.shape, window, strict=True) for n in pair]
    windows = operand[tuple([slice(n) for n in whole])].reshape(split)
    inside = tuple(range(1, len(split), 2))
    places = math.prod(window)
    elements = jnp.moveaxis(windows, inside, range(len(window))).reshape(places, *source.shape)
    greatest, chosen = elements[0], jnp.zeros(source.shape, jnp.int32)
    for place in range(1, places):
        stays = greatest >= elements[place]
        greatest = jnp.where(stays, greatest, elements[place])
        chosen = jnp.where(stays, chosen, place)
    place_of = jnp.arange(places, dtype=jnp.int32).reshape([n for size in window for n in (1, size)])
    hit = jnp.expand_dims(chosen, inside) == place_of
    gradient = jnp.where(hit, jnp.expand_dims(source, inside), jnp.zeros((), source.dtype)).reshape(whole)
    return [jnp.pad(gradient, [(0, n - m) for n, m in zip(operand.shape, whole, strict=True)])]


def has_separate_windows(eqn: Any) -> bool:
    """Whether a scatter to chosen elements is the gradient of a max-pooling with windows side by side."""
    params = eqn.params
    window = params["window_dimensions"]
    return (
        params["select_prim"] is jax.lax.ge_p
        and tuple(window) == tuple(params["window_strides"])
        and not any(before or after for before, after in params["padding"])
        and 1 < math.prod(window) <= LARGEST_WINDOW
    )


@functools.cache
def options_for_convolutions(platform: str) -> dict[str, Any]:
    """The options of XLA for a program with convolutions.

    On CPUs newer versions of XLA hand convolutions to a library that runs those of a training step on one core, a third
    slower in all than XLA's own code; that library keeps the products of matrices and the sums.
    """
    if platform != "cpu":
        return {}
    kept = [f"LIBRARY_FUSION_TYPE_{name}" for name in ("DOT", "INDIVIDUAL_DOT", "REDUCE")]
    return compiler_options(xla_cpu_experimental_ynn_fusion_type=",".join(kept))
