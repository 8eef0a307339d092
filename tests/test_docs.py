"""The documentation is true: every Python block runs, and shows what it says it shows.

The blocks of a page run one after the other in one namespace. A comment behind an expression is what `str` makes of its
value; a comment behind a call of `print` is what it prints, unless it starts with `about`. Numbers agree if they do in
the decimals that the page shows. A text block right behind a Python block is what that prints; or, where it starts with
the name of an error, the error that the code raises, of which the page may leave out lines.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import itertools
import pathlib
import re
import tokenize
import types
from typing import Any, NamedTuple

import pytest

import koinon

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A piece of code: the number of the line before it, the code, and the text that it prints or raises, if shown."""

    line: int
    source: str
    output: str | None


def blocks(text: str) -> list[Block]:
    """The Python blocks of a page."""
    found = []
    for match, following in itertools.pairwise([*BLOCK.finditer(text), None]):
        if match is not None and match[1] == "python":
            is_next = (
                following is not None and following[1] == "text" and not text[match.end() : following.start()].strip()
            )
            found.append(Block(text.count("\n", 0, match.start(2)), match[2], following[2] if is_next else None))
    return found


PAGES_WITH_CODE = [page for page in PAGES if blocks(page.read_text(encoding="utf-8"))]


def comments(source: str) -> dict[int, str]:
    """The comments of a piece of code, by line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def run(source: str, namespace: dict[str, Any], filename: str) -> tuple[list[tuple[int, str, str]], str]:
    """Runs a block; returns, for each line with a comment, what it says and what came out, and all that was printed."""
    shown = comments(source)
    seen = []
    everything = ""
    for statement in ast.parse(source).body:
        line = statement.end_lineno or statement.lineno
        says = shown.get(line, "")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if isinstance(statement, ast.Expr):
                value = eval(compile(ast.Expression(statement.value), filename, "eval"), namespace)
                found = printed.getvalue().rstrip() if value is None else str(value)
            else:
                exec(compile(ast.Module([statement], []), filename, "exec"), namespace)
                found = says
        everything += printed.getvalue()
        if says and not says.startswith("about "):
            seen.append((line, says, found))
    return seen, everything


def agree(says: str, found: str) -> bool:
    """Whether an output is what the page says, for a number in the decimals that it shows."""
    if re.fullmatch(r"-?\d+\.\d+", says) and re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", found):
        return f"{float(found):.{len(says.partition('.')[2])}f}" == says
    return found == says


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs_and_shows_what_it_says(
    page: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block of the page runs after those before it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, source, output in blocks(page.read_text(encoding="utf-8")):
        code = "\n" * line + source  # so that a traceback names the line of the page
        if output is not None and re.match(r"\w+Error: ", output):
            check_error(code, namespace, page, output)
            continue
        seen, printed = run(code, namespace, str(page))
        for number, says, found in seen:
            assert agree(says, found), f"{page}:{number} says {says!r}, and gives {found!r}"
        if output is not None:
            assert printed.rstrip() == output.rstrip(), f"{page}:{line}"


def check_error(code: str, namespace: dict[str, Any], page: pathlib.Path, output: str) -> None:
    """Checks that a block raises the error that the page shows."""
    name, _, message = output.partition(": ")
    with pytest.raises(getattr(koinon.errors, name)) as raised:
        run(code, namespace, str(page))
    missing = set(message.splitlines()) - set(str(raised.value).splitlines())

    assert not missing, f"{page} shows {output}, and the error is {raised.value}"


def test_a_wrong_output_is_noticed() -> None:
    """What a page says and what comes out are compared, for values and for what is printed."""
    seen, printed = run("x = 1  # no output\nx + 1  # 3\nprint(x)  # 2\nprint(x)  # about 7", {}, "<page>")

    assert [(says, found) for _, says, found in seen if not agree(says, found)] == [("3", "2"), ("2", "1")]
    assert printed == "1\n1\n"
    assert agree("69.8", "69.799995")
    assert not agree("69.8", "69.74")


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link of a page points at a file that exists."""
    missing = [
        f"{page.name}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]

    assert not missing


def test_every_name_that_a_page_mentions_exists() -> None:
    """What stands in backticks and begins with `ko.` or `koinon.` can be had by that name."""
    mentioned = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"`(?:ko|koinon)((?:\.[A-Za-z]\w*)+)[^`]*`", page.read_text(encoding="utf-8"))
    }
    missing = sorted((page, name) for page, name in mentioned if not exists(name.removeprefix(".").split(".")))

    assert len(mentioned) > 50
    assert not missing


def exists(path: list[str]) -> bool:
    """Whether a name can be reached from `koinon`, by attributes and submodules."""
    found: Any = koinon
    for i, name in enumerate(path):
        if not hasattr(found, name) and importlib.util.find_spec(f"koinon.{'.'.join(path[: i + 1])}") is None:
            return False
        found = getattr(found, name, None) or importlib.import_module(f"koinon.{'.'.join(path[: i + 1])}")
    return True


def test_every_namespace_has_a_page_of_reference() -> None:
    """What `koinon` offers as a namespace is in the reference, or has a page of its own."""
    namespaces = {name for name in koinon.__all__ if isinstance(getattr(koinon, name), types.ModuleType)}
    pages = {page.stem for page in (ROOT / "docs" / "reference").glob("*.md")} | {"errors"}

    assert namespaces <= pages


def test_the_page_of_errors_is_up_to_date() -> None:
    """`docs/errors.md` is what `python docs/generate_errors.py` writes."""
    spec = importlib.util.spec_from_file_location("generate_errors", ROOT / "docs" / "generate_errors.py")
    assert spec is not None
    assert spec.loader is not None
    generate_errors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate_errors)

    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == generate_errors.page()


def test_the_readme_is_short() -> None:
    """A reader sees the whole of it in a minute."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120
