"""Reading the notation: the inverse of printing, and one error for everything else."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from koinon import _errors as errors
from koinon.types import (
    CLIENTS,
    SERVER,
    AbstractType,
    FederatedType,
    FunctionType,
    SequenceType,
    StructType,
    TensorType,
    Type,
    parse,
)
from koinon.types._base import MAX_DEPTH
from koinon.types._struct import MAX_FIELDS
from tests import strategies

# Valid texts from which the fuzzers make invalid ones.
SEEDS = (
    "int32",
    "float32[3,?]",
    "'bfloat16'(shape=None)",
    "key<fry>[2]",
    "placement",
    "T",
    "<>",
    "<a=int32,b=<float32,bool>>",
    "<layers/0=<kernel=float32[784,10],bias=float32[10]>,step=int32>",
    "<x=float32[?,784],y=int32[?]>*",
    "{float32}@CLIENTS",
    "float32@CLIENTS",
    "{int32}@SERVER",
    "( -> <>@SERVER)",
    "(<float32@SERVER,{int32*}@CLIENTS> -> float32@SERVER)",
    "(<state=<w=float32[10],n=int64>@SERVER,data={<x=float32,y=uint8>*}@CLIENTS> -> <<>@SERVER,key<rbg>@CLIENTS>)",
    "(<{T}@CLIENTS,U,(<U,T> -> U),(<U,U> -> U),(U -> R)> -> R@SERVER)",
)
TOKENS = (
    *"<>=,()*{}@[]?'-0123456789 \n\t\x00ωT",
    *("->", "()", "<>", "[]", "key<", "key<fry>", "int32", "float32", "placement", "CLIENTS", "SERVER", "shape=None"),
    *("@CLIENTS", "@SERVER", "a=", "int32*", "{", "2147483647", "2147483648", "99999999999999999999", "\ud800", "²"),
)


def parse_or_error(text: str) -> Type | errors.TypeSyntaxError:
    """The type that `text` denotes, or the one error that it may raise."""
    try:
        return parse(text)
    except errors.TypeSyntaxError as error:
        return error


def assert_answers(text: str) -> bool:
    """Asserts that `text` is a type that prints and parses again, or a syntax error with a position; says which."""
    answer = parse_or_error(text)
    if isinstance(answer, Type):
        assert parse(str(answer)) == answer
        return True
    assert answer.text == text
    assert 0 <= answer.position <= len(text)
    assert f"at position {answer.position}" in str(answer)
    assert len(str(answer)) < 1000
    return False


def fuzz(seed: int, count: int) -> Iterator[str]:
    """Yields mutations of valid texts, and random text."""
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.randrange(8)
        if kind == 0:
            yield "".join(chr(rng.randrange(256)) for _ in range(rng.randrange(40)))
        elif kind == 1:
            yield "".join(rng.choice(TOKENS) for _ in range(rng.randrange(30)))
        elif kind == 2:
            yield "".join(
                chr(rng.choice((rng.randrange(0x110000), rng.randrange(128)))) for _ in range(rng.randrange(20))
            )
        else:
            yield mutate(rng, rng.choice(SEEDS))


def mutate(rng: random.Random, text: str) -> str:
    """Deletes, inserts, replaces, repeats or exchanges a few pieces of a text."""
    for _ in range(rng.randint(1, 4)):
        start, stop = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        text = rng.choice(
            (
                text[:start] + text[stop:],
                text[:start] + rng.choice(TOKENS) + text[start:],
                text[:start] + rng.choice(TOKENS) + text[start + 1 :],
                text[:stop] + text[start:stop] * rng.randint(1, 3) + text[stop:],
                text[:start] + rng.choice(SEEDS) + text[stop:],
                text[:start],
            )
        )
    return text


@given(strategies.all_types())
@example(FunctionType(None, StructType([])))
@example(StructType([("placement", AbstractType("CLIENTS")), ("'int32'", np.int32)]))
def test_parsing_is_the_inverse_of_printing(type_: Type) -> None:
    """What `str` prints is read as an equal type, which prints the same."""
    assert parse(str(type_)) == type_
    assert str(parse(str(type_))) == str(type_)


@given(strategies.all_types())
def test_formatted_types_are_read_as_well(type_: Type) -> None:
    """The indented form denotes the same type."""
    assert parse(type_.formatted_representation()) == type_


@given(strategies.concrete_types(), st.randoms(use_true_random=False))
def test_white_space_between_tokens_does_not_matter(type_: Type, rng: random.Random) -> None:
    """Spaces and line breaks may stand around the characters of the grammar."""
    text = str(type_)
    assume("key<" not in text and "'" not in text)  # these are single tokens
    spaced = "".join(
        f"{rng.choice(['', ' ', chr(10)])}{c}{rng.choice(['', ' ', chr(9)])}" if c in "<=,(){}*@[]" else c for c in text
    )

    assert parse(spaced) == type_


def test_types_are_read_as_the_classes_build_them() -> None:
    """A text with every construct gives what the constructors give."""
    element = StructType([("x", TensorType(np.float32, (None, 784))), ("k", TensorType("key<fry>"))])
    parameter = StructType(
        [
            ("s", FederatedType(TensorType(np.int32, None), SERVER)),
            ("d", FederatedType(SequenceType(element), CLIENTS)),
            ("b", FederatedType(np.bool_, CLIENTS, True)),
            ("n", FederatedType(np.bool_, SERVER, False)),
        ]
    )
    expected = FunctionType(parameter, FunctionType(None, AbstractType("T")))

    text = (
        "(<s='int32'(shape=None)@SERVER,d={<x=float32[?,784],k=key<fry>>*}@CLIENTS,"
        "b=bool@CLIENTS,n={bool}@SERVER> -> ( -> T))"
    )

    assert parse(text) == expected
    assert str(expected) == text


def test_parsed_structures_have_no_container() -> None:
    """The notation does not carry containers."""
    type_ = StructType([("a", np.int32)], dict)

    assert parse(str(type_)) != type_
    assert parse(str(type_)) == StructType([("a", np.int32)])
    assert parse(str(type_)).is_equivalent_to(type_)


def test_jax_notation_of_scalars_is_read() -> None:
    """JAX prints a scalar as `float32[]`."""
    assert parse("float32[]") == parse("float32")


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("", 0, "The text ends where a type was expected"),
        ("  ", 2, "The text ends where a type was expected"),
        ("int33", 0, "There is no dtype of this name"),
        ("<a=int32,b=flaot32>", 11, "There is no dtype of this name"),
        ("str", 0, "There is no dtype of this name"),
        ("key<foo>", 0, "There is no dtype of this name"),
        ("key", 0, "There is no dtype of this name"),
        ("+", 0, "Expected a type"),
        ("ω", 0, "Expected a type"),
        ("int32 int32", 6, "The type ends here"),
        ("int32)", 5, "The type ends here"),
        ("<int32", 6, "Expected `,` or `>`"),
        ("<int32,>", 7, "Expected a type"),
        ("<,int32>", 1, "Expected a type"),
        ("<a=>", 3, "Expected a type"),
        ("<a=int32,float32>", 9, "Expected a name"),
        ("<int32,a=float32>", 7, "A field has a name"),
        ("<a=int32,a=int32>", 0, "A name occurs twice"),
        ("int32[", 6, "Expected a dimension"),
        ("int32[3", 7, "Expected `,` or `]`"),
        ("int32[-1]", 6, "Expected a dimension"),
        ("int32[3,]", 8, "Expected a dimension"),
        ("int32[007]", 7, "Expected `,` or `]`"),
        ("int32[²]", 6, "Expected a dimension"),
        ("int32[2147483648]", 6, "A dimension is at most"),
        ("int32[1099511627776]", 6, "A dimension is at most"),
        ("int32[" + "9" * 5000 + "]", 6, "A dimension is at most"),
        ("int32[" + "1," * 64 + "1]", 6 + 2 * 64, "at most 64 dimensions"),
        ("'int32'", 7, "Expected `'(shape=None)`"),
        ("'int33'(shape=None)", 1, "There is no dtype of this name"),
        ("{int32", 6, "Expected `}`"),
        ("{int32}", 7, "Expected `@`"),
        ("{int32}@", 8, "Expected a placement"),
        ("int32@clients", 6, "Expected a placement"),
        ("int32@CLIENTSX", 6, "Expected a placement"),
        ("(int32)", 6, "Expected `->`"),
        ("(int32 -> )", 10, "Expected a type"),
        ("(int32 -> int32", 15, "Expected `)`"),
        ("(int32 - > int32)", 7, "Expected `->`"),
        ("int32**", 0, "A sequence cannot have"),
        ("<int32@SERVER>@SERVER", 0, "A placed value cannot have"),
        ("<a={( -> int32)}@CLIENTS>", 3, "A placed value cannot have"),
        ("(int32 -> int32)*", 0, "A sequence cannot have"),
    ],
)
def test_errors_say_what_is_wrong_and_where(text: str, position: int, message: str) -> None:
    """The position is where reading stopped, or where the part begins that cannot be."""
    with pytest.raises(errors.TypeSyntaxError) as info:
        parse(text)

    assert message in info.value.what
    assert info.value.position == position
    assert isinstance(info.value, ValueError)


@pytest.mark.parametrize("spec", [None, b"int32", 3, np.int32, TensorType(np.int32)])
def test_only_text_can_be_parsed(spec) -> None:
    """Anything else is an error of type."""
    with pytest.raises(errors.KoinonTypeError, match="Only text can be parsed"):
        parse(spec)


@pytest.mark.parametrize(
    "text",
    [
        "<" * 100_000,
        "<" * 100_000 + "int32" + ">" * 100_000,
        "{" * 100_000,
        "(" * 100_000,
        "( -> " * 100_000 + "int32" + ")" * 100_000,
        "<a=" * 100_000,
        "key<" * 100_000,
        "'" * 100_000,
        "int32" + "*" * 100_000,
        "int32" + "@SERVER" * 100_000,
        "int32" + "[" * 100_000,
        "int32[" + "1," * 1_000_000,
        "int32[" + "9" * 1_000_000 + "]",
        " " * 1_000_000,
        "<" + " " * 1_000_000 + "a" + " " * 1_000_000 + "?",
        "<" + "a" * 1_000_000,
        "a" * 1_000_000,
        "A" * 1_000_000 + "=",
        "<" + "int32," * 1_000_000 + "int32>",
        "<" + ",".join(f"f{i}=int32" for i in range(1_000_000)) + ">",
        "<" + "a=int32," * 50_000 + "a=int32>",
    ],
    ids=lambda text: f"{text[:9]!r}x{len(text)}",
)
def test_texts_of_any_size_are_refused_without_a_crash(text: str) -> None:
    """Depth, fields, dimensions, digits and white space are bounded or read in linear time."""
    with pytest.raises(errors.TypeSyntaxError) as info:
        parse(text)

    assert len(str(info.value)) < 500


def test_types_of_the_greatest_depth_are_read() -> None:
    """The reader's limit is that of the constructors."""

    def nested(levels: int) -> str:
        return "<" * (levels - 1) + "int32" + ">" * (levels - 1)

    assert str(parse(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    with pytest.raises(errors.TypeSyntaxError, match="at most 200 levels"):
        parse(nested(MAX_DEPTH + 1))


def test_structures_of_the_greatest_number_of_fields_are_read() -> None:
    """The reader's limit is that of the constructors."""
    text = "<" + "int32," * (MAX_FIELDS - 1) + "int32>"

    assert str(parse(text)) == text
    with pytest.raises(errors.TypeSyntaxError, match="at most"):
        parse("<int32," + text[1:])


@given(st.text(max_size=30))
def test_any_text_has_an_answer(text: str) -> None:
    """A type, or a syntax error."""
    assert_answers(text)


@given(st.text(alphabet=string.ascii_letters + "<>=,(){}*@[]?'- 0123456789", max_size=30))
def test_any_text_of_the_alphabet_has_an_answer(text: str) -> None:
    """A type, or a syntax error."""
    assert_answers(text)


def test_mutated_types_have_an_answer() -> None:
    """Thousands of mutations of valid texts give types or syntax errors, and some of either."""
    valid = [assert_answers(text) for text in fuzz(seed=0, count=4000)]

    assert 0 < sum(valid) < len(valid)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_mutated_types_have_an_answer(seed: int) -> None:
    """200,000 mutations in eight portions give types or syntax errors."""
    valid = [assert_answers(text) for text in fuzz(seed, count=25_000)]

    assert 0 < sum(valid) < len(valid)
