"""Programs that outlive their process: checkpoints that survive a crash, and values released where they belong."""

from koinon._errors import CSVKeyFieldnameNotFoundError as CSVKeyFieldnameNotFoundError
from koinon._errors import NotFilterableError as NotFilterableError
from koinon._errors import ProgramStateCorruptedError as ProgramStateCorruptedError
from koinon._errors import ProgramStateError as ProgramStateError
from koinon._errors import ProgramStateExistsError as ProgramStateExistsError
from koinon._errors import ProgramStateNotFoundError as ProgramStateNotFoundError
from koinon._errors import ProgramStateStructureError as ProgramStateStructureError
from koinon._errors import ProgramStateWriteError as ProgramStateWriteError
from koinon.program._checkpoint import FileProgramStateManager as FileProgramStateManager
from koinon.program._checkpoint import ProgramStateManager as ProgramStateManager
from koinon.program._container import pytree_from_bytes as pytree_from_bytes
from koinon.program._container import pytree_to_bytes as pytree_to_bytes
from koinon.program._files import CSVFileReleaseManager as CSVFileReleaseManager
from koinon.program._files import CSVSaveMode as CSVSaveMode
from koinon.program._files import JSONLinesReleaseManager as JSONLinesReleaseManager
from koinon.program._pytree_files import load_pytree as load_pytree
from koinon.program._pytree_files import save_pytree as save_pytree
from koinon.program._release import DelayedReleaseManager as DelayedReleaseManager
from koinon.program._release import FilteringReleaseManager as FilteringReleaseManager
from koinon.program._release import GroupingReleaseManager as GroupingReleaseManager
from koinon.program._release import LoggingReleaseManager as LoggingReleaseManager
from koinon.program._release import MemoryReleaseManager as MemoryReleaseManager
from koinon.program._release import PeriodicReleaseManager as PeriodicReleaseManager
from koinon.program._release import ReleaseManager as ReleaseManager

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
