"""Simulations: federated datasets, ways to make them of centralized ones, and ways to choose a round's clients."""

from koinon.simulation import attacks, baselines, datasets, system, tasks
from koinon.simulation._client_data import ClientData, FederatedDataset
from koinon.simulation._files import FilePerUserClientData
from koinon.simulation._generated import GeneratedClientData
from koinon.simulation._hdf5 import HDF5ClientData
from koinon.simulation._loop import (
    EVALUATION_METRICS_PREFIX,
    EVALUATION_TIME_KEY,
    ROUND_NUMBER_KEY,
    TRAINING_TIME_KEY,
    run_training_process,
)
from koinon.simulation._partition import (
    by_key,
    by_label,
    by_sizes,
    dirichlet_labels,
    dirichlet_sizes,
    exponential_sizes,
    iid,
    linear_sizes,
    shards,
)
from koinon.simulation._sampling import (
    build_availability_sampling_fn,
    build_poisson_sampling_fn,
    build_uniform_sampling_fn,
    build_weighted_sampling_fn,
    periodic_availability,
)
from koinon.simulation._sql import SqlClientData, save_to_sql_client_data
from koinon.simulation._streamed import StreamedClientData
from koinon.simulation._summary import ClientDataSummary
from koinon.simulation._tasks import Task
from koinon.simulation._tff_sql import load_and_parse_sql_client_data

__all__ = [
    "EVALUATION_METRICS_PREFIX",
    "EVALUATION_TIME_KEY",
    "ROUND_NUMBER_KEY",
    "TRAINING_TIME_KEY",
    "ClientData",
    "ClientDataSummary",
    "FederatedDataset",
    "FilePerUserClientData",
    "GeneratedClientData",
    "HDF5ClientData",
    "SqlClientData",
    "StreamedClientData",
    "Task",
    "attacks",
    "baselines",
    "build_availability_sampling_fn",
    "build_poisson_sampling_fn",
    "build_uniform_sampling_fn",
    "build_weighted_sampling_fn",
    "by_key",
    "by_label",
    "by_sizes",
    "datasets",
    "dirichlet_labels",
    "dirichlet_sizes",
    "exponential_sizes",
    "iid",
    "linear_sizes",
    "load_and_parse_sql_client_data",
    "periodic_availability",
    "run_training_process",
    "save_to_sql_client_data",
    "shards",
    "system",
    "tasks",
]
