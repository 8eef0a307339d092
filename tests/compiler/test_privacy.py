"""The privacy report: nothing that depends on clients' data is missing from it, and nothing is blamed in vain."""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import koinon as ko
from koinon.compiler import PrivacyReport, PrivacyRow, privacy_report
from koinon.errors import KoinonValueError, NotCompilableError
from koinon.types import CLIENTS, SequenceType, TensorType, at_clients, at_server
from tests.compiler.labelled import CLEAN, LEAKY, Labelled, clip, clip_to, noise, private_sum

GOLDENS = pathlib.Path(__file__).parent / "goldens"
INT = TensorType(jnp.int32)
FLOAT = TensorType(jnp.float32)


class State(NamedTuple):
    """The state of the round of the golden report."""

    model: dict[str, Any]
    rounds: Any


@ko.federated_computation(
    at_server(State({"w": TensorType(jnp.float32, (2,))}, INT)),
    at_clients(SequenceType({"x": TensorType(jnp.float32, (2,)), "y": jnp.float32})),
)
def private_round(state: Any, data: Any) -> Any:
    """A round with all that a report tells apart: a private update, a raw metric, secure counts, a maximum."""

    def work(examples: Any, model: Any) -> Any:
        error = lambda w, e: (e["x"] @ w - e["y"]) ** 2  # noqa: E731
        gradient = examples.reduce(jnp.zeros(2), lambda total, e: total + jax.grad(error)(model["w"], e))
        loss = examples.reduce(0.0, lambda total, e: total + error(model["w"], e))
        return clip_to(gradient, 0.5), loss, examples.length

    gradients, losses, sizes = ko.federated_map(work, (data, ko.federated_broadcast(state.model)))
    update = ko.federated_map(
        lambda total: ko.annotate_noise(
            total, mechanism="discrete_gaussian", noise_multiplier=1.5, simulation_only=False, sampling="poisson"
        ),
        ko.federated_sum(gradients),
    )
    model = ko.federated_map(lambda m, u: {"w": m["w"] - u}, (state.model, update))
    metrics = {
        "loss": ko.federated_mean(losses),
        "examples": ko.federated_secure_sum_bitwidth(sizes, 16),
        "largest": ko.federated_max(sizes),
    }
    return ko.federated_zip(State(model, ko.federated_map(lambda r: r + 1, state.rounds))), metrics


def unprotected(report: PrivacyReport) -> set[tuple[str, str]]:
    """The paths and routes of the rows that nothing protects."""
    return {(row.path, row.route) for row in report.unprotected}


def only_row(computation: Any, **options: Any) -> PrivacyRow:
    """The one row of a report."""
    (row,) = privacy_report(computation, **options).rows
    return row


@pytest.mark.parametrize("labelled", [pytest.param(item, id=name) for name, item in LEAKY.items()])
def test_no_leak_is_missed(labelled: Labelled) -> None:
    """Every leaf that was labelled as unprotected is reported by its path and route, and no other."""
    assert labelled.unprotected
    assert unprotected(privacy_report(labelled.computation)) == labelled.unprotected


@pytest.mark.parametrize("labelled", [pytest.param(item, id=name) for name, item in CLEAN.items()])
def test_no_false_alarm_is_raised(labelled: Labelled) -> None:
    """A computation that protects all that it releases has no unprotected row."""
    assert unprotected(privacy_report(labelled.computation)) == set()


def test_enough_computations_are_labelled() -> None:
    """At least twenty computations leak, and at least twenty do not."""
    assert len(LEAKY) >= 20
    assert len(CLEAN) >= 20


@pytest.mark.parametrize(("name", "text"), [("txt", str), ("json", PrivacyReport.to_json)])
def test_the_report_is_the_reviewed_one(name: str, text: Any) -> None:
    """Text and JSON of a round with every kind of row are as they were reviewed, and the same each time."""
    golden = (GOLDENS / f"privacy_report.{name}").read_text(encoding="utf-8")

    assert text(privacy_report(private_round, clients=1000)) + "\n" == golden
    assert text(privacy_report(private_round, clients=1000)) + "\n" == golden


def test_json_has_all_that_a_row_has() -> None:
    """The JSON of a report holds its rows field by field, under the name and version of the format."""
    report = privacy_report(private_round, clients=1000)
    content = json.loads(report.to_json())

    assert (content["format"], content["version"]) == ("koinon.privacy_report", 1)
    assert len(content["rows"]) == len(report.rows)
    for row, found in zip(report.rows, content["rows"], strict=True):
        assert found["path"] == row.path
        assert tuple(found["sources"]) == row.sources
        assert found["clip"] == row.clip


def test_a_protected_leaf_shows_what_protects_it() -> None:
    """Clip, mechanism, multiplier and sampling are those that were annotated; one client is cohort enough."""
    row = next(row for row in privacy_report(private_round).rows if row.path == "[0].model['w']")

    assert (row.clip, row.mechanism, row.noise_multiplier, row.sampling) == (0.5, "discrete_gaussian", 1.5, "poisson")
    assert row.protected
    assert row.minimum_cohort == 1
    assert row.feeds_back
    assert row.reason == ""
    assert row.sources == ("argument.data['x']", "argument.data['y']", "len(argument.data)")


@pytest.mark.parametrize(
    ("operator", "bound", "clients", "expected"),
    [
        # int32 holds 31 bits; n clients of b bits need those of n * (2^b - 1).
        ("federated_secure_sum_bitwidth", 16, 1000, 31 - (1000 * (2**16 - 1)).bit_length()),
        ("federated_secure_sum_bitwidth", 16, 1, 31 - 16),
        ("federated_secure_sum_bitwidth", 30, 100, 31 - (100 * (2**30 - 1)).bit_length()),
        ("federated_secure_sum", 1000, 10, 31 - (10 * 1000).bit_length()),
        # A modular sum is below its modulus, whatever the number of clients.
        ("federated_secure_modular_sum", 2**20, 10**6, 31 - 20),
    ],
)
def test_headroom_is_what_the_sum_leaves_of_its_dtype(operator: str, bound: int, clients: int, expected: int) -> None:
    """The headroom of a secure sum is the bits of its dtype without those of the largest possible sum."""

    @ko.federated_computation(at_clients(jnp.int32))
    def total(x: Any) -> Any:
        return getattr(ko, operator)(x, bound)

    row = only_row(total, clients=clients)

    assert row.headroom_bits == expected
    assert any("does not fit" in warning for warning in row.warnings) == (expected < 0)
    assert only_row(total).headroom_bits is None


def test_headroom_is_computed_for_each_leaf() -> None:
    """With a bound for each leaf, each leaf has a headroom of its own."""

    @ko.federated_computation(at_clients({"a": jnp.int32, "b": jnp.uint8}))
    def totals(x: Any) -> Any:
        return ko.federated_secure_sum_bitwidth(x, {"a": 4, "b": 2})

    rows = privacy_report(totals, clients=3).rows

    assert [row.headroom_bits for row in rows] == [31 - (3 * 15).bit_length(), 8 - (3 * 3).bit_length()]


def test_a_bound_known_only_at_run_time_gives_no_headroom() -> None:
    """Where the bound of a secure sum is computed, the report says that it does not know the headroom."""

    @ko.federated_computation(at_clients(jnp.int32), jnp.int32)
    def total(x: Any, bound: Any) -> Any:
        return ko.federated_secure_sum(x, bound)

    row = only_row(total, clients=5)

    assert row.headroom_bits is None
    assert "run time" in " ".join(row.warnings)


def test_reasons_say_what_is_missing() -> None:
    """The reason of an unprotected row names the step that is missing, or the expression that undid it."""
    reasons = {name: " ".join(r.reason for r in privacy_report(LEAKY[name].computation).rows) for name in LEAKY}

    assert "no noise" in reasons["clipped_without_noise"]
    assert "not clipped" in reasons["noise_without_clip"]
    assert "`mul`" in reasons["scaled_after_the_clip"]
    assert "`mul`" in reasons["scaled_before_the_noise"]
    assert "`federated_weighted_mean`" in reasons["values_times_weights_both_clipped"]
    assert "argument.weight" in reasons["weights_that_nobody_clipped"]
    assert "number of examples" in reasons["number_of_examples_beside_a_private_update"]
    assert "custom fold" in reasons["one_hot_write"]
    assert "`scatter`" in reasons["one_hot_write"]
    assert "overwrites" in reasons["identity_reducer"]
    assert "multiplier is 0" in reasons["noise_of_multiplier_zero"]
    assert "every client's value" in reasons["collected"]


def test_a_row_names_only_what_it_comes_from() -> None:
    """A leaf of a struct that is summed as a whole depends on its own leaf of the data alone."""
    rows = privacy_report(LEAKY["mean_of_records"].computation).rows

    assert [(row.path, row.sources) for row in rows] == [
        ("['x']", ("argument['x']",)),
        ("['y']", ("argument['y']",)),
    ]


def test_what_is_released_twice_has_a_row_for_each_way() -> None:
    """A leaf that depends on two aggregations is listed once for each, with the protection of each."""
    rows = privacy_report(LEAKY["private_sum_over_a_raw_count"].computation).rows

    assert [(row.path, row.sources, row.protected) for row in rows] == [
        ("result", ("len(argument)",), False),
        ("result", ("argument", "len(argument)"), True),
    ]


def test_noise_on_one_of_two_paths_protects_nothing() -> None:
    """Where a noisy and a raw sum meet, the row of that aggregation is unprotected."""
    assert not only_row(LEAKY["raw_sum_beside_the_noisy_one"].computation).protected


@pytest.mark.parametrize(
    "scale",
    [lambda v: -v, lambda v: v.reshape(1, 3)[0], lambda v: v[::-1], lambda v: v[:2], lambda v: v[None, :, None]],
)
def test_moving_entries_keeps_a_clip(scale: Any) -> None:
    """What only moves, drops or negates the entries of a clipped value leaves it clipped."""

    @ko.federated_computation(at_clients(TensorType(jnp.float32, (3,))))
    def total(x: Any) -> Any:
        return ko.federated_map(noise, ko.federated_sum(ko.federated_map(lambda v: scale(clip(v)), x)))

    assert only_row(total).protected


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v * 2.0,
        lambda v: v + 1.0,
        lambda v: v + v,
        jnp.square,
        lambda v: jnp.concatenate([v, v]),
        lambda v: v[None] + jnp.zeros((2, 3)),
    ],
)
def test_lengthening_a_clipped_value_loses_the_clip(change: Any) -> None:
    """What may make a client's value longer after the clip leaves no bound that noise could be measured by."""

    @ko.federated_computation(at_clients(TensorType(jnp.float32, (3,))))
    def total(x: Any) -> Any:
        return ko.federated_map(noise, ko.federated_sum(ko.federated_map(lambda v: change(clip(v)), x)))

    row = only_row(total)

    assert not row.protected
    assert row.clip is None


def test_cumulative_sums_of_the_state_keep_a_clip() -> None:
    """What the server adds from its own state changes no client's influence: tree aggregation works."""

    @ko.federated_computation(at_server(jnp.float32), at_clients(jnp.float32))
    def tree(state: Any, x: Any) -> Any:
        total = ko.federated_sum(ko.federated_map(clip, x))
        return ko.federated_map(lambda s, t: noise(s + t), (state, total))

    assert only_row(tree).protected


def test_vmapped_and_differentiated_annotations_stay() -> None:
    """An annotation under vmap, jit and grad is still seen."""

    def work(x: Any) -> Any:
        loss = lambda w: jnp.sum(ko.annotate_clip(w * x, 1.0))  # noqa: E731
        return clip(jax.vmap(lambda row: jax.jit(clip)(row))(jax.grad(loss)(x)))

    @ko.federated_computation(at_clients(TensorType(jnp.float32, (3,))))
    def total(x: Any) -> Any:
        return ko.federated_map(jax.jit(noise), ko.federated_sum(ko.federated_map(work, x)))

    assert only_row(total).protected


def test_an_adaptive_clip_is_called_so() -> None:
    """A norm and a multiplier that are known only at run time are called adaptive."""
    row = only_row(CLEAN["clip_that_adapts"].computation)

    assert row.clip == "adaptive"
    assert row.noise_multiplier == 1.0


def test_state_that_goes_out_again_is_marked() -> None:
    """Only the leaves of the new state that the next round broadcasts feed back."""

    @ko.federated_computation(at_server({"kept": jnp.float32, "sent": jnp.float32}), at_clients(jnp.float32))
    def round_(state: Any, x: Any) -> Any:
        sent = ko.federated_broadcast(state["sent"])
        total = ko.federated_sum(ko.federated_map(lambda v, s: v * s, (x, sent)))
        return ko.federated_zip({"kept": total, "sent": total}), total

    assert [(row.path, row.feeds_back) for row in privacy_report(round_).rows] == [
        ("[0]['kept']", False),
        ("[0]['sent']", True),
        ("[1]", False),
    ]


def test_a_computation_without_clients_has_an_empty_report() -> None:
    """Where nothing comes from clients, the report says so."""
    report = privacy_report(CLEAN["server_work_alone"].computation)

    assert report.rows == ()
    assert "Nothing of the clients' data" in str(report)


def test_histograms_that_clients_choose_slots_of_are_warned_of() -> None:
    """A fold that adds to a slot which a client's data chooses is a sum, with a warning."""

    @ko.federated_computation(at_clients(jnp.int32))
    def histogram(x: Any) -> Any:
        zero = jnp.zeros(4, jnp.int32)
        add = lambda acc, v: acc.at[v].add(1)  # noqa: E731
        return ko.federated_aggregate(x, zero, add, lambda a, b: a + b, lambda acc: acc)

    row = only_row(histogram)

    assert row.route == "plain"
    assert "chooses the slot" in " ".join(row.warnings)


def test_a_private_value_of_a_phase_does_not_hide_a_raw_one() -> None:
    """Noise after the second phase does not protect what the first phase brought to the server in the clear."""

    @ko.federated_computation(at_clients(jnp.float32))
    def two_phases(x: Any) -> Any:
        raw = ko.federated_broadcast(ko.federated_mean(x))
        return private_sum(ko.federated_map(lambda v, m: v - m, (x, raw)))

    rows = [(row.path, row.operator, row.protected) for row in privacy_report(two_phases).rows]

    assert rows == [
        ("result", "federated_mean", False),
        ("result", "federated_sum", True),
        ("broadcast[0]", "federated_mean", False),
    ]


def test_constants_at_the_clients_are_nobody_s_data() -> None:
    """A sum of what every client has by definition depends on no client's data."""

    @ko.federated_computation
    def count() -> Any:
        return ko.federated_sum(ko.federated_value(jnp.int32(1), CLIENTS))

    assert privacy_report(count).rows == ()


@pytest.mark.parametrize("name", ["swapped_fields", "one_hot_write", "mean_fed_back_to_a_second_phase", "collected"])
def test_loaded_programs_hide_nothing(name: str) -> None:
    """Of a computation that was loaded, whose programs are opaque, at least as much is reported."""
    labelled = LEAKY[name]
    loaded = ko.compiler.deserialize(ko.compiler.serialize(labelled.computation))

    assert labelled.unprotected <= unprotected(privacy_report(loaded))


def test_keys_drawn_from_data_are_listed() -> None:
    """A key that depends on other clients' data is sent to every client, and listed as such."""

    @ko.federated_computation(at_clients(jnp.uint32))
    def draw(x: Any) -> Any:
        key = ko.federated_map(lambda total: jax.random.key(total), ko.federated_sum(x))
        return ko.federated_map(lambda k: jax.random.bits(k), ko.federated_split_key(key))

    assert unprotected(privacy_report(draw)) == {("broadcast[0]", "plain")}


def test_federated_averaging_is_open_about_everything() -> None:
    """The library's federated averaging releases its model by two sums, and its metrics, all unprotected."""
    model = ko.learning.models.functional(
        lambda w, x: x @ w["w"],
        {"w": jnp.zeros((2, 1))},
        example_spec={"x": (jnp.float32, (2,)), "y": (jnp.float32, (1,))},
        loss=ko.learning.losses.squared_error,
    )
    process = ko.learning.algorithms.build_weighted_fed_avg(model, optax.sgd(0.1), optax.sgd(1.0), batch_size=2)
    rows = privacy_report(process.next).rows
    weights = [row for row in rows if row.path == ".state.global_model_weights.trainable['w']"]
    metrics = [row.path for row in rows if row.path.startswith(".metrics")]

    assert len(weights) == 2
    assert all(row.feeds_back and not row.protected for row in weights)
    assert all("argument.client_data['x']" in row.sources for row in weights)
    assert any("num_examples" in path for path in metrics)
    assert any("loss" in path for path in metrics)


def test_a_report_needs_a_positive_number_of_clients() -> None:
    """Zero clients is no cohort to compute a headroom for."""
    with pytest.raises(KoinonValueError, match="positive number of clients"):
        privacy_report(private_round, clients=0)


def test_a_computation_that_takes_a_function_has_no_report() -> None:
    """What has no plan has no report, and the error says why."""

    @ko.federated_computation(ko.types.FunctionType(FLOAT, FLOAT), at_clients(FLOAT))
    def apply(fn: Any, x: Any) -> Any:
        return ko.federated_sum(ko.federated_map(fn, x))

    with pytest.raises(NotCompilableError, match="takes a function"):
        privacy_report(apply)
