"""Models as pure functions over pytrees, and the ways to make one from a module of your library."""

from koinon.learning._functional_model import (
    Forward,
    FunctionalModel,
    ModelOutput,
    evaluate,
    weights_type_from_model,
)
from koinon.learning._model_equinox import from_equinox
from koinon.learning._model_files import SavedModel, load_model, load_weights, save_model, save_weights
from koinon.learning._model_flax import from_flax
from koinon.learning._model_functional import functional
from koinon.learning._model_keras import from_keras
from koinon.learning._non_trainable import NonTrainableRule
from koinon.learning._weights import ModelWeights

__all__ = [
    "Forward",
    "FunctionalModel",
    "ModelOutput",
    "ModelWeights",
    "NonTrainableRule",
    "SavedModel",
    "evaluate",
    "from_equinox",
    "from_flax",
    "from_keras",
    "functional",
    "load_model",
    "load_weights",
    "save_model",
    "save_weights",
    "weights_type_from_model",
]
