"""The weights of a model, in the two groups that learning treats differently."""

from __future__ import annotations

from typing import Any, NamedTuple

from koinon.types import register_container


class ModelWeights(NamedTuple):
    """The weights of a model: what optimizers step, and the rest.

    Attributes:
      trainable: a pytree of arrays that are learned by gradients.
      non_trainable: a pytree of arrays that are not, such as the statistics of a batch normalization.
    """

    trainable: Any
    non_trainable: Any


register_container("koinon.ModelWeights", ModelWeights)
