"""Tests of the checker: well-typed expressions pass, and every way to be ill-typed is named."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import koinon as ko
from koinon.computation import _ir as ir
from koinon.computation._check import check
from koinon.errors import InvalidIntermediateRepresentationError
from koinon.types import FunctionType, StructType, TensorType, Type, at_clients, at_server

INT, FLOAT = TensorType(np.int32), TensorType(np.float32)
one = ir.Literal(np.int32(1), INT)
half = ir.Literal(np.float32(0.5), FLOAT)
successor = ir.Local("successor", jax.make_jaxpr(lambda v: v + 1)(np.int32(0)), FunctionType(INT, INT))


def ref(name: str, type_: Type = INT) -> ir.Reference:
    """A reference."""
    return ir.Reference(name, type_)


def test_what_the_decorators_make_is_well_typed() -> None:
    """Traced computations pass the checker as a whole and in their closed parts."""
    inner = ko.federated_computation(lambda v: ko.federated_sum(v), at_clients(np.int32))
    outer = ko.federated_computation(
        lambda v, s: (inner(ko.federated_map(lambda x: x * 2, v)), ko.federated_broadcast(s)),
        at_clients(np.int32),
        at_server({"a": np.float32}),
    )
    check(inner.expression)
    check(outer.expression)
    check(ir.Call(ir.Lambda("x", INT, ir.Call(successor, ref("x"))), one))
    check(ir.Block((("y", one), ("z", ref("y"))), ir.Struct(((None, ref("y")), (None, ref("z"))))))


_SUM = ir.Intrinsic("federated_sum", FunctionType(at_clients(INT), at_server(INT)))
_WRONG_SUM = ir.Intrinsic("federated_sum", FunctionType(at_clients(INT), at_server(FLOAT)))
_PAIR = ir.Struct((("a", one), ("b", half)))


@pytest.mark.parametrize(
    ("node", "what"),
    [
        (ref("x"), "refers to a name that is not in scope"),
        (ir.Lambda("x", INT, ref("y")), "refers to a name that is not in scope"),
        (ir.Lambda("x", INT, ref("x", FLOAT)), "has another type than the name that it refers to"),
        (ir.Block((("y", ref("y")),), one), "refers to a name that is not in scope"),
        (ir.Block((("y", ref("z")), ("z", one)), one), "refers to a name that is not in scope"),
        (ir.Struct(((None, ref("x")),)), "refers to a name that is not in scope"),
        (ir.Call(one, one), "calls what is no function"),
        (ir.Call(successor, half), "has an argument that the function does not take"),
        (ir.Call(successor, None), "has an argument too many or too few"),
        (ir.Call(ir.Lambda(None, None, one), one), "has an argument too many or too few"),
        (ir.Call(successor, ref("x")), "refers to a name that is not in scope"),
        (ir.Selection(_PAIR, 2), "selects field 2, which does not exist"),
        (ir.Selection(_PAIR, -1), "selects field -1, which does not exist"),
        (ir.Selection(one, 0), "selects field 0, which does not exist"),
        (
            ir.Lambda("v", at_server(INT), ir.Call(_SUM, ref("v", at_server(INT)))),
            "breaks the type rule of its operator",
        ),
        (
            ir.Lambda("v", at_clients(INT), ir.Call(_WRONG_SUM, ref("v", at_clients(INT)))),
            "has another result type than its operator gives",
        ),
        (
            ir.Local("f", successor.program, FunctionType(StructType([INT, INT]), INT)),
            "takes other leaves than its type has",
        ),
        (ir.Local("f", successor.program, FunctionType(FLOAT, INT)), "takes other leaves than its type has"),
        (ir.Local("f", successor.program, FunctionType(None, INT)), "takes other leaves than its type has"),
        (ir.Local("f", successor.program, FunctionType(INT, FLOAT)), "gives other leaves than its type has"),
    ],
)
def test_every_way_to_be_ill_typed_is_named(node: ir.Expression, what: str) -> None:
    """The error is a ValueError and says which expression does what."""
    with pytest.raises(InvalidIntermediateRepresentationError) as caught:
        check(node)
    assert isinstance(caught.value, ValueError)
    assert what in caught.value.what
    assert caught.value.what.startswith("The expression ")


def test_a_long_expression_is_cut_off_in_the_message() -> None:
    """The text of the expression does not fill the screen."""
    long = ir.Struct(tuple((f"field_{i}", one) for i in range(200)))
    with pytest.raises(InvalidIntermediateRepresentationError) as caught:
        check(ir.Call(successor, long))
    assert len(caught.value.what) < 400
    assert "..." in caught.value.what


def test_a_broken_call_names_the_line_where_it_was_made() -> None:
    """A node that knows its place is found there."""
    with pytest.raises(InvalidIntermediateRepresentationError) as caught:
        check(ir.Call(successor, half, made_in="algorithm.py:7"))
    assert caught.value.made_in == "algorithm.py:7"
    assert (caught.value.expected, caught.value.found) == (INT, FLOAT)
