"""The public names: every facade lists exactly what it offers, in order, and everything in it is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import pathlib
import re
import tomllib
import types
from typing import Any

import pytest

import koinon
from koinon import _errors, errors

PACKAGE = pathlib.Path(koinon.__file__).parent


def is_public(path: pathlib.Path) -> bool:
    """Whether a file is a module that users import."""
    return all(
        not part.startswith("_") or part == "__init__" for part in path.relative_to(PACKAGE).with_suffix("").parts
    )


def module_name(path: pathlib.Path) -> str:
    """The dotted name of the module in a file."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


PUBLIC = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if is_public(path)}
public_modules = pytest.mark.parametrize("name", PUBLIC)


def defined_names(tree: ast.Module) -> set[str]:
    """The public names of the functions and classes that are written in a module."""
    definitions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {name for name in definitions if not name.startswith("_")}


def offered_names(tree: ast.Module) -> set[str]:
    """The names that a module defines or, where it defines none, those that it takes from other modules of koinon."""
    defined = defined_names(tree)
    taken = {
        alias.asname or alias.name
        for statement in tree.body
        for node in (statement.body if isinstance(statement, ast.If) else [statement])
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "koinon"
        for alias in node.names
    }
    return defined or taken


@public_modules
def test_a_facade_lists_exactly_what_it_offers(name: str) -> None:
    """`__all__` has every public name of a module, and no other."""
    tree = ast.parse(PUBLIC[name].read_text(encoding="utf-8"))

    assert offered_names(tree) == set(importlib.import_module(name).__all__)


@public_modules
def test_the_names_of_a_facade_are_sorted_and_there(name: str) -> None:
    """`__all__` has constants first, then classes, then the rest, each in alphabetical order; each can be had."""
    module = importlib.import_module(name)

    assert module.__all__ == sorted(module.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert all(hasattr(module, public_name) for public_name in module.__all__)


@public_modules
def test_everything_public_is_documented(name: str) -> None:
    """Every public module, class and function has a docstring that was written for it."""
    module = importlib.import_module(name)
    objects: dict[str, Any] = {name: module} | {
        public_name: getattr(module, public_name) for public_name in module.__all__
    }
    documentable = {
        public_name: public_object
        for public_name, public_object in objects.items()
        if inspect.isroutine(public_object) or isinstance(public_object, type | types.ModuleType)
    }
    undocumented = [
        public_name
        for public_name, public_object in documentable.items()
        # The docstring that dataclasses and named tuples write themselves is their signature.
        if not public_object.__doc__ or public_object.__doc__.startswith(f"{public_name.rpartition('.')[2]}(")
    ]

    assert not undocumented


def test_every_error_can_be_caught_by_its_public_name() -> None:
    """`koinon.errors` has every class of exceptions that the library defines."""
    defined = {
        name
        for name, value in vars(_errors).items()
        if isinstance(value, type) and value.__module__ == _errors.__name__
    }

    assert set(errors.__all__) == defined
    assert all(issubclass(getattr(errors, name), errors.KoinonError) for name in errors.__all__)


def test_the_extra_that_a_message_names_brings_the_package() -> None:
    """Wherever a missing package is reported, the extra to install exists and contains the package."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        extra: {re.split(r"[\[<>=~!]", requirement)[0] for requirement in requirements}
        for extra, requirements in project["optional-dependencies"].items()
    }
    calls = [
        node
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "MissingDependencyError"
    ]
    named = {
        (ast.literal_eval(keyword.value), call.args[0].value if isinstance(call.args[0], ast.Constant) else None)
        for call in calls
        for keyword in call.keywords
        if keyword.arg == "extra"
    }

    assert len(named) > 3
    assert not {(extra, package) for extra, package in named if package not in {*extras.get(extra, ()), None}}
    assert {extra for extra, _ in named} <= extras.keys()
    assert not {extra for extra, _ in named} - set(re.split(r"[\[\],]", project["optional-dependencies"]["all"][0]))


def test_names_that_do_not_exist_are_no_attributes() -> None:
    """A misspelt namespace is an AttributeError that Python can mend, and that of a type says where types are."""
    with pytest.raises(AttributeError, match="'learnign'") as caught:
        koinon.learnign  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert (caught.value.name, caught.value.obj) == ("learnign", koinon)
    with pytest.raises(AttributeError, match=r"there is koinon\.types\.FederatedType"):
        koinon.FederatedType  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "name", [name for name, path in PUBLIC.items() if not defined_names(ast.parse(path.read_text(encoding="utf-8")))]
)
def test_dir_of_a_facade_shows_public_names_alone(name: str) -> None:
    """What a facade imports for its own use is not shown, and lazy packages are."""
    module = importlib.import_module(name)

    assert {entry for entry in dir(module) if not entry.startswith("_")} == set(module.__all__)
