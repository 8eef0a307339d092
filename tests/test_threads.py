"""Work in other threads."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import pytest

import koinon as ko
from koinon._threads import carry_settings, run_all
from koinon.computation import current_backend


@pytest.mark.parametrize(("count", "threads"), [(0, 2), (1, 4), (7, 1), (7, 3), (2, 9)])
def test_every_piece_is_done_once_and_in_its_place(count: int, threads: int) -> None:
    """Whoever does it, on one thread and on several."""
    done = []

    def square(number: int) -> int:
        done.append(number)
        return number**2

    assert run_all(square, count, threads) == [number**2 for number in range(count)]
    assert sorted(done) == list(range(count))


def test_several_threads_work_at_once() -> None:
    """Two pieces that wait for each other both come to an end."""
    barrier = threading.Barrier(2, timeout=30)

    run_all(lambda _: barrier.wait(), 2, 2)

    assert not barrier.broken


def test_calls_inside_calls_come_to_an_end() -> None:
    """All helpers are taken by the outer calls; the inner ones are done without."""

    def outer(number: int) -> int:
        time.sleep(0.01)
        return sum(run_all(lambda inner: number + inner, 5, 2))

    assert run_all(outer, 6, 2) == [5 * number + 10 for number in range(6)]


@pytest.mark.parametrize("wrong", [0, 1, 5])
def test_an_error_is_raised_when_nothing_runs_any_more(wrong: int) -> None:
    """Whichever piece it comes from."""
    running = set()

    def fail(number: int) -> None:
        running.add(number)
        time.sleep(0.01)
        running.remove(number)
        if number == wrong:
            raise ValueError(f"piece {number}")

    with pytest.raises(ValueError, match=f"piece {wrong}"):
        run_all(fail, 6, 3)
    assert not running


def test_nothing_is_kept_when_all_is_done() -> None:
    """Neither the work nor its results, also where a helper that was asked has not come yet."""

    class Result:
        pass

    def outer(number: int) -> int:
        results = run_all(lambda inner: Result(), 5, 2)
        kept.extend(map(weakref.ref, results))
        return number

    kept: list[weakref.ref[Result]] = []
    run_all(outer, 6, 2)
    gc.collect()

    assert len(kept) == 30
    assert not any(reference() for reference in kept)


def test_settings_go_along() -> None:
    """The backend, the default device and the precision are those of the thread that hands the work over."""
    device = jax.local_devices()[-1]

    def settings() -> object:
        return current_backend(), jnp.zeros(()).device, jnp.asarray(1.0).dtype

    with ko.backends.use("reference"), jax.default_device(device), jax.enable_x64(True):
        expected = settings()
        found: list[object] = []
        worker = threading.Thread(target=carry_settings(lambda: found.append(settings())))
        worker.start()
        worker.join()

    assert found == [expected]
