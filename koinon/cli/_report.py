"""The page of a run: what was run, how it went, and what its rounds are."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import math
import os
import shlex
from collections.abc import Iterable, Mapping

import numpy as np

from koinon import compiler
from koinon.cli._config import RunConfig
from koinon.cli._facts import cost_text, plan_text, privacy_report
from koinon.cli._folder import RunFolder, replace_file
from koinon.cli._privacy import spent_rows
from koinon.cli._progress import duration
from koinon.errors import MissingDependencyError
from koinon.learning.templates import LearningProcess
from koinon.simulation.tasks import QUANTILES, Task

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem } p.lead { font-size: 1.2rem; margin-top: .3rem }
table { border-collapse: collapse; font-size: .9rem } td, th { padding: .2rem .9rem .2rem 0; text-align: left;
vertical-align: top; border-bottom: 1px solid #8884 } td.n { text-align: right; font-variant-numeric: tabular-nums }
pre { font-size: .8rem; overflow-x: auto; background: #8881; padding: .8rem; border-radius: .3rem }
img { max-width: 100%; background: white; border-radius: .3rem } code { font-size: .85em; overflow-wrap: anywhere }
summary { cursor: pointer } div.wide { overflow-x: auto }
"""


def write_report(folder: RunFolder, config: RunConfig, task: Task, process: LearningProcess) -> None:
    """Writes `report.html`: one file that needs no other and no network."""
    metrics, timing = folder.read_metrics(), folder.read_timing()
    body = [
        f"<h1>{_text(task.name)}</h1>",
        f'<p class="lead">{_text(task.description)}</p>',
        f"<p>{_text(summary_line(metrics, task.metric))}</p>",
        _curves(folder),
        "<h2>Result</h2>",
        _result_table(metrics, timing, task.metric),
        "<h2>Settings</h2>",
        _table(_settings(config)),
        f"<p>To run it again: <code>koinon run {_text(shlex.quote(os.fspath(folder.config_path)))}</code></p>",
        "<h2>Clients</h2>",
        _clients(task),
        "<h2>The learning process</h2>",
        f"<pre>{_text(repr(process))}</pre>",
        "<h2>What the server gets of the clients' data</h2>",
        _privacy(process),
        "<h2>What a round costs</h2>",
        f"<pre>{_text(cost_text(process, task, config.clients_per_round))}</pre>",
        "<h2>The plan of a round</h2>",
        f"<details><summary>phases and steps</summary><pre>{_text(plan_text(process))}</pre></details>",
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(task.name)}, seed {config.seed}'
        f"</title><style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )
    replace_file(folder.report_path, page.encode())


def summary_line(metrics: Mapping[str, np.ndarray], metric: str) -> str:
    """How the run ended, in a sentence."""
    column = metrics.get(f"test/{metric}", np.zeros(0))
    rounds = metrics.get("round", np.zeros(0))
    if not len(column) or math.isnan(column[-1]):
        return f"{len(rounds)} rounds."
    best = int(np.nanargmin(column) if metric == "loss" else np.nanargmax(column))
    return (
        f"Final test {metric} {column[-1]:.4f} after {rounds[-1]:.0f} rounds; "
        f"best {column[best]:.4f} in round {rounds[best]:.0f}."
    )


def _curves(folder: RunFolder) -> str:
    if not folder.curves_path.exists():
        return ""
    return _image(folder.curves_path.read_bytes(), "loss, metric and its distribution over clients, by round")


def _image(png: bytes, what: str) -> str:
    return f'<img alt="{_text(what)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def _result_table(metrics: Mapping[str, np.ndarray], timing: Mapping[str, np.ndarray], metric: str) -> str:
    rows: list[tuple[str, str]] = []
    for part, label in (("train", "training clients of the last round"), ("test", "centralized test set")):
        for name in dict.fromkeys(("loss", metric)):
            column = metrics.get(f"{part}/{name}", np.zeros(0))
            if len(column):
                rows.append((f"{name}, {label}", f"{column[-1]:.4f}"))
    spread = [metrics.get(f"clients/{metric}_p{round(100 * quantile)}", np.zeros(0)) for quantile in QUANTILES]
    if all(map(len, spread)):
        names = " / ".join("min" if q == 0 else "max" if q == 1 else f"{100 * q:.0f} %" for q in QUANTILES)
        values = " / ".join(f"{column[-1]:.3f}" for column in spread)
        rows.append((f"{metric} of each test client ({names})", values))
    rows += spent_rows(metrics)
    seconds = timing.get("seconds", np.zeros(0))
    if len(seconds):
        rows.append(("time", f"{duration(float(seconds.sum()))}, {float(np.median(seconds)):.3g} s a round (median)"))
    return _table(rows)


def _settings(config: RunConfig) -> list[tuple[str, str]]:
    names = ("task", "seed", "rounds", "clients_per_round", "evaluate_every", "backend")
    rows = [(name, str(getattr(config, name))) for name in names]
    versions = ", ".join(f"{name} {version}" for name, version in config.versions.items())
    return [*rows, *((name, str(value)) for name, value in config.hyperparameters.items()), ("versions", versions)]


def _clients(task: Task) -> str:
    parts = []
    for label, data in (("to train with", task.train), ("to test with", task.test_clients)):
        describe = getattr(data, "describe", None)
        if describe is not None:
            summary = describe()
            parts.append(f"<p>{label}</p><pre>{_text(repr(summary))}</pre>")
            with contextlib.suppress(MissingDependencyError):
                plot = io.BytesIO()
                summary.plot(plot)
                parts.append(_image(plot.getvalue(), f"examples of the clients {label}, by label"))
    return "".join(parts) or f"<p>{len(task.train.client_ids)} clients</p>"


def _privacy(process: LearningProcess) -> str:
    report = privacy_report(process)
    if not isinstance(report, compiler.PrivacyReport):
        return f"<p>{_text(report)}</p>"
    if not report.rows:
        return "<p>Nothing.</p>"
    header = "".join(f"<th>{name}</th>" for name in ("leaf", "type", "through", "route", "clip", "noise", "protected"))
    rows = "".join(_privacy_row(row) for row in report.rows)
    note = f"{len(report.unprotected)} of {len(report.rows)} are not protected by differential privacy."
    return f'<div class="wide"><table><tr>{header}</tr>{rows}</table></div><p>{note}</p>'


def _privacy_row(row: compiler.PrivacyRow) -> str:
    noise = "" if row.mechanism is None else f"{row.mechanism} {row.noise_multiplier}"
    protection = "yes" if row.protected else f"no: {row.reason}"
    cells = (
        row.path,
        row.type,
        row.expression,
        row.route,
        "" if row.clip is None else str(row.clip),
        noise,
        protection,
    )
    return f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return (
        f"<table>{''.join(f'<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>' for name, value in rows)}</table>"
    )


def _text(value: str) -> str:
    return html.escape(value)
