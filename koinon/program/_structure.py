"""The structure of a pytree as plain JSON, and back into the containers of a given tree.

A node is an integer (the number of a leaf), null (Python's None), `{"fields": [[name, node], ..]}` for containers
with names, or `{"items": [node, ..]}` for the others. Leaves are numbered in the order of `jax.tree.leaves`.
"""

from __future__ import annotations

from typing import Any

import jax

from koinon._errors import ProgramStateStructureError, UnsupportedTypeError
from koinon.program._leaves import Leaf, convert_leaf, describe_leaf

Node = Any

_MAX_DEPTH = 200


def flatten(tree: Any, leaves: list[tuple[str, Leaf]], path: str = "", depth: int = 0) -> Node:
    """The node of `tree`; appends its leaves, each with its path, to `leaves`."""
    if depth > _MAX_DEPTH:
        raise UnsupportedTypeError(f"The tree is nested deeper than {_MAX_DEPTH} containers.", found=f"at {path}")
    if tree is None:
        return None
    children = _children(tree)
    if children is None:
        leaves.append((path or "the root", tree))
        return len(leaves) - 1
    nodes = [[name, flatten(child, leaves, path + _step(name, named), depth + 1)] for (name, named), child in children]
    if _is_named(tree, children):
        return {"fields": nodes}
    return {"items": [node for _, node in nodes]}


def check_node(node: Any, num_leaves: int) -> str | None:
    """What is wrong with a node that was read from outside; None if every leaf occurs once, in order."""
    next_leaf, pending = 0, [(node, 0)]
    while pending:
        node, depth = pending.pop()
        if depth > _MAX_DEPTH:
            return "is nested too deeply"
        if node is None:
            continue
        if type(node) is int:
            if node != next_leaf:
                return "does not have its leaves in order"
            next_leaf += 1
            continue
        children = _node_children(node)
        if children is None:
            return "has a node of an unknown kind"
        pending.extend((child, depth + 1) for _, child in reversed(children))
    return None if next_leaf == num_leaves else "does not have all leaves"


def nest(node: Node, leaves: list[Leaf]) -> Any:
    """The tree of a node in nested dicts and lists."""
    if node is None:
        return None
    if isinstance(node, int):
        return leaves[node]
    if "fields" in node:
        return {name: nest(child, leaves) for name, child in node["fields"]}
    return [nest(child, leaves) for child in node["items"]]


def restore(node: Node, leaves: list[Leaf], like: Any) -> Any:
    """The tree of a node in the containers of `like`, whose fields, shapes and dtypes it must have.

    Raises:
      ProgramStateStructureError: at the first difference; the message has its path.
    """
    found: list[Leaf] = []
    _match(node, leaves, like, "", found)
    return jax.tree.unflatten(jax.tree.structure(like), found)


def _match(node: Node, leaves: list[Leaf], like: Any, path: str, found: list[Leaf]) -> None:
    children = [] if like is None else _children(like)
    saved = [] if node is None else _node_children(node)
    if children is None and isinstance(node, int):
        _check_leaf(leaves[node], like, path)
        found.append(convert_leaf(leaves[node], like))
        return
    if children is None or saved is None or (like is None) != (node is None):
        raise _mismatch(path, _describe_tree(like), _describe_node(node, leaves))
    names = {name for (name, _), _ in children}
    by_name = dict(saved)
    if names != set(by_name):
        missing, extra = names - set(by_name), set(by_name) - names
        parts = [f"without {_listed(missing)}"] * bool(missing) + [f"with {_listed(extra)}"] * bool(extra)
        raise _mismatch(path, _describe_tree(like), f"{_describe_node(node, leaves)}: {', '.join(parts)}")
    for (name, named), child in children:
        _match(by_name[name], leaves, child, path + _step(name, named), found)


def _check_leaf(value: Leaf, like: Leaf, path: str) -> None:
    if hasattr(like, "dtype"):
        agrees = hasattr(value, "dtype") and value.dtype == like.dtype and tuple(value.shape) == tuple(like.shape)
    else:
        agrees = type(value) is type(like)
    if not agrees:
        raise _mismatch(path, describe_leaf(like), describe_leaf(value))


def _children(tree: Any) -> list[tuple[tuple[Any, bool], Any]] | None:
    """The children of a container, each with its name and whether that is a field name; None for a leaf."""
    entries, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    if len(entries) == 1 and not entries[0][0]:
        return None
    return [(_name(path[0], position), child) for position, (path, child) in enumerate(entries)]


def _name(entry: Any, position: int) -> tuple[Any, bool]:
    if isinstance(entry, jax.tree_util.DictKey):
        if type(entry.key) not in (str, int):
            raise UnsupportedTypeError(
                "Only dicts with keys of type str or int can be saved.", found=f"the key {entry.key!r}"
            )
        return entry.key, True
    if isinstance(entry, jax.tree_util.GetAttrKey):
        return entry.name, True
    return position, False


def _is_named(tree: Any, children: list[tuple[tuple[Any, bool], Any]]) -> bool:
    return children[0][0][1] if children else isinstance(tree, dict)


def _node_children(node: Any) -> list[tuple[Any, Node]] | None:
    """The children of a node, each with its name; None for a leaf or for what is no node."""
    if not isinstance(node, dict) or len(node) != 1:
        return None
    fields, items = node.get("fields"), node.get("items")
    if isinstance(items, list):
        return list(enumerate(items))
    if not isinstance(fields, list):
        return None
    pairs = all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int) for pair in fields)
    if not pairs or len({name for name, _ in fields}) != len(fields):
        return None
    return [(name, child) for name, child in fields]


def _step(name: Any, named: bool) -> str:
    if named and isinstance(name, str) and name.isidentifier():
        return f".{name}"
    return f"[{name!r}]"


def _listed(names: set[Any]) -> str:
    texts = sorted(map(repr, names))
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


def _describe_tree(tree: Any) -> str:
    if tree is None:
        return "None"
    children = _children(tree)
    return describe_leaf(tree) if children is None else f"{type(tree).__name__} of {len(children)}"


def _describe_node(node: Node, leaves: list[Leaf]) -> str:
    if node is None:
        return "None"
    children = _node_children(node)
    if children is None:
        return describe_leaf(leaves[node])
    return f"{len(children)} {'fields' if 'fields' in node else 'items'}"


def _mismatch(path: str, expected: str, found: str) -> ProgramStateStructureError:
    return ProgramStateStructureError(
        "What was saved is not of the structure to restore into.",
        expected=expected,
        found=found,
        differs=path or "the root",
        hint="restore into the structure that was saved, or read it without one to see what it holds",
    )
