"""What `import koinon` does: nothing but define names. `benchmarks/import_time.py` has the seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

# Run in a process of its own; the argument is the statement to watch, once JAX is imported.
WATCH = """
import json, sys, threading
import jax, numpy

watched = ("subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "socket.", "_thread.start")
events, watching = [], True
sys.addaudithook(lambda event, args: watching and event.startswith(watched) and events.append(event))
modules, threads = set(sys.modules), threading.active_count()
exec(sys.argv[1])
watching = False
new = sorted(set(sys.modules) - modules)
# Once a device has been touched, the number of devices cannot be chosen any more.
jax.config.update("jax_num_cpu_devices", 3)
print(json.dumps({"events": events, "new": new, "threads": threading.active_count() - threads,
                  "devices": jax.device_count("cpu")}))
"""


def watch(statement: str) -> dict[str, Any]:
    """What a statement does in a fresh process in which JAX is imported."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCH, statement], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What `import koinon` does."""
    return watch("import koinon")


def test_importing_brings_in_nothing_but_koinon_and_what_jax_has(seen: dict[str, Any]) -> None:
    """No package comes in besides koinon, JAX with its own needs, and Python's library."""
    packages = {name.split(".")[0] for name in seen["new"]} - set(sys.stdlib_module_names)

    assert packages <= {"koinon", "jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum"}


def test_importing_starts_nothing(seen: dict[str, Any]) -> None:
    """No thread, no process and no connection is started."""
    assert seen["events"] == []
    assert seen["threads"] == 0


def test_importing_touches_no_device(seen: dict[str, Any]) -> None:
    """The devices of JAX can still be chosen afterwards."""
    assert seen["devices"] == 3


def test_the_watcher_sees_what_it_looks_for() -> None:
    """Each of the things that importing koinon does not do is seen where it is done."""
    seen = watch(
        "import optax, threading, subprocess\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "subprocess.run([sys.executable, '-c', ''])"
    )

    assert "optax" in seen["new"]
    assert seen["threads"] == 1
    assert "subprocess.Popen" in seen["events"]


def test_every_namespace_is_there_without_an_import_of_its_own() -> None:
    """`koinon.learning.algorithms` works after `import koinon` alone."""
    seen = watch("import koinon; koinon.learning.algorithms.build_weighted_fed_avg")

    assert "koinon.learning.algorithms" in seen["new"]
