"""The types of koinon: what values are, and where they live.

A type is an immutable value. `str` prints it in the notation of TensorFlow Federated, `parse` reads it back,
`to_type` makes one of what a JAX user has in hand:

    float32            float32[?,784]        key<fry>             tensors; `?` is an unknown dimension; PRNG keys
    <float32,int32>    <x=float32[784],y=int32>                   structures, with names or without
    T*                                                            sequences
    (T -> U)           ( -> U)                                    functions
    T@SERVER           {T}@CLIENTS           T@CLIENTS            one value; one for each client; the same for each

>>> from koinon import types
>>> str(types.at_clients(types.SequenceType({"x": types.TensorType("float32", (784,))})))
'{<x=float32[784]>*}@CLIENTS'
"""

from koinon.types._base import Type
from koinon.types._concrete import check_concrete_instance_of
from koinon.types._containers import MappingContainer, PyTreeContainer, from_container, to_container
from koinon.types._convert import infer_type, to_type
from koinon.types._parse import parse
from koinon.types._placements import CLIENTS, SERVER, PlacementLiteral, placement_from_uri
from koinon.types._predicates import (
    check_is_structure_of_integers,
    check_mean_compatible,
    check_min_max_compatible,
    check_sum_compatible,
    contains_federated_types,
    contains_tensor_types,
    is_mean_compatible,
    is_min_max_compatible,
    is_structure_of_floats,
    is_structure_of_integers,
    is_structure_of_sequences,
    is_structure_of_tensors,
    is_sum_compatible,
    preorder_types,
    strip_placement,
    transform_type_postorder,
    type_contains,
    type_contains_only,
    type_count,
)
from koinon.types._registry import container_name, register_container, registered_container
from koinon.types._relate import Difference, first_difference
from koinon.types._struct import StructType, StructWithPythonType
from koinon.types._tree import structure_from_tensor_type_tree
from koinon.types._types import (
    AbstractType,
    FederatedType,
    FunctionType,
    PlacementType,
    SequenceType,
    TensorType,
    at_clients,
    at_server,
)

__all__ = [
    "CLIENTS",
    "SERVER",
    "AbstractType",
    "Difference",
    "FederatedType",
    "FunctionType",
    "MappingContainer",
    "PlacementLiteral",
    "PlacementType",
    "PyTreeContainer",
    "SequenceType",
    "StructType",
    "StructWithPythonType",
    "TensorType",
    "Type",
    "at_clients",
    "at_server",
    "check_concrete_instance_of",
    "check_is_structure_of_integers",
    "check_mean_compatible",
    "check_min_max_compatible",
    "check_sum_compatible",
    "container_name",
    "contains_federated_types",
    "contains_tensor_types",
    "first_difference",
    "from_container",
    "infer_type",
    "is_mean_compatible",
    "is_min_max_compatible",
    "is_structure_of_floats",
    "is_structure_of_integers",
    "is_structure_of_sequences",
    "is_structure_of_tensors",
    "is_sum_compatible",
    "parse",
    "placement_from_uri",
    "preorder_types",
    "register_container",
    "registered_container",
    "strip_placement",
    "structure_from_tensor_type_tree",
    "to_container",
    "to_type",
    "transform_type_postorder",
    "type_contains",
    "type_contains_only",
    "type_count",
]
