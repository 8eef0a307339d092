"""What the makers of models check before they trace anything: modules, keys, examples, losses and metrics."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import KoinonError, KoinonTypeError, KoinonValueError
from koinon.types import SequenceType, Type, contains_federated_types, is_structure_of_tensors, strip_placement, to_type

_ADAPTERS = {"flax": "from_flax", "equinox": "from_equinox", "keras": "from_keras"}
_EXAMPLE = 'for instance {"x": (jnp.float32, (784,)), "y": jnp.int32}'


def not_a_module(
    module: Any, library: str, what: str, expected: str, *, pair_hint: str = "pass the module alone"
) -> KoinonTypeError:
    """The error for an object that is no module of a library, with what to do instead.

    Args:
      module: the object.
      library: the package of the library.
      what: the first sentence of the message.
      expected: the classes whose instances are modules.
      pair_hint: what to do where a tuple was given.
    """
    is_class = isinstance(module, type)
    found = f"the class {module.__qualname__}" if is_class else f"an object of class {type(module).__qualname__}"
    return KoinonTypeError(what, expected=expected, found=found, hint=_module_hint(module, library, pair_hint))


def _module_hint(module: Any, library: str, pair_hint: str) -> str | None:
    if isinstance(module, type):
        return "pass an instance of the module, not its class"
    packages = [base.__module__.split(".")[0] for base in type(module).__mro__]
    other = next((package for package in packages if package in _ADAPTERS.keys() - {library}), None)
    if isinstance(module, tuple):
        return pair_hint
    if isinstance(module, Mapping):
        return "pass the module itself, and not its variables"
    if other is not None:
        return f"ko.learning.models.{_ADAPTERS[other]} is for modules of {other}"
    if inspect.isroutine(module):
        return "call it if it makes a module; ko.learning.models.functional is for functions of weights and inputs"
    return None


def check_key(key: Any, what: str) -> None:
    """Checks that an object is a PRNG key of JAX, typed or not, or a mapping of names to keys."""
    dtype = getattr(key, "dtype", None)
    if isinstance(key, Mapping) or dtype == jnp.uint32 or (dtype and jnp.issubdtype(dtype, jax.dtypes.prng_key)):
        return
    raise KoinonTypeError(what, expected="a PRNG key", found=repr(key), hint="pass key=jax.random.key(0)")


def example_type(spec: Any) -> Type:
    """The type of one example that a specification describes."""
    if spec is None:
        raise KoinonTypeError("A model needs the type of one example.", found="None", hint=_EXAMPLE)
    type_ = to_type(spec)
    if contains_federated_types(type_) or not is_structure_of_tensors(type_):
        member = strip_placement(type_)
        one = member.element if isinstance(member, SequenceType) else member
        raise KoinonTypeError(
            "The type of an example is a tensor or a structure of tensors.",
            found=type_,
            hint=f"give the type of one example: {one}" if is_structure_of_tensors(one) else _EXAMPLE,
        )
    return type_


def check_loss_and_metrics(loss: Any, metrics: Any) -> None:
    """Checks that a loss can be called, and that metrics have names."""
    if not callable(loss):
        raise KoinonTypeError(
            "The loss of a model is a function of predictions and labels.",
            expected="loss(predictions, y), the losses of single examples",
            found=repr(loss),
            hint="for instance ko.learning.losses.cross_entropy",
        )
    if metrics is not None and not isinstance(metrics, Mapping):
        raise KoinonTypeError(
            "The metrics of a model have names.",
            expected="a mapping of names to metrics",
            found=f"an object of class {type(metrics).__qualname__}",
            hint='for instance {"accuracy": ko.learning.metrics.accuracy()}',
        )


@contextlib.contextmanager
def blaming(what: str, *, expected: str, found: str, hint: str) -> Iterator[None]:
    """Turns what a user's function raises while it is traced into an error that says what it was called with."""
    try:
        yield
    except KoinonError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise KoinonValueError(what, expected=expected, found=f"{found}; {reason}", hint=hint) from error
