"""Tests of the evaluator: the lambda calculus itself, with the meaning of operators given by the caller."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.computation import _ir as ir
from koinon.computation._evaluate import (
    SEQUENCE_HANDLERS,
    Closure,
    Evaluator,
    LocalFunction,
    OperatorFunction,
    operand_types,
    tensor_types,
)
from koinon.computation._sequence import Sequence
from koinon.computation._transfer import sequence_of_rows
from koinon.types import CLIENTS, FunctionType, SequenceType, StructType, TensorType, at_clients, parse

INT = TensorType(np.int32)
one, two = ir.Literal(np.int32(1), INT), ir.Literal(np.int32(2), INT)
x, y = ir.Reference("x", INT), ir.Reference("y", INT)
successor = ir.Local("successor", jax.make_jaxpr(lambda v: v + 1)(np.int32(0)), FunctionType(INT, INT))
_XY = ir.Struct(((None, x), (None, y)))
double = ir.Intrinsic("double", FunctionType(INT, INT))


def evaluate(node: ir.Expression, **scope: Any) -> Any:
    """The value of an expression, where `double` doubles."""
    return Evaluator({"double": lambda intrinsic, value: 2 * value}).evaluate(node, scope)


@pytest.mark.parametrize(
    ("node", "value"),
    [
        (x, 10),
        (one, 1),
        (ir.Placement(CLIENTS), CLIENTS),
        (ir.Struct((("a", one), ("b", x))), (1, 10)),
        (ir.Struct(()), ()),
        (ir.Selection(ir.Struct(((None, one), (None, x))), 1), 10),
        (ir.Block((("y", one), ("y", ir.Call(successor, y)), ("z", y)), ir.Reference("z", INT)), 2),
        (ir.Block((("x", two),), x), 2),
        (ir.Call(successor, x), 11),
        (ir.Call(double, ir.Call(double, x)), 40),
        (ir.Call(ir.Lambda("x", INT, ir.Call(double, x)), two), 4),
        (ir.Call(ir.Lambda(None, None, x), None), 10),
        (ir.Call(ir.Call(ir.Lambda("y", INT, ir.Lambda("x", INT, _XY)), one), two), (2, 1)),
    ],
)
def test_the_value_of_each_kind_of_node(node: ir.Expression, value: Any) -> None:
    """With `x` being 10 in scope."""
    assert evaluate(node, x=10) == value


def test_a_function_keeps_the_scope_in_which_it_was_written() -> None:
    """Lexical scope: a name bound later where the function is called does not matter."""
    add_x = ir.Lambda("y", INT, _XY)
    f = ir.Reference("f", add_x.type)
    node = ir.Block((("x", one), ("f", add_x), ("x", two)), ir.Call(f, x))
    assert jax.tree.map(int, evaluate(node)) == (1, 2)


def test_functions_are_values_that_know_what_they_are() -> None:
    """Lambdas, programs and operators evaluate to functions of their own kinds."""
    assert isinstance(evaluate(ir.Lambda("x", INT, x)), Closure)
    assert isinstance(evaluate(successor), LocalFunction)
    assert isinstance(evaluate(double), OperatorFunction)


def test_a_binding_is_computed_once() -> None:
    """However often a name is used, its expression is evaluated one time."""
    calls = []
    evaluator = Evaluator({"double": lambda intrinsic, value: calls.append(value) or 2 * value})
    node = ir.Block((("y", ir.Call(double, one)),), ir.Struct(((None, y), (None, y))))
    assert jax.tree.map(int, evaluator.evaluate(node, {})) == (2, 2)
    assert len(calls) == 1


def test_an_engine_may_run_programs_its_own_way() -> None:
    """The way to run a program is an argument."""
    ran = []
    evaluator = Evaluator({}, lambda local, argument: ran.append((local.name, int(argument))) or 7)
    assert evaluator.evaluate(ir.Call(successor, two), {}) == 7
    assert ran == [("successor", 2)]


def test_evaluation_is_traceable_by_jax() -> None:
    """One evaluator serves engines that run and engines that compile."""
    comp = ko.federated_computation(lambda v: ko.jax_computation(lambda a: a * a, np.float32)(v), np.float32)
    function = Evaluator({}).evaluate(comp.expression, {})
    assert float(jax.jit(function)(jnp.float32(3))) == 9.0
    assert float(jax.grad(function)(jnp.float32(3))) == 6.0


# --- sequences -------------------------------------------------------------------------------------------------------

ELEMENT = ko.to_type({"a": np.int32, "b": np.float32})
ELEMENTS = SequenceType(ELEMENT)


def elements(*pairs: tuple[int, float]) -> Sequence:
    """A sequence of these pairs."""
    return sequence_of_rows(ELEMENTS, [[jnp.int32(a), jnp.float32(b)] for a, b in pairs])


def apply(name: str, types: list[Any], operands: Any, result: str) -> Any:
    """An operator on sequences that are not placed."""
    parameter = StructType(types) if len(types) > 1 else types[0]
    return SEQUENCE_HANDLERS[name](ir.Intrinsic(name, FunctionType(parameter, parse(result))), operands)


def test_sequence_map_applies_a_function_to_every_element() -> None:
    """The function takes and gives values in koinon's own form, whatever containers a user sees."""
    function = FunctionType(ELEMENT, StructType([np.float32, np.int32]))
    operands = (lambda e: (e[1] * 2, e[0]), elements((1, 0.5), (2, 1.5)))
    mapped = apply("sequence_map", [function, ELEMENTS], operands, "<float32,int32>*")
    assert [np.asarray(buffer).tolist() for buffer in mapped.packed().buffers] == [[1.0, 3.0], [1, 2]]


@pytest.mark.parametrize(("numbers", "expected"), [([1, 2, 3], 5123), ([], 5)])
def test_sequence_reduce_folds_from_the_left(numbers: list[int], expected: int) -> None:
    """In order, from zero; the fold of nothing is zero."""
    function = FunctionType(StructType([INT, ELEMENT]), INT)
    operands = (elements(*[(n, 0.0) for n in numbers]), jnp.int32(5), lambda pair: pair[0] * 10 + pair[1][0])
    assert int(apply("sequence_reduce", [ELEMENTS, INT, function], operands, "int32")) == expected


@pytest.mark.parametrize(("pairs", "expected"), [([(1, 0.5), (2, 1.5)], (3, 2.0)), ([], (0, 0.0))])
def test_sequence_sum_adds_leaf_by_leaf(pairs: Any, expected: Any) -> None:
    """Structs are summed field by field; the sum of nothing is zero."""
    assert apply("sequence_sum", [ELEMENTS], elements(*pairs), "<a=int32,b=float32>") == expected


def test_the_types_of_operands_and_leaves() -> None:
    """What handlers ask of types."""
    intrinsic = ir.Intrinsic("f", FunctionType(StructType([INT, at_clients(INT)]), INT))
    assert operand_types(intrinsic) == [INT, at_clients(INT)]
    assert [(leaf.shape, str(leaf.dtype)) for leaf in tensor_types(ELEMENT)] == [((), "int32"), ((), "float32")]
    for type_ in (ELEMENTS, StructType([ELEMENTS]), at_clients(INT)):
        with pytest.raises(TypeError, match=r"is a sequence|is not made of tensors"):
            tensor_types(type_)
