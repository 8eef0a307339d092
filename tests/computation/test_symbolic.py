"""Tests of unknown dimensions: symbols while tracing, numbers when a program runs."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.computation._symbolic import is_symbolic, specialize, symbolic_avals
from koinon.errors import ArgumentError, UnsupportedTypeError
from koinon.types import TensorType


def traced(fn: Any, *shapes: tuple[int | None, ...]) -> Any:
    """The program of a function for these shapes of float32."""
    return jax.make_jaxpr(fn)(*symbolic_avals([TensorType(np.float32, shape) for shape in shapes]))


def run(program: Any, *arguments: Any) -> list[Any]:
    """The results of a program for arguments of some size."""
    special = specialize(program, arguments)
    return jax.core.eval_jaxpr(special.jaxpr, special.consts, *arguments)


def test_every_unknown_dimension_has_a_variable_of_its_own() -> None:
    """Dimensions that are known stay numbers."""
    avals = symbolic_avals([TensorType(np.float32, (None, 3)), TensorType(np.int32), TensorType(np.int8, (None,))])
    assert [str(aval.shape) for aval in avals] == ["(d0, 3)", "()", "(d1,)"]
    assert [is_symbolic(aval.shape) for aval in avals] == [True, False, True]


def test_unknown_rank_has_no_variable() -> None:
    """JAX traces no array whose rank is unknown."""
    with pytest.raises(UnsupportedTypeError, match="unknown rank"):
        symbolic_avals([TensorType(np.float32, None)])


def test_a_program_without_unknown_dimensions_is_its_own_specialisation() -> None:
    """Nothing is rewritten where nothing is symbolic."""
    program = traced(lambda x: x + 1, (3,))
    assert specialize(program, [np.zeros(3, np.float32)]) is program


def test_a_specialisation_is_made_once_for_each_size() -> None:
    """The same sizes give the same program, so that what is compiled for it is found again."""
    program = traced(lambda x: x + 1, (None,))
    three = specialize(program, [np.zeros(3, np.float32)])
    assert specialize(program, [np.ones(3, np.float32)]) is three
    assert specialize(program, [np.ones(4, np.float32)]) is not three
    assert not any(is_symbolic(var.aval.shape) for eqn in three.jaxpr.eqns for var in (*eqn.invars, *eqn.outvars))


def test_one_variable_has_one_size() -> None:
    """A program in which a dimension occurs twice refuses two sizes for it."""
    (aval,) = symbolic_avals([TensorType(np.float32, (None,))])
    program = jax.make_jaxpr(lambda x, y: x + y)(aval, aval)
    with pytest.raises(ArgumentError, match="cannot have two sizes in one call") as caught:
        specialize(program, [np.zeros(2, np.float32), np.zeros(3, np.float32)])
    assert (caught.value.expected, caught.value.found) == (2, 3)


_FUNCTIONS = {
    "sum": lambda x: x.sum(0),
    "size as a number": lambda x: x * x.shape[0],
    "arithmetic of sizes": lambda x: jnp.zeros((2 * x.shape[0] + 1, x.shape[1])),
    "reshape": lambda x: x.reshape(-1),
    "pad and slice": lambda x: jnp.pad(x, ((1, 0), (0, 0)))[:-1],
    "gather": lambda x: x[::-1],
    "sort": lambda x: jnp.sort(x, axis=0),
    "product": lambda x: x @ x.T,
    "loop": lambda x: jax.lax.fori_loop(0, x.shape[0], lambda i, c: c + x[i], jnp.zeros(x.shape[1])),
    "scan": lambda x: jax.lax.scan(lambda c, v: (c + v, c.sum()), jnp.zeros(x.shape[1]), x),
    "branch": lambda x: jax.lax.cond(x.sum() > 1, lambda: x * 2, lambda: x),
    "vmap": lambda x: jax.vmap(lambda v: v / v.sum())(x),
    "inner jit": lambda x: jax.jit(lambda v: v + v.shape[0])(x),
    "random": lambda x: x + jax.random.uniform(jax.random.key(0), x.shape),
    "gradient": lambda x: jax.grad(lambda v: (v**3).sum())(x),
    "where and cumsum": lambda x: jnp.where(x > 1, jnp.cumsum(x, 0), 0.0),
}
_PROGRAMS: dict[str, Any] = {}


@pytest.mark.parametrize("name", _FUNCTIONS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_specialised_program_does_what_the_function_does(name: str, size: int) -> None:
    """For many operations of JAX, one trace run at several sizes against the function itself."""
    fn = _FUNCTIONS[name]
    program = _PROGRAMS.setdefault(name, traced(fn, (None, 2)))
    x = jnp.asarray(np.random.default_rng(size).uniform(0.5, 1.5, (size, 2)), jnp.float32)
    for left, right in zip(run(program, x), jax.tree.leaves(fn(x)), strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        np.testing.assert_allclose(left, right, rtol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (7, 1), (3, 4)])
def test_the_sizes_of_two_arguments_are_free(n: int, m: int) -> None:
    """Every pair of sizes runs the one program."""
    program = _PROGRAMS.setdefault("outer", traced(lambda x, y: jnp.outer(x, y).sum() + x.shape[0], (None,), (None,)))
    (result,) = run(program, jnp.ones(n), jnp.ones(m))
    assert float(result) == n * m + n


def test_a_program_is_specialised_once_for_a_size_and_its_programs_go_with_it() -> None:
    """The same jaxpr for the same sizes, another one for others; none of them outlives the program."""
    program = traced(lambda x: x + 1, (None,))
    three, four = np.ones(3, np.float32), np.ones(4, np.float32)
    special = specialize(program, [three])
    assert specialize(program, [three]) is special
    assert specialize(program, [four]) is not special
    kept = weakref.ref(special)
    del program, special
    gc.collect()
    assert kept() is None
