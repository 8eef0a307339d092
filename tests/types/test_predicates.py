"""Questions about whole types, and rewriting them."""

from __future__ import annotations

import collections

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from koinon import _errors as errors
from koinon import types
from koinon.types import FederatedType, FunctionType, SequenceType, StructType, TensorType, parse
from tests import strategies

TEXT = "(<a={<int32,float32*>}@CLIENTS,b=bool[2]@SERVER> -> <int32,<>>)"


def test_preorder_visits_a_type_before_its_parts() -> None:
    """From the outside in, from left to right."""
    parts = [str(part) for part in types.preorder_types(parse(TEXT))]

    assert parts == [
        TEXT,
        "<a={<int32,float32*>}@CLIENTS,b=bool[2]@SERVER>",
        "{<int32,float32*>}@CLIENTS",
        "<int32,float32*>",
        "int32",
        "float32*",
        "float32",
        "bool[2]@SERVER",
        "bool[2]",
        "<int32,<>>",
        "int32",
        "<>",
    ]


def test_types_are_counted_and_found() -> None:
    """The root counts as well."""
    type_ = parse(TEXT)

    assert types.type_count(type_, lambda t: isinstance(t, TensorType)) == 4
    assert types.type_count(type_, lambda t: True) == 12
    assert types.type_contains(type_, lambda t: isinstance(t, FunctionType))
    assert not types.type_contains(type_, lambda t: str(t) == "int8")
    assert types.type_contains_only(parse("<<>,<<>>>"), lambda t: isinstance(t, StructType))
    assert not types.type_contains_only(parse("<<>,<int8>>"), lambda t: isinstance(t, StructType))


@given(strategies.all_types())
def test_fast_questions_agree_with_the_general_one(type_) -> None:
    """What a type knows of its inside is what a walk finds."""
    assert types.contains_federated_types(type_) == types.type_contains(type_, lambda t: isinstance(t, FederatedType))
    assert types.contains_tensor_types(type_) == types.type_contains(type_, lambda t: isinstance(t, TensorType))


# (type, floats, integers, tensors, sequences)
STRUCTURES = [
    ("float32", True, False, True, False),
    ("bfloat16[3]", True, False, True, False),
    ("float8_e4m3fn", True, False, True, False),
    ("int32", False, True, True, False),
    ("uint4", False, True, True, False),
    ("bool", False, False, True, False),
    ("complex64", False, False, True, False),
    ("key<fry>", False, False, True, False),
    ("<>", True, True, True, True),
    ("<<>,<<>>>@SERVER", True, True, True, True),
    ("<float32,float16>", True, False, True, False),
    ("<float32,int32>", False, False, True, False),
    ("{<a=int32,b=<int8>>}@CLIENTS", False, True, True, False),
    ("int32*", False, False, False, True),
    ("{<a=int32*,b=float32*>}@CLIENTS", False, False, False, True),
    ("<int32*,int32>", False, False, False, False),
    ("(int32 -> int32)", False, False, False, False),
    ("placement", False, False, False, False),
    ("T", False, False, False, False),
]


@pytest.mark.parametrize(("text", "floats", "integers", "tensors", "sequences"), STRUCTURES)
def test_structures_of_one_kind_are_recognised(
    text: str, floats: bool, integers: bool, tensors: bool, sequences: bool
) -> None:
    """Through structures and placements, down to the leaves; an empty structure is one of anything."""
    type_ = parse(text)

    assert types.is_structure_of_floats(type_) is floats
    assert types.is_structure_of_integers(type_) is integers
    assert types.is_structure_of_tensors(type_) is tensors
    assert types.is_structure_of_sequences(type_) is sequences
    if integers:
        types.check_is_structure_of_integers(type_)
    else:
        with pytest.raises(errors.KoinonTypeError, match="Integers were expected"):
            types.check_is_structure_of_integers(type_)


# (type, can be summed, averaged, ordered)
NUMERIC = [
    ("int32", True, False, True),
    ("uint4[3]", True, False, True),
    ("float32", True, True, True),
    ("bfloat16", True, True, True),
    ("float8_e5m2[2]", True, True, True),
    ("complex64", True, True, False),
    ("bool", False, False, False),
    ("key<fry>", False, False, False),
    ("<>", True, True, True),
    ("<a=float32,b=<float16[3]>>@SERVER", True, True, True),
    ("{<float32,int32>}@CLIENTS", True, False, True),
    ("<float32,bool>", False, False, False),
    ("float32[?]", False, False, False),
    ("<a='float32'(shape=None)>", False, False, False),
    ("float32*", False, False, False),
    ("(float32 -> float32)", False, False, False),
    ("placement", False, False, False),
    ("T", False, False, False),
]


@pytest.mark.parametrize(("text", "summed", "averaged", "ordered"), NUMERIC)
def test_arithmetic_needs_numbers_of_known_shape(text: str, summed: bool, averaged: bool, ordered: bool) -> None:
    """Truth values and keys are no numbers, integers have no mean, complex numbers no order."""
    type_ = parse(text)
    for question, check, error, expected in (
        (types.is_sum_compatible, types.check_sum_compatible, errors.SumIncompatibleError, summed),
        (types.is_mean_compatible, types.check_mean_compatible, errors.MeanIncompatibleError, averaged),
        (types.is_min_max_compatible, types.check_min_max_compatible, errors.MinMaxIncompatibleError, ordered),
    ):
        assert question(type_) is expected
        if expected:
            check(type_)
        else:
            with pytest.raises(error):
                check(type_)


@pytest.mark.parametrize("name", strategies.DTYPE_NAMES)
def test_dtypes_can_be_averaged_exactly_if_they_are_inexact(name: str) -> None:
    """JAX's classification of dtypes, of which NumPy knows a part, is the rule for means."""
    type_ = TensorType(name)

    assert types.is_mean_compatible(type_) == jnp.issubdtype(type_.dtype, np.inexact)
    assert types.is_sum_compatible(type_) == jnp.issubdtype(type_.dtype, np.number)


def test_errors_name_the_part_that_is_to_blame() -> None:
    """Sentence, expected, found, and the path with the reason."""
    with pytest.raises(errors.SumIncompatibleError) as info:
        types.check_sum_compatible(parse("{<a=int32,b=<int32,bool>>}@CLIENTS"), what="`federated_sum` needs numbers.")

    assert str(info.value).split("\n") == [
        "`federated_sum` needs numbers.",
        "  expected   numeric tensors of known shape",
        "  found      {<a=int32,b=<int32,bool>>}@CLIENTS",
        "  differs at .b[1]: bool: its elements are no numbers",
        "  try        convert it first, as in x.astype(jnp.int32)",
    ]


@pytest.mark.parametrize(
    ("check", "text", "hint"),
    [
        (types.check_mean_compatible, "<float32,int32>", "convert it first, as in x.astype(jnp.float32)"),
        (types.check_sum_compatible, "int32*", "reduce each sequence to a tensor first"),
        # Nothing makes a number of a key, or an order of complex numbers.
        (types.check_sum_compatible, "key<fry>", None),
        (types.check_sum_compatible, "float32[?]", None),
        (types.check_min_max_compatible, "complex64", None),
    ],
)
def test_errors_say_what_to_do_where_something_can_be_done(check, text: str, hint: str | None) -> None:
    """Dtypes are converted and sequences reduced."""
    with pytest.raises(errors.KoinonTypeError) as info:
        check(parse(text))

    assert info.value.hint == hint
    with pytest.raises(errors.MeanIncompatibleError, match=r"the top: int32: its elements are no floating-point"):
        types.check_mean_compatible(parse("int32"))
    with pytest.raises(
        errors.MinMaxIncompatibleError, match=r"\[0\]: float32\[\?\]: its shape is not fully known"
    ) as e:
        types.check_min_max_compatible(parse("<float32[?]>"))
    assert isinstance(e.value, ValueError)
    with pytest.raises(errors.SumIncompatibleError, match=r"\.a: int32\*: it is no tensor"):
        types.check_sum_compatible(parse("<a=int32*>"))


def test_transformations_start_at_the_leaves_and_keep_containers() -> None:
    """Each part is replaced once its own parts are, and a structure stays what it was in Python."""
    order: list[str] = []

    def widen(part):
        order.append(str(part))
        return (TensorType(np.float64, part.shape), True) if isinstance(part, TensorType) else (part, False)

    type_ = FunctionType(
        FederatedType(StructType([("a", SequenceType(np.float32))], collections.OrderedDict), types.CLIENTS, True),
        StructType([TensorType(np.float32, (2,))], list),
    )

    result, mutated = types.transform_type_postorder(type_, widen)

    assert mutated
    assert order == [
        "float32",
        "float64*",
        "<a=float64*>",
        "<a=float64*>@CLIENTS",
        "float32[2]",
        "<float64[2]>",
        "(<a=float64*>@CLIENTS -> <float64[2]>)",
    ]
    assert str(result) == order[-1]
    assert isinstance(result, FunctionType)
    assert result.parameter.member.container is collections.OrderedDict  # pyright: ignore
    assert result.result.container is list  # pyright: ignore


@given(strategies.all_types())
def test_transformations_that_change_nothing_give_the_very_type(type_) -> None:
    """Nothing is built anew without need; and a rebuilt type is equal."""
    assert types.transform_type_postorder(type_, lambda t: (t, False)) == (type_, False)
    assert types.transform_type_postorder(type_, lambda t: (t, False))[0] is type_
    assert types.transform_type_postorder(type_, lambda t: (t, True)) == (type_, True)


@given(strategies.all_types())
def test_without_placements_a_type_prints_without_them(type_) -> None:
    """Placed values are replaced by their members, everything else stays."""
    stripped = types.strip_placement(type_)

    assert not types.contains_federated_types(stripped)
    assert (stripped == type_) == (not types.contains_federated_types(type_))
    assert types.type_count(stripped, lambda t: True) == types.type_count(
        type_, lambda t: not isinstance(t, FederatedType)
    )
