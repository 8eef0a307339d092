"""Functions of each element on flat arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.backends._estimate import equations
from koinon.backends._rewrite import CPU_RULES, rewrite, rewritten


@pytest.mark.parametrize("function", [jnp.exp, jnp.log1p, jnp.tanh, jax.nn.sigmoid, jax.scipy.special.erf])
def test_a_function_over_few_columns_keeps_its_values_and_shape(function: Any) -> None:
    """It is taken on the flat array, alone and for several arrays side by side."""
    x = np.random.default_rng(0).uniform(-0.9, 3, (3, 8, 10)).astype(np.float32)
    closed = jax.make_jaxpr(function)(x[0])
    assert rewritten(closed.jaxpr) == ["flat_function"]

    rewritten_program = rewrite(closed, CPU_RULES)
    assert any(eqn.outvars[0].aval.shape == (80,) for eqn in equations(rewritten_program.jaxpr))
    (found,) = jax.vmap(lambda x: jax.core.eval_jaxpr(rewritten_program.jaxpr, rewritten_program.consts, x))(x)
    np.testing.assert_allclose(found, function(x), rtol=1e-6)


@pytest.mark.parametrize("shape", [(80,), (8, 16), (4, 10), (80, 1), ()])
def test_other_shapes_stay_as_they_are(shape: tuple[int, ...]) -> None:
    """Long rows have vector code anyway, and few elements need none."""
    assert rewritten(jax.make_jaxpr(jnp.exp)(jnp.ones(shape)).jaxpr) == []
