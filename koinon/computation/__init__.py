"""Typed computations over placed values: the decorators, the operators, and what engines need of them."""

from koinon.computation._annotations import annotate_clip, annotate_noise
from koinon.computation._arguments import Unpacked
from koinon.computation._computation import Computation, PolymorphicComputation
from koinon.computation._context import Backend, current_backend, set_default_backend, using_backend
from koinon.computation._data import ClientRows, Cohort, PackedSequences
from koinon.computation._federated import federated_computation
from koinon.computation._intrinsics import INTRINSICS, IntrinsicRow, Route
from koinon.computation._local import jax_computation
from koinon.computation._operators import (
    federated_aggregate,
    federated_broadcast,
    federated_collect,
    federated_eval,
    federated_map,
    federated_max,
    federated_mean,
    federated_min,
    federated_secure_modular_sum,
    federated_secure_select,
    federated_secure_sum,
    federated_secure_sum_bitwidth,
    federated_select,
    federated_split_key,
    federated_sum,
    federated_value,
    federated_zip,
    sequence_map,
    sequence_reduce,
    sequence_sum,
)
from koinon.computation._sequence import Sequence
from koinon.computation._value import Value, to_value
from koinon.computation._views import Batch

__all__ = [
    "INTRINSICS",
    "Backend",
    "Batch",
    "ClientRows",
    "Cohort",
    "Computation",
    "IntrinsicRow",
    "PackedSequences",
    "PolymorphicComputation",
    "Route",
    "Sequence",
    "Unpacked",
    "Value",
    "annotate_clip",
    "annotate_noise",
    "current_backend",
    "federated_aggregate",
    "federated_broadcast",
    "federated_collect",
    "federated_computation",
    "federated_eval",
    "federated_map",
    "federated_max",
    "federated_mean",
    "federated_min",
    "federated_secure_modular_sum",
    "federated_secure_select",
    "federated_secure_sum",
    "federated_secure_sum_bitwidth",
    "federated_select",
    "federated_split_key",
    "federated_sum",
    "federated_value",
    "federated_zip",
    "jax_computation",
    "sequence_map",
    "sequence_reduce",
    "sequence_sum",
    "set_default_backend",
    "to_value",
    "using_backend",
]
