"""Placed values while a computation is traced."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from koinon._errors import (
    FieldIndexError,
    FieldNotFoundError,
    KoinonError,
    NotCallableError,
    TracingError,
    TypeNotAssignableError,
    UnsupportedTypeError,
)
from koinon.computation import _ir as ir
from koinon.computation._arguments import Unpacked, match_arguments
from koinon.computation._builder import current_builder, traced_function, user_location
from koinon.computation._precision import check_precision
from koinon.computation._rules import WIDTH_IN_SENTENCES
from koinon.types import (
    CLIENTS,
    FederatedType,
    FunctionType,
    PlacementLiteral,
    SequenceType,
    StructType,
    Type,
    from_container,
    infer_type,
)

_FIELDS_SHOWN = 16


class Value:
    """A placed or unplaced value of the computation being traced.

    Fields are reached by name or index, also those of a placed struct. There is no arithmetic on it: what is to be
    computed is a `jax_computation`, applied by `federated_map`.
    """

    __slots__ = ("_expression", "_traced_function")
    __hash__ = object.__hash__

    def __init__(self, expression: ir.Expression) -> None:
        self._expression = expression
        self._traced_function = traced_function()

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

    def __dir__(self) -> list[str]:
        member = _member(self.type_signature)
        return [*super().__dir__(), *(member.fields() if isinstance(member, StructType) else [])]

    def _struct(self, operation: str) -> StructType:
        member = _member(self.type_signature)
        if not isinstance(member, StructType):
            self._refuse(f"has no fields to {operation}")
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
        member = _member(self.type_signature)
        names = member.fields() if isinstance(member, StructType) else []
        if name not in names:
            alike = difflib.get_close_matches(name, names, 1)
            more = f", and {len(names) - _FIELDS_SHOWN} more" if len(names) > _FIELDS_SHOWN else ""
            raise FieldNotFoundError(
                f"{self._what()} has no field {name!r}.",
                expected=f"one of {', '.join(names[:_FIELDS_SHOWN])}{more}" if names else "a struct with named fields",
                found=repr(name),
                made_in=user_location(),
                hint=f"the field {alike[0]!r}" if alike else None if names else self._way_out(),
            )
        return self._select(names.index(name))

    def __getitem__(self, key: int | str | slice) -> Value:
        struct = self._struct("select")
        if isinstance(key, str):
            return self.__getattr__(key)
        if isinstance(key, slice):
            chosen = range(len(struct))[key]
            names = [name for name, _ in struct.items()]
            # Other containers than these cannot do without some of their fields.
            container = struct.container if struct.container in (list, tuple) else None
            return Value(ir.Struct(tuple((names[i], self._select(i).expression) for i in chosen), container))
        if isinstance(key, bool) or not isinstance(key, (int, np.integer)):
            raise TracingError(
                "A field of a traced value is selected by a name, an int or a slice.",
                found=f"{type(key).__name__} {key!r}",
                made_in=user_location(),
            )
        if not 0 <= key < len(struct):
            raise FieldIndexError(
                f"{self._what()} has {len(struct)} fields.",
                expected=f"an index from 0 to {len(struct) - 1}" if len(struct) else "no index",
                found=repr(key),
                made_in=user_location(),
            )
        return self._select(int(key))

    def __len__(self) -> int:
        return len(self._struct("count"))

    def __iter__(self) -> Iterator[Value]:
        return iter([self._select(i) for i in range(len(self._struct("iterate over")))])

    def __call__(self, *args: Any, **kwargs: Any) -> Value:
        type_ = self.type_signature
        if not isinstance(type_, FunctionType):
            raise NotCallableError(
                f"{self._what()} is no function and cannot be called.",
                made_in=user_location(),
                hint="apply a computation to it instead: computation(value)",
            )
        argument = pack_arguments(type_.parameter, args, kwargs)
        return call(self._expression, argument)

    def __bool__(self) -> bool:
        self._refuse(
            "has no truth value, since it is known only when the computation runs",
            hint="choose with jnp.where or jax.lax.cond, in a function that ko.federated_map applies",
        )

    def __eq__(self, other: object) -> Any:
        self._refuse("cannot be compared")

    def __ne__(self, other: object) -> Any:
        self._refuse("cannot be compared")

    def __contains__(self, item: object) -> bool:
        self._refuse("cannot be searched")

    def __format__(self, format_spec: str) -> str:
        try:
            return format(repr(self), format_spec)
        except ValueError:
            self._refuse(f"cannot be formatted as {format_spec!r}, since it is known only when the computation runs")

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self.__slots__:
            self._refuse_change()
        object.__setattr__(self, name, value)

    def __setitem__(self, key: object, value: object) -> None:
        self._refuse_change()

    def __delitem__(self, key: object) -> None:
        self._refuse_change()

    def _refuse_change(self) -> NoReturn:
        self._refuse("cannot be changed", hint="return a new struct of its fields, such as {'a': value.a, 'b': other}")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse("cannot be an operand of a function of JAX or numpy")

    def _refuse(self, what: str, hint: str | None = None) -> NoReturn:
        raise TracingError(f"{self._what()} {what}.", made_in=user_location(), hint=hint or self._way_out())

    def _what(self) -> str:
        return f"A traced value of type {self.type_signature.compact_representation(WIDTH_IN_SENTENCES)}"

    def _way_out(self) -> str:
        """What to do instead of computing with the value."""
        type_ = self.type_signature
        if not isinstance(type_, FederatedType):
            return "apply a @ko.jax_computation to it: computation(value)"
        if self._traced_function is not traced_function():
            # A function of JAX is being traced, which has captured the value.
            here = "value" if type_.placement is CLIENTS else "ko.federated_broadcast(value)"
            return f"give it to the function as an argument: ko.federated_map(fn, (..., {here}))"
        fold = ", ko.sequence_reduce(value, zero, op)" if isinstance(type_.member, SequenceType) else ""
        aggregate = ", or aggregate it: ko.federated_mean(value)" if type_.placement is CLIENTS and not fold else ""
        return f"apply a function where it is: ko.federated_map(fn, value){fold}{aggregate}"


def _member(type_: Type) -> Type:
    return type_.member if isinstance(type_, FederatedType) else type_


def _refuser(what: str) -> Callable[..., Any]:
    def refuse(self: Value, *_: Any) -> Any:
        self._refuse(what)

    return refuse


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "matmul")
_BITS = ("lshift", "rshift", "and", "or", "xor")
_OPERATORS = {
    "has no arithmetic": (
        *(*_BINARY, *_BITS, *[f"r{_name}" for _name in _BINARY + _BITS]),
        *("neg", "pos", "abs", "invert", "round", "trunc", "floor", "ceil"),
    ),
    "is no number of Python, since it is known only when the computation runs": ("int", "float", "complex", "index"),
    "cannot be compared": ("lt", "le", "gt", "ge"),
}
for _what, _names in _OPERATORS.items():
    for _name in _names:
        setattr(Value, f"__{_name}__", _refuser(_what))


def map_call(function: ir.Expression, argument: ir.Expression) -> ir.Call:
    """`federated_map(function, argument)`; a map at the clients forgets that all their values are equal."""
    function_type, argument_type = function.type, argument.type
    assert isinstance(function_type, FunctionType)
    assert isinstance(argument_type, FederatedType)
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
    """Lifts what a user wrote into a traced value: values, computations, constants, and containers of those.

    Raises:
      TracingError: where there is no value for such an object.
      UnsupportedTypeError: where a constant has a dtype that JAX, as it is configured, would narrow.
    """
    if isinstance(obj, Value):
        if obj._traced_function is not traced_function():
            raise TracingError(
                "A traced value is used outside the computation that it belongs to.",
                found=obj,
                made_in=user_location(),
                hint="return it from the function that is traced, and use the result",
            )
        return obj
    expression = getattr(obj, "expression", None)
    if isinstance(expression, ir.Expression):
        return Value(expression)
    try:
        type_ = infer_type(obj)
    except KoinonError as error:
        raise TracingError(
            f"An object of class {type(obj).__name__} cannot be a value of a computation.",
            expected="traced values, computations, numbers, arrays, or containers of those",
            found=error.found if isinstance(error, UnsupportedTypeError) else f"{error.what} {error.found}",
            made_in=user_location(),
            hint="a Python function becomes a computation by @ko.jax_computation" if callable(obj) else None,
        ) from None
    if isinstance(type_, StructType):
        children = from_container(type_, obj)
        elements = [to_value(child).expression for child in children]
        names = [name for name, _ in type_.items()]
        return Value(ir.Struct(tuple(zip(names, elements, strict=True)), type_.container))
    check_precision(type_, user_location())
    is_key = jax.dtypes.issubdtype(getattr(obj, "dtype", None), jax.dtypes.extended)
    return Value(ir.Literal(obj if is_key else np.asarray(obj, getattr(type_, "dtype", None)), type_))


def pack_arguments(parameter: Type | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ir.Expression | None:
    """The expression of the one parameter of a function, from the arguments of a call in a traced function."""
    from_call = match_arguments(parameter, args, kwargs)
    if parameter is None:
        return None
    if isinstance(from_call, Unpacked):
        assert isinstance(parameter, StructType)
        values = [
            (name, _lift(argument, field))
            for argument, (name, field) in zip(from_call.arguments, parameter.items(), strict=True)
        ]
        expression: ir.Expression = ir.Struct(tuple(values), parameter.container)
    else:
        expression = _lift(from_call, parameter)
    return coerce(expression, parameter)


def _lift(argument: Any, type_: Type) -> ir.Expression:
    return to_value(specialized(argument, type_)).expression


def specialized(argument: Any, type_: Type) -> Any:
    """An argument; of a polymorphic computation, where a function is wanted, the one for the wanted parameter."""
    specialize = getattr(argument, "fn_for_argument_type", None)
    if specialize is None or not isinstance(type_, FunctionType) or type_.parameter is None:
        return argument
    return specialize(type_.parameter)


def coerce(expression: ir.Expression, target: Type) -> ir.Expression:
    """The expression, zipped where a struct of placed values stands for a placed struct, checked against a type."""
    coerced = _coerced(expression, target)
    if coerced is not None:
        return coerced
    try:
        target.check_assignable_from(expression.type)
    except TypeNotAssignableError as error:
        raise TypeNotAssignableError(
            "The argument of a call does not have the type of the parameter.",
            expected=target,
            found=expression.type,
            differs=error.differs,
            made_in=user_location(),
            hint=_call_hint(expression.type, target),
        ) from None
    return expression


def _coerced(expression: ir.Expression, target: Type) -> ir.Expression | None:
    if target.is_assignable_from(expression.type):
        return expression
    if isinstance(target, FederatedType) and isinstance(expression.type, StructType):
        zipped = zip_expression(expression)
        return zipped if zipped is not None and target.is_assignable_from(zipped.type) else None
    if isinstance(expression, ir.Struct) and isinstance(target, StructType) and len(target) == len(expression.elements):
        elements: list[tuple[str | None, ir.Expression]] = []
        for (name, element), (_, field) in zip(expression.elements, target.items(), strict=True):
            coerced = _coerced(element, field)
            if coerced is None:
                return None
            elements.append((name, coerced))
        rebuilt = ir.Struct(tuple(elements), expression.container)
        return rebuilt if target.is_assignable_from(rebuilt.type) else None
    return None


def _call_hint(found: Type, target: Type) -> str | None:
    if isinstance(target, FederatedType) and isinstance(found, StructType):
        return f"a struct stands for a placed struct where all its values are at {target.placement}"
    if isinstance(found, FederatedType) and target.is_assignable_from(found.member):
        return "apply the computation where the value is: ko.federated_map(computation, value)"
    return None


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
            return StructType([(n, f) if n is not None else f for n, f in fields], type_.container)
        return None

    zipped = member(expression.type)
    if zipped is None or len(placements) != 1:
        return None
    (placement,) = placements
    result = FederatedType(zipped, placement)
    builder = current_builder("federated_zip")
    intrinsic = ir.Intrinsic("federated_zip", FunctionType(expression.type, result))
    return builder.bind(ir.Call(intrinsic, expression, made_in=user_location()))
