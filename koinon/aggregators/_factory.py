"""What makes an aggregation: a factory that is given the type of the clients' values."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, Self, TypeAlias, TypeVar, final

from koinon._errors import KoinonTypeError, RobustOverSecureSumError
from koinon.computation import federated_computation
from koinon.templates._aggregation import AggregationProcess
from koinon.types import (
    FederatedType,
    StructType,
    TensorType,
    Type,
    at_clients,
    contains_federated_types,
    is_structure_of_floats,
)

ValueType: TypeAlias = TensorType | StructType

_P = ParamSpec("_P")
_F = TypeVar("_F")


class _Call(NamedTuple):
    """A call, that prints as it may have been written."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        shown = [_shown(argument) for argument in self.args]
        shown += [f"{key}={_shown(argument)}" for key, argument in self.kwargs.items()]
        return f"{self.name}({', '.join(shown)})"


class _Factory(abc.ABC):
    """What factories have in common: each prints as the call that made it, those of users too."""

    _made_by: _Call

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        # Not `made._made_by = ...`, which a frozen dataclass forbids.
        object.__setattr__(made, "_made_by", _Call(cls.__qualname__, args, kwargs))
        return made

    def __repr__(self) -> str:
        return str(self._made_by)


def prints_as_called(fn: Callable[_P, _F]) -> Callable[_P, _F]:
    """A function that makes factories, which then print as the call of this function."""

    @functools.wraps(fn)
    def make(*args: _P.args, **kwargs: _P.kwargs) -> _F:
        made = fn(*args, **kwargs)
        # The first argument of a class method is its class, which its qualified name has.
        given = args[1:] if args and isinstance(args[0], type) else args
        object.__setattr__(made, "_made_by", _Call(fn.__qualname__, given, kwargs))
        return made

    return make


def _shown(argument: object) -> str:
    """An argument in one line: a function by its name, and what prints as a page, such as a process, by its class."""
    if callable(argument) and hasattr(argument, "__qualname__"):
        return argument.__qualname__
    text = repr(argument)
    return f"<{type(argument).__qualname__}>" if "\n" in text else text


class UnweightedAggregationFactory(_Factory):
    """Makes aggregations of one value per client.

    Attributes:
      needs_each_value: whether the server has to see the value of each client, so that no sum can take the place of
        the aggregation.
    """

    needs_each_value: bool = False

    @abc.abstractmethod
    def create(self, value_type: ValueType) -> AggregationProcess:
        """Returns an `AggregationProcess` whose `next` takes the state and `{value_type}@CLIENTS`.

        Args:
          value_type: the unplaced type of one client's value, a `TensorType` or a `StructType`.

        Raises:
          TypeError: if `value_type` is anything else, or a type that the aggregation cannot handle.
        """


class WeightedAggregationFactory(_Factory):
    """Makes aggregations of one value and one weight per client.

    Attributes:
      needs_each_value: see `UnweightedAggregationFactory`.
    """

    needs_each_value: bool = False

    @abc.abstractmethod
    def create(self, value_type: ValueType, weight_type: ValueType) -> AggregationProcess:
        """Returns an `AggregationProcess` whose `next` takes the state, `{value_type}@CLIENTS` and the weights.

        Args:
          value_type: the unplaced type of one client's value, a `TensorType` or a `StructType`.
          weight_type: the unplaced type of one client's weight.

        Raises:
          TypeError: if one of the types is anything else, or one that the aggregation cannot handle.
        """


AggregationFactory: TypeAlias = UnweightedAggregationFactory | WeightedAggregationFactory


@prints_as_called
def as_weighted_aggregator(unweighted_aggregator: UnweightedAggregationFactory) -> WeightedAggregationFactory:
    """A weighted factory that aggregates like `unweighted_aggregator` and ignores the weights.

    Type: `(<S@SERVER,{V}@CLIENTS,{W}@CLIENTS> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    A learning process is composed with a weighted aggregation; this serves one where all clients count the same.

    Args:
      unweighted_aggregator: the factory to wrap.

    Raises:
      TypeError: if the argument is not an `UnweightedAggregationFactory`.

    Example:
      >>> import koinon as ko
      >>> tensor = ko.types.TensorType("float32")
      >>> process = ko.aggregators.as_weighted_aggregator(ko.aggregators.SumFactory()).create(tensor, tensor)
      >>> process.is_weighted, float(process.next(process.initialize(), [1.0, 2.0], [5.0, 7.0]).result)
      (True, 3.0)
    """
    check_unweighted_factory(unweighted_aggregator, "unweighted_aggregator")

    def create(value_type: ValueType, weight_type: ValueType) -> AggregationProcess:
        inner = unweighted_aggregator.create(value_type)

        @federated_computation(inner.state_type, at_clients(value_type), at_clients(weight_type))
        def next_fn(state: Any, value: Any, weight: Any) -> Any:
            del weight  # Ignored, which is the point.
            return inner.next(state, value)

        return AggregationProcess(inner.initialize, next_fn, allow_type_change=True, parts=inner.parts)

    return _WeightedFactory(create, unweighted_aggregator)


def factory_like(inner: AggregationFactory, create: Callable[..., AggregationProcess]) -> AggregationFactory:
    """A factory that is weighted if and only if `inner` is.

    Args:
      inner: the factory that the new one wraps.
      create: called as `create(value_type)` or `create(value_type, weight_type)`; returns the process.
    """
    is_weighted = isinstance(inner, WeightedAggregationFactory)
    return _WeightedFactory(create, inner) if is_weighted else _UnweightedFactory(create, inner)


def next_parameter(state_type: Type, value_type: ValueType, *weight_type: ValueType) -> StructType:
    """The parameter of the `next` of an aggregation, weighted if a type of weights is given.

    A function that is traced with it takes one parameter, the struct, and unpacks it as `state, value, *weight`.
    """
    weight = [("weight", at_clients(type_)) for type_ in weight_type]
    return StructType([("state", state_type), ("value", at_clients(value_type)), *weight])


@final
class _UnweightedFactory(UnweightedAggregationFactory):
    def __init__(self, create: Callable[..., AggregationProcess], inner: AggregationFactory) -> None:
        self._create = create
        self.needs_each_value = inner.needs_each_value

    def create(self, value_type: ValueType) -> AggregationProcess:
        check_value_type(value_type)
        return self._create(value_type)


@final
class _WeightedFactory(WeightedAggregationFactory):
    def __init__(self, create: Callable[..., AggregationProcess], inner: AggregationFactory) -> None:
        self._create = create
        self.needs_each_value = inner.needs_each_value

    def create(self, value_type: ValueType, weight_type: ValueType) -> AggregationProcess:
        check_value_type(value_type)
        check_value_type(weight_type, "weight_type")
        return self._create(value_type, weight_type)


def check_value_type(value_type: object, label: str = "value_type") -> None:
    """Raises a TypeError unless a factory can be given this: an unplaced `TensorType` or `StructType`."""
    if not isinstance(value_type, TensorType | StructType):
        raise KoinonTypeError(
            f"An aggregation is made for an unplaced type, given as `{label}`.",
            expected="TensorType or StructType",
            found=f"{type(value_type).__qualname__} {value_type}",
            hint="pass the member type" if isinstance(value_type, FederatedType) else "convert it with `ko.to_type`",
        )
    if contains_federated_types(value_type):
        raise KoinonTypeError(
            f"An aggregation is made for an unplaced type, given as `{label}`.",
            expected="a type without placements",
            found=value_type,
            hint="leave the placements out; the aggregation places the values at CLIENTS itself",
        )


def check_floats(value_type: ValueType, what: str) -> None:
    """Raises a TypeError unless all tensors of a type are floats; `what` names the aggregation in the message."""
    check_value_type(value_type)
    if not is_structure_of_floats(value_type):
        raise KoinonTypeError(
            f"{what} needs values of floating dtypes only.",
            expected="float16, float32 or float64 tensors",
            found=value_type,
            hint="cast the values to float32 at the clients",
        )


def check_unweighted_factory(factory: object, label: str) -> None:
    """Raises a TypeError unless an argument is an `UnweightedAggregationFactory`."""
    if not isinstance(factory, UnweightedAggregationFactory):
        raise KoinonTypeError(
            f"`{label}` must be an unweighted factory.",
            expected="UnweightedAggregationFactory",
            found=named(factory),
            hint="pass an instance, for example `SumFactory()`",
        )
    if factory.needs_each_value and label.endswith(("sum_factory", "record_aggregation_factory")):
        raise RobustOverSecureSumError(
            f"`{label}` must be a sum, and this is a rule that looks at the value of each client.",
            expected="an aggregation that adds up, such as SumFactory or SecureSumFactory",
            found=named(factory),
            hint="pass the rule as the aggregation itself, without a sum around it; or bound the influence of a client "
            "by what works with sums, `NormBoundedMeanFactory` or `CenteredClippingFactory`",
        )


def check_factory(factory: object, label: str) -> None:
    """Raises a TypeError unless an argument is a factory of aggregations."""
    if not isinstance(factory, UnweightedAggregationFactory | WeightedAggregationFactory):
        raise KoinonTypeError(
            f"`{label}` must be a factory of aggregations.",
            expected="UnweightedAggregationFactory or WeightedAggregationFactory",
            found=named(factory),
            hint="pass an instance, for example `MeanFactory()`",
        )


def check_int(value: object, label: str) -> None:
    """Raises a TypeError unless an argument is an int, which a bool is not."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise KoinonTypeError(f"`{label}` must be an int.", found=repr(value))


def named(factory: object) -> str:
    """What was passed for a factory: the call that made it, or that it is a class itself, or what else it is."""
    if isinstance(factory, type):
        return f"the class {factory.__qualname__}"
    is_factory = isinstance(factory, UnweightedAggregationFactory | WeightedAggregationFactory)
    return repr(factory) if is_factory else f"{type(factory).__qualname__} {_shown(factory)}"
