"""Types as values: construction, printing, equality, immutability."""

from __future__ import annotations

import collections
import copy
import pickle

import jax
import jax.numpy as jnp  # noqa: F401 (the expressions that `repr` gives need it)
import numpy as np
import pytest
from hypothesis import given

from koinon import _errors as errors
from koinon.types import (
    CLIENTS,
    SERVER,
    AbstractType,
    FederatedType,
    FunctionType,
    PlacementType,
    SequenceType,
    StructType,
    TensorType,
    at_clients,
    at_server,
    parse,
)
from koinon.types._base import MAX_DEPTH
from tests import strategies

INT32 = TensorType(np.int32)

# (type, what `str` gives, what `repr` gives), as TFF prints them.
PRINTED = [
    (TensorType(np.int32), "int32", "TensorType(np.int32)"),
    (TensorType(np.float32, (3, None)), "float32[3,?]", "TensorType(np.float32, (3, None))"),
    (TensorType(np.int32, [5]), "int32[5]", "TensorType(np.int32, (5,))"),
    (TensorType(np.int32, None), "'int32'(shape=None)", "TensorType(np.int32, None)"),
    (TensorType("bfloat16", (2,)), "bfloat16[2]", "TensorType(jnp.bfloat16, (2,))"),
    (TensorType("key<fry>", (3,)), "key<fry>[3]", "TensorType('key<fry>', (3,))"),
    (StructType([]), "<>", "StructType([])"),
    (StructType([np.int32]), "<int32>", "StructType([TensorType(np.int32)])"),
    (
        StructType([("a", np.int32), ("b", np.float32)]),
        "<a=int32,b=float32>",
        "StructType([('a', TensorType(np.int32)), ('b', TensorType(np.float32))])",
    ),
    (
        StructType([("a", np.int32)], collections.OrderedDict),
        "<a=int32>",
        "StructType([('a', TensorType(np.int32))]) as OrderedDict",
    ),
    (SequenceType(np.int32), "int32*", "SequenceType(TensorType(np.int32))"),
    (
        SequenceType(StructType([np.int32, np.float32])),
        "<int32,float32>*",
        "SequenceType(StructType([TensorType(np.int32), TensorType(np.float32)]))",
    ),
    (
        FederatedType(np.int32, CLIENTS),
        "{int32}@CLIENTS",
        "FederatedType(TensorType(np.int32), PlacementLiteral('clients'), False)",
    ),
    (
        FederatedType(np.int32, CLIENTS, True),
        "int32@CLIENTS",
        "FederatedType(TensorType(np.int32), PlacementLiteral('clients'), True)",
    ),
    (
        FederatedType(np.int32, SERVER),
        "int32@SERVER",
        "FederatedType(TensorType(np.int32), PlacementLiteral('server'), True)",
    ),
    (
        FederatedType(np.int32, SERVER, False),
        "{int32}@SERVER",
        "FederatedType(TensorType(np.int32), PlacementLiteral('server'), False)",
    ),
    (
        FunctionType(np.int32, np.float32),
        "(int32 -> float32)",
        "FunctionType(TensorType(np.int32), TensorType(np.float32))",
    ),
    (FunctionType(None, np.int32), "( -> int32)", "FunctionType(None, TensorType(np.int32))"),
    (
        FunctionType([("a", np.int32), ("b", np.int32)], np.int32),
        "(<a=int32,b=int32> -> int32)",
        "FunctionType(StructType([('a', TensorType(np.int32)), ('b', TensorType(np.int32))]), TensorType(np.int32))",
    ),
    (PlacementType(), "placement", "PlacementType()"),
    (AbstractType("T"), "T", "AbstractType('T')"),
]
TYPES = [type_ for type_, _, _ in PRINTED]


@pytest.mark.parametrize(("type_", "text", "expression"), PRINTED)
def test_types_print_as_in_tff(type_, text: str, expression: str) -> None:
    """`str` is the compact notation, `repr` the expression that builds the type."""
    assert str(type_) == text
    assert type_.compact_representation() == text
    assert repr(type_) == expression


@pytest.mark.parametrize("type_", [type_ for type_, _, expression in PRINTED if " as " not in expression])
def test_repr_builds_the_type(type_) -> None:
    """Evaluating `repr` gives an equal type; placements print as in TFF, which is no expression."""
    text = repr(type_).replace("PlacementLiteral('clients')", "CLIENTS").replace("PlacementLiteral('server')", "SERVER")

    assert eval(text) == type_


def test_formatted_representation_puts_each_field_on_its_line() -> None:
    """Structures are indented by two spaces, everything else stays on its line, as TFF prints it."""
    type_ = parse("(<a=int32,b=<int32>> -> {<int32>}@CLIENTS)")

    assert type_.formatted_representation() == (
        "(<\n  a=int32,\n  b=<\n    int32\n  >\n> -> {<\n  int32\n>}@CLIENTS)"  #
    )


def test_formatted_representation_of_types_without_fields_is_compact() -> None:
    """An empty structure, a tensor, a function of tensors have one line."""
    for text in ("<>", "float32[3,?]", "( -> int32*)", "{<>}@CLIENTS"):
        assert parse(text).formatted_representation() == text


@given(strategies.all_types())
def test_formatted_and_compact_forms_differ_in_white_space_only(type_) -> None:
    """Without line breaks and indentation, the formatted form is the compact one."""
    lines = type_.formatted_representation().split("\n")

    assert "".join(line.lstrip(" ") for line in lines) == str(type_)


@given(strategies.all_types(), strategies.all_types())
def test_types_are_equal_exactly_if_they_print_alike(one, other) -> None:
    """For types without containers, the notation tells all; equal types have equal hashes."""
    assert (one == other) == (str(one) == str(other))
    if one == other:
        assert hash(one) == hash(other)


def test_types_of_the_table_are_all_different() -> None:
    """No two of them are equal, whatever their kind; all go into one set."""
    assert len(set(TYPES)) == len(TYPES)
    assert all((one == other) == (one is other) for one in TYPES for other in TYPES)
    for type_ in TYPES:
        assert not any(type_ == other for other in (str(type_), 3, None, np.dtype("int32"), np.int32))


@pytest.mark.parametrize("type_", TYPES)
def test_types_survive_copy_and_pickle(type_) -> None:
    """A copy is the very object, a pickled type is equal, with the same text and hash."""
    assert copy.copy(type_) is type_
    assert copy.deepcopy(type_) is type_
    restored = pickle.loads(pickle.dumps(type_))
    assert restored == type_
    assert type_.is_identical_to(restored)
    assert (hash(restored), repr(restored)) == (hash(type_), repr(type_))


@pytest.mark.parametrize("type_", TYPES)
def test_types_are_immutable(type_) -> None:
    """No attribute can be set or deleted, an existing one or a new one."""
    for name in ("dtype", "element", "_hash", "anything"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(type_, name, None)
        with pytest.raises(AttributeError, match="immutable"):
            delattr(type_, name)


def test_types_are_leaves_of_pytrees() -> None:
    """JAX does not look inside a type."""
    assert jax.tree_util.tree_leaves({"a": TYPES}) == TYPES


@pytest.mark.parametrize("shape", [3, "34", (True,), (1.0,), (np.float32(2),), ("?",)])
def test_shapes_of_other_things_than_integers_are_refused(shape) -> None:
    """A dimension is an integer or None."""
    with pytest.raises(errors.KoinonTypeError, match="sequence of dimensions"):
        TensorType(np.int32, shape)


@pytest.mark.parametrize("size", [-1, 2**31, 2**20_000], ids=["negative", "33 bits", "20,001 bits"])
def test_dimensions_outside_of_int32_are_refused(size: int) -> None:
    """A dimension is not negative, and fits into 32 bits."""
    with pytest.raises(errors.KoinonValueError, match="between 0 and"):
        TensorType(np.int32, (size,))


def test_shapes_of_more_dimensions_than_numpy_has_are_refused() -> None:
    """64 dimensions are possible, 65 are not."""
    assert len(TensorType(np.int32, (1,) * 64).shape or ()) == 64
    with pytest.raises(errors.KoinonValueError, match="at most 64"):
        TensorType(np.int32, (1,) * 65)


def test_integers_of_numpy_are_dimensions() -> None:
    """A shape computed with NumPy becomes one of Python integers."""
    shape = TensorType(np.int32, np.asarray([2, 3])).shape

    assert repr(shape) == "(2, 3)"


@pytest.mark.parametrize(
    ("shape", "is_fully_defined", "num_elements"),
    [((), True, 1), ((2, 3), True, 2 * 3), ((0, 3), True, 0), ((2, None), False, None), (None, False, None)],
)
def test_tensors_tell_whether_their_shape_is_known(shape, is_fully_defined: bool, num_elements: int | None) -> None:
    """`is_fully_defined` and `num_elements` follow from the dimensions."""
    type_ = TensorType(np.int32, shape)

    assert type_.is_fully_defined is is_fully_defined
    assert type_.num_elements == num_elements


@pytest.mark.parametrize("element", ["int32@SERVER", "( -> int32)", "int32*", "<a=<int32*>>", "<{int32}@CLIENTS>"])
def test_sequences_refuse_placed_values_functions_and_sequences(element: str) -> None:
    """What is inside a sequence is a tensor or a structure of tensors."""
    with pytest.raises(errors.IllTypedError, match="cannot have a placed value, a function or a sequence") as info:
        SequenceType(parse(element))

    assert isinstance(info.value, TypeError)
    assert isinstance(info.value, ValueError)


@pytest.mark.parametrize("member", ["int32@SERVER", "( -> int32)", "<a=<{int32}@CLIENTS>>", "<(int32 -> int32)>"])
def test_placed_values_refuse_placed_values_and_functions(member: str) -> None:
    """What is placed lives at one place."""
    with pytest.raises(errors.IllTypedError, match="A placed value cannot have"):
        FederatedType(parse(member), CLIENTS)


def test_placed_values_may_have_sequences_inside() -> None:
    """A client's value may be a dataset."""
    assert str(FederatedType(SequenceType(np.int32), CLIENTS)) == "{int32*}@CLIENTS"


@pytest.mark.parametrize("placement", ["clients", None, PlacementType()])
def test_placed_values_need_a_placement(placement) -> None:
    """Its text does not serve."""
    with pytest.raises(errors.KoinonTypeError, match="needs a placement"):
        FederatedType(np.int32, placement)


def test_all_equal_is_a_truth_value() -> None:
    """A mask or a number does not serve."""
    with pytest.raises(errors.KoinonTypeError, match="truth value"):
        FederatedType(np.int32, CLIENTS, 1)  # pyright: ignore[reportArgumentType]


def test_default_all_equal_is_that_of_the_placement() -> None:
    """Leaving it out is the same as saying what is usual."""
    assert FederatedType(np.int32, SERVER) == FederatedType(np.int32, SERVER, True)
    assert FederatedType(np.int32, CLIENTS) == FederatedType(np.int32, CLIENTS, False)
    assert FederatedType(np.int32, CLIENTS) != FederatedType(np.int32, CLIENTS, True)


def test_shorthands_place_a_type() -> None:
    """`at_clients` and `at_server` take anything that describes a type."""
    assert at_clients((np.float32, (2,))) == FederatedType(TensorType(np.float32, (2,)), CLIENTS)
    assert at_server({"a": np.int32}) == FederatedType(StructType([("a", np.int32)], dict), SERVER)


@pytest.mark.parametrize("label", ["", "t", "1T", "T-1", "Ω", "T U", "_T"])
def test_labels_that_would_read_as_something_else_are_refused(label: str) -> None:
    """A label starts with a capital letter, as no dtype does."""
    with pytest.raises(errors.KoinonValueError, match="label of an abstract type"):
        AbstractType(label)


def test_labels_are_text() -> None:
    """A label that is no text is an error of type."""
    with pytest.raises(errors.KoinonTypeError, match="is text"):
        AbstractType(3)  # pyright: ignore[reportArgumentType]


def test_types_match_patterns() -> None:
    """A `match` statement takes types apart."""
    match parse("{<int32*>}@CLIENTS"):
        case FederatedType(StructType() as member, placement, all_equal):
            assert (str(member), placement, all_equal) == ("<int32*>", CLIENTS, False)
        case _:
            pytest.fail("no match")


def test_types_of_the_greatest_depth_print_compare_and_hash() -> None:
    """At the declared limit nothing overflows the stack; beyond it construction refuses."""

    def nested(levels: int):
        type_ = INT32
        for _ in range(levels - 1):
            type_ = StructType([type_])
        return type_

    deepest = nested(MAX_DEPTH)
    assert str(deepest) == "<" * (MAX_DEPTH - 1) + "int32" + ">" * (MAX_DEPTH - 1)
    assert repr(deepest).count("StructType") == MAX_DEPTH - 1
    assert deepest.formatted_representation().count("\n") == 2 * (MAX_DEPTH - 1)
    assert deepest == nested(MAX_DEPTH)
    assert deepest.is_assignable_from(nested(MAX_DEPTH))
    assert not deepest.is_assignable_from(nested(MAX_DEPTH - 1))
    with pytest.raises(errors.KoinonValueError, match="at most 200 levels"):
        StructType([deepest])
