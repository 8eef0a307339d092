"""How the local engine runs a call, and why, as a page that a person can read."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

import jax

from koinon.backends._aggregate import is_sum
from koinon.backends._program import Program
from koinon.backends._rewrite import rewritten
from koinon.backends._schedule import CPU_LANES, SHARED_WORK, SMALL_STEP, programs_of_step
from koinon.compiler import Plan
from koinon.computation._print import TYPE_WIDTH


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How a call runs.

    Attributes:
      computation: the name of the computation.
      reason: why it runs on the reference engine instead; None where it does not.
      clients: the size of the cohort.
      examples: the examples of all its clients; None where the clients hold no sequences.
      lanes: how many clients run side by side in a loop.
      threads: on how many threads the clients run.
      devices: on how many devices the clients run.
      step_operations: the arithmetic operations of the largest step of a fold over a client's sequence; None where the
        clients' work is no fold.
      rewrites: the rules that rewrite the clients' work, with the number of places.
      aggregations: how each aggregation is taken, one note for each; the page says equal ones once, with their number.
      rows: what is kept of each single client, so that its memory grows with the cohort; likewise.
    """

    computation: str
    reason: str | None
    clients: int = 0
    examples: int | None = None
    lanes: int = 1
    threads: int = 1
    devices: int = 1
    step_operations: int | None = None
    rewrites: tuple[tuple[str, int], ...] = ()
    aggregations: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.reason is not None:
            return f"{self.computation} runs on the reference engine, since {self.reason}"
        examples = "" if self.examples is None else f" with {self.examples} examples"
        lines = [f"{self.computation}: {self.clients} clients{examples}"]
        if self.step_operations is None:
            lines.append("  work       no fold over a sequence: each client's work runs as a whole")
        else:
            lines.append(f"  work       a fold over the client's sequence, {self.step_operations:,} operations a step")
        side = "one after the other" if self.lanes == 1 else f"{self.lanes} side by side"
        lines.append(
            f"  lanes      {side} (side by side up to {SMALL_STEP:,} operations and from {4 * CPU_LANES} clients)"
        )
        lines.append(
            f"  threads    {self.threads} (several from {SHARED_WORK:,} operations, where sums are all that is kept)"
        )
        if self.devices > 1:
            lines.append(f"  devices    {self.devices}, each with a copy of the data")
        lines += [f"  rewrite    {name}, {count} place{'s' if count > 1 else ''}" for name, count in self.rewrites]
        lines += [f"  aggregate  {note}" for note in _counted(self.aggregations)]
        lines += [f"  rows       {note}" for note in _counted(self.rows)]
        return "\n".join(lines)


def _counted(notes: tuple[str, ...]) -> Iterator[str]:
    """Each note once, with how often it is there."""
    for note, count in collections.Counter(notes).items():
        yield note if count == 1 else f"{count}x {note}"


def rewrites_of(plan: Plan) -> tuple[tuple[str, int], ...]:
    """The rules that rewrite the programs of a plan on this platform, with the number of places."""
    if jax.default_backend() != "cpu":
        return ()
    programs = [node for step in plan.steps() for node in programs_of_step(step)]
    names = [name for node in programs for name in rewritten(node.program.jaxpr)]
    return tuple(sorted(collections.Counter(names).items()))


def aggregation_notes(plan: Plan) -> Iterator[str]:
    """How each aggregation of a plan is taken."""
    for step in plan.steps():
        if step.operator == "federated_collect":
            yield f"{step.operator}: one row for each client"
        elif step in [s for phase in plan.phases for s in phase.aggregations]:
            how = "a sum, taken with the others" if is_sum(step) else "a fold of its own"
            yield f"{step.operator}: {how}"


def row_notes(plan: Plan, program: Program) -> Iterator[str]:
    """What is kept of each single client."""
    for number in range(len(plan.phases)):
        for value in program.kept(number):
            yield f"{value.type.compact_representation(TYPE_WIDTH)}, for a later phase or the result"
