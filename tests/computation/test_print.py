"""Tests of the text of expressions, on one line and on a page."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import koinon as ko
from koinon.computation import _ir as ir
from koinon.computation._print import compact, formatted, selector
from koinon.types import SERVER, FunctionType, TensorType, at_clients

INT = TensorType(np.int32)
one = ir.Literal(np.int32(1), INT)
x = ir.Reference("x", INT)
local = ir.Local("f", jax.make_jaxpr(lambda v: v)(np.int32(0)), FunctionType(INT, INT))


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (x, "x"),
        (one, "1"),
        (ir.Literal(np.zeros(2, np.float32), TensorType(np.float32, (2,))), "[0. 0.]"),
        (ir.Literal(np.zeros(5, np.float32), TensorType(np.float32, (5,))), "float32[5](...)"),
        (ir.Placement(SERVER), "SERVER"),
        (local, "f"),
        (ir.Lambda("x", INT, x), "(x -> x)"),
        (ir.Lambda(None, None, one), "( -> 1)"),
        (ir.Call(local, one), "f(1)"),
        (ir.Call(ir.Lambda(None, None, one), None), "( -> 1)()"),
        (ir.Block((("x", one), ("y", x)), x), "(let x=1,y=x in x)"),
        (ir.Struct(()), "<>"),
        (ir.Struct((("a", one), ("b", x)), dict), "<a=1,b=x>"),
        (ir.Selection(ir.Struct(((None, one), (None, x))), 1), "<1,x>[1]"),
        (ir.Selection(ir.Struct((("a", one),)), 0), "<a=1>.a"),
    ],
)
def test_the_text_of_each_kind_of_node(node: ir.Expression, text: str) -> None:
    """The notation of the language, with large constants left out."""
    assert compact(node) == text


def test_a_selector_is_a_name_or_an_index() -> None:
    """Fields with names are selected by name."""
    assert selector(ir.Selection(ir.Struct((("a", one),)), 0)) == ".a"
    assert selector(ir.Selection(ir.Struct(((None, one),)), 0)) == "[0]"


def test_a_key_prints_as_a_constant() -> None:
    """Also where numpy could not hold the constant."""
    key = jax.random.key(0)
    assert "key<fry>" in compact(ir.Literal(key, TensorType(key.dtype)))


def test_a_page_has_one_binding_on_each_line_with_its_type() -> None:
    """Nested blocks are indented."""

    @ko.federated_computation(at_clients(np.int32))
    def inner(values: Any) -> Any:
        return ko.federated_sum(values)

    @ko.federated_computation(at_clients(np.int32))
    def outer(values: Any) -> Any:
        total = inner(values)
        return {"total": total, "max": ko.federated_max(values)}

    assert formatted(outer.expression).splitlines() == [
        "(v0 -> (let",
        "  v1: int32@SERVER = (v0 -> (let v1=federated_sum(v0) in v1))(v0)",
        "  v2: int32@SERVER = federated_max(v0)",
        " in <max=v2,total=v1>))",
    ]


def test_a_page_leaves_out_what_is_too_long_of_a_type() -> None:
    """The lines of a page stay readable, and the expression has the whole types."""
    wide = at_clients({f"w{i}": np.float32 for i in range(10, 50)})

    @ko.federated_computation(wide)
    def mean(values: Any) -> Any:
        return ko.federated_mean(values)

    line = formatted(mean.expression).splitlines()[1]

    assert line.startswith("  v1: <w10=float32,w11=float32,")
    assert line.endswith(",...>@SERVER = federated_mean(v0)")
    assert len(line) < 110
    assert "w49=float32" in str(mean.type_signature)
