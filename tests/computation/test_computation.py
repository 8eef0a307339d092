"""Tests of computations: the decorators, polymorphism, and how computations are called and printed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.errors import ArgumentError, KoinonTypeError
from koinon.types import FederatedType, FunctionType, StructType, TensorType, at_clients, at_server
from tests.messages import blamed_line

INT = at_clients(np.int32)
DECORATORS = pytest.mark.parametrize("decorator", [ko.jax_computation, ko.federated_computation])


def first(a: Any, b: Any) -> Any:
    """The first argument."""
    return a


# --- decorators ------------------------------------------------------------------------------------------------------


@DECORATORS
def test_a_decorator_takes_the_types_of_the_parameters(decorator: Callable[..., Any]) -> None:
    """As a decorator with types, and as a function of a function and types."""

    @decorator(np.int32, np.float32)
    def decorated(a: Any, b: Any) -> Any:
        """What it does."""
        return b

    assert isinstance(decorated, ko.Computation)
    assert str(decorated.type_signature) == "(<a=int32,b=float32> -> float32)"
    assert decorated.__name__ == decorated.name == "decorated"
    assert decorated.__doc__ == "What it does."
    assert decorator(first, np.int32, np.bool_).type_signature == decorator(np.int32, np.bool_)(first).type_signature


@DECORATORS
def test_a_function_without_parameters_is_a_computation_at_once(decorator: Callable[..., Any]) -> None:
    """Bare, it needs no types."""

    @decorator
    def one() -> Any:
        return 1

    assert str(one.type_signature) == "( -> int32)"
    assert int(one()) == 1


@DECORATORS
def test_one_parameter_takes_a_whole_struct_and_several_its_fields(decorator: Callable[..., Any]) -> None:
    """A struct type serves one parameter as it is, and several as one type for each."""
    struct = StructType([np.int32, np.float32])
    assert str(decorator(lambda s: s[0], struct).type_signature) == "(<int32,float32> -> int32)"
    assert str(decorator(first, struct).type_signature) == "(<a=int32,b=float32> -> int32)"
    named = StructType([("a", np.int32), ("b", np.float32)])
    assert str(decorator(first, named).type_signature) == "(<a=int32,b=float32> -> int32)"


@DECORATORS
@pytest.mark.parametrize("types", [(np.int32,), (np.int32,) * 3, (StructType([np.int32]),)])
def test_each_parameter_needs_a_type(decorator: Callable[..., Any], types: Any) -> None:
    """Too few and too many types are refused, with the names of the parameters and the place of the function."""
    with pytest.raises(
        KoinonTypeError, match="The function `first` needs one type for each of its parameters"
    ) as caught:
        decorator(first, *types)
    assert caught.value.expected == "a type for each of (a, b)"
    assert blamed_line(caught.value) == "def first(a: Any, b: Any) -> Any:"


@DECORATORS
def test_a_function_without_parameters_takes_no_types(decorator: Callable[..., Any]) -> None:
    """A type too many is refused here too."""
    with pytest.raises(KoinonTypeError, match="needs one type for each of its parameters"):
        decorator(lambda: 1, np.int32)


@DECORATORS
def test_the_fields_of_a_struct_type_have_the_names_of_the_parameters(decorator: Callable[..., Any]) -> None:
    """A field of another name is refused, naming both."""
    with pytest.raises(KoinonTypeError, match="do not have the names of the parameters of `first`") as caught:
        decorator(first, StructType([("a", np.int32), ("c", np.int32)]))
    assert caught.value.expected == "a, b"
    assert caught.value.differs == "parameter 'b': the field is called 'c'"


def _keyword_only(a: Any, *, b: Any) -> Any:
    return a


def _positional_only(a: Any, /) -> Any:
    return a


@DECORATORS
@pytest.mark.parametrize(
    ("fn", "parameter"),
    [
        (lambda a, b=1: a, "b=1"),
        (lambda *a: a, "*a"),
        (lambda **a: a, "**a"),
        (_keyword_only, "b: 'Any'"),
        (_positional_only, "a: 'Any'"),
        (functools.partial(first, b=1), "b: 'Any' = 1"),
    ],
)
def test_parameters_are_plain(decorator: Callable[..., Any], fn: Callable[..., Any], parameter: str) -> None:
    """Defaults, *args, **kwargs, positional-only and keyword-only parameters are refused, polymorphic or not."""
    for types in ((), (np.int32,), (np.int32, np.int32)):
        with pytest.raises(KoinonTypeError, match="its parameters must be plain ones") as caught:
            decorator(fn, *types)
        assert caught.value.found == f"the parameter `{parameter}`"


@DECORATORS
@pytest.mark.parametrize("not_a_function", [5, "f", [first]])
def test_a_computation_is_made_of_a_function(decorator: Callable[..., Any], not_a_function: Any) -> None:
    """Anything else is a TypeError."""
    with pytest.raises(TypeError):
        decorator(np.int32)(not_a_function)


@DECORATORS
def test_a_computation_is_not_made_of_a_computation(decorator: Callable[..., Any]) -> None:
    """A computation has its type already."""
    comp = ko.jax_computation(lambda x: x, np.int32)
    with pytest.raises(KoinonTypeError, match="this is a computation already"):
        decorator(comp)
    with pytest.raises(KoinonTypeError, match="this is a computation already"):
        decorator(comp, np.int32)


@DECORATORS
@pytest.mark.parametrize("spec", ["int32", None, int, 5])
def test_a_parameter_type_is_a_type(decorator: Callable[..., Any], spec: Any) -> None:
    """What `to_type` does not read is refused."""
    with pytest.raises(TypeError):
        decorator(spec)(lambda x: x)


class _Doubler:
    def __call__(self, x: Any) -> Any:
        return x + x

    def double(self, x: Any) -> Any:
        return x + x


@pytest.mark.parametrize(
    "fn",
    [
        *(_Doubler(), _Doubler().double, jax.jit(lambda x: x + x), functools.partial(lambda a, x: a * x, 2)),
        *(ko.jax_computation(lambda x: x + x),),
    ],
    ids=["object", "method", "jitted", "partial", "polymorphic"],
)
def test_anything_with_plain_parameters_becomes_a_computation(fn: Any) -> None:
    """Callable objects, methods, jitted functions, partials and polymorphic computations."""
    assert int(ko.jax_computation(fn, np.int32)(4)) == 8


# --- polymorphism ----------------------------------------------------------------------------------------------------


@ko.jax_computation
def poly_add(x: Any, y: Any) -> Any:
    """The sum, for any types."""
    return jax.tree.map(jnp.add, x, y)


def test_without_types_a_computation_is_traced_for_each_type_that_it_meets() -> None:
    """The type is inferred from the arguments; one trace serves all calls of one type."""
    traced = []

    @ko.jax_computation
    def double(x: Any) -> Any:
        traced.append(x)
        return jax.tree.map(lambda leaf: leaf + leaf, x)

    assert isinstance(double, ko.PolymorphicComputation)
    assert not isinstance(double, ko.Computation)
    assert int(double(2)) == 4
    assert int(double(3)) == 6
    assert len(traced) == 1
    assert {k: float(v) for k, v in double({"a": 1.5}).items()} == {"a": 3.0}
    assert double(np.ones(2, np.float32)).tolist() == [2.0, 2.0]
    assert len(traced) == 3


def test_a_polymorphic_computation_is_specialised_to_a_type() -> None:
    """`fn_for_argument_type` gives the computation, the same for the same type."""
    comp = poly_add.fn_for_argument_type(StructType([np.int32, np.int32]))
    assert str(comp.type_signature) == "(<x=int32,y=int32> -> int32)"
    assert poly_add.fn_for_argument_type([("x", np.int32), ("y", np.int32)]).type_signature == comp.type_signature
    assert poly_add.fn_for_argument_type(StructType([np.int32, np.int32])) is comp


@pytest.mark.parametrize(
    "call",
    [
        *(lambda f: f(1, 2), lambda f: f(1, y=2), lambda f: f(y=2, x=1), lambda f: f((1, 2))),
        *(lambda f: f({"y": 2, "x": 1}), lambda f: f([1, 2])),
    ],
)
def test_a_polymorphic_computation_is_called_like_another(call: Callable[[Any], Any]) -> None:
    """Positions, names, and one argument as the whole parameter."""
    assert int(call(poly_add)) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(), "takes arguments, but got none"),
        (lambda f: f(1), "The argument 'y' is missing"),
        (lambda f: f(x=1), "The argument 'y' is missing"),
        (lambda f: f(1, x=1), "The argument 'x' was given twice"),
        (lambda f: f(1, z=1), "has no parameter 'z'"),
        (lambda f: f(1, 2, 3), "takes 2 arguments"),
        (lambda f: f(None, 1), "must have a type"),
        (lambda f: f("a", 1), "must have a type"),
    ],
)
def test_a_wrong_call_of_a_polymorphic_computation_is_an_argument_error(
    call: Callable[[Any], Any], message: str
) -> None:
    """The message says which argument, and all parameters."""
    with pytest.raises(ArgumentError, match=message) as caught:
        call(poly_add)
    assert isinstance(caught.value, TypeError)


def test_a_polymorphic_computation_of_one_parameter_is_called_by_its_name() -> None:
    """The name of the one parameter serves, another does not."""
    double = ko.jax_computation(lambda x: x + x)
    assert int(double(x=4)) == 8
    with pytest.raises(ArgumentError, match="has no parameter 'y'"):
        double(y=4)
    with pytest.raises(ArgumentError, match="takes 1 arguments"):
        double(1, 2)


def test_a_polymorphic_federated_computation_is_specialised_while_tracing() -> None:
    """Inside another computation it takes the types of the values; a list outside is a struct, not clients."""

    @ko.federated_computation
    def totals(a: Any, b: Any) -> Any:
        return ko.federated_sum(a), ko.federated_sum(b)

    outer = ko.federated_computation(lambda a, b: totals(a, b=b), INT, at_clients(np.float32))
    total_a, total_b = outer([1, 2], [0.5, 0.25])
    assert (int(total_a), float(total_b)) == (3, 0.75)
    with pytest.raises(TypeError, match="must be a placed value"):
        totals([1, 2], [1, 2])


# --- text ------------------------------------------------------------------------------------------------------------


def test_a_computation_prints_its_expression_and_its_type() -> None:
    """`str` is the expression on one line, `repr` the name and the type."""

    @ko.federated_computation(INT)
    def total(values: Any) -> Any:
        return ko.federated_sum(values)

    assert str(total) == "(v0 -> (let v1=federated_sum(v0) in v1))"
    assert repr(total) == "Computation(total: ({int32}@CLIENTS -> int32@SERVER))"
    assert total.formatted_representation().splitlines() == [
        "(v0 -> (let",
        "  v1: int32@SERVER = federated_sum(v0)",
        " in v1))",
    ]
    assert repr(poly_add) == "PolymorphicComputation(poly_add)"


# --- functions as values ---------------------------------------------------------------------------------------------

INT_TO_INT = FunctionType(np.int32, np.int32)
add_one = ko.jax_computation(lambda x: x + 1, np.int32)
twice_mapped = ko.federated_computation(
    lambda f, v: ko.federated_map(f, ko.federated_map(f, v)), INT_TO_INT, at_clients(np.int32)
)


def test_a_computation_is_an_argument(backend: str) -> None:
    """A parameter of a function type takes a computation, concrete or polymorphic, which is mapped and called."""
    assert str(twice_mapped.type_signature) == "(<f=(int32 -> int32),v={int32}@CLIENTS> -> {int32}@CLIENTS)"
    assert [int(x) for x in twice_mapped(add_one, [1, 2])] == [3, 4]
    assert [int(x) for x in twice_mapped(ko.jax_computation(lambda x: x * 3), [1, 2])] == [9, 18]


def test_a_computation_is_an_argument_inside_another(backend: str) -> None:
    """The same while tracing, where the engine sees one computation without functions."""
    comp = ko.federated_computation(
        lambda v: twice_mapped(add_one, twice_mapped(ko.jax_computation(lambda x: -x), v)), INT
    )
    assert [int(x) for x in comp([1, 2])] == [3, 4]


def test_a_placed_computation_is_an_argument(backend: str) -> None:
    """A function of placed values is passed and called."""
    aggregate = ko.federated_computation(lambda f, v: f(v), FunctionType(INT, at_server(np.int32)), INT)
    total = ko.federated_computation(lambda v: ko.federated_sum(v), INT)
    largest = ko.federated_computation(lambda v: ko.federated_max(v), INT)
    assert int(aggregate(total, [1, 2, 5])) == 8
    assert int(aggregate(largest, [1, 2, 5])) == 5


def test_a_computation_is_a_result(backend: str) -> None:
    """A returned function is called like a computation, with the same checks."""
    make = ko.federated_computation(lambda n: {"f": add_one, "n": n}, np.int32)
    assert str(make.type_signature) == "(int32 -> <f=(int32 -> int32),n=int32>)"
    made = make(5)
    assert int(made["n"]) == 5
    assert int(made["f"](4)) == 5
    assert repr(made["f"]) == "FunctionResult((int32 -> int32))"
    with pytest.raises(ArgumentError, match="got no arguments"):
        made["f"]()
    with pytest.raises(ArgumentError, match="does not fit the declared dtype"):
        made["f"](4.5)


def test_a_returned_function_knows_what_it_captured(backend: str) -> None:
    """A function that was an argument comes back with its meaning."""
    same = ko.federated_computation(lambda f: f, INT_TO_INT)
    assert int(same(add_one)(41)) == 42


def test_a_returned_function_of_placed_values_counts_its_clients(backend: str) -> None:
    """Its own arguments tell the number of clients, and must agree with those of the first call."""
    total = ko.federated_computation(lambda v: ko.federated_sum(v), INT)
    make = ko.federated_computation(lambda: total)
    assert int(make()([1, 2, 3])) == 6
    beside = ko.federated_computation(lambda v: (ko.federated_sum(v), total), INT)
    number, function = beside([1, 2])
    assert (int(number), int(function([10, 20]))) == (3, 30)
    with pytest.raises(ko.errors.CardinalityError, match="Conflicting cardinalities for CLIENTS: 2 vs 3"):
        function([1, 2, 3])


def test_a_function_of_another_type_is_refused_as_an_argument() -> None:
    """Functions are contravariant in their parameter; the message has the path."""
    with pytest.raises(ko.errors.TypeNotAssignableError) as caught:
        twice_mapped(ko.jax_computation(lambda x: x, np.float32), [1])
    assert caught.value.differs == ".parameter: expected int32, found float32"


@pytest.mark.parametrize("argument", [lambda x: x, 5, None])
def test_only_a_computation_is_an_argument_of_a_function_type(argument: Any) -> None:
    """A plain Python function is refused with the way out."""
    with pytest.raises(ArgumentError, match="An argument must be a computation") as caught:
        twice_mapped(argument, [1])
    assert caught.value.differs == ".f"
    assert (caught.value.hint is not None) == callable(argument)


def test_computations_inside_computations_are_one_computation(backend: str) -> None:
    """Calls of computations while tracing become part of the one that is traced."""
    halve = ko.jax_computation(lambda x: x / 2, np.float32)
    mean = ko.federated_computation(lambda v: ko.federated_mean(v), at_clients(np.float32))
    outer = ko.federated_computation(lambda v: mean(ko.federated_map(halve, v)), at_clients(np.float32))
    assert float(outer([1.0, 2.0, 6.0])) == (0.5 + 1.0 + 3.0) / 3
    nested = ko.federated_computation(lambda x: halve(halve(x)), np.float32)
    assert float(nested(8.0)) == 2.0


# --- inside JAX ------------------------------------------------------------------------------------------------------


def test_a_computation_inside_a_jax_computation_is_a_function_of_jax(backend: str) -> None:
    """Calling one in the other is traced through, also from polymorphic ones."""
    square = ko.jax_computation(lambda x: x * x, np.float32)
    poly_square = ko.jax_computation(lambda x: x * x)
    fourth = ko.jax_computation(lambda x: square(poly_square(x)), np.float32)
    assert float(fourth(2.0)) == 16.0


def test_a_computation_is_a_function_of_jax(backend: str) -> None:
    """jit, grad and vmap go through a computation, also through a whole round."""
    square = ko.jax_computation(lambda x: x * x, np.float32)
    assert float(jax.jit(lambda x: square(x) + 1)(jnp.float32(3.0))) == 10.0
    assert float(jax.grad(square)(jnp.float32(3.0))) == 6.0
    assert jax.vmap(square)(jnp.arange(3.0)).tolist() == [0.0, 1.0, 4.0]

    @ko.federated_computation(at_server(np.float32), at_clients(np.float32))
    def loss(rate: Any, values: Any) -> Any:
        products = ko.federated_map(lambda r, v: (r * v) ** 2, (ko.federated_broadcast(rate), values))
        return ko.federated_sum(products)

    values = [jnp.float32(1.0), jnp.float32(2.0)]
    # The sum of (r v)^2 has the derivative 2 r sum(v^2).
    assert float(jax.grad(lambda r: loss(r, values))(jnp.float32(3.0))) == 2 * 3 * (1 + 4)


def test_an_unknown_kind_of_type_is_no_parameter_of_a_jax_computation() -> None:
    """Placed values and functions are refused."""
    for type_ in (INT, INT_TO_INT, StructType([INT])):
        with pytest.raises(KoinonTypeError, match="nothing placed and no function") as caught:
            ko.jax_computation(lambda x: x, type_)
        assert caught.value.found == type_
        assert caught.value.made_in is not None


def test_types_with_containers_are_kept_in_the_signature() -> None:
    """The container of a parameter type is what the function gets, and what comes back."""
    seen = []

    @ko.jax_computation({"b": np.int32, "a": (np.float32, (2,))})
    def swap(tree: Any) -> Any:
        seen.append(type(tree))
        return tree["b"], tree["a"]

    assert seen == [dict]
    assert isinstance(swap.type_signature.parameter, StructType)
    assert swap.type_signature.parameter.container is dict
    assert type(swap({"a": [1.0, 2.0], "b": 3})) is tuple


def test_an_all_equal_parameter_is_given_once(backend: str) -> None:
    """A value that all clients have is one argument, and one result."""
    same = ko.federated_computation(lambda v: v, FederatedType(TensorType(np.int32), ko.CLIENTS, True))
    assert int(same(7)) == 7
