"""What a run has spent of privacy, read from its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_SPENT = "privacy_spent"


def spent_epsilon(metrics: Any) -> float | None:
    """The greatest epsilon that an aggregation of a round measured, of all rounds so far; None if none did."""
    found = [
        float(value["epsilon"]) if name == _SPENT and "epsilon" in value else spent_epsilon(value)
        for name, value in (metrics.items() if isinstance(metrics, Mapping) else ())
        if isinstance(value, Mapping)
    ]
    return max((epsilon for epsilon in found if epsilon is not None), default=None)


def spent_rows(metrics: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """For each aggregation with differential privacy what it has spent, from the last row of `metrics.csv`."""
    rows = []
    for name, column in metrics.items():
        path, _, quantity = name.rpartition("/")
        if path.endswith(_SPENT) and quantity in ("epsilon", "zcdp_rho") and len(column):
            where = path.removesuffix(_SPENT).rstrip("/")
            last = {part: metrics[f"{path}/{part}"][-1] for part in ("delta", "rounds") if f"{path}/{part}" in metrics}
            if quantity == "epsilon":
                rows.append((f"epsilon spent, {where}", f"{column[-1]:.3f} for delta {last['delta']:g}"))
            elif f"{path}/epsilon" not in metrics:
                rows.append((f"zero-concentrated privacy spent, {where}", f"rho {column[-1]:.3f}"))
    return rows


def last_epsilon(metrics: Mapping[str, np.ndarray]) -> float | None:
    """The greatest epsilon in the last row of `metrics.csv`; None if there is none."""
    columns = [column for name, column in metrics.items() if name.endswith(f"{_SPENT}/epsilon") and len(column)]
    return max((float(column[-1]) for column in columns), default=None)
