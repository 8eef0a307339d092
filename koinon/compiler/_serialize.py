"""Computations as bytes.

The header of the frame (`_wire`) has five tables and the name of the computation; rows refer to each other by position:

    types     see `_type_rows`
    programs  {convention, derivative, dimensions, module, platforms}
    nodes     the expression, subexpressions first, the whole last; equal ones once:
              ["reference", name, type]                    ["selection", source, index]
              ["lambda", name, type, body]                 ["intrinsic", name, type]
              ["call", function, argument]                 ["literal", type, blob]
              ["block", [[name, value], ...], result]      ["placement", name]
              ["struct", [[name, element], ...], container]    ["local", name, type, program]
    blobs     StableHLO modules, and constants as little-endian numbers

Nothing in it depends on where it was written: no path, no line number, no address. One computation has one text.
"""

from __future__ import annotations

from typing import Any

from koinon._errors import SerializationError
from koinon.compiler._constants import constant_bytes
from koinon.compiler._export import export_program
from koinon.compiler._node_rows import MAX_DEPTH, Measure
from koinon.compiler._program_rows import program_row
from koinon.compiler._type_rows import TypeSizes, type_row
from koinon.compiler._wire import canonical_json, fingerprint_of, pack
from koinon.computation import Computation
from koinon.computation import _ir as ir
from koinon.types import Type, container_name


def serialize(computation: Computation) -> bytes:
    """A computation as bytes that another process, machine or version can load, and that hold no Python code.

    Programs of JAX are written as StableHLO for CPU, CUDA and TPU where they can be lowered for all three, with unknown
    dimensions left open, and with their derivatives where they have one. The same computation gives the same bytes.
    Containers come back if they are registered (`ko.types.register_container`), else as OrderedDicts and tuples.

    Raises:
      SerializationError: where a program cannot be written as StableHLO, such as one with a callback into Python, or
        the computation is nested too deeply.

    >>> import jax.numpy as jnp, koinon as ko
    >>> @ko.jax_computation(jnp.float32)
    ... def double(x):
    ...     return 2.0 * x
    >>> data = ko.compiler.serialize(double)
    >>> data == ko.compiler.serialize(double)
    True
    >>> float(ko.compiler.deserialize(data)(4.0))
    8.0
    """
    writer = _Writer()
    writer.write(computation.expression, 0)
    header = {
        "name": computation.name,
        "nodes": writer.nodes.rows,
        "programs": writer.programs.rows,
        "types": writer.types.rows,
    }
    return pack(header, writer.blobs)


def fingerprint(computation: Computation) -> str:
    """The SHA-256 of a serialized computation in hexadecimal: equal for computations that are written alike.

    >>> import jax.numpy as jnp, koinon as ko
    >>> @ko.jax_computation(jnp.float32)
    ... def double(x):
    ...     return 2.0 * x
    >>> len(ko.compiler.fingerprint(double))
    64
    """
    return fingerprint_of(serialize(computation))


class _Table:
    """Rows, each once."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._positions: dict[bytes, int] = {}

    def position(self, row: Any) -> int:
        """The position of a row, added where it is new."""
        key = canonical_json(row)
        if key not in self._positions:
            self._positions[key] = len(self.rows)
            self.rows.append(row)
        return self._positions[key]


class _Writer:
    def __init__(self) -> None:
        self.nodes = _Table()
        self.types = _Table()
        self.programs = _Table()
        self.blobs: list[bytes] = []
        self._blob_positions: dict[bytes, int] = {}
        self._written: dict[int, int] = {}
        self._type_positions: dict[Type, int] = {}
        self._sizes = TypeSizes()
        self._measure = Measure()

    def write(self, node: ir.Expression, depth: int) -> int:
        """The position of an expression, written where it is new."""
        known = self._written.get(id(node))
        if known is not None:
            return known
        if depth >= MAX_DEPTH:
            raise SerializationError("A computation is nested too deeply.", expected=f"at most {MAX_DEPTH} levels")
        row = self._row(node, depth + 1)
        count = len(self.nodes.rows)
        position = self.nodes.position(row)
        if position == count:
            self._measure.add(row, self._sizes[node.type])
        self._written[id(node)] = position
        return position

    def _row(self, node: ir.Expression, depth: int) -> list[Any]:
        match node:
            case ir.Reference():
                return ["reference", node.name, self._type(node.type)]
            case ir.Lambda():
                type_ = None if node.parameter_type is None else self._type(node.parameter_type)
                return ["lambda", node.parameter_name, type_, self.write(node.body, depth)]
            case ir.Call():
                function = self.write(node.function, depth)
                return ["call", function, None if node.argument is None else self.write(node.argument, depth)]
            case ir.Block():
                values = [[name, self.write(value, depth)] for name, value in node.locals]
                return ["block", values, self.write(node.result, depth)]
            case ir.Struct():
                elements = [[name, self.write(element, depth)] for name, element in node.elements]
                return ["struct", elements, container_name(node.container)]
            case ir.Selection():
                return ["selection", self.write(node.source, depth), node.index]
            case ir.Intrinsic():
                return ["intrinsic", node.name, self._type(node.type)]
            case ir.Literal():
                return ["literal", self._type(node.type), self._blob(constant_bytes(node.value))]
            case ir.Placement():
                return ["placement", str(node.literal)]
            case ir.Local():
                program = program_row(export_program(node.name, node.program, node.type), self._blob)
                return ["local", node.name, self._type(node.type), self.programs.position(program)]

    def _type(self, type_: Type) -> int:
        position = self._type_positions.get(type_)
        if position is None:
            position = self._type_positions[type_] = self.types.position(type_row(type_, self._type))
        return position

    def _blob(self, data: bytes) -> int:
        if data not in self._blob_positions:
            self._blob_positions[data] = len(self.blobs)
            self.blobs.append(data)
        return self._blob_positions[data]
