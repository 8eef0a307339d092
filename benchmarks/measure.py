"""How a contestant is timed: the first round, then warm rounds, with the loss that they reach, as one line of JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def measure(
    contestant: str, workload: Any, build: Callable[[], Callable[[int], Any]], loss: Callable[[], float], rounds: int
) -> None:
    """Builds and runs a contestant, and prints what it took.

    Args:
      contestant: its name.
      workload: the workload.
      build: makes what runs one round, given its number, and waits for the result.
      loss: the loss over all examples, after the rounds run so far.
      rounds: how many warm rounds to time.
    """
    start = time.perf_counter()
    run = build()
    built = time.perf_counter()
    run(0)
    first = time.perf_counter()
    times = []
    cpu = time.process_time()
    for number in range(1, rounds + 1):
        begin = time.perf_counter()
        run(number)
        times.append(time.perf_counter() - begin)
    cpu = (time.process_time() - cpu) / max(1, rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # the loss below takes memory of its own
    line = {
        "contestant": contestant,
        "workload": workload.name,
        "build": round(built - start, 4),
        "first": round(first - built, 4),
        "times": [round(t, 6) for t in times],
        "cpu": round(cpu, 6),
        "loss": loss(),
        "peak_mb": round(peak, 1),
        "python": sys.version.split()[0],
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(line), flush=True)
