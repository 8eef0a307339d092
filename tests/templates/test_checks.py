"""What the errors of all templates have in common."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import koinon as ko
from koinon import templates
from koinon.learning import templates as learning_templates
from koinon.templates import IterativeProcess, TemplateStateNotAssignableError


def test_large_types_are_left_out_of_the_message_and_kept_on_the_error():
    """A state of a hundred tensors is not printed twice, only the place where it differs."""
    initialize = ko.jax_computation(lambda: {f"w{i}": jnp.zeros(3) for i in range(100)})
    state_type = initialize.type_signature.result
    grow = ko.jax_computation(state_type)(lambda state: {**state, "w7": jnp.zeros(4)})
    with pytest.raises(TemplateStateNotAssignableError) as raised:
        IterativeProcess(initialize, grow)

    assert len(str(raised.value)) < 300
    assert "differs at .w7: expected float32[3], found float32[4]" in str(raised.value)
    assert raised.value.expected == state_type
    assert raised.value.found == grow.type_signature.result


@pytest.mark.parametrize("facade", [templates, learning_templates])
def test_the_errors_of_templates_are_type_errors_beside_them(facade):
    """A user who catches TypeError catches them all, and finds each class where its template is."""
    errors = [getattr(facade, name) for name in facade.__all__ if name.endswith("Error")]

    assert len(errors) >= 10
    assert all(issubclass(error, templates.TemplateError) and issubclass(error, TypeError) for error in errors)
