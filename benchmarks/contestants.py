"""Who takes part in the comparison: scripts, options, environments, and what is known not to run.

A number at the end of a name is that of the cores that the contestant has: it is kept to them, and uses them as it can.
The numbers are the powers of two below the cores that there are, and all of them.
"""

from __future__ import annotations

import dataclasses
import os


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to run the workloads.

    Attributes:
      script: the benchmark, `bench_*.py`.
      environment: the name of its environment, in `ENVIRONMENTS`.
      kind: how it was written: "as it comes", "tuned" by someone who knows the library, or "by hand".
      options: what follows the workload and the number of rounds on its command line.
      impossible: the workloads that it cannot run, with the reason.
      cores: how many cores it is kept to; 0 for all that there are.
    """

    script: str
    environment: str
    kind: str
    options: tuple[str, ...] = ()
    impossible: dict[str, str] = dataclasses.field(default_factory=dict)
    cores: int = 0


# What is installed in each environment; None is the environment that runs the comparison, which has koinon.
# FedJAX uses `jax.tree_map`, which JAX 0.6 removed.
ENVIRONMENTS: dict[str, tuple[str, ...] | None] = {
    "koinon": None,
    "drjax": ("drjax>=0.2.1", "jax>=0.10", "absl-py>=2", "numpy>=2"),
    "fedjax": ("fedjax>=0.0.17", "jax==0.5.3", "jaxlib==0.5.3", "numpy>=2"),
    "pfl": ("pfl[pytorch]>=0.6", "torch>=2.6", "numpy>=2"),
    "flower": ("flwr[simulation]>=1.41", "jax>=0.10", "numpy>=2"),
}

# The library of an environment, for the versions in the results.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "koinon": ("koinon", "jax", "numpy"),
    "drjax": ("drjax", "jax", "numpy"),
    "fedjax": ("fedjax", "jax", "numpy"),
    "pfl": ("pfl", "torch", "numpy"),
    "flower": ("flwr", "ray", "jax", "numpy"),
}

# What a program imports before it can do anything; how long that takes is measured by itself.
IMPORTS: dict[str, str] = {
    "koinon": "koinon, koinon.learning, koinon.simulation",
    "drjax": "drjax",
    "fedjax": "fedjax",
    "pfl": "pfl.algorithm.federated_averaging, pfl.aggregate.simulate, pfl.model.pytorch",
    "flower": "flwr.clientapp, flwr.serverapp.strategy, flwr.simulation, jax",
}

_TOO_LONG = "a round takes longer than the ten minutes of a run"

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
FEWER = [2**n for n in range(CORES.bit_length()) if 2**n < CORES]

CONTESTANTS: dict[str, Contestant] = {
    "koinon": Contestant("bench_koinon.py", "koinon", "as it comes"),
    "koinon-fresh": Contestant("bench_koinon.py", "koinon", "as it comes", ("fresh=1",)),
    **{
        f"koinon-devices-{n}": Contestant("bench_koinon.py", "koinon", "as it comes", (f"devices={n}",), cores=n)
        for n in [*FEWER[1:], CORES]
    },
    **{
        f"handwritten-{n}": Contestant("bench_handwritten.py", "koinon", "by hand", (f"devices={n}",), cores=n)
        for n in [*FEWER, CORES]
    },
    "handwritten-16-lanes": Contestant("bench_handwritten.py", "koinon", "by hand", (f"devices={CORES}", "lanes=16")),
    "drjax": Contestant(
        "bench_drjax.py",
        "drjax",
        "as it comes",
        ("groups=1",),
        {"W3-100000": "padded to the longest, the clients alone take 23 GB, and XLA several times that"},
    ),
    "drjax-8-groups": Contestant("bench_drjax.py", "drjax", "tuned", ("groups=8",)),
    "fedjax": Contestant("bench_fedjax.py", "fedjax", "as it comes"),
    **{
        f"pfl-{n}": Contestant(
            "bench_pfl.py", "pfl", "as it comes", (f"threads={n}",), {"W3-100000": _TOO_LONG}, cores=n
        )
        for n in [*FEWER, CORES]
    },
    "flower": Contestant("bench_flower.py", "flower", "as it comes", (f"actors={CORES}",), {"W3-100000": _TOO_LONG}),
}
CONTESTANTS |= {
    f"{name}-{n}": dataclasses.replace(CONTESTANTS[name], cores=n)
    for name in ("koinon", "drjax-8-groups", "fedjax")
    for n in FEWER
}


def series_of(contestant: str) -> tuple[str, int]:
    """A contestant's name without the number of its cores, and that number; 0 for all that there are.

    >>> series_of("handwritten-2"), series_of("drjax-8-groups")
    (('handwritten', 2), ('drjax-8-groups', 0))
    """
    name, _, cores = contestant.rpartition("-")
    return (name, int(cores)) if cores.isdecimal() else (contestant, 0)


def is_asked_for(contestant: str, workload: str) -> bool:
    """Whether a run belongs to the whole comparison: fewer cores than there are only on W1 to W4 themselves.

    >>> is_asked_for("koinon", "W1-512")
    True
    """
    return CONTESTANTS[contestant].cores not in FEWER or "-" not in workload


# The warm rounds of a run where the command line names no number: enough for a median within the time limit,
# and many where a round takes milliseconds, since the first tens of them are slower.
ROUNDS: dict[str, int] = {
    "W1": 100,
    "W1-32": 100,
    "W1-512": 40,
    "W1-2048": 10,
    "W2": 5,
    "W3-100": 100,
    "W3": 30,
    "W3-100000": 2,
    "W4": 5,
}


def full_name(workload: str) -> str:
    """The name that results carry: `W3` is the one of 1,000 clients.

    >>> full_name("W3"), full_name("W1")
    ('W3-1000', 'W1')
    """
    return "W3-1000" if workload == "W3" else workload
