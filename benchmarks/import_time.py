"""What `import koinon` costs on top of `import jax`, in seconds; the budget is 0.15.

The two are run by turns, each in processes of its own, and the medians compared.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

RUNS = 15
TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def seconds(modules: str) -> float:
    """How long an import takes in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(modules)], capture_output=True, text=True, check=True, timeout=120
    )
    return float(done.stdout)


def main() -> None:
    """Measures, and prints the result as JSON."""
    seconds("jax, koinon")  # writes bytecode, and brings the files into memory
    jax, both = zip(*[(seconds("jax"), seconds("jax, koinon")) for _ in range(RUNS)], strict=True)
    result = {
        "benchmark": "import_time",
        "runs": RUNS,
        "jax_seconds": round(statistics.median(jax), 4),
        "jax_and_koinon_seconds": round(statistics.median(both), 4),
        "koinon_seconds": round(statistics.median(both) - statistics.median(jax), 4),
        "budget_seconds": 0.15,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
