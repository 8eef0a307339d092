"""The command line: `koinon run`, `koinon tasks`, `koinon show`, `koinon compare`."""

from koinon.cli._main import main

__all__ = ["main"]
