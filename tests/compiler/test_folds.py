"""What a user's fold keeps of single clients, decided from its operators."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.compiler import plan
from koinon.compiler._folds import Kept, LeafFold, leaf_folds
from koinon.computation import INTRINSICS
from koinon.computation import _ir as ir
from koinon.types import FunctionType, StructType, TensorType, at_clients

FLOAT = TensorType(jnp.float32)


def add(a: Any, b: Any) -> Any:
    """The sum, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def folds_of(accumulate: Any, zero: Any, member: Any = FLOAT, merge: Any = add) -> list[LeafFold]:
    """The verdicts on the leaves of the accumulator of a fold."""

    @ko.federated_computation(at_clients(member))
    def fold(x: Any) -> Any:
        return ko.federated_aggregate(x, zero, accumulate, merge, lambda acc: acc)

    (step,) = [step for step in plan(fold).steps() if step.operator == "federated_aggregate"]
    return leaf_folds(step)


def kept(*args: Any, **kwargs: Any) -> list[Kept]:
    """What the leaves of the accumulator keep."""
    return [fold.kept for fold in folds_of(*args, **kwargs)]


ZERO = jnp.float32(0)
VECTOR = jnp.zeros(3, jnp.float32)

SUMS = {
    "sum": (lambda acc, v: acc + v, ZERO),
    "sum of a function of the value": (lambda acc, v: acc + jnp.tanh(v) * 2, ZERO),
    "value first": (lambda acc, v: v * v + acc, ZERO),
    "difference": (lambda acc, v: acc - v, ZERO),
    "several summands": (lambda acc, v: acc + v + v * v - 1.0, ZERO),
    "in two leaves": (lambda acc, v: (acc[0] + v, acc[1] + 1), (ZERO, jnp.int32(0))),
    "leaf left alone": (lambda acc, v: (acc[0] + v, acc[1]), (ZERO, ZERO)),
    "leaf reset": (lambda acc, v: (acc[0] + v, jnp.float32(0)), (ZERO, ZERO)),
    "where the value decides": (lambda acc, v: jnp.where(v > 0, acc + v, acc), ZERO),
    "in a branch": (lambda acc, v: jax.lax.cond(v > 0, lambda: acc + v, lambda: acc), ZERO),
    "in a loop": (lambda acc, v: jax.lax.fori_loop(0, 3, lambda i, a: a + v, acc), ZERO),
    "in a jitted function": (lambda acc, v: jax.jit(lambda a: a + v)(acc), ZERO),
    "in a slot": (lambda acc, v: acc.at[1].add(v), VECTOR),
    "in half precision": (lambda acc, v: (acc.astype(jnp.float32) + v).astype(jnp.bfloat16), jnp.bfloat16(0)),
}
EXTREMA = {
    "maximum": (lambda acc, v: jnp.maximum(acc, v), ZERO),
    "minimum of a function": (lambda acc, v: jnp.minimum(v * v, acc), ZERO),
    "any": (lambda acc, v: acc | (v > 0), jnp.asarray(False)),
    "all": (lambda acc, v: acc & (v > 0), jnp.asarray(True)),
    "in a slot": (lambda acc, v: acc.at[0].max(v), VECTOR),
    "where the value decides": (lambda acc, v: jnp.where(v > 0, jnp.maximum(acc, v), acc), ZERO),
}
SINGLES = {
    "the last one": (lambda acc, v: v, ZERO),
    "a function of the last one": (lambda acc, v: jnp.sin(v), ZERO),
    "written into a slot": (lambda acc, v: acc.at[0].set(v), VECTOR),
    "written by a dynamic slice": (lambda acc, v: jax.lax.dynamic_update_slice(acc, v[None], (1,)), VECTOR),
    "appended": (lambda acc, v: jnp.concatenate([acc[1:], v[None]]), VECTOR),
    "chosen over the accumulator": (lambda acc, v: jnp.where(v > 0, v, acc), ZERO),
    "only the first": (lambda acc, v: (jnp.where(acc[1] > 0, acc[0], acc[0] + v), acc[1] + 1), (ZERO, jnp.int32(0))),
    "in the slot of its turn": (lambda acc, v: (acc[0].at[acc[1]].add(v), acc[1] + 1), (VECTOR, jnp.int32(0))),
    "decayed": (lambda acc, v: acc * 1e-6 + v, ZERO),
    "reset before adding": (lambda acc, v: acc * 0 + v, ZERO),
    "cut off before adding": (lambda acc, v: acc.astype(jnp.int32).astype(jnp.float32) + v, ZERO),
    "maximum then minimum": (lambda acc, v: jnp.minimum(jnp.maximum(acc, v), v + 1), ZERO),
    "negated sum": (lambda acc, v: v - acc, ZERO),
    "running mean": (lambda acc, v: (acc[0] + (v - acc[0]) / acc[1], acc[1] + 1), (ZERO, ZERO)),
    "chosen by a loop": (lambda acc, v: jax.lax.while_loop(lambda a: a < v, lambda a: a + 1, acc), ZERO),
    "other leaf": (lambda acc, v: (acc[1] + v, acc[0]), (ZERO, ZERO)),
    "sum of leaves": (lambda acc, v: (acc[0] + acc[1], v), (ZERO, ZERO)),
}


@pytest.mark.parametrize(("accumulate", "zero"), SUMS.values(), ids=SUMS.keys())
def test_what_is_only_added_to_is_a_sum(accumulate: Any, zero: Any) -> None:
    """An accumulator that is added to, or left alone, keeps the sum."""
    assert set(kept(accumulate, zero)) == {Kept.SUM}


@pytest.mark.parametrize(("accumulate", "zero"), EXTREMA.values(), ids=EXTREMA.keys())
def test_the_greatest_is_some_client_s(accumulate: Any, zero: Any) -> None:
    """An accumulator that takes the greater or the lesser keeps a value of some client, and is told apart."""
    assert kept(accumulate, zero) == [Kept.EXTREMUM]


@pytest.mark.parametrize(("accumulate", "zero"), SINGLES.values(), ids=SINGLES.keys())
def test_what_is_no_sum_may_keep_single_values(accumulate: Any, zero: Any) -> None:
    """Every other use of the accumulator counts as keeping single values, with a reason."""
    found = folds_of(accumulate, zero)

    assert Kept.SINGLE in [fold.kept for fold in found]
    assert all(fold.why for fold in found if fold.kept is Kept.SINGLE)


def test_each_leaf_has_a_verdict_of_its_own() -> None:
    """A sum beside a maximum beside the last value: each leaf is judged alone."""

    def accumulate(acc: Any, v: Any) -> Any:
        return {"last": v, "most": jnp.maximum(acc["most"], v), "sum": acc["sum"] + v}

    zero = {"last": ZERO, "most": ZERO, "sum": ZERO}
    assert kept(accumulate, zero) == [Kept.SINGLE, Kept.EXTREMUM, Kept.SUM]


def test_merge_is_judged_too() -> None:
    """An accumulate that adds, with a merge that throws one side away, is no sum."""
    (fold,) = folds_of(lambda acc, v: acc + v, ZERO, merge=lambda a, b: b)

    assert fold.kept is Kept.SINGLE
    assert "`merge`" in fold.why


def test_slots_chosen_by_data_are_noted() -> None:
    """A sum into a slot that the client's value chooses is a sum, and noted."""
    (fixed,) = folds_of(lambda acc, v: acc.at[1].add(v), VECTOR)
    (chosen,) = folds_of(lambda acc, v: acc.at[v].add(1.0), VECTOR, TensorType(jnp.int32))

    assert (fixed.kept, fixed.by_data) == (Kept.SUM, False)
    assert (chosen.kept, chosen.by_data) == (Kept.SUM, True)


def test_operators_may_capture_values_of_the_server() -> None:
    """What an operator has captured is a constant to it, and no accumulator."""
    times = ko.jax_computation(jnp.float32, jnp.float32, jnp.float32)(lambda acc, v, c: acc + v * c).expression
    pair = ir.Reference("pair", StructType([FLOAT, FLOAT]))
    elements = (ir.Selection(pair, 0), ir.Selection(pair, 1), ir.Reference("c", FLOAT))
    accumulate = ir.Lambda("pair", pair.type, ir.Call(times, ir.Struct(tuple((None, e) for e in elements))))
    plus = ko.jax_computation(jnp.float32, jnp.float32)(lambda a, b: a + b).expression
    same = ko.jax_computation(jnp.float32)(lambda acc: acc * 1.0).expression
    value = ir.Reference("x", at_clients(FLOAT))
    operands = ir.Struct(tuple((None, e) for e in (value, ir.Literal(np.float32(0), FLOAT), accumulate, plus, same)))
    result = INTRINSICS["federated_aggregate"].rule(operands.type)
    call = ir.Call(ir.Intrinsic("federated_aggregate", FunctionType(operands.type, result)), operands)
    constant = ir.Call(ko.jax_computation(lambda: jnp.float32(2)).expression, None)
    lambda_ = ir.Lambda("x", value.type, ir.Block((("c", constant),), call))

    (step,) = [step for step in plan(ko.Computation(lambda_, name="f")).steps() if step.operator != "local"]
    assert [fold.kept for fold in leaf_folds(step)] == [Kept.SUM]
