"""The engine tells how it runs a call, and why."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import koinon as ko


def test_a_fold_is_explained_with_its_size_and_its_aggregations() -> None:
    """The page names the cohort, the operations of a step, lanes, threads and how each aggregation is taken."""
    work = ko.jax_computation(ko.types.SequenceType(np.float32))(lambda data: data.reduce(0.0, lambda t, x: t + x * x))
    total = ko.federated_computation(ko.types.at_clients(ko.types.SequenceType(np.float32)))(
        lambda data: ko.federated_sum(ko.federated_map(work, data))
    )

    explanation = ko.backends.local.explain(total, [[1.0, 2.0], [3.0]])

    assert (explanation.clients, explanation.examples, explanation.lanes) == (2, 3, 1)
    assert explanation.step_operations is not None
    assert explanation.aggregations == ("federated_sum: a sum, taken with the others",)
    assert "2 clients with 3 examples" in str(explanation)


def test_equal_notes_are_said_once_with_their_number() -> None:
    """Each aggregation and each row has a note of its own, and the page counts those that are equal."""
    types = [ko.types.at_clients(np.float32)] * 2
    both = ko.federated_computation(
        lambda x, y: (
            *(ko.federated_sum(x), ko.federated_max(x), ko.federated_sum(y)),
            *(ko.federated_map(jnp.sin, x), ko.federated_map(jnp.sin, y)),
        ),
        *types,
    )

    explanation = ko.backends.local.explain(both, [1.0, 2.0], [3.0, 4.0])
    page = [line.split(maxsplit=1) for line in str(explanation).splitlines()]

    assert len(explanation.aggregations) == 3
    assert [note for title, note in page if title == "aggregate"] == [
        "2x federated_sum: a sum, taken with the others",
        "federated_max: a fold of its own",
    ]
    assert len(explanation.rows) == 2
    assert [note for title, note in page if title == "rows"] == [f"2x {explanation.rows[0]}"]


def test_values_that_are_kept_of_each_client_are_named() -> None:
    """A result at the clients costs one row for each, and the page says so."""
    double = ko.federated_computation(ko.types.at_clients(np.float32))(lambda v: ko.federated_map(lambda x: 2 * x, v))

    assert ko.backends.local.explain(double, [1.0]).rows == ("{float32}@CLIENTS, for a later phase or the result",)


def test_a_call_that_runs_on_the_reference_engine_says_why() -> None:
    """Clients' values of several shapes cannot be one program, and the page says so."""
    norms = ko.federated_computation(ko.types.at_clients(ko.types.TensorType(np.float32, (None,))))(
        lambda v: ko.federated_sum(ko.federated_map(lambda x: (x * x).sum(), v))
    )
    vectors = [np.ones(3, np.float32), np.ones(2, np.float32)]

    assert float(norms(vectors)) == 5.0
    assert "several shapes" in str(ko.backends.local.explain(norms, vectors))


def test_rewrites_are_counted() -> None:
    """A convolution in a slow layout is listed with its rule."""

    @ko.jax_computation((np.float32, (1, 1, 4, 4)))
    def convolve(x):
        layout = ("NCHW", "OIHW", "NCHW")
        kernel = jnp.ones((2, 1, 3, 3))
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)

    explanation = ko.backends.local.explain(convolve, np.ones((1, 1, 4, 4), np.float32))

    assert explanation.rewrites == (("canonical_convolution", 1),)


def test_rewrites_in_the_steps_of_clients_are_named() -> None:
    """The last layer of a classifier that clients train, whose data has any number of rows."""
    example = {"x": (np.float32, (64,)), "y": np.int32}
    model = ko.learning.models.functional(
        lambda weights, x: x @ weights, jnp.zeros((64, 10)), example_spec=example, loss=ko.learning.losses.cross_entropy
    )
    process = ko.learning.algorithms.build_weighted_fed_avg(
        model, ko.learning.optimizers.build_sgdm(0.1), batch_size=20
    )
    clients = [{"x": np.ones((30, 64), np.float32), "y": np.zeros(30, np.int32)}]

    names = [name for name, _ in ko.backends.local.explain(process.next, process.initialize(), clients).rewrites]

    assert "transposed_carries" in names
    assert "flat_function" in names


def test_products_of_unknown_size_are_explained() -> None:
    """What no rule can judge before the sizes are known is not named."""
    squares = ko.jax_computation(lambda x: jnp.einsum("ij,ik->jk", x, x), (np.float32, (None, 4)))
    x = np.ones((3, 4), np.float32)

    assert float(squares(x)[0, 0]) == 3.0
    assert ko.backends.local.explain(squares, x).rewrites == ()
