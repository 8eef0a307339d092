"""koinon: typed federated computation, compiled to one XLA program per round.

>>> import jax.numpy as jnp, koinon as ko
>>> @ko.jax_computation(jnp.float32)
... def to_fahrenheit(celsius):
...     return celsius * 1.8 + 32.0
>>> @ko.federated_computation(ko.types.at_clients(jnp.float32))
... def mean_temperature(readings):
...     return ko.federated_mean(ko.federated_map(to_fahrenheit, readings))
>>> str(mean_temperature.type_signature)
'({float32}@CLIENTS -> float32@SERVER)'
>>> round(float(mean_temperature([20.0, 21.0, 22.0])), 4)
69.8
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from koinon import backends, compiler, errors, types
from koinon.computation import (
    Batch,
    Cohort,
    Computation,
    PackedSequences,
    PolymorphicComputation,
    Sequence,
    Value,
    annotate_clip,
    annotate_noise,
    federated_aggregate,
    federated_broadcast,
    federated_collect,
    federated_computation,
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
    jax_computation,
    sequence_map,
    sequence_reduce,
    sequence_sum,
)
from koinon.types import CLIENTS, SERVER, to_type

if TYPE_CHECKING:
    from koinon import aggregators, learning, privacy, program, secure, simulation, templates, testing

__version__ = "0.1.0"

__all__ = [
    "CLIENTS",
    "SERVER",
    "Batch",
    "Cohort",
    "Computation",
    "PackedSequences",
    "PolymorphicComputation",
    "Sequence",
    "Value",
    "aggregators",
    "annotate_clip",
    "annotate_noise",
    "backends",
    "compiler",
    "errors",
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
    "learning",
    "privacy",
    "program",
    "secure",
    "sequence_map",
    "sequence_reduce",
    "sequence_sum",
    "simulation",
    "templates",
    "testing",
    "to_type",
    "types",
]

# Imported when they are first used: a program that needs the language alone does not wait for optax.
_LAZY = frozenset({"aggregators", "learning", "privacy", "program", "secure", "simulation", "templates", "testing"})


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"koinon.{name}")
    elsewhere = f"; there is koinon.types.{name}" if name in types.__all__ else ""
    raise AttributeError(f"module 'koinon' has no attribute {name!r}{elsewhere}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted({*__all__, *[name for name in globals() if name.startswith("__")]})
