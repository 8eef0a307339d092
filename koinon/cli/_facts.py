"""What the compiler knows about a round of a task."""

from __future__ import annotations

import itertools
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
