"""The store of the states that clients keep between rounds."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.computation import ClientRows
from koinon.errors import CardinalityError, KoinonTypeError, KoinonValueError, UnknownClientError
from koinon.program import ClientStateStore, FileProgramStateManager
from koinon.testing import count_compilations, count_frames


class Kept(NamedTuple):
    """The order of the fields is not that of JAX for dicts, and there is a leaf of every kind."""

    w: Any
    key: Any
    visits: Any
    half: Any


@ko.jax_computation
def fresh() -> Any:
    return Kept({"b": jnp.ones(2), "a": jnp.float32(7.0)}, jax.random.key(3), jnp.int32(0), jnp.bfloat16(0.5))


def visited(state: Any, amount: Any) -> Any:
    """A state after a round in which its client was given an amount."""
    weights = {name: leaf + amount for name, leaf in state.w.items()}
    return Kept(weights, jax.random.fold_in(state.key, state.visits), state.visits + 1, state.half * 2)


@ko.federated_computation(ko.types.at_clients(fresh.type_signature.result), ko.types.at_clients(jnp.float32))
def play(states: Any, amounts: Any) -> Any:
    return ko.federated_map(visited, (states, amounts))


def bits(value: Any) -> list[bytes]:
    """The bits of a state, those of its key among them."""
    value = value._replace(key=jax.random.key_data(value.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(value)]


ROUNDS = [["b", "d", "a"], ["c"], ["a", "b"], [], ["d", "c", "b", "a", "e"]]


def run(store: ClientStateStore, rounds: list[list[str]]) -> None:
    """Plays rounds in which each client is given the position of its letter."""
    for ids in rounds:
        amounts = [float(ord(letter) - ord("a")) for letter in ids]
        store.update(ids, play(store.rows(ids), amounts))


def test_clients_get_back_what_they_left(backend: str) -> None:
    """After some rounds each state is that of a client played alone, and a new client has the first state."""
    store = ClientStateStore(fresh, "abcdefg")
    rounds = ROUNDS if backend == "local" else ROUNDS[:3]
    run(store, rounds)

    for letter in "abcdefg":
        expected = fresh()
        for _ in range(sum(letter in ids for ids in rounds)):
            expected = visited(expected, jnp.float32(ord(letter) - ord("a")))
        assert bits(store[letter]) == bits(expected)
    count = len({letter for ids in rounds for letter in ids})
    assert repr(store) == f"ClientStateStore({store.type}, {count} of 7 clients have taken part)"
    assert len(store) == 7


@pytest.mark.parametrize("stop", range(len(ROUNDS) + 1))
def test_a_store_that_is_saved_and_restored_has_the_same_bits(tmp_path: pathlib.Path, stop: int) -> None:
    """A run that is stopped at any round and continued by a new store equals one that ran through."""
    whole, first, second = (ClientStateStore(fresh, "abcdefg") for _ in range(3))
    run(whole, ROUNDS)
    run(first, ROUNDS[:stop])
    manager = FileProgramStateManager(tmp_path)
    manager.save(first.state, 1)
    second.state = manager.load(1, second.state)
    run(second, ROUNDS[stop:])

    assert all(bits(whole[letter]) == bits(second[letter]) for letter in "abcdefg")
    assert len(list(second.state.table)) == 5


def test_restored_arrays_are_copied() -> None:
    """Updates are made in place, and not in the arrays that were given."""
    store = ClientStateStore(fresh, "ab")
    saved = jax.tree.map(np.array, store.state)
    store.state = saved
    run(store, [["a"], ["a"]])

    assert not saved.has_taken_part.any()
    assert int(store["a"].visits) == 2


def test_cohorts_of_like_sizes_share_programs_and_the_work_of_python_does_not_grow() -> None:
    """Cohorts of 5, 6 and 8 clients compile once; reading and writing 5 and 500 rows runs as many Python frames."""
    store = ClientStateStore(fresh, range(2000))
    update = lambda ids: store.update(ids, store.rows(ids))  # noqa: E731 - one expression, counted below
    update(range(5))
    with count_compilations() as count:
        for size in (6, 7, 8):
            update(range(100, 100 + size))
    assert count.total == 0
    update(range(500))

    assert count_frames(update, range(5)) == count_frames(update, range(500))


def test_no_clients_are_no_rows() -> None:
    """A cohort of no clients, and a store of none."""
    store = ClientStateStore(fresh, [])
    store.update([], store.rows([]))

    assert len(store.rows([])) == 0
    assert isinstance(store.rows([]), ClientRows)


def test_a_state_of_nothing_can_be_kept() -> None:
    """A struct without fields has no columns."""

    @ko.jax_computation
    def nothing() -> Any:
        return {}

    store = ClientStateStore(nothing, "ab")
    store.update(["a"], store.rows(["a"]))

    assert store["b"] == {}


def test_mistakes_are_answered_by_what_to_do() -> None:
    """Unknown and repeated clients, rows that are none, too few of them, or of another type."""
    store = ClientStateStore(fresh, "abc")
    other = ClientStateStore(ko.jax_computation()(lambda: jnp.float32(0.0)), "abc")

    with pytest.raises(UnknownClientError, match="'z'"):
        store.rows(["a", "z"])
    with pytest.raises(KoinonValueError, match="without replacement"):
        store.rows(["a", "a"])
    with pytest.raises(KoinonTypeError, match=r"store\.rows\(ids\)"):
        store.update(["a"], [fresh()])  # pyright: ignore[reportArgumentType]
    with pytest.raises(KoinonTypeError, match="rows of their states"):
        store.update(["a"], other.rows(["a"]))
    with pytest.raises(CardinalityError, match="2 rows"):
        store.update(["a"], store.rows(["a", "b"]))
    with pytest.raises(KoinonValueError, match="do not fit these clients"):
        store.state = ClientStateStore(fresh, "abcd").state


@pytest.mark.parametrize(
    "initialize",
    [
        None,
        ko.jax_computation(jnp.float32)(lambda x: x),
        ko.federated_computation()(lambda: ko.federated_value(1.0, ko.SERVER)),
    ],
)
def test_a_store_needs_the_computation_of_a_new_clients_state(initialize: Any) -> None:
    """Without parameter, and unplaced: that of a process has the right form."""
    with pytest.raises(KoinonTypeError):
        ClientStateStore(initialize, "ab")


def test_ids_are_distinct() -> None:
    """Two rows of one client would both be it."""
    with pytest.raises(KoinonValueError, match="distinct"):
        ClientStateStore(fresh, "aba")
