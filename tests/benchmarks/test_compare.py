"""The comparison and its report: the parts that read, sum up and write. Nothing is timed."""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
MODULES = ("compare", "contestants", "report", "workloads")


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[types.SimpleNamespace]:
    """The modules of the folder, which import each other as scripts do."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(FOLDER))
    try:
        yield types.SimpleNamespace(**{name: __import__(name) for name in MODULES})
    finally:
        patch.undo()
        for name in MODULES:
            sys.modules.pop(name, None)


def line(contestant: str, workload: str, times: list[float], **fields: Any) -> dict[str, Any]:
    first, build, memory = fields.pop("first", 1.0), fields.pop("build", 0.5), fields.pop("peak_mb", 100.0)
    values = {"contestant": contestant, "workload": workload, "times": times, "first": first, "build": build}
    return values | {"peak_mb": memory, "loss": 0.25, "cores": 2, "python": "3.11.7"} | fields


def test_every_contestant_has_its_script_and_its_environment(benchmarks: types.SimpleNamespace) -> None:
    """The table names scripts that exist and environments that can be made, and series have colours of their own."""
    table = benchmarks.contestants
    for contestant in table.CONTESTANTS.values():
        assert (FOLDER / contestant.script).is_file()
        assert contestant.environment in table.ENVIRONMENTS
        assert contestant.environment in table.LIBRARIES
        assert contestant.environment in table.IMPORTS
        assert contestant.kind in {"as it comes", "tuned", "by hand"}
        assert set(contestant.impossible) <= {table.full_name(name) for name in benchmarks.workloads.WORKLOADS}
    colors = benchmarks.report.COLORS
    assert set(colors) == {table.series_of(name)[0] for name in table.CONTESTANTS}
    assert len(set(colors.values())) == len(colors)


def test_the_number_at_the_end_of_a_name_is_that_of_its_cores(benchmarks: types.SimpleNamespace) -> None:
    """A contestant is kept to so many cores; growing workloads are by default not run with fewer than there are."""
    table = benchmarks.contestants
    for name, contestant in table.CONTESTANTS.items():
        assert table.series_of(name)[1] == contestant.cores <= table.CORES
        assert table.is_asked_for(name, "W3")
        assert table.is_asked_for(name, "W3-10000") == (contestant.cores in (0, table.CORES))


@pytest.mark.parametrize("name", ["W1", "W1-32", "W3", "W4"])
def test_a_workload_is_the_same_bytes_each_time(benchmarks: types.SimpleNamespace, name: str) -> None:
    """Contestants make the data in processes of their own, so making it twice must give the same."""
    one, other = (benchmarks.workloads.WORKLOADS[name]() for _ in range(2))
    assert one.x.tobytes() == other.x.tobytes()
    assert one.y.tobytes() == other.y.tobytes()
    assert all(one.weights[key].tobytes() == other.weights[key].tobytes() for key in other.weights)
    assert len(one.x) == len(one.y) == one.sizes.sum()
    np.testing.assert_array_equal(one.cohort_of(3), other.cohort_of(3))
    assert len(set(one.cohort_of(3).tolist())) == one.cohort
    assert one.name == benchmarks.contestants.full_name(name)


def test_a_larger_model_trains_on_the_same_data(benchmarks: types.SimpleNamespace) -> None:
    """Only the hidden layer grows: 64 inputs, so many hidden units and 10 outputs, with their biases."""
    one, other = (benchmarks.workloads.WORKLOADS[name]() for name in ("W1", "W1-512"))
    assert one.x.tobytes() == other.x.tobytes()
    assert one.sizes.tolist() == other.sizes.tolist()
    assert benchmarks.report.parameters_of("W1-512") == 65 * 512 + 513 * 10


def test_contestants_take_turns(benchmarks: types.SimpleNamespace) -> None:
    """All contestants run once before one runs again, workload by workload."""
    runs = list(benchmarks.compare.turns(["W1", "W3"], ["a", "b"], 2))
    assert runs == [(r, w, c) for w in ("W1", "W3") for r in (0, 1) for c in ("a", "b")]


def test_the_result_is_found_among_other_output(benchmarks: types.SimpleNamespace) -> None:
    """A library may print what it likes, also braces; without a result there is None."""
    result = {"contestant": "a", "workload": "W1", "times": [1.0]}
    output = "\n".join(["{not json", '{"other": 1}', json.dumps(result), "bye {", "{broken"])
    assert benchmarks.compare.result_line(output) == result
    assert benchmarks.compare.result_line('{"other": 1}\nnothing') is None


def test_a_run_returns_what_the_process_printed_and_how_it_ended(benchmarks: types.SimpleNamespace) -> None:
    """Output, errors and exit code come back; a process that does not end is ended, and says so by None."""
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    code, output, errors, _ = benchmarks.compare.run([sys.executable, "-c", script], limit=60)
    assert (code, output.split(), errors.split()) == (3, ["out"], ["err"])
    # Its child would outlive it, and is ended with it.
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    code, output, _, _ = benchmarks.compare.run([sys.executable, "-c", child], limit=2)
    assert code is None
    if pathlib.Path("/proc/self/stat").exists():
        # A signal takes effect when the process is scheduled next.
        deadline = time.monotonic() + 30
        while _is_alive(int(output)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that keeps processes to cores")
def test_a_run_is_kept_to_its_cores(benchmarks: types.SimpleNamespace) -> None:
    """The process sees as many cores as it was given, and the comparison keeps all of its own."""
    there = os.sched_getaffinity(0)
    script = "import os; print(len(os.sched_getaffinity(0)))"
    outputs = [benchmarks.compare.run([sys.executable, "-c", script], 60, cores)[1] for cores in (0, 1)]
    assert [int(output) for output in outputs] == [len(there), 1]
    assert os.sched_getaffinity(0) == there


def _is_alive(pid: int) -> bool:
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_failures_say_why_in_one_line(benchmarks: types.SimpleNamespace) -> None:
    """Time, memory, and the last line of a traceback."""
    failure = benchmarks.compare.failure
    assert failure(None, "", 600.0) == "no result within 600 s"
    assert failure(-9, "", 600.0) == "killed, as by lack of memory"
    assert failure(1, "Traceback\n  File ...\nValueError: no\n\n", 600.0) == "exit code 1: ValueError: no"


def test_a_known_failure_is_noted_without_a_run(benchmarks: types.SimpleNamespace) -> None:
    """What cannot run leaves a line with the reason, from the table."""
    name, contestant = next((n, c) for n, c in benchmarks.contestants.CONTESTANTS.items() if c.impossible)
    workload, reason = next(iter(contestant.impossible.items()))
    noted = benchmarks.compare.compared(name, workload, 1, 1.0, {})
    assert noted == {"contestant": name, "workload": workload, "error": reason}


def test_a_given_environment_is_used_and_koinons_is_this_one(benchmarks: types.SimpleNamespace) -> None:
    """`--env` names a folder whose Python runs the contestant; koinon runs where the comparison runs."""
    folder = pathlib.Path("/somewhere")
    assert benchmarks.compare.interpreter("drjax", {"drjax": folder}) == folder / "bin" / "python"
    assert benchmarks.compare.interpreter("koinon", {}) == pathlib.Path(sys.executable)


def test_summaries_are_medians_of_medians_and_peaks(benchmarks: types.SimpleNamespace) -> None:
    """A slow run moves no median; memory is the most of any run, of all its processes."""
    lines = [
        line("koinon", "W1", [1.0, 2.0, 9.0], first=4.0, peak_mb=10.0) | {"import": 0.5},
        line("koinon", "W1", [3.0], first=5.0, peak_mb=20.0, family_mb=30.0),
        line("koinon", "W1", [50.0], first=60.0, peak_mb=15.0),
        {"contestant": "koinon", "workload": "W1", "error": "once"},
    ]
    summary = benchmarks.report.summaries(lines)["W1"]["koinon"]
    assert (summary.runs, summary.round, summary.first, summary.memory) == (3, 3.0, 5.0, 30.0)
    assert (summary.imports, summary.error) == (0.5, "")


def test_the_table_shows_ratios_to_koinon_and_the_reasons_of_failures(benchmarks: types.SimpleNamespace) -> None:
    """Twice the time is 2.00; a contestant without a result has an empty row, and its reason below."""
    lines = [
        line("flower", "W1", [0.5]),
        {"contestant": "drjax", "workload": "W1", "error": "no result within 600 s"},
        line("koinon", "W1", [0.25]),
    ]
    text = benchmarks.report.table(benchmarks.report.summaries(lines)["W1"])
    rows = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in text.splitlines()[2:5]
    }
    assert list(rows) == ["koinon", "drjax", "flower"]
    assert rows["koinon"][1:3] == ["0.250", "1.00"]
    assert rows["flower"][1:3] == ["0.500", "2.00"]
    assert rows["drjax"] == ["as it comes", *[""] * 7]
    assert text.splitlines()[-1] == "No result: drjax: no result within 600 s."
    alone = benchmarks.report.table({"flower": benchmarks.report.summarized(lines[:1])})
    assert alone.splitlines()[2].split("|")[4].strip() == ""  # no ratio without koinon


def test_workloads_are_shown_in_the_order_of_their_growth(benchmarks: types.SimpleNamespace) -> None:
    """By the number of clients and not by the letters of the name."""
    names = ["W3-10000", "W1", "W3-100", "W3-1000", "W4"]
    shown = benchmarks.report.summaries([line("koinon", name, [1.0]) for name in names])
    assert list(shown) == ["W1", "W3-100", "W3-1000", "W3-10000", "W4"]
    points = benchmarks.report.growth(shown, "W3", benchmarks.report.size_of, "round")
    assert points == {"koinon": [(100, 1.0), (1000, 1.0), (10000, 1.0)]}


def test_growth_in_cores_is_drawn_by_itself(benchmarks: types.SimpleNamespace) -> None:
    """Contestants that differ in their cores are one series there; elsewhere the one with the most stands for it."""
    times = {"koinon": (4, 1.0), "koinon-1": (1, 4.0), "pfl-1": (1, 8.0), "pfl-4": (4, 3.0), "drjax": (4, 5.0)}
    rows = benchmarks.report.summaries([line(name, "W1", [time], cores=n) for name, (n, time) in times.items()])["W1"]
    assert list(rows) == ["koinon", "koinon-1", "drjax", "pfl-1", "pfl-4"]
    best = benchmarks.report.on_most_cores(rows)
    assert {name: summary.round for name, summary in best.items()} == {"koinon": 1.0, "drjax": 5.0, "pfl": 3.0}
    series = benchmarks.report.growth_in_cores(rows)
    assert series == {"koinon": [(1, 1 / 4), (4, 1.0)], "pfl": [(1, 1 / 8), (4, 1 / 3)]}


def test_only_what_is_between_the_markers_changes(benchmarks: types.SimpleNamespace) -> None:
    """Writing twice gives the same page, and a page without markers is refused."""
    report = benchmarks.report
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    written = report.replaced(page, "new")
    assert written == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.replaced(written, "new") == written
    with pytest.raises(ValueError, match="needs the lines"):
        report.replaced("no markers", "new")
    report.replaced((FOLDER.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8"), "new")


def test_the_report_writes_page_and_plots(
    benchmarks: types.SimpleNamespace, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of lines become a page that names the machine, its versions, and plots that exist."""
    pytest.importorskip("matplotlib")
    machine = {"processor": "Abacus", "system": "Linux", "memory_gb": 24.2}
    common = {"machine": machine, "date": "2026-11-21", "versions": {"koinon": "0.1"}}
    lines = [line("koinon", f"W3-{10**n}", [10.0 ** (n - 4)], **common) for n in (2, 3)]
    lines += [line("koinon", f"W1-{n}", [n / 100], **common) for n in (32, 512)]
    lines += [line("koinon-1", "W3-1000", [0.2], **(common | {"cores": 1}))]
    results, page = tmp_path / "results.jsonl", tmp_path / "benchmarks.md"
    results.write_text("".join(json.dumps(entry) + "\n" for entry in lines), encoding="utf-8")
    page.write_text(f"{benchmarks.report.BEGIN}\n{benchmarks.report.END}", encoding="utf-8")
    benchmarks.report.main([str(results), "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    assert "Measured on 2026-11-21 on 2 cores of Abacus, 24 GB, Linux, Python 3.11.7." in text
    assert "Versions: koinon 0.1." in text
    assert "### W3-100\n" in text
    for file in ("rounds", "clients-time", "clients-memory", "parameters-time", "parameters-memory", "cores"):
        assert f"(assets/benchmarks/{file}.svg)" in text
        assert (tmp_path / "assets" / "benchmarks" / f"{file}.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert capsys.readouterr().err == ""


def test_numbers_keep_three_digits(benchmarks: types.SimpleNamespace) -> None:
    """Small ones as well as large ones, so that columns can be compared."""
    for value in (0.0123, 0.123, 1.23, 12.3, 123.0):
        assert math.isclose(float(benchmarks.report.digits(value)), value)
