"""Fixtures that tests of all packages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import koinon as ko


@pytest.fixture(params=("reference", "local"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test once on each of the backends that are always installed; gives the name of the one in use."""
    with ko.backends.use(request.param):
        yield request.param
