"""Mistakes of users of the command line: a sentence, and no traceback."""

from __future__ import annotations


class UsageError(Exception):
    """A command that cannot be carried out as it was given; ends the program with status 2."""
