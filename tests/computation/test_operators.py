"""Tests of the operators as users call them: result types, and the errors of each with all their parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.errors import (
    KoinonTypeError,
    MeanIncompatibleError,
    MinMaxIncompatibleError,
    OperandError,
    PlacementError,
    SumIncompatibleError,
    TypeNotAssignableError,
)
from koinon.types import (
    CLIENTS,
    SERVER,
    FederatedType,
    SequenceType,
    StructType,
    TensorType,
    Type,
    at_clients,
    at_server,
    parse,
)
from tests.messages import blamed_line

INT, FLOAT = at_clients(np.int32), at_clients(np.float32)
KEY = TensorType(jax.random.key(0).dtype)


def result(fn: Callable[..., Any], *types: Any) -> str:
    """The result type of the computation of a function."""
    return str(ko.federated_computation(fn, *types).type_signature.result)


def add(x: Any, y: Any) -> Any:
    """The sum."""
    return x + y


def identity(x: Any) -> Any:
    """The argument."""
    return x


add_ints = ko.jax_computation(add, np.int32, np.int32)
add_floats = ko.jax_computation(add, np.float32, np.float32)

# --- result types ----------------------------------------------------------------------------------------------------

_RESULTS: list[tuple[Callable[..., Any], list[Any], str]] = [
    (ko.federated_broadcast, [at_server(np.int32)], "int32@CLIENTS"),
    (lambda v: ko.federated_map(lambda x: x / 2, v), [INT], "{float32}@CLIENTS"),
    (lambda v: ko.federated_map(lambda x: x / 2, v), [at_server(np.int32)], "float32@SERVER"),
    (lambda v: ko.federated_map(identity, v), [FederatedType(np.int32, CLIENTS, True)], "{int32}@CLIENTS"),
    (ko.federated_sum, [INT], "int32@SERVER"),
    (ko.federated_sum, [at_clients({"a": (np.int8, (2,)), "b": np.complex64})], "<a=int8[2],b=complex64>@SERVER"),
    (ko.federated_sum, [at_clients(jnp.bfloat16)], "bfloat16@SERVER"),
    (ko.federated_mean, [FLOAT], "float32@SERVER"),
    (ko.federated_mean, [at_clients((np.float16, (2, 3)))], "float16[2,3]@SERVER"),
    (ko.federated_mean, [at_clients(np.complex64)], "complex64@SERVER"),
    (ko.federated_mean, [FLOAT, INT], "float32@SERVER"),
    (ko.federated_mean, [FLOAT, at_clients(jnp.bfloat16)], "float32@SERVER"),
    (ko.federated_min, [INT], "int32@SERVER"),
    (ko.federated_max, [at_clients([np.float32, np.uint8])], "<float32,uint8>@SERVER"),
    (lambda v: ko.federated_aggregate(v, 0, add, add, lambda t: t / 2), [INT], "float32@SERVER"),
    (lambda: ko.federated_eval(lambda: {"x": 1}, CLIENTS), [], "{<x=int32>}@CLIENTS"),
    (lambda: ko.federated_eval(lambda: jnp.zeros(3), SERVER), [], "float32[3]@SERVER"),
    (lambda: ko.federated_value([1, 2.0], CLIENTS), [], "<int32,float32>@CLIENTS"),
    (lambda: ko.federated_value(True, SERVER), [], "bool@SERVER"),
    (lambda x: ko.federated_value(x, CLIENTS), [np.float32], "float32@CLIENTS"),
    (lambda a, b: ko.federated_zip({"x": a, "y": (b, ())}), [INT, FLOAT], "{<x=int32,y=<float32,<>>>}@CLIENTS"),
    (lambda a, b: ko.federated_zip((a, b)), [at_server(np.int32), at_server(np.bool_)], "<int32,bool>@SERVER"),
    (
        lambda a: ko.federated_zip((ko.federated_broadcast(a), ko.federated_broadcast(a))),
        [at_server(np.int32)],
        "{<int32,int32>}@CLIENTS",
    ),
    (ko.federated_collect, [at_clients([np.int32, np.float32])], "<int32,float32>*@SERVER"),
    (ko.federated_split_key, [at_server(KEY)], "{key<fry>}@CLIENTS"),
    (lambda v: ko.federated_secure_sum(v, 10), [INT], "int32@SERVER"),
    (
        lambda v: ko.federated_secure_sum(v, {"a": 1, "b": 2}),
        [at_clients({"a": np.int8, "b": np.int32})],
        "<a=int8,b=int32>@SERVER",
    ),
    (lambda v: ko.federated_secure_sum_bitwidth(v, 4), [at_clients(np.uint16)], "uint16@SERVER"),
    (lambda v: ko.federated_secure_modular_sum(v, 4), [at_clients((np.int32, (2,)))], "int32[2]@SERVER"),
    (
        lambda k, m, s: ko.federated_select(k, m, s, lambda table, key: table[key]),
        [at_clients((np.int32, (2,))), at_server(np.int32), at_server((np.float32, (5, 3)))],
        "{float32[3]*}@CLIENTS",
    ),
    (lambda s: ko.sequence_map(lambda x: x + 0.5, s), [SequenceType(np.int32)], "float32*"),
    (lambda s: ko.sequence_map(lambda x: x + 0.5, s), [at_clients(SequenceType(np.int32))], "{float32*}@CLIENTS"),
    (lambda s: ko.sequence_reduce(s, 0, add), [SequenceType(np.int32)], "int32"),
    (lambda s: ko.sequence_reduce(s, 0, add), [at_server(SequenceType(np.int32))], "int32@SERVER"),
    (ko.sequence_sum, [at_clients(SequenceType({"a": np.int32}))], "{<a=int32>}@CLIENTS"),
]


@pytest.mark.parametrize(("fn", "types", "expected"), _RESULTS, ids=range(len(_RESULTS)))
def test_each_operator_has_the_result_type_of_its_signature(
    fn: Callable[..., Any], types: list[Any], expected: str
) -> None:
    """The printed result type of every operator, placed at either side, with structs and with constants."""

    def one(a: Any) -> Any:
        return fn(a)

    def two(a: Any, b: Any) -> Any:
        return fn(a, b)

    def three(a: Any, b: Any, c: Any) -> Any:
        return fn(a, b, c)

    def none() -> Any:
        return fn()

    assert result((none, one, two, three)[len(types)], *types) == expected


def test_where_a_placed_value_is_wanted_a_struct_of_them_is_zipped() -> None:
    """Implicit zip: tuples and dicts of values with one placement serve in every operator."""
    assert result(lambda a, b: ko.federated_sum((a, {"q": b})), INT, FLOAT) == "<int32,<q=float32>>@SERVER"
    assert result(lambda a, b: ko.federated_map(add, (a, b)), INT, FLOAT) == "{float32}@CLIENTS"
    assert result(lambda a, b: ko.federated_mean((a, b)), FLOAT, FLOAT) == "<float32,float32>@SERVER"
    server = at_server(np.int32)
    assert result(lambda a, b: ko.federated_broadcast((a, b)), server, server) == "<int32,int32>@CLIENTS"


def test_a_mapped_function_of_several_parameters_takes_the_fields_in_order_or_by_name() -> None:
    """A tuple is matched in order, a dict by the names of the parameters."""

    def minus(x: Any, y: Any) -> Any:
        return x - 2 * y

    in_order = ko.federated_computation(lambda a, b: ko.federated_map(minus, (a, b)), INT, INT)
    assert [int(x) for x in in_order([1, 2], [10, 20])] == [1 - 20, 2 - 40]
    by_name = ko.federated_computation(lambda a, b: ko.federated_map(minus, {"x": a, "y": b}), INT, INT)
    assert [int(x) for x in by_name([1, 2], [10, 20])] == [1 - 20, 2 - 40]


def test_a_zero_needs_only_to_be_assignable_to_the_accumulator() -> None:
    """An empty vector is a zero for an accumulator of unknown length."""
    growing = TensorType(np.float32, (None,))
    append = ko.jax_computation(lambda total, x: jnp.concatenate([total, x[None]]), growing, np.float32)
    join = ko.jax_computation(lambda a, b: jnp.concatenate([a, b]), growing, growing)
    report = ko.jax_computation(identity, growing)

    def collect(v: Any) -> Any:
        return ko.federated_aggregate(v, np.zeros(0, np.float32), append, join, report)

    assert result(collect, FLOAT) == "float32[?]@SERVER"


def test_a_zipped_struct_keeps_names_and_containers() -> None:
    """The type of a zip of a dict is a dict, however nested."""
    comp = ko.federated_computation(lambda a: ko.federated_zip({"x": a, "y": [a]}), INT)
    assert comp([1]) == [{"x": 1, "y": [1]}]


# --- placements ------------------------------------------------------------------------------------------------------

_AT_CLIENTS: list[tuple[str, Callable[..., Any], Type]] = [
    ("summed", ko.federated_sum, at_server(np.float32)),
    ("averaged", ko.federated_mean, at_server(np.float32)),
    ("compared", ko.federated_min, at_server(np.float32)),
    ("compared", ko.federated_max, at_server(np.float32)),
    ("aggregated", lambda v: ko.federated_aggregate(v, 0.0, add, add, identity), at_server(np.float32)),
    ("collected", ko.federated_collect, at_server(np.float32)),
    ("summed", lambda v: ko.federated_secure_sum(v, 1), at_server(np.int32)),
]


@pytest.mark.parametrize(("verb", "fn", "type_"), _AT_CLIENTS)
def test_an_aggregation_takes_values_of_the_clients(verb: str, fn: Callable[..., Any], type_: Type) -> None:
    """A value of the server is refused with what, expected, found, where and what to do."""

    def aggregate(v: Any) -> Any:
        return fn(v)

    with pytest.raises(PlacementError) as caught:
        ko.federated_computation(aggregate, type_)
    error = caught.value
    assert error.what == f"The value to be {verb} should be placed at CLIENTS, but it is placed at SERVER."
    assert error.expected == "a value placed at CLIENTS"
    assert error.found == type_
    assert error.hint == "bring a value to the clients with ko.federated_broadcast"
    assert isinstance(error, TypeError)
    assert "fn(v)" in blamed_line(error) or "lambda v:" in blamed_line(error)


def test_a_broadcast_takes_a_value_of_the_server() -> None:
    """A value of the clients is refused, and broadcasting twice is recognised."""
    with pytest.raises(
        PlacementError, match="to be broadcast should be placed at SERVER, but it is placed at"
    ) as caught:
        ko.federated_computation(ko.federated_broadcast, INT)
    assert caught.value.hint == "bring a value to the server with an aggregation, such as ko.federated_sum"

    def twice(v: Any) -> Any:
        once = ko.federated_broadcast(v)
        return ko.federated_broadcast(once)

    with pytest.raises(PlacementError) as caught:
        ko.federated_computation(twice, at_server(np.int32))
    assert str(caught.value.found) == "int32@CLIENTS"
    assert blamed_line(caught.value) == "return ko.federated_broadcast(once)"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("all clients have this value already")


def test_a_value_of_the_server_that_may_differ_cannot_be_broadcast() -> None:
    """Only one value of the server has a meaning at all clients."""
    with pytest.raises(PlacementError, match="must be one value of the server"):
        ko.federated_computation(ko.federated_broadcast, FederatedType(np.int32, SERVER, False))


def test_values_of_the_server_and_of_the_clients_are_not_mapped_together() -> None:
    """The commonest mistake of all: the message has both placements, the line, and names the broadcast."""

    def step(model: Any, data: Any) -> Any:
        return ko.federated_map(add, (model, data))

    with pytest.raises(PlacementError, match="All values to be zipped must have one placement") as caught:
        ko.federated_computation(step, at_server(np.float32), FLOAT)
    assert str(caught.value.found) == "<float32@SERVER,{float32}@CLIENTS>"
    assert caught.value.expected == "values that are all placed at CLIENTS, or all at SERVER"
    assert blamed_line(caught.value) == "return ko.federated_map(add, (model, data))"
    assert caught.value.hint is not None
    assert "ko.federated_broadcast" in caught.value.hint


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: ko.federated_map(identity, x),
        ko.federated_sum,
        ko.federated_broadcast,
        lambda x: ko.federated_mean(x),
        lambda x: ko.federated_select(x, x, x, add),
        lambda x: ko.federated_map(identity, 5),
        lambda x: ko.federated_sum([1, 2]),
    ],
)
def test_an_operator_takes_placed_values_only(fn: Callable[..., Any]) -> None:
    """Unplaced values and constants are refused, with a hint."""
    with pytest.raises(PlacementError, match="must be a placed value") as caught:
        ko.federated_computation(lambda x: fn(x), np.float32)
    assert caught.value.made_in is not None
    assert caught.value.hint is not None


# --- map -------------------------------------------------------------------------------------------------------------


def test_a_mapped_function_must_take_the_value() -> None:
    """The message has the type of the parameter and that of the value."""
    with pytest.raises(
        TypeNotAssignableError, match="The mapping function expects a parameter of type float32"
    ) as caught:
        ko.federated_computation(lambda v: ko.federated_map(ko.jax_computation(identity, np.float32), v), INT)
    assert "{int32}@CLIENTS" in caught.value.what
    assert "federated_map(" in blamed_line(caught.value)


@pytest.mark.parametrize("fn", [5, None, "f", [identity]])
def test_what_is_mapped_must_be_a_function(fn: Any) -> None:
    """Anything else is an OperandError, which is a TypeError and, as TFF has it, a ValueError."""
    with pytest.raises(OperandError, match="The mapping function must be a function") as caught:
        ko.federated_computation(lambda v: ko.federated_map(fn, v), INT)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)
    assert caught.value.found == f"{type(fn).__name__} {fn!r}"


SEQUENCE = at_clients(SequenceType(np.float32))


@pytest.mark.parametrize(
    ("use", "type_", "message", "hint"),
    [
        (lambda v: ko.federated_map(v, identity), INT, "takes the function first", "ko.federated_map(fn, value)"),
        (lambda v: ko.sequence_map(v, identity), SEQUENCE, "takes the function first", "ko.sequence_map(fn, value)"),
        (lambda v: ko.federated_map(lambda x, y: x, v), INT, "mapping function has 2 parameters", "(first, second)"),
        (
            lambda v: ko.federated_map(ko.federated_computation(identity, INT), v),
            INT,
            "takes a placed value",
            "call it with the value: fn(value)",
        ),
        (
            lambda v: ko.federated_map(ko.jax_computation(identity, np.float32), v),
            SEQUENCE,
            r"expects a parameter of type float32, the value to be mapped is of type \{float32\*\}@CLIENTS",
            "ko.sequence_map",
        ),
        (lambda v: ko.sequence_reduce(v, 0, lambda a, x: a + x), SEQUENCE, "of the type of the zero", "0.0 is a"),
        (
            lambda v: ko.federated_aggregate(v, 0, lambda a, x: a + x / 2, lambda a, b: a + b, identity),
            INT,
            "`accumulate` must return",
            "0.0 is a float32",
        ),
        (lambda v: ko.federated_mean(v, 1.0), FLOAT, "The weight must be", "ko.federated_value(value, ko.CLIENTS)"),
    ],
)
def test_what_is_often_mistaken_is_answered_by_what_was_meant(
    use: Callable[..., Any], type_: Type, message: str, hint: str
) -> None:
    """Each is a koinon TypeError with the line, and with what to write instead."""
    with pytest.raises(KoinonTypeError, match=message) as caught:
        ko.federated_computation(lambda v: use(v), type_)
    assert hint in (caught.value.hint or "")
    assert blamed_line(caught.value)


def test_a_mapped_function_must_take_a_parameter() -> None:
    """A function without parameters cannot be mapped."""
    with pytest.raises(OperandError, match="The mapping function must take a parameter"):
        ko.federated_computation(lambda v: ko.federated_map(lambda: 1, v), INT)


@pytest.mark.parametrize("fn", [float, lambda x, /: x, lambda x, y=1: x, lambda *x: x[0]])
def test_a_mapped_python_function_has_plain_parameters(fn: Any) -> None:
    """A default value or a positional-only parameter is refused as the decorators refuse it."""
    with pytest.raises(KoinonTypeError, match="cannot become a computation"):
        ko.federated_computation(lambda v: ko.federated_map(fn, v), FLOAT)


# --- sums, means, extrema --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", ["bool", "float32[?]", "int32*", "key<fry>", "<int32,bool>"])
def test_only_numbers_of_known_shape_are_summed(member: str) -> None:
    """Everything else is a SumIncompatibleError that names the part to blame."""
    with pytest.raises(SumIncompatibleError) as caught:
        ko.federated_computation(ko.federated_sum, at_clients(parse(member)))
    assert isinstance(caught.value, TypeError)
    assert caught.value.differs is not None


@pytest.mark.parametrize("member", ["int32", "bool", "float32[?]", "<float32,int32>"])
def test_only_floating_numbers_are_averaged(member: str) -> None:
    """Integers are refused: their mean has another type."""
    with pytest.raises(MeanIncompatibleError, match="cannot be averaged") as caught:
        ko.federated_computation(lambda v: ko.federated_mean(v), at_clients(parse(member)))
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("weight", ["float32[2]", "bool", "complex64", "<float32>", "key<fry>", "float32[?]"])
def test_a_weight_is_one_number_for_each_client(weight: str) -> None:
    """Vectors, truth values and structs are no weights."""
    with pytest.raises(OperandError, match="The weight of a mean must be one number for each client") as caught:
        ko.federated_computation(lambda v, w: ko.federated_mean(v, w), FLOAT, at_clients(parse(weight)))
    assert caught.value.found == parse(weight)
    assert "federated_mean(v, w)" in blamed_line(caught.value)


def test_a_weight_is_placed_at_the_clients() -> None:
    """A weight of the server, or a plain number, is a PlacementError."""
    with pytest.raises(PlacementError, match="The weight should be placed at CLIENTS, but it is placed at SERVER"):
        ko.federated_computation(lambda v, w: ko.federated_mean(v, w), FLOAT, at_server(np.float32))
    with pytest.raises(PlacementError, match="The weight must be a placed value"):
        ko.federated_computation(lambda v: ko.federated_mean(v, 1.0), FLOAT)


@pytest.mark.parametrize("operator", [ko.federated_min, ko.federated_max])
@pytest.mark.parametrize("member", ["complex64", "bool", "int32[?]"])
def test_extrema_need_an_order(operator: Callable[..., Any], member: str) -> None:
    """The error is a ValueError, as in TFF, and a TypeError."""
    with pytest.raises(MinMaxIncompatibleError) as caught:
        ko.federated_computation(operator, at_clients(parse(member)))
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)


# --- aggregate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operators", "name"),
    [((1, add, identity), "accumulate"), ((add, 2, identity), "merge"), ((add, add, 3), "report")],
)
def test_the_operators_of_an_aggregation_are_functions(operators: Any, name: str) -> None:
    """The message names the one that is none."""
    with pytest.raises(OperandError, match=f"The operator `{name}` must be a function"):
        ko.federated_computation(lambda v: ko.federated_aggregate(v, 0, *operators), INT)


@pytest.mark.parametrize(
    ("zero", "operators", "message"),
    [
        (0.0, (add_ints, add_ints, identity), "The zero must be an accumulator that the operator `accumulate` takes"),
        (0, (ko.jax_computation(add, np.int32, np.float32), add_ints, identity), "The operator `accumulate` must take"),
        (0, (lambda t, x: 1.0, add, identity), "The operator `accumulate` must return an accumulator"),
        (0, (add, add_floats, identity), "The operator `merge` must take two accumulators"),
        (0, (add, lambda a, b: 1.0, identity), "The operator `merge` must return an accumulator"),
        (0, (add, add, ko.jax_computation(identity, np.float32)), "The operator `report` must take an accumulator"),
    ],
)
def test_the_operators_of_an_aggregation_fit_each_other(zero: Any, operators: Any, message: str) -> None:
    """The message names the operator that does not fit."""
    with pytest.raises(TypeNotAssignableError, match=message) as caught:
        ko.federated_computation(lambda v: ko.federated_aggregate(v, zero, *operators), INT)
    assert "federated_aggregate(v" in blamed_line(caught.value)


def test_accumulate_takes_two_parameters() -> None:
    """An operator of one parameter that is no pair cannot accumulate."""
    with pytest.raises(OperandError, match="The operator `accumulate` must take two parameters"):
        ko.federated_computation(
            lambda v: ko.federated_aggregate(v, 0, ko.jax_computation(identity, np.int32), add, identity), INT
        )


def test_the_zero_of_an_aggregation_is_not_placed() -> None:
    """A value of the server is no zero."""
    with pytest.raises(OperandError, match="The zero of an aggregation must not be placed") as caught:
        ko.federated_computation(
            lambda v, z: ko.federated_aggregate(v, z, add, add, identity), INT, at_server(np.int32)
        )
    assert "federated_aggregate(v, z" in blamed_line(caught.value)


# --- eval, value, zip ------------------------------------------------------------------------------------------------


def test_only_functions_without_parameters_are_evaluated() -> None:
    """A parameter, or no function at all, is an OperandError."""
    for fn in (identity, ko.jax_computation(identity, np.int32), ko.jax_computation(identity), 1):
        with pytest.raises(OperandError, match="The function to be evaluated must") as caught:
            ko.federated_computation(_evaluates(fn))
        assert isinstance(caught.value, ValueError)
        assert caught.value.made_in is not None


def _evaluates(fn: Any) -> Callable[[], Any]:
    return lambda: ko.federated_eval(fn, SERVER)


@pytest.mark.parametrize("placement", ["CLIENTS", None, "clients"])
def test_a_placement_is_one_of_the_two_literals(placement: Any) -> None:
    """The name of a placement is no placement."""
    with pytest.raises(OperandError, match=r"must be ko\.CLIENTS or ko\.SERVER"):
        ko.federated_computation(lambda: ko.federated_eval(lambda: 1, placement))
    with pytest.raises(OperandError, match=r"must be ko\.CLIENTS or ko\.SERVER"):
        ko.federated_computation(lambda: ko.federated_value(1, placement))


def test_what_is_placed_already_is_not_placed_again() -> None:
    """A placed value, at any depth, cannot be placed by federated_value."""
    for fn in (lambda v: ko.federated_value(v, CLIENTS), lambda v: ko.federated_value({"a": v}, SERVER)):
        with pytest.raises(PlacementError, match="must not be placed already"):
            ko.federated_computation(fn, INT)


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda a, b: ko.federated_zip(a), OperandError, "Only a struct of placed values can be zipped"),
        (lambda a, b: ko.federated_zip(((), [])), OperandError, "without any placed value cannot be zipped"),
        (lambda a, b: ko.federated_zip((a, {"x": 1})), PlacementError, r"The field \[1\].x of the struct"),
        (lambda a, b: ko.federated_zip((a, b)), PlacementError, "must have one placement"),
    ],
)
def test_only_structs_of_values_with_one_placement_are_zipped(
    fn: Callable[..., Any], error: type[Exception], message: str
) -> None:
    """Each way to be none of those has its message, which names the field."""
    with pytest.raises(error, match=message):
        ko.federated_computation(lambda a, b: fn(a, b), INT, at_server(np.int32))


# --- the others ------------------------------------------------------------------------------------------------------


def test_only_keys_are_split() -> None:
    """Numbers, and vectors of keys, are refused."""
    for type_ in (TensorType(np.int32), TensorType(KEY.dtype, (2,)), StructType([KEY])):
        with pytest.raises(OperandError, match="Only a typed PRNG key can be split") as caught:
            ko.federated_computation(ko.federated_split_key, at_server(type_))
        assert isinstance(caught.value, TypeError)


def test_sequences_are_not_collected() -> None:
    """A sequence of sequences has no type."""
    with pytest.raises(OperandError, match="Sequences cannot be collected"):
        ko.federated_computation(ko.federated_collect, at_clients(SequenceType(np.int32)))


def test_secure_sums_take_integers() -> None:
    """Floating-point numbers have no exact sum."""
    with pytest.raises(KoinonTypeError, match="Integers were expected"):
        ko.federated_computation(lambda v: ko.federated_secure_sum(v, 1), FLOAT)


@pytest.mark.parametrize("bound", [1.0, (1, 2, 3), {"a": 1}, [1, [2]], np.int32([1, 2]), (np.int32([1]), 2)], ids=repr)
def test_the_bound_of_a_secure_sum_is_an_integer_or_one_for_each_tensor(bound: Any) -> None:
    """Another structure than that of the value, another dtype, or a vector is refused."""
    with pytest.raises(OperandError, match="The bound of a secure sum must be"):
        ko.federated_computation(lambda v: ko.federated_secure_sum(v, bound), at_clients([np.int32, np.int32]))


@pytest.mark.parametrize(
    ("operator", "bound"),
    [
        (ko.federated_secure_sum, -1),
        (ko.federated_secure_sum, (3, -1)),
        (ko.federated_secure_sum_bitwidth, 0),
        (ko.federated_secure_modular_sum, 0),
    ],
)
def test_a_constant_bound_that_admits_nothing_is_refused(operator: Callable[..., Any], bound: Any) -> None:
    """A negative maximum, no bits, and a modulus of zero are found while tracing."""
    with pytest.raises(OperandError, match="The bound of a secure sum is too small") as caught:
        ko.federated_computation(lambda v: operator(v, bound), at_clients([np.int32, np.int32]))
    assert "operator(v, bound)" in blamed_line(caught.value)


@pytest.mark.parametrize(
    ("dtype", "modulus", "most"),
    [("uint8", 257, 256), ("int8", 129, 128), ("int8", 300, 128), ("int16", (100, 2**15 + 1), 2**15)],
)
def test_a_constant_modulus_of_which_results_do_not_fit_is_refused(dtype: str, modulus: Any, most: int) -> None:
    """The dtype of the values holds every result, or tracing fails; the largest modulus is one more than it holds."""
    pair = at_clients([TensorType(dtype), TensorType(dtype)])
    ko.federated_computation(lambda v: ko.federated_secure_modular_sum(v, most), pair)
    ko.federated_computation(lambda v, m: ko.federated_secure_modular_sum(v, (most, m)), pair, np.int32)

    with pytest.raises(OperandError, match="The modulus of a secure sum is too large") as caught:
        ko.federated_computation(lambda v: ko.federated_secure_modular_sum(v, modulus), pair)
    assert caught.value.expected == f"at most {most}, since {dtype} holds the integers below it"
    assert "federated_secure_modular_sum(v, modulus)" in blamed_line(caught.value)


_KEYS, _MAX, _TABLE = at_clients((np.int32, (2,))), at_server(np.int32), at_server((np.float32, (5,)))


@pytest.mark.parametrize(
    ("types", "error", "message"),
    [
        ((at_clients(np.int32), _MAX, _TABLE), OperandError, "The keys must be a vector of a fixed number of int32"),
        ((at_clients((np.int32, (None,))), _MAX, _TABLE), OperandError, "The keys must be a vector"),
        ((at_clients((np.int8, (2,))), _MAX, _TABLE), OperandError, "The keys must be a vector"),
        ((_KEYS, at_server(np.int8), _TABLE), OperandError, "The largest key must be one int32"),
        ((_KEYS, INT, _TABLE), PlacementError, "The largest key should be placed at SERVER"),
        ((_KEYS, _MAX, at_clients(np.float32)), PlacementError, "to be selected from should be placed at SERVER"),
    ],
)
def test_the_operands_of_a_selection_are_checked(types: Any, error: type[Exception], message: str) -> None:
    """Each operand has its message; all are TypeErrors."""
    select = ko.jax_computation(lambda table, key: table, np.float32, np.int32)
    with pytest.raises(error, match=message) as caught:
        ko.federated_computation(lambda k, m, s: ko.federated_select(k, m, s, select), *types)
    assert isinstance(caught.value, TypeError)


def test_a_selecting_function_takes_the_value_and_a_key() -> None:
    """Another parameter is refused."""
    select = ko.jax_computation(lambda table, key: table, np.float32, np.int32)
    with pytest.raises(TypeNotAssignableError, match="The selecting function must take the value and a key"):
        ko.federated_computation(lambda k, m, s: ko.federated_select(k, m, s, select), _KEYS, _MAX, _TABLE)


@pytest.mark.parametrize(
    "fn", [lambda v: ko.sequence_map(identity, v), lambda v: ko.sequence_reduce(v, 0, add), ko.sequence_sum]
)
def test_operators_on_sequences_take_sequences(fn: Callable[..., Any]) -> None:
    """A number is no sequence, placed or not."""
    for type_ in (np.int32, INT):
        with pytest.raises(OperandError, match="must be a sequence"):
            ko.federated_computation(lambda v: fn(v), type_)


def test_the_zero_of_a_reduction_is_where_the_sequence_is() -> None:
    """A zero of the server does not serve the clients."""
    with pytest.raises(PlacementError, match="The zero of a reduction must be where the sequence is") as caught:
        ko.federated_computation(
            lambda s, z: ko.sequence_reduce(s, z, add), at_clients(SequenceType(np.int32)), at_server(np.int32)
        )
    assert str(caught.value.expected) == "{int32}@CLIENTS"


def test_the_operator_of_a_reduction_returns_the_accumulator() -> None:
    """Another result type than that of the zero is refused."""
    with pytest.raises(TypeNotAssignableError, match="The operator must return an accumulator of the type of the zero"):
        ko.federated_computation(lambda s: ko.sequence_reduce(s, 0, lambda a, b: 1.5), SequenceType(np.int32))


def test_functions_of_jax_are_mapped_as_they_are(backend: str) -> None:
    """`jnp.sqrt` and its kin, whose parameters are by position or have defaults, need no wrapper of the user."""
    values = ko.types.at_clients(np.float32)

    @ko.federated_computation(values)
    def roots(v: Any) -> Any:
        larger = ko.federated_map(jnp.maximum, (v, ko.federated_map(jnp.sqrt, v)))
        return ko.federated_sum(ko.federated_map(jax.jit(jnp.square), larger)), ko.federated_sum(
            ko.federated_map(jax.nn.relu, v)
        )

    squares, total = roots([0.25, 4.0])

    assert (float(squares), float(total)) == (0.25 + 16.0, 4.25)
