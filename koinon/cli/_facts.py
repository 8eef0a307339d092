"""What the compiler knows about a round of a task."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

from koinon import compiler
from koinon.errors import KoinonError
from koinon.learning.templates import LearningProcess
from koinon.simulation.tasks import Task

_CLIENTS_LOOKED_AT = 1000


def plan_text(process: LearningProcess) -> str:
    """The page of the plan of a round."""
    return str(compiler.plan(process.next))


def privacy_report(process: LearningProcess) -> compiler.PrivacyReport | str:
    """What the server gets of the clients' data; a sentence where the compiler cannot tell."""
    try:
        return compiler.privacy_report(process.next)
    except KoinonError as error:
        return f"There is no privacy report: {error}"


def privacy_text(process: LearningProcess) -> str:
    """The privacy report with one row for all leaves of which it says the same, so that it fits on a page."""
    report = privacy_report(process)
    if not isinstance(report, compiler.PrivacyReport):
        return report
    groups: dict[compiler.PrivacyRow, list[compiler.PrivacyRow]] = {}
    for row in report.rows:
        groups.setdefault(dataclasses.replace(row, path="", type=""), []).append(row)
    folded = dataclasses.replace(report, rows=tuple(_one_row(rows) for rows in groups.values()))
    # The last line counts leaves.
    return str(folded).rpartition("\n")[0] + "\n" + str(report).rpartition("\n")[2]


def _one_row(rows: list[compiler.PrivacyRow]) -> compiler.PrivacyRow:
    """A row for leaves of which the report says the same: `.state.weights, 4 leaves`."""
    if len(rows) == 1:
        return rows[0]
    # The steps of a path begin with a point or a bracket.
    paths = [re.split(r"(?=[.\[])", row.path) for row in rows]
    common = "".join(
        steps[0] for steps in itertools.takewhile(lambda steps: len(set(steps)) == 1, zip(*paths, strict=False))
    )
    return dataclasses.replace(rows[0], path=f"{common or 'result'}, {len(rows)} leaves", type="")


def cost_text(process: LearningProcess, task: Task, clients_per_round: int) -> str:
    """What a round moves and computes, with clients of mean size; a sentence where the compiler cannot tell."""
    try:
        return str(
            compiler.cost_report(process.next, clients=clients_per_round, examples_per_client=_mean_size(task.train))
        )
    except KoinonError as error:
        return f"There is no cost report: {error}"


def _mean_size(data: Any) -> int:
    """The mean number of examples, of the first clients of a large population."""
    ids = list(itertools.islice(data.client_ids, _CLIENTS_LOOKED_AT))
    return round(sum(map(data.num_examples, ids)) / len(ids))
