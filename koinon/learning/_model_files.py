"""Models in files, without pickle: weights as arrays, the prediction as a StableHLO program."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from koinon._errors import KoinonTypeError, MissingDependencyError, ProgramStateCorruptedError
from koinon.learning._functional_model import FunctionalModel, batch_shapes
from koinon.learning._weights import ModelWeights
from koinon.program import load_pytree, save_pytree

_PLATFORMS = ("cpu", "cuda", "tpu")


def save_weights(path: str | os.PathLike[str], weights: ModelWeights) -> None:
    """Saves the weights of a model to a file, atomically and durably; an existing file is replaced.

    >>> import os, tempfile, jax.numpy as jnp, koinon as ko
    >>> path = os.path.join(tempfile.mkdtemp(), "weights")
    >>> weights = ko.learning.models.ModelWeights({"w": jnp.ones(2)}, ())
    >>> ko.learning.models.save_weights(path, weights)
    >>> ko.learning.models.load_weights(path, weights).trainable["w"].tolist()
    [1.0, 1.0]

    Args:
      path: the file.
      weights: for example `process.get_model_weights(state)`.

    Raises:
      ProgramStateWriteError: the operating system refuses; an existing file is then as it was before.
    """
    save_pytree(path, ModelWeights(*weights))


def load_weights(path: str | os.PathLike[str], like: FunctionalModel | ModelWeights) -> ModelWeights:
    """Loads the weights that `save_weights` has saved.

    Args:
      path: the file.
      like: the model, or weights of the same structure, shapes and dtypes.

    Raises:
      FileNotFoundError: there is no such file.
      ProgramStateCorruptedError: the file is damaged, or is none of `save_weights`'s.
      ProgramStateStructureError: it holds weights of another model.
    """
    return load_pytree(path, like.initial_weights if isinstance(like, FunctionalModel) else like)


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model from a file: weights and the prediction, without the code that it was made of.

    Attributes:
      weights: the leaves of the weights, in the order of the model.
    """

    weights: tuple[Any, ...]
    _program: Any

    def predict_on_batch(self, x: Any) -> Any:
        """The predictions for a batch of inputs of any size, as of `FunctionalModel` outside of training.

        Raises:
          ValueError: the inputs are not of the type of the model's.
        """
        return self._program.call(list(self.weights), x)


def save_model(path: str | os.PathLike[str], model: FunctionalModel, weights: ModelWeights | None = None) -> None:
    """Saves a model for use elsewhere: a program that needs neither this model's code nor koinon's.

    The file holds arrays and a StableHLO program for batches of any size, for CPUs, GPUs and TPUs; nothing in it is
    pickled. It is read by the same and by newer versions of JAX, as far as JAX guarantees (six months).

    >>> import os, tempfile, jax.numpy as jnp, koinon as ko
    >>> model = ko.learning.models.functional(
    ...     lambda w, x: w * x, jnp.float32(3.0),
    ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
    ... )
    >>> path = os.path.join(tempfile.mkdtemp(), "model")
    >>> ko.learning.models.save_model(path, model)
    >>> ko.learning.models.load_model(path).predict_on_batch(jnp.array([1.0, 2.0])).tolist()
    [3.0, 6.0]

    Args:
      path: the file.
      model: the model; its inputs and predictions are arrays, or dicts, lists and tuples of them.
      weights: the weights to save with it; the model's initial ones if None.

    Raises:
      MissingDependencyError: `flatbuffers` is not installed, in which JAX writes a program.
      KoinonTypeError: inputs or predictions are of a class that a file cannot name.
      ProgramStateWriteError: the operating system refuses; an existing file is then as it was before.
    """
    _check_flatbuffers("Saving a model as a program")
    leaves, structure = jax.tree.flatten(ModelWeights(*(model.initial_weights if weights is None else weights)))
    batch: Any = jax.export.symbolic_shape("batch")[0]
    inputs = jax.eval_shape(lambda examples: model.split_example(examples)[0], batch_shapes(model.input_spec, batch))

    def predict(leaves: list[Any], x: Any) -> Any:
        return model.predict_on_batch(jax.tree.unflatten(structure, leaves), x)

    specs = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    exported = jax.export.export(jax.jit(predict), platforms=_PLATFORMS)(specs, inputs)
    try:
        program = exported.serialize()
    except ValueError as error:
        raise KoinonTypeError(
            "The inputs or predictions of this model cannot be named in a file.",
            expected="arrays, or dicts, lists and tuples of them",
            found=str(error),
        ) from error
    save_pytree(path, {"program": np.frombuffer(program, np.uint8), "weights": list(leaves)})


def load_model(path: str | os.PathLike[str]) -> SavedModel:
    """Loads what `save_model` has saved.

    Raises:
      FileNotFoundError: there is no such file.
      MissingDependencyError: `flatbuffers` is not installed, in which JAX reads a program.
      ProgramStateCorruptedError: the file is damaged, or is none of `save_model`'s.
    """
    _check_flatbuffers("Loading a model as a program")
    saved = load_pytree(path)
    if not isinstance(saved, dict) or set(saved) != {"program", "weights"}:
        raise ProgramStateCorruptedError("The file holds no model.", found=os.fspath(path))
    program = jax.export.deserialize(bytearray(np.asarray(saved["program"]).tobytes()))
    return SavedModel(tuple(jnp.asarray(leaf) for leaf in saved["weights"]), program)


def _check_flatbuffers(purpose: str) -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise MissingDependencyError("flatbuffers", extra="export", purpose=purpose)
