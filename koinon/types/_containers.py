"""Python containers and the structures that they stand for: taking apart, and putting together again.

Named tuples, dataclasses and attrs classes are remembered by their class; other nodes that are registered with JAX
(flax and equinox modules, partial functions, dictionaries with keys that are no text) by the way to rebuild them.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, final

import jax

from koinon._errors import ArgumentError, KoinonTypeError
from koinon.types._struct import StructType


@final
class PyTreeContainer:
    """The container of a node that only JAX knows how to rebuild: its class and the data that is no field of it.

    Two are equal if they rebuild the same kind of node with equal static data.

    Attributes:
      node_type: the class of the node.
    """

    __slots__ = ("_treedef", "node_type")

    node_type: type
    _treedef: Any

    def __init__(self, node_type: type, treedef: Any) -> None:
        self.node_type = node_type
        self._treedef = treedef

    @property
    def __name__(self) -> str:
        return self.node_type.__name__

    def build(self, children: Sequence[Any]) -> Any:
        """Returns a node with these children."""
        return jax.tree_util.tree_unflatten(self._treedef, children)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PyTreeContainer):
            return NotImplemented
        if self.node_type is not other.node_type:
            return False
        try:
            return bool(self._treedef == other._treedef)
        except Exception:  # static data that cannot be compared, such as arrays, belongs to one node only
            return self is other

    def __hash__(self) -> int:
        # Not the static data: it need not be hashable.
        return hash(("PyTreeContainer", self.node_type, self._treedef.num_leaves))

    def __repr__(self) -> str:
        return f"PyTreeContainer({self.node_type.__name__})"


@final
class MappingContainer:
    """The container of a dictionary some keys of which are no text: its class and its keys, in order.

    Attributes:
      node_type: the class of the dictionary.
      keys: its keys, in the order of the fields.
    """

    __slots__ = ("keys", "node_type")

    node_type: type
    keys: tuple[Hashable, ...]

    def __init__(self, node_type: type, keys: tuple[Hashable, ...]) -> None:
        self.node_type = node_type
        self.keys = keys

    @property
    def __name__(self) -> str:
        return self.node_type.__name__

    def build(self, children: Sequence[Any]) -> Any:
        """Returns a dictionary with these values."""
        return self.node_type(zip(self.keys, children, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MappingContainer):
            return NotImplemented
        return self.node_type is other.node_type and self.keys == other.keys

    def __hash__(self) -> int:
        return hash(("MappingContainer", self.node_type, self.keys))

    def __repr__(self) -> str:
        return f"MappingContainer({self.node_type.__name__}, {self.keys!r})"


class Parts(NamedTuple):
    """What a container holds: the names of its fields (None if they have none), their values, and its kind."""

    names: Sequence[str | None] | None
    children: list[Any]
    container: Any


def take_apart(value: object) -> Parts | None:
    """Returns the parts of a Python container, None if `value` is none."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return Parts(list(type(value)._fields), list(value), type(value))  # pyright: ignore[reportAttributeAccessIssue]
    if type(value) is list or type(value) is tuple:
        return Parts(None, list(value), type(value))
    if type(value) is dict or type(value) is collections.OrderedDict:
        return _take_mapping_apart(value)
    if isinstance(value, type):
        return None
    parts = _take_node_apart(value)
    if parts is not None:
        return parts
    if dataclasses.is_dataclass(value):
        return _take_fields_apart(value, [field.name for field in dataclasses.fields(value) if field.init])
    attributes = getattr(type(value), "__attrs_attrs__", None)
    if attributes is not None:
        return _take_fields_apart(value, [attribute.name for attribute in attributes if attribute.init])
    if isinstance(value, Mapping):
        return _take_mapping_apart(value)
    if isinstance(value, (list, tuple)):
        return Parts(None, list(value), type(value))
    return None


def _take_mapping_apart(value: Mapping[Any, Any]) -> Parts:
    keys = list(value)
    if type(value) is dict:
        # JAX gives a dict back with its keys sorted, from `jax.tree.map` and from every transformation; were the order
        # of insertion part of the type, a state would lose its type by a step of an optimizer. OrderedDict keeps it.
        try:
            keys = sorted(keys)
        except TypeError:  # keys of several classes, for which JAX has no order either
            pass
    names, children = [str(key) for key in keys], [value[key] for key in keys]
    textual = all(isinstance(key, str) for key in keys)
    return Parts(names, children, type(value) if textual else MappingContainer(type(value), tuple(keys)))


def _take_fields_apart(value: object, names: list[str]) -> Parts:
    return Parts(names, [getattr(value, name) for name in names], type(value))


def _take_node_apart(value: object) -> Parts | None:
    # Exactly one level; None inside is part of the node, as it is for JAX.
    paths, treedef = jax.tree_util.tree_flatten_with_path(
        value, is_leaf=lambda node: node is not value and node is not None
    )
    if value is None or treedef.num_nodes == treedef.num_leaves == 1:
        return None
    entries = [path[0] if len(path) == 1 else path for path, _ in paths]
    children = [child for _, child in paths]
    positional = (jax.tree_util.FlattenedIndexKey, jax.tree_util.SequenceKey)
    names = None
    if not all(isinstance(entry, positional) for entry in entries):
        names = [_entry_name(entry) for entry in entries]
    return Parts(names, children, PyTreeContainer(type(value), treedef))


def _entry_name(entry: Any) -> str:
    if isinstance(entry, jax.tree_util.GetAttrKey):
        return entry.name
    if isinstance(entry, (jax.tree_util.DictKey, jax.tree_util.FlattenedIndexKey)):
        return str(entry.key)
    return str(entry.idx) if isinstance(entry, jax.tree_util.SequenceKey) else str(entry)


def to_container(type_: StructType, children: Sequence[Any]) -> Any:
    """Returns the Python object that a structure stands for.

    A structure without a container becomes an `OrderedDict` if its fields have names, a tuple if not.

    Args:
      type_: the type of the structure.
      children: one value for each field, in the order of the type.

    Raises:
      KoinonTypeError: if there are more or fewer values than fields, or the container does not take these fields.

    >>> from koinon.types import TensorType
    >>> to_container(StructType([("x", TensorType("float32")), ("y", TensorType("int32"))], dict), [0.5, 3])
    {'x': 0.5, 'y': 3}
    """
    children = list(children)
    if len(children) != len(type_):
        raise KoinonTypeError(
            "A structure needs one value for each field.",
            expected=f"{len(type_)} values",
            found=f"{len(children)} values",
        )
    container, names = type_.container, type_.fields()
    if container is None:
        return collections.OrderedDict(zip(names, children, strict=True)) if names else tuple(children)
    if isinstance(container, (PyTreeContainer, MappingContainer)):
        return container.build(children)
    try:
        return _build(container, names, children)
    except TypeError as error:
        raise KoinonTypeError(
            f"A {container.__name__} cannot be built from these fields.", expected=str(error), found=type_
        ) from error


def _build(container: Any, names: list[str], children: list[Any]) -> Any:
    construct: Callable[..., Any] = container
    if issubclass(container, (list, tuple)) and not hasattr(container, "_fields"):
        return construct(children)
    if not names:
        return construct(*children)
    if issubclass(container, Mapping):
        return construct(dict(zip(names, children, strict=True)))
    # attrs may give a constructor's argument another name than the attribute has.
    aliases = {field.name: field.alias for field in getattr(container, "__attrs_attrs__", ())}
    return construct(**{aliases.get(name, name): child for name, child in zip(names, children, strict=True)})


def from_container(type_: StructType, value: object) -> list[Any]:
    """Returns the values of the fields of a Python object, in the order of the type.

    Mappings, named tuples, dataclasses and nodes with names match the fields by name, lists and tuples by position.
    Anything matches the fields of a type without names by position, but for mappings.

    Args:
      type_: the type of the structure.
      value: a Python container.

    Raises:
      ArgumentError: if `value` is no container, lacks a field or has one too many, or is a node whose static data
        differs from that of the type.

    >>> from koinon.types import TensorType
    >>> from_container(StructType([("x", TensorType("float32")), ("y", TensorType("int32"))]), {"y": 3, "x": 0.5})
    [0.5, 3]
    """
    parts = take_apart(value)
    if parts is None:
        raise ArgumentError("A structure was expected.", expected=type_, found=f"a value of {type(value)}")
    if isinstance(type_.container, PyTreeContainer) and isinstance(parts.container, PyTreeContainer):
        _check_static_data(type_.container, parts.container)
    expected = type_.fields()
    if parts.names is not None and (expected or isinstance(value, Mapping)):
        return _match_names(type_, expected, parts)
    if len(parts.children) != len(type_):
        raise ArgumentError(
            "A structure has another number of fields than its type.",
            expected=type_,
            found=f"{len(parts.children)} values in a {type(value).__name__}",
        )
    return parts.children


def _match_names(type_: StructType, expected: list[str], parts: Parts) -> list[Any]:
    if parts.names == expected:
        return parts.children
    by_name = dict(zip(parts.names or (), parts.children, strict=True))
    missing = [name for name in expected if name not in by_name]
    extra = [name for name in by_name if name not in set(expected)]
    if missing or extra:
        found = [f"missing {', '.join(map(repr, missing))}"] if missing else []
        found += [f"unexpected {', '.join(map(repr, extra))}"] if extra else []
        raise ArgumentError(
            "The names in a structure are not those of its type.", expected=type_, found="; ".join(found)
        )
    if len(by_name) != len(parts.children):
        raise ArgumentError("Two keys of a mapping have the same text.", expected=type_, found=repr(parts.names))
    return [by_name[name] for name in expected]


def _check_static_data(expected: PyTreeContainer, found: PyTreeContainer) -> None:
    if expected != found:
        raise ArgumentError(
            "A node of a pytree differs from its type in its class or in its static data.",
            expected=str(expected._treedef),
            found=str(found._treedef),
            hint="build both from the same configuration",
        )
