"""Tests of the intermediate representation: the types of nodes, and walks over expressions."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr

import koinon as ko
from koinon.computation import _ir as ir
from koinon.types import CLIENTS, FunctionType, PlacementType, StructType, TensorType, at_clients, parse

INT, FLOAT = TensorType(np.int32), TensorType(np.float32)
x = ir.Reference("x", INT)
pair = ir.Struct((("a", x), ("b", ir.Literal(np.float32(1.5), FLOAT))), dict)
select = ir.Selection(pair, 1)
function = ir.Lambda("x", INT, select)
call = ir.Call(function, ir.Literal(np.int32(3), INT))
block = ir.Block((("y", x), ("z", ir.Reference("y", INT))), ir.Reference("z", INT))
local = ir.Local("f", jax.make_jaxpr(lambda v: v + 1)(np.int32(0)), FunctionType(INT, INT))
everything = [x, pair, select, function, call, block, local, ir.Placement(CLIENTS), ir.Literal(np.int32(3), INT)]


@pytest.mark.parametrize(
    ("node", "notation"),
    [
        (x, "int32"),
        (pair, "<a=int32,b=float32>"),
        (select, "float32"),
        (function, "(int32 -> float32)"),
        (ir.Lambda(None, None, pair), "( -> <a=int32,b=float32>)"),
        (call, "float32"),
        (block, "int32"),
        (local, "(int32 -> int32)"),
        (ir.Placement(CLIENTS), "placement"),
        (
            ir.Intrinsic("federated_sum", FunctionType(at_clients(INT), parse("int32@SERVER"))),
            "({int32}@CLIENTS -> int32@SERVER)",
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_every_node_knows_its_type(node: ir.Expression, notation: str) -> None:
    """The type follows from the parts, and containers are part of it."""
    assert str(node.type) == notation
    assert isinstance(ir.Placement(CLIENTS).type, PlacementType)
    assert isinstance(pair.type, StructType)
    assert pair.type.container is dict


def test_nodes_are_immutable() -> None:
    """No field of a node can be set."""
    for node in everything:
        field = dataclasses.fields(node)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(node, field, None)


def test_a_walk_meets_parents_first_and_children_in_order() -> None:
    """Preorder, over every kind of node."""
    order = [type(node).__name__ for node in ir.walk(call)]
    assert order == ["Call", "Lambda", "Selection", "Struct", "Reference", "Literal", "Literal"]
    assert [type(node).__name__ for node in ir.walk(block)] == ["Block", "Reference", "Reference", "Reference"]
    assert [list(ir.children(leaf)) for leaf in (x, local, ir.Placement(CLIENTS))] == [[], [], []]


def test_free_names_are_those_that_nothing_binds() -> None:
    """A lambda binds its parameter, a block its locals for what comes after them."""
    assert ir.free_names(x) == {"x"}
    assert ir.free_names(function) == frozenset()
    assert ir.free_names(block) == {"x"}
    recursive = ir.Block((("y", ir.Reference("y", INT)),), ir.Reference("y", INT))
    assert ir.free_names(recursive) == {"y"}
    assert ir.free_names(ir.Lambda("y", INT, pair)) == {"x"}


def test_a_traced_computation_has_no_free_names_and_no_python_in_it() -> None:
    """Every name is bound, and no node holds a function of Python."""
    comp = ko.federated_computation(lambda v: ko.federated_sum(ko.federated_map(lambda a: a + 1, v)), at_clients(INT))
    assert ir.free_names(comp.expression) == frozenset()
    for node in ir.walk(comp.expression):
        assert not any(callable(getattr(node, field.name)) for field in dataclasses.fields(node))


def test_what_is_made_of_a_program_is_made_once_and_goes_with_it() -> None:
    """For each program and further argument; it is not kept for longer than the program."""
    made = []

    @ir.kept_with_program
    def make(program: ClosedJaxpr, size: int) -> np.ndarray:
        made.append(size)
        return np.full(len(program.jaxpr.eqns), size)

    program, other = jax.make_jaxpr(lambda v: v + 1)(1.0), jax.make_jaxpr(lambda v: v * 2 + 1)(1.0)
    assert [make(program, 3).tolist(), make(program, 4).tolist(), make(other, 3).tolist()] == [[3], [4], [3, 3]]
    assert make(program, 3) is make(program, 3)
    assert made == [3, 4, 3]
    kept, others = weakref.ref(make(program, 3)), make(other, 3)
    del program
    gc.collect()
    assert kept() is None
    assert make(other, 3) is others
