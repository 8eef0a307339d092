"""Types on a line of a limited width."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon.types import FunctionType, StructType, TensorType, Type, at_clients, at_server, parse
from tests import strategies

WEIGHTS = "<trainable=<b=float32[10],k=float32[784,10]>,non_trainable=<>>"
ROUND = f"(<state={WEIGHTS}@SERVER,data={{<x=float32[784],y=int32>*}}@CLIENTS> -> {WEIGHTS}@SERVER)"
WIDE = "<" + ",".join(f"f{i}=float32[{i}]" for i in range(10, 40)) + ">"


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        # What fits is printed whole, to the character.
        (WEIGHTS, len(WEIGHTS), WEIGHTS),
        (WEIGHTS, len(WEIGHTS) - 1, "<trainable=<...>,non_trainable=<>>"),
        # Outermost structures show the first of their fields, all others are whole or `<...>`.
        (WEIGHTS, 30, "<trainable=<...>,...>"),
        (WEIGHTS, 10, "<...>"),
        (f"{{{WIDE}*}}@CLIENTS", 50, "{<f10=float32[10],f11=float32[11],...>*}@CLIENTS"),
        (f"<a={WIDE},b=<int32>>", 40, "<a=<...>,b=<int32>>"),
        # What stands beside structures stays: placements, sequences, arrows.
        (f"{{{WIDE}*}}@CLIENTS", 5, "{<...>*}@CLIENTS"),
        (f"( -> {WIDE}@SERVER)", 10, "( -> <...>@SERVER)"),
        ("float32[10,20,30]", 5, "float32[10,20,30]"),
        # At each level small structures come first, so that the examples are seen beside the state.
        (
            ROUND,
            120,
            "(<state=<...>@SERVER,data={<x=float32[784],y=int32>*}@CLIENTS> -> "
            "<trainable=<...>,non_trainable=<>>@SERVER)",
        ),
    ],
)
def test_structures_that_do_not_fit_are_left_out(text: str, width: int, shown: str) -> None:
    """The reviewed forms, at widths that are just enough and just too little."""
    assert parse(text).compact_representation(width) == shown


def test_without_a_width_the_whole_type_is_printed() -> None:
    """`str` and a call without width never leave anything out, however long the type."""
    type_ = at_server(StructType([(f"field_{i}", TensorType("float32", (i,))) for i in range(1000)]))

    assert type_.compact_representation() == str(type_) == type_.compact_representation(10**6)
    assert "..." not in str(type_)
    assert len(type_.compact_representation(72)) <= 72


def pattern_of(shown: str) -> str:
    """A regular expression for what a text with `...` in it stands for."""
    return re.escape(shown).replace(re.escape("..."), ".*")


@given(strategies.all_types(), st.integers(0, 120))
def test_an_elided_type_is_the_whole_one_with_gaps(type_: Type, width: int) -> None:
    """What is shown is in the text of the type, in its order; it is whole where it fits, and else within the width.

    Only tensors, placements and arrows outside of structures can be longer.
    """
    shown = type_.compact_representation(width)

    assert re.fullmatch(pattern_of(shown), str(type_))
    if len(str(type_)) <= width:
        assert shown == str(type_)
    else:
        assert len(shown) <= max(width, len(type_.compact_representation(0)))


@given(strategies.all_types(), st.integers(0, 60))
def test_no_empty_structure_is_left_out(type_: Type, width: int) -> None:
    """A type without any field prints whole at every width."""
    bare = FunctionType(None, at_clients(StructType([])))

    assert bare.compact_representation(width) == "( -> {<>}@CLIENTS)"
    if "<" not in str(type_).replace("key<", "").replace("<>", ""):
        assert type_.compact_representation(width) == str(type_)
