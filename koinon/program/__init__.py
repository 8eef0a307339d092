"""Programs that outlive their process: checkpoints that survive a crash, and values released where they belong."""

from koinon._errors import (
    CSVKeyFieldnameNotFoundError,
    NotFilterableError,
    ProgramStateCorruptedError,
    ProgramStateError,
    ProgramStateExistsError,
    ProgramStateNotFoundError,
    ProgramStateStructureError,
    ProgramStateWriteError,
)
from koinon.program._checkpoint import FileProgramStateManager, ProgramStateManager
from koinon.program._container import pytree_from_bytes, pytree_to_bytes
from koinon.program._files import CSVFileReleaseManager, CSVSaveMode, JSONLinesReleaseManager
from koinon.program._pytree_files import load_pytree, save_pytree
from koinon.program._release import (
    DelayedReleaseManager,
    FilteringReleaseManager,
    GroupingReleaseManager,
    LoggingReleaseManager,
    MemoryReleaseManager,
    PeriodicReleaseManager,
    ReleaseManager,
)

__all__ = [
    "CSVFileReleaseManager",
    "CSVKeyFieldnameNotFoundError",
    "CSVSaveMode",
    "DelayedReleaseManager",
    "FileProgramStateManager",
    "FilteringReleaseManager",
    "GroupingReleaseManager",
    "JSONLinesReleaseManager",
    "LoggingReleaseManager",
    "MemoryReleaseManager",
    "NotFilterableError",
    "PeriodicReleaseManager",
    "ProgramStateCorruptedError",
    "ProgramStateError",
    "ProgramStateExistsError",
    "ProgramStateManager",
    "ProgramStateNotFoundError",
    "ProgramStateStructureError",
    "ProgramStateWriteError",
    "ReleaseManager",
    "load_pytree",
    "pytree_from_bytes",
    "pytree_to_bytes",
    "save_pytree",
]
