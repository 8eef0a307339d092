"""Tests of the table of operators: every row has a rule that its signature describes, a route and a meaning."""

from __future__ import annotations

import re

import pytest

import koinon as ko
from koinon.computation import INTRINSICS, IntrinsicRow, Route
from koinon.computation._evaluate import SEQUENCE_HANDLERS
from koinon.computation._rules import type_structure
from koinon.errors import KoinonTypeError, OperandError
from koinon.types import StructType, TensorType, parse

ROWS = pytest.mark.parametrize("row", INTRINSICS.values(), ids=INTRINSICS)

# For each operator its operands, and its result; `_` stands for what its signature writes with type variables.
_EXAMPLES = {
    "federated_broadcast": ("int32@SERVER", "int32@CLIENTS"),
    "federated_map": ("<(int32 -> bool),{int32}@CLIENTS>", "{bool}@CLIENTS"),
    "federated_zip": ("<{int32}@CLIENTS,{bool}@CLIENTS>", "{<int32,bool>}@CLIENTS"),
    "federated_eval_at_clients": ("( -> int32)", "{int32}@CLIENTS"),
    "federated_eval_at_server": ("( -> int32)", "int32@SERVER"),
    "federated_value_at_clients": ("int32", "int32@CLIENTS"),
    "federated_value_at_server": ("int32", "int32@SERVER"),
    "federated_sum": ("{int32}@CLIENTS", "int32@SERVER"),
    "federated_mean": ("{float32}@CLIENTS", "float32@SERVER"),
    "federated_weighted_mean": ("<{float32}@CLIENTS,{int32}@CLIENTS>", "float32@SERVER"),
    "federated_min": ("{int32}@CLIENTS", "int32@SERVER"),
    "federated_max": ("{int32}@CLIENTS", "int32@SERVER"),
    "federated_aggregate": (
        "<{int32}@CLIENTS,float32,(<float32,int32> -> float32),(<float32,float32> -> float32),(float32 -> bool)>",
        "bool@SERVER",
    ),
    "federated_collect": ("{int32}@CLIENTS", "int32*@SERVER"),
    "federated_secure_sum": ("<{int32}@CLIENTS,int32>", "int32@SERVER"),
    "federated_secure_sum_bitwidth": ("<{int32}@CLIENTS,int32>", "int32@SERVER"),
    "federated_secure_modular_sum": ("<{int32}@CLIENTS,int32>", "int32@SERVER"),
    "federated_split_key": ("key<fry>@SERVER", "{key<fry>}@CLIENTS"),
    "federated_select": (
        "<{int32[3]}@CLIENTS,int32@SERVER,float32@SERVER,(<float32,int32> -> bool)>",
        "{bool*}@CLIENTS",
    ),
    "federated_secure_select": (
        "<{int32[3]}@CLIENTS,int32@SERVER,float32@SERVER,(<float32,int32> -> bool)>",
        "{bool*}@CLIENTS",
    ),
    "sequence_map": ("<(int32 -> bool),int32*>", "bool*"),
    "sequence_reduce": ("<int32*,float32,(<float32,int32> -> float32)>", "float32"),
    "sequence_sum": ("int32*", "int32"),
}


@ROWS
def test_the_rule_of_an_operator_gives_what_its_signature_says(row: IntrinsicRow) -> None:
    """The operands and the result of an example have the shape of the signature."""
    operands, result = _EXAMPLES[row.name]
    assert str(row.rule(parse(operands))) == result
    left, right = (
        row.signature.rsplit(" -> ", 1) if not row.signature.startswith("( ->") else row.signature.rsplit(") -> ", 1)
    )
    assert _skeleton(left).strip("()") == _skeleton(operands).strip("()")
    assert _skeleton(right) == _skeleton(result)


def _skeleton(text: str) -> str:
    """A notation with every tensor and type variable written as `_`, and placements as they are or as `P`."""
    text = re.sub(r"@(CLIENTS|SERVER|P)", "@", text)
    return re.sub(r"key<\w+>|(int32|float32|bool|[A-Z])(\[\w+\])?", "_", text)


@ROWS
def test_every_operator_has_a_route_and_a_meaning(row: IntrinsicRow) -> None:
    """The meaning is a sentence; an operator that the clients' values leave through says how they are seen."""
    assert row.meaning.endswith(".")
    operands, result = _EXAMPLES[row.name]
    leaves_the_clients = "@CLIENTS" in operands and result.endswith("@SERVER")
    assert (row.route is not Route.NONE) == leaves_the_clients
    assert ("secure_sum" in row.name or "secure_modular" in row.name) == (row.route is Route.SECURE)


@ROWS
def test_every_operator_is_public_under_its_name(row: IntrinsicRow) -> None:
    """The two placements of eval and value, and the weighted mean, are called by one name."""
    name = re.sub(r"_at_(clients|server)$", "", row.name).replace("weighted_mean", "mean")
    assert callable(getattr(ko, name))


@ROWS
@pytest.mark.parametrize("notation", ["<int32@SERVER,{int32}@CLIENTS>", "<>@SERVER", "<<int32>,{bool}@CLIENTS>"])
def test_a_rule_refuses_what_has_no_meaning(row: IntrinsicRow, notation: str) -> None:
    """Operands of a wrong kind are typed errors that end their sentence, never a crash."""
    if (row.name, notation) == ("federated_broadcast", "<>@SERVER"):
        pytest.skip("this is what a broadcast takes")
    with pytest.raises(KoinonTypeError) as caught:
        row.rule(parse(notation))
    assert caught.value.what.endswith(".")


def test_rules_take_structs_with_and_without_names() -> None:
    """Operands of a call written by hand may have names; the structure of a type is its nesting and names."""
    assert str(INTRINSICS["sequence_map"].rule(parse("<f=(int32 -> bool),s=int32*>"))) == "bool*"
    assert type_structure(parse("<a=int32,b=<float32[3]>>")) == (
        ("a", None),
        ("b", ((None, None),)),
    )
    with pytest.raises(OperandError, match="The operator takes 2 operands"):
        INTRINSICS["federated_map"].rule(StructType([TensorType("int32")]))


def test_operators_on_sequences_have_one_meaning_for_all_engines() -> None:
    """The handlers of sequence operators cover the rows of sequences."""
    assert set(SEQUENCE_HANDLERS) == {name for name in INTRINSICS if name.startswith("sequence_")}
