"""What tests ask of error messages."""

from __future__ import annotations

import linecache

from koinon.errors import KoinonError


def blamed_line(error: KoinonError) -> str:
    """The line of source that an error says the offending code was written in."""
    assert error.made_in is not None, f"no place is named in: {error}"
    file, line = error.made_in.rsplit(":", 1)
    return linecache.getline(file, int(line)).strip()
