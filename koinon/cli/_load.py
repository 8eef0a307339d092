"""Finding the task that a command names."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import pathlib
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import Any

from koinon.cli._errors import UsageError
from koinon.errors import KoinonValueError
from koinon.simulation.baselines import BASELINE_TASKS
from koinon.simulation.tasks import TASKS, Task

NAMED_TASKS = {**TASKS, **BASELINE_TASKS}


def load_task(name: str, seed: int, data: str = "") -> Task:
    """The task of a name or a file.

    Args:
      name: the name of one of koinon's tasks, or the path of a Python file that defines `task`: a `Task`, or a function
        that takes a seed and returns one.
      seed: of the initial weights, where the task depends on one.
      data: the folder of the task's data, for tasks that take one; empty for none.

    Raises:
      UsageError: if there is no such task, the file defines none, or the task takes no folder or another one.
    """
    if name in NAMED_TASKS:
        return _build(NAMED_TASKS[name], name, seed, data)
    if not name.endswith(".py"):
        raise UsageError(f"There is no task {name!r}; {_hint(name)}")
    path = pathlib.Path(name)
    if not path.is_file():
        raise UsageError(f"There is no file {name!r} to take a task from.")
    found: Any = getattr(_run_file(path), "task", None)
    if found is not None and not isinstance(found, Task) and callable(found):
        return _called(found, path, seed, data)
    if data:
        raise UsageError(f"The file {name!r} defines a `task` that takes no folder of data.")
    if not isinstance(found, Task):
        what = "does not define `task`" if found is None else f"defines `task` as {found!r:.40}"
        raise UsageError(f"The file {name!r} {what}; it must be a koinon.simulation.Task, or a function of a seed.")
    return found


def _hint(name: str) -> str:
    if (pathlib.Path(name) / "config.toml").is_file():
        return f"it is the folder of a run: `koinon run {shlex.quote(name)}/config.toml` does that run again."
    close = difflib.get_close_matches(name, NAMED_TASKS, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there is {', '.join(NAMED_TASKS)}, or a path of a .py file, or of a .toml file with a configuration."


def _called(build: Callable[..., Any], path: pathlib.Path, seed: int, data: str) -> Task:
    """What the function `task` of a file returns."""
    try:
        signature = inspect.signature(build)
        signature.bind(seed, **{"folder": data} if data and "folder" in signature.parameters else {})
    except (TypeError, ValueError) as error:
        wanted = "a seed, and a `folder` with --data only"
        raise UsageError(f"The function `task` in {str(path)!r} must take {wanted}: {error}.") from None
    try:
        task = _build(build, str(path), seed, data)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"The task of {str(path)!r} cannot be made.\n{_trace(error, path)}") from None
    if not isinstance(task, Task):
        raise UsageError(
            f"The function `task` in {str(path)!r} returns {task!r:.40}; it must return a koinon.simulation.Task."
        )
    return task


def _build(build: Callable[..., Any], name: str, seed: int, data: str) -> Any:
    if not data:
        return build(seed)
    if "folder" not in inspect.signature(build).parameters:
        raise UsageError(f"The task {name!r} takes no folder of data.")
    if not pathlib.Path(data).is_dir():
        raise UsageError(f"There is no folder {data!r} to take data from.")
    try:
        return build(seed, folder=data)
    except KoinonValueError as error:
        raise UsageError(str(error)) from None


def _run_file(path: pathlib.Path) -> Any:
    """The module that a file is, with what lies beside it importable, as when Python runs it."""
    directory = str(path.resolve().parent)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    module_name = f"koinon_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"The file {str(path)!r} cannot be run.\n{_trace(error, path)}") from None
    return module


def _trace(error: Exception, path: pathlib.Path) -> str:
    """The traceback of an error from a user's file on, since the mistake is there."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != str(path.absolute()):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip()
