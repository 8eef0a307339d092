"""A plan as a page that a person can read, and as a Mermaid diagram."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from typing import Any

from koinon.compiler._steps import Phase, PlanValue, Step, plan_values
from koinon.computation import INTRINSICS, Route
from koinon.computation import _ir as ir
from koinon.computation._evaluate import Closure, LocalFunction, OperatorFunction
from koinon.computation._print import compact
from koinon.types import FunctionType, StructType, Type

_ROUTES = {Route.PLAIN: "plain", Route.SECURE: "secure", Route.REVEALING: "revealing", Route.NONE: ""}
# What the first line of a page has for the type of the computation.
_HEADER_WIDTH = 120


class Names:
    """What the values of a plan are called: parts of the argument by their path, the others by number."""

    def __init__(self, type_: FunctionType, parameter: Any) -> None:
        self.names: dict[int, str] = {}
        if type_.parameter is not None:
            self._name_argument(type_.parameter, parameter, "argument")

    def _name_argument(self, type_: Type, value: Any, path: str) -> None:
        if isinstance(value, PlanValue):
            self.names[value.index] = path
            return
        assert isinstance(type_, StructType)
        for i, ((name, field), part) in enumerate(zip(type_.items(), value, strict=True)):
            self._name_argument(field, part, f"{path}.{name}" if name is not None else f"{path}[{i}]")

    def of(self, value: Any) -> str:
        """The text of operands."""
        match value:
            case PlanValue():
                return self.names.setdefault(value.index, f"%{len(self.names)}")
            case tuple():
                return f"<{','.join(self.of(part) for part in value)}>"
            case Closure():
                return function_name(value.node)
            case LocalFunction() | OperatorFunction():
                return value.node.name
            case _:
                return reprlib.repr(value.tolist()) if hasattr(value, "tolist") else reprlib.repr(value)


def function_name(node: ir.Lambda) -> str:
    """What a function in a plan is called: the path that it selects, or the programs that it runs."""
    body = node.body
    path = ""
    while isinstance(body, ir.Selection):
        source = body.source.type
        assert isinstance(source, StructType)
        name = source.items()[body.index][0]
        path = (f".{name}" if name is not None else f"[{body.index}]") + path
        body = body.source
    if isinstance(body, ir.Reference) and path:
        return path
    programs = [part.name for part in ir.walk(node) if isinstance(part, ir.Local)]
    return " then ".join(programs) if programs else compact(node)


def header(name: str, type_: Type, width: int | None = _HEADER_WIDTH) -> str:
    """The first line of a page about a computation."""
    return f"{name}: {type_.compact_representation(width)}"


def format_plan(
    name: str, type_: FunctionType, parameter: Any, phases: tuple[Phase, ...], result: Any, width: int | None
) -> str:
    """The page of a plan: its type, and for each phase what happens where, one line for each value."""
    names = Names(type_, parameter)
    lines = [header(name, type_, None if width is None else max(width, _HEADER_WIDTH))]
    for number, phase in enumerate(phases):
        body = list(phase_lines(phase, names, width))
        if body:
            lines += ["", f"phase {number}", *body]
    return "\n".join([*lines, "", f"result {names.of(result)}"])


def step_texts(type_: FunctionType, parameter: Any, phases: tuple[Phase, ...]) -> dict[Step, str]:
    """What the page of a plan says about each step, without types: `%3 = sum(%2)`."""
    names = Names(type_, parameter)
    for phase in phases:
        for _ in phase_lines(phase, names, None):
            pass
    steps = [step for phase in phases for step in (*phase.server, *phase.clients, *phase.aggregations)]
    return {step: f"{names.of(step.output)} = {operation_text(step, names)}" for step in steps}


def phase_lines(phase: Phase, names: Names, width: int | None) -> Iterator[str]:
    """The page of one phase, with at most so many characters for a type."""
    broadcasts = [step for step in phase.clients if step.operator == "federated_broadcast"]
    work = [step for step in phase.clients if step.operator != "federated_broadcast"]
    for title, steps in (
        ("server", phase.server),
        ("broadcast", broadcasts),
        ("clients", work),
        ("aggregate", phase.aggregations),
    ):
        if steps:
            yield f"  {title}"
        for step in steps:
            yield f"    {_step_text(step, names, width)}"


def _step_text(step: Step, names: Names, width: int | None) -> str:
    # The operands are named before the output, so that numbers rise down the page.
    operation = operation_text(step, names)
    route = _ROUTES[INTRINSICS[step.operator].route] if step.operator in INTRINSICS else ""
    type_ = _type_of(step.output).compact_representation(width)
    return f"{names.of(step.output)}: {type_} = {operation}" + (f"  [{route}]" if route else "")


def _type_of(output: Any) -> Type:
    if isinstance(output, PlanValue):
        return output.type
    return StructType([_type_of(part) for part in output])


def operation_text(step: Step, names: Names) -> str:
    """What a step does, in the words of the language."""
    operator = step.operator.removeprefix("federated_")
    match step.operator:
        case "local":
            return f"{step.node.name}({'' if step.operands is None else names.of(step.operands)})"
        case "federated_map":
            function, value = step.operands
            label = names.of(function)
            is_path = label.startswith((".", "["))
            return names.of(value) + label if is_path else f"{label}({names.of(value)})"
        case _:
            return f"{operator}({names.of(step.operands)})"


def mermaid(type_: FunctionType, parameter: Any, phases: tuple[Phase, ...], result: Any) -> str:
    """The plan as a Mermaid flowchart, server and clients side by side, one edge for each use of a value."""
    names = Names(type_, parameter)
    nodes: dict[str, list[str]] = {"SERVER": [], "CLIENTS": []}
    edges: list[str] = []
    for value in plan_values(parameter):
        nodes[str(value.placement)].append(f'    n{value.index}[/"{_escape(names.of(value))}"/]')
    for step, text in step_texts(type_, parameter, phases).items():
        outputs = list(plan_values(step.output))
        for value in outputs:
            nodes[str(value.placement)].append(f'    n{value.index}["{_escape(text)}"]')
            for source in plan_values(step.operands):
                arrow = "==>" if source.placement is not value.placement else "-->"
                edges.append(f"  n{source.index} {arrow} n{value.index}")
    lines = ["flowchart LR"]
    for place, members in nodes.items():
        if members:
            lines += [f"  subgraph {place}", *members, "  end"]
    results = dict.fromkeys(f"  n{value.index} --> result" for value in plan_values(result))
    return "\n".join([*lines, *dict.fromkeys(edges), "  result((result))", *results])


def _escape(text: str) -> str:
    return text.replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
