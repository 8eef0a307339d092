"""Assertions about computations: what they allow, and what their errors name."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

import koinon as ko
from koinon import compiler
from koinon.computation import _ir as ir
from koinon.errors import NotCompilableError, PrivacyError, SecureSumFieldError
from koinon.types import CLIENTS, SERVER, TensorType, at_clients, at_server
from tests.compiler.labelled import CLEAN, LEAKY, Labelled, clip, private_sum

FLOAT = TensorType(jnp.float32)


@ko.federated_computation(at_clients({"a": jnp.int32, "b": jnp.int32}))
def secure(x: Any) -> Any:
    """Two secure sums."""
    return ko.federated_secure_sum_bitwidth(x["a"], 4), ko.federated_secure_modular_sum(x["b"], 16)


@ko.federated_computation(at_clients({"a": jnp.int32, "b": jnp.float32}))
def mixed(x: Any) -> Any:
    """A secure sum beside one in the clear."""
    return {"count": ko.federated_secure_sum(x["a"], 9), "value": ko.federated_sum(x["b"])}


@ko.federated_computation(at_server(FLOAT))
def server_alone(x: Any) -> Any:
    """No aggregation."""
    return ko.federated_map(lambda v: v + 1, x)


def test_secure_and_unsecure_aggregations_are_found() -> None:
    """A computation may have secure ones, others, both or none."""
    found = {
        c.name: (
            compiler.computation_contains_secure_aggregation(c),
            compiler.computation_contains_unsecure_aggregation(c),
        )
        for c in (secure, mixed, server_alone, LEAKY["sum_in_the_clear"].computation)
    }

    assert found == {
        "secure": (True, False),
        "mixed": (True, True),
        "server_alone": (False, False),
        "sum_in_the_clear": (False, True),
    }


def test_secure_sums_fit_up_to_the_number_of_clients_that_is_named() -> None:
    """An error has the bits and the largest cohort, which passes; a bound at run time cannot be known to fit."""
    types = at_clients({"a": jnp.int32, "b": jnp.uint8})

    @ko.federated_computation(types)
    def sums(x: Any) -> Any:
        return ko.federated_secure_sum(x, {"a": 1000, "b": 3})

    # 85 * 3 is 255, which uint8 holds.
    compiler.assert_secure_sums_fit(sums, clients=85)
    with pytest.raises(SecureSumFieldError, match=r"(?s)at most 8 bits.*9 bits for 90 clients; 85 clients are allowed"):
        compiler.assert_secure_sums_fit(sums, clients=90)
    compiler.assert_secure_sums_fit(mixed, clients=2**31 // 9)

    @ko.federated_computation(at_clients(jnp.int32), jnp.int32)
    def unknown(x: Any, bound: Any) -> Any:
        return ko.federated_secure_sum(x, bound)

    with pytest.raises(SecureSumFieldError, match="known only at run time"):
        compiler.assert_secure_sums_fit(unknown, clients=1)


def test_aggregations_of_nothing_do_not_count() -> None:
    """An aggregation without a tensor in it shows the server nothing."""

    @ko.federated_computation(at_clients(()))
    def nothing(x: Any) -> Any:
        return ko.federated_sum(x)

    assert not compiler.computation_contains_unsecure_aggregation(nothing)
    compiler.assert_no_unsecure_aggregation(nothing)


def test_unsecure_aggregations_are_named() -> None:
    """The error names the aggregation and the leaf that comes through it, and no secure one."""
    compiler.assert_no_unsecure_aggregation(secure)
    compiler.assert_no_unsecure_aggregation(server_alone)

    with pytest.raises(PrivacyError, match="not secure") as error:
        compiler.assert_no_unsecure_aggregation(mixed)

    assert "= sum(" in str(error.value.found)
    assert "secure_sum" not in str(error.value.found)
    assert error.value.differs == "['value']"


def test_a_missing_secure_aggregation_is_named() -> None:
    """Where there is none, the error lists what there is instead."""
    compiler.assert_contains_secure_aggregation(mixed)

    with pytest.raises(PrivacyError) as error:
        compiler.assert_contains_secure_aggregation(LEAKY["minimum"].computation)
    with pytest.raises(AssertionError, match="no aggregation"):
        compiler.assert_contains_secure_aggregation(server_alone)

    assert error.value.found == "federated_min"


@pytest.mark.parametrize("labelled", [pytest.param(item, id=name) for name, item in (LEAKY | CLEAN).items()])
def test_assertions_agree_with_the_labels(labelled: Labelled) -> None:
    """One assertion fails on all that is labelled, the other on what reveals single clients."""
    reveals = any(route == "revealing" for _, route in labelled.unprotected)
    for check, fails in (
        (compiler.assert_all_released_through_dp, bool(labelled.unprotected)),
        (compiler.assert_no_collect, reveals),
    ):
        if fails:
            with pytest.raises(PrivacyError) as error:
                check(labelled.computation)
            assert any(path in str(error.value.differs) for path, _ in labelled.unprotected)
        else:
            check(labelled.computation)


def test_the_error_of_an_unprotected_leaf_says_all() -> None:
    """Path, expression and reason are in the message, and what to do."""
    with pytest.raises(PrivacyError) as error:
        compiler.assert_all_released_through_dp(LEAKY["metric_beside_a_private_update"].computation)

    assert error.value.differs == "['loss']"
    assert "= mean(" in str(error.value.found)
    assert "neither clipped nor noised" in str(error.value.found)
    assert "annotate_clip" in str(error.value.expected)
    assert "privacy_report" in str(error.value.hint)


def test_noise_for_simulations_can_be_refused() -> None:
    """Noise that protects nobody outside of a simulation counts unless it is refused."""
    computation = CLEAN["private_total"].computation

    compiler.assert_all_released_through_dp(computation)
    with pytest.raises(PrivacyError, match="simulations only"):
        compiler.assert_all_released_through_dp(computation, allow_simulation_only=False)


def test_broadcasts_after_aggregations_are_named() -> None:
    """What goes to the clients after something came from them is refused, by its expression."""
    compiler.check_broadcast_not_dependent_on_aggregate(mixed)

    with pytest.raises(NotCompilableError, match="sends clients") as error:
        compiler.check_broadcast_not_dependent_on_aggregate(LEAKY["mean_fed_back_to_a_second_phase"].computation)

    assert "= broadcast(" in str(error.value.found)


def test_aggregations_after_aggregations_are_named() -> None:
    """An aggregation of what depends on another one is refused, by its expression; two beside each other are not."""
    compiler.check_aggregate_not_dependent_on_aggregate(mixed)

    with pytest.raises(NotCompilableError, match="aggregates what depends") as error:
        compiler.check_aggregate_not_dependent_on_aggregate(LEAKY["mean_fed_back_to_a_second_phase"].computation)

    assert "= sum(" in str(error.value.found)


def test_operators_that_are_no_fold_are_named() -> None:
    """`federated_collect` and `federated_select` are no folds; everything else is."""
    compiler.check_contains_only_reducible_intrinsics(mixed)
    compiler.check_contains_only_reducible_intrinsics(CLEAN["private_sum_in_a_users_fold"].computation)

    with pytest.raises(NotCompilableError, match="federated_collect") as error:
        compiler.check_contains_only_reducible_intrinsics(LEAKY["collected"].computation)
    with pytest.raises(NotCompilableError, match="federated_select"):
        compiler.check_contains_only_reducible_intrinsics(LEAKY["keys_asked_in_the_clear"].computation)

    assert "labelled.py" in str(error.value.made_in)


def test_values_placed_elsewhere_are_named() -> None:
    """A computation of the server alone has no value at the clients."""
    compiler.check_has_single_placement(server_alone, SERVER)
    compiler.check_has_single_placement(ko.jax_computation(jnp.float32)(lambda x: x), CLIENTS)

    with pytest.raises(NotCompilableError, match="not placed at SERVER"):
        compiler.check_has_single_placement(mixed, SERVER)
    with pytest.raises(NotCompilableError, match="not placed at CLIENTS"):
        compiler.check_has_single_placement(server_alone, CLIENTS)


def test_names_are_bound_once_and_all_are_bound() -> None:
    """A name bound twice and a name not bound at all are both refused by name."""
    identity = ir.Lambda("a", FLOAT, ir.Reference("a", FLOAT))
    twice = ir.Lambda("a", FLOAT, ir.Call(identity, ir.Reference("a", FLOAT)))
    unbound = ir.Lambda("a", FLOAT, ir.Reference("b", FLOAT))

    compiler.check_has_unique_names(ko.Computation(identity, name="identity"))
    compiler.check_contains_no_unbound_references(ko.Computation(twice, name="twice"))
    with pytest.raises(NotCompilableError, match="binds the name a more than once"):
        compiler.check_has_unique_names(ko.Computation(twice, name="twice"))
    with pytest.raises(NotCompilableError, match="does not bind") as error:
        compiler.check_contains_no_unbound_references(ko.Computation(unbound, name="unbound"))

    assert error.value.found == "b"


def test_traced_computations_bind_all_names() -> None:
    """What the decorators make is closed."""

    @ko.federated_computation(at_clients(FLOAT))
    def nested(x: Any) -> Any:
        return private_sum(ko.federated_map(clip, x))

    compiler.check_contains_no_unbound_references(nested)
