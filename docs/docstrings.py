"""Docstrings as the site shows them: an extension of griffe, named in mkdocs.yml."""

from __future__ import annotations

import re
from typing import Any

import griffe

# A doctest runs from a prompt to the next blank line.
DOCTEST = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.MULTILINE)
# A list of exceptions that goes on in the next line, which griffe takes for two entries.
SPLIT_RAISES = re.compile(r"(Error,)\n +(?=\w+Error)")


def as_markdown(docstring: str) -> str:
    """The docstring with its doctests fenced, so that Markdown does not take brackets for links."""
    fenced = DOCTEST.sub(lambda match: f"{match[1]}```pycon\n{match[0]}\n{match[1]}```", docstring)
    return SPLIT_RAISES.sub(r"\1 ", fenced)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
