"""Hypothesis strategies that the tests share: types, and what types are made of."""

from __future__ import annotations

from hypothesis import strategies as st

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
    Type,
)

DTYPE_NAMES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16", "int4", "uint4"),
    *("float8_e4m3fn", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    *("key<fry>", "key<rbg>", "key<urbg>"),
)

dtype_names = st.sampled_from(DTYPE_NAMES)
dimensions = st.none() | st.integers(0, 2**31 - 1)
shapes = st.none() | st.lists(dimensions, max_size=4).map(tuple)
placements = st.sampled_from([CLIENTS, SERVER])

# Words of the notation are names too, and so is what pytrees have as keys.
_WORDS = ("a", "b", "items", "int32", "placement", "T", "key", "0", "Dense_0", "layers/0", "ω", "'", "-")
_NAME_CHARACTERS = st.characters(exclude_characters="<>=,(){}*@[]?", exclude_categories=["Cc", "Cs", "Z"])


@st.composite
def field_names(draw: st.DrawFn) -> str:
    """Names that a field may have."""
    return draw(st.sampled_from(_WORDS) | st.text(_NAME_CHARACTERS, min_size=1, max_size=6))


@st.composite
def tensor_types(draw: st.DrawFn) -> TensorType:
    """Tensors of any dtype and shape."""
    return TensorType(draw(dtype_names), draw(shapes))


@st.composite
def abstract_types(draw: st.DrawFn) -> AbstractType:
    """Type variables."""
    return AbstractType(draw(st.from_regex(r"[A-Z][A-Za-z0-9_]{0,5}", fullmatch=True)))


_LEAVES = ("tensor", "placement", "abstract")


@st.composite
def _types(draw: st.DrawFn, kinds: tuple[str, ...], depth: int) -> Type:
    """Types of these kinds, at most `depth` levels deep."""
    # Recursive by hand: `st.recursive` describes itself at such length that Hypothesis warns.
    kind = draw(st.sampled_from([kind for kind in kinds if depth > 1 or kind in _LEAVES]))
    if kind == "tensor":
        return draw(tensor_types())
    if kind == "placement":
        return PlacementType()
    if kind == "abstract":
        return draw(abstract_types())
    if kind == "sequence":
        return SequenceType(draw(_types(("tensor", "struct"), depth - 1)))
    if kind == "federated":
        member = draw(_types(("tensor", "struct", "sequence"), depth - 1))
        return FederatedType(member, draw(placements), draw(st.none() | st.booleans()))
    if kind == "function":
        parameter = draw(st.none() | _types(kinds, depth - 1))
        return FunctionType(parameter, draw(_types(kinds, depth - 1)))
    children = draw(st.lists(_types(kinds, depth - 1), max_size=4))
    if draw(st.booleans()):
        return StructType(children)
    names = draw(st.lists(field_names(), min_size=len(children), max_size=len(children), unique=True))
    return StructType(list(zip(names, children, strict=True)))


def tensor_trees() -> st.SearchStrategy[Type]:
    """Structures of tensors, and tensors."""
    return _types(("tensor", "struct"), 4)


def member_types() -> st.SearchStrategy[Type]:
    """What a placed value may have inside."""
    return _types(("tensor", "struct", "sequence"), 4)


def concrete_types() -> st.SearchStrategy[Type]:
    """All types without containers and without type variables."""
    return _types(("tensor", "placement", "struct", "sequence", "federated", "function"), 5)


def all_types() -> st.SearchStrategy[Type]:
    """All types without containers."""
    return _types(("tensor", "placement", "abstract", "struct", "sequence", "federated", "function"), 5)
