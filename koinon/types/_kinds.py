"""One bit for each kind of type, so that "is there one inside?" is a single `&`."""

from __future__ import annotations

from typing import Final

TENSOR: Final = 1
STRUCT: Final = 2
SEQUENCE: Final = 4
FEDERATED: Final = 8
FUNCTION: Final = 16
PLACEMENT: Final = 32
ABSTRACT: Final = 64
