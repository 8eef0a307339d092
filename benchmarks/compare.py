"""Runs the contestants side by side, and writes one line of JSON a run.

    python benchmarks/compare.py [--workloads W1 W3 ...] [--contestants koinon drjax ...] [--rounds N] [--repeats K]
                                 [--out FILE] [--limit SECONDS] [--env NAME=PATH ...]

The contestants take turns: each repeat runs all of them once, so that a noisy minute hits all alike. Each run is a
process of its own with a time limit; one that fails leaves a line that says why. An environment that is missing is made
under `benchmarks/.envs`, which takes minutes; `--env drjax=/path/to/environment` uses one that is there.
Nothing else should run on the machine meanwhile. `report.py` makes the page of the documentation of the lines.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from contestants import CONTESTANTS, ENVIRONMENTS, IMPORTS, LIBRARIES, ROUNDS, full_name, is_asked_for
from workloads import WORKLOADS

HERE = pathlib.Path(__file__).resolve().parent
ENVIRONMENTS_FOLDER = HERE / ".envs"
VERSIONS = (
    "import importlib.metadata as m, json, sys; there = {d.name: d.version for d in m.distributions()}; "
    "print(json.dumps({name: there[name] for name in sys.argv[1:] if name in there}))"
)


def interpreter(name: str, given: dict[str, pathlib.Path]) -> pathlib.Path:
    """The Python of an environment, which is made if it is missing.

    Args:
      name: its name in `ENVIRONMENTS`.
      given: the folders of those that are there already, by name.
    """
    requirements = ENVIRONMENTS[name]
    if name in given:
        return given[name] / "bin" / "python"
    if requirements is None:
        return pathlib.Path(sys.executable)
    folder = ENVIRONMENTS_FOLDER / name
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        print(f"Making the environment {name} in {folder} ...", file=sys.stderr)
        ENVIRONMENTS_FOLDER.mkdir(exist_ok=True)
        (ENVIRONMENTS_FOLDER / ".gitignore").write_text("*\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        uv = shutil.which("uv")
        if uv:
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
            subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *requirements], check=True)
        else:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        complete.touch()
    return python


@functools.cache
def versions(python: pathlib.Path, libraries: tuple[str, ...]) -> dict[str, str]:
    """The versions of the libraries in an environment."""
    command = [str(python), "-c", VERSIONS, *libraries]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def import_seconds(python: pathlib.Path, modules: str) -> float:
    """How long imports take in a process of their own, whose start does not count."""
    script = f"import time; start = time.perf_counter(); import {modules}; print(time.perf_counter() - start)"
    done = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True)
    return round(float(done.stdout), 4)


def machine() -> dict[str, Any]:
    """What the runs ran on: the processor, its cores, and the memory in GB."""
    processor = platform.processor() or platform.machine()
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        models = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        processor = models[0].split(":")[1].strip() if models else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {"processor": processor, "system": platform.system(), "memory_gb": round(memory, 1)}


def started(process: int) -> tuple[int, str]:
    """The parent of a process and the time of its start, which together with its number identifies it."""
    stat = pathlib.Path(f"/proc/{process}/stat").read_text()
    fields = stat.rpartition(")")[2].split()  # the name stands in parentheses and may hold anything
    return int(fields[1]), fields[19]


def descendants(root: int) -> dict[int, str]:
    """A process and all that descend from it, where `/proc` tells, each with the time of its start."""
    children: dict[int, list[int]] = {}
    starts: dict[int, str] = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        process = int(folder.name)
        try:
            parent, starts[process] = started(process)
        except OSError:
            continue  # it ended meanwhile
        children.setdefault(parent, []).append(process)
    found = [root] if root in starts else []
    for process in found:
        found.extend(children.get(process, []))
    return {process: starts[process] for process in found}


def end(family: dict[int, str]) -> None:
    """Ends processes that are still the ones that they were."""
    for process, start in family.items():
        try:
            if started(process)[1] == start:
                os.kill(process, signal.SIGKILL)
        except OSError:
            continue  # it ended by itself


def private_memory(processes: Iterable[int]) -> float:
    """The memory of processes in MB that no file and no other process shares, and the largest shared part once."""
    private, shared = 0, 0
    for process in processes:
        try:
            fields = pathlib.Path(f"/proc/{process}/statm").read_text().split()
        except OSError:
            continue
        private += int(fields[1]) - int(fields[2])
        shared = max(shared, int(fields[2]))
    return (private + shared) * os.sysconf("SC_PAGE_SIZE") / 2**20


def result_line(output: str) -> dict[str, Any] | None:
    """The result among the lines that a contestant printed, or None."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            try:
                result = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "contestant" in result:
                return result
    return None


def failure(code: int | None, errors: str, limit: float) -> str:
    """Why a run left no result, in one line."""
    if code is None:
        return f"no result within {limit:g} s"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    reason = "killed, as by lack of memory" if code == -signal.SIGKILL else f"exit code {code}"
    return f"{reason}: {lines[-1][:300]}" if lines else reason


def run(command: Sequence[str], limit: float, cores: int = 0) -> tuple[int | None, str, str, float]:
    """Runs a command: its exit code (None if it ran out of time), what it printed, its errors, the peak of memory.

    Args:
      command: the program and its arguments.
      limit: the seconds that it may take.
      cores: how many cores it is kept to; 0 for all.
    """
    peak = 0.0
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, cwd=HERE, start_new_session=True)
        if cores:  # the interpreter is still starting: no library has counted the cores yet
            os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[:cores])
        deadline = time.monotonic() + limit
        family: dict[int, str] = {}
        try:
            while process.poll() is None and time.monotonic() < deadline:
                family |= descendants(process.pid)
                peak = max(peak, private_memory(family))
                time.sleep(0.5)
            code = process.poll()
        finally:
            if process.poll() is None:
                process.kill()
            end(family)  # what the run left behind too, such as the processes of Ray
            process.wait()
        output.seek(0)
        errors.seek(0)
        return code, output.read(), errors.read(), round(peak, 1)


def turns(workloads: Sequence[str], contestants: Sequence[str], repeats: int) -> Iterator[tuple[int, str, str]]:
    """The runs in their order: repeat by repeat all contestants of a workload, then the next workload.

    >>> [(repeat, name) for repeat, _, name in turns(["W1"], ["a", "b"], 2)]
    [(0, 'a'), (0, 'b'), (1, 'a'), (1, 'b')]
    """
    for workload in workloads:
        for repeat, contestant in itertools.product(range(repeats), contestants):
            yield repeat, workload, contestant


def compared(name: str, workload: str, rounds: int | None, limit: float, given: dict[str, pathlib.Path]) -> Any:
    """The line of one run."""
    contestant = CONTESTANTS[name]
    line: dict[str, Any] = {"contestant": name, "workload": full_name(workload)}
    if full_name(workload) in contestant.impossible:
        return {**line, "error": contestant.impossible[full_name(workload)]}
    python = interpreter(contestant.environment, given)
    count = rounds or ROUNDS.get(workload, 3)
    command = [str(python), contestant.script, workload, str(count), *contestant.options]
    code, output, errors, peak = run(command, limit, contestant.cores)
    line["versions"] = versions(python, LIBRARIES[contestant.environment])
    result = result_line(output)
    if result is None:
        return {**line, "error": failure(code, errors, limit)}
    seconds = import_seconds(python, IMPORTS[contestant.environment])
    return {**result, **line, "family_mb": peak, "import": seconds}


def progress_of(total: int) -> Any:
    """A bar of `rich` where it is installed, as a context manager, else None."""
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        return None
    return Progress(TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def said(line: dict[str, Any]) -> str:
    """A line of results for the person who waits."""
    if "error" in line:
        return f"{line['workload']:10} {line['contestant']:16} {line['error']}"
    middle = sorted(line["times"])[len(line["times"]) // 2] if line["times"] else float("nan")
    return f"{line['workload']:10} {line['contestant']:16} {middle:10.4f} s a round, loss {line['loss']:.6f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares the contestants."""
    parser = argparse.ArgumentParser(description="Runs the contestants side by side; one line of JSON a run.")
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS, metavar="W")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, metavar="NAME")
    parser.add_argument("--rounds", type=int, help="warm rounds of a run; by default, what the workload asks for")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contestant")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results.jsonl", help="lines are added to it")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a run may take")
    parser.add_argument("--env", nargs="+", default=[], metavar="NAME=PATH", help="environments that are there")
    options = parser.parse_args(arguments)
    given = {name: pathlib.Path(path) for name, _, path in (entry.partition("=") for entry in options.env)}
    if unknown := sorted(set(given) - set(ENVIRONMENTS)):
        parser.error(f"unknown environments: {', '.join(unknown)}; there are {', '.join(ENVIRONMENTS)}")
    contestants = options.contestants or list(CONTESTANTS)
    for contestant in contestants:
        interpreter(CONTESTANTS[contestant].environment, given)  # made before the first clock runs
    plan = [
        (repeat, workload, name)
        for repeat, workload, name in turns(options.workloads, contestants, options.repeats)
        if options.contestants or is_asked_for(name, workload)
    ]
    here = machine()
    progress = progress_of(len(plan))
    task = progress.add_task("starting", total=len(plan)) if progress else None
    if progress:
        progress.start()
    try:
        with options.out.open("a", encoding="utf-8") as results:
            for repeat, workload, name in plan:
                if progress:
                    progress.update(task, description=f"{workload} {name}")
                line = compared(name, workload, options.rounds, options.limit, given)
                line |= {"repeat": repeat, "date": time.strftime("%Y-%m-%d"), "machine": here}
                results.write(json.dumps(line) + "\n")
                results.flush()
                (progress.console.print if progress else print)(said(line))
                if progress:
                    progress.advance(task)
    finally:
        if progress:
            progress.stop()


if __name__ == "__main__":
    main()
