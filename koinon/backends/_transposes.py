"""Matrices with few columns that a fold carries, kept transposed: a pass over a program before `_rewrite`.

XLA's CPU compiler makes vector code of the loop along the last dimension. A layer with few outputs has few columns,
and its gradient comes transposed (`_products`): an update of such weights would go element by element. Carried
transposed, the long dimension is the last one, and no transposition is left in the step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from koinon._jax import bind, evaluate, shapes_of
from koinon.backends._estimate import equations
from koinon.backends._packing import is_tall
from koinon.computation import _ir as ir
from koinon.computation._sequence_primitives import reduce_p

_SWAP = (1, 0)

_ELEMENTWISE = frozenset(
    "abs add add_any and ceil clamp convert_element_type copy cos div eq exp exp2 expm1 floor ge gt integer_pow"
    " is_finite le log log1p logistic lt max min mul ne neg not or pow rem round rsqrt select_n sign sin sqrt square"
    " sub tanh".split()
)
_REDUCTIONS = frozenset(("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or"))


def transpose_carries(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The program with matrices carried transposed in its folds, and all that is made of them in the same way."""
    if not any(carries_transposed(eqn) for eqn in equations(closed.jaxpr)):
        return closed
    transposer = _Transposer()

    def program(*arguments: Any) -> list[Any]:
        outputs = evaluate(closed, arguments, transposer.apply)
        return [_matrix_of(output) for output in outputs]

    return jax.make_jaxpr(program)(*shapes_of(var.aval for var in closed.jaxpr.invars))


def carries_transposed(eqn: Any) -> bool:
    """Whether an equation is a fold that carries a matrix transposed."""
    return (
        eqn.primitive is reduce_p
        and _with_transposed_carries(eqn.params["jaxpr"], eqn.params["num_consts"]) is not None
    )


@ir.kept_with_program
def _with_transposed_carries(body: ClosedJaxpr, num_consts: int) -> tuple[ClosedJaxpr, list[int]] | None:
    """The step of a fold with some of its carries transposed, where that leaves fewer transpositions in it.

    Args:
      body: the step, of constants, an index and the carries.
      num_consts: the number of constants.

    Returns:
      The new step, and the places of the carries that it takes and returns transposed; None where there are none.
    """
    first = num_consts + 1
    places = [i for i, var in enumerate(body.jaxpr.invars[first:]) if is_tall(var.aval)]
    if not places:
        return None
    before, _, _ = _trace_step(body, first, [])
    after, step, kept = _trace_step(body, first, places)
    if kept != places:
        places = kept
        after, step, kept = _trace_step(body, first, places)
    return (step, places) if places and kept == places and after < before else None


def _trace_step(body: ClosedJaxpr, first: int, places: list[int]) -> tuple[int, ClosedJaxpr, list[int]]:
    """A step with the carries at some places transposed.

    Returns:
      The number of transpositions in it, the step, and at which of the places it makes a transposed carry by itself.
    """
    transposer = _Transposer()
    kept: list[int] = []

    def step(*arguments: Any) -> list[Any]:
        inputs: list[Any] = list(arguments)
        for place in places:
            inputs[first + place] = transposer.put_off(inputs[first + place])
        outputs = evaluate(body, inputs, transposer.apply)
        kept[:] = [place for place in places if isinstance(outputs[place], _Transposed)]
        return [
            transposer.transpose_of(output) if place in places else _matrix_of(output)
            for place, output in enumerate(outputs)
        ]

    shapes = shapes_of(var.aval for var in body.jaxpr.invars)
    for place in places:
        shape = shapes[first + place]
        shapes[first + place] = jax.ShapeDtypeStruct(shape.shape[::-1], shape.dtype)
    step_jaxpr = jax.make_jaxpr(step)(*shapes)
    return transposer.count, step_jaxpr, kept


class _Transposed:
    """A matrix of which the transpose is at hand, while the matrix itself is made only where something needs it.

    Args:
      transpose: the transpose.
      make: makes the matrix as the program makes it; None where it comes of a fold, and is best made of the transpose.
    """

    def __init__(self, transpose: Any, make: Callable[[], Any] | None) -> None:
        self.transpose = transpose
        self.make = make

    @functools.cached_property
    def matrix(self) -> Any:
        """The matrix itself."""
        return jnp.transpose(self.transpose) if self.make is None else self.make()


class _Transposer:
    """Evaluates a program with transpositions put off until something needs the matrix itself.

    Attributes:
      count: how many transpositions were not avoided.
    """

    def __init__(self) -> None:
        self.count = 0
        self._transposes: dict[int, tuple[Any, Any]] = {}

    def put_off(self, matrix: Any) -> _Transposed:
        """The transpose of a matrix, not made yet."""
        return _Transposed(matrix, lambda: self._transpose(matrix))

    def _transpose(self, matrix: Any) -> Any:
        self.count += 1
        return jnp.transpose(matrix)

    def transpose_of(self, value: Any) -> Any:
        """The transpose of a value, made only once."""
        if isinstance(value, _Transposed):
            return value.transpose
        if id(value) not in self._transposes:
            # The barrier keeps it a step of its own: what is computed of it reads along its rows.
            transpose = jax.lax.optimization_barrier(self._transpose(value))
            self._transposes[id(value)] = (value, transpose)
        return self._transposes[id(value)][1]

    def apply(self, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
        """The outputs of an equation, of which some may be `_Transposed`."""
        name, params = eqn.primitive.name, eqn.params
        if name == "transpose" and tuple(params["permutation"]) == _SWAP:
            (operand,) = inputs
            return [operand.transpose if isinstance(operand, _Transposed) else self.put_off(operand)]
        if name == "broadcast_in_dim" and len(params["shape"]) == 2 and _is_scalar(inputs[0]):
            (transpose,) = bind(eqn, inputs, {**params, "shape": params["shape"][::-1]})
            return [_Transposed(transpose, lambda: bind(eqn, inputs, params)[0])]
        if eqn.primitive is reduce_p:
            return self._fold(eqn, inputs)
        has_transposed = any(isinstance(operand, _Transposed) for operand in inputs)
        if name in ("jit", "pjit") and (has_transposed or _has_folds(params["jaxpr"].jaxpr)):
            return evaluate(params["jaxpr"], inputs, self.apply)
        if not has_transposed:
            return bind(eqn, inputs, params)
        if name == "dot_general":
            return [self._product(eqn, inputs)]
        if name in _REDUCTIONS and params["axes"]:
            axes = tuple(sorted(1 - axis for axis in params["axes"]))
            return bind(eqn, [inputs[0].transpose], {**params, "axes": axes})
        # A reduction over no dimension changes nothing.
        if name in (*_ELEMENTWISE, *_REDUCTIONS) and all(self._is_at_hand(operand) for operand in inputs):
            return [self._elementwise(eqn, inputs)]
        return bind(eqn, [_matrix_of(operand) for operand in inputs], params)

    def _fold(self, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
        num_consts = eqn.params["num_consts"]
        found = _with_transposed_carries(eqn.params["jaxpr"], num_consts)
        if found is None:
            return bind(eqn, [_matrix_of(operand) for operand in inputs], eqn.params)
        step, places = found
        first = 1 + num_consts
        operands = [
            self.transpose_of(operand) if i - first in places else _matrix_of(operand)
            for i, operand in enumerate(inputs)
        ]
        outputs = list(bind(eqn, operands, {**eqn.params, "jaxpr": step}))
        for place in places:
            outputs[place] = _Transposed(outputs[place], None)
        return outputs

    def _is_at_hand(self, operand: Any) -> bool:
        """Whether an operand of an elementwise operation needs no transposition to be transposed."""
        return isinstance(operand, _Transposed) or _is_scalar(operand) or id(operand) in self._transposes

    def _elementwise(self, eqn: Any, inputs: list[Any]) -> _Transposed:
        operands = [operand if _is_scalar(operand) else self.transpose_of(operand) for operand in inputs]
        (output,) = bind(eqn, operands, eqn.params)
        if any(isinstance(operand, _Transposed) and operand.make is None for operand in inputs):
            return _Transposed(output, None)
        return _Transposed(output, lambda: bind(eqn, [_matrix_of(operand) for operand in inputs], eqn.params)[0])

    def _product(self, eqn: Any, inputs: list[Any]) -> Any:
        """A product of matrices, with the other dimension of a transposed one contracted."""
        contract, batch = eqn.params["dimension_numbers"]
        operands, numbers = [], []
        for operand, dims in zip(inputs, contract, strict=True):
            can_turn = isinstance(operand, _Transposed) and len(dims) == 1 and not batch[0]
            operands.append(operand.transpose if can_turn else _matrix_of(operand))
            numbers.append((1 - dims[0],) if can_turn else dims)
        return bind(eqn, operands, {**eqn.params, "dimension_numbers": (tuple(numbers), batch)})[0]


def _matrix_of(value: Any) -> Any:
    return value.matrix if isinstance(value, _Transposed) else value


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, _Transposed) and jnp.ndim(value) == 0


def _has_folds(jaxpr: Jaxpr) -> bool:
    return any(eqn.primitive is reduce_p for eqn in equations(jaxpr))
