"""Makes the tables and plots of docs/benchmarks.md of the lines that `compare.py` wrote.

    python benchmarks/report.py [results.jsonl ...] [--page docs/benchmarks.md]

Only what stands between the two markers of the page is written; the plots lie in docs/assets/benchmarks.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from contestants import CONTESTANTS, series_of
from workloads import WORKLOADS

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: written by benchmarks/report.py -->", "<!-- end of results -->"
REFERENCE = "koinon"
# The palette of Okabe and Ito, which readers with any colour vision can tell apart, and greys for programs by hand.
COLORS = {
    "koinon": "#0072B2",
    "koinon-fresh": "#56B4E9",
    "koinon-devices": "#332288",
    "handwritten": "#555555",
    "handwritten-16-lanes": "#AAAAAA",
    "drjax": "#E69F00",
    "drjax-8-groups": "#D55E00",
    "fedjax": "#009E73",
    "pfl": "#CC79A7",
    "flower": "#882255",
}
LEGEND: dict[str, Any] = {"bbox_to_anchor": (1.01, 1), "loc": "upper left", "frameon": False}
KINDS = {series_of(name)[0]: contestant.kind for name, contestant in CONTESTANTS.items()}


@dataclasses.dataclass(frozen=True)
class Summary:
    """The runs of one contestant on one workload: medians over the runs.

    Attributes:
      runs: how many runs gave a result.
      imports: seconds that the imports of a program take.
      build: seconds to build, before the first round.
      first: seconds of the first round, compilation included.
      round: seconds of a warm round, the median of each run's median.
      memory: the largest amount of memory of a run, in MB.
      loss: the loss after the last round, of the last run.
      rounds: how many rounds led to that loss.
      cores: how many cores the runs had.
      error: why there is no result, where there is none.
    """

    runs: int = 0
    imports: float = float("nan")
    build: float = float("nan")
    first: float = float("nan")
    round: float = float("nan")
    memory: float = float("nan")
    loss: float = float("nan")
    rounds: int = 0
    cores: int = 0
    error: str = ""


def read(paths: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
    """The lines of files of results."""
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line]


def summarized(lines: Sequence[dict[str, Any]]) -> Summary:
    """The summary of the lines of one contestant on one workload."""
    good = [line for line in lines if line.get("times")]
    if not good:
        return Summary(error=lines[-1].get("error", "no warm round"))
    return Summary(
        runs=len(good),
        imports=statistics.median([line["import"] for line in good if "import" in line] or [float("nan")]),
        build=statistics.median(line["build"] for line in good),
        first=statistics.median(line["first"] for line in good),
        round=statistics.median(statistics.median(line["times"]) for line in good),
        memory=max(max(line["peak_mb"], line.get("family_mb", 0.0)) for line in good),
        loss=good[-1]["loss"],
        rounds=len(good[-1]["times"]) + 1,
        cores=good[-1]["cores"],
    )


def summaries(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, Summary]]:
    """The summaries by workload and contestant, both in the order in which they should be shown."""
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in lines:
        grouped.setdefault(line["workload"], {}).setdefault(line["contestant"], []).append(line)
    order = list(KINDS)

    def position(name: str) -> tuple[int, int]:
        series, cores = series_of(name)
        return order.index(series) if series in order else len(order), cores

    return {
        workload: {name: summarized(grouped[workload][name]) for name in sorted(grouped[workload], key=position)}
        for workload in sorted(grouped, key=lambda workload: (workload.split("-")[0], size_of(workload)))
    }


def size_of(workload: str) -> int:
    """The number in the name of a workload that grows, for W3 that of its clients; else 0.

    >>> size_of("W3-1000"), size_of("W1")
    (1000, 0)
    """
    return int(workload.partition("-")[2] or 0)


def parameters_of(workload: str) -> int:
    """The number of parameters of a workload's model.

    >>> parameters_of("W1")
    9610
    """
    return sum(array.size for array in WORKLOADS[workload]().weights.values())


def digits(value: float) -> str:
    """A number with three digits, without an exponent; nothing for one that is not known.

    >>> digits(0.01234), digits(12.34), digits(1234.5)
    ('0.0123', '12.3', '1,234')
    """
    if math.isnan(value):
        return ""
    decimals = next((n for n, least in ((0, 100), (1, 10), (2, 1), (3, 0.1), (4, 0.01)) if value >= least), 5)
    return f"{value:,.{decimals}f}"


def table(of_contestants: dict[str, Summary]) -> str:
    """The table of one workload: times as multiples of koinon's, koinon's own in seconds."""
    reference = of_contestants.get(REFERENCE, Summary())
    rows = [
        "| | how | a round, s | koinon = 1 | import, s | build, s | first round, s | memory, MB | loss |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    notes = []
    for name, summary in of_contestants.items():
        kind = KINDS.get(series_of(name)[0], "")
        if summary.error:
            notes.append(f"{name}: {summary.error}.")
            rows.append(f"| {name} | {kind} | | | | | | | |")
            continue
        ratio = f"{digits(summary.round / reference.round)}" if reference.runs else ""
        numbers = [summary.round, ratio, summary.imports, summary.build, summary.first, summary.memory]
        cells = [number if isinstance(number, str) else digits(number) for number in numbers]
        loss = f"{summary.loss:.6f} after {summary.rounds}"
        rows.append(f"| {name} | {kind} | {' | '.join(cells)} | {loss} |")
    return "\n".join([*rows, *(["", "No result: " + " ".join(notes)] if notes else [])])


def machines(lines: Sequence[dict[str, Any]]) -> str:
    """What the runs ran on, and with which versions, as sentences."""
    found: dict[str, int] = {}
    versions: dict[str, dict[str, None]] = {}
    for line in lines:
        machine = line.get("machine", {})
        if "cores" in line and machine:
            memory, system = f"{machine['memory_gb']:.0f} GB", machine["system"]
            name = f"{machine['processor']}, {memory}, {system}, Python {line['python']}"
            found[name] = max(line["cores"], found.get(name, 0))  # a run may be kept to fewer than there are
        for library, version in line.get("versions", {}).items():
            versions.setdefault(library, {})[version] = None
    dates = sorted({line["date"] for line in lines if "date" in line})
    when = f" on {dates[0]}" if len(dates) == 1 else f" from {dates[0]} to {dates[-1]}" if dates else ""
    where = "; ".join(f"{cores} cores of {name}" for name, cores in found.items())
    with_versions = ", ".join(f"{library} {' and '.join(versions[library])}" for library in sorted(versions))
    sentences = [f"Measured{when}" + (f" on {where}." if found else ".")]
    if with_versions:
        sentences.append(f"Versions: {with_versions}.")
    return "\n".join(sentences)


def section(lines: Sequence[dict[str, Any]], plots: Sequence[tuple[str, str]]) -> str:
    """What stands between the markers: the machine, the plots (path and caption), a table for each workload."""
    parts = [machines(lines)]
    parts += [f"![{caption}]({path})" for path, caption in plots]
    parts += [f"### {workload}\n\n{table(rows)}" for workload, rows in summaries(lines).items()]
    return "\n\n".join(parts)


def replaced(page: str, content: str) -> str:
    """A page with other content between its markers.

    Raises:
      ValueError: if the page does not have both markers, in their order.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page needs the lines {BEGIN!r} and {END!r}, between which the results go.")
    return f"{head}{BEGIN}\n\n{content}\n\n{END}{tail}"


def on_most_cores(rows: dict[str, Summary]) -> dict[str, Summary]:
    """The results of a workload by series: of contestants that differ in their cores alone, the one with the most."""
    found: dict[str, Summary] = {}
    for name, summary in rows.items():
        series = series_of(name)[0]
        if summary.runs and (series not in found or summary.cores >= found[series].cores):
            found[series] = summary
    return found


def growth(
    results: dict[str, dict[str, Summary]], family: str, size: Callable[[str], int], field: str
) -> dict[str, list[tuple[int, float]]]:
    """For each series with several, the values of a field by the size of a family's workloads, as W3's by clients."""
    series: dict[str, list[tuple[int, float]]] = {}
    for workload, rows in results.items():
        if workload.partition("-")[0] == family:
            x = size(workload)
            for name, summary in on_most_cores(rows).items():
                series.setdefault(name, []).append((x, getattr(summary, field)))
    return {name: sorted(points) for name, points in series.items() if len(points) > 1}


def growth_in_cores(rows: dict[str, Summary]) -> dict[str, list[tuple[int, float]]]:
    """For each series of which there are contestants with fewer cores, the rounds of a second by the cores."""
    numbered = {series_of(name)[0] for name in rows if series_of(name)[1]}
    series: dict[str, list[tuple[int, float]]] = {}
    for name, summary in rows.items():
        if summary.runs and series_of(name)[0] in numbered:
            series.setdefault(series_of(name)[0], []).append((summary.cores, 1 / summary.round))
    return {name: sorted(points) for name, points in series.items()}


def draw(lines: Sequence[dict[str, Any]], folder: pathlib.Path) -> list[tuple[str, str]]:
    """Draws the plots, and gives their file names and captions.

    Raises:
      ImportError: if matplotlib is missing.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot, ticker

    pyplot.rcParams["svg.hashsalt"] = "koinon"  # the same lines make the same bytes
    folder.mkdir(parents=True, exist_ok=True)
    results = summaries(lines)
    plots = []

    def save(figure: Any, file: str, caption: str) -> None:
        figure.savefig(folder / file, metadata={"Date": None}, bbox_inches="tight")
        pyplot.close(figure)
        plots.append((file, caption))

    def plot(axes: Any, series: dict[str, list[tuple[int, float]]], x: str, y: str) -> None:
        for name, points in series.items():
            width = 2.5 if name == REFERENCE else 1.2
            axes.plot(*zip(*points, strict=True), "o-", color=COLORS.get(name, "black"), linewidth=width, label=name)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.3)

    timed = {workload: best for workload, rows in results.items() if (best := on_most_cores(rows))}
    if timed:
        figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.7 * len(timed)))
        labelled: set[str] = set()
        for position, rows in enumerate(timed.values()):
            for name, summary in rows.items():
                label = None if name in labelled else name
                labelled.add(name)
                marker = "D" if name == REFERENCE else "o"
                color = COLORS.get(name, "black")
                axes.scatter(summary.round, position, color=color, marker=marker, s=50, label=label)
        axes.set_xscale("log")
        axes.set_yticks(range(len(timed)), list(timed))
        axes.set_ylim(len(timed) - 0.5, -0.5)
        axes.set_xlabel("seconds a round (log)")
        axes.grid(axis="x", alpha=0.3)
        axes.legend(**LEGEND)
        save(figure, "rounds.svg", "Seconds of a warm round on each workload; left is better.")
    for family, size, file, label in (
        ("W3", size_of, "clients", "clients of a round"),
        ("W1", parameters_of, "parameters", "parameters of the model"),
    ):
        for field, kind, unit, what in (
            ("round", "time", "seconds a round", "Seconds of a round of"),
            ("memory", "memory", "peak memory, MB", "Peak memory on"),
        ):
            series = growth(results, family, size, field)
            if series:
                figure, axes = pyplot.subplots(figsize=(8, 4))
                plot(axes, series, f"{label} (log)", f"{unit} (log)")
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("")
                axes.legend(**LEGEND)
                save(figure, f"{file}-{kind}.svg", f"{what} {family} as the number of {label} grows.")
    panels = {workload: growth_in_cores(rows) for workload, rows in results.items()}
    panels = {workload: series for workload, series in panels.items() if max(map(len, series.values()), default=0) > 1}
    if panels:
        figure, row = pyplot.subplots(
            1, len(panels), figsize=(2.2 * len(panels), 3.5), squeeze=False, layout="constrained"
        )
        for axes, (workload, series) in zip(row[0], panels.items(), strict=True):
            plot(axes, series, "cores", "rounds a second" if axes is row[0, 0] else "")
            counts = sorted({cores for points in series.values() for cores, _ in points})
            axes.set_xticks(counts, counts)
            axes.set_xlim(0, counts[-1] * 1.1)
            axes.set_ylim(bottom=0)
            axes.set_title(workload)
        shown = {line.get_label(): line for axes in row[0] for line in axes.lines}
        figure.legend(shown.values(), shown, **LEGEND)
        save(figure, "cores.svg", "Rounds a second as the number of cores grows.")
    return plots


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description="Writes the tables and plots of the benchmarks' page.")
    default = pathlib.Path(__file__).resolve().parent / "results.jsonl"
    parser.add_argument("results", nargs="*", type=pathlib.Path, default=[default])
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args(arguments)
    lines = read(options.results)
    assets = options.page.parent / "assets" / "benchmarks"
    try:
        plots = [(f"assets/benchmarks/{file}", caption) for file, caption in draw(lines, assets)]
    except ImportError:
        print("Without matplotlib (pip install 'koinon[plot]') there are no plots.", file=sys.stderr)
        plots = []
    page = options.page.read_text(encoding="utf-8")
    options.page.write_text(replaced(page, section(lines, plots)), encoding="utf-8")


if __name__ == "__main__":
    main()
