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
    ReleasedValueNotFoundError,
)
from koinon.program._checkpoint import FileProgramStateManager, ProgramStateManager
from koinon.program._client_states import ClientStates, ClientStateStore
from koinon.program._container import pytree_from_bytes, pytree_to_bytes
from koinon.program._data_source import (
    Capability,
    DatasetDataSource,
    DatasetDataSourceIterator,
    FederatedDataSource,
    FederatedDataSourceIterator,
)
from koinon.program._federated_context import (
    FederatedContext,
    NativeFederatedContext,
    NativeValueReference,
    check_in_federated_context,
    contains_only_server_placed_data,
)
from koinon.program._files import CSVFileReleaseManager, CSVSaveMode, JSONLinesReleaseManager
from koinon.program._pytree_files import PytreeFileReleaseManager, load_pytree, save_pytree
from koinon.program._references import MaterializableValueReference, materialize_value, wait_for_values
from koinon.program._release import (
    DelayedReleaseManager,
    FilteringReleaseManager,
    GroupingReleaseManager,
    LoggingReleaseManager,
    MemoryReleaseManager,
    PeriodicReleaseManager,
    ReleaseManager,
)
from koinon.program._trackers import MLflowReleaseManager, TensorBoardReleaseManager, WandbReleaseManager

__all__ = [
    "CSVFileReleaseManager",
    "CSVKeyFieldnameNotFoundError",
    "CSVSaveMode",
    "Capability",
    "ClientStateStore",
    "ClientStates",
    "DatasetDataSource",
    "DatasetDataSourceIterator",
    "DelayedReleaseManager",
    "FederatedContext",
    "FederatedDataSource",
    "FederatedDataSourceIterator",
    "FileProgramStateManager",
    "FilteringReleaseManager",
    "GroupingReleaseManager",
    "JSONLinesReleaseManager",
    "LoggingReleaseManager",
    "MLflowReleaseManager",
    "MaterializableValueReference",
    "MemoryReleaseManager",
    "NativeFederatedContext",
    "NativeValueReference",
    "NotFilterableError",
    "PeriodicReleaseManager",
    "ProgramStateCorruptedError",
    "ProgramStateError",
    "ProgramStateExistsError",
    "ProgramStateManager",
    "ProgramStateNotFoundError",
    "ProgramStateStructureError",
    "ProgramStateWriteError",
    "PytreeFileReleaseManager",
    "ReleaseManager",
    "ReleasedValueNotFoundError",
    "TensorBoardReleaseManager",
    "WandbReleaseManager",
    "check_in_federated_context",
    "contains_only_server_placed_data",
    "load_pytree",
    "materialize_value",
    "pytree_from_bytes",
    "pytree_to_bytes",
    "save_pytree",
    "wait_for_values",
]
