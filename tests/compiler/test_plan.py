"""Plans: what is left of a computation are steps in phases, each where it runs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

import koinon as ko
from koinon.compiler import Phase, Plan, Step, plan
from koinon.compiler._steps import AGGREGATIONS, plan_values
from koinon.computation import INTRINSICS, Route
from koinon.errors import NotCompilableError
from koinon.types import CLIENTS, SERVER, FunctionType, TensorType, at_clients, at_server
from tests.compiler.labelled import CLEAN, LEAKY
from tests.compiler.random_rounds import random_round

FLOAT = TensorType(jnp.float32)


def operators(steps: tuple[Step, ...]) -> list[str]:
    """The names of the operators of steps, without their common beginning."""
    return [step.operator.removeprefix("federated_") for step in steps]


def shape(lowered: Plan) -> list[tuple[list[str], list[str], list[str]]]:
    """For each phase the operators of the server, of the clients and between them."""
    return [(operators(p.server), operators(p.clients), operators(p.aggregations)) for p in lowered.phases]


def test_a_round_is_one_exchange() -> None:
    """Server work before the broadcast, clients' work and aggregations are one phase; the update is the next."""

    @ko.federated_computation(at_server(FLOAT), at_clients(FLOAT))
    def round_(state: Any, x: Any) -> Any:
        sent = ko.federated_broadcast(ko.federated_map(lambda s: s * 2, state))
        product = ko.federated_map(lambda a, b: a * b, (x, sent))
        return ko.federated_map(lambda s, t: s + t, (state, ko.federated_sum(product)))

    assert shape(plan(round_)) == [
        (["map"], ["broadcast", "zip", "map"], ["sum"]),
        (["zip", "map"], [], []),
    ]


def test_every_aggregation_on_the_way_is_a_phase() -> None:
    """What depends on an aggregation runs a phase later; aggregations beside each other share one."""

    @ko.federated_computation(at_clients(FLOAT))
    def three(x: Any) -> Any:
        first = ko.federated_sum(x), ko.federated_max(x)
        second = ko.federated_sum(ko.federated_broadcast(first[0]))
        third = ko.federated_sum(ko.federated_broadcast(second))
        return first[1], third

    assert [phase[2] for phase in shape(plan(three))] == [["sum", "max"], ["sum"], ["sum"], []]
    assert [value.phase for value in plan_values(plan(three).result)] == [1, 3]


def test_calls_structs_and_selections_leave_no_step() -> None:
    """Calling computations, and taking structs of values apart and together, is done before anything runs."""

    @ko.federated_computation(at_clients(FLOAT))
    def total(x: Any) -> Any:
        return {"total": ko.federated_sum(x), "value": x}

    @ko.federated_computation(at_clients(FLOAT), at_clients(FLOAT))
    def outer(x: Any, y: Any) -> Any:
        both = (total(x), total(y))
        return both[1]["total"], both[0]["total"]

    lowered = plan(outer)

    assert shape(lowered) == [([], [], ["sum", "sum"]), ([], [], [])]
    first, second = lowered.result
    steps = {step.output.index: step.operands for step in lowered.steps()}
    assert [steps[first.index], steps[second.index]] == [lowered.parameter[1], lowered.parameter[0]]


def test_what_the_result_does_not_need_is_not_in_the_plan() -> None:
    """Steps that nothing depends on are dropped, aggregations too."""
    assert [phase[2] for phase in shape(plan(CLEAN["raw_sum_that_nobody_uses"].computation))] == [["sum"], []]
    assert shape(plan(CLEAN["server_work_alone"].computation)) == [(["map"], [], [])]


def test_programs_without_placements_run_at_the_server() -> None:
    """A program of JAX that is called on unplaced values is a step of the server."""

    @ko.federated_computation(FLOAT, at_clients(FLOAT))
    def mixed(c: Any, x: Any) -> Any:
        doubled = ko.jax_computation(FLOAT)(lambda v: v * 2)(c)
        return ko.federated_value(doubled, SERVER), ko.federated_sum(x)

    lowered = plan(mixed)

    assert shape(lowered) == [(["local", "value_at_server"], [], ["sum"]), ([], [], [])]
    assert [value.placement for value in plan_values(lowered.parameter)] == [SERVER, CLIENTS]


def test_steps_come_in_an_order_in_which_they_can_run() -> None:
    """Every step comes after those that make its operands: in labelled and in random computations."""
    computations = [item.computation for item in (LEAKY | CLEAN).values()] + [random_round(seed) for seed in range(40)]
    for computation in computations:
        lowered = plan(computation)
        known = {value.index for value in plan_values(lowered.parameter)}
        for step in lowered.steps():
            assert {value.index for value in plan_values(step.operands)} <= known
            known |= {value.index for value in plan_values(step.output)}
        assert {value.index for value in plan_values(lowered.result)} <= known


def test_steps_run_where_they_belong() -> None:
    """Phases keep steps apart by placement, and by the phase that each step knows."""
    for seed in range(40):
        lowered = plan(random_round(seed))
        for number, phase in enumerate(lowered.phases):
            assert isinstance(phase, Phase)
            assert all(step.placement is SERVER for step in phase.server)
            assert all(step.placement is CLIENTS for step in (*phase.clients, *phase.aggregations))
            assert all(step.phase == number for step in (*phase.server, *phase.clients, *phase.aggregations))
            assert not {step.operator for step in phase.clients} & AGGREGATIONS


def test_aggregations_are_what_has_a_route() -> None:
    """The operators between the clients and the server are those that the table gives a route to."""
    assert AGGREGATIONS == {name for name, row in INTRINSICS.items() if row.route is not Route.NONE}


def test_a_plan_has_the_type_of_its_computation() -> None:
    """Name and type are kept."""

    @ko.federated_computation(at_clients(FLOAT))
    def total(x: Any) -> Any:
        return ko.federated_sum(x)

    lowered = plan(total)

    assert (lowered.name, lowered.type) == ("total", total.type_signature)


@pytest.mark.parametrize(
    ("types", "fn", "says"),
    [
        ((FunctionType(FLOAT, FLOAT), at_clients(FLOAT)), lambda f, x: ko.federated_map(f, x), "takes a function"),
        ((at_clients(FLOAT),), lambda x: (x, ko.jax_computation(FLOAT)(lambda v: v)), "returns a function"),
    ],
    ids=["parameter", "result"],
)
def test_functions_that_come_and_go_have_no_plan(types: Any, fn: Any, says: str) -> None:
    """A computation that takes or returns a function has no plan of its own."""
    with pytest.raises(NotCompilableError, match=says):
        plan(ko.federated_computation(*types)(fn))
