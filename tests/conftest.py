"""Fixtures that tests of all packages share."""

from __future__ import annotations

import gc
import pathlib
from collections.abc import Iterator

import hypothesis
import jax
import pytest

import koinon as ko

# A second host device is for the tests that share a round's clients among devices; all else stays on the first.
jax.config.update("jax_num_cpu_devices", 2)

# A test run must not depend on luck or on how busy the machine is; `make soak` looks for new examples.
hypothesis.settings.register_profile(
    "default",
    hypothesis.settings.get_profile("default"),
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "soak", deadline=None, max_examples=1000, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("default")


@pytest.fixture(params=("reference", "local"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test once on each of the backends that are always installed; gives the name of the one in use."""
    with ko.backends.use(request.param):
        yield request.param


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Spares the garbage collector what JAX keeps of earlier tests: going through all of it takes a sixth of a run."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_ignore_collect(collection_path: pathlib.Path) -> bool | None:
    """Leaves out modules that tests import: `--doctest-modules` would import each of them by itself."""
    is_helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if is_helper else None
