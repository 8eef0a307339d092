"""Ids of clients, as cohorts are made of them."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from koinon._errors import KoinonTypeError, UnknownClientError


def as_ids(client_ids: Iterable[Hashable]) -> list[Hashable]:
    """The ids of a cohort as a list.

    Raises:
      KoinonTypeError: if they are one string, whose characters would pass for ids.
    """
    if isinstance(client_ids, str | bytes):
        raise KoinonTypeError(
            "A cohort is made of several client ids.",
            expected="a list of ids",
            found=repr(client_ids),
            hint=f"`cohort([{client_ids!r}])`",
        )
    return client_ids.tolist() if isinstance(client_ids, np.ndarray) else list(client_ids)


def check_count(name: str, number: Any) -> None:
    """Checks that a number of clients is an integer.

    Raises:
      KoinonTypeError: if it is none, for example because it is meant as a share.
    """
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise KoinonTypeError(
            f"`{name}` is a number of clients.",
            expected="an integer",
            found=repr(number),
            hint=f"for a share of them, `round({number!r} * len(data))`" if isinstance(number, float) else None,
        )


def unknown_client_error(unknown: Sequence[Hashable], client_ids: Sequence[Hashable]) -> UnknownClientError:
    """The error of ids that are not among `client_ids`."""
    examples = ", ".join(map(repr, itertools.islice(client_ids, 3)))
    return UnknownClientError(
        f"{'There is no client' if len(unknown) == 1 else 'There are no clients'} {', '.join(map(repr, unknown[:5]))}"
        + (f" (nor {len(unknown) - 5} others)." if len(unknown) > 5 else "."),
        expected=f"one of {len(client_ids)} clients: {examples}{', ..' if len(client_ids) > 3 else ''}",
    )
