"""Placed values while a computation is traced."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from koinon._errors import (
    ContextError,
    FieldIndexError,
    FieldNotFoundError,
    NotCallableError,
    TracingError,
    TypeNotAssignableError,
)
from koinon.computation import _ir as ir
from koinon.computation._arguments import Unpacked, match_arguments
from koinon.types import (
    CLIENTS,
    FederatedType,
    FunctionType,
    PlacementLiteral,
    StructType,
    Type,
    from_container,
    infer_type,
)

_PACKAGE = __name__.split(".")[0] + "."


class Builder:
    """The bindings of the function being traced, in order."""

    def __init__(self, parent: Builder | None) -> None:
        self.bindings: list[tuple[str, ir.Expression]] = []
        self._names: Iterator[int] = parent._names if parent is not None else itertools.count()

    def fresh_name(self) -> str:
        """A name that nothing else in the outermost traced computation has."""
        return f"v{next(self._names)}"

    def bind(self, expression: ir.Expression) -> ir.Reference:
        """Binds an expression to a fresh name, so that it is computed once however often it is used."""
        name = self.fresh_name()
        self.bindings.append((name, expression))
        return ir.Reference(name, expression.type)

    def block(self, result: ir.Expression) -> ir.Expression:
        """The result within the bindings made so far."""
        return ir.Block(tuple(self.bindings), result) if self.bindings else result


_builder: contextvars.ContextVar[Builder | None] = contextvars.ContextVar("koinon_builder", default=None)


@contextlib.contextmanager
def building() -> Iterator[Builder]:
    """Traces into a new builder within a `with` block."""
    builder = Builder(_builder.get())
    token = _builder.set(builder)
    try:
        yield builder
    finally:
        _builder.reset(token)


@contextlib.contextmanager
def not_building() -> Iterator[None]:
    """Within a `with` block, computations run instead of being traced: the inside of a JAX function."""
    token = _builder.set(None)
    try:
        yield
    finally:
        _builder.reset(token)


def tracing() -> bool:
    """Whether a federated computation is being traced."""
    return _builder.get() is not None


def current_builder(operator: str) -> Builder:
    """The builder in use, for an operator that has a meaning only while a computation is traced."""
    builder = _builder.get()
    if builder is None:
        raise ContextError(
            f"`{operator}` has a meaning only inside a function decorated with @ko.federated_computation.",
            hint="move the call into such a function, and call that",
        )
    return builder


class Value:
    """A placed or unplaced value of the computation being traced.

    Fields are reached by name or index, also those of a placed struct. There is no arithmetic on it: what is to be
    computed is a `jax_computation`, applied by `federated_map`.
    """

    __slots__ = ("_expression",)
    __hash__ = object.__hash__

    def __init__(self, expression: ir.Expression) -> None:
        self._expression = expression

    @property
    def type_signature(self) -> Type:
        """The type of the value."""
        return self._expression.type

    @property
    def expression(self) -> ir.Expression:
        """The expression that the value stands for."""
        return self._expression

    def __repr__(self) -> str:
        return f"Value({self.type_signature})"

    def _struct(self, operation: str) -> StructType:
        type_ = self.type_signature
        member = type_.member if isinstance(type_, FederatedType) else type_
        if not isinstance(member, StructType):
            raise TracingError(
                f"A traced value of type {type_} has no fields to {operation}.",
                hint="apply a jax_computation to it with federated_map",
            )
        return member

    def _select(self, index: int) -> Value:
        expression = self._expression
        type_ = expression.type
        if isinstance(expression, ir.Struct):
            return Value(expression.elements[index][1])
        if isinstance(type_, FederatedType):
            builder = current_builder("selection")
            name = builder.fresh_name()
            body = ir.Selection(ir.Reference(name, type_.member), index)
            return Value(builder.bind(map_call(ir.Lambda(name, type_.member, body), expression)))
        return Value(ir.Selection(expression, index))

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__"):
            raise AttributeError(name)
        type_ = self.type_signature
        member = type_.member if isinstance(type_, FederatedType) else type_
        names = member.fields() if isinstance(member, StructType) else []
        if name not in names:
            raise FieldNotFoundError(
                f"A traced value of type {type_} has no field {name!r}.",
                expected=f"one of {', '.join(names)}" if names else "a struct with named fields",
                found=repr(name),
            )
        assert isinstance(member, StructType)
        return self._select([field for field, _ in member.items()].index(name))

    def __getitem__(self, key: int | str | slice) -> Value:
        struct = self._struct("select")
        if isinstance(key, str):
            return self.__getattr__(key)
        if isinstance(key, slice):
            chosen = range(len(struct))[key]
            names = [name for name, _ in struct.items()]
            return Value(ir.Struct(tuple((names[i], self._select(i).expression) for i in chosen), struct.container))
        if not 0 <= key < len(struct):
            raise FieldIndexError(
                f"A traced value of type {self.type_signature} has {len(struct)} fields.",
                expected=f"an index from 0 to {len(struct) - 1}" if len(struct) else "no index",
                found=repr(key),
            )
        return self._select(key)

    def __len__(self) -> int:
        return len(self._struct("count"))

    def __iter__(self) -> Iterator[Value]:
        return iter([self._select(i) for i in range(len(self._struct("iterate over")))])

    def __call__(self, *args: Any, **kwargs: Any) -> Value:
        type_ = self.type_signature
        if not isinstance(type_, FunctionType):
            raise NotCallableError(
                f"A traced value of type {type_} is no function and cannot be called.",
                hint="apply a computation to it instead: computation(value)",
            )
        argument = pack_arguments(type_.parameter, args, kwargs)
        return call(self._expression, argument)

    def __bool__(self) -> bool:
        self._refuse("has no truth value, since it is known only when the computation runs")

    def __eq__(self, other: object) -> Any:
        self._refuse("cannot be compared")

    def __ne__(self, other: object) -> Any:
        self._refuse("cannot be compared")

    def __jax_array__(self) -> Any:
        self._refuse("cannot be an operand of a function of JAX or numpy")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse("cannot be an operand of a function of JAX or numpy")

    def _refuse(self, what: str) -> NoReturn:
        raise TracingError(
            f"A traced value of type {self.type_signature} {what}.",
            made_in=user_location(),
            hint="write the arithmetic in a @ko.jax_computation and apply it with ko.federated_map",
        )


def _refuse_arithmetic(self: Value, *_: Any) -> Any:
    self._refuse("has no arithmetic")


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    setattr(Value, f"__{_name}__", _refuse_arithmetic)
    setattr(Value, f"__r{_name}__", _refuse_arithmetic)
for _name in ("lt", "le", "gt", "ge", "neg", "pos", "abs", "float", "int", "index"):
    setattr(Value, f"__{_name}__", _refuse_arithmetic)


def user_location() -> str | None:
    """The file and line of the nearest caller outside this package."""
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(_PACKAGE):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def map_call(function: ir.Expression, argument: ir.Expression) -> ir.Call:
    """`federated_map(function, argument)`; a map at the clients forgets that all their values are equal."""
    function_type, argument_type = function.type, argument.type
    assert isinstance(function_type, FunctionType) and isinstance(argument_type, FederatedType)
    placement: PlacementLiteral = argument_type.placement
    result = FederatedType(function_type.result, placement, None if placement is CLIENTS else argument_type.all_equal)
    operands = ir.Struct(((None, function), (None, argument)))
    return ir.Call(
        ir.Intrinsic("federated_map", FunctionType(operands.type, result)), operands, made_in=user_location()
    )


def call(function: ir.Expression, argument: ir.Expression | None) -> Value:
    """The value of a function applied to an argument whose type was checked."""
    builder = current_builder("a call")
    return Value(builder.bind(ir.Call(function, argument, made_in=user_location())))


def to_value(obj: Any) -> Value:
    """Lifts what a user wrote into a traced value: values, computations, constants, and containers of those."""
    if isinstance(obj, Value):
        return obj
    expression = getattr(obj, "expression", None)
    if isinstance(expression, ir.Expression):
        return Value(expression)
    type_ = infer_type(obj)
    if isinstance(type_, StructType):
        children = from_container(type_, obj)
        elements = [to_value(child).expression for child in children]
        names = [name for name, _ in type_.items()]
        return Value(ir.Struct(tuple(zip(names, elements, strict=True)), type_.container))
    if isinstance(type_, Type):
        is_key = jax.dtypes.issubdtype(getattr(obj, "dtype", None), jax.dtypes.extended)
        constant = obj if is_key else np.asarray(obj, type_.dtype)
        return Value(ir.Literal(constant, type_))
    raise TracingError(f"An object of class {type(obj).__name__} cannot be a value of a computation.", found=repr(obj))


def pack_arguments(parameter: Type | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ir.Expression | None:
    """The expression of the one parameter of a function, from the arguments of a call in a traced function."""
    from_call = match_arguments(parameter, args, kwargs)
    if parameter is None:
        return None
    if isinstance(from_call, Unpacked):
        values = [to_value(argument).expression for argument in from_call.arguments]
        assert isinstance(parameter, StructType)
        names = [name for name, _ in parameter.items()]
        expression: ir.Expression = ir.Struct(tuple(zip(names, values, strict=True)), parameter.container)
    else:
        expression = to_value(from_call).expression
    return coerce(expression, parameter)


def coerce(expression: ir.Expression, target: Type) -> ir.Expression:
    """The expression, zipped where a struct of placed values stands for a placed struct, checked against a type."""
    if target.is_assignable_from(expression.type):
        return expression
    if isinstance(target, FederatedType) and isinstance(expression.type, StructType):
        zipped = zip_expression(expression)
        if zipped is not None and target.is_assignable_from(zipped.type):
            return zipped
    if isinstance(expression, ir.Struct) and isinstance(target, StructType) and len(target) == len(expression.elements):
        elements = tuple(
            (name, coerce(element, field))
            for (name, element), (_, field) in zip(expression.elements, target.items(), strict=True)
        )
        rebuilt = ir.Struct(elements, expression.container)
        if target.is_assignable_from(rebuilt.type):
            return rebuilt
    try:
        target.check_assignable_from(expression.type)
    except TypeNotAssignableError as error:
        raise TypeNotAssignableError(
            "The argument of a call does not have the type of the parameter.",
            expected=target,
            found=expression.type,
            differs=error.differs,
            made_in=user_location(),
        ) from None
    return expression


def zip_expression(expression: ir.Expression) -> ir.Expression | None:
    """`federated_zip` of a struct of placed values; None where it is not one."""
    placements: set[PlacementLiteral] = set()

    def member(type_: Type) -> Type | None:
        if isinstance(type_, FederatedType):
            placements.add(type_.placement)
            return type_.member
        if isinstance(type_, StructType):
            fields = [(name, member(field)) for name, field in type_.items()]
            if any(field is None for _, field in fields):
                return None
            return StructType([(n, f) if n is not None else f for n, f in fields], type_.container)  # pyright: ignore
        return None

    zipped = member(expression.type)
    if zipped is None or len(placements) != 1:
        return None
    (placement,) = placements
    result = FederatedType(zipped, placement)
    builder = current_builder("federated_zip")
    intrinsic = ir.Intrinsic("federated_zip", FunctionType(expression.type, result))
    return builder.bind(ir.Call(intrinsic, expression, made_in=user_location()))
