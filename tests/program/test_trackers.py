"""Release managers for trackers: what TensorBoard reads back, and what W&B and MLflow are given."""

from __future__ import annotations

import pathlib
import sys
import threading
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon._errors import KoinonTypeError, KoinonValueError, MissingDependencyError, UnsupportedTypeError
from koinon.program import MLflowReleaseManager, ReleaseManager, TensorBoardReleaseManager, WandbReleaseManager


class Metrics(NamedTuple):
    loss: Any
    counts: Any


class Recorder:
    """A run of W&B and the module of MLflow in one, which remembers what it was given."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self._started_in = threading.get_ident()

    def log(self, data: dict[str, Any], step: int) -> None:
        self.logged.append((step, data))

    def log_metrics(self, metrics: dict[str, float], step: int, run_id: str) -> None:
        self.logged.append((step, {**metrics, "run": run_id}))

    def active_run(self) -> Any:
        """That of the thread, as MLflow has it: only the one that has made this has started one."""
        is_started = threading.get_ident() == self._started_in
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="active")) if is_started else None


def read_back(log_dir: pathlib.Path) -> Any:
    """What TensorBoard has in memory after it has read a directory."""
    plugin = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")
    accumulator = plugin.EventAccumulator(str(log_dir), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def curve(log_dir: pathlib.Path, name: str) -> list[tuple[int, float]]:
    """The points of a curve of scalars as TensorBoard shows it."""
    tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
    events = read_back(log_dir).Tensors(name)
    return [(event.step, float(tensor_util.make_ndarray(event.tensor_proto))) for event in events]


def test_tensorboard_shows_curves_named_by_paths(tmp_path: pathlib.Path) -> None:
    """Scalars of NumPy, JAX and Python, booleans and narrow floats; each point at its step, at once on disk."""
    pytest.importorskip("tensorboard")
    manager = TensorBoardReleaseManager(tmp_path / "logs")
    assert isinstance(manager, ReleaseManager)
    manager.release({"train": Metrics(0.5, {"ok": True}), "lr": jnp.bfloat16(0.25)}, 1)
    manager.release({"train": Metrics(np.float64(0.25), {"ok": False}), "lr": jnp.float32(0.1)}, np.int64(2))
    assert curve(tmp_path / "logs", "train/loss") == [(1, 0.5), (2, 0.25)]
    assert curve(tmp_path / "logs", "train/counts/ok") == [(1, 1.0), (2, 0.0)]
    assert curve(tmp_path / "logs", "lr") == [(1, 0.25), (2, pytest.approx(0.1))]
    manager.close()
    TensorBoardReleaseManager(tmp_path / "single").release(3, 0)
    assert curve(tmp_path / "single", "value") == [(0, 3.0)]


def test_tensorboard_shows_arrays_as_histograms(tmp_path: pathlib.Path) -> None:
    """The counts of all buckets are those of the values."""
    tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
    values = np.random.default_rng(0).normal(size=(10, 20)).astype(np.float32)
    TensorBoardReleaseManager(tmp_path).release({"weights": values}, 4)
    (event,) = read_back(tmp_path).Tensors("weights")
    histogram = tensor_util.make_ndarray(event.tensor_proto)
    assert event.step == 4
    assert histogram[:, 2].sum() == values.size
    for left, right, count in histogram[:-1]:
        assert count == np.sum((values >= left) & (values < right))


def test_a_restarted_program_takes_its_later_points_back(tmp_path: pathlib.Path) -> None:
    """A new manager on the same directory, and a smaller key on the same manager; earlier points stay."""
    pytest.importorskip("tensorboard")
    first = TensorBoardReleaseManager(tmp_path)
    for step in range(1, 6):
        first.release({"loss": 10 + step}, step)
    first.close()
    second = TensorBoardReleaseManager(tmp_path)
    for step in range(4, 7):
        second.release({"loss": 20 + step}, step)
    assert curve(tmp_path, "loss") == [(1, 11), (2, 12), (3, 13), (4, 24), (5, 25), (6, 26)]
    second.release({"loss": 35}, 5)
    assert curve(tmp_path, "loss") == [(1, 11), (2, 12), (3, 13), (4, 24), (5, 35)]


def test_wandb_is_given_numbers_and_arrays_at_their_step() -> None:
    """Scalars as Python numbers, arrays as arrays of NumPy."""
    run = Recorder()
    WandbReleaseManager(run).release({"a": jnp.float32(0.5), "b": [1, True], "c": np.arange(3)}, 7)
    ((step, data),) = run.logged
    assert step == 7
    array = data.pop("c")
    assert data == {"a": 0.5, "b/0": 1, "b/1": True}
    assert [type(value) for value in data.values()] == [float, int, bool]
    assert array.tolist() == [0, 1, 2]


def test_mlflow_is_given_floats_at_their_step() -> None:
    """It has metrics of single numbers only."""
    tracker = Recorder()
    manager = MLflowReleaseManager(tracker)
    manager.release({"a": jnp.int32(2), "b": (True, 0.5)}, 7)
    assert tracker.logged == [(7, {"a": 2.0, "b/0": 1.0, "b/1": 0.5, "run": "active"})]
    with pytest.raises(UnsupportedTypeError, match=r"'c'(.|\n)*shape \(3,\)(.|\n)*FilteringReleaseManager"):
        manager.release({"c": np.arange(3)}, 8)


def test_mlflow_logs_to_one_run_from_every_thread() -> None:
    """To the run that was active where the manager was made, or to the one of the given id; there must be one."""
    tracker = Recorder()
    managers = [MLflowReleaseManager(tracker), MLflowReleaseManager(tracker, "another")]
    errors: list[str] = []

    def work() -> None:
        for manager in managers:
            manager.release({"a": 1}, 3)
        try:
            MLflowReleaseManager(tracker)
        except KoinonValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert tracker.logged == [(3, {"a": 1.0, "run": "active"}), (3, {"a": 1.0, "run": "another"})]
    assert len(errors) == 1
    assert "mlflow.start_run()" in errors[0]


@pytest.mark.parametrize("leaf", ["text", 1j, np.array(["a"]), jax.random.key(0), object()])
def test_what_is_no_number_is_refused(leaf: Any, tmp_path: pathlib.Path) -> None:
    """The error names the leaf; nothing of the value is released."""
    run = Recorder()
    with pytest.raises(UnsupportedTypeError, match="'train/x'"):
        WandbReleaseManager(run).release({"loss": 1.0, "train": {"x": leaf}}, 1)
    with pytest.raises(UnsupportedTypeError, match="'train/x'"):
        MLflowReleaseManager(run).release({"loss": 1.0, "train": {"x": leaf}}, 1)
    assert run.logged == []


@pytest.mark.parametrize("make", [WandbReleaseManager, MLflowReleaseManager])
def test_trackers_need_their_method(make: Any) -> None:
    """The error says which, and what has it."""
    with pytest.raises(KoinonTypeError, match=r"needs a method `log"):
        make(object())


def test_without_tensorboard_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """And no directory is made."""
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"koinon\[tensorboard\]"):
        TensorBoardReleaseManager(tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
