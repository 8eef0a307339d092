"""The types of tensors, sequences, placed values, functions and placements, and type variables."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from typing import Any, final

from koinon._errors import IllTypedError, KoinonTypeError, KoinonValueError
from koinon.types import _dtypes
from koinon.types._base import Type, as_type
from koinon.types._kinds import ABSTRACT, FEDERATED, FUNCTION, PLACEMENT, SEQUENCE, TENSOR
from koinon.types._placements import CLIENTS, SERVER, PlacementLiteral

MAX_DIMENSION = 2**31 - 1
MAX_RANK = 64  # that of NumPy

_LABEL = re.compile(r"[A-Z][A-Za-z0-9_]*")


@final
class TensorType(Type):
    """The type of an array: a dtype and a shape.

    Any dtype of JAX can be named here, 64-bit ones included; whether an engine can hold them is decided elsewhere.

    Args:
      dtype: a dtype or scalar class of NumPy or JAX, the name of one, or the dtype of typed PRNG keys.
      shape: the dimensions, None for an unknown one; None for a shape of which nothing is known.

    Raises:
      UnsupportedTypeError: if JAX has no such dtype.
      KoinonTypeError: if the shape is not a sequence of integers and None.
      KoinonValueError: if a dimension is negative or larger than 2**31 - 1.

    >>> str(TensorType("float32", (3, None))), str(TensorType("key<fry>"))
    ('float32[3,?]', 'key<fry>')
    """

    __slots__ = ("dtype", "shape")
    __match_args__ = ("dtype", "shape")

    kind = TENSOR
    dtype: _dtypes.DType
    shape: tuple[int | None, ...] | None

    def __init__(self, dtype: object, shape: Iterable[int | None] | None = ()) -> None:
        object.__setattr__(self, "dtype", _dtypes.as_dtype(dtype))
        object.__setattr__(self, "shape", None if shape is None else _as_shape(shape))
        self._freeze((self.dtype, self.shape))

    @property
    def is_fully_defined(self) -> bool:
        """Whether every dimension is known."""
        return self.shape is not None and None not in self.shape

    @property
    def num_elements(self) -> int | None:
        """The number of elements, None if a dimension is unknown."""
        count = 1
        for dimension in (None,) if self.shape is None else self.shape:
            if dimension is None:
                return None
            count *= dimension
        return count

    def children(self) -> tuple[Type, ...]:
        """Returns nothing: a tensor has no types inside."""
        return ()

    def _arguments(self) -> tuple[Any, ...]:
        return (self.dtype, self.shape)

    def _print(self, parts: list[str], indented: bool) -> str:
        name = _dtypes.dtype_name(self.dtype)
        if self.shape is None:
            return f"{name!r}(shape=None)"
        if not self.shape:
            return name
        return f"{name}[{','.join('?' if size is None else str(size) for size in self.shape)}]"

    def _express(self, parts: list[str]) -> str:
        dtype = _dtypes.dtype_repr(self.dtype)
        return f"TensorType({dtype})" if self.shape == () else f"TensorType({dtype}, {self.shape!r})"


def _as_shape(shape: object) -> tuple[int | None, ...]:
    sizes: list[int | None] = []
    try:
        for size in shape:  # pyright: ignore[reportGeneralTypeIssues]
            if isinstance(size, bool):
                raise TypeError
            sizes.append(None if size is None else operator.index(size))
    except TypeError:
        raise KoinonTypeError(
            "A shape is a sequence of dimensions.",
            expected="integers, or None where unknown",
            found=repr(shape),
            hint=f"write ({shape},) for a vector" if type(shape) is int else None,
        ) from None
    for size in sizes:
        if size is not None and not 0 <= size <= MAX_DIMENSION:
            raise KoinonValueError("A dimension lies between 0 and 2**31 - 1.", found=_shorten(size))
    if len(sizes) > MAX_RANK:
        raise KoinonValueError(f"A shape has at most {MAX_RANK} dimensions.", found=f"{len(sizes)} dimensions")
    return tuple(sizes)


def _shorten(size: int) -> str:
    return str(size) if abs(size) < 10**20 else f"a number of {size.bit_length()} bits"


@final
class SequenceType(Type):
    """The type of an ordered, finite collection of values of one type: a client's dataset.

    Args:
      element: the type of one value.

    Raises:
      IllTypedError: if a placed value, a function or another sequence is inside.

    >>> str(SequenceType(TensorType("int32")))
    'int32*'
    """

    __slots__ = ("element",)
    __match_args__ = ("element",)

    kind = SEQUENCE
    element: Type

    def __init__(self, element: Any) -> None:
        element = as_type(element)
        _refuse_inside("sequence", element, FEDERATED | FUNCTION | SEQUENCE)
        object.__setattr__(self, "element", element)
        self._freeze(element, (element,))

    def children(self) -> tuple[Type, ...]:
        """Returns the type of the elements."""
        return (self.element,)

    def _arguments(self) -> tuple[Any, ...]:
        return (self.element,)

    def _print(self, parts: list[str], indented: bool) -> str:
        return f"{parts[0]}*"

    def _express(self, parts: list[str]) -> str:
        return f"SequenceType({parts[0]})"


@final
class FederatedType(Type):
    """The type of a value that lives at a placement.

    Args:
      member: the type of the value that each participant holds.
      placement: `CLIENTS` or `SERVER`.
      all_equal: whether all participants hold the same value; None for what is usual at the placement.

    Raises:
      IllTypedError: if another placed value or a function is inside.
      KoinonTypeError: if the placement is no placement.

    >>> str(FederatedType(TensorType("int32"), CLIENTS)), str(FederatedType(TensorType("int32"), SERVER))
    ('{int32}@CLIENTS', 'int32@SERVER')
    """

    __slots__ = ("all_equal", "member", "placement")
    __match_args__ = ("member", "placement", "all_equal")

    kind = FEDERATED
    member: Type
    placement: PlacementLiteral
    all_equal: bool

    def __init__(self, member: Any, placement: PlacementLiteral, all_equal: bool | None = None) -> None:
        member = as_type(member)
        if not isinstance(placement, PlacementLiteral):
            raise KoinonTypeError(
                "A placed value needs a placement.",
                expected="CLIENTS or SERVER",
                found=repr(placement),
                hint="give the type first and then ko.CLIENTS or ko.SERVER, which are no text",
            )
        if not (all_equal is None or isinstance(all_equal, bool)):
            raise KoinonTypeError("`all_equal` is a truth value or None.", found=repr(all_equal))
        _refuse_inside("placed value", member, FEDERATED | FUNCTION)
        object.__setattr__(self, "member", member)
        object.__setattr__(self, "placement", placement)
        object.__setattr__(self, "all_equal", placement.default_all_equal if all_equal is None else all_equal)
        self._freeze((member, placement, self.all_equal), (member,))

    def children(self) -> tuple[Type, ...]:
        """Returns the type of the member."""
        return (self.member,)

    def _arguments(self) -> tuple[Any, ...]:
        return (self.member, self.placement, self.all_equal)

    def _print(self, parts: list[str], indented: bool) -> str:
        return f"{parts[0]}@{self.placement}" if self.all_equal else f"{{{parts[0]}}}@{self.placement}"

    def _express(self, parts: list[str]) -> str:
        return f"FederatedType({parts[0]}, {self.placement!r}, {self.all_equal})"


@final
class FunctionType(Type):
    """The type of a computation: it has one parameter or none, and a result.

    Args:
      parameter: the type of the parameter, None if there is none; several arguments are one structure.
      result: the type of the result.

    >>> str(FunctionType(TensorType("int32"), TensorType("float32"))), str(FunctionType(None, TensorType("int32")))
    ('(int32 -> float32)', '( -> int32)')
    """

    __slots__ = ("parameter", "result")
    __match_args__ = ("parameter", "result")

    kind = FUNCTION
    parameter: Type | None
    result: Type

    def __init__(self, parameter: Any, result: Any) -> None:
        object.__setattr__(self, "parameter", None if parameter is None else as_type(parameter))
        object.__setattr__(self, "result", as_type(result))
        self._freeze((self.parameter, self.result), self.children())

    def children(self) -> tuple[Type, ...]:
        """Returns the types of the parameter, if there is one, and of the result."""
        return (self.result,) if self.parameter is None else (self.parameter, self.result)

    def _arguments(self) -> tuple[Any, ...]:
        return (self.parameter, self.result)

    def _print(self, parts: list[str], indented: bool) -> str:
        return f"( -> {parts[0]})" if self.parameter is None else f"({parts[0]} -> {parts[1]})"

    def _express(self, parts: list[str]) -> str:
        return f"FunctionType({', '.join(['None', *parts][-2:])})"


@final
class PlacementType(Type):
    """The type of a placement literal; all its instances are equal.

    >>> str(PlacementType())
    'placement'
    """

    __slots__ = ()

    kind = PLACEMENT

    def __init__(self) -> None:
        self._freeze(None)

    def children(self) -> tuple[Type, ...]:
        """Returns nothing: a placement has no types inside."""
        return ()

    def _arguments(self) -> tuple[Any, ...]:
        return ()

    def _print(self, parts: list[str], indented: bool) -> str:
        return "placement"

    def _express(self, parts: list[str]) -> str:
        return "PlacementType()"


@final
class AbstractType(Type):
    """A type variable, as the signatures of intrinsics have them.

    Args:
      label: the name of the variable: a capital letter, then letters, digits and underscores.

    Raises:
      KoinonValueError: if the label is not of this form.

    >>> str(FunctionType(AbstractType("T"), AbstractType("U")))
    '(T -> U)'
    """

    __slots__ = ("label",)
    __match_args__ = ("label",)

    kind = ABSTRACT
    label: str

    def __init__(self, label: str) -> None:
        if not isinstance(label, str):
            raise KoinonTypeError("The label of an abstract type is text.", found=repr(label))
        if not _LABEL.fullmatch(label):
            # Any other word would read back as a misspelt dtype.
            raise KoinonValueError(
                "This cannot be the label of an abstract type.",
                expected="a capital letter, then letters, digits and underscores",
                found=repr(label),
            )
        object.__setattr__(self, "label", label)
        self._freeze(label)

    def children(self) -> tuple[Type, ...]:
        """Returns nothing: a type variable has no types inside."""
        return ()

    def _arguments(self) -> tuple[Any, ...]:
        return (self.label,)

    def _print(self, parts: list[str], indented: bool) -> str:
        return self.label

    def _express(self, parts: list[str]) -> str:
        return f"AbstractType({self.label!r})"


def _refuse_inside(outer: str, inner: Type, kinds: int) -> None:
    if inner._kinds & kinds:
        names = {FEDERATED: "a placed value", FUNCTION: "a function", SEQUENCE: "a sequence"}
        *others, last = [name for kind, name in names.items() if kind & kinds]
        refused = f"{', '.join(others)} or {last}"
        raise IllTypedError(f"A {outer} cannot have {refused} inside.", found=inner.compact_representation(200))


def at_clients(member: Any) -> FederatedType:
    """Returns the type of a value at each client, `{member}@CLIENTS`.

    >>> str(at_clients(TensorType("float32")))
    '{float32}@CLIENTS'
    """
    return FederatedType(member, CLIENTS)


def at_server(member: Any) -> FederatedType:
    """Returns the type of a value at the server, `member@SERVER`.

    >>> str(at_server(TensorType("float32")))
    'float32@SERVER'
    """
    return FederatedType(member, SERVER)
