"""How much a client counts in the mean of a round."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp

from koinon._errors import KoinonTypeError


class ClientWeighting(enum.Enum):
    """How much a client that has examples counts; one without examples never counts.

    Attributes:
      UNIFORM: every client counts the same.
      NUM_EXAMPLES: a client counts as often as it has examples.
    """

    UNIFORM = "uniform"
    NUM_EXAMPLES = "num_examples"


Weighting: TypeAlias = ClientWeighting | Callable[[Any], Any]
"""A `ClientWeighting`, or a function from the number of examples, an int32, to a weight, traced by JAX."""


def check_weighting(weighting: Any) -> None:
    """Checks that a weighting is one.

    Raises:
      KoinonTypeError: it is neither a `ClientWeighting` nor a function.
    """
    if not isinstance(weighting, ClientWeighting) and not callable(weighting):
        raise KoinonTypeError(
            "The clients are weighted by a ClientWeighting or by a function of the number of examples.",
            found=repr(weighting),
            hint="ClientWeighting.NUM_EXAMPLES, or for instance lambda n: jnp.minimum(n, 100)",
        )


def weight_of(weighting: Weighting, num_examples: Any) -> Any:
    """The float32 weight of a client with so many examples; 0 where it has none."""
    count = jnp.asarray(num_examples).astype(jnp.float32)
    if weighting is ClientWeighting.NUM_EXAMPLES:
        return count
    weight = 1.0 if isinstance(weighting, ClientWeighting) else weighting(num_examples)
    return jnp.where(count > 0, jnp.asarray(weight).astype(jnp.float32), 0.0)
