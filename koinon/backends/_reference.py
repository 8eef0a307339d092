"""The reference engine: what computations mean, in plain Python, one client after the other.

Nothing is compiled or fused. It is slow and meant to be obviously right: every other engine is tested against it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import ArgumentError
from koinon.backends._pieces import run_in_pieces
from koinon.backends._placed import AtClients, AtServer, SameAtClients, enter, has_rows, leave
from koinon.backends._results import FunctionResult, leave_engine
from koinon.backends._secure import check_moduli, check_secure_inputs, check_secure_total, python_integers
from koinon.computation import Computation
from koinon.computation import _ir as ir
from koinon.computation._evaluate import (
    SEQUENCE_HANDLERS,
    Closure,
    Evaluator,
    OperatorFunction,
    operand_types,
    tensor_types,
)
from koinon.computation._flat import flatten, leaf_types, unflatten
from koinon.computation._transfer import default_count, num_clients, sequence_of_rows
from koinon.types import FederatedType, FunctionType, SequenceType, Type, strip_placement


class ReferenceBackend:
    """Runs computations eagerly: the semantics of the language.

    Args:
      default_num_clients: how many clients there are in a call that has no argument placed at the clients.

    Raises:
      KoinonValueError: if that is no int, or negative.
    """

    def __init__(self, *, default_num_clients: int = 0) -> None:
        self.default_num_clients = default_count(default_num_clients)

    def __repr__(self) -> str:
        return f"ReferenceBackend(default_num_clients={self.default_num_clients})"

    def invoke(self, computation: Computation, argument: Any) -> Any:
        """Runs a computation on an argument given in a user's containers."""
        type_ = computation.type_signature
        counts: list[tuple[str, int]] = []
        value = None if type_.parameter is None else enter(type_.parameter, argument, "", counts)
        interpreter = Interpreter(counts, self.default_num_clients, as_rows=has_rows(argument))
        return interpreter.call(type_, interpreter.evaluator.evaluate(computation.expression, {}), value)

    def pass_through(self, type_: FederatedType, value: Any, *, as_rows: bool = False) -> Any:
        """The values of clients as they come back where nothing is done to them; `as_rows` gives them stacked."""
        return leave(type_, enter(type_, value, "", []), as_rows=as_rows)


class Interpreter:
    """The meaning of the operators for one number of clients.

    Args:
      counts: the number of values in each argument that is placed at the clients, with its path.
      default_num_clients: how many clients there are where no argument tells.
      as_rows: whether results at the clients come back stacked.
    """

    def __init__(self, counts: list[tuple[str, int]], default_num_clients: int, *, as_rows: bool = False) -> None:
        self.counts = counts
        self.as_rows = as_rows
        self.count = num_clients(counts, default_num_clients)
        self.evaluator = Evaluator(
            SEQUENCE_HANDLERS
            | {
                "federated_broadcast": lambda _, v: SameAtClients(v.value),
                "federated_map": self._map,
                "federated_zip": self._zip,
                "federated_eval_at_clients": lambda _, f: AtClients([f(None) for _ in range(self.count)]),
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
            },
            run_in_pieces,
        )

    def call(self, type_: FunctionType, function: Callable[[Any], Any], value: Any) -> Any:
        """The result of a function of this type, in a user's containers."""
        if type_.parameter is not None:
            value = self._with_functions(type_.parameter, value)
        return leave_engine(type_.result, function(value), self._leave)

    def _with_functions(self, type_: Type, value: Any) -> Any:
        """An argument with the computations in it as functions."""
        if isinstance(type_, FunctionType):
            return self.evaluator.evaluate(value, {})
        if isinstance(value, tuple):
            fields = [field for _, field in type_.items()]  # pyright: ignore[reportAttributeAccessIssue]
            return tuple([self._with_functions(field, v) for field, v in zip(fields, value, strict=True)])
        return value

    def _leave(self, type_: FederatedType | FunctionType, value: Any) -> Any:
        if isinstance(type_, FederatedType):
            return leave(type_, value, as_rows=self.as_rows)
        return FunctionResult(type_, lambda argument: self._call_result(type_, value, argument))

    def _call_result(self, type_: FunctionType, function: Any, argument: Any) -> Any:
        """A call of a function that was a result; its arguments may be the first to tell the number of clients."""
        counts = [*self.counts]
        value = None if type_.parameter is None else enter(type_.parameter, argument, "", counts)
        interpreter = Interpreter(counts, self.count)
        return interpreter.call(type_, interpreter.rebound(function), value)

    def rebound(self, value: Any) -> Any:
        """A value with the functions in it evaluated here from now on."""
        match value:
            case tuple():
                return tuple([self.rebound(field) for field in value])
            case Closure():
                scope = {name: self.rebound(captured) for name, captured in value.scope.items()}
                return Closure(self.evaluator, value.node, scope)
            case OperatorFunction():
                return self.evaluator.evaluate(value.node, {})
            case _:
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
        return AtClients([_map_placed(argument, lambda leaf, i=i: self._each(leaf)[i]) for i in range(self.count)])

    def _rows(self, type_: Type, value: Any) -> list[list[Any]]:
        """The flat leaves of each client's value."""
        assert isinstance(type_, FederatedType)
        return [flatten(type_.member, element) for element in self._each(value)]

    def _exact_rows(self, operator: str, type_: Type, value: Any) -> list[list[np.ndarray]]:
        """The flat leaves of each client's integers, which never overflow."""
        return [[python_integers(operator, leaf) for leaf in row] for row in self._rows(type_, value)]

    def _sum(self, intrinsic: ir.Intrinsic, value: Any) -> AtServer:
        member = strip_placement(intrinsic.type.result)
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
        member = strip_placement(intrinsic.type.result)
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

    def _extremum(
        self, intrinsic: ir.Intrinsic, value: Any, op: Callable[..., Any], start: Callable[..., Any]
    ) -> AtServer:
        member = strip_placement(intrinsic.type.result)
        rows = self._rows(_parameter(intrinsic), value)
        if not rows:
            return AtServer(
                unflatten(member, [jnp.full(t.shape, start(t.dtype), t.dtype) for t in tensor_types(member)])
            )
        return AtServer(unflatten(member, [functools.reduce(op, column) for column in zip(*rows, strict=True)]))

    def _aggregate(self, intrinsic: ir.Intrinsic, argument: Any) -> AtServer:
        value, zero, accumulate, _, report = argument
        accumulator = zero
        for element in self._each(value):
            accumulator = accumulate((accumulator, element))
        return AtServer(report(accumulator))

    def _collect(self, intrinsic: ir.Intrinsic, value: Any) -> AtServer:
        sequence_type = strip_placement(intrinsic.type.result)
        assert isinstance(sequence_type, SequenceType)
        rows = self._rows(_parameter(intrinsic), value)
        return AtServer(sequence_of_rows(sequence_type, rows))

    def _secure_sum(self, intrinsic: ir.Intrinsic, argument: Any) -> AtServer:
        value, bound = argument
        value_type, _ = operand_types(intrinsic)
        member = strip_placement(value_type)
        rows = self._exact_rows(intrinsic.name, value_type, value)
        bounds = _bounds(intrinsic, bound)
        if intrinsic.name.endswith("bitwidth"):
            bounds = [2 ** min(max(bits, 0), _MOST_BITS) - 1 for bits in bounds]
        check_secure_inputs(intrinsic.name, rows, bounds)
        totals = []
        for i, leaf in enumerate(tensor_types(member)):
            total = np.zeros(leaf.shape, object) + sum((row[i] for row in rows), start=np.zeros(leaf.shape, object))
            check_secure_total(intrinsic.name, total, leaf.dtype)
            totals.append(jnp.asarray(np.asarray(total).astype(leaf.dtype)))
        return AtServer(unflatten(member, totals))

    def _secure_modular_sum(self, intrinsic: ir.Intrinsic, argument: Any) -> AtServer:
        value, modulus = argument
        value_type, _ = operand_types(intrinsic)
        member = strip_placement(value_type)
        leaves = tensor_types(member)
        moduli = _bounds(intrinsic, modulus)
        check_moduli(intrinsic.name, moduli, [leaf.dtype for leaf in leaves])
        rows = self._exact_rows(intrinsic.name, value_type, value)
        totals = []
        for i, leaf in enumerate(leaves):
            total = sum((row[i] for row in rows), start=np.zeros(leaf.shape, object)) % moduli[i]
            totals.append(jnp.asarray(np.asarray(total).astype(leaf.dtype)))
        return AtServer(unflatten(member, totals))

    def _split_key(self, intrinsic: ir.Intrinsic, key: AtServer) -> AtClients:
        return AtClients([jax.random.fold_in(key.value, i) for i in range(self.count)])

    def _select(self, intrinsic: ir.Intrinsic, argument: Any) -> AtClients:
        keys, _, server_value, function = argument
        sequence_type = strip_placement(intrinsic.type.result)
        assert isinstance(sequence_type, SequenceType)
        sequences = []
        for client_keys in self._each(keys):
            slices = [function((server_value.value, key)) for key in client_keys]
            rows = [flatten(sequence_type.element, piece) for piece in slices]
            sequences.append(sequence_of_rows(sequence_type, rows))
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
            chosen = tuple([pick(operand) for operand in operands])
            return handler(local, chosen if isinstance(argument, tuple) else chosen[0])

        if isinstance(placed[0], AtServer):
            return AtServer(run(lambda operand: operand.value if isinstance(operand, AtServer) else operand))
        at_clients = (AtClients, SameAtClients)
        return AtClients(
            [run(lambda o, i=i: self._each(o)[i] if isinstance(o, at_clients) else o) for i in range(self.count)]
        )


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


_MOST_BITS = 64  # those of the widest dtype


def _bounds(intrinsic: ir.Intrinsic, bound: Any) -> list[int]:
    """The bound of each leaf of a secure sum."""
    value_type, bound_type = operand_types(intrinsic)
    bounds = [int(python_integers(intrinsic.name, leaf)) for leaf in flatten(bound_type, bound)]
    return [bounds[min(i, len(bounds) - 1)] for i in range(len(leaf_types(value_type)))]


def _placed_leaves(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return [leaf for field in value for leaf in _placed_leaves(field)]
    return [value]


def _map_placed(value: Any, fn: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple):
        return tuple([_map_placed(field, fn) for field in value])
    return fn(value)


def _greatest(dtype: Any) -> Any:
    return jnp.iinfo(dtype).max if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).max


def _least(dtype: Any) -> Any:
    return jnp.iinfo(dtype).min if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).min
