"""The table of the language's operators: one row for each, with its type rule and its meaning."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

from koinon.computation import _rules as rules
from koinon.types import CLIENTS, SERVER, Type


class Route(enum.Enum):
    """How values of single clients reach the server through an operator."""

    NONE = "nothing leaves the clients"
    PLAIN = "each client's value is visible to the server until it is aggregated"
    SECURE = "the server sees the sum alone"
    REVEALING = "the server keeps values of single clients"


@dataclasses.dataclass(frozen=True)
class IntrinsicRow:
    """An operator of the language.

    Attributes:
      name: the name under which users call it.
      signature: its type, with type variables.
      rule: from the type of the operands to the type of the result.
      route: how clients' values reach the server through it.
      meaning: what it computes, in one sentence.
    """

    name: str
    signature: str
    rule: Callable[[Type], Type]
    route: Route
    meaning: str


_ROWS = (
    (
        "federated_broadcast",
        "T@SERVER -> T@CLIENTS",
        rules.broadcast,
        Route.NONE,
        "Sends the server's value to every client.",
    ),
    ("federated_map", "<(T -> U),{T}@P> -> {U}@P", rules.map_, Route.NONE, "Applies a function to every placed value."),
    (
        "federated_zip",
        "<{T}@P,{U}@P> -> {<T,U>}@P",
        rules.zip_,
        Route.NONE,
        "Turns a struct of placed values into a placed struct.",
    ),
    (
        "federated_eval_at_clients",
        "( -> T) -> {T}@CLIENTS",
        lambda t: rules.eval_(t, CLIENTS),
        Route.NONE,
        "Runs a function at every client.",
    ),
    (
        "federated_eval_at_server",
        "( -> T) -> T@SERVER",
        lambda t: rules.eval_(t, SERVER),
        Route.NONE,
        "Runs a function at the server.",
    ),
    (
        "federated_value_at_clients",
        "T -> T@CLIENTS",
        lambda t: rules.value(t, CLIENTS),
        Route.NONE,
        "Places a constant at the clients.",
    ),
    (
        "federated_value_at_server",
        "T -> T@SERVER",
        lambda t: rules.value(t, SERVER),
        Route.NONE,
        "Places a constant at the server.",
    ),
    ("federated_sum", "{T}@CLIENTS -> T@SERVER", rules.sum_, Route.PLAIN, "Sums over the clients."),
    ("federated_mean", "{T}@CLIENTS -> T@SERVER", rules.mean, Route.PLAIN, "Averages over the clients."),
    (
        "federated_weighted_mean",
        "<{T}@CLIENTS,{W}@CLIENTS> -> T@SERVER",
        rules.weighted_mean,
        Route.PLAIN,
        "Averages over the clients, weighted.",
    ),
    (
        "federated_min",
        "{T}@CLIENTS -> T@SERVER",
        rules.extremum,
        Route.REVEALING,
        "The least over the clients, per element.",
    ),
    (
        "federated_max",
        "{T}@CLIENTS -> T@SERVER",
        rules.extremum,
        Route.REVEALING,
        "The greatest over the clients, per element.",
    ),
    (
        "federated_aggregate",
        "<{T}@CLIENTS,U,(<U,T> -> U),(<U,U> -> U),(U -> R)> -> R@SERVER",
        rules.aggregate,
        Route.PLAIN,
        "Folds over the clients with operators of the user.",
    ),
    (
        "federated_collect",
        "{T}@CLIENTS -> T*@SERVER",
        rules.collect,
        Route.REVEALING,
        "Gives the server every client's value.",
    ),
    (
        "federated_secure_sum",
        "<{T}@CLIENTS,M> -> T@SERVER",
        rules.secure_sum,
        Route.SECURE,
        "Sums integers from 0 to a maximum, the server sees the sum alone.",
    ),
    (
        "federated_secure_sum_bitwidth",
        "<{T}@CLIENTS,B> -> T@SERVER",
        rules.secure_sum,
        Route.SECURE,
        "Sums integers of a bit width, the server sees the sum alone.",
    ),
    (
        "federated_secure_modular_sum",
        "<{T}@CLIENTS,M> -> T@SERVER",
        rules.secure_sum,
        Route.SECURE,
        "Sums integers modulo a number, the server sees the sum alone.",
    ),
    (
        "federated_split_key",
        "key<K>@SERVER -> {key<K>}@CLIENTS",
        rules.split_key,
        Route.NONE,
        "Gives every client an independent key derived from the server's.",
    ),
    (
        "federated_select",
        "<{int32[N]}@CLIENTS,int32@SERVER,S@SERVER,(<S,int32> -> U)> -> {U*}@CLIENTS",
        rules.select,
        Route.NONE,
        "Sends every client the slices of a server value that it asks for.",
    ),
    (
        "federated_secure_select",
        "<{int32[N]}@CLIENTS,int32@SERVER,S@SERVER,(<S,int32> -> U)> -> {U*}@CLIENTS",
        rules.select,
        Route.NONE,
        "As federated_select, the server learns no keys.",
    ),
    (
        "sequence_map",
        "<(T -> U),T*> -> U*",
        rules.sequence_map,
        Route.NONE,
        "Applies a function to every element of a sequence.",
    ),
    (
        "sequence_reduce",
        "<T*,U,(<U,T> -> U)> -> U",
        rules.sequence_reduce,
        Route.NONE,
        "Folds over the elements of a sequence.",
    ),
    ("sequence_sum", "T* -> T", rules.sequence_sum, Route.NONE, "Sums the elements of a sequence."),
)

INTRINSICS: dict[str, IntrinsicRow] = {row[0]: IntrinsicRow(*row) for row in _ROWS}
