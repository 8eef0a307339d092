"""The reference engine: what computations mean, in plain Python, one client after the other.

Nothing is compiled or fused. It is slow and meant to be obviously right: every other engine is tested against it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import ArgumentError
from koinon.backends._results import leave_engine, result_to_user
from koinon.backends._secure import check_secure_inputs, check_secure_total
from koinon.computation import Cohort, Computation
from koinon.computation import _ir as ir
from koinon.computation._arguments import Unpacked
from koinon.computation._evaluate import SEQUENCE_HANDLERS, Evaluator, operand_types, tensor_types
from koinon.computation._flat import flatten, leaf_types, unflatten
from koinon.computation._sequence import PackedView, Sequence
from koinon.computation._transfer import clients_values, fields_of, local_value, num_clients
from koinon.types import (
    CLIENTS,
    FederatedType,
    FunctionType,
    SequenceType,
    Type,
    contains_federated_types,
    strip_placement,
)


@dataclasses.dataclass(frozen=True)
class AtServer:
    """A value of the server."""

    value: Any


@dataclasses.dataclass(frozen=True)
class AtClients:
    """One value for each client, in the order of the cohort."""

    values: list[Any]


@dataclasses.dataclass(frozen=True)
class SameAtClients:
    """A value that every client has, however many there are."""

    value: Any


class ReferenceBackend:
    """Runs computations eagerly: the semantics of the language.

    Args:
      default_num_clients: how many clients there are in a call that has no argument placed at the clients.
    """

    def __init__(self, *, default_num_clients: int = 0) -> None:
        self.default_num_clients = default_num_clients

    def __repr__(self) -> str:
        return f"ReferenceBackend(default_num_clients={self.default_num_clients})"

    def invoke(self, computation: Computation, argument: Any) -> Any:
        """Runs a computation on an argument given in a user's containers."""
        parameter = computation.type_signature.parameter
        counts: list[tuple[str, int]] = []
        value = None
        if parameter is not None:
            value = self._enter(parameter, argument, "", counts)
        interpreter = Interpreter(num_clients(counts, self.default_num_clients))
        if parameter is not None:
            value = interpreter.resolve_functions(parameter, value)
        function = interpreter.evaluator.evaluate(computation.expression, {})
        return leave_engine(computation.type_signature.result, function(value), _leave)

    def pass_through(self, type_: FederatedType, value: Any) -> list[Any]:
        """The values of clients as they come back where nothing is done to them."""
        return _leave(type_, self._enter(type_, value, "", []))

    def _enter(self, type_: Type, value: Any, path: str, counts: list[tuple[str, int]]) -> Any:
        """An argument as the interpreter holds it; notes the numbers of clients."""
        if not isinstance(type_, FederatedType):
            if isinstance(value, Unpacked) or contains_federated_types(type_):
                return tuple([self._enter(t, v, path + p, counts) for p, t, v in fields_of(type_, value)])
            return local_value(type_, value, path)
        if type_.placement is not CLIENTS:
            return AtServer(local_value(type_.member, value, path))
        if type_.all_equal:
            return SameAtClients(local_value(type_.member, value, path))
        values = clients_values(type_, value, path)
        counts.append((path, len(values)))
        if isinstance(values, Cohort):
            return AtClients(_cohort_sequences(values))
        return AtClients([local_value(type_.member, v, f"{path}[{i}]") for i, v in enumerate(values)])


def _cohort_sequences(cohort: Cohort) -> list[Sequence]:
    """Each client's examples in buffers of their own."""
    sequences = []
    for offset, length in zip(cohort.offsets.tolist(), cohort.lengths.tolist(), strict=True):
        buffers = tuple(jnp.asarray(buffer[offset : offset + length]) for buffer in cohort.packed.buffers)
        view = PackedView(cohort.packed.element_type, buffers, jnp.int32(0), jnp.int32(length))
        sequences.append(Sequence(view))
    return sequences


def _leave(type_: FederatedType, value: Any) -> Any:
    """A placed result as a user sees it."""
    if isinstance(value, AtClients):
        return [result_to_user(type_.member, element) for element in value.values]
    return result_to_user(type_.member, value.value)


class Interpreter:
    """The meaning of the operators for one number of clients."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.evaluator = Evaluator(
            SEQUENCE_HANDLERS
            | {
                "federated_broadcast": lambda _, v: SameAtClients(v.value),
                "federated_map": self._map,
                "federated_zip": self._zip,
                "federated_eval_at_clients": lambda _, f: AtClients([f(None) for _ in range(count)]),
                "federated_eval_at_server": lambda _, f: AtServer(f(None)),
                "federated_value_at_clients": lambda _, v: SameAtClients(v),
                "federated_value_at_server": lambda _, v: AtServer(v),
                "federated_sum": self._sum,
                "federated_mean": self._mean,
                "federated_weighted_mean": self._weighted_mean,
                "federated_min": lambda i, v: self._extremum(i, v, jnp.minimum, _greatest),
                "federated_max": lambda i, v: self._extremum(i, v, jnp.maximum, _least),
                "federated_aggregate": self._aggregate,
                "federated_collect": self._collect,
                "federated_secure_sum": self._secure_sum,
                "federated_secure_sum_bitwidth": self._secure_sum,
                "federated_secure_modular_sum": self._secure_modular_sum,
                "federated_split_key": self._split_key,
                "federated_select": self._select,
                "federated_secure_select": self._select,
                "sequence_map": self._on_placed_sequence,
                "sequence_reduce": self._on_placed_sequence,
                "sequence_sum": self._on_placed_sequence,
            }
        )

    def resolve_functions(self, type_: Type, value: Any) -> Any:
        """The argument with the computations in it as functions."""
        if isinstance(type_, FunctionType):
            return self.evaluator.evaluate(value, {})
        if isinstance(value, tuple):
            fields = [field for _, field in type_.items()]  # pyright: ignore[reportAttributeAccessIssue]
            return tuple([self.resolve_functions(field, v) for field, v in zip(fields, value, strict=True)])
        return value

    def _each(self, value: AtClients | SameAtClients) -> list[Any]:
        return [value.value] * self.count if isinstance(value, SameAtClients) else value.values

    def _map(self, intrinsic: ir.Intrinsic, argument: Any) -> Any:
        function, value = argument
        if isinstance(value, AtServer):
            return AtServer(function(value.value))
        return AtClients([function(element) for element in self._each(value)])

    def _zip(self, intrinsic: ir.Intrinsic, argument: Any) -> Any:
        leaves = _placed_leaves(argument)
        if isinstance(leaves[0], AtServer):
            return AtServer(_map_placed(argument, lambda leaf: leaf.value))
        if all(isinstance(leaf, SameAtClients) for leaf in leaves):
            return AtClients([_map_placed(argument, lambda leaf: leaf.value)] * self.count)
        return AtClients(
            [_map_placed(argument, lambda leaf, i=i: self._each(leaf)[i]) for i in range(self.count)]
        )

    def _rows(self, type_: Type, value: Any) -> list[list[Any]]:
        """The flat leaves of each client's value."""
        assert isinstance(type_, FederatedType)
        return [flatten(type_.member, element) for element in self._each(value)]

    def _sum(self, intrinsic: ir.Intrinsic, value: Any) -> AtServer:
        member = _member(intrinsic.type.result)
        total = [jnp.zeros(t.shape, t.dtype) for t in tensor_types(member)]
        for row in self._rows(_parameter(intrinsic), value):
            total = [a + b for a, b in zip(total, row, strict=True)]
        return AtServer(unflatten(member, total))

    def _mean(self, intrinsic: ir.Intrinsic, value: Any) -> AtServer:
        rows = self._rows(_parameter(intrinsic), value)
        return self._average(intrinsic, rows, [jnp.float32(1.0)] * len(rows))

    def _weighted_mean(self, intrinsic: ir.Intrinsic, argument: Any) -> AtServer:
        value, weight = argument
        value_type, weight_type = operand_types(intrinsic)
        weights = [row[0] for row in self._rows(weight_type, weight)]
        return self._average(intrinsic, self._rows(value_type, value), weights)

    def _average(self, intrinsic: ir.Intrinsic, rows: list[list[Any]], weights: list[Any]) -> AtServer:
        member = _member(intrinsic.type.result)
        results = []
        for i, leaf in enumerate(tensor_types(member)):
            # Sums of many small numbers lose too much in half precision.
            wide = jnp.promote_types(leaf.dtype, jnp.float32)
            total, weight_sum = jnp.zeros(leaf.shape, wide), jnp.zeros((), wide)
            for row, weight in zip(rows, weights, strict=True):
                total = total + row[i].astype(wide) * weight.astype(wide)
                weight_sum = weight_sum + weight.astype(wide)
            results.append((total / weight_sum).astype(leaf.dtype))
        return AtServer(unflatten(member, results))

    def _extremum(self, intrinsic: ir.Intrinsic, value: Any, op: Callable[..., Any], start: Callable[..., Any]) -> AtServer:
        member = _member(intrinsic.type.result)
        result = [jnp.full(t.shape, start(t.dtype), t.dtype) for t in tensor_types(member)]
        for row in self._rows(_parameter(intrinsic), value):
            result = [op(a, b) for a, b in zip(result, row, strict=True)]
        return AtServer(unflatten(member, result))

    def _aggregate(self, intrinsic: ir.Intrinsic, argument: Any) -> AtServer:
        value, zero, accumulate, _, report = argument
        accumulator = zero
        for element in self._each(value):
            accumulator = accumulate((accumulator, element))
        return AtServer(report(accumulator))

    def _collect(self, intrinsic: ir.Intrinsic, value: Any) -> AtServer:
        sequence_type = _member(intrinsic.type.result)
        assert isinstance(sequence_type, SequenceType)
        rows = self._rows(_parameter(intrinsic), value)
        return AtServer(_sequence_of_rows(sequence_type, rows))

    def _secure_sum(self, intrinsic: ir.Intrinsic, argument: Any) -> AtServer:
        value, bound = argument
        value_type, bound_type = operand_types(intrinsic)
        member = _member(value_type)
        rows = [[np.asarray(leaf).astype(object) for leaf in row] for row in self._rows(value_type, value)]
        bounds = flatten(bound_type, bound)
        bounds = [int(bounds[min(i, len(bounds) - 1)]) for i in range(len(leaf_types(member)))]
        if intrinsic.name.endswith("bitwidth"):
            bounds = [2**bits - 1 for bits in bounds]
        check_secure_inputs(intrinsic.name, rows, bounds)
        totals = []
        for i, leaf in enumerate(tensor_types(member)):
            total = np.zeros(leaf.shape, object) + sum((row[i] for row in rows), start=np.zeros(leaf.shape, object))
            check_secure_total(intrinsic.name, total, leaf.dtype)
            totals.append(jnp.asarray(np.asarray(total).astype(leaf.dtype)))
        return AtServer(unflatten(member, totals))

    def _secure_modular_sum(self, intrinsic: ir.Intrinsic, argument: Any) -> AtServer:
        value, modulus = argument
        value_type, modulus_type = operand_types(intrinsic)
        member = _member(value_type)
        moduli = flatten(modulus_type, modulus)
        totals = []
        for i, leaf in enumerate(tensor_types(member)):
            total = np.zeros(leaf.shape, object)
            for row in self._rows(value_type, value):
                total = total + np.asarray(row[i]).astype(object)
            total = total % int(moduli[min(i, len(moduli) - 1)])
            totals.append(jnp.asarray(np.asarray(total).astype(leaf.dtype)))
        return AtServer(unflatten(member, totals))

    def _split_key(self, intrinsic: ir.Intrinsic, key: AtServer) -> AtClients:
        return AtClients([jax.random.fold_in(key.value, i) for i in range(self.count)])

    def _select(self, intrinsic: ir.Intrinsic, argument: Any) -> AtClients:
        keys, _, server_value, function = argument
        sequence_type = _member(intrinsic.type.result)
        assert isinstance(sequence_type, SequenceType)
        sequences = []
        for client_keys in self._each(keys):
            slices = [function((server_value.value, key)) for key in client_keys]
            rows = [flatten(sequence_type.element, piece) for piece in slices]
            sequences.append(_sequence_of_rows(sequence_type, rows))
        return AtClients(sequences)

    def _on_placed_sequence(self, intrinsic: ir.Intrinsic, argument: Any) -> Any:
        """An operator on sequences, applied where the sequence is placed."""
        handler = SEQUENCE_HANDLERS[intrinsic.name]
        operands = argument if isinstance(argument, tuple) else (argument,)
        placed = [operand for operand in operands if isinstance(operand, (AtServer, AtClients, SameAtClients))]
        if not placed:
            return handler(intrinsic, argument)
        local = strip_placements(intrinsic)

        def run(pick: Callable[[Any], Any]) -> Any:
            chosen = tuple([pick(operand) if operand in placed else operand for operand in operands])
            return handler(local, chosen if isinstance(argument, tuple) else chosen[0])

        if isinstance(placed[0], AtServer):
            return AtServer(run(lambda operand: operand.value))
        return AtClients([run(lambda operand, i=i: self._each(operand)[i]) for i in range(self.count)])


def strip_placements(intrinsic: ir.Intrinsic) -> ir.Intrinsic:
    """An operator on placed sequences as the operator on the sequences themselves."""
    stripped = strip_placement(intrinsic.type)
    assert isinstance(stripped, FunctionType)
    return ir.Intrinsic(intrinsic.name, stripped)


def _parameter(intrinsic: ir.Intrinsic) -> Type:
    parameter = intrinsic.type.parameter
    if parameter is None:
        raise ArgumentError(f"The operator {intrinsic.name} takes an operand.")
    return parameter


def _member(type_: Type) -> Type:
    return type_.member if isinstance(type_, FederatedType) else type_


def _placed_leaves(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return [leaf for field in value for leaf in _placed_leaves(field)]
    return [value]


def _map_placed(value: Any, fn: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple):
        return tuple([_map_placed(field, fn) for field in value])
    return fn(value)


def _sequence_of_rows(type_: SequenceType, rows: list[list[Any]]) -> Sequence:
    leaves = tensor_types(type_.element)
    buffers = tuple(
        jnp.stack([row[i] for row in rows]) if rows else jnp.zeros((0, *leaf.shape), leaf.dtype)
        for i, leaf in enumerate(leaves)
    )
    return Sequence(PackedView(type_.element, buffers, jnp.int32(0), jnp.int32(len(rows))))


def _greatest(dtype: Any) -> Any:
    return jnp.iinfo(dtype).max if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).max


def _least(dtype: Any) -> Any:
    return jnp.iinfo(dtype).min if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).min
