"""The three JAX primitives of sequences: read a run of rows, read some rows, fold over indices.

They are primitives of their own so that a compiler finds them in a jaxpr (the fold in a client's work, the reads of its
data), and so that the number of rows of a buffer may be unknown while a computation is traced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

from koinon._errors import KoinonTypeError, UnboundedLoopError
from koinon._jax import bind, evaluate, shapes_of

# --- reading rows ----------------------------------------------------------------------------------------------------

_MAX_UNROLLED = 32

read_run_p = Primitive("sequence_read_run")
read_rows_p = Primitive("sequence_read_rows")


def read_run(buffers: Sequence[Any], start: Any, size: int) -> list[Any]:
    """The rows `start` to `start + size` of each buffer; rows past the end of a buffer are arbitrary."""
    start = jnp.asarray(start, jnp.int32)
    return [read_run_p.bind(jnp.asarray(buffer), start, size=size, in_bounds=False) for buffer in buffers]


def read_rows(buffers: Sequence[Any], rows: Any) -> list[Any]:
    """The given rows of each buffer, an int32 vector; rows out of bounds are clipped into them."""
    rows = jnp.asarray(rows, jnp.int32)
    return [read_rows_p.bind(jnp.asarray(buffer), rows) for buffer in buffers]


def _read_run(buffer: Any, start: Any, *, size: int, in_bounds: bool) -> Any:
    rows = buffer.shape[0]
    if in_bounds:
        return jax.lax.dynamic_slice_in_dim(buffer, start, size, 0)
    # While a program is exported the number of rows is a symbol, of which nothing can be compared.
    if not isinstance(rows, int) or rows < size or size == 1:
        return jnp.take(buffer, start + jnp.arange(size, dtype=jnp.int32), axis=0, mode="clip")
    # A slice that would pass the end of the buffer starts earlier, and its rows move up by as many.
    first = jnp.minimum(start, rows - size)
    piece = jax.lax.dynamic_slice_in_dim(buffer, first, size, 0)
    shift = start - first
    return jax.lax.cond(
        shift > 0,
        lambda: jnp.take(piece, shift + jnp.arange(size, dtype=jnp.int32), axis=0, mode="clip"),
        lambda: piece,
    )


def _read_rows(buffer: Any, rows: Any) -> Any:
    return jnp.take(buffer, rows, axis=0, mode="clip")


def _define_read(primitive: Primitive, impl: Callable[..., Any], size_of: Callable[..., int]) -> None:
    @primitive.def_abstract_eval
    def _(buffer: Any, index: Any, **params: Any) -> Any:
        return buffer.update(shape=(size_of(index, **params), *buffer.shape[1:]))

    primitive.def_impl(impl)
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=False))

    def batch(args: Any, dims: Any, **params: Any) -> Any:
        (buffer, index), (buffer_dim, _) = args, dims
        few = index.ndim == 1 and isinstance(index.shape[0], int) and index.shape[0] <= _MAX_UNROLLED
        if buffer_dim is None and few:
            # One slice after the other: XLA's gather is far slower than as many copies.
            return jnp.stack([impl(buffer, index[i], **params) for i in range(index.shape[0])]), 0
        return jax.vmap(functools.partial(impl, **params), in_axes=tuple(dims))(*args), 0

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        buffer, index = primals
        result = primitive.bind(buffer, index, **params)
        if isinstance(tangents[0], ad.Zero):
            return result, ad.Zero(jax.typeof(result).to_tangent_aval())
        return result, impl(tangents[0], index, **params)

    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = jvp


_define_read(read_run_p, _read_run, lambda index, size, in_bounds: size)
_define_read(read_rows_p, _read_rows, lambda index: index.shape[0])


# --- folding ---------------------------------------------------------------------------------------------------------

reduce_p = Primitive("sequence_reduce")
reduce_p.multiple_results = True


def reduce(length: Any, init: Any, step: Callable[[Any, Any], Any]) -> Any:
    """The fold of `step(index, carry)` over the indices `0 .. length - 1`, a dynamic trip count.

    Raises:
      KoinonTypeError: where `step` returns a carry of another structure, shape or dtype.
    """
    leaves, treedef = jax.tree.flatten(init)
    leaves = [_strongly_typed(leaf) for leaf in leaves]

    def flat_step(index: Any, *carry: Any) -> list[Any]:
        result = step(index, jax.tree.unflatten(treedef, carry))
        return _check_carry(init, leaves, treedef, result)

    index = jax.ShapeDtypeStruct((), jnp.int32)
    avals = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    closed = jax.make_jaxpr(flat_step)(index, *avals)
    outputs = reduce_p.bind(
        jnp.asarray(length, jnp.int32),
        *closed.consts,
        *leaves,
        jaxpr=with_constants_as_inputs(closed.jaxpr),
        num_consts=len(closed.consts),
        bound=None,
    )
    return jax.tree.unflatten(treedef, outputs)


def with_constants_as_inputs(jaxpr: Jaxpr) -> ClosedJaxpr:
    """The jaxpr with its constants as its first inputs."""
    return ClosedJaxpr(
        jaxpr.replace(
            constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars], debug_info=jaxpr.debug_info.with_unknown_names()
        ),
        [],
    )


def _strongly_typed(leaf: Any) -> Any:
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return array
    return jax.lax.convert_element_type(array, array.dtype)


def _check_carry(init: Any, leaves: list[Any], treedef: Any, result: Any) -> list[Any]:
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(init)[0]]
    new_leaves, new_treedef = jax.tree.flatten(result)
    if new_treedef != treedef:
        raise KoinonTypeError(
            "The function of a fold must return a carry of the structure that it takes.",
            expected=treedef,
            found=new_treedef,
            hint="return the same containers as `init`",
        )
    checked = []
    for path, old, new in zip(paths, leaves, new_leaves, strict=True):
        new = jnp.asarray(new)
        if new.shape != old.shape or new.dtype != old.dtype:
            raise KoinonTypeError(
                "The function of a fold must return a carry of the shapes and dtypes that it takes.",
                expected=f"{old.dtype}{list(old.shape)}",
                found=f"{new.dtype}{list(new.shape)}",
                differs=path or "the carry itself",
                hint="give `init` the dtype of the result, or convert the result",
            )
        checked.append(_strongly_typed(new))
    return checked


@reduce_p.def_abstract_eval
def _(length: Any, *operands: Any, jaxpr: ClosedJaxpr, num_consts: int, bound: int | None) -> Any:
    return [aval.update(weak_type=False) if hasattr(aval, "weak_type") else aval for aval in operands[num_consts:]]


@reduce_p.def_impl
def _(length: Any, *operands: Any, jaxpr: ClosedJaxpr, num_consts: int, bound: int | None) -> Any:
    consts, carry = operands[:num_consts], list(operands[num_consts:])
    step = jaxpr_as_fun(jaxpr)
    for index in range(int(length)):
        carry = step(*consts, jnp.int32(index), *carry)
    return carry


def loop(length: Any, *operands: Any, jaxpr: ClosedJaxpr, num_consts: int, bound: int | None) -> list[Any]:
    """The fold as a loop of XLA with a dynamic trip count."""
    consts, carry = operands[:num_consts], operands[num_consts:]
    step = jaxpr_as_fun(jaxpr)
    return list(jax.lax.fori_loop(0, length, lambda i, c: tuple(step(*consts, i, *c)), tuple(carry)))


def bounded_loop(length: Any, *operands: Any, jaxpr: ClosedJaxpr, num_consts: int, bound: int) -> list[Any]:
    """The fold as a scan of `bound` steps, of which those at or past `length` change nothing."""
    consts, carry = operands[:num_consts], operands[num_consts:]
    step = jaxpr_as_fun(jaxpr)

    def body(carry: Any, index: Any) -> Any:
        return jax.lax.cond(index < length, lambda: tuple(step(*consts, index, *carry)), lambda: carry), None

    final, _ = jax.lax.scan(body, tuple(carry), jnp.arange(bound, dtype=jnp.int32))
    return list(final)


mlir.register_lowering(reduce_p, mlir.lower_fun(loop, multiple_results=True))


def _lower_reduce(*operands: Any, jaxpr: ClosedJaxpr, **params: Any) -> list[Any]:
    """The fold of a step without those primitives that JAX expands before it compiles, `searchsorted` among them."""
    avals = shapes_of(var.aval for var in jaxpr.jaxpr.invars)
    lowered = jax.make_jaxpr(lambda *arguments: evaluate(jaxpr, arguments, _lower))(*avals)
    return reduce_p.bind(*operands, jaxpr=lowered, **params)


def _lower(eqn: Any, inputs: list[Any]) -> Sequence[Any]:
    primitive = eqn.primitive
    if not primitive.is_high(*[atom.aval for atom in eqn.invars], **eqn.params):
        return bind(eqn, inputs, eqn.params)
    result = primitive.to_lojax(*inputs, **eqn.params)
    return result if primitive.multiple_results else [result]


vars(reduce_p)["to_lojax"] = _lower_reduce


def _batch_reduce(args: Any, dims: Any, *, jaxpr: ClosedJaxpr, num_consts: int, bound: int | None) -> Any:
    """Several folds side by side: all take steps while the shortest does, then those that are longer go on."""
    del bound
    size = next(arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None)
    length, consts, carry = args[0], args[1 : 1 + num_consts], args[1 + num_consts :]
    const_dims, carry_dims = tuple(dims[1 : 1 + num_consts]), dims[1 + num_consts :]
    step = jaxpr_as_fun(jaxpr)
    axes: list[int | None] = [0] * len(carry)
    if dims[0] is None:
        axes = _carry_axes(step, consts, carry, const_dims, carry_dims, size)
    carry = tuple([_to_axis(leaf, dim, axis, size) for leaf, dim, axis in zip(carry, carry_dims, axes, strict=True)])
    steps = jax.vmap(
        lambda c, i, v: tuple(step(*c, i, *v)),
        in_axes=(const_dims, None, tuple(axes)),
        out_axes=tuple(axes),
        axis_size=size,
    )
    if dims[0] is None:
        carry = jax.lax.fori_loop(0, length, lambda i, v: steps(consts, i, v), carry)
        return list(carry), axes

    def late_step(index: Any, values: Any) -> Any:
        active = index < length
        return tuple(
            [
                jnp.where(active.reshape(size, *[1] * (old.ndim - 1)), new, old)
                for old, new in zip(values, steps(consts, index, values), strict=True)
            ]
        )

    shortest, longest = jnp.min(length), jnp.max(length)
    carry = jax.lax.fori_loop(0, shortest, lambda i, v: steps(consts, i, v), carry)
    carry = jax.lax.fori_loop(shortest, longest, late_step, carry)
    return list(carry), [0] * len(carry)


def _to_axis(leaf: Any, dim: int | None, axis: int | None, size: int) -> Any:
    if axis is None:
        return leaf
    return jnp.broadcast_to(leaf, (size, *leaf.shape)) if dim is None else jnp.moveaxis(leaf, dim, 0)


def _carry_axes(
    step: Callable[..., Any], consts: Any, carry: Any, const_dims: Any, carry_dims: Any, size: int
) -> list[int | None]:
    """0 for each leaf of the carry that is not the same in all folds, None for the others.

    Those are the leaves that start so, and those that a step makes of such leaves: `jax.jacfwd` relies on it that the
    primal part of a fold does not differ along the axis of its tangents.
    """
    axes = [None if dim is None else 0 for dim in carry_dims]
    avals = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in (*consts, *carry)]
    moved = [
        aval if dim is None else jax.ShapeDtypeStruct((size, *aval.shape[:dim], *aval.shape[dim + 1 :]), aval.dtype)
        for aval, dim in zip(avals, (*const_dims, *carry_dims), strict=True)
    ]
    const_axes = [None if dim is None else 0 for dim in const_dims]
    while True:
        starts = [
            jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype) if dim is None and axis == 0 else leaf
            for leaf, dim, axis in zip(moved[len(consts) :], carry_dims, axes, strict=True)
        ]
        differ = _outputs_that_differ(step, moved[: len(consts)], starts, const_axes, axes, size)
        grown = [0 if axis == 0 or different else None for axis, different in zip(axes, differ, strict=True)]
        if grown == axes:
            return axes
        axes = grown


def _outputs_that_differ(
    step: Callable[..., Any], consts: Any, carry: Any, const_axes: Any, axes: Any, size: int
) -> list[bool]:
    differ = [False] * len(carry)

    @jax.custom_batching.custom_vmap
    def probe(*outputs: Any) -> Any:
        return outputs

    @probe.def_vmap
    def _(axis_size: int, in_batched: Any, *outputs: Any) -> Any:
        differ[:] = in_batched
        return outputs, tuple(in_batched)

    def probed(consts: Any, carry: Any) -> Any:
        return probe(*step(*consts, jnp.int32(0), *carry))

    jax.eval_shape(jax.vmap(probed, in_axes=(const_axes, axes), axis_size=size), consts, carry)
    return differ


def _jvp_reduce(primals: Any, tangents: Any, *, jaxpr: ClosedJaxpr, num_consts: int, bound: int | None) -> Any:
    length = primals[0]
    tangents = [ad.instantiate_zeros(tangent) for tangent in tangents]
    if bound is not None:
        bounded = functools.partial(bounded_loop, jaxpr=jaxpr, num_consts=num_consts, bound=bound)
        return jax.jvp(lambda *operands: bounded(length, *operands), primals[1:], tuple(tangents[1:]))
    step = jaxpr_as_fun(jaxpr)
    consts, carry = primals[1 : 1 + num_consts], primals[1 + num_consts :]
    d_consts, d_carry = tangents[1 : 1 + num_consts], tangents[1 + num_consts :]

    def jvp_step(index: Any, state: Any) -> Any:
        values, d_values = state
        return jax.jvp(lambda c, v: tuple(step(*c, index, *v)), (consts, values), (tuple(d_consts), d_values))

    return reduce(length, (tuple(carry), tuple(d_carry)), jvp_step)


def _refuse_reverse_mode(*_: Any, **__: Any) -> Any:
    raise UnboundedLoopError(
        "Reverse-mode differentiation cannot pass a fold over a sequence whose length has no static bound.",
        hint="differentiate through the local backend, which bounds the fold by the cohort's longest client, "
        "or use forward mode (jax.jvp, jax.jacfwd)",
    )


batching.primitive_batchers[reduce_p] = _batch_reduce
ad.primitive_jvps[reduce_p] = _jvp_reduce
# Reverse mode evaluates what it knows and saves the rest for later; it is there that it meets a tangent in a fold.
pe.custom_partial_eval_rules[reduce_p] = _refuse_reverse_mode
ad.primitive_transposes[reduce_p] = _refuse_reverse_mode
