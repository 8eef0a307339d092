"""`Computation`, the typed, immutable value that both decorators make, and what the decorators share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from koinon._errors import ArgumentError, KoinonError, KoinonTypeError
from koinon.computation import _ir as ir
from koinon.computation._arguments import match_arguments, match_names
from koinon.computation._builder import tracing
from koinon.computation._context import current_backend
from koinon.computation._print import compact, formatted
from koinon.computation._value import call, pack_arguments, to_value
from koinon.types import FunctionType, StructType, Type, infer_type, to_type

Tracer = Callable[..., ir.Expression]


class Computation:
    """A typed function over placed values: it is called like a Python function, and runs on the backend in use.

    Made by `ko.federated_computation` and `ko.jax_computation`. Inside another federated computation a call becomes a
    part of that computation.

    Attributes:
      type_signature: its type, a `FunctionType`.
      expression: its expression in the intermediate representation.
      name: the name of the function that it was made of.
    """

    def __init__(self, expression: ir.Expression, *, name: str, doc: str | None = None) -> None:
        type_ = expression.type
        if not isinstance(type_, FunctionType):
            raise KoinonTypeError("A computation must be a function.", found=type_)
        self.expression = expression
        self.type_signature: FunctionType = type_
        self.name = self.__name__ = name
        self.__doc__ = doc if doc is not None else type(self).__doc__
        self.compiled: dict[Any, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the computation, or, inside a computation that is being traced, becomes a part of it."""
        if tracing():
            return call(self.expression, pack_arguments(self.type_signature.parameter, args, kwargs))
        argument = match_arguments(self.type_signature.parameter, args, kwargs)
        return current_backend().invoke(self, argument)

    def __str__(self) -> str:
        return compact(self.expression)

    def __repr__(self) -> str:
        return f"Computation({self.name}: {self.type_signature})"

    def formatted_representation(self) -> str:
        """The computation as text, one binding on each line."""
        return formatted(self.expression)


class PolymorphicComputation:
    """A computation whose parameter type is not declared: it is traced anew for each type that it meets."""

    def __init__(self, fn: Callable[..., Any], tracer: Tracer) -> None:
        self._fn = fn
        self._tracer = tracer
        self._names = parameter_names(fn)
        self._made: dict[Type, Computation] = {}
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)
        self.__doc__ = fn.__doc__

    def fn_for_argument_type(self, type_spec: Any) -> Computation:
        """The computation for one type of its parameter.

        With several Python parameters the type is a struct with one field for each of them.
        """
        type_ = to_type(type_spec)
        made = self._made.get(type_)
        if made is None:
            parameter = type_
            if len(self._names) > 1:
                parameter = name_fields(type_, self._names, self.__name__, location(self._fn))
            made = self._made[type_] = make_computation(self._fn, parameter, self._tracer)
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Specialises to the types of the arguments, and calls the result."""
        if not args and not kwargs:
            raise ArgumentError(f"The computation `{self.__name__}` takes arguments, but got none.")
        type_of = _traced_type if tracing() else infer_argument_type
        names = self._names
        if len(names) > 1 and len(args) == 1 and not kwargs:
            # One positional argument is the whole parameter, as it is of a computation with declared types.
            whole = type_of(args[0])
            if isinstance(whole, StructType) and len(whole) == len(names):
                return self.fn_for_argument_type(whole)(args[0])
        arguments = match_names(names, args, kwargs, ", ".join(names))
        types = [type_of(argument) for argument in arguments]
        type_ = types[0] if len(names) == 1 else StructType(list(zip(names, types, strict=True)))
        return self.fn_for_argument_type(type_)(*arguments)

    def __repr__(self) -> str:
        return f"PolymorphicComputation({self.__name__})"


def infer_argument_type(argument: Any) -> Type:
    """The type of an argument of a polymorphic computation."""
    try:
        return infer_type(argument)
    except KoinonError as error:
        raise ArgumentError(
            "An argument of a polymorphic computation must have a type.",
            expected="numbers, arrays, or containers of those",
            found=error.found,
        ) from None


def _traced_type(argument: Any) -> Type:
    return to_value(argument).type_signature


def decorate(tracer: Tracer, args: tuple[Any, ...]) -> Any:
    """The behaviour of both decorators: bare, with types, or as a function of a function and types."""
    if args and isinstance(args[0], Computation):
        raise KoinonTypeError(
            "A computation is made of a Python function, and this is a computation already.", found=repr(args[0])
        )
    if args and _is_function(args[0]):
        return wrap(args[0], args[1:], tracer)
    return lambda fn: wrap(fn, args, tracer)


def _is_function(obj: Any) -> bool:
    if isinstance(obj, (Type, type)) or hasattr(obj, "dtype"):
        return False
    return (
        inspect.isroutine(obj)
        or isinstance(obj, PolymorphicComputation)
        or (callable(obj) and not hasattr(obj, "_fields") and not isinstance(obj, (list, tuple, dict)))
    )


def wrap(fn: Any, type_specs: tuple[Any, ...], tracer: Tracer) -> Computation | PolymorphicComputation:
    """The computation of a function for these types of its parameters; a polymorphic one where there are none."""
    if not callable(fn):
        raise KoinonTypeError("A computation is made of a Python function.", found=f"{type(fn).__name__} {fn!r}")
    names = parameter_names(fn)
    types = [to_type(spec) for spec in type_specs]
    if not types:
        return PolymorphicComputation(fn, tracer) if names else make_computation(fn, None, tracer)
    name = getattr(fn, "__name__", type(fn).__name__)
    if len(types) == 1 and len(names) == 1:
        return make_computation(fn, types[0], tracer)
    if len(types) == 1 and isinstance(types[0], StructType):
        return make_computation(fn, name_fields(types[0], names, name, location(fn)), tracer)
    return make_computation(fn, name_fields(StructType(types), names, name, location(fn)), tracer)


def name_fields(type_: Type, names: list[str], fn_name: str, made_in: str | None) -> StructType:
    """The struct of a function's several parameters, with the names of the parameters."""
    if not isinstance(type_, StructType) or len(type_) != len(names):
        raise KoinonTypeError(
            f"The function `{fn_name}` needs one type for each of its parameters.",
            expected=f"a type for each of ({', '.join(names)})",
            found=type_,
            made_in=made_in,
        )
    for name, (field, _) in zip(names, type_.items(), strict=True):
        if field is not None and field != name:
            raise KoinonTypeError(
                f"The fields of the type do not have the names of the parameters of `{fn_name}`.",
                expected=", ".join(names),
                found=type_,
                differs=f"parameter {name!r}: the field is called {field!r}",
                made_in=made_in,
            )
    named = [(name, field) for name, (_, field) in zip(names, type_.items(), strict=True)]
    return StructType(named, type_.container if all(field is not None for field, _ in type_.items()) else None)


def make_computation(fn: Callable[..., Any], parameter: Type | None, tracer: Tracer) -> Computation:
    """Traces a function at one parameter type."""
    name = getattr(fn, "__name__", type(fn).__name__).strip("<>")
    unpack = len(parameter_names(fn)) > 1
    expression = tracer(fn, parameter, name=name, made_in=location(fn), unpack=unpack)
    return Computation(expression, name=name, doc=fn.__doc__)


def parameter_names(fn: Callable[..., Any]) -> list[str]:
    """The names of the parameters of a function that can become a computation."""
    if isinstance(fn, PolymorphicComputation):
        return fn._names
    try:
        signature = inspect.signature(fn)
    except ValueError:
        return ["x"]
    for parameter in signature.parameters.values():
        plain = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if not plain or parameter.default is not inspect.Parameter.empty:
            raise KoinonTypeError(
                f"The function `{getattr(fn, '__name__', fn)}` cannot become a computation: its parameters must be "
                "plain ones, without default values, *args, **kwargs, `/` or `*`.",
                found=f"the parameter `{parameter}`",
                made_in=location(fn),
                hint="wrap it: lambda x: fn(x, ...)",
            )
    return list(signature.parameters)


def with_plain_parameters(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of JAX, such as `jnp.sqrt`, with the parameters alone that it needs; any other function as it is.

    JAX's own functions take their operands by position, and have options with defaults.
    """
    module = getattr(fn, "__module__", None) or type(fn).__module__
    if module.split(".")[0] != "jax" or isinstance(fn, PolymorphicComputation):
        return fn
    if getattr(inspect.unwrap(fn), "__module__", module).split(".")[0] != "jax":
        return fn

    def unary(x: Any) -> Any:
        return fn(x)

    def binary(x: Any, y: Any) -> Any:
        return fn(x, y)

    plain = binary if _operands(fn) == 2 else unary
    plain.__name__ = getattr(fn, "__name__", type(fn).__name__)
    return plain


def _operands(fn: Callable[..., Any]) -> int:
    """How many operands a function of JAX needs."""
    if isinstance(fn, jnp.ufunc):
        return fn.nin
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(fn).parameters.values()
    return sum(p.kind in by_position and p.default is inspect.Parameter.empty for p in parameters)


def location(fn: Callable[..., Any]) -> str | None:
    """The file and line of a function, seen through wrappers."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else None
