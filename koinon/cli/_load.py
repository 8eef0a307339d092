"""Finding the task that a command names."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import pathlib
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
        close = difflib.get_close_matches(name, NAMED_TASKS, n=1)
        hint = (
            f"did you mean {close[0]!r}?" if close else f"there is {', '.join(NAMED_TASKS)}, or a path of a .py file."
        )
        raise UsageError(f"There is no task {name!r}; {hint}")
    path = pathlib.Path(name)
    if not path.is_file():
        raise UsageError(f"There is no file {name!r} to take a task from.")
    found: Any = getattr(_run_file(path), "task", None)
    if found is not None and not isinstance(found, Task) and callable(found):
        found = _build(found, name, seed, data)
    elif data:
        raise UsageError(f"The file {name!r} defines a `task` that takes no folder of data.")
    if not isinstance(found, Task):
        what = "does not define `task`" if found is None else f"defines `task` as a {type(found).__name__}"
        raise UsageError(f"The file {name!r} {what}; it must be a koinon.simulation.Task, or a function of a seed.")
    return found


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
        # The mistake is in the user's file, so that file's part of the traceback is what helps.
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != str(path.absolute()):
            frames = frames.tb_next
        text = "".join(traceback.format_exception(type(error), error, frames))
        raise UsageError(f"The file {str(path)!r} cannot be run.\n{text}".rstrip()) from None
    return module
