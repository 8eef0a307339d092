"""Plans as pages and as diagrams, as they were reviewed."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import pytest

import koinon as ko
from koinon.compiler import plan
from koinon.compiler._show import step_texts
from koinon.types import TensorType, at_clients, at_server
from tests.compiler.labelled import CLEAN, LEAKY


@ko.federated_computation(at_server(jnp.float32), at_clients({"x": jnp.float32, "y": jnp.float32}))
def centred(shift: Any, data: Any) -> Any:
    """Two phases: a mean, then the spread around it."""
    mean = ko.federated_mean(data["x"])
    sent = ko.federated_broadcast(ko.federated_zip((mean, shift)))

    def deviate(x: Any, pair: Any) -> Any:
        return (x - pair[0]) ** 2 + pair[1]

    return {"mean": mean, "spread": ko.federated_sum(ko.federated_map(deviate, (data["y"], sent)))}


PAGE = """\
centred: (<shift=float32@SERVER,data={<x=float32,y=float32>}@CLIENTS> -> <mean=float32@SERVER,spread=float32@SERVER>)

phase 0
  clients
    %2: {float32}@CLIENTS = argument.data.x
    %3: {float32}@CLIENTS = argument.data.y
  aggregate
    %4: float32@SERVER = mean(%2)  [plain]

phase 1
  server
    %5: <float32,float32>@SERVER = zip(<%4,argument.shift>)
  broadcast
    %6: <float32,float32>@CLIENTS = broadcast(%5)
  clients
    %7: {<float32,<float32,float32>>}@CLIENTS = zip(<%3,%6>)
    %8: {float32}@CLIENTS = deviate(%7)
  aggregate
    %9: float32@SERVER = sum(%8)  [plain]

result <%4,%9>"""


def test_the_page_is_the_reviewed_one() -> None:
    """Phases in order, in each what happens where, one line for each value, routes beside aggregations."""
    assert str(plan(centred)) == PAGE


def test_a_page_has_a_line_for_each_value() -> None:
    """Every value is defined once, before it is used."""
    for item in (LEAKY | CLEAN).values():
        text = str(plan(item.computation))
        defined = re.findall(r"^    (%\d+|<[%\d,<>]+>): ", text, re.MULTILINE)
        names = [name for group in defined for name in re.findall(r"%\d+", group)]
        assert len(names) == len(set(names))
        assert set(re.findall(r"%\d+", text)) == set(names)


def test_routes_stand_beside_aggregations() -> None:
    """Secure and revealing aggregations are marked as such."""
    assert "[secure]" in str(plan(LEAKY["secure_sum_without_noise"].computation))
    assert "[revealing]" in str(plan(LEAKY["minimum"].computation))
    assert "[" not in str(plan(CLEAN["server_work_alone"].computation))


def test_long_types_and_constants_are_cut() -> None:
    """A page stays readable with wide structs and large constants."""
    wide = {f"field_{i:02}": TensorType(jnp.float32, (i,)) for i in range(40)}

    @ko.federated_computation(at_server(wide), at_clients(jnp.float32))
    def big(state: Any, x: Any) -> Any:
        constant = ko.federated_value(jnp.arange(10_000.0), ko.SERVER)
        return ko.federated_map(lambda s: s, state), constant

    lines = str(plan(big)).splitlines()
    whole = plan(big).formatted_representation(width=None).splitlines()

    assert max(len(line) for line in lines) < 200
    assert lines[0] == "big: (<state=<...>@SERVER,x={float32}@CLIENTS> -> <<...>@SERVER,float32[10000]@SERVER>)"
    shown = [line.split(": ")[1].split(" = ")[0] for line in lines if line.startswith("    %")]
    assert shown[1].startswith("<field_00=float32[0],field_01=float32[1],")
    assert shown[1].endswith(",...>@SERVER")
    assert max(len(type_) for type_ in shown) <= 72
    assert whole[0] == f"big: {big.type_signature}"
    assert any(f": {at_server(wide)} = " in line for line in whole)
    assert not any("<...>" in line for line in whole)


def test_step_texts_are_those_of_the_page() -> None:
    """What reports call a step can be found on the page of the plan."""
    for item in (LEAKY | CLEAN).values():
        lowered = plan(item.computation)
        lines = [line.strip().split("  [")[0] for line in str(lowered).splitlines()]
        page = [re.sub(r": .* = ", " = ", line) for line in lines]
        for text in step_texts(lowered.type, lowered.parameter, lowered.phases).values():
            assert text in page


DIAGRAM = """\
flowchart LR
  subgraph SERVER
    n0[/"argument.shift"/]
    n3["%4 = mean(%2)"]
    n4["%5 = zip(#lt;%4,argument.shift#gt;)"]
    n9["%9 = sum(%8)"]
  end
  subgraph CLIENTS
    n1[/"argument.data"/]
    n2["%2 = argument.data.x"]
    n6["%3 = argument.data.y"]
    n5["%6 = broadcast(%5)"]
    n7["%7 = zip(#lt;%3,%6#gt;)"]
    n8["%8 = deviate(%7)"]
  end
  n1 --> n2
  n1 --> n6
  n2 ==> n3
  n3 --> n4
  n0 --> n4
  n4 ==> n5
  n6 --> n7
  n5 --> n7
  n7 --> n8
  n8 ==> n9
  result((result))
  n3 --> result
  n9 --> result"""


def test_the_diagram_is_the_reviewed_one() -> None:
    """Server and clients side by side, thick arrows between them, the numbers of the page."""
    assert plan(centred).mermaid() == DIAGRAM


@pytest.mark.parametrize("name", sorted(LEAKY | CLEAN))
def test_diagrams_are_well_formed(name: str) -> None:
    """Every node is defined once, every edge joins nodes that are, and labels have no character of the notation."""
    text = plan((LEAKY | CLEAN)[name].computation).mermaid()
    nodes = re.findall(r"^    (n\d+)\[", text, re.MULTILINE)
    edges = re.findall(r"^  (n\d+) (?:-->|==>) (n\d+|result)$", text, re.MULTILINE)
    labels = re.findall(r"\[/?\"(.*)\"/?\]$", text, re.MULTILINE)

    assert len(nodes) == len(set(nodes)) == len(labels)
    assert {end for edge in edges for end in edge} <= {*nodes, "result"}
    assert not any(set('"<>') & set(label) for label in labels)
    assert text.count("subgraph") == text.count("  end")
