"""How the clients of a cohort are run: in which order, how many side by side, on how many threads.

The choice depends on the program and on the cohort alone, never on a measurement, so that one cohort and one seed give
the same bits on every run.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
import os
from typing import Any

import jax
import numpy as np

from koinon.backends._estimate import equations, has_convolutions, largest_read, operations, step_operations
from koinon.backends._program import Segment
from koinon.compiler import Plan, Step
from koinon.compiler._program import program_p
from koinon.compiler._steps import structure_leaves
from koinon.computation import _ir as ir
from koinon.computation._evaluate import Closure, LocalFunction

# A step of a fold costs a few microseconds of dispatch whatever it does, as much as so many operations.
DISPATCH = 250_000

# Lanes share the dispatch out. Above this many operations in a step they lose: their models no longer fit in the cache.
SMALL_STEP = 500_000
CPU_LANES = 4

# Steps that are hardly more than dispatch.
TINY_STEP = 100_000
TINY_LANES = 8

ACCELERATOR_LANES = 256

# Above this many operations XLA splits the work of a single step over the cores by itself.
LARGE_STEP = 1_000_000_000

# Below this many operations in a round, a few hundred microseconds, threads cost more than they gain.
SHARED_WORK = 10_000_000

# So many groups of clients are dealt out one by one.
LONGEST = 256

# The parts of a cohort whose sums are added up in the order of the cohort, where that order must not depend on the
# machine: enough to keep a few cores or devices busy.
ORDERED_PARTS = 8


@dataclasses.dataclass(frozen=True)
class Work:
    """What one client costs.

    Attributes:
      step: the operations of a step of its largest fold; None where there is no fold over a sequence.
      rows: the examples that a step reads at once.
      whole: the operations of all its programs, a fold counted as one step.
      can_batch: whether several clients can run side by side.
      convolves: whether a convolution is among the operations.
    """

    step: int | None
    whole: int
    can_batch: bool
    rows: int = 1
    convolves: bool = False

    def is_worth_sharing(self, examples: int) -> bool:
        """Whether a cohort with so many examples has work for several threads or devices."""
        if self.step is None:
            return False
        return max(self.step, DISPATCH) * (examples // max(1, self.rows)) >= SHARED_WORK


def clients_work(plan: Plan) -> Work:
    """The work of one client in a plan."""
    programs = [node for phase in plan.phases for step in phase.clients for node in programs_of(step.operands)]
    steps = [step_operations(node.program.jaxpr) for node in programs]
    return Work(
        step=max([step for step in steps if step is not None], default=None),
        whole=sum(operations(node.program.jaxpr) for node in programs),
        rows=max([largest_read(node.program.jaxpr) for node in programs], default=1),
        can_batch=all(_can_batch(eqn) for node in programs for eqn in equations(node.program.jaxpr)),
        convolves=any(has_convolutions(node.program.jaxpr) for node in programs),
    )


def _can_batch(eqn: Any) -> bool:
    """Whether an equation does for several clients at once what it does for each alone."""
    if eqn.primitive is program_p or eqn.effects or eqn.params.get("vmap_method", "") is None:
        return False
    # Of JAX's generators of random numbers only Threefry gives the same numbers side by side as one after the other.
    return not any(_is_other_key(atom.aval) for atom in (*eqn.invars, *eqn.outvars))


def _is_other_key(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and dtype != _threefry()


@functools.cache
def _threefry() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")).dtype


def programs_of_step(step: Step) -> list[ir.Local]:
    """The programs of JAX that a step runs: its own, where it is one, and those among its functions."""
    own = [step.node] if isinstance(step.node, ir.Local) else []
    return [*own, *programs_of(step.operands)]


def programs_of(operands: object) -> list[ir.Local]:
    """The programs of JAX among the functions of a step."""
    found: list[ir.Local] = []
    for leaf in structure_leaves(operands):
        if isinstance(leaf, LocalFunction):
            found.append(leaf.node)
        elif isinstance(leaf, Closure):
            found.extend(node for node in ir.walk(leaf.node) if isinstance(node, ir.Local))
            for name in ir.free_names(leaf.node):
                found.extend(programs_of(leaf.scope[name]))
    return found


def only_regroups(step: Step) -> bool:
    """Whether a step of the server only takes values apart and puts them together, which needs no program."""
    if step.operator == "federated_map":
        return not programs_of(step.operands)
    return step.operator in ("federated_zip", "federated_value_at_server")


def choose_lanes(work: Work, capacity: int, asked: int | None = None) -> int:
    """How many clients run side by side: as many as are asked for, if they can."""
    if not work.can_batch:
        return 1
    if asked is not None:
        return asked
    if jax.default_backend() != "cpu":
        return min(ACCELERATOR_LANES, capacity)
    step = work.step if work.step is not None else work.whole
    # Convolutions with another kernel in each lane would be grouped ones, for which XLA has only slow code on CPUs.
    if work.convolves or step > SMALL_STEP or capacity < 4 * CPU_LANES:
        return 1
    return TINY_LANES if step <= TINY_STEP and capacity >= 4 * TINY_LANES else CPU_LANES


def choose_threads(work: Work, capacity: int, shares: bool) -> int:
    """On how many threads the clients run.

    Args:
      work: the work of a client.
      capacity: the clients that there is room for.
      shares: whether the cohort has work for several.
    """
    if not shares or jax.default_backend() != "cpu" or work.step is None or work.step > LARGE_STEP:
        return 1
    return max(1, min(available_cores(), capacity // 2))


@functools.cache
def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def segments(
    lengths: np.ndarray | None, count: int, capacity: int, lanes: int, threads: int, rows: int = 1
) -> list[Segment]:
    """The cohort cut into one segment for each thread.

    With one thread and one lane the clients run in the order of the cohort. Else they are sorted by their number of
    examples, so that those side by side are alike, and dealt out, the longest first, each time to the thread that has
    the fewest steps.

    Args:
      lengths: the examples of each client, `[capacity]`.
      count: the number of clients.
      capacity: the clients that there is room for.
      lanes: how many of them run side by side.
      threads: the number of segments.
      rows: the examples of a step.
    """
    order = np.zeros(capacity, np.int32)
    if lengths is None or (lanes == 1 and threads == 1):
        order[:count] = np.arange(count)
        stops = np.array([count], np.int32)
    else:
        by_size = np.argsort(-lengths[:count], kind="stable").astype(np.int32)
        # A group of lanes takes as many steps as its longest client; to begin and to end it takes about one more.
        steps = -(-lengths[by_size[::lanes]] // max(1, rows)) + 1
        turn = np.arange(len(steps)) % (2 * threads)
        owner = np.where(turn < threads, turn, 2 * threads - 1 - turn)
        # Those after the longest are about as long as the next: dealt out from both ends by turns, they take no time.
        loads = list(zip([0] * threads, range(threads), strict=True))
        for group, cost in enumerate(steps[:LONGEST].tolist()):
            load, thread = loads[0]
            owner[group] = thread
            heapq.heapreplace(loads, (load + cost, thread))
        owner = np.repeat(owner, lanes)[:count]
        order[:count] = by_size[np.argsort(owner, kind="stable")]
        stops = np.cumsum(np.bincount(owner, minlength=threads)).astype(np.int32)
    starts = np.concatenate([np.zeros(1, np.int32), stops[:-1]])
    return [Segment(order, start, stop) for start, stop in zip(starts, stops, strict=True)]


def ordered_segments(lengths: np.ndarray, count: int, capacity: int) -> list[Segment]:
    """The cohort cut, in its order, into segments of about as many examples each, the same on every machine.

    There are always as many segments; those of a small cohort may be empty.
    """
    order = np.zeros(capacity, np.int32)
    order[:count] = np.arange(count)
    before = np.cumsum(lengths[:count], dtype=np.int64) - lengths[:count]
    owner = before * ORDERED_PARTS // max(1, int(lengths[:count].sum()))
    edges = np.searchsorted(owner, np.arange(ORDERED_PARTS + 1)).astype(np.int32)
    edges[-1] = count
    return [Segment(order, start, stop) for start, stop in itertools.pairwise(edges)]
