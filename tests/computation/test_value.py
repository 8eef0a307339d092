"""Tests of traced values: what may be done with them, and how they answer to everything else."""

from __future__ import annotations

import collections
import math
import operator
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.errors import (
    ContextError,
    FieldIndexError,
    FieldNotFoundError,
    NotCallableError,
    TracingError,
    TypeNotAssignableError,
    UnsupportedTypeError,
)
from koinon.types import SequenceType, StructType, at_clients, at_server
from tests.messages import blamed_line

INT = at_clients(np.int32)
PAIR = at_clients(StructType([("a", np.float32), ("b", np.int32)]))


class Point(NamedTuple):
    """A named tuple of two fields."""

    x: Any
    y: Any


def signature(fn: Callable[..., Any], *types: Any) -> str:
    """The type of the computation of a function."""
    return str(ko.federated_computation(fn, *types).type_signature)


# --- what may be done ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "select", [lambda v: v.b, lambda v: v["b"], lambda v: v[1], lambda v: v[np.int64(1)], lambda v: list(v)[1]]
)
def test_a_field_of_a_placed_struct_is_reached_by_name_and_index(select: Callable[[Any], Any]) -> None:
    """Each way to a field of a placed struct gives the placed field."""
    assert signature(select, PAIR).endswith("-> {int32}@CLIENTS)")


def test_fields_of_a_struct_of_placed_values_are_those_values() -> None:
    """Selection from a struct keeps the placement and the all-equal bit of the field."""
    assert signature(lambda a, b: (b, a), INT, at_server(np.int32)).endswith("-> <int32@SERVER,{int32}@CLIENTS>)")


def test_a_field_of_a_value_that_is_the_same_everywhere_need_not_stay_so() -> None:
    """Selecting from a broadcast value maps a selection, and a map at the clients forgets that all are equal."""

    def select(v: Any) -> Any:
        return ko.federated_broadcast(v).a

    assert signature(select, at_server(PAIR.member)).endswith("-> {float32}@CLIENTS)")


def test_a_placed_struct_unpacks_into_its_placed_fields() -> None:
    """Unpacking, len and slices go over the fields."""

    def unpack(v: Any) -> Any:
        assert len(v) == 2
        first, second = v
        return second, first, v[:1], v[5:]

    expected = "-> <{int32}@CLIENTS,{float32}@CLIENTS,<a={float32}@CLIENTS>,<>>)"
    assert signature(unpack, PAIR).endswith(expected)


def test_a_slice_of_a_named_tuple_is_a_plain_struct() -> None:
    """A named tuple cannot do without a field, so its slice has no container."""

    @ko.federated_computation(at_server(Point(np.int32, np.int32)))
    def first(point: Any) -> Any:
        return point[:1]

    result = first.type_signature.result
    assert isinstance(result, StructType)
    assert result.container is None


@pytest.mark.parametrize("name", ["type_signature", "expression", "items"])
def test_a_field_with_the_name_of_an_attribute_is_reached_in_brackets(name: str) -> None:
    """Brackets reach every field, whatever it is called."""
    assert signature(lambda v: v[name], at_clients(StructType([(name, np.int32)]))).endswith("-> {int32}@CLIENTS)")


def test_a_value_of_a_function_type_is_called() -> None:
    """A parameter that is a function is called like one."""
    function = ko.types.FunctionType(np.int32, np.float32)
    assert signature(lambda f, x: f(x), function, np.int32).endswith("-> float32)")


def test_containers_of_values_and_constants_become_structs() -> None:
    """What a traced function returns keeps its containers, and constants have the types that JAX gives them."""

    @ko.federated_computation(INT)
    def mixed(v: Any) -> Any:
        return Point(v, {"z": 1, "a": [2.5, True]})

    assert str(mixed.type_signature.result) == "<x={int32}@CLIENTS,y=<a=<float32,bool>,z=int32>>"
    assert isinstance(mixed.type_signature.result, StructType)
    assert mixed.type_signature.result.container is Point


def test_an_ordered_dictionary_keeps_its_order_and_a_dictionary_is_sorted() -> None:
    """The fields of a dict are in the order of JAX, those of an OrderedDict in their own."""
    ordered = signature(lambda v: collections.OrderedDict(b=v, a=v), INT)
    assert ordered.endswith("-> <b={int32}@CLIENTS,a={int32}@CLIENTS>)")
    assert signature(lambda v: {"b": v, "a": 1}, INT).endswith("-> <a=int32,b={int32}@CLIENTS>)")


def test_a_value_prints_its_type() -> None:
    """The text of a traced value is its type."""
    seen = []
    ko.federated_computation(lambda v: seen.append(repr(v)) or v, INT)
    assert seen == ["Value({int32}@CLIENTS)"]


# --- misuse ----------------------------------------------------------------------------------------------------------

_BINARY = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow),
    *(operator.matmul, operator.and_, operator.or_, operator.xor, operator.lt, operator.le, operator.gt, operator.ge),
    *(operator.eq, operator.ne, operator.lshift, operator.rshift, divmod),
)


@pytest.mark.parametrize("op", _BINARY, ids=lambda op: op.__name__)
def test_there_is_no_arithmetic_on_traced_values(op: Callable[[Any, Any], Any]) -> None:
    """Every binary operator, from both sides, is a TypeError that says where it was written and what to do."""

    def left(v: Any) -> Any:
        return op(v, 1)

    def right(v: Any) -> Any:
        return op(1, v)

    for fn in (left, right):
        with pytest.raises(TracingError, match=r"A traced value of type \{int32\}@CLIENTS") as caught:
            ko.federated_computation(fn, INT)
        assert isinstance(caught.value, TypeError)
        assert blamed_line(caught.value).startswith("return op(")
        assert caught.value.hint is not None
        assert "ko.federated_map(fn, value)" in caught.value.hint


@pytest.mark.parametrize(
    "op",
    [
        *(operator.neg, operator.pos, operator.invert, abs, round, math.trunc, math.floor, math.ceil),
        *(float, int, complex, range, bool, math.sqrt),
    ],
    ids=lambda op: op.__name__,
)
def test_a_traced_value_is_no_number(op: Callable[[Any], Any]) -> None:
    """Unary operators and conversions are TypeErrors."""
    with pytest.raises(TracingError) as caught:
        ko.federated_computation(lambda v: op(v), INT)
    assert "op(v)" in blamed_line(caught.value)


def test_a_traced_value_has_no_truth_value() -> None:
    """Python's control flow over a traced value is refused at the line of the `if`."""

    def choose(v: Any) -> Any:
        if v:
            return v
        return v

    with pytest.raises(TracingError, match="has no truth value") as caught:
        ko.federated_computation(choose, INT)
    assert blamed_line(caught.value) == "if v:"


@pytest.mark.parametrize(
    "use",
    {
        "np.sin": lambda v: np.sin(v),
        "np.float32 +": lambda v: np.float32(1) + v,
        "np.asarray": lambda v: np.asarray(v),
        "jnp.asarray": lambda v: jnp.asarray(v),
        "jnp.stack": lambda v: jnp.stack([v, v]),
        # These reach JAX's own checks of operands first.
        "jnp.mean": lambda v: jnp.mean(v),
        "jnp.linalg.norm": lambda v: jnp.linalg.norm(v),
        "jax.nn.relu": lambda v: jax.nn.relu(v),
        "jax.lax.add": lambda v: jax.lax.add(v, v),
        "jax.grad": lambda v: jax.grad(lambda x: x)(v),
        "jax.jit": lambda v: jax.jit(lambda x: x)(v),
        "jax.vmap": lambda v: jax.vmap(lambda x: x)(v),
        "jax.eval_shape": lambda v: jax.eval_shape(lambda x: x, v),
        "jax.lax.scan": lambda v: jax.lax.scan(lambda c, x: (c, x), 0.0, v),
        "jax.lax.cond": lambda v: jax.lax.cond(v, lambda: 1, lambda: 2),
        "jax.tree.map": lambda v: jax.tree.map(jnp.sin, {"a": v}),
        "mapped closure": lambda v: ko.federated_map(lambda x: x + jnp.sin(v), v),
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("place", [at_clients, at_server])
def test_numpy_and_jax_take_no_traced_value(use: tuple[str, Callable[[Any], Any]], place: Callable[..., Any]) -> None:
    """A function of arrays names the line of the user, not one of the library of arrays, and says what to do."""
    with pytest.raises(TracingError, match="cannot be an operand of a function of JAX or numpy") as caught:
        ko.federated_computation(use[1], place(np.float32))
    assert use[0].split()[-1] in blamed_line(caught.value) or "lambda x:" in blamed_line(caught.value)
    assert caught.value.hint is not None
    assert "ko.federated_map(fn, " in caught.value.hint
    assert caught.value.__cause__ is None
    assert __file__ in {frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)[1:]}


def test_arrays_leave_arithmetic_with_a_traced_value_to_it() -> None:
    """An array of JAX on the left gives the message that a number of Python gives."""
    with pytest.raises(TracingError, match="has no arithmetic") as caught:
        ko.federated_computation(lambda v: jnp.float32(1) + v, at_clients(np.float32))
    assert "jnp.float32(1) + v" in blamed_line(caught.value)


def test_other_errors_of_a_traced_function_are_left_as_they_are() -> None:
    """What a user raises, and what JAX says of its own arrays, comes through."""
    error = TypeError("mine")

    def raises(v: Any) -> Any:
        raise error

    with pytest.raises(TypeError) as caught:
        ko.federated_computation(raises, INT)
    assert caught.value is error
    with pytest.raises(TypeError, match="str") as caught:
        ko.federated_computation(lambda v: jnp.sin("text"), INT)  # pyright: ignore[reportArgumentType]
    assert not isinstance(caught.value, TracingError)


def test_the_way_out_depends_on_where_the_value_is() -> None:
    """Values are mapped where they are, captured ones are arguments, and unplaced ones are those of a computation."""
    sequence = at_clients(SequenceType(np.float32))
    for type_, use, way_out in [
        (at_server(np.float32), lambda v: v + 1, "apply a function where it is: ko.federated_map(fn, value)"),
        (at_clients(np.float32), lambda v: v + 1, "or aggregate it: ko.federated_mean(value)"),
        (sequence, lambda v: v[0], "ko.federated_map(fn, value), ko.sequence_reduce(value, zero, op)"),
        (np.float32, lambda v: v + 1, "apply a @ko.jax_computation to it: computation(value)"),
        (at_clients(np.float32), lambda v: ko.federated_map(lambda x: x - v, v), "ko.federated_map(fn, (..., value))"),
        (
            at_server(np.float32),
            lambda v: ko.federated_map(lambda x: x - v, v),
            "ko.federated_map(fn, (..., ko.federated_broadcast(value)))",
        ),
    ]:
        with pytest.raises(TracingError) as caught:
            ko.federated_computation(use, type_)
        assert caught.value.hint is not None
        assert caught.value.hint.endswith(way_out)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda v: 1 in v, "cannot be searched"),
        (lambda v: operator.setitem(v, "a", 1), "cannot be changed"),
        (lambda v: operator.delitem(v, "a"), "cannot be changed"),
        (lambda v: setattr(v, "a", 1), "cannot be changed"),
        (lambda v: f"{v:.2f}", "cannot be formatted as '.2f'"),
        (lambda v: [1, 2][v], "is no number of Python"),
    ],
)
def test_a_traced_struct_is_no_container_and_no_text(use: Callable[[Any], Any], message: str) -> None:
    """What a dict, a list or a number could do is refused with the type and the line."""
    with pytest.raises(
        TracingError, match=rf"A traced value of type \{{<a=float32,b=int32>\}}@CLIENTS {message}"
    ) as caught:
        ko.federated_computation(use, PAIR)
    assert "lambda v:" in blamed_line(caught.value)


def test_a_traced_value_can_be_printed_listed_and_compared_by_identity() -> None:
    """What shows a value, and what asks whether it is the same one, works while a function is traced."""

    def look(v: Any) -> Any:
        assert f"{v}" == str(v) == "Value({<a=float32,b=int32>}@CLIENTS)"
        assert f"{v:>40}" == str(v).rjust(40)
        assert {"a", "b", "type_signature"} <= set(dir(v))
        assert v is not None
        assert len({v, v}) == 1
        return v

    assert signature(look, PAIR).endswith("-> {<a=float32,b=int32>}@CLIENTS)")


def test_a_long_type_is_shortened_in_a_sentence() -> None:
    """The sentence stays readable, and the type of the value is whole."""
    wide = at_clients(StructType([(f"field_{i}", np.float32) for i in range(100)]))

    def use(v: Any) -> Any:
        assert len(v.type_signature.member) == 100
        return v + 1

    with pytest.raises(
        TracingError, match=r"of type \{<field_0=float32,.*,\.\.\.>\}@CLIENTS has no arithmetic"
    ) as caught:
        ko.federated_computation(use, wide)
    assert len(caught.value.what) < 200


@pytest.mark.parametrize("use", [lambda v: v[0], lambda v: len(v), lambda v: list(v), lambda v: v[:1]])
def test_only_structs_have_fields(use: Callable[[Any], Any]) -> None:
    """Selecting from, counting, and going over what is no struct are TypeErrors with the type and the line."""
    with pytest.raises(TracingError, match=r"A traced value of type \{int32\}@CLIENTS has no fields to") as caught:
        ko.federated_computation(use, INT)
    assert "lambda v:" in blamed_line(caught.value)


def test_a_missing_field_is_an_attribute_error_that_lists_the_fields() -> None:
    """The names that there are, and the one that there is not, are in the message."""

    def select(v: Any) -> Any:
        return v.c

    with pytest.raises(FieldNotFoundError, match="has no field 'c'") as caught:
        ko.federated_computation(select, PAIR)
    assert isinstance(caught.value, AttributeError)
    assert caught.value.expected == "one of a, b"
    assert blamed_line(caught.value) == "return v.c"
    with pytest.raises(FieldNotFoundError):
        ko.federated_computation(lambda v: v["c"], PAIR)


def test_a_misspelt_field_is_answered_by_the_one_that_is_alike() -> None:
    """Of many fields the message has some, and the one that was meant."""
    wide = at_server(StructType([(f"layer_{i}", np.float32) for i in range(40)]))
    with pytest.raises(FieldNotFoundError) as caught:
        ko.federated_computation(lambda v: v.layer39, wide)
    assert caught.value.hint == "the field 'layer_39'"
    assert str(caught.value.expected).endswith("layer_15, and 24 more")


def test_probing_for_an_attribute_finds_none() -> None:
    """`hasattr` and `getattr` with a default work, since a missing field is an AttributeError."""
    seen = []
    ko.federated_computation(lambda v: seen.append((hasattr(v, "shape"), getattr(v, "dtype", 3))) or v, INT)
    assert seen == [(False, 3)]


@pytest.mark.parametrize("index", [2, -1, 100])
def test_an_index_out_of_range_is_an_index_error(index: int) -> None:
    """Negative indices count as out of range, since a struct is no sequence."""
    with pytest.raises(FieldIndexError, match="has 2 fields") as caught:
        ko.federated_computation(lambda v: v[index], PAIR)
    assert isinstance(caught.value, IndexError)
    assert caught.value.expected == "an index from 0 to 1"
    assert "v[index]" in blamed_line(caught.value)


@pytest.mark.parametrize("key", [1.0, None, True, (0,)])
def test_a_field_is_selected_by_name_or_index_only(key: Any) -> None:
    """Other keys are TypeErrors."""
    with pytest.raises(TracingError, match="selected by a name, an int or a slice"):
        ko.federated_computation(lambda v: v[key], PAIR)


def test_calling_what_is_no_function_is_a_syntax_error_and_a_type_error() -> None:
    """As in TFF the class is a SyntaxError; it is a TypeError too, as in Python."""
    with pytest.raises(NotCallableError, match="is no function and cannot be called") as caught:
        ko.federated_computation(lambda v: v(1), INT)
    assert isinstance(caught.value, SyntaxError)
    assert isinstance(caught.value, TypeError)
    assert str(caught.value).startswith("A traced value of type {int32}@CLIENTS")


# --- lifting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("obj", ["text", object(), {"a": None}, {1, 2}, b"bytes", lambda x: x])
def test_objects_without_a_type_cannot_be_returned(obj: Any) -> None:
    """What has no type in the language is refused with the name of the function and its line."""

    def returns() -> Any:
        return obj

    with pytest.raises(TracingError, match="The function `returns` must return traced values") as caught:
        ko.federated_computation(returns)
    assert blamed_line(caught.value) == "def returns() -> Any:"


def test_a_python_function_is_no_value_and_the_message_says_what_to_do() -> None:
    """Where a value is wanted, a plain function is refused with a hint."""
    with pytest.raises(TracingError, match="An object of class function cannot be a value") as caught:
        ko.federated_computation(lambda: ko.federated_value(lambda: 1, ko.SERVER))
    assert caught.value.hint is not None
    assert "@ko.jax_computation" in caught.value.hint


@pytest.mark.parametrize("constant", [2**40, np.int64(1), np.zeros(3), np.float64(0.5), [1, np.zeros(2)]])
def test_a_constant_is_never_narrowed_silently(constant: Any) -> None:
    """A constant of 64 bits is refused while JAX holds 32."""
    if jax.config.jax_enable_x64:
        pytest.skip("JAX holds 64 bits here")
    with pytest.raises(UnsupportedTypeError, match="narrows no value silently") as caught:
        ko.federated_computation(lambda: ko.federated_value(constant, ko.SERVER))
    assert "federated_value(constant" in blamed_line(caught.value)


def test_keys_are_constants_too() -> None:
    """A typed PRNG key can be written in a traced function."""
    key = jax.random.key(3)
    comp = ko.federated_computation(lambda: ko.federated_value(key, ko.SERVER))
    assert str(comp.type_signature) == "( -> key<fry>@SERVER)"
    with ko.backends.use("reference"):
        assert jax.random.key_data(comp()).tolist() == jax.random.key_data(key).tolist()


# --- scope -----------------------------------------------------------------------------------------------------------


def test_operators_have_no_meaning_outside_a_traced_function() -> None:
    """Outside, and inside a JAX function, an operator is a ContextError, which is a RuntimeError."""
    with pytest.raises(ContextError, match="`federated_sum` has a meaning only inside") as caught:
        ko.federated_sum([1, 2])
    assert isinstance(caught.value, RuntimeError)
    with pytest.raises(ContextError):
        ko.jax_computation(lambda x: ko.federated_broadcast(x), np.float32)


def test_a_traced_function_cannot_capture_values_of_the_one_around_it() -> None:
    """A nested computation that uses an outer value is refused at its own line, with the way out."""

    def outer(values: Any) -> Any:
        @ko.federated_computation(np.int32)
        def inner(x: Any) -> Any:
            return values

        return ko.federated_map(inner, values)

    with pytest.raises(TracingError, match="`inner` uses a traced value of another computation") as caught:
        ko.federated_computation(outer, INT)
    assert blamed_line(caught.value) == "@ko.federated_computation(np.int32)"


def test_a_value_that_escaped_from_its_computation_cannot_be_used_in_another() -> None:
    """A value kept in a variable is refused in a later computation."""
    kept = []
    ko.federated_computation(lambda v: kept.append(v) or v, INT)
    with pytest.raises(TracingError, match="used outside the computation that it belongs to"):
        ko.federated_computation(lambda v: ko.federated_sum(kept[0]), INT)
    with pytest.raises(TracingError, match="must return traced values"):
        ko.federated_computation(lambda v: (v, kept[0]), INT)


# --- arguments of calls while tracing ---------------------------------------------------------------------------------

product = ko.jax_computation(lambda a, b: a * b, np.int32, np.int32)


@ko.federated_computation(at_clients((np.int32, np.int32)))
def sum_of_products(pairs: Any) -> Any:
    """The sum of the products of pairs."""
    return ko.federated_sum(ko.federated_map(product, pairs))


def test_a_tuple_of_values_stands_for_a_placed_struct() -> None:
    """Where a placed struct is wanted, a struct of values with that placement is zipped."""
    comp = ko.federated_computation(lambda a, b: sum_of_products((a, b)), INT, INT)
    assert int(comp([1, 2], [3, 4])) == 1 * 3 + 2 * 4


def test_a_tuple_of_values_with_two_placements_is_no_placed_struct() -> None:
    """The message has both types and says when a struct stands for a placed struct."""
    with pytest.raises(TypeNotAssignableError, match="does not have the type of the parameter") as caught:
        ko.federated_computation(lambda a, b: sum_of_products((a, b)), INT, at_server(np.int32))
    assert str(caught.value.expected) == "{<int32,int32>}@CLIENTS"
    assert str(caught.value.found) == "<{int32}@CLIENTS,int32@SERVER>"
    assert "sum_of_products((a, b))" in blamed_line(caught.value)
    assert caught.value.hint is not None
    assert "CLIENTS" in caught.value.hint


def test_an_argument_of_another_type_is_refused_with_the_path_to_the_difference() -> None:
    """The path starts at the parameter, through every level of the structure."""
    inner = ko.federated_computation(lambda s, v: v, at_server({"w": (np.float32, (3,)), "n": np.int32}), INT)
    with pytest.raises(TypeNotAssignableError) as caught:
        ko.federated_computation(lambda s, v: inner(s, v), at_server({"w": (np.float32, (4,)), "n": np.int32}), INT)
    assert caught.value.differs == ".s.w: expected float32[3], found float32[4]"


def test_a_placed_value_in_the_place_of_a_plain_one_is_mapped() -> None:
    """Calling a computation with a value of the clients is answered with the map that was meant."""
    comp = ko.jax_computation(lambda x: x, np.int32)
    with pytest.raises(TypeNotAssignableError, match=r"ko\.federated_map\(computation, value\)"):
        ko.federated_computation(lambda v: comp(v), INT)


def test_constants_are_arguments_of_the_type_that_they_have() -> None:
    """An int is an int32; a float serves for no int32."""
    comp = ko.federated_computation(lambda x: product(x, 3), np.int32)
    assert int(comp(5)) == 15
    with pytest.raises(TypeNotAssignableError):
        ko.federated_computation(lambda x: product(x, 3.0), np.int32)
