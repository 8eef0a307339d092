"""Tests of what a call means: which backend runs it, in this thread and task."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

import koinon as ko
from koinon.computation import _context as context
from koinon.computation import current_backend, set_default_backend, using_backend
from koinon.errors import ContextError, KoinonTypeError, KoinonValueError
from koinon.types import at_clients

identity = ko.federated_computation(lambda v: v, at_clients(np.int32))


class Echo:
    """A backend that gives back what it is asked."""

    def __init__(self, name: str) -> None:
        self.name = name

    def invoke(self, computation: ko.Computation, argument: Any) -> Any:
        """The name, the computation and the argument."""
        return self.name, computation.name, argument


def test_a_backend_is_in_use_within_a_block() -> None:
    """Blocks nest, and the one before is back afterwards, also after an error."""
    outside = current_backend()

    def run_and_fail() -> None:
        with ko.backends.use(Echo("b")):
            assert identity([1]) == ("b", "lambda", [1])
            raise RuntimeError("leave")

    with using_backend(Echo("a")) as a:
        assert current_backend() is a
        with pytest.raises(RuntimeError, match="leave"):
            run_and_fail()
        assert identity([2])[0] == "a"
    assert current_backend() is outside


def test_backends_are_chosen_by_name() -> None:
    """The installed ones have names; another name is a ValueError that lists them."""
    with ko.backends.use("reference") as reference:
        assert isinstance(reference, ko.backends.ReferenceBackend)
        assert ko.backends.current() is reference
        assert [int(x) for x in identity([1, 2])] == [1, 2]
    with ko.backends.use("local") as local:
        assert isinstance(local, ko.backends.LocalBackend)
    with pytest.raises(KoinonValueError, match="no backend of this name") as caught:
        ko.backends.use("tensorflow")
    assert caught.value.found == "'tensorflow'"
    assert "local" in str(caught.value.expected)


@pytest.mark.parametrize("backend", [5, None, object()])
def test_a_backend_can_run_computations(backend: Any) -> None:
    """An object without `invoke` is refused where it is installed, not where it is used."""
    with pytest.raises(KoinonTypeError, match="must have a method `invoke"), using_backend(backend):
        pass
    with pytest.raises(KoinonTypeError, match="must have a method `invoke"):
        set_default_backend(backend)


def test_the_default_serves_wherever_no_other_is_in_use() -> None:
    """The default is of the process, what is in use of a thread."""
    before = current_backend()
    try:
        ko.backends.set_default(Echo("default"))
        names = []
        thread = threading.Thread(target=lambda: names.append(identity([1])[0]))
        with ko.backends.use(Echo("mine")):
            thread.start()
            thread.join()
            assert identity([1])[0] == "mine"
        assert names == ["default"]
    finally:
        set_default_backend(before)


def test_without_any_backend_a_call_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A RuntimeError with the way out."""
    monkeypatch.setattr(context, "_default_backend", [])
    with pytest.raises(ContextError, match="No backend is installed") as caught:
        identity([1])
    assert isinstance(caught.value, RuntimeError)


def test_tasks_have_backends_of_their_own() -> None:
    """Two tasks of one event loop do not see each other's."""

    async def run(name: str) -> str:
        with ko.backends.use(Echo(name)):
            await asyncio.sleep(0.01)
            return identity([1])[0]

    async def both() -> list[str]:
        return list(await asyncio.gather(run("a"), run("b")))

    assert asyncio.run(both()) == ["a", "b"]


def test_a_call_gives_the_backend_the_arguments_as_they_were_written() -> None:
    """One argument is the whole parameter; several are unpacked in the order of the type."""
    pair = ko.jax_computation(lambda a, b: a, np.int32, np.int32)
    with ko.backends.use(Echo("x")):
        assert pair({"b": 1, "a": 2})[2] == {"b": 1, "a": 2}
        assert pair(b=1, a=2)[2].arguments == (2, 1)
        assert ko.jax_computation(lambda: 1)()[2] is None
