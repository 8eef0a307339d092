"""The cost report: what a round moves, computes and holds, from types and programs alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError
from koinon.compiler._flops import Flops, count_flops
from koinon.compiler._monoids import monoid_of
from koinon.compiler._plan import Plan, needed_steps, plan
from koinon.compiler._rebuild import function_of
from koinon.compiler._steps import PlanValue, Step, plan_values
from koinon.computation import INTRINSICS, Computation, Route
from koinon.computation import _ir as ir
from koinon.computation._evaluate import SEQUENCE_HANDLERS, Evaluator
from koinon.computation._flat import flatten, leaf_types, unflatten
from koinon.types import CLIENTS, SequenceType, StructType, TensorType, Type, strip_placement

_SELECTS = ("federated_select", "federated_secure_select")
# What clients receive, and do not compute.
_RECEIVED = ("federated_broadcast", "federated_split_key", *_SELECTS)


@dataclasses.dataclass(frozen=True)
class PhaseCost:
    """What one exchange between the server and the clients costs.

    Attributes:
      bytes_down: what one client receives.
      bytes_up: what one client sends, uncompressed, and before any masking of secure sums.
      flops: what one client computes; each fold over its data is counted once for each step.
      steps: the steps of those folds.
      open_loops: how many loops were counted once because their end depends on values.
      accumulator_bytes: what the aggregations hold, whatever the number of clients.
      row_bytes: what is held of each client: what a later exchange or the result needs of it, or what is collected.
    """

    bytes_down: int
    bytes_up: int
    flops: float
    steps: tuple[int, ...]
    open_loops: int
    accumulator_bytes: int
    row_bytes: int


@dataclasses.dataclass(frozen=True)
class CostReport:
    """What a computation costs.

    Attributes:
      name: the name of the computation.
      clients: the number of clients.
      examples_per_client: the length of each client's sequences; None if none was stated.
      phases: the cost of each exchange.
    """

    name: str
    clients: int
    examples_per_client: int | None
    phases: tuple[PhaseCost, ...]

    @property
    def bytes_down(self) -> int:
        """What all clients receive in one run."""
        return self.clients * sum(phase.bytes_down for phase in self.phases)

    @property
    def bytes_up(self) -> int:
        """What all clients send in one run."""
        return self.clients * sum(phase.bytes_up for phase in self.phases)

    @property
    def flops(self) -> float:
        """What all clients compute in one run."""
        return self.clients * sum(phase.flops for phase in self.phases)

    @property
    def memory(self) -> int:
        """The bytes of all accumulators, and of all rows of all clients."""
        return sum(phase.accumulator_bytes + self.clients * phase.row_bytes for phase in self.phases)

    def __str__(self) -> str:
        examples = "" if self.examples_per_client is None else f", {self.examples_per_client} examples each"
        table: list[tuple[str, ...]] = [("", "down", "up", "flops", "accumulators", "rows")]
        for number, phase in enumerate(self.phases):
            sizes = [_bytes(n) for n in (phase.bytes_down, phase.bytes_up, phase.accumulator_bytes, phase.row_bytes)]
            table.append((f"phase {number}, one client", *sizes[:2], f"{phase.flops:.3g}", *sizes[2:]))
        held = sum(phase.accumulator_bytes for phase in self.phases)
        rows = self.clients * sum(phase.row_bytes for phase in self.phases)
        total = (_bytes(self.bytes_down), _bytes(self.bytes_up), f"{self.flops:.3g}", _bytes(held), _bytes(rows))
        table.append(("all clients", *total))
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *[c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]])
            for row in table
        ]
        notes = [f"phase {i}: folds of {_listed(p.steps)} steps" for i, p in enumerate(self.phases) if p.steps]
        notes += [
            f"phase {i}: {p.open_loops} loops whose end depends on values, each counted once"
            for i, p in enumerate(self.phases)
            if p.open_loops
        ]
        return "\n".join([f"cost of {self.name}: {self.clients} clients{examples}", "", *lines, *notes])


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _listed(steps: Iterable[int]) -> str:
    return ", ".join(str(step) for step in steps)


def cost_report(computation: Computation | Plan, *, clients: int, examples_per_client: int | None = None) -> CostReport:
    """Reports what a run moves, computes and holds, without running it.

    Bytes follow from types. Floating-point operations are those that XLA counts in the work of one client, compiled
    for the default device: a fold over a client's data is counted once for each of its steps, a loop whose end depends
    on values once, a branch as its more expensive side. The server's own work is not counted.

    Args:
      computation: a computation, or its plan.
      clients: the number of clients.
      examples_per_client: the length of each client's sequences, needed where the clients' data has sequences.

    Raises:
      KoinonValueError: where a number is missing or negative, or what is sent has an unknown dimension.
      NotCompilableError: where the computation has no plan.

    >>> import jax.numpy as jnp, koinon as ko
    >>> data = ko.types.at_clients(ko.types.SequenceType(ko.types.TensorType(jnp.float32, (8,))))
    >>> @ko.federated_computation(ko.types.at_server(ko.types.TensorType(jnp.float32, (8,))), data)
    ... def scores(weights, examples):
    ...     def work(data, w):
    ...         return data.reduce(0.0, lambda total, x: total + x @ w)
    ...     return ko.federated_sum(ko.federated_map(work, (examples, ko.federated_broadcast(weights))))
    >>> report = ko.compiler.cost_report(scores, clients=10, examples_per_client=100)
    >>> report.phases[0].bytes_down, report.phases[0].bytes_up, report.phases[0].steps
    (32, 4, (100,))
    """
    for name, number in (("clients", clients), ("examples_per_client", examples_per_client)):
        if number is not None and number < 0:
            raise KoinonValueError(f"A cost is computed for a number of {name} that is not negative.", found=number)
    lowered = computation if isinstance(computation, Plan) else plan(computation)
    counter = _Coster(lowered, examples_per_client)
    phases = [counter.phase(number) for number in range(len(lowered.phases))]
    while phases and phases[-1] == _NOTHING:
        phases.pop()
    return CostReport(lowered.name, clients, examples_per_client, tuple(phases))


_NOTHING = PhaseCost(0, 0, 0.0, (), 0, 0, 0)


class _Coster:
    def __init__(self, lowered: Plan, examples: int | None) -> None:
        self.plan = lowered
        self.examples = examples
        # The sequences that clients select have as many elements as they gave keys.
        self.slices = {
            step.output.index: leaf_types(step.operands[0].type)[0].num_elements or 0
            for step in lowered.steps()
            if step.operator in _SELECTS
        }

    def phase(self, number: int) -> PhaseCost:
        """The cost of one phase."""
        phase = self.plan.phases[number]
        received = [step.output for step in phase.clients if step.operator in _RECEIVED]
        asked = [step.operands[0] for step in phase.clients if step.operator in _SELECTS]
        sent = [value for step in phase.aggregations for value in _sent(step)]
        collected = [v for step in phase.aggregations if step.operator == "federated_collect" for v in _sent(step)]
        kept = self._kept(number)
        flops = self._flops(phase.clients, [*sent, *asked, *kept])
        return PhaseCost(
            bytes_down=sum(self._bytes(value, "what is sent to the clients") for value in received),
            bytes_up=sum(self._bytes(value, "what is aggregated") for value in [*sent, *asked]),
            flops=flops.total,
            steps=tuple(flops.steps),
            open_loops=flops.open_loops,
            accumulator_bytes=sum(self._accumulator_bytes(step) for step in phase.aggregations),
            row_bytes=sum(self._bytes(value, "what is kept of each client") for value in [*kept, *collected]),
        )

    def _kept(self, number: int) -> list[PlanValue]:
        """The clients' values of a phase that a later phase or the result needs, and that are each client's own."""
        later = [
            step.operands for phase in self.plan.phases[number + 1 :] for step in (*phase.clients, *phase.aggregations)
        ]
        needed = {value.index for value in plan_values((*later, self.plan.result))}
        shared = ("federated_broadcast", "federated_value_at_clients")
        steps = [step for step in self.plan.phases[number].clients if step.operator not in shared]
        return [value for step in steps for value in plan_values(step.output) if value.index in needed]

    def _bytes(self, value: PlanValue, what: str) -> int:
        """The bytes of a client's value."""
        return sum(self._type_bytes(type_, self._length(value, type_), what) for type_ in _parts(value.member))

    def _type_bytes(self, type_: Type, length: int, what: str) -> int:
        if isinstance(type_, StructType):
            return sum(self._type_bytes(field, length, what) for field in type_)
        if isinstance(type_, SequenceType):
            return length * self._type_bytes(type_.element, length, what)
        assert isinstance(type_, TensorType)
        if type_.num_elements is None:
            raise KoinonValueError(
                f"The size of {what} is not known.", found=type_, hint="give the type without unknown dimensions"
            )
        dtype: Any = type_.dtype
        return type_.num_elements * dtype.itemsize

    def _length(self, value: PlanValue, type_: Type) -> int:
        """How many elements a part of a client's value has, where it is a sequence."""
        if not isinstance(type_, SequenceType):
            return 0
        if value.index in self.slices:
            return self.slices[value.index]
        if self.examples is None:
            raise KoinonValueError(
                "The length of the clients' sequences is not known.",
                found=value.type,
                hint="give examples_per_client=...",
            )
        return self.examples

    def _accumulator_bytes(self, step: Step) -> int:
        if step.operator == "federated_collect":
            return 0
        if INTRINSICS[step.operator].route is Route.SECURE:
            return self._type_bytes(strip_placement(step.node.type.result), 0, "a secure sum")
        server = [s for phase in self.plan.phases for s in phase.server]
        return self._type_bytes(monoid_of(step, server).accumulator, 0, "an accumulator")

    def _flops(self, clients: Iterable[Step], results: list[PlanValue]) -> Flops:
        """The operations of the work of one client."""
        work = needed_steps([step for step in clients if step.operator not in _RECEIVED], tuple(results))
        made = {value.index for step in work for value in plan_values(step.output)}
        operands = [step.operands for step in work]
        inputs = {v.index: v for v in plan_values((*operands, *results)) if v.index not in made}
        parameter = StructType([value.member for value in inputs.values()])
        result_type = StructType([value.member for value in results])

        def given(argument: ir.Expression) -> dict[int, ir.Expression]:
            return {index: ir.Selection(argument, i) for i, index in enumerate(inputs)}

        function = Evaluator(SEQUENCE_HANDLERS).evaluate(
            function_of(parameter, given, work, tuple(results), result_type), {}
        )
        shapes, known = self._inputs(list(inputs.values()))
        program = jax.make_jaxpr(lambda *leaves: flatten(result_type, function(unflatten(parameter, leaves))))(*shapes)
        return count_flops(program, known)

    def _inputs(self, values: list[PlanValue]) -> tuple[list[Any], list[Any]]:
        """The shapes of the flat leaves of values, and what is known of them: the lengths of sequences."""
        shapes: list[Any] = []
        known: list[Any] = []
        for value in values:
            for type_ in _parts(value.member):
                is_sequence, length = isinstance(type_, SequenceType), self._length(value, type_)
                leaves = leaf_types(type_)
                for number, leaf in enumerate(leaves):
                    # The last two of a sequence are its offset and its length.
                    tail = len(leaves) - number if is_sequence else 0
                    known.append({1: jnp.int32(length), 2: jnp.int32(0)}.get(tail))
                    shapes.append(_shape(leaf, length))
        return shapes, known


def _parts(type_: Type) -> list[Type]:
    """The tensors and sequences of a value, in order."""
    if isinstance(type_, StructType):
        return [part for field in type_ for part in _parts(field)]
    return [type_]


def _shape(leaf: TensorType, length: int) -> jax.ShapeDtypeStruct:
    if leaf.shape is None or None in leaf.shape[1:]:
        raise KoinonValueError("The size of a client's value is not known.", found=leaf)
    dtype: Any = leaf.dtype
    # An empty buffer cannot be read from, not even by the program of a loop that takes no step.
    return jax.ShapeDtypeStruct(tuple([max(length, 1) if dim is None else dim for dim in leaf.shape]), dtype)


def _sent(step: Step) -> list[PlanValue]:
    """What one client gives to an aggregation."""
    operands = step.operands if isinstance(step.operands, tuple) else (step.operands,)
    return [value for value in operands if isinstance(value, PlanValue) and value.placement is CLIENTS]
