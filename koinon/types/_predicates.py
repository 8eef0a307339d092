"""Questions about whole types, and rewriting them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from koinon._errors import (
    KoinonTypeError,
    MeanIncompatibleError,
    MinMaxIncompatibleError,
    SumIncompatibleError,
)
from koinon.types import _dtypes
from koinon.types._base import Type
from koinon.types._kinds import FEDERATED, TENSOR
from koinon.types._struct import StructType
from koinon.types._types import (
    FederatedType,
    FunctionType,
    SequenceType,
    TensorType,
)


def preorder_types(type_: Type) -> Iterator[Type]:
    """Yields the type and all types inside it, each before those inside itself.

    >>> from koinon.types import parse
    >>> [str(t) for t in preorder_types(parse("<int32*>@SERVER"))]
    ['<int32*>@SERVER', '<int32*>', 'int32*', 'int32']
    """
    pending = [type_]
    while pending:
        current = pending.pop()
        yield current
        pending.extend(reversed(current.children()))


def type_contains(type_: Type, predicate: Callable[[Type], bool]) -> bool:
    """Whether the type or one inside it satisfies `predicate`.

    >>> from koinon.types import parse
    >>> type_contains(parse("<int32*>@SERVER"), lambda t: isinstance(t, SequenceType))
    True
    """
    return any(predicate(part) for part in preorder_types(type_))


def type_contains_only(type_: Type, predicate: Callable[[Type], bool]) -> bool:
    """Whether the type and all types inside it satisfy `predicate`.

    >>> from koinon.types import parse
    >>> type_contains_only(parse("<int32>"), lambda t: isinstance(t, TensorType))
    False
    """
    return all(predicate(part) for part in preorder_types(type_))


def type_count(type_: Type, predicate: Callable[[Type], bool]) -> int:
    """Returns how many of the type and the types inside it satisfy `predicate`.

    >>> from koinon.types import parse
    >>> type_count(parse("<int32,<float32,int32>>"), lambda t: isinstance(t, TensorType))
    3
    """
    return sum(1 for part in preorder_types(type_) if predicate(part))


def contains_federated_types(type_: Type) -> bool:
    """Whether the type is that of a placed value or has one inside.

    >>> from koinon.types import parse
    >>> contains_federated_types(parse("<int32@SERVER>"))
    True
    """
    return type_.contains_kind(FEDERATED)


def contains_tensor_types(type_: Type) -> bool:
    """Whether the type is that of a tensor or has one inside.

    >>> from koinon.types import parse
    >>> contains_tensor_types(parse("<<>>@SERVER"))
    False
    """
    return type_.contains_kind(TENSOR)


def _is_structure_of(type_: Type, leaf: Callable[[Type], bool]) -> bool:
    if isinstance(type_, StructType):
        return all(_is_structure_of(child, leaf) for child in type_)
    if isinstance(type_, FederatedType):
        return _is_structure_of(type_.member, leaf)
    return leaf(type_)


def is_structure_of_floats(type_: Type) -> bool:
    """Whether every leaf is a floating-point tensor, narrow types such as bfloat16 included.

    The leaves are what structures and placed values have inside; an empty structure is a structure of anything.

    >>> from koinon.types import parse
    >>> is_structure_of_floats(parse("{<float32,<>>}@CLIENTS")), is_structure_of_floats(parse("float32*"))
    (True, False)
    """
    return _is_structure_of(type_, lambda t: isinstance(t, TensorType) and _dtypes.is_floating(t.dtype))


def is_structure_of_integers(type_: Type) -> bool:
    """Whether every leaf is an integer tensor; truth values are none.

    >>> from koinon.types import parse
    >>> is_structure_of_integers(parse("<int32,uint8[3]>")), is_structure_of_integers(parse("bool"))
    (True, False)
    """
    return _is_structure_of(type_, lambda t: isinstance(t, TensorType) and _dtypes.is_integer(t.dtype))


def is_structure_of_tensors(type_: Type) -> bool:
    """Whether every leaf is a tensor.

    >>> from koinon.types import parse
    >>> is_structure_of_tensors(parse("<int32,<bool[3]>>@SERVER")), is_structure_of_tensors(parse("<int32*>"))
    (True, False)
    """
    return _is_structure_of(type_, lambda t: isinstance(t, TensorType))


def is_structure_of_sequences(type_: Type) -> bool:
    """Whether every leaf is a sequence.

    >>> from koinon.types import parse
    >>> is_structure_of_sequences(parse("{<int32*,float32*>}@CLIENTS")), is_structure_of_sequences(parse("int32"))
    (True, False)
    """
    return _is_structure_of(type_, lambda t: isinstance(t, SequenceType))


def check_is_structure_of_integers(type_: Type) -> None:
    """Raises unless every leaf is an integer tensor.

    Raises:
      KoinonTypeError: if a leaf is none; the message names it.
    """
    _check(
        KoinonTypeError,
        "Integers were expected.",
        "a structure of integer tensors",
        type_,
        lambda t: None if is_structure_of_integers(t) else "it is no integer tensor",
    )


def is_sum_compatible(type_: Type) -> bool:
    """Whether values of the type can be summed: numbers of known shape, in any structure, placed or not.

    Truth values and PRNG keys are no numbers.

    >>> from koinon.types import parse
    >>> is_sum_compatible(parse("<int32,bfloat16[3]>")), is_sum_compatible(parse("bool"))
    (True, False)
    """
    return _is_structure_of(type_, lambda t: _why_no_sum(t) is None)


def is_mean_compatible(type_: Type) -> bool:
    """Whether values of the type can be averaged: floating-point or complex numbers of known shape.

    Narrow floating-point types such as bfloat16 are included, which TFF leaves out.

    >>> from koinon.types import parse
    >>> is_mean_compatible(parse("<float32,bfloat16[3]>")), is_mean_compatible(parse("int32"))
    (True, False)
    """
    return _is_structure_of(type_, lambda t: _why_no_mean(t) is None)


def is_min_max_compatible(type_: Type) -> bool:
    """Whether values of the type have a minimum and maximum: integers or floating-point numbers of known shape.

    >>> from koinon.types import parse
    >>> is_min_max_compatible(parse("<int32,float16>")), is_min_max_compatible(parse("complex64"))
    (True, False)
    """
    return _is_structure_of(type_, lambda t: _why_no_order(t) is None)


def check_sum_compatible(type_: Type, what: str = "Values of this type cannot be summed.") -> None:
    """Raises unless values of the type can be summed.

    Args:
      type_: the type of the values.
      what: the first sentence of the message.

    Raises:
      SumIncompatibleError: if not; the message names the part that is to blame.
    """
    _check(SumIncompatibleError, what, "numeric tensors of known shape", type_, _why_no_sum, "jnp.int32")


def check_mean_compatible(type_: Type, what: str = "Values of this type cannot be averaged.") -> None:
    """Raises unless values of the type can be averaged.

    Args:
      type_: the type of the values.
      what: the first sentence of the message.

    Raises:
      MeanIncompatibleError: if not; the message names the part that is to blame.
    """
    expected = "floating-point or complex tensors of known shape"
    _check(MeanIncompatibleError, what, expected, type_, _why_no_mean, "jnp.float32")


def check_min_max_compatible(type_: Type, what: str = "Values of this type have no minimum and maximum.") -> None:
    """Raises unless values of the type have a minimum and maximum.

    Args:
      type_: the type of the values.
      what: the first sentence of the message.

    Raises:
      MinMaxIncompatibleError: if not; the message names the part that is to blame.
    """
    _check(MinMaxIncompatibleError, what, "integer or floating-point tensors of known shape", type_, _why_no_order)


def _why_no_sum(leaf: Type) -> str | None:
    return _why_not(leaf, "numbers", _dtypes.is_integer, _dtypes.is_floating, _dtypes.is_complex)


def _why_no_mean(leaf: Type) -> str | None:
    return _why_not(leaf, "floating-point or complex numbers", _dtypes.is_floating, _dtypes.is_complex)


def _why_no_order(leaf: Type) -> str | None:
    return _why_not(leaf, "integers or floating-point numbers", _dtypes.is_integer, _dtypes.is_floating)


def _why_not(leaf: Type, what: str, *dtype_tests: Callable[[_dtypes.DType], bool]) -> str | None:
    if not isinstance(leaf, TensorType):
        return "it is no tensor"
    if not any(test(leaf.dtype) for test in dtype_tests):
        return f"its elements are no {what}"
    return None if leaf.is_fully_defined else "its shape is not fully known"


def _check(
    error_class: type[KoinonTypeError],
    what: str,
    expected: str,
    type_: Type,
    why_not: Callable[[Type], str | None],
    convert_to: str | None = None,
) -> None:
    for path, leaf in _leaves(type_, ""):
        reason = why_not(leaf)
        if reason is not None:
            differs = f"{path or 'the top'}: {leaf}: {reason}"
            raise error_class(what, expected=expected, found=type_, differs=differs, hint=_way_out(leaf, convert_to))


def _way_out(leaf: Type, convert_to: str | None) -> str | None:
    if isinstance(leaf, SequenceType):
        return "reduce each sequence to a tensor first"
    is_number = isinstance(leaf, TensorType) and not _dtypes.is_key_dtype(leaf.dtype) and leaf.is_fully_defined
    return f"convert it first, as in x.astype({convert_to})" if is_number and convert_to else None


def _leaves(type_: Type, path: str) -> Iterator[tuple[str, Type]]:
    if isinstance(type_, StructType):
        for position, (name, child) in enumerate(type_.items()):
            yield from _leaves(child, f"{path}[{position}]" if name is None else f"{path}.{name}")
    elif isinstance(type_, FederatedType):
        yield from _leaves(type_.member, path)
    else:
        yield path, type_


def transform_type_postorder(type_: Type, transform: Callable[[Type], tuple[Type, bool]]) -> tuple[Type, bool]:
    """Returns the type with each part replaced, the innermost parts first, and whether anything changed.

    Containers are kept.

    Args:
      type_: the type to rewrite.
      transform: takes a part whose own parts are rewritten already, and returns what replaces it, and whether that is
        something else.

    >>> from koinon.types import parse
    >>> def double(t):
    ...     return (TensorType(t.dtype, (2,)), True) if isinstance(t, TensorType) else (t, False)
    >>> str(transform_type_postorder(parse("<a=int32>@SERVER"), double)[0])
    '<a=int32[2]>@SERVER'
    """
    children = [transform_type_postorder(child, transform) for child in type_.children()]
    changed = any(mutated for _, mutated in children)
    rebuilt = _rebuild(type_, [child for child, _ in children]) if changed else type_
    result, mutated = transform(rebuilt)
    return result, changed or mutated


def _rebuild(type_: Type, children: list[Type]) -> Type:
    if isinstance(type_, StructType):
        names = type_.fields()
        return StructType(list(zip(names, children, strict=True)) if names else children, type_.container)
    if isinstance(type_, SequenceType):
        return SequenceType(children[0])
    if isinstance(type_, FederatedType):
        return FederatedType(children[0], type_.placement, type_.all_equal)
    assert isinstance(type_, FunctionType)
    return FunctionType(*(children if type_.parameter is not None else [None, children[0]]))


def strip_placement(type_: Type) -> Type:
    """Returns the type with each placed value replaced by what it has inside.

    >>> from koinon.types import parse
    >>> str(strip_placement(parse("({int32}@CLIENTS -> <int32@SERVER>)")))
    '(int32 -> <int32>)'
    """

    def strip(part: Type) -> tuple[Type, bool]:
        return (part.member, True) if isinstance(part, FederatedType) else (part, False)

    return transform_type_postorder(type_, strip)[0]
