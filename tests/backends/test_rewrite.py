"""The rules that rewrite programs before they are compiled: each is exact up to the order of rounding."""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon._jax import scan_counts
from koinon.backends._estimate import equations
from koinon.backends._rewrite import CPU_RULES, read_in_bounds, rewrite, rewritten
from koinon.computation._sequence_primitives import read_run, read_run_p, reduce

LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NHWC", "OIHW", "NCHW")]


def run(closed: Any, *arguments: Any) -> list[Any]:
    """The results of a program."""
    return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *jax.tree.leaves(arguments))


def assert_same_results(function: Any, *arguments: Any) -> collections.Counter[str]:
    """Checks that rewriting a function changes nothing but rounding; returns which rules had work, and how often."""
    closed = jax.make_jaxpr(function)(*arguments)
    for expected, found in zip(run(closed, *arguments), run(rewrite(closed, CPU_RULES), *arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    return collections.Counter(rewritten(closed.jaxpr))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("strides", "padding"), [((1, 1), "VALID"), ((2, 1), "SAME")])
def test_convolutions_and_their_gradients_keep_their_values(layout: Any, strides: Any, padding: str) -> None:
    """A convolution in any layout, and both its gradients, are the same after they are brought to one layout."""
    rng = np.random.default_rng(0)
    shapes = {"N": 2, "H": 7, "W": 6, "C": 3, "I": 3, "O": 4}
    kernel_shapes = shapes | {"H": 3, "W": 2}
    x = rng.normal(size=[shapes[d] for d in layout[0]]).astype(np.float32)
    kernel = rng.normal(size=[kernel_shapes[d] for d in layout[1]]).astype(np.float32)

    def loss(x: Any, kernel: Any) -> Any:
        y = jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)
        return jnp.sum(jnp.sin(y))

    rules = assert_same_results(jax.grad(loss, argnums=(0, 1)), x, kernel)

    assert rules["canonical_convolution"] >= 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("channels", "size", "strides", "padding", "applies"),
    [
        (1, (3, 3), (1, 1), "VALID", True),
        (3, (3, 2), (2, 1), "SAME", True),
        (1, (5, 5), (1, 2), ((0, 3), (2, 0)), True),
        (16, (1, 1), (1, 1), "VALID", False),
        (8, (3, 3), (1, 1), "VALID", False),
    ],
)
def test_a_convolution_of_few_channels_keeps_its_values(
    layout: Any, channels: int, size: tuple[int, int], strides: Any, padding: Any, applies: bool
) -> None:
    """The first convolution of a network as a product of matrices, with the gradient of its kernel."""
    rng = np.random.default_rng(5)
    shapes = {"N": 12, "H": 20, "W": 18, "C": channels, "I": channels, "O": 4}
    kernel_shapes = shapes | {"H": size[0], "W": size[1]}
    x = rng.normal(size=[shapes[d] for d in layout[0]]).astype(np.float32)
    kernel = (rng.normal(size=[kernel_shapes[d] for d in layout[1]]) / 5).astype(np.float32)

    def loss(kernel: Any) -> Any:
        y = jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)
        return jnp.mean(jnp.sin(y))

    rules = assert_same_results(jax.value_and_grad(loss), kernel)

    assert rules["convolution_of_few"] == applies


def test_a_convolution_without_outputs_is_left_alone() -> None:
    """Its kernel has no features, and nothing can be divided by their number."""
    x, kernel = np.ones((1, 1, 40, 40), np.float32), np.ones((0, 1, 3, 3), np.float32)

    rules = assert_same_results(lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME"), x, kernel)

    assert rules["convolution_of_few"] == 0


@pytest.mark.parametrize(
    "difference",
    [
        {"lhs_dilation": (2, 2)},
        {"rhs_dilation": (2, 1)},
        {"precision": jax.lax.Precision.HIGHEST},
        {"padding": ((-1, 0), (0, 0))},
        {"batch_group_count": 2},
        {"kernel_size": (7, 6)},
        {"images": 2},
        {"dtype": jnp.bfloat16},
    ],
    ids=str,
)
def test_a_convolution_that_differs_in_one_respect_is_left_alone(difference: dict[str, Any]) -> None:
    """Dilated, precise, cropped, grouped by batch, of many inputs, small, or in another dtype: it keeps its values."""
    rng = np.random.default_rng(6)
    options = {"images": 12, "kernel_size": (3, 3), "dtype": jnp.float32, "padding": ((0, 0), (0, 0)), **difference}
    images, size, dtype = (options.pop(name) for name in ("images", "kernel_size", "dtype"))
    x = jnp.asarray(rng.normal(size=(images, 20, 18, 1)), dtype)
    kernel = jnp.asarray(rng.normal(size=(*size, 1, 4)) / 5, dtype)

    def convolved(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    assert assert_same_results(convolved, x, kernel)["convolution_of_few"] == 0


def test_only_convolutions_in_two_dimensions_and_one_batch_get_another_layout() -> None:
    """A rule for images leaves series alone, and batches in groups."""
    rng = np.random.default_rng(7)
    series, kernel = rng.normal(size=(2, 3, 9)).astype(np.float32), rng.normal(size=(4, 3, 2)).astype(np.float32)
    images, kernels = rng.normal(size=(4, 3, 6, 6)).astype(np.float32), np.ones((4, 3, 2, 2), np.float32)

    def in_groups(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", batch_group_count=2)

    assert not assert_same_results(lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), "SAME"), series, kernel)
    assert not assert_same_results(in_groups, images, kernels)


def test_grouped_convolutions_keep_their_values() -> None:
    """A convolution with feature groups, and its gradients, are left as they are where no rule fits."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 5, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 2, 6)).astype(np.float32)

    def loss(x: Any, kernel: Any) -> Any:
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=2)
        return jnp.sum(y**2)

    rules = assert_same_results(jax.grad(loss, argnums=(0, 1)), x, kernel)

    assert rules["convolution_of_few"] == 0


def recurrent_loss(weights: Any, inputs: Any) -> Any:
    """The loss of a small recurrent network over time-major inputs."""

    def cell(state: Any, x: Any) -> Any:
        state = jnp.tanh(x @ weights["x"] + state @ weights["h"] + weights["b"])
        return state, state

    _, states = jax.lax.scan(cell, jnp.zeros((inputs.shape[1], 4)), inputs)
    return jnp.sum(states**2)


def recurrent_arguments() -> Any:
    """Weights and inputs of that network."""
    rng = np.random.default_rng(2)
    weights = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in (("x", (3, 4)), ("h", (4, 4)), ("b", (4,)))
    }
    return weights, rng.normal(size=(6, 2, 3)).astype(np.float32)


def test_products_that_a_scan_only_adds_up_move_out_of_it() -> None:
    """The gradient of a recurrent network is the same, and its backward scan carries no weight gradient any more."""
    weights, inputs = recurrent_arguments()

    rules = assert_same_results(jax.grad(recurrent_loss), weights, inputs)
    closed = rewrite(jax.make_jaxpr(jax.grad(recurrent_loss))(weights, inputs), CPU_RULES)
    carried = [
        var.aval.shape
        for eqn in equations(closed.jaxpr)
        if eqn.primitive.name == "scan"
        for var in eqn.params["jaxpr"].jaxpr.outvars[: scan_counts(eqn.params)[1]]
    ]

    assert rules["hoisted_weight_gradient"] == 1
    assert (3, 4) not in carried
    assert (4, 4) not in carried


def test_weights_are_transposed_once_and_not_in_every_step() -> None:
    """No product inside the scan is with the last dimension of a large matrix that stays the same."""
    rng = np.random.default_rng(3)
    weights, inputs = rng.normal(size=(40, 40)).astype(np.float32), rng.normal(size=(5, 2, 40)).astype(np.float32)

    def unrolled(weights: Any, inputs: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            state = jnp.tanh((state + x) @ weights.T * 0.1)
            return state, state

        return jax.lax.scan(step, jnp.zeros((2, 40)), inputs)[1]

    rules = assert_same_results(jax.grad(lambda w, x: (unrolled(w, x) ** 2).sum(), argnums=(0, 1)), weights, inputs)
    closed = rewrite(jax.make_jaxpr(lambda w, x: jax.vjp(unrolled, w, x)[1](x))(weights, inputs), CPU_RULES)

    assert rules["hoisted_transpose"] >= 1
    for eqn in equations(closed.jaxpr):
        if eqn.primitive.name == "scan":
            inner = eqn.params["jaxpr"].jaxpr
            constants = inner.invars[: scan_counts(eqn.params)[0]]
            for product in inner.eqns:
                if product.primitive.name == "dot_general" and product.invars[1] in constants:
                    assert product.params["dimension_numbers"][0][1] == (0,)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "applies"),
    [
        ((20,), 128, 10, True),
        ((20,), 10, 128, True),
        ((4, 5), 7, 3, True),
        ((20,), 64, 128, False),
        ((20,), 9, 1, False),
    ],
)
def test_the_gradient_of_a_narrow_layer_keeps_its_values(
    rows: tuple[int, ...], inputs: int, outputs: int, applies: bool
) -> None:
    """A product over the rows of two factors, one of them narrow, alone and for several clients side by side."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(*rows, inputs)).astype(np.float32)
    weights = (rng.normal(size=(inputs, outputs)) / inputs**0.5).astype(np.float32)

    def gradient(weights: Any, x: Any) -> Any:
        return jax.grad(lambda w: jnp.sum(jnp.sin(x @ w)))(weights)

    rules = assert_same_results(gradient, weights, x)
    assert rules == ({"narrow_gradient": 1} if applies else {})

    closed = rewrite(jax.make_jaxpr(gradient)(weights, x), CPU_RULES)
    several = np.stack([x, 2 * x, -x])
    (found,) = jax.vmap(lambda x: jax.core.eval_jaxpr(closed.jaxpr, closed.consts, weights, x))(several)
    np.testing.assert_allclose(found, [gradient(weights, x) for x in several], rtol=2e-5, atol=2e-6)


ROWS, MATRIX = np.ones((6, 40, 8), np.float32), np.full((40, 8), 0.5, np.float32)


@pytest.mark.parametrize(
    "step",
    [
        lambda w, total, x: (total + w.T @ x, None),
        lambda w, total, x: (total + (2 * w).T @ x, None),
        lambda w, total, x: (total + x.T @ x, total[0]),
        lambda w, total, x: ((total + (p := x.T @ x)), p),
        lambda w, total, x: (total + jnp.einsum("ki,kj->kij", x, x).sum(0), None),
        lambda w, total, x: (2 * total + x.T @ x, None),
    ],
    ids=["a constant", "made of a constant", "read", "used twice", "batched", "not only added"],
)
def test_products_that_must_stay_in_a_scan_do(step: Any) -> None:
    """With a factor that stays the same, which would be stacked, and where more is done than adding up."""

    def program(w: Any, rows: Any) -> Any:
        return jax.lax.scan(lambda total, x: step(w, total, x), jnp.zeros((8, 8)), rows)

    rules = assert_same_results(program, MATRIX, ROWS / 10)

    assert rules["hoisted_weight_gradient"] == 0


@pytest.mark.parametrize(
    ("step", "applies"),
    [
        (lambda w, x: jnp.einsum("ik,jk->ij", x.T @ jnp.ones((40, 8)), w), True),
        (lambda w, x: jnp.einsum("bk,bk->b", x, w), False),
        (lambda w, x: x.T @ w[:, :1], False),
        (lambda w, x: jnp.einsum("ik,jk->ij", x[:8], w[:8]), False),
    ],
    ids=["a product with the transpose", "a product for each row", "another dimension", "a part of the matrix"],
)
def test_only_products_with_a_large_transpose_are_given_one(step: Any, applies: bool) -> None:
    """A matrix that stays the same, contracted over its last dimension, is transposed before the scan."""

    def program(w: Any, rows: Any) -> Any:
        return jax.lax.scan(lambda total, x: (total + jnp.sum(jnp.sin(step(w, x))), None), jnp.float32(0), rows)[0]

    rules = assert_same_results(program, MATRIX, ROWS / 10)

    assert rules["hoisted_transpose"] == applies


def test_rules_reach_into_what_is_computed_twice() -> None:
    """A layer under `jax.checkpoint` is rewritten in its backward pass as well."""
    rng = np.random.default_rng(3)
    w, x = rng.normal(size=(64, 10)).astype(np.float32), rng.normal(size=(20, 64)).astype(np.float32)
    layer = jax.checkpoint(lambda w, x: jnp.tanh(x @ w))

    rules = assert_same_results(jax.grad(lambda w, x: jnp.sum(layer(w, x) ** 2)), w / 8, x)

    assert rules["narrow_gradient"] == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32])
def test_products_of_other_numbers_stay_as_they_are(dtype: Any) -> None:
    """The kernels that the rule is for are those for float32."""
    closed = jax.make_jaxpr(lambda x, g: jnp.einsum("bi,bo->io", x, g))(
        jnp.ones((20, 128), dtype), jnp.ones((20, 4), dtype)
    )

    assert rewritten(closed.jaxpr) == []


def test_rules_reach_into_loops_branches_and_folds() -> None:
    """A convolution inside a fold inside a branch is rewritten too."""
    kernel = np.ones((4, 3, 2, 2), np.float32)

    def nested(flag: Any, x: Any) -> Any:
        layout = ("NCHW", "OIHW", "NCHW")

        def step(_: Any, total: Any) -> Any:
            return total + jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout).sum()

        return jax.lax.cond(flag, lambda: reduce(jnp.int32(2), jnp.float32(0), step), lambda: jnp.float32(0))

    closed = rewrite(jax.make_jaxpr(nested)(True, np.ones((1, 3, 4, 4), np.float32)), CPU_RULES)
    layouts = [
        eqn.params["dimension_numbers"].rhs_spec
        for eqn in equations(closed.jaxpr)
        if eqn.primitive.name == "conv_general_dilated"
    ]

    assert layouts == [(3, 2, 0, 1)]


def test_only_reads_of_padded_inputs_lose_their_check_of_bounds() -> None:
    """A read of a padded input becomes one slice, also inside a fold; a read of another input keeps its check."""

    def program(padded: Any, plain: Any, count: Any) -> Any:
        def step(index: Any, total: Any) -> Any:
            return total + sum(rows.sum() for rows in read_run([padded, plain], index, 2))

        return reduce(count, jnp.float32(0), step)

    closed = jax.make_jaxpr(program)(np.ones(6, np.float32), np.ones(6, np.float32), np.int32(3))
    marked = read_in_bounds(closed, [True, False, False])
    flags = [eqn.params["in_bounds"] for eqn in equations(marked.jaxpr) if eqn.primitive is read_run_p]

    assert flags == [True, False]
    assert run(marked, np.ones(6, np.float32), np.ones(6, np.float32), np.int32(3)) == [12.0]


@pytest.mark.parametrize(("window", "shape"), [((1, 2, 2, 1), (2, 6, 8, 3)), ((1, 3, 2, 1), (2, 7, 5, 2))])
def test_the_gradient_of_a_pooling_goes_to_the_same_elements(window: Any, shape: Any) -> None:
    """Ties, infinities and NaN are resolved as XLA does, bit for bit, also where the windows leave a margin."""
    rng = np.random.default_rng(2)
    x = rng.integers(-1, 2, shape).astype(np.float32)
    x.flat[[3, 17, 40]] = np.inf, -np.inf, np.nan

    def pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    gradient = rng.normal(size=pool(x).shape).astype(np.float32)
    closed = jax.make_jaxpr(lambda x, g: jax.vjp(pool, x)[1](g))(x, gradient)
    (expected,), (found,) = run(closed, x, gradient), run(rewrite(closed, CPU_RULES), x, gradient)

    np.testing.assert_array_equal(found, expected)
    assert rewritten(closed.jaxpr) == ["separate_windows"]


@pytest.mark.parametrize(
    ("window", "margin", "of_least"),
    [((2, 2), 1, False), ((5, 5), 0, False), ((1, 1), 0, False), ((2, 2), 0, True)],
    ids=["padded", "large windows", "no window", "least elements"],
)
def test_a_pooling_that_differs_in_one_respect_stays_as_it_is(
    window: tuple[int, int], margin: int, of_least: bool
) -> None:
    """With a margin, with long chains of comparisons, with nothing to compare, or of the least elements."""
    x = np.random.default_rng(8).normal(size=(2, 10, 10, 3)).astype(np.float32)
    start, choose = (jnp.inf, jax.lax.min) if of_least else (-jnp.inf, jax.lax.max)
    size, padding = (1, *window, 1), ((0, 0), (margin, margin), (margin, margin), (0, 0))

    def loss(x: Any) -> Any:
        return jnp.sum(jax.lax.reduce_window(x, start, choose, size, size, padding) ** 2)

    assert assert_same_results(jax.grad(loss), x)["separate_windows"] == 0


def test_poolings_with_overlapping_windows_stay_as_they_are() -> None:
    """A rule for windows side by side leaves others alone."""
    x = jnp.ones((1, 7, 7, 1))

    def loss(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID").sum()

    assert not assert_same_results(jax.grad(loss), x)
