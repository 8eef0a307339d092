"""Writes docs/errors.md from the exception classes: `python docs/generate_errors.py`. A test compares the two."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Iterator

from koinon import errors

PAGE = pathlib.Path(__file__).with_name("errors.md")
HEAD = """\
<!-- Written by docs/generate_errors.py from the docstrings of koinon.errors. -->

# Errors

Every exception that koinon raises on purpose is a `koinon.errors.KoinonError`, and most are a `TypeError` or a `ValueError` too.
A message says in its first line what is wrong; below it stand, where they are known, what was expected, what was found, where the two differ, where the code was written, and one thing to try.
Each part is an attribute of the exception: `what`, `expected`, `found`, `differs`, `made_in`, `hint`.

```python
import jax.numpy as jnp, koinon as ko

@ko.federated_computation(ko.types.at_server(jnp.float32))
def broken(temperature):
    return ko.federated_mean(temperature)
```

```text
PlacementError: The value to be averaged should be placed at CLIENTS, but it is placed at SERVER.
  expected   a value placed at CLIENTS
  found      float32@SERVER
  try        bring a value to the clients with ko.federated_broadcast
```
"""


def classes_in_order(base: type[errors.KoinonError] = errors.KoinonError, depth: int = 0) -> Iterator[tuple[int, type]]:
    """The classes below one, each followed by its own, with how deep they lie."""
    yield depth, base
    for name in errors.__all__:
        child = getattr(errors, name)
        if child.__bases__[0] is base:
            yield from classes_in_order(child, depth + 1)


def page() -> str:
    """The text of the page."""
    parts = [HEAD, "## The tree\n", "```text"]
    parts += ["    " * depth + cls.__name__ for depth, cls in classes_in_order()]
    parts += ["```\n", "## Each of them"]
    for _, cls in classes_in_order():
        bases = ", ".join(f"`{base.__name__}`" for base in cls.__bases__)
        parts.append(f"\n### {cls.__name__}\n\nBases: {bases}\n\n{inspect.getdoc(cls)}")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
