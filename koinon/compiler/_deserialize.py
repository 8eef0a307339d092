"""Bytes as computations; `_serialize` describes what they hold.

Loading builds an expression and runs nothing: no name in the bytes is ever imported or evaluated. Whoever wrote the
bytes may mean harm, so every size is checked before it is used, every reference before it is followed, the expression
by the checker of the language, and the modules operation by operation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from koinon._errors import KoinonError, SerializationError
from koinon.compiler._constants import read_constant
from koinon.compiler._node_rows import Measure, row_children
from koinon.compiler._program import Program
from koinon.compiler._program_rows import read_program
from koinon.compiler._type_rows import TypeReader, read_container
from koinon.compiler._wire import refuse, unpack
from koinon.computation import INTRINSICS, Computation
from koinon.computation import _ir as ir
from koinon.computation._check import check
from koinon.computation._local import check_local_type
from koinon.computation._precision import check_precision
from koinon.types import CLIENTS, SERVER, FunctionType, TensorType, Type

_MAX_NAME = 1000
_BINDING = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_PLACEMENTS = {str(placement): placement for placement in (CLIENTS, SERVER)}


def deserialize(data: bytes | bytearray | memoryview) -> Computation:
    """The computation that `serialize` wrote.

    It runs on every backend, on the platforms that it was written for, with the result of the original; of its inner
    structure engines see no more than a program: a fold over a sequence has no reverse-mode derivative any more.

    Nothing is executed or imported while it is loaded. To run it is to run a program that somebody wrote, without
    access to files, network or Python, but with as much time and memory as it likes; and the parser and compiler of
    StableHLO are those of the installed JAX, which a module made to do so can crash. So give what comes from strangers
    a process of its own, with limits.

    Args:
      data: the bytes.

    Raises:
      SerializationError: where the bytes are damaged, are no computation, or are one that breaks the rules of the
        language or of the format; the message has the reason and the place.
      KoinonTypeError: where `data` is not made of bytes.

    >>> import jax.numpy as jnp, koinon as ko
    >>> @ko.federated_computation(ko.types.at_clients(jnp.float32))
    ... def mean(values):
    ...     return ko.federated_mean(values)
    >>> again = ko.compiler.deserialize(ko.compiler.serialize(mean))
    >>> again
    Computation(mean: ({float32}@CLIENTS -> float32@SERVER))
    >>> float(again([1.0, 2.0, 6.0]))
    3.0
    """
    header, blobs = unpack(data)
    try:
        return _Reader(header, blobs).read()
    except SerializationError:
        raise
    except RecursionError:
        refuse("The computation is nested too deeply.", at="nodes")
    except Exception as error:  # whatever else a hostile header brings about is a reason to refuse it, too
        what = error.what if isinstance(error, KoinonError) else f"{type(error).__name__}: {error}"
        refuse(f"The computation is malformed: {what}", at="nodes")


class _Reader:
    """Reads the tables of one header."""

    def __init__(self, header: dict[str, Any], blobs: Sequence[memoryview]) -> None:
        expected = {"name": str, "nodes": list, "programs": list, "types": list}
        if header.keys() != expected.keys() or any(type(header[key]) is not kind for key, kind in expected.items()):
            refuse("The header has other parts than it should.", at="the top level", expected=", ".join(expected))
        self._name: str = header["name"]
        self._rows: list[Any] = header["nodes"]
        self._program_rows: list[Any] = header["programs"]
        self._blobs = blobs
        self._type_reader = TypeReader()
        for row in header["types"]:
            self._type_reader.read(row)
        self._types = self._type_reader.types
        self._programs: dict[tuple[int, Type], Program] = {}
        self._nodes: list[ir.Expression] = []
        self._used: dict[str, set[int]] = {
            "types": self._type_reader.used,
            "programs": set(),
            "blobs": set(),
            "nodes": set(),
        }
        self._read_row: dict[str, Callable[..., ir.Expression]] = {
            "reference": self._reference,
            "lambda": self._lambda,
            "call": self._call,
            "block": self._block,
            "struct": self._struct,
            "selection": self._selection,
            "intrinsic": self._intrinsic,
            "literal": self._literal,
            "placement": self._placement,
            "local": self._local,
        }

    def read(self) -> Computation:
        """The computation."""
        if len(self._name) > _MAX_NAME:
            refuse("The name of the computation is too long.", at="name", expected=f"at most {_MAX_NAME} characters")
        measure = Measure()
        for i, row in enumerate(self._rows):
            at = f"nodes[{i}]"
            if not isinstance(row, list) or not row or not isinstance(row[0], str) or row[0] not in self._read_row:
                kind = row[0] if isinstance(row, list) and row else row
                refuse("There is no expression of this kind.", at=at, found=repr(kind)[:100])
            node = self._row(row, at)
            self._nodes.append(node)
            measure.add(row, self._type_reader.sizes[node.type])
        if not self._nodes:
            refuse("There is no expression.", at="nodes")
        self._check_all_used()
        check(self._nodes[-1])
        return Computation(self._nodes[-1], name=self._name)

    def _row(self, row: list[Any], at: str) -> ir.Expression:
        try:
            node = self._read_row[row[0]](at, *row[1:])
            node.type  # noqa: B018  (a part that is ill-typed shows where its type is asked for)
        except SerializationError:
            raise
        except KoinonError as error:
            refuse(error.what, at=at, expected=error.expected, found=error.found, hint=error.hint)
        except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            refuse(f"The expression is malformed: {error}", at=at, found=repr(row)[:100])
        self._used["nodes"].update(row_children(row))
        return node

    def _check_all_used(self) -> None:
        # What nothing refers to could be anything, and two files could differ in it alone.
        sizes = {"types": self._types, "programs": self._program_rows, "blobs": self._blobs, "nodes": self._nodes[:-1]}
        for name, table in sizes.items():
            unused = sorted(set(range(len(table))) - self._used[name])
            if unused:
                refuse("Nothing refers to a part of the computation.", at=f"{name}[{unused[0]}]")

    def _item(self, name: str, table: Sequence[Any], position: Any, at: str) -> Any:
        """The row of a table that a reference names."""
        if type(position) is not int or not 0 <= position < len(table):
            refuse(
                f"A reference into `{name}` leads nowhere.", at=at, expected=f"0 to {len(table) - 1}", found=position
            )
        self._used[name].add(position)
        return table[position]

    def _type(self, position: Any, at: str) -> Type:
        return self._item("types", self._types, position, at)

    def _node(self, position: Any, at: str) -> ir.Expression:
        return self._item("nodes", self._nodes, position, at)

    def _function_type(self, position: Any, at: str) -> FunctionType:
        type_ = self._type(position, at)
        if not isinstance(type_, FunctionType):
            refuse("The type of a function is expected.", at=at, found=type_)
        return type_

    # --- the kinds of expressions ------------------------------------------------------------------------------------

    def _reference(self, at: str, name: Any, type_: Any) -> ir.Expression:
        return ir.Reference(_binding(name, at), self._type(type_, at))

    def _lambda(self, at: str, name: Any, type_: Any, body: Any) -> ir.Expression:
        inner = self._node(body, at)
        if name is None and type_ is None:
            return ir.Lambda(None, None, inner)
        return ir.Lambda(_binding(name, at), self._type(type_, at), inner)

    def _call(self, at: str, function: Any, argument: Any) -> ir.Expression:
        called = self._node(function, at)
        if not isinstance(called.type, FunctionType):
            refuse("A call needs a function.", at=at, found=called.type)
        return ir.Call(called, None if argument is None else self._node(argument, at))

    def _block(self, at: str, values: Any, result: Any) -> ir.Expression:
        bound = tuple([(_binding(name, at), self._node(value, at)) for name, value in _pairs(values, at)])
        return ir.Block(bound, self._node(result, at))

    def _struct(self, at: str, elements: Any, container: Any) -> ir.Expression:
        fields = tuple([(name, self._node(element, at)) for name, element in _pairs(elements, at)])
        if not all(name is None or isinstance(name, str) for name, _ in fields):
            refuse("The names of fields are text.", at=at)
        return ir.Struct(fields, read_container(container, [name for name, _ in fields], at))

    def _selection(self, at: str, source: Any, index: Any) -> ir.Expression:
        if type(index) is not int or index < 0:
            refuse("A selection has the position of a field.", at=at, found=repr(index)[:100])
        return ir.Selection(self._node(source, at), index)

    def _intrinsic(self, at: str, name: Any, type_: Any) -> ir.Expression:
        if not isinstance(name, str) or name not in INTRINSICS:
            refuse("There is no operator of this name.", at=at, found=repr(name)[:100])
        function_type = self._function_type(type_, at)
        if function_type.parameter is None:
            refuse("An operator takes operands.", at=at, found=function_type)
        expected = INTRINSICS[name].rule(function_type.parameter)
        if not expected.is_equivalent_to(function_type.result):
            refuse(f"`{name}` has another result.", at=at, expected=expected, found=function_type.result)
        return ir.Intrinsic(name, function_type)

    def _literal(self, at: str, type_: Any, blob: Any) -> ir.Expression:
        tensor = self._type(type_, at)
        if not isinstance(tensor, TensorType) or not tensor.is_fully_defined:
            refuse("A constant is a tensor of known shape.", at=at, found=tensor)
        check_precision(tensor, None)
        return ir.Literal(read_constant(tensor, self._item("blobs", self._blobs, blob, at), at), tensor)

    def _placement(self, at: str, name: Any) -> ir.Expression:
        if not isinstance(name, str) or name not in _PLACEMENTS:
            refuse("There is no such placement.", at=at, expected="CLIENTS or SERVER", found=repr(name)[:100])
        return ir.Placement(_PLACEMENTS[name])

    def _local(self, at: str, name: Any, type_: Any, program: Any) -> ir.Expression:
        if not isinstance(name, str) or len(name) > _MAX_NAME:
            refuse("A program has a name.", at=at, expected=f"at most {_MAX_NAME} characters")
        function_type = self._function_type(type_, at)
        for part in (function_type.parameter, function_type.result):
            if part is not None:
                check_local_type(part, None)
                check_precision(part, None)
        self._item("programs", self._program_rows, program, at)
        key = (program, function_type)
        if key not in self._programs:
            place = f"programs[{program}]"
            self._programs[key] = read_program(
                self._program_rows[program],
                function_type,
                lambda position: self._item("blobs", self._blobs, position, place),
                place,
            )
        return ir.Local(name, self._programs[key].closed_jaxpr(), function_type)


def _binding(name: Any, at: str) -> str:
    if not isinstance(name, str) or not _BINDING.fullmatch(name):
        refuse("A name in an expression is an identifier.", at=at, found=repr(name)[:100])
    return name


def _pairs(values: Any, at: str) -> list[tuple[Any, Any]]:
    if not isinstance(values, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in values):
        refuse("A list of names and expressions is expected.", at=at)
    return [(first, second) for first, second in values]
