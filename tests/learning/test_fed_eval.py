"""Federated evaluation, totals over rounds, and metrics of single clients."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.learning import algorithms, losses, metrics, models

SIZES = (5, 0, 1, 9)


def make_clients(seed: int, sizes=SIZES) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {"x": rng.normal(size=(n, 4)).astype(np.float32), "y": rng.integers(0, 3, n).astype(np.int32)} for n in sizes
    ]


def make_model() -> models.FunctionalModel:
    kernel = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    return models.functional(
        lambda w, x: x @ w,
        kernel,
        example_spec={"x": (jnp.float32, (4,)), "y": jnp.int32},
        loss=losses.cross_entropy,
        metrics={"accuracy": metrics.accuracy()},
    )


def numpy_metrics(kernel, clients) -> dict[str, float]:
    """Loss, accuracy and number of all examples of some clients."""
    x = np.concatenate([client["x"] for client in clients]).astype(np.float64)
    y = np.concatenate([client["y"] for client in clients])
    logits = x @ np.asarray(kernel, np.float64)
    example_losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    return {"loss": example_losses.mean(), "accuracy": (logits.argmax(1) == y).mean(), "num_examples": len(y)}


def assert_metrics(actual: dict, expected: dict) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)


def test_evaluation_gives_the_metrics_of_all_examples_and_totals(backend: str) -> None:
    """A round's metrics are numpy's over its clients, the totals those over the clients of both rounds."""
    del backend
    model = make_model()
    evaluation = algorithms.build_fed_eval(model, batch_size=3)
    first, second = make_clients(0), make_clients(1, (2, 4))
    kernel = model.initial_weights.trainable

    state, measured = evaluation.next(evaluation.initialize(), first)
    assert_metrics(measured["client_work"]["eval"]["current_round_metrics"], numpy_metrics(kernel, first))
    state, measured = evaluation.next(state, second)

    assert_metrics(measured["client_work"]["eval"]["current_round_metrics"], numpy_metrics(kernel, second))
    assert_metrics(measured["client_work"]["eval"]["total_rounds_metrics"], numpy_metrics(kernel, first + second))
    np.testing.assert_array_equal(evaluation.get_model_weights(state).trainable, kernel)


def test_evaluation_takes_the_weights_of_another_process() -> None:
    """After `set_model_weights` the metrics are those of the new weights."""
    model, clients = make_model(), make_clients(0)
    evaluation = algorithms.build_fed_eval(model, batch_size=4)
    other = models.ModelWeights(-model.initial_weights.trainable, ())
    state = evaluation.set_model_weights(evaluation.initialize(), other)

    measured = evaluation.next(state, clients).metrics["client_work"]["eval"]["current_round_metrics"]

    assert_metrics(measured, numpy_metrics(other.trainable, clients))
    centralized = models.evaluate(model, other, {k: np.concatenate([c[k] for c in clients]) for k in "xy"})
    np.testing.assert_allclose(centralized["loss"], measured["loss"], rtol=1e-6)


def test_an_evaluation_has_no_update_in_its_type() -> None:
    """The aggregator and the finalizer carry nothing, and the metrics stand where TFF's users look for them."""
    process = algorithms.build_fed_eval(make_model(), batch_size=4)
    values = "<accuracy=float32,loss=float32,num_batches=int32,num_examples=int32>"

    assert str(process.next.type_signature.result["metrics"]) == (
        f"<distributor=<>,client_work=<eval=<current_round_metrics={values},total_rounds_metrics={values}>>,"
        "aggregator=<>,finalizer=<>>@SERVER"
    )


def test_metrics_of_single_clients(backend: str) -> None:
    """One struct of metrics for each client, NaN where a client has no examples."""
    del backend
    model, clients = make_model(), make_clients(0)
    per_client = algorithms.build_per_client_eval_computation(model, batch_size=2)(model.initial_weights, clients)

    assert len(per_client) == len(clients)
    for measured, client in zip(per_client, clients, strict=True):
        if len(client["y"]):
            assert_metrics(measured, numpy_metrics(model.initial_weights.trainable, [client]))
        else:
            assert np.isnan(measured["loss"])
            assert int(measured["num_examples"]) == 0


def test_take_limits_the_examples_of_an_evaluation() -> None:
    """With `take=2` the metrics are those of the first two examples of each client."""
    model, clients = make_model(), make_clients(0)
    evaluation = algorithms.build_fed_eval(model, batch_size=4, take=2)
    cut = [{name: value[:2] for name, value in client.items()} for client in clients]

    measured = evaluation.next(evaluation.initialize(), clients).metrics["client_work"]["eval"]["current_round_metrics"]

    assert_metrics(measured, numpy_metrics(model.initial_weights.trainable, cut))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, KoinonValueError, "`batch_size`"),
        ({"metrics_aggregator": metrics.sum_then_finalize}, KoinonTypeError, "SumThenFinalizeFactory"),
        ({"model_distributor": ko.aggregators.SumFactory()}, KoinonTypeError, "DistributionProcess"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, error, message: str) -> None:
    """Each mistake is answered by what to pass."""
    with pytest.raises(error, match=message):
        algorithms.build_fed_eval(make_model(), **{"batch_size": 2, **options})


STATES = [{"a": {"total": 3.0, "count": 2.0}, "b": 5}, {"a": {"total": 1.0, "count": 6.0}, "b": 7}]
STATES_TYPE = ko.types.parse("<a=<total=float32,count=float32>,b=int32>")


def aggregate(finalizers):
    """`sum_then_finalize` of the states above."""
    sum_then_finalize = metrics.sum_then_finalize(finalizers)

    @ko.federated_computation(ko.types.at_clients(STATES_TYPE))
    def computation(states):
        return sum_then_finalize(states)

    return computation(STATES)


def test_sum_then_finalize_finalizes_the_sum() -> None:
    """Finalizers by name, and one finalizer of all, see the sums of the states."""
    by_name = aggregate({"a": lambda s: s["total"] / s["count"], "b": lambda n: n})
    of_all = aggregate(lambda s: {"c": s["a"]["total"] + s["b"]})

    assert (float(by_name["a"]), int(by_name["b"])) == ((3 + 1) / (2 + 6), 5 + 7)
    assert float(of_all["c"]) == 3 + 1 + 5 + 7


def test_finalizers_of_other_names_are_refused() -> None:
    """The message lists both sets of names."""
    with pytest.raises(KoinonValueError, match=r"expected +a, c[\s\S]*found +a, b"):
        aggregate({"a": lambda s: s, "c": lambda s: s})
    with pytest.raises(KoinonValueError, match=r"expected +a, c[\s\S]*found +a, b"):
        metrics.SumThenFinalizeFactory({"a": lambda s: s, "c": lambda s: s}).create(STATES_TYPE)


@pytest.mark.parametrize("wrong", [3, {"a": 1.0}, None])
def test_what_is_no_finalizer_is_refused(wrong) -> None:
    """Neither a number nor a dictionary of numbers is a set of finalizers."""
    with pytest.raises(KoinonTypeError, match="Finalizers"):
        metrics.sum_then_finalize(wrong)
    with pytest.raises(KoinonTypeError, match="Finalizers"):
        metrics.SumThenFinalizeFactory(wrong)


def test_a_summation_of_metrics_that_is_no_factory_is_refused() -> None:
    """The inner factory must be an unweighted one."""
    with pytest.raises(KoinonTypeError, match="unweighted factory"):
        metrics.SumThenFinalizeFactory(lambda s: s, ko.aggregators.MeanFactory())
