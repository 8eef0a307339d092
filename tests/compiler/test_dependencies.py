"""The data flow of plans: exact where it can be, and never missing what an interpreter sees flow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.compiler import Dependencies, dependencies, plan, privacy_report
from koinon.types import SERVER, SequenceType, TensorType, at_clients, at_server
from tests.compiler.random_rounds import random_data, random_round

FLOAT = TensorType(jnp.float32)
RECORD = {"x": FLOAT, "y": FLOAT}


def sources(computation: Any) -> dict[str, set[str]]:
    """For each leaf of the result the leaves of the argument that it depends on."""
    flow = dependencies(computation)
    return {leaf.path: set(flow.sources(flows)) for leaf, flows in flow.result}


def of_program(fn: Any, *types: Any) -> dict[str, set[str]]:
    """The sources of a program of JAX."""
    return sources(ko.jax_computation(*types)(fn))


def test_plumbing_keeps_leaves_apart() -> None:
    """Swaps, selections, structs and calls between computations mix nothing."""

    @ko.federated_computation(at_clients(RECORD))
    def inner(data: Any) -> Any:
        return ko.federated_zip({"b": data["x"], "a": (data["y"], data["x"])})

    @ko.federated_computation(at_clients(RECORD), at_server(RECORD))
    def outer(data: Any, state: Any) -> Any:
        packed = inner(data)
        return {"first": ko.federated_sum(packed["a"][0]), "second": ko.federated_sum(packed["b"]), "s": state["y"]}

    assert sources(outer) == {
        "['first']": {"argument.data['y']"},
        "['second']": {"argument.data['x']"},
        "['s']": {"argument.state['y']"},
    }


def test_paths_are_written_as_in_python() -> None:
    """Named tuples have `.name`, mappings `['name']`, tuples `[0]`, lengths of sequences `len(...)`."""

    class Point(NamedTuple):
        a: Any
        b: Any

    type_ = at_clients(Point({"w": FLOAT}, (FLOAT, SequenceType(FLOAT))))

    @ko.federated_computation(type_)
    def total(p: Any) -> Any:
        return ko.federated_sum(ko.federated_map(lambda p: p.a["w"] + p.b[0] + p.b[1].length, p))

    assert sources(total) == {"": {"argument.a['w']", "argument.b[0]", "len(argument.b[1])"}}


def test_an_equation_mixes_its_operands() -> None:
    """A result of arithmetic depends on all that it was computed from, a constant on nothing."""
    vector = TensorType("float32", (3,))
    found = of_program(lambda a, b, c: (a * b, jnp.sort(c), jnp.ones_like(a)), FLOAT, FLOAT, vector)

    assert found == {"[0]": {"argument.a", "argument.b"}, "[1]": {"argument.c"}, "[2]": set()}


def _swap(a: Any, b: Any) -> Any:
    return b, jnp.sin(a)


@jax.custom_jvp
def _custom(a: Any, b: Any) -> Any:
    return _swap(a, b)


@jax.custom_vjp
def _custom_reverse(a: Any, b: Any) -> Any:
    return _swap(a, b)


_custom.defjvp(lambda primals, tangents: (_swap(*primals), (tangents[1], jnp.cos(primals[0]) * tangents[0])))
_custom_reverse.defvjp(lambda a, b: (_swap(a, b), (a,)), lambda saved, g: (g[1] * jnp.cos(saved[0]), g[0]))


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(jax.jit(_swap), id="jit"),
        pytest.param(jax.checkpoint(_swap), id="checkpoint"),
        pytest.param(_custom, id="custom_jvp"),
        pytest.param(_custom_reverse, id="custom_vjp"),
        pytest.param(jax.vmap(_swap, axis_size=2, in_axes=None, out_axes=None), id="vmap"),
        pytest.param(lambda a, b: jax.lax.optimization_barrier((b, a)), id="barrier"),
        pytest.param(lambda a, b: jax.lax.cond(True, _swap, _swap, a, b), id="cond"),
    ],
)
def test_calls_are_followed(call: Any) -> None:
    """What is called is looked into: each result keeps its own sources."""
    assert of_program(lambda a, b: call(a, b), FLOAT, FLOAT) == {"[0]": {"argument.b"}, "[1]": {"argument.a"}}


def test_what_decides_flows_into_what_it_decides() -> None:
    """The predicate of a branch flows into what differs between the branches, and into nothing else."""

    def branch(p: Any, a: Any, b: Any) -> Any:
        return jax.lax.cond(p > 0, lambda a, b: (a, b), lambda a, b: (-a, b), a, b)

    assert of_program(branch, FLOAT, FLOAT, FLOAT) == {
        "[0]": {"argument.p", "argument.a"},
        "[1]": {"argument.b"},
    }


def test_the_number_of_steps_flows_into_what_they_change() -> None:
    """The end of a loop flows into the carry that the body changes, and not into what it passes on."""

    def loop(n: Any, a: Any, b: Any) -> Any:
        return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 2, c[2]), (jnp.float32(0), a, b))

    assert of_program(loop, FLOAT, FLOAT, FLOAT) == {
        "[0]": {"argument.n"},
        "[1]": {"argument.n", "argument.a"},
        "[2]": {"argument.b"},
    }


def test_loops_are_run_until_nothing_changes() -> None:
    """A value that needs several steps to come through a chain of carries is seen."""

    def chain(a: Any, b: Any) -> Any:
        return jax.lax.scan(lambda c, _: ((c[1], c[2], c[3], b), None), (a, a, a, a), None, length=4)[0]

    def rows(a: Any, xs: Any) -> Any:
        carry, out = jax.lax.scan(lambda c, x: (c, (x * 2, c)), a, xs)
        return carry, out[0], out[1]

    vector = TensorType(jnp.float32, (3,))
    assert of_program(chain, FLOAT, FLOAT) == {f"[{i}]": {"argument.a", "argument.b"} for i in range(4)}
    assert of_program(rows, FLOAT, vector) == {"[0]": {"argument.a"}, "[1]": {"argument.xs"}, "[2]": {"argument.a"}}


def test_folds_over_sequences_are_followed() -> None:
    """A fold depends on the leaves that it reads and on the length; a read alone not on other leaves."""

    def work(data: Any, a: Any) -> Any:
        total, same = data.reduce((0.0, a), lambda c, row: (c[0] + row["x"], c[1]))
        return total, same, data.length

    assert of_program(work, SequenceType(RECORD), FLOAT) == {
        "[0]": {"argument.data['x']", "len(argument.data)"},
        "[1]": {"argument.a"},
        "[2]": {"len(argument.data)"},
    }


def test_sequence_operators_are_followed() -> None:
    """`sequence_map`, `sequence_reduce` and `sequence_sum` keep leaves apart, at the clients and unplaced."""

    @ko.federated_computation(at_clients(SequenceType(RECORD)))
    def placed(data: Any) -> Any:
        swapped = ko.sequence_map(lambda row: {"x": row["y"], "y": 1.0}, data)
        return ko.federated_sum(ko.sequence_sum(swapped))

    @ko.federated_computation(SequenceType(RECORD))
    def unplaced(data: Any) -> Any:
        return ko.sequence_reduce(data, jnp.float32(0), lambda total, row: total + row["y"])

    assert sources(placed) == {
        "['x']": {"argument['y']", "len(argument)"},
        "['y']": {"len(argument)"},
    }
    assert sources(unplaced) == {"": {"argument['y']", "len(argument)"}}


def test_what_later_phases_send_is_followed() -> None:
    """What a second phase brings depends on what the first one brought, through the broadcast."""

    @ko.federated_computation(at_clients(RECORD))
    def two_phases(data: Any) -> Any:
        mean = ko.federated_broadcast(ko.federated_mean(data["x"]))
        return ko.federated_sum(ko.federated_map(lambda y, m: y * m, (data["y"], mean)))

    flow = dependencies(two_phases)
    ((_, flows),) = flow.result

    assert flow.sources(flows) == {"argument['x']", "argument['y']"}
    assert len(flow.releases(flows)) == 2


def test_selected_slices_depend_on_keys_and_table() -> None:
    """The slices that a client selects depend on its keys and on the server's table."""

    @ko.federated_computation(at_server(TensorType("float32", (4,))), at_clients(TensorType("int32", (2,))))
    def select(table: Any, keys: Any) -> Any:
        rows = ko.federated_select(keys, ko.federated_value(4, SERVER), table, lambda t, k: t[k])
        return ko.federated_sum(ko.federated_map(lambda r: r.reduce(0.0, lambda t, x: t + x), rows))

    assert sources(select) == {"": {"argument.table", "argument.keys"}}


def test_secure_bounds_and_weights_flow_in() -> None:
    """A weight and a bound of the server flow into what is aggregated with them."""

    @ko.federated_computation(at_clients(RECORD), at_clients(FLOAT))
    def mean(data: Any, w: Any) -> Any:
        return ko.federated_mean(data, w)

    assert sources(mean) == {
        "['x']": {"argument.data['x']", "argument.w"},
        "['y']": {"argument.data['y']", "argument.w"},
    }


def test_unknown_dimensions_are_no_obstacle() -> None:
    """Data flow does not ask for sizes."""

    @ko.federated_computation(at_clients(TensorType(jnp.float32, (None, 2))))
    def total(x: Any) -> Any:
        return ko.federated_sum(ko.federated_map(lambda m: jnp.sum(m), x))

    assert sources(total) == {"": {"argument"}}


def test_values_of_a_plan_have_their_flows() -> None:
    """Every plan value has what flows into each of its leaves, a plan serves as well as a computation."""

    @ko.federated_computation(at_clients(RECORD))
    def total(data: Any) -> Any:
        return ko.federated_sum(data)

    lowered = plan(total)
    flow = dependencies(lowered)

    assert isinstance(flow, Dependencies)
    assert flow.plan is lowered
    argument = flow.values[lowered.parameter.index]
    assert [[source.path for source in leaf] for leaf in argument] == [["argument['x']"], ["argument['y']"]]
    assert str(flow).splitlines()[1:] == [
        "['x']: float32@SERVER <- argument['x']",
        "['y']: float32@SERVER <- argument['y']",
    ]


def perturbed(data: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The data with one leaf of one client changed, and the path of that leaf."""
    for number, client in enumerate(data):

        def changed(new: dict[str, Any], number: int = number) -> list[dict[str, Any]]:
            return [*data[:number], new, *data[number + 1 :]]

        rows = client["rows"]
        for leaf in ("x", "y"):
            yield f"argument.data['{leaf}']", changed({**client, leaf: client[leaf] + np.float32(0.9)})
            yield f"argument.data['{leaf}']", changed({**client, leaf: -client[leaf]})
        for leaf in ("u", "v"):
            if rows[leaf].size:
                moved = {**rows, leaf: rows[leaf] + np.float32(0.9)}
                yield f"argument.data['rows']['{leaf}']", changed({**client, "rows": moved})
        if rows["u"].size:
            shorter = {name: column[:-1] for name, column in rows.items()}
            yield "length", changed({**client, "rows": shorter})


LENGTH_AND_ROWS = {"len(argument.data['rows'])", "argument.data['rows']['u']", "argument.data['rows']['v']"}


def check_against_interpreter(seed: int) -> int:
    """Changes every leaf of every client and checks that each change of the result was foretold; returns how many."""
    computation = random_round(seed)
    flow = dependencies(computation)
    rows = privacy_report(computation).rows
    reported = {path: {s for row in rows if row.path == path for s in row.sources} for path in {r.path for r in rows}}
    state, data = random_data(seed, 2)
    with ko.backends.use("reference"):
        before = jax.tree.leaves(computation(state, data))
        seen = 0
        for path, changed in perturbed(data):
            after = jax.tree.leaves(computation(state, changed))
            for (leaf, flows), old, new in zip(flow.result, before, after, strict=True):
                if not np.array_equal(np.asarray(old), np.asarray(new), equal_nan=True):
                    seen += 1
                    # A shorter sequence is another length and other rows.
                    wanted = LENGTH_AND_ROWS if path == "length" else {path}
                    assert wanted & flow.sources(flows), f"seed {seed}: {path} flows into {leaf.path}"
                    assert wanted & reported.get(leaf.path, set()), f"seed {seed}: {path} is not reported"
    return seen


def test_what_changes_was_foretold() -> None:
    """In random computations, a leaf of the result that changes with a client's leaf is listed as depending on it."""
    assert sum(check_against_interpreter(seed) for seed in range(12)) > 100


@pytest.mark.soak
def test_what_changes_was_foretold_for_long() -> None:
    """The same for thousands of random computations."""
    seen = 0
    for seed in range(1000, 6000):
        seen += check_against_interpreter(seed)
        if seed % 100 == 0:
            jax.clear_caches()  # every program compiles its own branches and loops
    assert seen > 10_000
