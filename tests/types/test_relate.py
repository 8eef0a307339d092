"""Which types can be used for which, and where two types differ."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon import _errors as errors
from koinon.types import (
    FederatedType,
    FunctionType,
    SequenceType,
    StructType,
    TensorType,
    first_difference,
    parse,
)
from tests import strategies

# (target, source, whether a value of the source can be used for the target)
ASSIGNABLE = [
    ("int32", "int32", True),
    ("int32", "int64", False),
    ("float32", "int32", False),
    ("float32", "bfloat16", False),
    ("key<fry>", "key<fry>", True),
    ("key<fry>", "key<rbg>", False),
    ("int32[3]", "int32[3]", True),
    ("int32[3]", "int32[4]", False),
    ("int32[3]", "int32", False),
    ("int32[3]", "int32[3,1]", False),
    ("int32[?]", "int32[3]", True),
    ("int32[?,2]", "int32[3,2]", True),
    ("int32[?,2]", "int32[3,3]", False),
    ("int32[?]", "int32[?]", True),
    ("int32[3]", "int32[?]", False),
    ("'int32'(shape=None)", "int32[3,?]", True),
    ("'int32'(shape=None)", "int32", True),
    ("'int32'(shape=None)", "'int32'(shape=None)", True),
    ("'int32'(shape=None)", "float32", False),
    ("int32[?]", "'int32'(shape=None)", False),
    ("<>", "<>", True),
    ("<>", "<int32>", False),
    ("<int32>", "<>", False),
    ("<a=int32>", "<a=int32>", True),
    ("<a=int32>", "<int32>", True),
    ("<int32>", "<a=int32>", False),
    ("<a=int32>", "<b=int32>", False),
    ("<a=int32,b=int32>", "<b=int32,a=int32>", False),
    ("<int32,int32>", "<int32>", False),
    ("<int32>", "int32", False),
    ("int32", "<int32>", False),
    ("<a=<int32[?]>>", "<a=<int32[3]>>", True),
    ("int32*", "int32*", True),
    ("int32[?]*", "int32[3]*", True),
    ("int32[3]*", "int32[?]*", False),
    ("int32*", "int32", False),
    ("<a=int32>*", "<int32>*", True),
    ("int32@SERVER", "int32@SERVER", True),
    ("int32@SERVER", "int32@CLIENTS", False),
    ("int32@SERVER", "int32", False),
    ("int32", "int32@SERVER", False),
    ("{int32}@CLIENTS", "int32@CLIENTS", True),
    ("int32@CLIENTS", "{int32}@CLIENTS", False),
    ("{int32}@SERVER", "int32@SERVER", True),
    ("int32@SERVER", "{int32}@SERVER", False),
    ("{int32[?]}@CLIENTS", "{int32[3]}@CLIENTS", True),
    ("(int32 -> int32)", "(int32 -> int32)", True),
    ("( -> int32)", "( -> int32)", True),
    ("( -> int32)", "(int32 -> int32)", False),
    ("(int32 -> int32)", "( -> int32)", False),
    ("(int32[3] -> int32)", "(int32[?] -> int32)", True),
    ("(int32[?] -> int32)", "(int32[3] -> int32)", False),
    ("( -> int32[?])", "( -> int32[3])", True),
    ("( -> int32[3])", "( -> int32[?])", False),
    ("((int32[?] -> int32) -> int32)", "((int32[3] -> int32) -> int32)", True),
    ("((int32[3] -> int32) -> int32)", "((int32[?] -> int32) -> int32)", False),
    ("placement", "placement", True),
    ("placement", "int32", False),
    ("int32", "T", False),
]


@pytest.mark.parametrize(("target", "source", "expected"), ASSIGNABLE)
def test_assignability_follows_the_rules_of_tff(target: str, source: str, expected: bool) -> None:
    """The question and the check agree with the table."""
    declared, given_type = parse(target), parse(source)

    assert declared.is_assignable_from(given_type) is expected
    if expected:
        declared.check_assignable_from(given_type)
    else:
        with pytest.raises(errors.TypeNotAssignableError):
            declared.check_assignable_from(given_type)


def test_containers_do_not_matter_for_assignability() -> None:
    """Types that differ in containers only are equivalent, and not equal."""
    types = [StructType([("a", np.int32)], container) for container in (None, dict, collections.OrderedDict)]

    for one in types:
        for other in types:
            assert one.is_equivalent_to(other)
            assert (one == other) == (one is other) == one.is_identical_to(other)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("<a=int32>", "<a=int32>", True), ("<int32>", "<a=int32>", False), ("int32[?]", "int32[3]", False)],
)
def test_equivalence_is_assignability_both_ways(one: str, other: str, expected: bool) -> None:
    """One direction is not enough."""
    assert parse(one).is_equivalent_to(parse(other)) is expected
    assert parse(other).is_equivalent_to(parse(one)) is expected
    if expected:
        parse(one).check_equivalent_to(parse(other))
    else:
        for left, right in ((one, other), (other, one)):
            with pytest.raises(errors.TypesNotEquivalentError):
                parse(left).check_equivalent_to(parse(right))


@pytest.mark.parametrize("target", ["T", "<T>", "{T}@CLIENTS", "(T -> int32)", "( -> T)"])
def test_abstract_types_cannot_be_compared(target: str) -> None:
    """Not even with themselves: what a variable stands for is not known."""
    type_ = parse(target)

    with pytest.raises(errors.KoinonTypeError, match="abstract type cannot be compared"):
        type_.is_assignable_from(type_)
    with pytest.raises(errors.KoinonTypeError, match="abstract type cannot be compared"):
        type_.check_assignable_from(parse(target))


@pytest.mark.parametrize("other", [None, np.int32, "int32", np.dtype("int32"), 3])
def test_only_types_can_be_compared(other) -> None:
    """A description of a type is not a type."""
    type_ = TensorType(np.int32)
    for compare in (
        type_.is_assignable_from,
        type_.check_assignable_from,
        type_.is_equivalent_to,
        type_.check_equivalent_to,
    ):
        with pytest.raises(errors.KoinonTypeError, match="Only types can be compared"):
            compare(other)


def weakened(type_, draw):
    """A type that accepts `type_`, with some dimensions forgotten and some all-equal bits dropped."""
    if isinstance(type_, TensorType):
        if type_.shape is None or draw(st.booleans()):
            return TensorType(type_.dtype, None)
        return TensorType(type_.dtype, [None if draw(st.booleans()) else size for size in type_.shape])
    if isinstance(type_, StructType):
        names = type_.fields()
        if not names and draw(st.booleans()):
            names = [f"n{i}" for i in range(len(type_))]
        children = [weakened(child, draw) for child in type_]
        return StructType(list(zip(names, children, strict=True)) if names else children)
    if isinstance(type_, SequenceType):
        return SequenceType(weakened(type_.element, draw))
    if isinstance(type_, FederatedType):
        all_equal = type_.all_equal and draw(st.booleans())
        return FederatedType(weakened(type_.member, draw), type_.placement, all_equal)
    if isinstance(type_, FunctionType):
        return FunctionType(type_.parameter, weakened(type_.result, draw))
    return type_


@given(strategies.concrete_types())
def test_assignability_is_reflexive(type_) -> None:
    """Every concrete type accepts itself, and an equal type that is another object."""
    twin = parse(str(type_))

    assert first_difference(type_, twin) is None
    assert type_.is_assignable_from(twin)
    assert type_.is_equivalent_to(twin)
    type_.check_assignable_from(twin)
    type_.check_equivalent_to(twin)


@given(strategies.concrete_types(), st.data())
def test_assignability_is_transitive_along_weakening(type_, data) -> None:
    """A type accepts what it was weakened from, over one step and over two."""
    weaker = weakened(type_, data.draw)
    weakest = weakened(weaker, data.draw)

    assert weaker.is_assignable_from(type_)
    assert weakest.is_assignable_from(weaker)
    assert weakest.is_assignable_from(type_)
    assert FunctionType(type_, type_).is_assignable_from(FunctionType(weaker, type_))


@settings(max_examples=300)
@given(strategies.concrete_types(), strategies.concrete_types(), strategies.concrete_types())
def test_assignability_is_transitive(one, two, three) -> None:
    """Whatever accepts what accepts a type accepts that type."""
    if one.is_assignable_from(two) and two.is_assignable_from(three):
        assert one.is_assignable_from(three)


@given(strategies.concrete_types(), strategies.concrete_types())
def test_types_accept_each_other_exactly_if_equal(one, other) -> None:
    """Without containers, assignability is a partial order: equivalence is equality."""
    assert one.is_equivalent_to(other) == (one == other)


@pytest.mark.parametrize(
    ("target", "source", "expected"),
    [
        ("int32", "float32", "the top: expected int32, found float32"),
        ("<a=<int32,float32[10]>>", "<a=<int32,float32[12]>>", ".a[1]: expected float32[10], found float32[12]"),
        (
            "<state=<optimizer=<mu=<float32[10]>>>>@SERVER",
            "<state=<optimizer=<mu=<float32[12]>>>>@SERVER",
            ".state.optimizer.mu[0]: expected float32[10], found float32[12]",
        ),
        ("{<x=int32>*}@CLIENTS", "{<x=int64>*}@CLIENTS", "*.x: expected int32, found int64"),
        ("(<a=int32> -> int32)", "(<a=int8> -> int32)", ".parameter.a: expected int32, found int8"),
        ("(int32 -> <int32>)", "(int32 -> <int8>)", ".result[0]: expected int32, found int8"),
        ("( -> int32)", "(int8 -> int32)", ".parameter: expected no parameter, found int8"),
        ("(int8 -> int32)", "( -> int32)", ".parameter: expected int8, found no parameter"),
        ("<<int32,int32>>", "<<int32>>", "[0]: expected 2 fields, found 1"),
        (
            "<a=int32,b=int8>",
            "<a=int32,c=int8>",
            "the top: the names of the fields differ: missing 'b', unexpected 'c'",
        ),
        ("<a=int32,b=int8>", "<a=int32>", "the top: the names of the fields differ: missing 'b'"),
        ("<a=int32>", "<a=int32,b=int8>", "the top: the names of the fields differ: unexpected 'b'"),
        ("<a=int32,b=int8>", "<b=int8,a=int32>", "the top: expected the fields in the order 'a', 'b', found 'b', 'a'"),
        ("<int32>", "<a=int32>", "the top: expected fields without names, found the names 'a'"),
        ("int32@SERVER", "int32@CLIENTS", "the top: expected a value at SERVER, found one at CLIENTS"),
        (
            "<int32@CLIENTS>",
            "<{int32}@CLIENTS>",
            "[0]: expected the same value for all, found values that may differ",
        ),
    ],
)
def test_differences_say_where_and_what(target: str, source: str, expected: str) -> None:
    """The path leads to the first part that differs, and the sentence says how."""
    assert str(first_difference(parse(target), parse(source))) == expected


def test_differences_hold_the_two_types_at_their_path() -> None:
    """Code can read what the message prints."""
    difference = first_difference(parse("(<a=int32> -> int8)"), parse("(<a=int16> -> int8)"))

    assert difference is not None
    assert difference.path == ".parameter.a"
    assert (difference.expected, difference.found) == (parse("int32"), parse("int16"))


def test_differences_of_many_names_are_cut_off() -> None:
    """A message does not list a thousand names."""
    target = StructType([(f"a{i}", np.int32) for i in range(20)])
    source = StructType([(f"b{i}", np.int32) for i in range(20)])

    assert "'a7', and 12 more" in str(first_difference(target, source))


def test_errors_of_small_types_show_both_types() -> None:
    """Sentence, expected, found, path, and place of origin, one line each."""
    with pytest.raises(errors.TypeNotAssignableError) as info:
        parse("<a=int32,b=int8>").check_assignable_from(
            parse("<a=int32,b=int16>"), what="`next` must return a state that it accepts back.", made_in="here.py:3"
        )

    assert str(info.value).split("\n") == [
        "`next` must return a state that it accepts back.",
        "  expected   <a=int32,b=int8>",
        "  found      <a=int32,b=int16>",
        "  differs at .b: expected int8, found int16",
        "  made in    here.py:3",
    ]


def test_errors_of_large_types_show_only_the_difference() -> None:
    """Types of more than three fields are left out of the message and kept as attributes."""
    target, source = parse("<a=int32,b=<int8,int8>>@SERVER"), parse("<a=int32,b=<int8,int16>>@SERVER")

    with pytest.raises(errors.TypeNotAssignableError) as info:
        target.check_assignable_from(source)

    assert str(info.value).split("\n") == [
        "A value of one type cannot be used where another type is declared.",
        "  differs at .b[1]: expected int8, found int16",
    ]
    assert (info.value.expected, info.value.found) == (target, source)


def test_errors_of_equivalence_name_the_expected_type_first() -> None:
    """Also where only the way back is closed."""
    with pytest.raises(errors.TypesNotEquivalentError) as info:
        parse("int32[?]").check_equivalent_to(parse("int32[3]"), what="Both must agree.", made_in="there.py:1")

    assert str(info.value).split("\n") == [
        "Both must agree.",
        "  expected   int32[?]",
        "  found      int32[3]",
        "  differs at the top: expected int32[?], found int32[3]",
        "  made in    there.py:1",
    ]
    assert isinstance(info.value, TypeError)
