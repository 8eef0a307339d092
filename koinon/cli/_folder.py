"""The folder of a run, and what is in it."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import pathlib
import shlex
from collections.abc import Iterator
from typing import Any

import numpy as np

from koinon.cli._config import RunConfig, read_toml, seen_from, to_toml
from koinon.cli._errors import UsageError
from koinon.program import CSVFileReleaseManager, FileProgramStateManager

try:
    import fcntl
except ImportError:  # Windows has no such locks.
    fcntl = None

_PARTS = ("config.toml", "checkpoints", "metrics.csv", "timing.csv", "curves.png", "model", "report.html")
_CHECKPOINTS_KEPT = 3


class RunFolder:
    """The paths of a run, and its files as what they hold."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self.config_path = self.path / "config.toml"
        self.metrics_path = self.path / "metrics.csv"
        self.timing_path = self.path / "timing.csv"
        self.curves_path = self.path / "curves.png"
        self.model_path = self.path / "model"
        self.report_path = self.path / "report.html"
        self.checkpoints_path = self.path / "checkpoints"

    def check_is_free(self) -> None:
        """Checks that a run can be started here.

        Raises:
          UsageError: if there is a run already, or the path is no folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{str(self.path)!r} is a file; a run needs a folder.")
        taken = [name for name in _PARTS if (self.path / name).exists()]
        if "config.toml" in taken:
            raise UsageError(
                f"There is a run in {str(self.path)!r} already; continue it with --resume, or choose another folder."
            )
        if taken:
            raise UsageError(f"{str(self.path)!r} has a {taken[0]!r}, which a run would write; choose another folder.")

    def create(self) -> None:
        """Makes the folder, where there is none.

        Raises:
          UsageError: if the operating system does not let us.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"The run folder {str(self.path)!r} cannot be made: {error}.") from None

    def write_config(self, config: RunConfig) -> None:
        """Writes the configuration of the run, in a way that leaves the old one or the new one.

        Raises:
          UsageError: if the operating system does not let us.
        """
        comment = f"What this run was started with; written by koinon.\nTo continue it:  {self.resume_command(config)}"
        temporary = self.config_path.with_suffix(".tmp")
        try:
            temporary.write_text(to_toml(seen_from(self.path, config), comment), encoding="utf-8")
            os.replace(temporary, self.config_path)
        except OSError as error:
            raise UsageError(f"The configuration {str(self.config_path)!r} cannot be written: {error}.") from None

    def resume_command(self, config: RunConfig) -> str:
        """What continues the run, from where it was started."""
        return f"koinon run {shlex.quote(config.task)} --out {shlex.quote(str(self.path))} --resume"

    def read_config(self) -> RunConfig:
        """The configuration of the run.

        Raises:
          UsageError: if there is no run, or its configuration is damaged.
        """
        if not self.config_path.is_file():
            raise UsageError(f"There is no run in {str(self.path)!r} to resume: it has no config.toml.")
        try:
            return RunConfig(**read_toml(self.config_path))
        except TypeError as error:
            raise UsageError(f"The configuration {str(self.config_path)!r} is incomplete: {error}.") from None

    def checkpoints(self) -> FileProgramStateManager:
        """The checkpoints of the run."""
        return FileProgramStateManager(self.checkpoints_path, prefix="round_", keep_total=_CHECKPOINTS_KEPT)

    def metrics_manager(self) -> CSVFileReleaseManager:
        """What writes the metrics: only what the same seed gives again."""
        return CSVFileReleaseManager(self.metrics_path, key_fieldname="round")

    def timing_manager(self) -> CSVFileReleaseManager:
        """What writes how long the rounds took."""
        return CSVFileReleaseManager(self.timing_path, key_fieldname="round")

    def read_metrics(self) -> dict[str, np.ndarray]:
        """The metrics by name, float64 `[rounds]`, not a number where a round has none."""
        return read_table(self.metrics_path)

    def read_timing(self) -> dict[str, np.ndarray]:
        """The seconds of the rounds."""
        return read_table(self.timing_path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from running in this folder; the lock ends with the process, however that ends.

        Raises:
          UsageError: if another process is running here.
        """
        if fcntl is None:
            yield
            return
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"Another process is running in {str(self.path)!r} right now.") from None
        else:
            yield
        finally:
            os.close(descriptor)


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file in a way that leaves the old one or the new one, and nothing else."""
    temporary = pathlib.Path(f"{os.fspath(path)}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def new_folder(root: str | os.PathLike[str], name: str) -> RunFolder:
    """A folder for a run that was given none: the first `root/name-1`, `root/name-2`, .. that there is not."""
    return next(
        RunFolder(path)
        for path in (pathlib.Path(root) / f"{name}-{number}" for number in itertools.count(1))
        if not path.exists()
    )


def read_table(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file that hold numbers; none if there is no file."""
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    table: dict[str, np.ndarray] = {}
    for name in rows[0] if rows else ():
        with contextlib.suppress(ValueError):
            table[name] = np.array([float(row[name] or "nan") for row in rows])
    return table
