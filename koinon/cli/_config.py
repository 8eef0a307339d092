"""What a run was started with, as TOML."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import tomllib
from collections.abc import Mapping
from typing import Any

import jax

import koinon
from koinon.cli._errors import UsageError

Scalar = int | float | bool | str


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that the numbers of a run depend on, and what it takes to run it again.

    Attributes:
      task: the name of a task, or the path of a file that defines one.
      seed: of the initial weights, the cohorts and the clients' randomness.
      rounds: the number of rounds.
      clients_per_round: the number of clients of a cohort.
      evaluate_every: evaluates after the rounds that this divides.
      save_every: saves a checkpoint after the rounds that this divides.
      backend: the name of what runs the computations.
      hyperparameters: those of the task, by name.
      data: the folder of the task's data; empty for the data that the task has by itself.
      versions: of koinon, JAX and Python when the run was started.
    """

    task: str
    seed: int
    rounds: int
    clients_per_round: int
    evaluate_every: int
    save_every: int
    backend: str
    hyperparameters: Mapping[str, Scalar]
    data: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


_KINDS: dict[str, type] = {
    "task": str,
    "seed": int,
    "rounds": int,
    "clients_per_round": int,
    "evaluate_every": int,
    "save_every": int,
    "backend": str,
    "data": str,
    "hyperparameters": dict,
    "versions": dict,
}


def current_versions() -> dict[str, str]:
    """The versions of what the bits of a run depend on."""
    return {"koinon": koinon.__version__, "jax": jax.__version__, "python": platform.python_version()}


def to_toml(config: RunConfig, comment: str) -> str:
    """The text of a configuration, with a comment at the top."""
    tables: dict[str, Mapping[str, Any]] = {}
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, Mapping):
            tables[name] = value
        elif value != "":
            lines.append(f"{name} = {_toml_value(value)}")
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{_toml_key(key)} = {_toml_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def seen_from(folder: str | os.PathLike[str], config: RunConfig) -> RunConfig:
    """The configuration with its relative paths as they are to be written in a file in this folder."""
    return dataclasses.replace(
        config, **{name: _relative(path, folder) for name, path in _paths({"task": config.task, "data": config.data})}
    )


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a TOML file, each checked to be of its kind; those that are missing are missing.

    Relative paths in it begin at the folder of the file.

    Raises:
      UsageError: if the file cannot be read, is no TOML, or has a setting that there is not.
    """
    try:
        settings = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"The configuration {str(path)!r} cannot be read: {error}.") from None
    for name, value in settings.items():
        kind = _KINDS.get(name)
        if kind is None:
            raise UsageError(f"The configuration {str(path)!r} has {name!r}; there is {', '.join(_KINDS)}.")
        if type(value) is not kind:
            raise UsageError(f"`{name}` in {str(path)!r} must be of kind {kind.__name__}, and is {value!r}.")
    folder = os.path.dirname(os.path.realpath(path))
    return settings | {name: _relative(os.path.join(folder, value), os.curdir) for name, value in _paths(settings)}


def _paths(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Those settings that are relative paths."""
    return [
        (name, settings[name])
        for name in ("task", "data")
        if (settings.get(name) if name == "data" else settings.get(name, "").endswith(".py"))
        and not os.path.isabs(settings[name])
    ]


def _relative(path: str, folder: str | os.PathLike[str]) -> str:
    """A path as seen from a folder; of what symbolic links lead to, since `..` does not lead back through them."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))


def parse_assignments(assignments: list[str]) -> dict[str, Scalar]:
    """The hyperparameters of `NAME=VALUE` texts, whose values are TOML, or else strings.

    Raises:
      UsageError: if a text has no name or no value.
    """
    values: dict[str, Scalar] = {}
    for assignment in assignments:
        name, separator, text = (part.strip() for part in assignment.partition("="))
        if not (name and separator and text):
            raise UsageError(f"A hyperparameter is set as NAME=VALUE, and not as {assignment!r}.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        if not isinstance(value, Scalar):
            raise UsageError(f"The hyperparameter {name!r} must be a number, true, false or a string, not {text!r}.")
        values[name] = value
    return values


def convert_like(name: str, value: Any, default: Any) -> Scalar:
    """A hyperparameter in the kind of its default; an int serves for a float.

    Raises:
      UsageError: if it is of another kind.
    """
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise UsageError(
            f"The hyperparameter {name!r} is of kind {type(default).__name__} ({default!r} by default), not {value!r}."
        )
    return value


def _toml_value(value: Scalar) -> str:
    if isinstance(value, str):
        # JSON strings are TOML strings, but for one control character that JSON does not escape.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _toml_key(key: str) -> str:
    return key if key.replace("-", "_").isidentifier() and key.isascii() else _toml_value(key)
