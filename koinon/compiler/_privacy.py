"""The privacy report: what of the clients' data comes to the server, how, and what protects it. Nothing runs for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp

from koinon._errors import KoinonValueError
from koinon.compiler._dependencies import Arrival, Dependencies, arriving_marks, dependencies
from koinon.compiler._flows import ArgumentLeaf, Flows, Marks, join_flows
from koinon.compiler._paths import Leaf, leaves_of
from koinon.compiler._plan import Plan
from koinon.compiler._show import step_texts
from koinon.compiler._steps import PlanValue, Step, structure_leaves
from koinon.computation import Computation, Route
from koinon.types import SERVER, StructType, TensorType

_ROUTES = {Route.PLAIN: "plain", Route.SECURE: "secure", Route.REVEALING: "revealing"}
_MAX_TYPE = 100  # a longer type would hide the table below it
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class PrivacyRow:
    """How one leaf comes to depend on clients' data through one aggregation.

    Attributes:
      path: the leaf: of the result (`.state.w`; `result` where it is the whole), of what a later phase sends to the
        clients (`broadcast[0].w`), or the keys that clients ask the server for (`keys[0]`).
      type: its type.
      sources: the clients' leaves of the argument that come in this way, such as `argument.data.x`.
      operator: the name of the aggregation.
      expression: the aggregation in the words of the plan, such as `%3 = sum(%2)`.
      route: `plain`, `secure` or `revealing`; of a user's fold, by what its operators keep.
      clip: the norm to which each client's part is clipped; `adaptive` where it is known only at run time; None if
        nothing bounds it.
      mechanism: the name of the noise that was added; None if there is none.
      noise_multiplier: its standard deviation in units of the clip; `adaptive` where it is known only at run time.
      simulation_only: whether that noise protects nobody outside of a simulation.
      sampling: how the mechanism assumes that the cohort is drawn; None if it assumes nothing.
      minimum_cohort: the number of clients below which the leaf is a single client's value; 1 where noise protects
        it, None where no number of clients does.
      headroom_bits: of a secure sum, how many bits its dtype has more than the sum over the stated number of clients
        needs; None where that number or the bound is not known.
      protected: whether each client's part was clipped before the aggregation, and noise added to what was clipped.
      reason: why it is not protected.
      feeds_back: whether it is a part of the state that the next round sends to its clients.
      warnings: what else to know.
    """

    path: str
    type: str
    sources: tuple[str, ...]
    operator: str
    expression: str
    route: str
    clip: float | str | None
    mechanism: str | None
    noise_multiplier: float | str | None
    simulation_only: bool
    sampling: str | None
    minimum_cohort: int | None
    headroom_bits: int | None
    protected: bool
    reason: str
    feeds_back: bool
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PrivacyReport:
    """What the server gets of the clients' data.

    Attributes:
      name: the name of the computation.
      type: its type.
      clients: the number of clients that headroom was computed for; None if none was stated.
      rows: one row for each leaf and each way by which clients' data gets into it.
    """

    name: str
    type: str
    clients: int | None
    rows: tuple[PrivacyRow, ...]

    @property
    def unprotected(self) -> tuple[PrivacyRow, ...]:
        """The rows that no differential privacy protects."""
        return tuple(row for row in self.rows if not row.protected)

    def to_json(self) -> str:
        """The report as JSON, the same text for the same computation."""
        content = {"format": "koinon.privacy_report", "version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)

    def __str__(self) -> str:
        open_rows = len(self.unprotected)
        lines = [f"privacy of {self.name}" + (f": {self.type}" if len(self.type) <= _MAX_TYPE else "")]
        if not self.rows:
            return "\n".join([*lines, "", "Nothing of the clients' data comes to the server."])
        header = ("leaf", "type", "through", "route", "clip", "noise", "")
        table = [header, *[_cells(row) for row in self.rows]]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(header))]
        texts = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in table]
        lines += ["", texts[0].rstrip()]
        for row, text in zip(self.rows, texts[1:], strict=True):
            lines.append(text.rstrip())
            lines += [f"    {note}" for note in _notes(row)]
        return "\n".join([*lines, "", f"{open_rows} of {len(self.rows)} not protected by differential privacy."])


def _cells(row: PrivacyRow) -> tuple[str, ...]:
    noise = "-" if row.mechanism is None else f"{row.mechanism} {row.noise_multiplier}"
    clip = "-" if row.clip is None else str(row.clip)
    status = "protected" if row.protected else "unprotected"
    return (row.path, row.type, row.expression, row.route, clip, noise, status)


def _notes(row: PrivacyRow) -> Iterator[str]:
    yield f"from {', '.join(row.sources)}"
    if row.reason:
        yield row.reason
    if row.sampling is not None:
        yield f"assumes a cohort drawn by {row.sampling} sampling"
    if row.simulation_only:
        yield "the noise protects nobody outside of a simulation"
    if row.headroom_bits is not None:
        yield f"{row.headroom_bits} bits of headroom"
    if row.feeds_back:
        yield "is sent to the clients of the next round"
    yield from row.warnings


def privacy_report(computation: Computation | Plan, *, clients: int | None = None) -> PrivacyReport:
    """Reports, from the program alone, which of the clients' data comes to the server, and what protects it.

    A leaf counts as protected where `ko.annotate_clip` lies on every path of the clients' data before the aggregation,
    and `ko.annotate_noise` on every path after it, or before it for local noise, with nothing in between that could
    lengthen what was clipped. Everything else that depends on clients' data is listed as unprotected: metrics, numbers
    of examples and weights too. What a user's `federated_aggregate` keeps of single clients is decided from what its
    operators do.

    Args:
      computation: a computation, or its plan.
      clients: the number of clients for which the headroom of secure sums is computed.

    Raises:
      NotCompilableError: where the computation has no plan.
      KoinonValueError: where `clients` is no positive number.

    References:
      The flow of labels along a program: Dorothy E. Denning, "A Lattice Model of Secure Information Flow",
      Communications of the ACM 19(5), 1976. https://doi.org/10.1145/360051.360056

    >>> import jax.numpy as jnp, koinon as ko
    >>> @ko.federated_computation(ko.types.at_clients(jnp.float32))
    ... def total(values):
    ...     return ko.federated_sum(ko.federated_map(lambda x: ko.annotate_clip(jnp.clip(x, -1.0, 1.0), 1.0), values))
    >>> print(ko.compiler.privacy_report(total))
    privacy of total: ({float32}@CLIENTS -> float32@SERVER)
    <BLANKLINE>
    leaf    type            through       route  clip  noise
    result  float32@SERVER  %2 = sum(%1)  plain  1.0   -      unprotected
        from argument
        clipped, but no noise is added
    <BLANKLINE>
    1 of 1 not protected by differential privacy.
    """
    if clients is not None and clients < 1:
        raise KoinonValueError("A headroom is computed for a positive number of clients.", found=clients)
    flow = dependencies(computation)
    rows = tuple(_Rows(flow, clients).all())
    return PrivacyReport(flow.plan.name, str(flow.plan.type), clients, rows)


class _Rows:
    def __init__(self, flow: Dependencies, clients: int | None) -> None:
        self.flow = flow
        self.clients = clients
        self.texts = step_texts(flow.plan.type, flow.plan.parameter, flow.plan.phases)

    def all(self) -> Iterator[PrivacyRow]:
        """The rows of the result, then those of what goes to the clients, then those of what they ask for."""
        fed_back = self._fed_back()
        for position, (leaf, flows) in enumerate(self.flow.result):
            if leaf.placement is SERVER and not leaf.is_offset:
                named = dataclasses.replace(leaf, path=leaf.path or "result")
                yield from self._rows_of(named, flows, feeds_back=position in fed_back)
        steps = [step for step in self.flow.plan.steps() if step.operator in _SENDS]
        for number, step in enumerate(steps):
            value = step.operands[2] if isinstance(step.operands, tuple) else step.operands
            if isinstance(value, PlanValue):
                for leaf, flows in self._leaves(value, f"broadcast[{number}]"):
                    yield from self._rows_of(leaf, flows)
        requests = [step for step in steps if step.operator == "federated_select"]
        for number, step in enumerate(requests):
            for leaf, flows in self._leaves(step.operands[0], f"keys[{number}]"):
                yield from self._request(leaf, flows, step)

    def _leaves(self, value: PlanValue, path: str) -> Iterator[tuple[Leaf, Flows]]:
        for leaf, flows in zip(leaves_of(value.type, path), self.flow.values[value.index], strict=True):
            if not leaf.is_offset:
                yield leaf, flows

    def _fed_back(self) -> set[int]:
        """The positions of the leaves of the result that are a state which the clients of the next round receive."""
        type_ = self.flow.plan.type
        result = type_.result[0] if isinstance(type_.result, StructType) and len(type_.result) else type_.result
        parameter = type_.parameter
        state = parameter[0] if isinstance(parameter, StructType) and len(parameter) else parameter
        if state is None or isinstance(state, StructType) or not state.is_assignable_from(result):
            return set()
        assert isinstance(parameter, StructType) or parameter is state
        sent = [
            flows
            for step in self.flow.plan.steps()
            if step.operator in _SENDS
            for operand in structure_leaves(step.operands)
            if isinstance(operand, PlanValue) and operand.placement is SERVER
            for flows in self.flow.values[operand.index]
        ]
        paths = {source.path for source in join_flows(sent) if isinstance(source, ArgumentLeaf)}
        first = leaves_of(parameter, "argument")  # pyright: ignore[reportArgumentType]
        count = sum(1 for _ in leaves_of(result))
        return {i for i, leaf in zip(range(count), first, strict=False) if leaf.path in paths}

    def _rows_of(self, leaf: Leaf, flows: Flows, *, feeds_back: bool = False) -> Iterator[PrivacyRow]:
        """One row for each aggregation by which clients' data comes into a leaf, and for each protection it has."""
        rows: dict[PrivacyRow, set[str]] = {}
        releases = self.flow.releases(flows)
        for release in sorted(releases, key=lambda r: (r.step, r.leaf)):
            arrival = self.flow.arrivals[release]
            sources = {source.path for source in arrival.flows.clients}
            if sources:
                row = self._row(leaf, arrival, releases[release], feeds_back)
                rows.setdefault(row, set()).update(sources)
        for row, sources in rows.items():
            yield dataclasses.replace(row, sources=tuple(sorted(sources)))

    def _row(self, leaf: Leaf, arrival: Arrival, marks: Marks, feeds_back: bool) -> PrivacyRow:
        noise = marks.noise
        bound = marks.noise_bound or marks.bound
        if bound is None and arrival.route is not Route.REVEALING:
            bound = arriving_marks(arrival).bound
        reason = _reason(arrival, marks)
        bits, bits_warnings = headroom(arrival.step, arrival.operand or 0, self.clients)
        protected = not reason
        return PrivacyRow(
            path=leaf.path,
            type=leaf.placed_type,
            sources=(),
            operator=arrival.step.operator,
            expression=self.texts[arrival.step],
            route=_ROUTES[arrival.route],
            clip=None if bound is None else "adaptive" if bound.norm is None else bound.norm,
            mechanism=None if noise is None else noise.mechanism,
            noise_multiplier=None if noise is None else _known(noise.noise_multiplier),
            simulation_only=noise is not None and noise.simulation_only,
            sampling=None if noise is None else noise.sampling,
            minimum_cohort=1 if protected else None if arrival.route is Route.REVEALING else 2,
            headroom_bits=bits,
            protected=protected,
            reason=reason,
            feeds_back=feeds_back,
            warnings=(*_warnings(arrival, marks), *bits_warnings),
        )

    def _request(self, leaf: Leaf, flows: Flows, step: Step) -> Iterator[PrivacyRow]:
        sources = tuple(sorted(source.path for source in flows.clients))
        if sources:
            yield PrivacyRow(
                path=leaf.path,
                type=leaf.placed_type,
                sources=sources,
                operator=step.operator,
                expression=self.texts[step],
                route=_ROUTES[Route.REVEALING],
                clip=None,
                mechanism=None,
                noise_multiplier=None,
                simulation_only=False,
                sampling=None,
                minimum_cohort=None,
                headroom_bits=None,
                protected=False,
                reason="the server learns what each client asks for",
                feeds_back=False,
                warnings=(),
            )


_SENDS = ("federated_broadcast", "federated_split_key", "federated_select", "federated_secure_select")


def _known(number: float | None) -> float | str:
    return "adaptive" if number is None else number


def _reason(arrival: Arrival, marks: Marks) -> str:
    """Why a release is not protected; empty where it is."""
    if marks.noise is not None and marks.noise.noise_multiplier == 0.0:
        return "the noise multiplier is 0"
    if marks.noise is not None:
        return ""
    if arrival.fold is not None and arrival.fold.why:
        return f"custom fold: may keep single values: {arrival.fold.why}"
    match arrival.step.operator:
        case "federated_collect":
            return "the server gets every client's value"
        case "federated_min" | "federated_max":
            return "the server gets single clients' values"
    return _unprotected_sum(arrival, marks)


def _unprotected_sum(arrival: Arrival, marks: Marks) -> str:
    clients = arrival.flows.clients
    unclipped = sorted(source.path for source, m in clients.items() if m.bound is None and m.noise is None)
    if marks.bound is not None:
        return "clipped, but no noise is added"
    if marks.lost is not None:
        noise = "the noise comes too late" if marks.stray_noise else "no noise is added"
        return f"clipped, but changed since by `{marks.lost}`, and {noise}"
    if len(unclipped) < len(clients):
        return f"clipped, but not what comes from {', '.join(unclipped)}"
    if marks.stray_noise:
        return "noise is added to what is not clipped"
    if all(path.startswith("len(") for path in unclipped):
        return "a number of examples, neither clipped nor noised"
    return "neither clipped nor noised"


def _warnings(arrival: Arrival, marks: Marks) -> Iterable[str]:
    if marks.noise is not None and arrival.step.operator == "federated_mean":
        yield "the sensitivity of a mean is the clip divided by the number of clients, which must not be secret"
    if arrival.fold is not None and arrival.fold.by_data:
        yield "a client's data chooses the slot that it is added to, so that a slot can be one client's"


def headroom(step: Step, leaf: int, clients: int | None) -> tuple[int | None, tuple[str, ...]]:
    """The bits that a secure sum has to spare, with warnings; None where the operator or a number does not tell."""
    if not step.operator.startswith("federated_secure_") or clients is None:
        return None, ()
    needed, held = bits_of_sum(step, leaf, clients)
    if needed is None:
        return None, ("the bound of the secure sum is known only at run time, so its headroom is not",)
    bits = held - needed
    return bits, (f"the sum over {clients} clients does not fit its dtype",) if bits < 0 else ()


def bits_of_sum(step: Step, leaf: int, clients: int) -> tuple[int | None, int]:
    """The bits that a secure sum may need, None where its bound is known only at run time, and those that it has."""
    value, bound = step.operands
    bounds = list(structure_leaves(bound))
    limit = bounds[min(leaf, len(bounds) - 1)]
    types = [part.type for part in leaves_of(value.type)]
    needed = _bits_needed(step.operator, int(limit), clients) if hasattr(limit, "dtype") else None
    return needed, _bits_held(types[leaf])


def _bits_needed(operator: str, limit: int, clients: int) -> int:
    match operator:
        case "federated_secure_sum":
            return (clients * limit).bit_length()
        case "federated_secure_sum_bitwidth":
            return (clients * (2**limit - 1)).bit_length()
        case _:  # a modular sum is below its modulus, whatever the number of clients
            return (limit - 1).bit_length()


def _bits_held(type_: TensorType) -> int:
    dtype: Any = type_.dtype
    return int(jnp.iinfo(dtype).max).bit_length()
