"""Algorithms whose clients keep a state between rounds, against closed forms on parabolas."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.errors import KoinonValueError
from koinon.learning import algorithms, optimizers
from koinon.program import ClientStateStore, FileProgramStateManager
from tests import quadratics
from tests.quadratics import Parabola, weighted_optimum

CLIENTS = [Parabola(1.0, -1.0, 1), Parabola(2.0, 0.5, 5), Parabola(0.5, 3.0, 3)]
RATE = 0.2
# Each client counts the same for SCAFFOLD.
OPTIMUM = weighted_optimum(CLIENTS, [c.curvature for c in CLIENTS])


def make_scaffold(num_clients: int = len(CLIENTS), **options: Any) -> Any:
    return algorithms.build_scaffold(
        quadratics.model(), optax.sgd(RATE), num_clients=num_clients, batch_size=1, **options
    )


def make_ditto(strength: float = 0.5) -> Any:
    return algorithms.build_ditto(quadratics.model(), strength, optax.sgd(RATE), batch_size=1)


def test_scaffold_reaches_the_true_optimum_with_unequal_local_steps() -> None:
    """Where federated averaging with the same weights ends elsewhere."""
    averaging = algorithms.build_unweighted_fed_avg(quadratics.model(), optax.sgd(RATE), batch_size=1)

    assert quadratics.run(make_scaffold(), CLIENTS, 100) == pytest.approx(OPTIMUM, abs=1e-5)
    assert abs(quadratics.run(averaging, CLIENTS, 100) - OPTIMUM) > 0.1


def test_scaffold_does_so_with_momentum_too() -> None:
    """The length of steps with momentum is not their number times the rate."""
    optimizer = optimizers.build_sgdm(0.1, momentum=0.5)
    process = algorithms.build_scaffold(quadratics.model(), optimizer, num_clients=3, batch_size=1)

    assert quadratics.run(process, CLIENTS, 100) == pytest.approx(OPTIMUM, abs=1e-5)


class NumpyScaffold:
    """Algorithm 1 of the paper, with option II."""

    def __init__(self, clients: list[Parabola]) -> None:
        self.clients, self.w, self.c = clients, 0.0, 0.0
        self.controls = [0.0] * len(clients)

    def play(self, cohort: list[int]) -> None:
        """One round."""
        moves, changes = [], []
        for k in cohort:
            client, w = self.clients[k], self.w
            for _ in range(client.examples):
                w -= RATE * (client.curvature * (w - client.optimum) - self.controls[k] + self.c)
            new = self.controls[k] - self.c + (self.w - w) / (RATE * client.examples)
            moves.append(w - self.w)
            changes.append(new - self.controls[k])
            self.controls[k] = new
        self.w += np.mean(moves)
        self.c += sum(changes) / len(self.clients)


COHORTS = [[0, 2], [1, 2], [2, 0], [0, 1], [1, 2]]


def play(process: Any, store: ClientStateStore, state: Any, cohort: list[int], clients: list[Parabola]) -> Any:
    """The state after a round in which clients have their states from a store."""
    output = process.next(state, store.rows(cohort), [clients[k].data() for k in cohort])
    store.update(cohort, output.client_state)
    return output.state


def test_scaffold_equals_the_paper_with_partial_participation() -> None:
    """Weights, and the control variates of the server and of all clients, after five cohorts of two of three."""
    process, expected = make_scaffold(), NumpyScaffold(CLIENTS)
    store, state = ClientStateStore(process.initialize_client_state, range(3)), process.initialize()
    for cohort in COHORTS:
        state = play(process, store, state, cohort, CLIENTS)
        expected.play(cohort)

    assert float(process.get_model_weights(state).trainable) == pytest.approx(expected.w, rel=1e-5)
    assert float(state.client_work.shared["control"]) == pytest.approx(expected.c, rel=1e-5)
    controls = [float(store[k]["control"]) for k in range(3)]
    np.testing.assert_allclose(controls, expected.controls, rtol=1e-5)


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_a_run_with_client_states_that_is_resumed_has_the_same_bits(tmp_path: pathlib.Path, stop: int) -> None:
    """The states of server and clients are saved together after any round, and restored into new objects."""
    process = make_scaffold()

    def run(store: ClientStateStore, state: Any, cohorts: list[list[int]]) -> Any:
        for cohort in cohorts:
            state = play(process, store, state, cohort, CLIENTS)
        return state

    whole, first, second = (ClientStateStore(process.initialize_client_state, range(3)) for _ in range(3))
    expected = run(whole, process.initialize(), COHORTS)
    manager = FileProgramStateManager(tmp_path)
    manager.save((run(first, process.initialize(), COHORTS[:stop]), first.state), stop)
    state, second.state = manager.load(stop, (process.initialize(), second.state))
    resumed = run(second, state, COHORTS[stop:])

    jax.tree.map(np.testing.assert_array_equal, (resumed, second.state), (expected, whole.state))


def test_a_broken_or_an_empty_client_keeps_its_state_and_changes_nothing() -> None:
    """Weights and controls are those of a round of the other client alone, divided by the same population."""
    process = make_scaffold()
    state, fresh = process.initialize(), process.initialize_client_state()
    kept = {"control": jnp.float32(0.25)}
    broken = {"x": np.float32([np.nan]), "y": np.float32([0.0])}
    empty = Parabola(1.0, 0.0, 0).data()
    alone = process.next(state, [fresh], [CLIENTS[0].data()])
    output = process.next(state, [fresh, kept, kept], [CLIENTS[0].data(), broken, empty])

    assert [float(own["control"]) for own in output.client_state] == [
        float(alone.client_state[0]["control"]),
        0.25,
        0.25,
    ]
    jax.tree.map(np.testing.assert_array_equal, output.state, alone.state)
    assert int(output.metrics["client_work"]["train"]["num_non_finite_clients"]) == 1


def test_ditto_ends_at_its_closed_form() -> None:
    """The global model is that of federated averaging to the bit; each personal one lies at (a b + s w) / (a + s)."""
    process, strength = make_ditto(), 0.5
    averaging = algorithms.build_weighted_fed_avg(quadratics.model(), optax.sgd(RATE), batch_size=1)
    data = [client.data() for client in CLIENTS]
    state, other = process.initialize(), averaging.initialize()
    kept = [process.initialize_client_state()] * 3
    for _ in range(80):
        state, kept, metrics = process.next(state, kept, data)
        other = averaging.next(other, data).state
    w = float(process.get_model_weights(state).trainable)

    assert w == float(averaging.get_model_weights(other).trainable)
    for client, own in zip(CLIENTS, kept, strict=True):
        expected = (client.curvature * client.optimum + strength * w) / (client.curvature + strength)
        assert float(own["personal"]) == pytest.approx(expected, abs=1e-5)
    train = metrics["client_work"]["train"]
    assert float(train["personal_loss"]) < float(train["loss"])


def test_processes_with_client_state_say_so_in_their_types() -> None:
    """C at the clients, in and out; the server's state has the control variate, and Ditto's has none."""
    scaffold, ditto = make_scaffold().next.type_signature, make_ditto().next.type_signature

    assert str(scaffold.parameter[1]) == str(scaffold.result["client_state"]) == "{<control=float32>}@CLIENTS"
    assert str(ditto.parameter[1]) == str(ditto.result["client_state"]) == "{<personal=float32>}@CLIENTS"
    assert str(scaffold.parameter[0].member["client_work"]["shared"]) == "<aggregator=<>,control=float32>"
    assert str(ditto.parameter[0].member["client_work"]) == "<hparams=<>,key=<>>"


@pytest.mark.parametrize("num_clients", [0, 2.0, True])
def test_the_number_of_clients_is_a_positive_int(num_clients: Any) -> None:
    """SCAFFOLD cannot do without it."""
    with pytest.raises(KoinonValueError, match="num_clients"):
        make_scaffold(num_clients)


def test_the_strength_of_ditto_is_a_float_that_is_not_negative() -> None:
    """As that of FedProx."""
    with pytest.raises(KoinonValueError, match="not negative"):
        make_ditto(-1.0)


def test_the_training_driver_keeps_the_states_of_clients() -> None:
    """Training with a dataset and SCAFFOLD ends near the optimum of the clients' mean loss."""
    columns = [client.data() for client in CLIENTS]
    owners = np.repeat(np.arange(3), [len(column["x"]) for column in columns])
    stacked = {name: np.concatenate([column[name] for column in columns]) for name in ("x", "y")}
    data = ko.simulation.ClientData.from_arrays(stacked, owners)
    result = ko.learning.programs.train(make_scaffold(), data, rounds=120, clients_per_round=2)

    weights = make_scaffold().get_model_weights(result.state)
    assert float(weights.trainable) == pytest.approx(OPTIMUM, abs=1e-3)
