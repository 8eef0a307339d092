"""The entry point, which works without the packages that the command line is made of, so as to say so."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from koinon.errors import MissingDependencyError


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; those of the process if `arguments` is None. Ends with SystemExit."""
    try:
        app = importlib.import_module("koinon.cli._app")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("typer", "rich"):
            raise
        sys.exit(f"Error: {MissingDependencyError(error.name, extra='cli', purpose='The command line')}")
    app.run_app(arguments)
