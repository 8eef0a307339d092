"""The checker of the intermediate representation: every expression is well-typed and sees the names that it uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from koinon._errors import InvalidIntermediateRepresentationError, KoinonError
from koinon.computation import _ir as ir
from koinon.computation._flat import leaf_types
from koinon.computation._intrinsics import INTRINSICS
from koinon.computation._print import compact
from koinon.types import FunctionType, StructType, TensorType, Type


def check(node: ir.Expression) -> None:
    """Checks an expression without free names.

    Raises:
      InvalidIntermediateRepresentationError: naming the expression that is ill-typed, or the name that is not in scope.
    """
    _check(node, {})


def _check(node: ir.Expression, scope: dict[str, Type]) -> None:
    match node:
        case ir.Reference():
            declared = scope.get(node.name)
            if declared is None:
                _refuse(node, "refers to a name that is not in scope", None, node.name)
            if declared != node.type:
                _refuse(node, "has another type than the name that it refers to", declared, node.type)
        case ir.Lambda():
            inner = scope
            if node.parameter_name is not None and node.parameter_type is not None:
                inner = {**scope, node.parameter_name: node.parameter_type}
            _check(node.body, inner)
        case ir.Call():
            _check_call(node, scope)
        case ir.Block():
            inner = dict(scope)
            for name, value in node.locals:
                _check(value, inner)
                inner[name] = value.type
            _check(node.result, inner)
        case ir.Struct():
            for _, element in node.elements:
                _check(element, scope)
        case ir.Selection():
            _check(node.source, scope)
            if not isinstance(node.source.type, StructType) or not 0 <= node.index < len(node.source.type):
                _refuse(node, f"selects field {node.index}, which does not exist", None, node.source.type)
        case ir.Local():
            _check_leaves(node, "takes", node.type.parameter, node.program.in_avals)
            _check_leaves(node, "gives", node.type.result, node.program.out_avals)
        case _:
            return


def _check_call(node: ir.Call, scope: dict[str, Type]) -> None:
    _check(node.function, scope)
    if node.argument is not None:
        _check(node.argument, scope)
    function_type = node.function.type
    if not isinstance(function_type, FunctionType):
        _refuse(node, "calls what is no function", None, function_type)
    argument_type = None if node.argument is None else node.argument.type
    if isinstance(node.function, ir.Intrinsic) and argument_type is not None:
        try:
            expected = INTRINSICS[node.function.name].rule(argument_type)
        except KoinonError as error:
            _refuse(node, f"breaks the type rule of its operator: {error.what}", error.expected, error.found)
        if not expected.is_equivalent_to(function_type.result):
            _refuse(node, "has another result type than its operator gives", expected, function_type.result)
        return
    if (function_type.parameter is None) != (argument_type is None):
        _refuse(node, "has an argument too many or too few", function_type.parameter, argument_type)
    if (
        function_type.parameter is not None
        and argument_type is not None
        and not function_type.parameter.is_assignable_from(argument_type)
    ):
        _refuse(node, "has an argument that the function does not take", function_type.parameter, argument_type)


def _check_leaves(node: ir.Local, verb: str, type_: Type | None, avals: Sequence[Any]) -> None:
    """Checks that the arrays of a program are the leaves of a type, an unknown dimension being any symbol."""
    expected = [] if type_ is None else [(leaf.dtype, leaf.shape) for leaf in leaf_types(type_)]
    found = [(aval.dtype, tuple([d if isinstance(d, int) else None for d in aval.shape])) for aval in avals]
    if expected != found:
        _refuse(node, f"{verb} other leaves than its type has", _list(expected), _list(found))


def _list(leaves: Sequence[tuple[Any, Any]]) -> str:
    return ", ".join(str(TensorType(dtype, shape)) for dtype, shape in leaves) or "none"


def _refuse(node: ir.Expression, what: str, expected: object, found: object) -> NoReturn:
    text = compact(node)
    raise InvalidIntermediateRepresentationError(
        f"The expression {text if len(text) < 200 else text[:200] + '...'} {what}.",
        expected=expected,
        found=found,
        made_in=getattr(node, "made_in", None),
    )
