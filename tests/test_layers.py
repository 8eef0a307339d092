"""The floors of the house: what may import what, and what no file may do. `docs/architecture.md` draws the picture."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

PACKAGE = pathlib.Path(__file__).parents[1] / "koinon"
FLOOR_0 = frozenset({"_errors", "_jax", "_threads"})
LANGUAGE = FLOOR_0 | {"types", "computation"}
MATHEMATICS = frozenset({"templates", "privacy", "aggregators", "program", "learning", "analytics", "simulation"})

# For each part of the package, the parts below it that it may import. The engine branch (compiler, backends) and the
# mathematics branch never see each other.
ALLOWED: dict[str, frozenset[str]] = {
    **dict.fromkeys(FLOOR_0, FLOOR_0),
    "errors": FLOOR_0,
    "types": FLOOR_0,
    "computation": FLOOR_0 | {"types"},
    "compiler": LANGUAGE,
    "backends": LANGUAGE | {"compiler"},
    "templates": LANGUAGE,
    "privacy": LANGUAGE,
    "secure": FLOOR_0 | {"types"},
    "aggregators": LANGUAGE | {"templates", "privacy"},
    "program": LANGUAGE | {"templates"},
    "learning": LANGUAGE | {"templates", "privacy", "aggregators", "program"},
    "analytics": LANGUAGE | {"templates", "privacy", "aggregators"},
    "simulation": LANGUAGE | MATHEMATICS - {"simulation"},
    "testing": LANGUAGE | MATHEMATICS | {"compiler", "backends"},
    "cli": LANGUAGE | MATHEMATICS | {"", "compiler", "backends", "errors"},  # everything, the facade too
    "__main__": frozenset({"cli"}),
}
MAX_LINES = 600
FORBIDDEN_MODULES = frozenset({"pickle", "marshal", "dill", "cloudpickle", "shelve"})
FORBIDDEN_CALLS = frozenset({"eval", "exec", "__import__"})


def module_name(path: pathlib.Path) -> str:
    """The dotted name of the module in a file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {module: ast.parse(path.read_text(encoding="utf-8"), str(path)) for module, path in PATHS.items()}


def part_of(module: str) -> str:
    """The part of the package that a module belongs to; the empty string for the package itself."""
    return [*module.split("."), ""][1]


def imported_modules(node: ast.AST) -> Iterator[str]:
    """The modules that an import statement names, those of other packages among them."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in PATHS else node.module


def all_imports(module: str) -> set[str]:
    """The modules of koinon that a module imports anywhere, inside functions and for type checkers too."""
    return {name for node in ast.walk(TREES[module]) for name in imported_modules(node)} & PATHS.keys()


def is_type_checking(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, whose imports never run."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def run_time_imports(module: str) -> set[str]:
    """The modules of koinon that a module imports when it, or a function of it, runs."""
    found: set[str] = set()
    pending: list[ast.AST] = [TREES[module]]
    while pending:
        node = pending.pop()
        found.update(imported_modules(node))
        pending.extend(child for child in ast.iter_child_nodes(node) if not is_type_checking(child))
    return found & PATHS.keys()


def test_every_part_of_the_package_has_a_floor() -> None:
    """A new part needs a row in the table above, and in `docs/architecture.md`."""
    assert len(PATHS) > 50, "the modules of koinon were not found"
    assert {part_of(module) for module in PATHS} - {""} <= ALLOWED.keys()


def test_a_module_imports_only_what_is_below_it() -> None:
    """No module imports from a part of the package on its own floor or above, or from the other branch."""
    upward = [
        f"{module} imports {imported}"
        for module in PATHS.keys() - {"koinon"}
        for imported in all_imports(module)
        if part_of(imported) != part_of(module) and part_of(imported) not in ALLOWED[part_of(module)]
    ]

    assert not upward


def test_the_mathematics_branch_speaks_only_the_public_language() -> None:
    """What an algorithm takes from types and computation, every user can take too."""
    private = [
        f"{module} imports {imported}"
        for module in PATHS
        for imported in all_imports(module)
        if part_of(module) in MATHEMATICS
        if part_of(imported) in ("types", "computation") and imported.rpartition(".")[2].startswith("_")
    ]

    assert not private


def test_no_modules_import_each_other_in_a_circle() -> None:
    """The modules can be put in an order in which each imports only earlier ones, imports in functions included."""
    remaining = {module: run_time_imports(module) for module in PATHS.keys() - {"koinon"}}
    while remaining:
        ready = [module for module, imports in remaining.items() if not imports & remaining.keys()]

        assert ready, f"a circle runs through some of {sorted(remaining)}"
        for module in ready:
            del remaining[module]


def test_a_file_fits_in_a_head() -> None:
    """No file is longer than 600 lines."""
    too_long = {module: lines for module, path in PATHS.items() if (lines := count_lines(path)) > MAX_LINES}

    assert not too_long


def count_lines(path: pathlib.Path) -> int:
    """The number of lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def test_nothing_runs_code_that_came_as_data() -> None:
    """There is no pickle, no relative of it, no array file that may hold one, and no eval or exec in the library."""
    found = [
        f"{module}:{ast.unparse(node)}" for module, tree in TREES.items() for node in ast.walk(tree) if runs_data(node)
    ]

    assert not found


def runs_data(node: ast.AST) -> bool:
    """Whether a node imports a module that runs data, calls such a builtin, or allows NumPy to unpickle."""
    if isinstance(node, ast.Call):
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        unpickles = any(keyword.arg == "allow_pickle" and not is_false(keyword.value) for keyword in node.keywords)
        return called in FORBIDDEN_CALLS or unpickles
    return any(name.split(".")[0] in FORBIDDEN_MODULES for name in imported_modules(node))


def is_false(node: ast.AST) -> bool:
    """Whether an expression is the literal False."""
    return isinstance(node, ast.Constant) and node.value is False
