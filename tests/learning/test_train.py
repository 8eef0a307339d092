"""The training driver: what it computes, releases and saves, and that nothing is lost when it is stopped."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.errors import (
    KoinonTypeError,
    KoinonValueError,
    ProgramStateError,
    ProgramStateExistsError,
    ProgramStateStructureError,
    ProgramStateWriteError,
)
from koinon.learning.programs import EarlyStopping, RoundReport, TrainingInterrupted, train
from koinon.learning.templates import ClientStateLearningOutput, LearningProcess
from koinon.program import CSVFileReleaseManager, FileProgramStateManager, MemoryReleaseManager
from koinon.types import SequenceType, at_clients, at_server

ROUNDS = 6
EXAMPLE = {"x": (jnp.float32, (2,)), "y": jnp.float32}


def make_data(num_clients: int = 5) -> ko.simulation.ClientData:
    """Clients of different size with examples of y = x_0 - 2 x_1."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)).astype(np.float32)
    clients = np.concatenate([np.arange(num_clients), rng.integers(0, num_clients, 40 - num_clients)])
    return ko.simulation.ClientData.from_arrays({"x": x, "y": x @ np.float32([1, -2])}, clients)


@pytest.fixture(scope="module")
def data() -> ko.simulation.ClientData:
    return make_data()


@pytest.fixture(scope="module")
def model() -> Any:
    return ko.learning.models.functional(
        lambda weights, x: x @ weights,
        jnp.zeros(2),
        example_spec=EXAMPLE,
        loss=ko.learning.losses.squared_error,
    )


@pytest.fixture(scope="module")
def process(model: Any) -> LearningProcess:
    """Federated averaging with shuffling and with a stateful optimizer at the server."""
    return ko.learning.algorithms.build_weighted_fed_avg(
        model, optax.sgd(0.05), optax.adam(0.1), batch_size=3, shuffle=True
    )


@pytest.fixture(scope="module")
def counter() -> LearningProcess:
    """Clients count in how many rounds they took part; the state of the server is the sum of what they reported."""

    @ko.federated_computation
    def first() -> Any:
        return ko.federated_value(0, ko.SERVER)

    @ko.federated_computation(
        at_server(jnp.int32), at_clients(jnp.int32), at_clients(SequenceType(ko.to_type(EXAMPLE)))
    )
    def next_fn(state: Any, client_state: Any, client_data: Any) -> Any:
        del client_data
        total = ko.federated_map(lambda s, n: s + n, (state, ko.federated_sum(client_state)))
        return ClientStateLearningOutput(total, ko.federated_map(lambda n: n + 1, client_state), total)

    get = ko.jax_computation(jnp.int32)(lambda state: state)
    put = ko.jax_computation(jnp.int32, jnp.int32)(lambda state, weights: weights)
    new_client = ko.jax_computation(lambda: jnp.int32(0))
    return LearningProcess(first, next_fn, get, put, client_state_fn=new_client)


def bits(tree: Any) -> list[bytes]:
    """The bits of the leaves of a pytree."""
    is_key = lambda leaf: isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves = [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]
    return [np.asarray(leaf).tobytes() for leaf in leaves]


class Killed(BaseException):
    """Stands for the end of a process, which nothing catches."""


class DyingStateManager(FileProgramStateManager):
    """Saves no version from `dies_at` on, as a process that is killed does not."""

    def __init__(self, root: pathlib.Path, dies_at: int) -> None:
        super().__init__(root)
        self.dies_at = dies_at

    def save(self, state: Any, version: int) -> None:
        if version >= self.dies_at:
            raise Killed
        super().save(state, version)


def send(number: signal.Signals, at_round: int, times: int = 1) -> Callable[[RoundReport], None]:
    """A callback that sends a signal to its own process."""

    def callback(report: RoundReport) -> None:
        if report.round_number == at_round:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return callback


def test_training_is_the_loop_that_one_would_write(process: LearningProcess, data: Any) -> None:
    """The state is that of calling `next` round by round on cohorts drawn by seed and round number."""
    result = train(process, data, rounds=3, clients_per_round=2, seed=7)

    sample = ko.simulation.build_uniform_sampling_fn(data.client_ids, seed=7)
    state = process.initialize()
    losses = []
    for number in range(1, 4):
        state, metrics = process.next(state, data.cohort(sample(number, 2)))
        losses.append(float(metrics["client_work"]["train"]["loss"]))
    assert bits(result.state) == bits(state)
    assert result.history["client_work/train/loss"].tolist() == losses
    assert result.history["round"].tolist() == [1, 2, 3]
    assert (result.round_number, result.stopped_early) == (3, False)


def test_the_weights_are_evaluated_every_k_rounds_and_at_the_end(process: LearningProcess, data: Any) -> None:
    """`evaluate` gets the model's weights after the round; what it returns is reported and released."""
    memory = MemoryReleaseManager()
    seen = []

    def evaluate(weights: Any) -> dict[str, Any]:
        seen.append(weights)
        return {"norm": jnp.linalg.norm(weights.trainable)}

    result = train(
        process,
        data,
        rounds=5,
        clients_per_round=2,
        evaluate=evaluate,
        evaluate_every=2,
        release=[memory],
    )

    assert len(seen) == 3
    assert np.isnan(result.history["evaluation/norm"]).tolist() == [True, False, True, False, False]
    assert bits(seen[-1]) == bits(process.get_model_weights(result.state))
    released = memory.values()
    assert list(released) == [1, 2, 3, 4, 5]
    assert "evaluation" not in released[3]
    assert released[4]["evaluation"]["norm"] == float(np.linalg.norm(seen[1].trainable))
    assert released[4]["client_work"]["train"]["num_examples"] > 0


def test_a_round_is_evaluated_while_the_next_one_is_computed(process: LearningProcess, data: Any) -> None:
    """An evaluation that waits for the next round to begin comes to its end, and is that of its own round."""
    begun = {number: threading.Event() for number in range(1, ROUNDS + 1)}
    evaluations = iter(range(1, ROUNDS + 1))

    def sampler(number: int, size: int) -> list[int]:
        begun[number].set()
        return [number % 5, (number + 1) % 5][:size]

    def evaluate(weights: Any) -> Any:
        number = next(evaluations)
        assert number == ROUNDS or begun[number + 1].wait(60)
        return {"norm": jnp.linalg.norm(weights.trainable)}

    result = train(process, data, rounds=ROUNDS, clients_per_round=2, sampler=sampler, evaluate=evaluate)
    norms = []
    state = process.initialize()
    for number in range(1, ROUNDS + 1):
        state = process.next(state, data.cohort(sampler(number, 2))).state
        norms.append(float(jnp.linalg.norm(process.get_model_weights(state).trainable)))
    assert bits(result.state) == bits(state)
    assert result.history["evaluation/norm"].tolist() == norms


def test_a_round_that_was_computed_too_early_is_thrown_away(
    tmp_path: pathlib.Path, process: LearningProcess, data: Any
) -> None:
    """A callback that stops at an evaluation leaves state, checkpoint and releases as if nothing had run ahead."""
    runs = {}
    for name, rounds, callbacks in (("ahead", ROUNDS, [lambda report: report.evaluation == 3]), ("exact", 3, [])):
        memory, numbers = MemoryReleaseManager(), iter(range(1, ROUNDS + 1))
        result = train(
            process,
            data,
            rounds=rounds,
            clients_per_round=2,
            evaluate=lambda weights, numbers=numbers: next(numbers),
            release=[memory],
            state_manager=FileProgramStateManager(tmp_path / name),
            callbacks=callbacks,
        )
        runs[name] = bits(result.state), result.round_number, result.history.num_rows, repr(memory.values())

    assert runs["ahead"] == runs["exact"]
    assert FileProgramStateManager(tmp_path / "ahead").get_versions() == [0, 1, 2, 3]


def test_a_program_runs_in_a_federated_context(tmp_path: pathlib.Path, process: LearningProcess, data: Any) -> None:
    """Where calls return references, training has the same bits, metrics and checkpoints."""

    def run(root: pathlib.Path) -> Any:
        result = train(
            process,
            data,
            rounds=3,
            clients_per_round=2,
            evaluate=lambda weights: {"norm": np.linalg.norm(weights.trainable)},
            release=[CSVFileReleaseManager(root / "metrics.csv")],
            state_manager=FileProgramStateManager(root / "states"),
        )
        return result.state

    plain = run(tmp_path / "plain")
    with ko.backends.use(ko.program.NativeFederatedContext()):
        referred = run(tmp_path / "context")

    assert bits(referred) == bits(plain)
    for name in ("metrics.csv", "states/program_state_3"):
        assert (tmp_path / "context" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize("save_every", [1, 2])
@pytest.mark.parametrize("stop", range(1, ROUNDS))
def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: pathlib.Path, process: LearningProcess, data: Any, stop: int, save_every: int
) -> None:
    """State, checkpoint and released file equal those of a run that was not killed, wherever it was."""

    def run(root: pathlib.Path, manager: FileProgramStateManager) -> Any:
        return train(
            process,
            data,
            rounds=ROUNDS,
            clients_per_round=2,
            evaluate=lambda weights: {"first": weights.trainable[0]},
            release=[CSVFileReleaseManager(root / "metrics.csv")],
            state_manager=manager,
            save_every=save_every,
        )

    whole = run(tmp_path / "whole", FileProgramStateManager(tmp_path / "whole" / "states"))
    parts = tmp_path / "parts"
    with pytest.raises(Killed):
        run(parts, DyingStateManager(parts / "states", dies_at=stop))
    saved = FileProgramStateManager(parts / "states").get_versions() or []
    resumed = run(parts, FileProgramStateManager(parts / "states"))

    assert max(saved) < stop
    assert bits(resumed.state) == bits(whole.state)
    assert resumed.history.num_rows == ROUNDS - max(saved)
    for name in ("metrics.csv", f"states/program_state_{ROUNDS}"):
        assert (parts / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """SIGINT means what it means at a terminal; a shell starts what runs in its background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_the_round(
    tmp_path: pathlib.Path,
    process: LearningProcess,
    data: Any,
    number: signal.Signals,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The round is completed, saved and released; the exit status is 130; the handlers are as before."""
    manager, memory = FileProgramStateManager(tmp_path), MemoryReleaseManager()
    options: dict[str, Any] = {"rounds": ROUNDS, "clients_per_round": 2, "state_manager": manager, "release": [memory]}
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted) as raised:
        train(process, data, **options, save_every=10, callbacks=[send(number, at_round=2)])

    assert raised.value.code == 130
    assert str(raised.value) == "Stopped after round 2 of 6; everything is saved, and the same call continues."
    assert caplog.messages == [str(raised.value)]
    assert raised.value.result.round_number == 2
    assert manager.get_versions() == [0, 2]
    assert list(memory.values()) == [1, 2]
    assert signal.getsignal(number) is before
    resumed = train(process, data, **options)
    assert bits(resumed.state) == bits(train(process, data, rounds=ROUNDS, clients_per_round=2).state)


def test_a_second_signal_abandons_the_round(tmp_path: pathlib.Path, process: LearningProcess, data: Any) -> None:
    """The state before the round is saved, and the round is neither released nor lost."""
    manager, memory = FileProgramStateManager(tmp_path), MemoryReleaseManager()
    with pytest.raises(TrainingInterrupted) as raised:
        train(
            process,
            data,
            rounds=ROUNDS,
            clients_per_round=2,
            state_manager=manager,
            save_every=10,
            release=[memory],
            callbacks=[send(signal.SIGINT, at_round=3, times=2)],
        )

    assert raised.value.result.round_number == 2
    assert raised.value.result.history.num_rows == 2
    assert manager.get_versions() == [0, 2]
    assert list(memory.values()) == [1, 2]


def test_an_ignored_signal_stays_ignored(process: LearningProcess, data: Any) -> None:
    """A run in the background of a shell is not stopped by the Ctrl-C of another program."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = train(process, data, rounds=2, clients_per_round=2, callbacks=[send(signal.SIGINT, at_round=1)])
    finally:
        signal.signal(signal.SIGINT, before)

    assert result.round_number == 2


def test_training_runs_outside_of_the_main_thread(process: LearningProcess, data: Any) -> None:
    """Where Python delivers no signals there is nothing to handle, and no thread is left."""
    results = []
    thread = threading.Thread(target=lambda: results.append(train(process, data, rounds=2, clients_per_round=2)))
    threads = threading.active_count()
    thread.start()
    thread.join()

    assert results[0].round_number == 2
    assert threading.active_count() == threads


def test_an_error_in_a_round_saves_the_rounds_before(
    tmp_path: pathlib.Path, process: LearningProcess, data: Any
) -> None:
    """What an evaluation raises reaches the caller, and costs that round only."""
    manager = FileProgramStateManager(tmp_path)
    calls = iter(range(1, 10))

    def evaluate(weights: Any) -> Any:
        if next(calls) == 4:
            raise ZeroDivisionError
        return {}

    with pytest.raises(ZeroDivisionError):
        train(
            process,
            data,
            rounds=ROUNDS,
            clients_per_round=2,
            evaluate=evaluate,
            state_manager=manager,
            save_every=10,
        )

    assert manager.get_versions() == [0, 3]


def test_a_round_that_could_not_be_released_is_not_saved(
    tmp_path: pathlib.Path, process: LearningProcess, data: Any
) -> None:
    """A checkpoint says that all rounds before were released; so a resumed run releases each round once."""

    class Full:
        def release(self, value: Any, key: Any) -> None:
            if key == 3:
                raise ProgramStateWriteError("metrics", OSError(28, "No space left on device"))
            memory.release(value, key)

    memory, manager = MemoryReleaseManager(), FileProgramStateManager(tmp_path)
    options: dict[str, Any] = {"rounds": ROUNDS, "clients_per_round": 2, "state_manager": manager}
    with pytest.raises(ProgramStateWriteError, match="No space left"):
        train(process, data, **options, release=[Full()])

    assert manager.get_versions() == [0, 1, 2]
    assert list(memory.values()) == [1, 2]
    train(process, data, **options, release=[memory])
    assert list(memory.values()) == list(range(1, ROUNDS + 1))


def test_a_damaged_checkpoint_is_passed_over(tmp_path: pathlib.Path, process: LearningProcess, data: Any) -> None:
    """The newest one that is whole is taken, which is said, and the result is the same."""
    manager = FileProgramStateManager(tmp_path)
    train(process, data, rounds=4, clients_per_round=2, state_manager=manager)
    path = tmp_path / "program_state_4"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match=r"Loaded program state 3 .* version 4"):
        result = train(process, data, rounds=ROUNDS, clients_per_round=2, state_manager=manager)

    assert result.history["round"].tolist() == [4, 5, 6]
    assert bits(result.state) == bits(train(process, data, rounds=ROUNDS, clients_per_round=2).state)


def test_a_finished_run_has_nothing_left_to_do(tmp_path: pathlib.Path, process: LearningProcess, data: Any) -> None:
    """Training to a round that is over returns the saved state."""
    manager = FileProgramStateManager(tmp_path)
    first = train(process, data, rounds=3, clients_per_round=2, state_manager=manager)
    again = train(process, data, rounds=3, clients_per_round=2, state_manager=manager)

    assert bits(again.state) == bits(first.state)
    assert (again.round_number, again.history.num_rows) == (3, 0)


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"seed": 1}, "`seed`"), ({"clients_per_round": 3}, "`clients_per_round`"), ({"data": make_data(4)}, "`num_cl")],
)
def test_another_run_is_not_continued(
    tmp_path: pathlib.Path, process: LearningProcess, data: Any, changed: dict[str, Any], what: str
) -> None:
    """A run cannot go on with other cohorts than it began with."""
    manager = FileProgramStateManager(tmp_path)
    options: dict[str, Any] = {"data": data, "clients_per_round": 2, "rounds": 2, "state_manager": manager}
    train(process, **options)
    with pytest.raises(ProgramStateError, match=what):
        train(process, **{**options, "rounds": 4, **changed})

    with pytest.raises(ProgramStateStructureError, match=r"had other callbacks(.|\n)*callbacks"):
        train(process, **options, evaluate=lambda weights: {"loss": 0.0}, callbacks=[EarlyStopping("loss", patience=1)])
    assert manager.get_versions() == [0, 1, 2]


def test_checkpoints_are_not_overwritten_by_a_new_run(
    tmp_path: pathlib.Path, process: LearningProcess, data: Any
) -> None:
    """Without `resume`, a directory that has checkpoints is refused."""
    manager = FileProgramStateManager(tmp_path)
    train(process, data, rounds=2, clients_per_round=2, state_manager=manager)
    with pytest.raises(ProgramStateExistsError, match=r"rounds up to 2(.|\n)*resume=True"):
        train(process, data, rounds=2, clients_per_round=2, state_manager=manager, resume=False)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"rounds": 0}, KoinonValueError, "`rounds` must be a positive integer"),
        ({"rounds": 2.0}, KoinonValueError, "`rounds` must be a positive integer"),
        ({"clients_per_round": 0}, KoinonValueError, "`clients_per_round` must be a positive integer"),
        ({"clients_per_round": 6}, KoinonValueError, r"cohort of 6 clients(.|\n)*1 to 5 clients"),
        ({"clients_per_round": None}, KoinonValueError, "`sampler`"),
        ({"seed": -1}, KoinonValueError, "`seed`"),
        ({"evaluate_every": 0}, KoinonValueError, "`evaluate_every`"),
        ({"save_every": -2}, KoinonValueError, "`save_every`"),
        ({"sampler": lambda number, size: ["nobody"]}, KoinonValueError, "no client 'nobody'"),
        ({"data": make_data().subset([])}, KoinonValueError, "no clients to train with"),
        ({"process": "fed_avg"}, KoinonTypeError, r"learning process(.|\n)*found +str"),
        ({"release": MemoryReleaseManager()}, KoinonTypeError, r"`release=\[manager\]`"),
        ({"state_manager": "runs/"}, KoinonTypeError, "FileProgramStateManager"),
        ({"data": {"x": [1.0]}}, KoinonTypeError, r"federated dataset(.|\n)*found +dict"),
        ({"evaluate": 3}, KoinonTypeError, "function of the model's weights"),
        ({"callbacks": print}, KoinonTypeError, r"`callbacks=\[callback\]`"),
        ({"callbacks": [3]}, KoinonTypeError, "list of functions"),
        ({"callbacks": [EarlyStopping("loss", patience=1)]}, KoinonValueError, "give `train` a function `evaluate`"),
        (
            {"data": make_data().preprocess(lambda arrays: {**arrays, "x": arrays["x"][:, :1]})},
            KoinonTypeError,
            r"expected +<x=float32\[2\],y=float32>\n +found +<x=float32\[1\],y=float32>",
        ),
    ],
)
def test_a_mistake_shows_before_any_work(
    tmp_path: pathlib.Path,
    process: LearningProcess,
    data: Any,
    changed: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    """It raises a sentence about it, and nothing is saved."""
    manager = FileProgramStateManager(tmp_path)
    options = {"process": process, "data": data, "rounds": 2, "clients_per_round": 2, "state_manager": manager}
    with pytest.raises(error, match=message):
        train(**{**options, **changed})

    assert manager.get_versions() is None


def test_a_sampler_may_decide_how_many_clients_there_are(process: LearningProcess, data: Any) -> None:
    """Poisson sampling has cohorts of every size, an empty one among them, which changes no weights."""
    cohorts = {1: data.client_ids[:3], 2: (), 3: data.client_ids}
    result = train(process, data, rounds=3, clients_per_round=None, sampler=cohorts.__getitem__)

    sizes = [sum(map(data.num_examples, cohorts[number])) for number in (1, 2, 3)]
    assert result.history["client_work/train/num_examples"].tolist() == sizes
    poisson = ko.simulation.build_poisson_sampling_fn(data.client_ids, 0.5, seed=1)
    assert train(process, data, rounds=1, clients_per_round=None, sampler=poisson).round_number == 1


def test_data_that_is_not_in_memory_gives_the_same_rounds(
    tmp_path: pathlib.Path, process: LearningProcess, data: Any
) -> None:
    """The cohorts that such data makes ahead are those of the same rounds, also when a run stops in between."""
    streamed = ko.simulation.GeneratedClientData(data.client_ids, data.dataset)
    options: dict[str, Any] = {"rounds": ROUNDS, "clients_per_round": 2}
    manager = FileProgramStateManager(tmp_path)
    threads = threading.active_count()
    with pytest.raises(TrainingInterrupted):
        train(process, streamed, **options, state_manager=manager, callbacks=[send(signal.SIGINT, at_round=2)])
    result = train(process, streamed, **options, state_manager=manager)

    assert threading.active_count() == threads
    expected = train(process, data, **options)
    for found_leaf, leaf in zip(jax.tree.leaves(result.state), jax.tree.leaves(expected.state), strict=True):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(found_leaf, leaf, rtol=1e-6)


def test_clients_get_their_state_back(tmp_path: pathlib.Path, counter: LearningProcess, data: Any) -> None:
    """What a client returned is what it gets when it takes part again, also after the run was killed and resumed."""
    manager = DyingStateManager(tmp_path, dies_at=7)
    options: dict[str, Any] = {"rounds": 12, "clients_per_round": 2, "save_every": 3}
    with pytest.raises(Killed):
        train(counter, data, **options, state_manager=manager)
    manager.dies_at = 100
    result = train(counter, data, **options, state_manager=manager)

    sample = ko.simulation.build_uniform_sampling_fn(data.client_ids, seed=0)
    counts: dict[Any, int] = dict.fromkeys(data.client_ids, 0)
    total = 0
    for number in range(1, 13):
        for client in sample(number, 2):
            total += counts[client]
            counts[client] += 1
    assert result.history["round"][0] == 7
    assert int(result.state) == total


def test_a_client_with_a_state_takes_part_once_in_a_round(counter: LearningProcess, data: Any) -> None:
    """Of two states of one client, none could be kept."""
    with pytest.raises(KoinonValueError, match="at most once"):
        train(counter, data, rounds=1, clients_per_round=2, sampler=lambda number, size: [data.client_ids[0]] * size)


def test_early_stopping_stops_at_the_same_round_when_resumed(
    tmp_path: pathlib.Path, process: LearningProcess, data: Any
) -> None:
    """The metric improves until round 3; two rounds later training ends, and does not begin again."""
    values = [0.1, 0.2, 0.5, 0.4, 0.5, 0.9, 0.9]
    manager = FileProgramStateManager(tmp_path)

    def run(rounds: int) -> Any:
        left = iter(values[(manager.get_versions() or [0])[-1] :])
        return train(
            process,
            data,
            rounds=rounds,
            clients_per_round=2,
            state_manager=manager,
            evaluate=lambda weights: {"test": {"accuracy": next(left)}},
            callbacks=[EarlyStopping("test/accuracy", patience=2)],
        )

    assert not run(4).stopped_early
    stopped = run(7)
    assert (stopped.round_number, stopped.stopped_early, stopped.history.num_rows) == (5, True, 1)
    again = run(7)
    assert (again.round_number, again.stopped_early, again.history.num_rows) == (5, True, 0)


def test_early_stopping_can_wait_for_less() -> None:
    """With `mode="min"` less is better; `min_delta` is what an improvement must be worth; NaN is none."""
    stop = EarlyStopping("loss", patience=2, mode="min", min_delta=0.1)
    losses = [1.0, 0.95, float("nan"), 0.1]
    reports = [RoundReport(i, {}, {"loss": loss}, 0.0) for i, loss in enumerate(losses)]

    assert [stop(report) for report in reports[:3]] == [False, False, True]
    assert stop(RoundReport(9, {}, None, 0.0)) is False
    assert stop(reports[3]) is False
    assert stop.best_round == 3


def test_early_stopping_names_a_metric_that_is_not_there() -> None:
    """A misspelt metric is an error in the first evaluated round."""
    with pytest.raises(KoinonValueError, match="no metric 'test/acuracy'"):
        EarlyStopping("test/acuracy", patience=1)(RoundReport(1, {}, {"test": {"accuracy": 0.5}}, 0.0))
    with pytest.raises(KoinonValueError, match='mode "max" or "min"'):
        EarlyStopping("loss", patience=1, mode="less")


def resources() -> dict[str, int]:
    """What a process must not use more of from round to round."""
    statm = pathlib.Path("/proc/self/statm")
    return {
        "live arrays": len(jax.live_arrays()),
        "threads": threading.active_count(),
        "kB": int(statm.read_text().split()[1]) * 4 if statm.exists() else 0,
    }


def train_and_watch(tmp_path: pathlib.Path, process: LearningProcess, data: Any, rounds: int, warm: int) -> Any:
    """The resources after round `warm` and at the end, and the number of compilations between, cohorts varying."""
    sample = ko.simulation.build_uniform_sampling_fn(data.client_ids, seed=0)
    seen = []
    with contextlib.ExitStack() as stack:

        def watch(report: RoundReport) -> None:
            if report.round_number == warm:
                seen.extend([resources(), stack.enter_context(ko.testing.count_compilations())])
            if report.round_number == rounds:
                seen.append(resources())

        train(
            process,
            data,
            rounds=rounds,
            clients_per_round=None,
            sampler=lambda number: sample(number, 1 + number % 5),
            evaluate=lambda weights: {"first": weights.trainable[0]},
            release=[CSVFileReleaseManager(tmp_path / "metrics.csv")],
            state_manager=FileProgramStateManager(tmp_path / "states"),
            save_every=5,
            callbacks=[watch],
        )
    return seen


def test_rounds_leave_nothing_behind(tmp_path: pathlib.Path, process: LearningProcess, data: Any) -> None:
    """After the first rounds nothing is compiled, and no array or thread is left over, with cohorts of every size."""
    before, compilations, after = train_and_watch(tmp_path, process, data, rounds=60, warm=30)

    assert compilations.total == 0
    assert after["live arrays"] <= before["live arrays"]
    assert after["threads"] == before["threads"]


@pytest.mark.soak
def test_memory_is_flat(tmp_path: pathlib.Path, process: LearningProcess, data: Any) -> None:
    """In 10,000 rounds the process grows by less than 20 MB in all, and by less than 1 kB a round after round 500."""
    before, compilations, after = train_and_watch(tmp_path, process, data, rounds=10_000, warm=500)

    assert compilations.total == 0
    assert after["kB"] - before["kB"] < 9_500
